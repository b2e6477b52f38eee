"""StatelessServer: which instances there are, how their ends are reported, and that nothing is left behind."""

import asyncio
import functools
import gc
import logging
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from django_asyncbridge.bridge import _ending
from django_asyncbridge.bridge.server import StatelessServer
from tests.support import run_child, run_in_thread

LOGGER = "django_asyncbridge.bridge.server"
# The limit of a test that hangs; none that passes waits for it.
LONG = 20.0

Details = dict[str, Any]
Script = Callable[["Server"], Awaitable[None]]


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in a loop of its own, which must stay free of other tasks and of unseen failures."""

    @functools.wraps(test)
    def run(*arguments: Any, **options: Any) -> None:
        async def limited() -> None:
            loop = asyncio.get_running_loop()
            unseen: list[Any] = []
            loop.set_exception_handler(lambda _, context: unseen.append(context))
            async with asyncio.timeout(LONG):
                await test(*arguments, **options)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            gc.collect()
            assert unseen == []

        asyncio.run(limited())

    return run


class Server(StatelessServer):
    """A server whose handle() is a function of the test, and which notes down what it is told."""

    application_checker_interval = 0.001

    def __init__(self, application: Any, script: Script | None = None, **options: Any) -> None:
        super().__init__(application, **options)
        self.script = script or forever
        self.sent: list[tuple[Any, Any]] = []
        self.failures: asyncio.Queue[BaseException] = asyncio.Queue()
        self.handling = asyncio.Event()

    async def handle(self) -> None:
        self.handling.set()
        await self.script(self)

    async def application_send(self, scope: Any, message: Any) -> None:
        self.sent.append((scope, message))

    async def application_exception(
        self, exception: BaseException, application_details: Details
    ) -> None:
        self.failures.put_nowait(exception)

    @property
    def ids(self) -> list[Any]:
        return list(self.application_instances)

    def start(self, scope_id: Any = "one") -> "asyncio.Queue[Any]":
        return self.get_or_create_application_instance(scope_id, f"scope of {scope_id}")


async def forever(server: StatelessServer) -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator["asyncio.Task[None]"]:
    """Run a server beside the block, and end it after."""
    task = asyncio.create_task(server.arun())
    await server.handling.wait()
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def turns(count: int = 3) -> None:
    """Let what is ready run. Not a wait for anything in particular."""
    for _ in range(count):
        await asyncio.sleep(0)


async def reader(scope: Any, receive: Any, send: Any) -> None:
    """An application that waits for messages for ever, and answers each."""
    while True:
        await send(f"answer to {await receive()}")


async def ends_at_once(scope: Any, receive: Any, send: Any) -> None:
    pass


class Fails:
    """An application that fails with what it is made of, with its first message."""

    def __init__(self, failure: BaseException) -> None:
        self.failure = failure

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise self.failure


class FailsWhenCancelled:
    def __init__(self) -> None:
        self.failure = LookupError("at the end")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await receive()
        except asyncio.CancelledError:
            raise self.failure from None


class SlowEnd:
    """An application that, cancelled, says goodbye and needs some turns for it."""

    def __init__(self) -> None:
        self.ended = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await receive()
        finally:
            await self.say_goodbye(send)

    async def say_goodbye(self, send: Any) -> None:
        await turns()
        await send("goodbye")
        self.ended += 1


async def ended(server: Server, scope_id: Any = "one") -> None:
    """Wait until an instance has ended, which the checker need not have found yet."""
    await asyncio.wait([server.application_instances[scope_id]["future"]])


# --- What a subclass relies on -------------------------------------------------


@in_loop
async def test_instance_takes_from_its_queue_and_sends_through_the_server() -> None:
    server = Server(reader)
    async with serving(server):
        server.start("a").put_nowait(1)
        server.start("b").put_nowait(2)
        server.start("a").put_nowait(3)
        await turns()
    assert sorted(server.sent) == [
        ("scope of a", "answer to 1"),
        ("scope of a", "answer to 3"),
        ("scope of b", "answer to 2"),
    ]


@in_loop
async def test_instance_details_are_those_subclasses_read() -> None:
    server = Server(reader)
    async with serving(server):
        queue = server.start()
        before = time.time()
        details = server.application_instances["one"]
        assert set(details) == {"input_queue", "future", "scope", "last_used"}
        assert details["input_queue"] is queue
        assert isinstance(queue, asyncio.Queue)
        assert isinstance(details["future"], asyncio.Future)
        assert details["scope"] == "scope of one"
        assert abs(before - details["last_used"]) < LONG


@in_loop
async def test_instance_asked_for_again_is_the_same_with_its_first_scope() -> None:
    server = Server(reader)
    async with serving(server):
        queue = server.start()
        assert server.get_or_create_application_instance("one", "another scope") is queue
        assert server.application_instances["one"]["scope"] == "scope of one"


@in_loop
async def test_instance_of_an_asgi_2_application_runs() -> None:
    def application(scope: Any) -> Any:
        return functools.partial(reader, scope)

    server = Server(application)
    async with serving(server):
        server.start().put_nowait(1)
        await turns()
    assert server.sent == [("scope of one", "answer to 1")]


@in_loop
async def test_instance_of_a_plain_callable_that_raises_is_a_failure_of_the_application() -> None:
    def application(scope: Any, receive: Any, send: Any) -> Any:
        raise LookupError("its own")

    server = Server(application)
    async with serving(server):
        server.start()
        assert str(await server.failures.get()) == "its own"


def test_base_class_names_what_must_be_overridden() -> None:
    server = StatelessServer(reader)
    with pytest.raises(NotImplementedError, match=r"handle\(\)"):
        asyncio.run(server.arun())
    with pytest.raises(NotImplementedError, match=r"application_send\(\)"):
        asyncio.run(server.application_send({}, {}))


def test_base_class_keeps_its_parameters_and_asgirefs_defaults() -> None:
    server = StatelessServer(reader)
    assert server.application is reader
    assert server.max_applications == 1000
    assert server.application_checker_interval == 0.1
    assert server.application_instances == {}


def test_instance_asked_for_without_a_loop_is_refused_and_leaves_no_coroutine() -> None:
    server = StatelessServer(reader)
    with pytest.raises(RuntimeError, match="no running event loop"):
        server.get_or_create_application_instance("one", {})
    assert server.application_instances == {}
    gc.collect()  # a coroutine never awaited would warn


# --- Limits ----------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 5])
@in_loop
async def test_limit_keeps_as_many_as_it_says_and_no_more(limit: int) -> None:
    server = Server(reader, max_applications=limit)
    async with serving(server):
        kept = []
        for number in range(2 * limit):
            server.start(number)
            kept.append(len(server.ids))
        assert max(kept) == limit
        assert server.ids == list(range(limit, 2 * limit))


@in_loop
async def test_limit_of_zero_still_lets_one_run() -> None:
    server = Server(reader, max_applications=0)
    async with serving(server):
        server.start("a")
        server.start("b")
        assert server.ids == ["b"]


@in_loop
async def test_limit_reached_by_a_known_instance_deletes_nothing() -> None:
    server = Server(reader, max_applications=2)
    async with serving(server):
        for scope_id in "abab":
            server.start(scope_id)
        assert server.ids == ["a", "b"]


@pytest.mark.parametrize("clock", ["stands still", "goes back", "goes on"])
@in_loop
async def test_limit_reached_deletes_the_least_recently_used(
    clock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = {"stands still": 0, "goes back": -60, "goes on": 60}[clock]
    times = iter(range(1_000_000, 1_000_000 + 100 * step, step) if step else [1_000_000] * 100)
    monkeypatch.setattr(time, "time", lambda: next(times))
    server = Server(reader, max_applications=3)
    async with serving(server):
        for scope_id in "abc":
            server.start(scope_id)
        for scope_id in "ab":
            server.start(scope_id)
        server.start("d")
        assert server.ids == ["a", "b", "d"]


@in_loop
async def test_limit_reached_honours_a_last_used_that_a_subclass_wrote() -> None:
    server = Server(reader, max_applications=2)
    async with serving(server):
        server.start("a")
        server.start("b")
        server.application_instances["a"]["last_used"] = time.time() + 60
        server.start("c")
        assert server.ids == ["a", "c"]


@in_loop
async def test_limit_reached_takes_ended_instances_before_running_ones() -> None:
    server = Server(Fails(LookupError("its own")), max_applications=2)
    server.application_checker_interval = LONG
    async with serving(server):
        server.start("runs")
        server.start("fails").put_nowait("now")
        await ended(server, "fails")
        server.start("new")
        assert server.ids == ["runs", "new"]
        assert str(await server.failures.get()) == "its own"


@in_loop
async def test_evicted_instance_is_cancelled_and_may_say_goodbye() -> None:
    application = SlowEnd()
    server = Server(application, max_applications=1)
    async with serving(server):
        server.start("a")
        await turns()
        server.start("b")
        await turns(10)
        assert server.sent == [("scope of a", "goodbye")]
        assert server.ids == ["b"]


# --- Deleting ----------------------------------------------------------------------


@in_loop
async def test_delete_of_an_instance_cancels_it() -> None:
    server = Server(reader)
    async with serving(server):
        server.start()
        future = server.application_instances["one"]["future"]
        await turns()
        server.delete_application_instance("one")
        assert server.ids == []
        await asyncio.wait([future])
        assert future.cancelled()


@in_loop
async def test_delete_of_an_unknown_instance_raises_key_error() -> None:
    with pytest.raises(KeyError, match="nobody"):
        Server(reader).delete_application_instance("nobody")


@in_loop
async def test_delete_oldest_without_instances_raises_value_error() -> None:
    with pytest.raises(ValueError, match="no application instance"):
        Server(reader).delete_oldest_application_instance()


@in_loop
async def test_deleted_instance_that_fails_at_its_end_is_reported_once() -> None:
    application = FailsWhenCancelled()
    server = Server(application)
    async with serving(server):
        server.start()
        await turns()
        server.delete_application_instance("one")
        assert await server.failures.get() is application.failure
    assert server.failures.empty()


@in_loop
async def test_deleted_instance_that_had_failed_before_the_checker_came_is_reported_once() -> None:
    server = Server(Fails(LookupError("its own")))
    server.application_checker_interval = LONG
    async with serving(server):
        server.start().put_nowait("now")
        await ended(server)
        server.delete_application_instance("one")
        assert str(await server.failures.get()) == "its own"
    assert server.failures.empty()


@in_loop
async def test_deleted_instance_and_its_successor_do_not_disturb_each_other() -> None:
    application = SlowEnd()
    server = Server(application)
    async with serving(server):
        first = server.start()
        await turns()
        server.delete_application_instance("one")
        second = server.start()
        assert second is not first
        await turns(10)
        assert application.ended == 1
        assert server.start() is second


# --- How instances end -----------------------------------------------------------


class Unusual(BaseException):
    pass


@pytest.mark.parametrize(
    "failure", [LookupError("its own"), Unusual("its own"), GeneratorExit("its own")], ids=repr
)
@in_loop
async def test_failed_instance_is_reported_once_and_forgotten(failure: BaseException) -> None:
    server = Server(Fails(failure))
    async with serving(server) as task:
        server.start().put_nowait("now")
        assert await server.failures.get() is failure
        while server.ids:
            await asyncio.sleep(0)
        assert not task.done()
    assert server.failures.empty()


@in_loop
async def test_instance_that_ends_cancelled_does_not_end_the_server() -> None:
    server = Server(Fails(asyncio.CancelledError()))
    async with serving(server) as task:
        server.start().put_nowait("now")
        while server.ids:
            await asyncio.sleep(0)
        server.application = Fails(LookupError("the next"))
        server.start().put_nowait("now")
        assert str(await server.failures.get()) == "the next"
        assert not task.done()


@in_loop
async def test_instance_that_ends_well_is_forgotten_and_not_reported() -> None:
    server = Server(ends_at_once)
    async with serving(server):
        server.start()
        while server.ids:
            await asyncio.sleep(0)
    assert server.failures.empty()


@pytest.mark.parametrize("failure", [None, LookupError("its own")])
@in_loop
async def test_ended_instance_asked_for_before_the_checker_came_is_made_anew(
    failure: BaseException | None,
) -> None:
    server = Server(Fails(failure) if failure else ends_at_once)
    server.application_checker_interval = LONG
    async with serving(server):
        first = server.start()
        first.put_nowait("now")
        await ended(server)
        server.application = reader
        second = server.start()
        assert second is not first
        second.put_nowait(1)
        await turns()
    assert server.sent == [("scope of one", "answer to 1")]
    assert server.failures.qsize() == (1 if failure else 0)


@in_loop
async def test_failed_instance_asked_for_while_it_is_reported_is_made_anew_and_stays() -> None:
    reporting, go_on = asyncio.Event(), asyncio.Event()

    class SlowReport(Server):
        async def application_exception(
            self, exception: BaseException, application_details: Details
        ) -> None:
            reporting.set()
            await go_on.wait()
            await super().application_exception(exception, application_details)

    server = SlowReport(Fails(LookupError("its own")))
    async with serving(server):
        server.start().put_nowait("now")
        await reporting.wait()
        server.application = reader
        queue = server.start()
        go_on.set()
        await server.failures.get()
        await turns(10)
        assert server.start() is queue
    assert server.failures.empty()


@in_loop
async def test_failure_reported_while_the_override_deletes_the_instance_is_reported_once() -> None:
    class Deletes(Server):
        async def application_exception(
            self, exception: BaseException, application_details: Details
        ) -> None:
            await super().application_exception(exception, application_details)
            [scope_id] = self.application_instances
            self.delete_application_instance(scope_id)

    server = Deletes(Fails(LookupError("its own")))
    async with serving(server) as task:
        server.start().put_nowait("now")
        await server.failures.get()
        await turns(10)
        assert server.ids == []
        assert not task.done()
    assert server.failures.empty()


@pytest.mark.parametrize(
    "failure", [ValueError("the report's"), asyncio.CancelledError(), Unusual("the report's")]
)
@in_loop
async def test_report_that_fails_is_logged_and_the_server_goes_on(
    failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    class FailingReport(Server):
        async def application_exception(
            self, exception: BaseException, application_details: Details
        ) -> None:
            await super().application_exception(exception, application_details)
            raise failure

    server = FailingReport(Fails(LookupError("its own")))
    async with serving(server) as task:
        for _ in range(2):
            server.start().put_nowait("now")
            await server.failures.get()
            await turns()
        assert not task.done()
    assert [record.name for record in caplog.records] == [LOGGER] * 2
    assert "LookupError('its own')" in caplog.records[0].getMessage()
    assert caplog.records[0].exc_info is not None
    assert caplog.records[0].exc_info[1] is failure


@in_loop
async def test_report_by_default_is_an_error_in_the_log_with_the_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failure = LookupError("its own")
    await StatelessServer(reader).application_exception(failure, {})
    [record] = caplog.records
    assert (record.name, record.levelno) == (LOGGER, logging.ERROR)
    assert "its own" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is failure


@in_loop
async def test_send_that_fails_fails_in_the_application() -> None:
    class CannotSend(Server):
        async def application_send(self, scope: Any, message: Any) -> None:
            raise OSError(f"cannot send {message}")

    server = CannotSend(reader)
    async with serving(server):
        server.start().put_nowait(1)
        assert str(await server.failures.get()) == "cannot send answer to 1"


@in_loop
async def test_instance_that_a_subclass_made_itself_is_checked_and_ended_like_others() -> None:
    class Foreign(Server):
        def start(self, scope_id: Any = "one") -> "asyncio.Queue[Any]":
            queue: asyncio.Queue[Any] = asyncio.Queue()
            future = asyncio.ensure_future(self.application("scope", queue.get, None))
            self.application_instances[scope_id] = {
                "input_queue": queue,
                "future": future,
                "scope": "scope",
                "last_used": time.time(),
            }
            return queue

    server = Foreign(Fails(LookupError("its own")))
    async with serving(server):
        server.start().put_nowait("now")
        assert str(await server.failures.get()) == "its own"
        server.start("two")
    assert server.ids == []


# --- How the server ends ----------------------------------------------------------


async def start_three(server: Server) -> None:
    for scope_id in range(3):
        server.start(scope_id)
    await turns()


@in_loop
async def test_arun_when_handle_returns_leaves_nothing_running() -> None:
    application = SlowEnd()
    server = Server(application, start_three)
    await server.arun()
    assert application.ended == 3
    assert len(server.sent) == 3
    assert server.ids == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


@in_loop
async def test_arun_when_handle_raises_leaves_nothing_running_and_raises_that() -> None:
    application = SlowEnd()

    async def fail(server: Server) -> None:
        await start_three(server)
        raise LookupError("the handler's")

    with pytest.raises(LookupError, match="the handler's"):
        await Server(application, fail).arun()
    assert application.ended == 3
    assert asyncio.all_tasks() == {asyncio.current_task()}


@in_loop
async def test_arun_when_handle_ends_cancelled_leaves_nothing_running_and_ends_cancelled() -> None:
    application = SlowEnd()

    async def cancelled(server: Server) -> None:
        await start_three(server)
        raise asyncio.CancelledError

    task = asyncio.create_task(Server(application, cancelled).arun())
    await asyncio.wait([task])
    assert task.cancelled()
    assert application.ended == 3


@in_loop
async def test_arun_when_cancelled_leaves_nothing_running_and_ends_cancelled() -> None:
    application = SlowEnd()
    server = Server(application)
    async with serving(server):
        await start_three(server)
    assert application.ended == 3
    assert server.ids == []


@in_loop
async def test_arun_cancelled_while_handle_cleans_up_lets_instances_live_until_that_is_done() -> (
    None
):
    async def clean_up(server: Server) -> None:
        server.start().put_nowait("last")
        await turns()

    async def script(server: Server) -> None:
        server.start()
        try:
            await forever(server)
        finally:
            await clean_up(server)

    server = Server(reader, script)
    async with serving(server):
        pass
    assert server.sent == [("scope of one", "answer to last")]


@in_loop
async def test_arun_cancelled_while_handle_cleans_up_and_fails_raises_that() -> None:
    async def script(server: Server) -> None:
        try:
            await forever(server)
        finally:
            raise LookupError("the handler's")

    server = Server(reader, script)
    task = asyncio.create_task(server.arun())
    await server.handling.wait()
    task.cancel()
    with pytest.raises(LookupError, match="the handler's"):
        await task


@pytest.mark.parametrize("again_after", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("first_after", [0, 1, 2, 3, 5, 8])
@in_loop
async def test_arun_cancelled_at_any_moment_and_again_leaves_nothing_running(
    first_after: int, again_after: int
) -> None:
    application = SlowEnd()
    server = Server(application, start_three)  # it may also have returned by itself
    task = asyncio.create_task(server.arun())
    await turns(first_after)
    task.cancel()
    await turns(again_after)
    task.cancel()
    await asyncio.wait([task])
    assert server.ids == []
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert task.cancelled()


@in_loop
async def test_arun_cancelled_while_it_winds_up_finishes_that_and_ends_cancelled() -> None:
    application = SlowEnd()
    go_on = asyncio.Event()

    class SlowGoodbye(Server):
        async def application_send(self, scope: Any, message: Any) -> None:
            saying_goodbye.set()
            await go_on.wait()
            await super().application_send(scope, message)

    saying_goodbye = asyncio.Event()
    server = SlowGoodbye(application, start_three)
    task = asyncio.create_task(server.arun())
    await saying_goodbye.wait()
    for _ in range(3):
        task.cancel()
        await turns()
    assert not task.done()
    go_on.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert application.ended == 3


@in_loop
async def test_arun_reports_failures_of_the_end_before_it_is_over() -> None:
    server = Server(FailsWhenCancelled(), start_three)
    await server.arun()
    assert server.failures.qsize() == 3


@in_loop
async def test_arun_reports_failures_the_checker_had_no_time_for() -> None:
    server = Server(Fails(LookupError("its own")), fail_and_return)
    server.application_checker_interval = LONG
    await server.arun()
    assert server.failures.qsize() == 1


@in_loop
async def test_arun_lets_a_report_finish_that_has_begun() -> None:
    reporting = asyncio.Event()

    class SlowReport(Server):
        async def application_exception(
            self, exception: BaseException, application_details: Details
        ) -> None:
            reporting.set()
            await turns(10)
            await super().application_exception(exception, application_details)

    async def return_meanwhile(server: Server) -> None:
        server.start().put_nowait("now")
        await reporting.wait()

    server = SlowReport(Fails(LookupError("its own")), return_meanwhile)
    await server.arun()
    assert server.failures.qsize() == 1


@in_loop
async def test_arun_ends_instances_asked_for_at_its_end_before_they_run() -> None:
    class Insisting(Server):
        async def application_send(self, scope: Any, message: Any) -> None:
            await super().application_send(scope, message)
            self.start("late")
            await turns()

    async def script(server: Server) -> None:
        server.start("first")
        await turns()

    server = Insisting(SlowEnd(), script)
    await server.arun()
    assert server.sent == [("scope of first", "goodbye")]
    assert server.ids == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


@in_loop
async def test_arun_ends_although_failed_instances_are_always_restarted() -> None:
    class Restarting(Server):
        async def application_exception(
            self, exception: BaseException, application_details: Details
        ) -> None:
            self.start().put_nowait("fail again")

    await Restarting(Fails(LookupError("its own")), fail_and_return).arun()


async def fail_and_return(server: Server) -> None:
    server.start().put_nowait("now")
    await ended(server)


@in_loop
async def test_arun_can_be_called_again() -> None:
    server = Server(reader, start_three)
    await server.arun()
    await server.arun()
    assert server.ids == []


@pytest.mark.parametrize("override", ["fails", "does nothing"])
@in_loop
async def test_arun_ends_instances_whatever_an_override_of_delete_does(
    override: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Deletes(Server):
        def delete_application_instance(self, scope_id: Any) -> None:
            if override == "fails":
                raise LookupError("the override's")

    application = SlowEnd()
    server = Deletes(application, start_three)
    await server.arun()
    assert application.ended == 3
    assert server.ids == []
    assert [record.name for record in caplog.records] == [LOGGER] * (
        3 if override == "fails" else 0
    )


@in_loop
async def test_arun_with_an_application_that_ignores_its_end_says_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_ending, "_PATIENCE_SECONDS", 0.001)
    go_on = asyncio.Event()

    async def stubborn(scope: Any, receive: Any, send: Any) -> None:
        try:
            await receive()
        except asyncio.CancelledError:
            await go_on.wait()

    class Patient(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            go_on.set()

    handler = Patient()
    logging.getLogger(LOGGER).addHandler(handler)
    try:
        await Server(stubborn, start_three).arun()
    finally:
        logging.getLogger(LOGGER).removeHandler(handler)
    assert "waits for applications" in caplog.records[0].getMessage()
    assert "asyncbridge-application-0" in caplog.records[0].getMessage()


# --- The checker beside handle() -----------------------------------------------------


@in_loop
async def test_checker_that_fails_ends_the_server_with_its_failure() -> None:
    class FailingChecker(Server):
        async def application_checker(self) -> None:
            raise LookupError("the checker's")

    application = SlowEnd()
    server = FailingChecker(application)
    server.start()
    await turns()
    with pytest.raises(LookupError, match="the checker's"):
        await server.arun()
    assert application.ended == 1


@in_loop
async def test_checker_that_ends_cancelled_ends_the_server_cancelled() -> None:
    class CancelledChecker(Server):
        async def application_checker(self) -> None:
            raise asyncio.CancelledError

    task = asyncio.create_task(CancelledChecker(reader).arun())
    await asyncio.wait([task])
    assert task.cancelled()


@in_loop
async def test_checker_that_returns_does_not_end_the_server() -> None:
    class NoChecker(Server):
        async def application_checker(self) -> None:
            pass

    async def script(server: Server) -> None:
        await turns(10)
        server.start().put_nowait(1)
        await turns()

    server = NoChecker(reader, script)
    await server.arun()
    assert server.sent == [("scope of one", "answer to 1")]


@in_loop
async def test_checker_that_fails_when_handle_has_failed_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class FailingChecker(Server):
        async def application_checker(self) -> None:
            try:
                await forever(self)
            finally:
                raise LookupError("the checker's")

    async def fail(server: Server) -> None:
        await turns()
        raise LookupError("the handler's")

    with pytest.raises(LookupError, match="the handler's"):
        await FailingChecker(reader, fail).arun()
    [record] = caplog.records
    assert "the checker's" in record.getMessage()
    assert record.exc_info is not None


@in_loop
async def test_failure_of_handle_is_held_by_nothing_but_its_catcher() -> None:
    class Held:
        pass

    references = []

    async def fail(server: Server) -> None:
        held = Held()
        references.append(weakref.ref(held))
        raise LookupError

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(LookupError):
            await Server(reader, fail).arun()
        assert references[0]() is None
    finally:
        gc.enable()


# --- Draining ----------------------------------------------------------------------------


class Working:
    """An application that works on each message until it is let go."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.working = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            self.working.set()
            await self.go_on.wait()
            await send(f"done {message}")


@pytest.mark.parametrize("way", ["returns", "is cancelled"])
@in_loop
async def test_drain_lets_busy_applications_finish_and_does_not_wait_for_idle_ones(
    way: str,
) -> None:
    application = Working()

    async def script(server: Server) -> None:
        server.start("idle")
        for number in range(3):
            server.start("busy").put_nowait(number)
        await application.working.wait()
        asyncio.get_running_loop().call_later(0.01, application.go_on.set)
        if way == "is cancelled":
            server.handling.clear()
            await forever(server)

    server = Server(application, script)
    server.application_drain_seconds = 10 * LONG
    task = asyncio.create_task(server.arun())
    await application.working.wait()
    if way == "is cancelled":
        await turns()
        task.cancel()
    await asyncio.wait([task])
    assert [message for _, message in server.sent] == ["done 0", "done 1", "done 2"]


@in_loop
async def test_drain_ends_when_its_time_is_up() -> None:
    application = Working()

    async def script(server: Server) -> None:
        server.start().put_nowait(1)
        await application.working.wait()

    server = Server(application, script)
    server.application_drain_seconds = 0.01
    await server.arun()
    assert server.sent == []


@in_loop
async def test_drain_that_is_not_wanted_waits_for_nothing() -> None:
    application = Working()

    async def script(server: Server) -> None:
        server.start().put_nowait(1)
        await application.working.wait()

    server = Server(application, script)
    await server.arun()
    assert server.sent == []


@in_loop
async def test_drain_waits_for_an_application_that_ends_instead_of_receiving() -> None:
    application = Working()

    async def once(scope: Any, receive: Any, send: Any) -> None:
        application.working.set()
        await application.go_on.wait()
        await send("done")

    async def script(server: Server) -> None:
        server.start()
        await application.working.wait()
        asyncio.get_running_loop().call_soon(application.go_on.set)

    server = Server(once, script)
    server.application_drain_seconds = 10 * LONG
    server.application_checker_interval = 10 * LONG
    await server.arun()
    assert server.sent == [("scope of one", "done")]


@in_loop
async def test_drain_that_fails_is_raised_after_everything_is_ended() -> None:
    class FailingDrain(Server):
        async def application_drain(self) -> None:
            raise LookupError("the drain's")

    application = SlowEnd()
    with pytest.raises(LookupError, match="the drain's"):
        await FailingDrain(application, start_three).arun()
    assert application.ended == 3


# --- run() -----------------------------------------------------------------------------------


def test_run_in_the_main_thread_returns_when_handle_does() -> None:
    server = Server(reader, start_three)
    server.run()
    assert server.handling.is_set()
    assert server.ids == []


def test_run_in_another_thread_returns_when_handle_does() -> None:
    server = Server(reader, start_three)
    run_in_thread(server.run)
    assert server.handling.is_set()


def test_run_raises_what_handle_raised() -> None:
    async def fail(server: Server) -> None:
        raise LookupError("the handler's")

    with pytest.raises(LookupError, match="the handler's"):
        Server(reader, fail).run()


def test_run_when_handle_ends_cancelled_without_a_signal_raises_that() -> None:
    async def cancelled(server: Server) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        Server(reader, cancelled).run()


@pytest.mark.parametrize("where", ["application", "handle", "report"])
def test_run_with_system_exit_anywhere_winds_up_and_raises_that(where: str) -> None:
    class Exits(Server):
        async def application_exception(
            self, exception: BaseException, application_details: Details
        ) -> None:
            raise SystemExit(3)

    slow = SlowEnd()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope == "scope of one":
            raise SystemExit(3) if where == "application" else LookupError("its own")
        await slow(scope, receive, send)

    async def script(server: Server) -> None:
        server.start("slow")
        await turns()
        if where == "handle":
            raise SystemExit(3)
        server.start("one")
        await forever(server)

    server = Exits(application, script)
    with pytest.raises(SystemExit):
        server.run()
    assert slow.ended == 1


PROGRAM = """
    import asyncio, os, signal, sys
    from django_asyncbridge.bridge.server import StatelessServer

    def note(*words):
        print(*words, flush=True)

    def earlier(signum, frame):
        note("earlier handler")

    async def application(scope, receive, send):
        try:
            await receive()
        finally:
            await asyncio.sleep(0)
            note("application ended")

    class Server(StatelessServer):
        async def handle(self):
            self.get_or_create_application_instance("one", {})
            await asyncio.sleep(0)
            await self.signalled()

        async def signalled(self):
            os.kill(os.getpid(), getattr(signal, sys.argv[1]))
            await asyncio.Event().wait()
"""

RUN = """
    import logging
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(message)s")
    Server(application).run()
    note("returned")
"""


@pytest.mark.parametrize(("name", "word"), [("SIGINT", "Ctrl-C"), ("SIGTERM", "SIGTERM")])
def test_run_with_a_signal_winds_up_says_so_and_returns(name: str, word: str) -> None:
    lines = run_child(PROGRAM + RUN, name).stdout.splitlines()
    assert lines == ["application ended", f"{LOGGER} Stopped by {word}.", "returned"]


def test_run_with_sigterm_twice_winds_up_undisturbed() -> None:
    twice = """
    async def twice(self):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()
    Server.signalled = twice
    """
    lines = run_child(PROGRAM + twice + RUN, "SIGTERM").stdout.splitlines()
    assert lines == ["application ended", f"{LOGGER} Stopped by SIGTERM.", "returned"]


def test_run_with_sigterm_gives_the_handler_back_and_lets_it_hear() -> None:
    before = "    signal.signal(signal.SIGTERM, earlier)\n"
    after = "    note(signal.getsignal(signal.SIGTERM) is earlier)\n"
    lines = run_child(PROGRAM + before + RUN + after, "SIGTERM").stdout.splitlines()
    assert lines == [
        "application ended",
        f"{LOGGER} Stopped by SIGTERM.",
        "earlier handler",
        "returned",
        "True",
    ]


def test_run_without_sigterm_gives_the_default_back() -> None:
    quiet = """
    async def quiet(self):
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    Server.signalled = quiet
    """
    after = "    note(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)\n"
    lines = run_child(PROGRAM + quiet + RUN + after).stdout.splitlines()
    assert lines == ["application ended", "returned", "True"]


def test_run_where_sigterm_is_ignored_leaves_it_so() -> None:
    ignored = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    async def ignored(self):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)
        note("still here")
    Server.signalled = ignored
    """
    lines = run_child(PROGRAM + ignored + RUN).stdout.splitlines()
    assert lines == ["still here", "application ended", "returned"]


def test_run_with_a_handle_that_hears_sigterm_itself_lets_it_end_gracefully() -> None:
    # As uvicorn: it takes the signal over while it serves, ends in its own time, puts the handler
    # back that was there before, and raises the signal again.
    graceful = """
    async def graceful(self):
        stop = asyncio.Event()
        before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        await asyncio.sleep(0.01)
        note("handle ended gracefully")
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)
    Server.signalled = graceful
    """
    lines = run_child(PROGRAM + graceful + RUN).stdout.splitlines()
    assert lines == [
        "handle ended gracefully",
        "application ended",
        f"{LOGGER} Stopped by SIGTERM.",
        "returned",
    ]


def test_run_with_a_handle_that_keeps_sigterm_leaves_it_that() -> None:
    keeps = """
    async def keeps(self):
        signal.signal(signal.SIGTERM, earlier)
    Server.signalled = keeps
    """
    after = "    note(signal.getsignal(signal.SIGTERM) is earlier)\n"
    lines = run_child(PROGRAM + keeps + RUN + after).stdout.splitlines()
    assert lines == ["application ended", "returned", "True"]
