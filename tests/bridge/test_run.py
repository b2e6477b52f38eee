"""`Run`: whoever takes the claim first decides whether the coroutine starts; each order is forced."""

import asyncio
import contextlib
import contextvars
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextvars import Context
from types import SimpleNamespace
from typing import Any, ClassVar, NoReturn, cast

import pytest

from django_asyncbridge.bridge import _run
from django_asyncbridge.bridge._run import LoopStoppedError, Outcome, Run, _WithdrawnError
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor, _ForkedError
from tests.bridge import hand_driven_loop, turn
from tests.support import run_in_thread

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")
Watch = Callable[[], float]
Step = Callable[[Watch], object]


class Interrupted(BaseException):
    """What a signal handler raises in the waiting thread."""


class Script:
    """Stands for the executor of a waiting thread, which lives through these steps while it waits."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)

    def _serve(self, done: Callable[[], bool], watch: Watch, *seconds: float) -> None:
        while not done():
            self.steps.pop(0)(watch)

    def _close(self) -> None:
        """Be told of the outcome; `_serve` looks by itself."""


def raising(error: BaseException) -> Step:
    def step(watch: Watch) -> NoReturn:
        raise error

    return step


def look(watch: Watch) -> None:
    """Look at the loop, as a thread does to which nothing comes."""
    watch()


class Trip:
    """A coroutine on its way, what it has logged, and the run that takes it there."""

    under_way: ClassVar[list["Trip"]] = []

    def __init__(
        self, *steps: Step, function: "Callable[[], Awaitable[Any]] | None" = None
    ) -> None:
        self.log: list[str] = []
        self.release = asyncio.Event()
        self.result = Outcome()
        awaitable = (function or self.body)()
        self.run = Run(
            "tests.body",
            self.carry(awaitable),
            awaitable,
            contextvars.copy_context(),
            cast("CurrentThreadExecutor", Script(*steps)),
            self.result,
        )
        self.under_way.append(self)

    async def body(self) -> str:
        """Wait until it is released or cancelled."""
        self.log.append("began")
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise
        return "result"

    async def carry(self, awaitable: Awaitable[Any]) -> None:
        """Complete the result, as `AsyncToSync.main_wrap` does."""
        try:
            self.result.set_result(await awaitable)
        except BaseException as error:
            self.result.set_exception(error)

    def forget(self) -> None:
        """Let a coroutine that will never end, or never start, go without a warning."""
        self.run.coroutine.close()
        if isinstance(self.run.awaitable, Coroutine):
            self.run.awaitable.close()
        if self.run.task is not None:
            self.run.task._log_destroy_pending = False  # type: ignore[attr-defined]  # what it is for


@pytest.fixture(autouse=True)
def forget_trips() -> Iterator[None]:
    yield
    while Trip.under_way:
        Trip.under_way.pop().forget()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with hand_driven_loop() as loop:
        yield loop


class StubLoop:
    """Says what it is told to about its state, and keeps what is sent to it."""

    running = True
    closed = False

    def __init__(self) -> None:
        self.sent: list[Callable[[], object]] = []

    def is_running(self) -> bool:
        return self.running

    def is_closed(self) -> bool:
        return self.closed

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        self.sent.append(callback)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Set the clock of the module by its `seconds`."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(_run, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


# --- Starting --------------------------------------------------------------------


def test_start_runs_the_coroutine_in_the_context_given(loop: asyncio.AbstractEventLoop) -> None:
    async def body() -> str:
        return variable.get()

    token = variable.set("the caller's")
    trip = Trip(function=body)
    variable.reset(token)
    trip.run.start(loop)
    turn(loop, 2)
    assert trip.result.result() == "the caller's"


def test_start_whose_task_is_cancelled_before_its_first_step_completes_the_result(
    loop: asyncio.AbstractEventLoop,
) -> None:
    trip = Trip()
    trip.run.start(loop)
    assert trip.run.task is not None
    trip.run.task.cancel()
    turn(loop, 2)
    with pytest.raises(asyncio.CancelledError):
        trip.result.result()
    assert trip.log == []


def test_start_of_an_awaitable_that_is_no_coroutine_can_be_cancelled_before_its_first_step(
    loop: asyncio.AbstractEventLoop,
) -> None:
    future: asyncio.Future[None] = loop.create_future()
    trip = Trip(function=lambda: future)
    trip.run.start(loop)
    assert trip.run.task is not None
    trip.run.task.cancel()
    turn(loop, 2)
    with pytest.raises(asyncio.CancelledError):
        trip.result.result()
    assert not future.done()


def test_start_on_a_loop_that_makes_no_task_raises_in_the_waiting_thread(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """P4: a task factory may raise; the waiting thread would wait for ever."""

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise ValueError("no more tasks")

    loop.set_task_factory(refuse)
    trip = Trip()
    loop.call_soon(trip.run.start, loop)
    turn(loop)
    with pytest.raises(ValueError, match="no more tasks"):
        trip.result.result()


# --- On the loop of another thread -----------------------------------------------


def test_on_loop_that_runs_waits_for_the_result(loop: asyncio.AbstractEventLoop) -> None:
    async def body() -> int:
        return threading.get_ident()

    def wait_for_it() -> bool:
        trip.run.executor = CurrentThreadExecutor(None)
        return trip.run.on_loop(loop)

    trip = Trip(function=body)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    assert run_in_thread(wait_for_it)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    assert trip.result.result() == thread.ident


def test_on_loop_that_is_closed_gives_the_coroutine_back_and_it_can_run_elsewhere(
    loop: asyncio.AbstractEventLoop,
) -> None:
    trip = Trip()
    trip.release.set()
    with hand_driven_loop() as closed:
        pass
    assert not trip.run.on_loop(closed)
    trip.run.start(loop)
    turn(loop, 2)
    assert trip.log == []
    trip.run.again().start(loop)
    turn(loop, 2)
    assert trip.log == ["began"]
    assert trip.result.result() == "result"


def test_on_loop_that_stopped_before_the_coroutine_started_gives_it_back_for_good(
    loop: asyncio.AbstractEventLoop,
) -> None:
    trip = Trip(look, look)
    assert not trip.run.on_loop(loop)
    # The loop runs again, and finds the call that it was sent.
    turn(loop, 2)
    assert trip.log == []


def test_on_loop_that_is_closed_before_the_coroutine_started_gives_it_back_at_the_first_look(
    loop: asyncio.AbstractEventLoop,
) -> None:
    trip = Trip(lambda _: loop.close(), look)
    assert not trip.run.on_loop(loop)


def test_on_loop_that_pauses_in_the_middle_goes_on(
    loop: asyncio.AbstractEventLoop, now: SimpleNamespace
) -> None:
    def pause(watch: Watch) -> None:
        now.seconds += 0.9
        look(watch)

    def run_again(watch: Watch) -> None:
        trip.release.set()
        turn(loop, 3)

    trip = Trip(lambda _: turn(loop, 2), look, pause, run_again)
    assert trip.run.on_loop(loop)
    assert trip.result.result() == "result"


def test_on_loop_that_stopped_in_the_middle_raises_and_cancels_the_coroutine_if_it_runs_again(
    loop: asyncio.AbstractEventLoop, now: SimpleNamespace
) -> None:
    def much_later(watch: Watch) -> None:
        now.seconds += 1.1
        look(watch)

    trip = Trip(lambda _: turn(loop, 2), look, look, much_later)
    with pytest.raises(LoopStoppedError, match=r"async_to_sync\(tests\.body\).* has stopped"):
        trip.run.on_loop(loop)
    assert trip.log == ["began"]
    turn(loop, 3)
    assert trip.log == ["began", "cancelled"]


def test_on_loop_that_is_closed_in_the_middle_raises_at_the_first_look(
    now: SimpleNamespace,
) -> None:
    with hand_driven_loop() as loop:
        trip = Trip(lambda _: turn(loop, 2), lambda _: loop.close(), look)
        with pytest.raises(LoopStoppedError, match="was closed before the coroutine ended"):
            trip.run.on_loop(loop)
    assert trip.log == ["began"]


# --- Looking at the loop ---------------------------------------------------------


def watching(stub: StubLoop) -> Run:
    run = Trip().run
    run._loop = cast("asyncio.AbstractEventLoop", stub)
    return run


def test_watch_of_a_loop_that_runs_looks_soon_and_then_seldom() -> None:
    run = watching(StubLoop())
    assert [run._watch() for _ in range(7)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_watch_of_a_loop_that_pauses_twice_does_not_add_the_pauses_up(
    now: SimpleNamespace,
) -> None:
    stub = StubLoop()
    run = watching(stub)
    run._claim.acquire()
    for running in (False, True, False, False):
        stub.running = running
        run._watch()
        now.seconds += 0.6
    assert stub.sent == []
    now.seconds += 0.6
    with pytest.raises(LoopStoppedError):
        run._watch()
    assert stub.sent == [run._cancel_task]


def test_watch_of_a_loop_that_stopped_looks_twice_before_it_withdraws_the_coroutine() -> None:
    stub = StubLoop()
    stub.running = False
    run = watching(stub)
    assert run._watch() == 0.05
    with pytest.raises(_WithdrawnError):
        run._watch()


# --- Interruptions ---------------------------------------------------------------


def test_interruption_before_the_coroutine_started_has_it_never_start(
    loop: asyncio.AbstractEventLoop,
) -> None:
    trip = Trip(raising(Interrupted()))
    assert trip.run.on_loop(loop)
    assert type(trip.run.interruption) is Interrupted
    turn(loop, 2)
    assert trip.log == []
    with pytest.raises(asyncio.CancelledError):
        trip.result.result()


def test_interruption_in_the_middle_ends_the_wait_when_the_cancelled_coroutine_has_ended(
    loop: asyncio.AbstractEventLoop,
) -> None:
    interruption = Interrupted()
    trip = Trip(lambda _: turn(loop, 2), raising(interruption), lambda _: turn(loop, 3))
    assert trip.run.on_loop(loop)
    assert trip.run.interruption is interruption
    assert trip.log == ["began", "cancelled"]


def test_interruption_that_the_coroutine_answers_is_kept_all_the_same(
    loop: asyncio.AbstractEventLoop,
) -> None:
    async def body() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "answer"

    steps = (lambda _: turn(loop, 2), raising(Interrupted()), lambda _: turn(loop, 3))
    trip = Trip(*steps, function=body)
    # In another thread, or coverage loses its way here: Python 3.11 does not trace what is thrown into a coroutine.
    assert run_in_thread(lambda: trip.run.on_loop(loop))
    assert type(trip.run.interruption) is Interrupted
    assert trip.result.result() == "answer"


def test_second_interruption_is_raised_at_once(loop: asyncio.AbstractEventLoop) -> None:
    first, second = Interrupted("first"), Interrupted("second")
    trip = Trip(lambda _: turn(loop, 2), raising(first), raising(second))
    with pytest.raises(Interrupted, match="second"):
        trip.run.on_loop(loop)
    assert trip.log == ["began"]
    turn(loop, 3)
    assert trip.log == ["began", "cancelled"]


@pytest.mark.parametrize("started", [False, True])
def test_interruption_that_is_a_runtime_error_is_not_taken_for_one_of_the_loop(
    loop: asyncio.AbstractEventLoop, started: bool
) -> None:
    error = RuntimeError("from a signal handler")
    before: tuple[Step, ...] = (lambda _: turn(loop, 2),) if started else ()
    trip = Trip(*before, raising(error), lambda _: turn(loop, 3))
    assert trip.run.on_loop(loop)
    assert trip.run.interruption is error
    assert trip.log == (["began", "cancelled"] if started else [])


def test_interruption_between_the_claim_and_the_start_cancels_the_coroutine(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """The loop's thread has the claim, but has not yet come further."""

    class Claim:
        lock = threading.Lock()

        def acquire(self, blocking: bool) -> bool:
            got = self.lock.acquire(blocking=blocking)
            if got:
                trip.run.interrupt()
            return got

    trip = Trip()
    trip.run._claim = cast("threading.Lock", Claim())
    trip.run.start(loop)
    turn(loop, 3)
    with pytest.raises(asyncio.CancelledError):
        trip.result.result()


def test_interruption_when_the_loop_made_no_task_ends_the_wait(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """The loop's thread is about to say that it made no task; there is none to cancel."""
    trip = Trip()
    trip.run._loop = loop
    trip.run._claim.acquire()
    trip.run.interrupt()
    turn(loop)
    assert not trip.result.done()


def test_interruption_ends_the_wait_even_if_the_loop_is_closed_meanwhile() -> None:
    """P5: that the loop stopped as well is no reason to forget a Ctrl-C."""
    with hand_driven_loop() as loop:
        stopped = LoopStoppedError()
        steps = (
            lambda _: turn(loop, 2),
            lambda _: loop.close(),
            raising(Interrupted()),
            raising(stopped),
        )
        trip = Trip(*steps)
        assert trip.run.on_loop(loop)
    assert type(trip.run.interruption) is Interrupted


def test_fork_in_the_waiting_thread_is_raised_in_the_child_at_once(
    loop: asyncio.AbstractEventLoop,
) -> None:
    trip = Trip(lambda _: turn(loop, 2), raising(_ForkedError("the child returned")))
    with pytest.raises(RuntimeError, match="the child returned"):
        trip.run.on_loop(loop)
    assert trip.log == ["began"]
    trip.release.set()
    turn(loop, 2)
    assert trip.log == ["began"]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="there are eager tasks from 3.12 on")
def test_first_step_is_left_to_the_loop_when_another_callback_came_in_between() -> None:
    """Of another thread: it must not be run before its turn."""
    ran: list[str] = []
    task, coroutine, other = object(), never(), Context()
    loop: Any = SimpleNamespace(
        create_task=lambda coroutine, context: task,
        is_running=lambda: True,
        _ready=deque([SimpleNamespace(_context=other, _run=lambda: ran.append("other"))]),
    )
    assert _run._make_task(loop, coroutine, Context()) is task
    assert (ran, len(loop._ready)) == ([], 1)
    coroutine.close()


async def never() -> None: ...
