"""`serve_lifespan`: entered when the server starts, left whatever the server does; and the state of requests."""

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from django_asyncbridge.handlers import lifespan as module
from django_asyncbridge.handlers.lifespan import serve_lifespan, state_of

STARTUP: list[Any] = [{"type": "lifespan.startup"}]
BOTH: list[Any] = [*STARTUP, {"type": "lifespan.shutdown"}]
COMPLETE = ["lifespan.startup.complete", "lifespan.shutdown.complete"]


class Site:
    """What the lifespans below do next, and what happened to them."""

    def __init__(self) -> None:
        self.state: Any = None
        self.fails_to_start: BaseException | None = None
        self.fails_to_stop: BaseException | None = None
        self.swallows = False
        self.happened: list[Any] = []


site = Site()
place: contextvars.ContextVar[str] = contextvars.ContextVar("place")


@pytest.fixture(autouse=True)
def new_site() -> None:
    """Give each test a site of its own."""
    site.__init__()  # type: ignore[misc]  # begin anew


@contextlib.asynccontextmanager
async def lifespan() -> AsyncIterator[Any]:
    """Start, run and stop as `site` says."""
    if site.fails_to_start is not None:
        raise site.fails_to_start
    token = place.set("in the lifespan")
    site.happened.append(("start", asyncio.current_task()))
    try:
        yield site.state
    except BaseException as error:
        site.happened.append(error)
        if not site.swallows:
            raise
    finally:
        # Raises if it is another context.
        place.reset(token)
        site.happened.append(("stop", asyncio.current_task()))
        if site.fails_to_stop is not None:
            raise site.fails_to_stop


async def undecorated() -> None:
    raise AssertionError


def of_nothing() -> int:
    return 3


class Server:
    """A server of one lifespan: what it offers, and what was answered."""

    def __init__(self, messages: list[Any], **scope: Any) -> None:
        self.scope = {"type": "lifespan", **scope}
        self.messages = list(messages)
        self.answers: list[Any] = []
        self.on_send: Callable[[], object] = lambda: None
        self.waits = asyncio.Event()

    async def receive(self) -> Any:
        if self.messages:
            return self.messages.pop(0)
        self.waits.set()
        return await asyncio.Event().wait()

    async def send(self, message: Any) -> None:
        self.answers.append(message)
        self.on_send()

    async def serve(self) -> "Server":
        await serve_lifespan(self.scope, self.receive, self.send)
        return self

    @property
    def types(self) -> list[str]:
        return [answer["type"] for answer in self.answers]


def named(name: str | None = "lifespan") -> override_settings:
    """Set ``LIFESPAN`` to a name in this module."""
    return override_settings(ASYNCBRIDGE={"LIFESPAN": name and f"{__name__}.{name}"})


def served(messages: list[Any] = BOTH, name: str | None = "lifespan", **scope: Any) -> Server:
    """Serve one lifespan with what is set."""

    async def main() -> Server:
        return await Server(messages, **scope).serve()

    with named(name):
        return asyncio.run(main())


# --- Starting and stopping -------------------------------------------------------------


def test_lifespan_without_the_setting_is_confirmed_and_that_is_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = served(name=None, state={})
    assert server.answers == [{"type": kind} for kind in COMPLETE]
    assert server.scope["state"] == {}
    assert caplog.records == []


def test_lifespan_is_entered_and_left_in_the_task_and_context_of_the_call() -> None:
    server = Server(BOTH)
    tasks: list[Any] = []

    async def main() -> None:
        tasks.append(asyncio.current_task())
        await server.serve()

    with named():
        asyncio.run(main())
    assert server.answers == [{"type": kind} for kind in COMPLETE]
    assert site.happened == [("start", tasks[0]), ("stop", tasks[0])]


def test_lifespan_starts_before_and_stops_after_what_the_server_does() -> None:
    async def main() -> None:
        server = Server(BOTH)
        server.on_send = lambda: site.happened.append(server.types[-1])
        await server.serve()

    with named():
        asyncio.run(main())
    happened = [one if isinstance(one, str) else one[0] for one in site.happened]
    assert happened == ["start", COMPLETE[0], "stop", COMPLETE[1]]


def test_lifespan_that_fails_to_start_is_logged_and_the_server_gets_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site.fails_to_start = error = OSError("no database")
    server = served()
    message = f"The lifespan {__name__}.lifespan failed to start: OSError: no database"
    assert server.answers == [{"type": "lifespan.startup.failed", "message": message}]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("django_asyncbridge.handlers", logging.ERROR)
    assert record.getMessage() == message
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert "fails_to_start" in caplog.text


def test_lifespan_that_fails_to_stop_is_logged_and_the_server_gets_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site.fails_to_stop = error = OSError("pool is gone")
    server = served()
    message = f"The lifespan {__name__}.lifespan failed to stop: OSError: pool is gone"
    assert server.answers[1:] == [{"type": "lifespan.shutdown.failed", "message": message}]
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), asyncio.CancelledError()])
def test_lifespan_that_ends_the_process_while_it_starts_is_not_held_up(
    error: BaseException,
) -> None:
    site.fails_to_start = error
    with pytest.raises(type(error)):
        served()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_name", 'does not define a "no_such_name"'),
        ("undecorated", 'Write "@contextlib.asynccontextmanager" above it'),
        ("of_nothing", "returned 3, which is no async context manager"),
    ],
)
def test_lifespan_that_is_none_fails_to_start_and_says_what_to_write(
    name: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = served(name=name)
    assert server.types == ["lifespan.startup.failed"]
    assert said in server.answers[0]["message"]
    assert f'ASYNCBRIDGE["LIFESPAN"] names "{__name__}.{name}"' in caplog.text


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (3, "yielded 3, which is no mapping"),
        ([("pool", 1)], "yielded [('pool', 1)], which is no mapping"),
        ("pool", "yielded 'pool', which is no mapping"),
        ({"pool": 1, 2: 3}, "yielded a mapping with the key 2, which is no str"),
    ],
    ids=str,
)
def test_lifespan_that_yields_no_state_fails_to_start_after_it_was_left(
    state: object, said: str
) -> None:
    site.state = state
    server = served(state={})
    assert server.types == ["lifespan.startup.failed"]
    assert said in server.answers[0]["message"]
    assert 'Yield a dict, as "yield {"pool": pool}", or nothing.' in server.answers[0]["message"]
    assert [type(one) for one in site.happened] == [tuple, ImproperlyConfigured, tuple]
    assert server.scope["state"] == {}


def test_lifespan_that_yields_no_state_fails_to_start_also_if_it_swallows_that() -> None:
    site.state, site.swallows = 3, True
    assert served().types == ["lifespan.startup.failed"]


# --- A server that leaves --------------------------------------------------------------


async def cancelled(server: Server) -> None:
    """Cancel a server's call in the middle of serving, and wait for its end."""
    task = asyncio.create_task(server.serve())
    await server.waits.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize("swallows", [False, True])
def test_lifespan_that_is_cancelled_is_left_and_ends_cancelled(
    swallows: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> Server:
        server = Server(STARTUP)
        await cancelled(server)
        return server

    site.swallows = swallows
    with named():
        server = asyncio.run(main())
    assert server.types == ["lifespan.startup.complete"]
    assert [type(one) for one in site.happened] == [tuple, asyncio.CancelledError, tuple]
    assert caplog.records == []


def test_lifespan_that_is_cancelled_and_fails_to_stop_is_logged_and_ends_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site.fails_to_stop = OSError("pool is gone")
    with named():
        asyncio.run(cancelled_server())
    (record,) = caplog.records
    assert record.getMessage() == (
        f"The lifespan {__name__}.lifespan failed: OSError: pool is gone"
    )


async def cancelled_server() -> None:
    await cancelled(Server(STARTUP))


def test_lifespan_without_the_setting_ends_cancelled() -> None:
    with named(None):
        asyncio.run(cancelled_server())


def test_lifespan_is_left_when_the_server_breaks(caplog: pytest.LogCaptureFixture) -> None:
    gone = OSError("the server has gone")

    async def main() -> None:
        server = Server(STARTUP)

        def fail() -> None:
            raise gone

        server.on_send = fail
        with pytest.raises(OSError, match="has gone"):
            await server.serve()

    with named():
        asyncio.run(main())
    assert site.happened[1] is gone
    assert [one[0] for one in site.happened[::2]] == ["start", "stop"]
    assert caplog.records == []


@contextlib.asynccontextmanager
async def with_a_task() -> AsyncIterator[None]:
    """Have a task in the background, which fails while the server runs."""

    async def fail() -> None:
        raise LookupError("no news")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fail())
        yield


def test_lifespan_whose_task_fails_while_the_server_runs_is_logged_and_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(asyncio.CancelledError):
        served(STARTUP, "with_a_task")
    assert f"The lifespan {__name__}.with_a_task failed: ExceptionGroup" in caplog.text
    assert "LookupError: no news" in caplog.text


class PassingOn:
    """A context manager that raises what it is left with itself."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        if error is not None:
            raise error


def test_lifespan_may_be_a_class_and_what_it_passes_on_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        server = Server(STARTUP)
        server.on_send = [].pop
        with pytest.raises(IndexError):
            await server.serve()

    assert served(name="PassingOn").types == COMPLETE
    with named("PassingOn"):
        asyncio.run(main())
    assert caplog.records == []


# --- The state -------------------------------------------------------------------------


def test_lifespan_state_goes_where_the_server_takes_it_from() -> None:
    site.state = {"pool": [1]}
    offered: dict[str, Any] = {"server's own": 2}
    server = served(state=offered)
    assert server.scope["state"] is offered
    assert offered == {"server's own": 2, "pool": [1]}
    assert offered["pool"] is site.state["pool"]


def test_state_of_a_request_is_what_its_server_has_copied() -> None:
    copied: dict[str, Any] = {"pool": 1}
    assert state_of({"type": "http", "state": copied}) is copied


@pytest.mark.parametrize("scope", [{"type": "http"}, {"type": "http", "state": None}], ids=str)
def test_state_of_a_request_without_lifespan_is_empty_and_its_own(scope: dict[str, Any]) -> None:
    assert state_of(scope) == {}
    assert state_of(scope) is not state_of(scope)


def test_state_of_a_request_is_kept_for_a_server_that_keeps_none() -> None:
    site.state = {"pool": [1]}

    async def main() -> None:
        server = Server(STARTUP)
        task = asyncio.create_task(server.serve())
        await server.waits.wait()
        one, other = state_of({"type": "http"}), state_of({"type": "http"})
        one["mine"] = True
        assert other == {"pool": [1]}
        assert other["pool"] is site.state["pool"]
        assert "state" not in server.scope
        task.cancel()
        await asyncio.wait([task])
        assert state_of({"type": "http"}) == {}

    with named():
        asyncio.run(main())
    assert module._kept == {}


def test_state_of_a_request_on_another_loop_is_not_that_of_this_loop() -> None:
    site.state = {"pool": [1]}

    async def elsewhere() -> dict[str, Any]:
        return state_of({"type": "http"})

    async def main() -> dict[str, Any]:
        server = Server(STARTUP)
        task = asyncio.create_task(server.serve())
        await server.waits.wait()
        try:
            return await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
        finally:
            task.cancel()
            await asyncio.wait([task])

    with named():
        assert asyncio.run(main()) == {}
