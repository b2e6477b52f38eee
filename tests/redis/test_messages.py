"""Which messages are lost, and that none is handled twice, over several servers that stop, die, and lose their Redis.

A message has one of these fates, and the tests say which for every single one:

- begun and ended once: what is to be;
- begun and not ended: it was in work when its process was killed;
- not begun: Redis had given it to a process that was killed before the consumer began.

Of the last two there are at most ``max_applications`` for each process killed, since a message has its place before it is asked for.
"""

import collections
import signal

from tests.redis.conftest import Numbers, OwnRedis, needs_redis, needs_redis_server, until

pytestmark = needs_redis
PLACES = 8


def once(numbers: "range | set[int]") -> "collections.Counter[int]":
    return collections.Counter(numbers)


def test_server_that_is_stopped_in_full_work_loses_nothing_and_nothing_is_handled_twice(
    numbers: Numbers,
) -> None:
    stays, stopped = numbers.serve(PLACES), numbers.serve(PLACES)
    numbers.send(range(2000))
    until(lambda: len(numbers.noted("ended", stopped)) > 100)
    stopped.signal(signal.SIGTERM)
    assert stopped.end() == 0, stopped.err
    until(lambda: len(numbers.noted("ended")) == 2000)
    stays.signal(signal.SIGINT)
    assert stays.end() == 0, stays.err
    assert numbers.noted("begun") == numbers.noted("ended") == once(range(2000))
    assert numbers.keys() == [], "messages in flight that another process would take again"


def test_server_that_is_killed_in_full_work_loses_what_it_had_in_its_hands(
    numbers: Numbers,
) -> None:
    stays, killed = numbers.serve(PLACES), numbers.serve(PLACES)
    numbers.send(range(2000))
    until(lambda: len(numbers.noted("ended", killed)) > 100)
    killed.kill()
    numbers.send(range(2000, 2100))
    until(lambda: numbers.waiting() == 0)
    in_work = numbers.in_work(killed)
    until(lambda: set(numbers.noted("begun")) - set(numbers.noted("ended")) == in_work)
    stays.signal(signal.SIGTERM)
    assert stays.end() == 0, stays.err
    everything = set(range(2100))
    lost = everything - set(numbers.noted("ended"))
    assert in_work <= lost
    assert len(lost) <= PLACES
    assert numbers.noted("ended") == once(everything - lost)
    assert numbers.noted("begun") == once(everything - lost | in_work)


@needs_redis_server
def test_10000_messages_over_two_servers_one_killed_and_redis_restarted_lose_what_was_in_work(
    own_redis: OwnRedis, own_numbers: Numbers
) -> None:
    numbers = own_numbers
    # The first server is full, and takes no more; the second works.
    killed = numbers.serve(PLACES)
    in_work = range(PLACES)
    numbers.send(in_work, held=True)
    until(lambda: numbers.in_work(killed) == set(in_work))
    numbers.send(range(PLACES, 5000))
    assert numbers.waiting() == 5000 - PLACES, "taken, but not begun"
    second = numbers.serve(PLACES)
    until(lambda: len(numbers.noted("ended", second)) > 100)
    killed.kill()
    first = numbers.serve(PLACES)
    until(lambda: len(numbers.noted("ended")) == 5000 - PLACES)

    # Both are full: no message is on its way while Redis goes.
    numbers.send(range(5000, 5000 + 2 * PLACES), held=True)
    until(lambda: all(len(numbers.in_work(server)) == PLACES for server in (first, second)))
    numbers.send(range(5000 + 2 * PLACES, 10000))
    own_redis.stop()
    # With room for one message each finds out.
    numbers.let_go(min(numbers.in_work(server)) for server in (first, second))
    for server in (first, second):
        server.wait_for("WARNING: The channel layer 'default' failed, and is tried again")
    own_redis.start()
    for server in (first, second):
        server.wait_for("INFO: The channel layer 'default' answers again")
    numbers.let_go(range(5000, 5000 + 2 * PLACES))

    # Lost: what was in work. Redis has lost nothing, since it writes down what it has. Nothing came twice.
    until(lambda: len(numbers.noted("ended")) == 10000 - PLACES)
    for server in (first, second):
        server.signal(signal.SIGTERM)
        assert server.end() == 0, server.err
    assert numbers.noted("begun") == once(range(10000))
    assert numbers.noted("ended") == once(range(PLACES, 10000))
    assert numbers.in_work(killed) == set(in_work)
