"""Connections of request threads on a real server: reused, bounded, healthy, out of transactions, and gone at the end."""

import pytest

from tests.postgres.conftest import Run, needs_postgres

pytestmark = needs_postgres
IDLE = {"REQUEST_THREADS": {"IDLE_SECONDS": 0.2}}


def test_1000_requests_at_16_at_once_open_no_more_connections_than_workers(run: Run) -> None:
    """C68, with CONN_MAX_AGE: stock Django opens more than one connection per request."""
    run(
        """
application = get_asgi_application()
addresses = ["/sync/", "/async/"] * 500
statuses = asyncio.run(get_many(application, addresses, 16))
assert statuses == [200] * 1000
workers = request_workers()
assert len(created) == len({thread.name for thread in created}), "a thread opened two"
assert len(created) <= workers.started, (len(created), workers)
# Mostly 16; on a busy machine some idle out meanwhile, or are handed over slowly.
assert workers.started < 100, workers
states = connections_of_test()
assert len(states) <= len(created)
assert set(states) <= {"idle"}, states
until(lambda: request_workers().workers == 0)
until(lambda: connections_of_test() == [])
""",
        CONN_MAX_AGE=60,
        ASYNCBRIDGE=IDLE,
    )


def test_maximum_of_request_threads_bounds_connections(run: Run) -> None:
    run(
        """
application = get_asgi_application()
assert asyncio.run(get_many(application, ["/sync/"] * 200, 16)) == [200] * 200
assert 1 <= len(created) <= 3
""",
        CONN_MAX_AGE=None,
        ASYNCBRIDGE={"REQUEST_THREADS": {"MAX": 3}},
    )


def test_no_age_closes_the_connection_with_each_request(run: Run) -> None:
    """CONN_MAX_AGE=0, Django's default, means what it means under WSGI."""
    run(
        """
application = get_asgi_application()
for count in range(1, 6):
    assert asyncio.run(get_many(application, ["/sync/"], 1)) == [200]
    assert len(created) == count
    until(lambda: connections_of_test() == [])
"""
    )


@pytest.mark.parametrize("health_checks", [False, True])
def test_server_that_hung_up_between_requests_costs_none(run: Run, health_checks: bool) -> None:
    run(
        """
application = get_asgi_application()
async def main():
    assert await get_many(application, ["/sync/"] * 20, 4) == [200] * 20
    hang_up()
    assert await get_many(application, ["/sync/"] * 20, 4) == [200] * 20
asyncio.run(main())
""",
        CONN_MAX_AGE=None,
        CONN_HEALTH_CHECKS=health_checks,
    )


def test_server_that_restarts_costs_only_the_requests_in_flight(run: Run) -> None:
    run(
        """
application = get_asgi_application()
async def main():
    in_flight = asyncio.create_task(get_many(application, ["/sleep/?seconds=20"] * 4, 4))
    others = asyncio.create_task(get_many(application, ["/async/"] * 20, 4))
    assert await others == [200] * 20
    for _ in range(4):
        await asyncio.to_thread(in_query.acquire)
    until(lambda: connections_of_test().count("active") == 4)
    hang_up()
    assert await in_flight == [500] * 4
    assert await get_many(application, ["/sync/", "/async/"] * 100, 16) == [200] * 200
asyncio.run(main())
assert set(connections_of_test()) == {"idle"}
""",
        CONN_MAX_AGE=None,
        LOGGING_CONFIG=None,
    )


@pytest.mark.parametrize("address", ["/leave-open/", "/leave-autocommit/"])
def test_transaction_left_open_is_rolled_back_and_told_before_the_next_request(
    run: Run, address: str
) -> None:
    printed = run(
        f"""
import logging
logging.basicConfig(format="%(name)s %(levelname)s %(message)s", stream=__import__("sys").stdout)
application = get_asgi_application()
assert asyncio.run(get_many(application, ["{address}"], 1)) == [200]
until(lambda: set(connections_of_test()) <= {{"idle"}})
assert asyncio.run(get(application, "/sync/")).body == b"0"
assert not User.objects.exists()
assert len({{thread.name for thread in created[:2]}}) == 1, "another thread was used"
""",
        CONN_MAX_AGE=None,
        ASYNCBRIDGE={"REQUEST_THREADS": {"MAX": 1}},
    )
    # Of the second, Django's own handler says nothing.
    told = (
        "django_asyncbridge.request_threads WARNING asyncbridge-request-1 was left in a transaction"
    )
    assert told in printed


def test_transaction_left_open_on_a_connection_of_a_pool_poisons_no_thread(run: Run) -> None:
    """Django gives that connection back in the middle of the block, and keeps the block."""
    run(
        """
application = get_asgi_application()
addresses = ["/sync/", "/leave-open/", "/sync/", "/sync/"]
assert asyncio.run(get_many(application, addresses, 1)) == [200] * 4
assert not User.objects.exists()
from django.db import connections
connections["default"].close_pool()
""",
        OPTIONS={"pool": {"min_size": 1, "max_size": 4}},
        ASYNCBRIDGE={"REQUEST_THREADS": {"MAX": 1}},
    )


def test_client_that_leaves_in_a_query_leaves_a_usable_thread_behind(run: Run) -> None:
    run(
        """
application = get_asgi_application()
async def main():
    gone = asyncio.Event()
    left = asyncio.create_task(get(application, "/sleep/?seconds=1", gone))
    await asyncio.to_thread(in_query.acquire)
    gone.set()
    assert (await left).status == 0
    assert await get_many(application, ["/sync/"] * 3, 1) == [200] * 3
asyncio.run(main())
assert len(created) == 1
assert set(connections_of_test()) == {"idle"}
""",
        CONN_MAX_AGE=None,
        ASYNCBRIDGE={"REQUEST_THREADS": {"MAX": 1}},
    )


def test_pool_of_the_driver_serves_more_requests_than_it_has_connections(run: Run) -> None:
    """C77: none is lost, none starves, also when clients leave."""
    run(
        """
application = get_asgi_application()
async def leave():
    gone = asyncio.Event()
    left = asyncio.create_task(get(application, "/sleep/?seconds=0.3", gone))
    await asyncio.to_thread(in_query.acquire)
    gone.set()
    await left
async def main():
    await asyncio.gather(leave(), leave())
    assert await get_many(application, ["/sync/", "/async/"] * 50, 16) == [200] * 100
    assert await get_many(application, ["/sync/"] * 20, 4) == [200] * 20
asyncio.run(main())
assert len(connections_of_test()) <= 2
from django.db import connections
connections["default"].close_pool()
""",
        OPTIONS={"pool": {"min_size": 1, "max_size": 2, "timeout": 10}},
        ASYNCBRIDGE={"REQUEST_THREADS": {"MAX": 2}},
    )


def test_connections_of_other_threads_are_closed_after_each_call(run: Run) -> None:
    """C69: Django closes those of the request's thread only."""
    run(
        """
application = get_asgi_application()
assert asyncio.run(get_many(application, ["/elsewhere/"] * 5, 2)) == [200] * 5
assert len(created) == 20
until(lambda: connections_of_test() == [])
"""
    )


def test_request_that_gets_no_thread_in_time_is_answered_503(run: Run) -> None:
    printed = run(
        """
import logging, sys
logging.basicConfig(format="%(name)s %(levelname)s %(message)s", stream=sys.stdout)
application = get_asgi_application()
async def main():
    busy = asyncio.create_task(get(application, "/sleep/?seconds=1"))
    await asyncio.to_thread(in_query.acquire)
    answer = await get(application, "/sync/")
    assert (answer.status, answer.body) == (503, b"Service Unavailable")
    assert answer.headers[b"Retry-After"] == b"1"
    assert (await busy).status == 200
    assert (await get(application, "/sync/")).status == 200
asyncio.run(main())
""",
        ASYNCBRIDGE={"REQUEST_THREADS": {"MAX": 1, "WAIT_SECONDS": 0.1}},
    )
    assert (
        "django_asyncbridge.handlers WARNING Service Unavailable: GET /sync/: no worker" in printed
    )
    assert "asyncbridge-request-1 for" in printed
    assert "to GET /sleep/, in " in printed
