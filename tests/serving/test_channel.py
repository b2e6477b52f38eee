"""Messages of a channel layer: when they are taken, what works on them, what becomes of them at the end.

With Channels' in-memory layer, and layers of the test's own; Redis itself is in ``tests/redis``.
"""

import asyncio
import collections
import contextlib
import logging
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
from channels.consumer import AsyncConsumer, SyncConsumer
from channels.layers import InMemoryChannelLayer, get_channel_layer
from channels.routing import ChannelNameRouter
from channels_redis.core import RedisChannelLayer
from django.test import override_settings

from django_asyncbridge.bridge.sync import ThreadSensitiveContext, pool_statistics, sync_to_async
from django_asyncbridge.serving import _channel_intake
from django_asyncbridge.serving.channel import (
    ChannelLayerError,
    ChannelServer,
    ChannelsNotInstalledError,
)
from django_asyncbridge.serving.errors import ServingError
from django_asyncbridge.serving.stateless import ServerRun, import_server, make_server
from django_asyncbridge.signals import server_started

LIMIT_SECONDS = 30
IN_MEMORY = "channels.layers.InMemoryChannelLayer"
LOGGER = "django_asyncbridge.serving.channel"


# --- Layers -------------------------------------------------------------------------


class Layer:
    """A layer whose `receive` gives or raises what the test puts in."""

    def __init__(self, **_config: Any) -> None:
        self.queues: dict[str, asyncio.Queue[Any]] = collections.defaultdict(asyncio.Queue)

    async def receive(self, channel: str) -> Any:
        outcome = await self.queues[channel].get()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class WithoutReceive:
    """Can only send."""


class BrokenLayer:
    def __init__(self) -> None:
        raise LookupError("no such\nhost")


class PubSubLayer(Layer):
    """Looks like channels_redis's other layer."""


PubSubLayer.__module__ = "channels_redis.pubsub"


class RedisLayer(RedisChannelLayer):  # type: ignore[misc]
    """The real layer on a Redis that gives or raises what the test puts in, or hangs."""

    made: "list[RedisLayer]" = []  # noqa: RUF012
    closed = False

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.made.append(self)
        self.replies: asyncio.Queue[Any] = asyncio.Queue()
        self.asked: list[tuple[int, str]] = []
        self.polled = asyncio.Event()
        self.seconds = 0.001  # stands for the second that Redis waits

    def connection(self, index: int) -> Any:
        return FakeRedis(self, index)

    async def close_pools(self) -> None:
        await super().close_pools()
        self.closed = True

    def arrives(self, message: Any) -> None:
        """Have Redis reply with a message, or raise."""
        failed = isinstance(message, Exception)
        self.replies.put_nowait(message if failed else (b"key", self.serialize(message), 1.0))


class FakeRedis:
    """Has no command but the one that takes a message: no other is sent."""

    def __init__(self, layer: RedisLayer, index: int) -> None:
        self.layer = layer
        self.index = index

    async def bzpopmin(self, key: str, *, timeout: float) -> Any:
        assert timeout == 1
        self.layer.asked.append((self.index, key))
        self.layer.polled.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.layer.seconds):
                reply = await self.layer.replies.get()
                if isinstance(reply, Exception):
                    raise reply
                return reply
        return None


def layers(backend: str | type = IN_MEMORY, **config: Any) -> override_settings:
    """Set one layer, the default."""
    path = backend if isinstance(backend, str) else f"{__name__}.{backend.__name__}"
    return override_settings(CHANNEL_LAYERS={"default": {"BACKEND": path, "CONFIG": config}})


@pytest.fixture(autouse=True)
def in_memory() -> Iterator[None]:
    with layers(capacity=1000):
        yield
    RedisLayer.made.clear()


# --- Running ------------------------------------------------------------------------


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test in an event loop of its own, and see that it leaves no task."""

    async def limited() -> None:
        async with asyncio.timeout(LIMIT_SECONDS):
            await main()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(limited())


@contextlib.asynccontextmanager
async def serving(server: ChannelServer) -> AsyncIterator["asyncio.Task[None]"]:
    """Run a server, and stop it at the end of the block as a signal does."""
    task = asyncio.create_task(server.arun())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert server._lanes == {}
        assert not any(server._idle.values())


async def until(condition: Callable[[], object]) -> None:
    """Let everything go on until something is true."""
    while not condition():
        await asyncio.sleep(0.001)


async def send(channel: str, *messages: Any) -> None:
    layer = get_channel_layer()
    for message in messages:
        await layer.send(channel, message)


def work(*numbers: int) -> list[dict[str, Any]]:
    return [{"type": "work", "number": number} for number in numbers]


class Desk:
    """An application whose work the test lets finish; like a consumer it waits for message after message."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.instances: list[Any] = []
        self.scopes: list[Any] = []
        self._may_end: dict[int, asyncio.Event] = {}

    def let_end(self, *numbers: int) -> None:
        for number in numbers:
            self._event(number).set()

    def _event(self, number: int) -> asyncio.Event:
        return self._may_end.setdefault(number, asyncio.Event())

    async def has_begun(self, number: int) -> None:
        await until(lambda: number in self.begun)

    async def has_ended(self, number: int) -> None:
        await until(lambda: number in self.ended)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        while True:
            number = (await receive())["number"]
            self.begun.append(number)
            self.instances.append(asyncio.current_task())
            await self._event(number).wait()
            self.ended.append(number)


# --- What cannot be served --------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"channels": []}, "There are no channels to receive from; name some"),
        ({"channels": ["a b"]}, "The channel 'a b' cannot be: Channel name must be a valid"),
        ({"channels": ["x!y"]}, "The channel 'x!y' belongs to one consumer"),
        ({"channels": ["a", "b", "a"]}, "A channel is named twice in a, b, a; name each once."),
        ({"max_applications": 1, "channels": ["a", "b"]}, "max_applications is 1, with 2 channels"),
        ({"graceful_seconds": -1.0}, "graceful_seconds is -1; give a number of seconds"),
        ({"graceful_seconds": float("nan")}, "graceful_seconds is nan; give a number"),
        ({"layer": "other"}, "no channel layer 'other' in settings.CHANNEL_LAYERS, which has: def"),
    ],
)
def test_channel_server_with_wrong_options_raises_one_line(
    options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ServingError, match=re.escape(text)) as caught:
        ChannelServer(Desk(), **{"channels": ["a"], **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "text"),
    [
        (WithoutReceive, "The channel layer 'default' is a WithoutReceive, which has no receive()"),
        (BrokenLayer, "'default' cannot be made: LookupError: no such host"),
        ("nowhere.Layer", "'default' cannot be made: InvalidChannelLayerError: Cannot import"),
    ],
)
def test_channel_server_with_an_unusable_layer_raises_one_line(
    backend: str | type, text: str
) -> None:
    with layers(backend), pytest.raises(ChannelLayerError, match=re.escape(text)):
        ChannelServer(Desk(), channels=["a"])


@override_settings(CHANNEL_LAYERS={})
def test_channel_server_without_layers_says_what_to_add() -> None:
    with pytest.raises(ChannelLayerError, match=r"CHANNEL_LAYERS has no channel layer; add one"):
        ChannelServer(Desk(), channels=["a"])


def test_channel_server_without_channels_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "channels.layers", None)
    with pytest.raises(ChannelsNotInstalledError, match=r'pip install "django-asyncbridge\[chan'):
        ChannelServer(Desk(), channels=["a"])


def test_channel_server_takes_its_options_from_the_command_line() -> None:
    cls = import_server(f"{ChannelServer.__module__}.ChannelServer")
    options = ["channels=mail,thumbnails", "max_applications=5", "graceful_seconds=1.5"]
    server = make_server(cls, Desk(), options)
    assert server.channels == ("mail", "thumbnails")
    assert (server.max_applications, server.application_drain_seconds) == (5, 1.5)
    with pytest.raises(ChannelLayerError, match=r"^There is no channel layer 'other'"):
        make_server(cls, Desk(), ["channels=mail", "layer=other"])


# --- Work -----------------------------------------------------------------------------


def test_messages_are_worked_on_at_once_up_to_the_maximum_and_the_rest_stays_in_the_layer() -> None:
    async def main() -> None:
        desk = Desk()
        server = ChannelServer(desk, 2, channels=["a"])
        await send("a", *work(1, 2, 3, 4))
        async with serving(server):
            await until(lambda: desk.begun == [1, 2])
            await asyncio.sleep(0.01)
            assert desk.begun == [1, 2]
            assert get_channel_layer().channels["a"].qsize() == 2
            desk.let_end(2)
            await until(lambda: desk.begun == [1, 2, 3])
            desk.let_end(1, 3, 4)
            await until(lambda: len(desk.ended) == 4)
            assert sorted(desk.ended) == [1, 2, 3, 4]
            assert len(set(desk.instances)) == 2, "an instance that waits was not used again"
            assert desk.scopes == [{"type": "channel", "channel": "a"}] * 2

    run(main)


def test_channel_with_long_work_leaves_room_for_another_channel() -> None:
    async def main() -> None:
        desk = Desk()
        server = ChannelServer(desk, 3, channels=["slow", "quick"])
        await send("slow", *work(*range(10, 20)))
        async with serving(server):
            await until(lambda: desk.begun == [10, 11])
            await send("quick", *work(1))
            await until(lambda: 1 in desk.begun)
            desk.let_end(1)
            await until(lambda: desk.ended == [1])
            desk.let_end(*range(10, 20))
            await until(lambda: len(desk.ended) == 11)

    run(main)


def test_instance_that_waits_makes_room_for_another_channel() -> None:
    async def main() -> None:
        desk = Desk()
        server = ChannelServer(desk, 2, channels=["a", "b"])
        desk.let_end(1, 2)
        async with serving(server):
            for channel, number in [("a", 1), ("b", 2), ("a", 3), ("b", 4)]:
                await send(channel, *work(number))
                await desk.has_begun(number)
                assert len(server.application_instances) <= 2
                desk.let_end(number)
                await desk.has_ended(number)
        assert len(set(desk.instances)) == 2

    run(main)


def test_instance_of_a_channel_that_has_fallen_silent_is_ended_for_a_busy_one() -> None:
    async def main() -> None:
        desk = Desk()
        server = ChannelServer(desk, 3, channels=["a", "b"])
        async with serving(server):
            await send("a", *work(1, 2))
            await until(lambda: len(desk.begun) == 2)
            desk.let_end(1, 2)
            await until(lambda: len(desk.ended) == 2)
            await send("b", *work(3, 4))
            await until(lambda: len(desk.begun) == 4)
            channels = sorted(channel for channel, _number in server.application_instances)
            assert channels == ["a", "b", "b"]
            assert [one.channel for one in server.in_work()] == ["b", "b"]
            assert desk.instances[0].done()
            desk.let_end(3, 4)
            await until(lambda: len(desk.ended) == 4)

    run(main)


def test_instances_that_have_ended_make_room_before_one_that_waits() -> None:
    async def once(_scope: Any, receive: Any, _send: Any) -> None:
        done.append((await receive())["number"])

    done: list[int] = []

    async def main() -> None:
        server = ChannelServer(once, 1, channels=["a"])
        server.application_checker_interval = LIMIT_SECONDS  # so that nobody else forgets them
        async with serving(server):
            await send("a", *work(1, 2, 3))
            await until(lambda: done == [1, 2, 3])
            assert len(server.application_instances) == 1

    run(main)


def test_instance_deleted_by_somebody_else_is_not_handed_a_message() -> None:
    async def main() -> None:
        desk = Desk()
        server = ChannelServer(desk, 2, channels=["a"])
        desk.let_end(1, 2)
        async with serving(server):
            await send("a", *work(1))
            await until(lambda: desk.ended == [1])
            await until(lambda: server._idle["a"])
            (scope_id,) = server.application_instances
            server.delete_application_instance(scope_id)
            # In the same step, before the instance has ended.
            await server._room.take("a")
            server._begin("a", work(2)[0])
            await until(lambda: desk.ended == [1, 2])

    run(main)


def test_message_that_comes_as_its_instance_ends_is_given_to_another() -> None:
    begun: list[Any] = []

    async def impatient(_scope: Any, receive: Any, _send: Any) -> None:
        begun.append(((await receive())["number"], asyncio.current_task()))
        waiting = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await leave.wait()

    leave = asyncio.Event()

    async def main() -> None:
        server = ChannelServer(impatient, 2, channels=["a"])
        async with serving(server):
            await send("a", *work(1))
            await until(lambda: server._idle["a"])
            await send("a", *work(2))
            await until(lambda: [one.type for one in server.in_work()] == ["work"])
            assert [number for number, _task in begun] == [1]
            leave.set()
            await until(lambda: len(begun) == 2)
            assert begun[1][0] == 2
            assert begun[0][1] is not begun[1][1]
            await until(lambda: not server.in_work())
            assert server._room.used == 1

    run(main)


def test_application_that_asks_with_a_limit_loses_nothing() -> None:
    done: list[int] = []
    waits: list[None] = []

    async def polls(_scope: Any, receive: Any, _send: Any) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                done.append((await asyncio.wait_for(receive(), 0.001))["number"])
            waits.append(None)

    async def main() -> None:
        async with serving(ChannelServer(polls, 1, channels=["a"])):
            for number in range(20):
                await send("a", *work(number))
                # At another place of its round each time.
                del waits[number % 3 :]
                await until(lambda: len(waits) > 3)
            await until(lambda: done == list(range(20)))

    run(main)


def test_application_that_never_asks_for_its_message_gets_no_second_one() -> None:
    calls: list[None] = []

    async def deaf(_scope: Any, _receive: Any, _send: Any) -> None:
        calls.append(None)

    async def main() -> None:
        async with serving(ChannelServer(deaf, 1, channels=["a"])) as task:
            await send("a", *work(1, 2))
            await until(lambda: len(calls) == 2)
            await asyncio.sleep(0.01)
            assert len(calls) == 2
            assert not task.done()

    run(main)


def test_failure_is_that_of_one_message_and_is_logged_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done: list[int] = []

    class Fails(AsyncConsumer):  # type: ignore[misc]
        async def work(self, message: Any) -> None:
            if message["number"] % 2:
                raise LookupError("no printer")
            done.append(message["number"])

    async def main() -> None:
        async with serving(ChannelServer(Fails.as_asgi(), 2, channels=["a"])):
            await send("a", *work(*range(6)), {"number": 7}, {"type": ["x"]})
            await until(lambda: len(done) == 3)
            await until(lambda: len(caplog.records) == 5)

    run(main)
    assert sorted(done) == [0, 2, 4]
    text = "Exception in the application on channel a, message"
    assert sorted(set(caplog.messages))[:2] == [
        f"{text} without a type: 'list' object has no attribute 'replace'",
        f"{text} without a type: Incoming message has no 'type' attribute",
    ]
    assert caplog.messages.count(f"{text} work: no printer") == 3
    assert all(record.exc_info for record in caplog.records)


def test_failure_with_what_comes_on_the_consumers_own_channel_is_logged_without_a_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Tells(AsyncConsumer):  # type: ignore[misc]
        async def work(self, message: Any) -> None:
            names.append(self.channel_name)

    names: list[str] = []

    async def main() -> None:
        server = ChannelServer(Tells.as_asgi(), 1, channels=["a"])
        async with serving(server):
            await send("a", *work(1))
            await until(lambda: server._idle["a"])
            await send(names[0], {"type": "unknown"})
            await until(lambda: caplog.messages)
            await send("a", *work(2))
            await until(lambda: len(names) == 2)

    run(main)
    assert caplog.messages == [
        "Exception in the application on channel a, message none: No handler for message type unknown"
    ]


def test_application_that_sends_is_told_that_nobody_is_connected() -> None:
    told: list[str] = []

    async def answers(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        with pytest.raises(RuntimeError) as caught:
            await send({"type": "work.done"})
        told.append(str(caught.value))

    async def main() -> None:
        async with serving(ChannelServer(answers, 1, channels=["a"])):
            await send("a", *work(1))
            await until(lambda: told)

    run(main)
    assert told[0].startswith("An application on channel 'a' cannot send 'work.done': nobody is")


# --- Channels' own parts ---------------------------------------------------------------


def test_router_and_consumers_work_as_under_runworker_and_get_what_is_sent_to_their_own_channel() -> (
    None
):
    log: list[Any] = []

    class Asks(AsyncConsumer):  # type: ignore[misc]
        async def ask(self, message: Any) -> None:
            log.append(self.scope)
            question = {"type": "answer", "to": self.channel_name}
            await self.channel_layer.send("answers", question)

        async def answered(self, message: Any) -> None:
            log.append(message["by"])

    class Answers(AsyncConsumer):  # type: ignore[misc]
        async def answer(self, message: Any) -> None:
            answer = {"type": "answered", "by": self.scope["channel"]}
            await self.channel_layer.send(message["to"], answer)

    async def main() -> None:
        router = ChannelNameRouter({"asks": Asks.as_asgi(), "answers": Answers.as_asgi()})
        async with serving(ChannelServer(router, 4, channels=["asks", "answers"])):
            await send("asks", {"type": "ask"})
            await until(lambda: len(log) == 2)

    run(main)
    assert log == [{"type": "channel", "channel": "asks"}, "answers"]


def test_sync_consumers_work_at_once_each_in_a_thread_that_is_given_back() -> None:
    barrier = threading.Barrier(3)
    threads: list[Any] = []

    class Works(SyncConsumer):  # type: ignore[misc]
        def work(self, message: Any) -> None:
            barrier.wait(LIMIT_SECONDS)
            threads.append(threading.current_thread().name)

    def lent() -> int:
        return sum(one.workers - one.idle for one in pool_statistics() if one.name == "request")

    async def main() -> None:
        server = ChannelServer(Works.as_asgi(), 3, channels=["a"])
        async with serving(server):
            for _ in range(2):
                await send("a", *work(1, 2))
                await until(lambda: [one.thread for one in server.in_work()].count(None) == 0)
                await until(lambda: len(server.in_work()) == 2)
                await until(lambda: all(one.thread for one in server.in_work()))
                barrier_holders = {one.thread for one in server.in_work()}
                await send("a", *work(3))
                await until(lambda: not server.in_work() and len(server._idle["a"]) == 3)
                assert barrier_holders < set(threads[-3:])
                # Instances that wait have no thread.
                await until(lambda: lent() == 0)
        assert len(set(threads[:3])) == len(set(threads[3:])) == 3

    run(main)


def test_thread_of_a_message_is_given_back_when_its_last_call_has_ended() -> None:
    may_end = threading.Event()
    calls: list[asyncio.Task[Any]] = []
    received: list[int] = []

    async def application(_scope: Any, receive: Any, _send: Any) -> None:
        while True:
            received.append((await receive())["number"])
            call = sync_to_async(may_end.wait)(LIMIT_SECONDS)
            calls.append(asyncio.create_task(call))
            await asyncio.sleep(0)

    async def main() -> None:
        server = ChannelServer(application, 1, channels=["a"])
        async with serving(server):
            await send("a", *work(1, 2))
            await until(lambda: server.in_work() and server.in_work()[0].thread is None)
            await asyncio.sleep(0.01)
            assert received == [1], "the message was done before its call"
            may_end.set()
            await until(lambda: received == [1, 2])
            await asyncio.gather(*calls)

    run(main)


def test_server_inside_a_context_of_the_caller_uses_the_thread_of_that() -> None:
    threads: set[str] = set()

    class Works(SyncConsumer):  # type: ignore[misc]
        def work(self, message: Any) -> None:
            threads.add(threading.current_thread().name)
            done.append(message["number"])

    done: list[int] = []

    async def main() -> None:
        async with ThreadSensitiveContext():
            server = ChannelServer(Works.as_asgi(), 3, channels=["a"])
            async with serving(server):
                await send("a", *work(1, 2, 3))
                await until(lambda: sorted(done) == [1, 2, 3])
                assert {one.thread for one in server.in_work()} <= {None}

    run(main)
    assert len(threads) == 1


# --- The end --------------------------------------------------------------------------


def test_stop_lets_messages_in_work_finish_and_takes_no_more() -> None:
    class Drains(ChannelServer):
        async def application_drain(self) -> None:
            draining.set()
            await super().application_drain()

    draining = asyncio.Event()

    async def main() -> None:
        desk = Desk()
        async with serving(Drains(desk, 2, channels=["a"])) as task:
            await send("a", *work(1, 2, 3))
            await until(lambda: desk.begun == [1, 2])
            task.cancel()
            await draining.wait()
            desk.let_end(1)
            await until(lambda: desk.ended == [1])
            assert not task.done()
            desk.let_end(2)
            await asyncio.wait([task])
            assert desk.ended == desk.begun == [1, 2]
        assert get_channel_layer().channels["a"].qsize() == 1

    run(main)


def test_stop_names_the_messages_that_were_not_done_in_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        desk = Desk()
        server = ChannelServer(desk, 20, channels=["a"], graceful_seconds=0)
        async with serving(server) as task:
            await send("a", *work(*range(9)))
            await until(lambda: len(desk.begun) == 9)
            task.cancel()
            await asyncio.wait([task])
            assert desk.ended == []

    run(main)
    assert len(caplog.messages) == 1
    assert re.fullmatch(
        r"Cancelled, not done within 0 s: (a work \(\d+\.\d s\), ){7}a work \(\d+\.\d s\) and 1 more",
        caplog.messages[0],
    )


def test_stop_names_few_messages_without_a_count(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        desk = Desk()
        server = ChannelServer(desk, 2, channels=["a"], graceful_seconds=0)
        async with serving(server):
            await send("a", *work(1))
            await until(lambda: desk.begun)

    run(main)
    assert re.fullmatch(r"Cancelled, not done within 0 s: a work \(\d+\.\d s\)", caplog.messages[0])


def test_server_can_run_again_on_another_loop() -> None:
    desk = Desk()
    server = ChannelServer(desk, 2, channels=["a"])

    async def main() -> None:
        number = len(desk.begun)
        desk._may_end.clear()
        desk.let_end(number)
        async with serving(server):
            await send("a", *work(number))
            await until(lambda: len(desk.ended) == number + 1)

    run(main)
    run(main)


def test_server_is_run_and_stopped_like_any_other() -> None:
    def note(**_kwargs: object) -> None:
        ran.append(None)

    ran: list[None] = []

    async def main() -> None:
        server = ChannelServer(Desk(), 2, channels=["a"])
        ServerRun(server)
        server_started.connect(note)
        try:
            async with serving(server):
                await until(lambda: ran)
        finally:
            server_started.disconnect(note)

    run(main)


def test_failure_of_the_server_itself_ends_it() -> None:
    class Breaks(ChannelServer):
        def get_or_create_application_instance(self, scope_id: Any, scope: Any) -> Any:
            raise LookupError("no instances today")

    async def main() -> None:
        await send("a", *work(1))
        with pytest.raises(LookupError, match="no instances today"):
            await Breaks(Desk(), 2, channels=["a", "b"]).arun()

    run(main)


# --- Outages ---------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again soon."""
    monkeypatch.setattr(_channel_intake, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(_channel_intake, "_LONGEST_PAUSE_SECONDS", 0.004)


@pytest.mark.usefixtures("quick")
@layers(Layer)
def test_outage_is_told_once_and_its_end_and_costs_no_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, LOGGER)

    async def main() -> None:
        desk = Desk()
        queues = get_channel_layer().queues
        async with serving(ChannelServer(desk, 4, channels=["a", "b"])):
            for number in range(8):
                queues["a"].put_nowait(ConnectionError(f"refused\n{number}"))
                queues["b"].put_nowait(ConnectionError(f"refused\n{number}"))
            await until(lambda: queues["a"].empty() and queues["b"].empty())
            assert len(caplog.messages) == 1
            queues["a"].put_nowait(work(1)[0])
            await desk.has_begun(1)
            assert len(caplog.messages) == 1
            queues["b"].put_nowait(work(2)[0])
            await desk.has_begun(2)
            assert len(caplog.messages) == 2
            desk.let_end(1, 2)
            await until(lambda: len(desk.ended) == 2)

    run(main)
    lost, back = caplog.messages
    assert lost == (
        "The channel layer 'default' failed, and is tried again until it answers: "
        "ConnectionError: refused 0"
    )
    assert re.fullmatch(r"The channel layer 'default' answers again, after \d+\.\d s", back)


@layers(Layer)
def test_stop_during_an_outage_does_not_wait_for_the_next_attempt(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_channel_intake, "_FIRST_PAUSE_SECONDS", 3600.0)

    async def main() -> None:
        async with serving(ChannelServer(Desk(), 2, channels=["a"])):
            get_channel_layer().queues["a"].put_nowait(ConnectionError("refused"))
            await until(lambda: caplog.messages)

    run(main)


@layers(PubSubLayer)
def test_layer_that_gives_messages_to_everybody_is_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with serving(ChannelServer(Desk(), 2, channels=["a"])):
            await until(lambda: caplog.messages)

    run(main)
    assert "gives each message to every process" in caplog.messages[0]


# --- Redis -----------------------------------------------------------------------------


def redis_server(application: Any, *channels: str, **options: Any) -> tuple[Any, RedisLayer]:
    server = ChannelServer(application, channels=list(channels), **options)
    # The project's own, and the server's.
    assert len(RedisLayer.made) == 2
    assert "_brpop_with_clean" not in vars(RedisLayer.made[0])
    return server, RedisLayer.made[1]


@layers(RedisLayer, hosts=["redis://a", "redis://b"], prefix="p:")
def test_redis_is_asked_one_host_after_the_other_with_one_command() -> None:
    async def main() -> None:
        desk = Desk()
        server, layer = redis_server(desk, "a")
        async with serving(server):
            await until(lambda: len(layer.asked) == 4)
            layer.arrives(work(1)[0])
            await until(lambda: desk.begun == [1])
            desk.let_end(1)
        assert layer.asked[:4] == [(0, "p:a"), (1, "p:a"), (0, "p:a"), (1, "p:a")]
        assert layer.closed

    run(main)


@layers(RedisLayer)
def test_redis_message_that_comes_after_the_stop_is_worked_on() -> None:
    async def main() -> None:
        desk = Desk()
        desk.let_end(1, 2)
        server, layer = redis_server(desk, "a", "b", max_applications=3)
        layer.seconds = LIMIT_SECONDS
        async with serving(server) as task:
            await until(lambda: len(layer.asked) == 2)
            task.cancel()
            await asyncio.sleep(0.01)
            assert not task.done()
            for number in (1, 2):
                layer.arrives(work(number)[0])
            await asyncio.wait([task])
            assert sorted(desk.ended) == [1, 2]
            assert len(layer.asked) == 2

    run(main)


@layers(RedisLayer)
def test_redis_that_does_not_answer_is_not_waited_for_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_channel_intake, "_STUCK_SECONDS", 0.01)

    async def main() -> None:
        server, layer = redis_server(Desk(), "a")
        layer.seconds = LIMIT_SECONDS
        async with serving(server):
            await layer.polled.wait()

    run(main)
    assert caplog.messages == [
        "A channel layer has not answered for 0.01 s; a message that it sends now is lost"
    ]


@layers(RedisLayer)
def test_redis_that_fails_at_the_stop_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_channel_intake, "_FIRST_PAUSE_SECONDS", 3600.0)

    async def main() -> None:
        server, layer = redis_server(Desk(), "a")
        layer.seconds = LIMIT_SECONDS
        async with serving(server) as task:
            await layer.polled.wait()
            task.cancel()
            await asyncio.sleep(0.01)
            layer.arrives(ConnectionError("refused"))
            await asyncio.wait([task])
        assert len(layer.asked) == 1

    run(main)
    assert len(caplog.messages) == 1


@pytest.mark.usefixtures("quick")
@layers(RedisLayer)
def test_redis_that_is_back_is_told_before_a_message_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, LOGGER)

    async def main() -> None:
        server, layer = redis_server(Desk(), "a")
        async with serving(server):
            layer.arrives(ConnectionError("refused"))
            await until(lambda: len(caplog.messages) == 2)

    run(main)
    assert "answers again" in caplog.messages[1]


def test_in_memory_layer_is_the_projects_own() -> None:
    ChannelServer(Desk(), channels=["a"])
    assert isinstance(get_channel_layer(), InMemoryChannelLayer)
