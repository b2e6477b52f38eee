"""The loop watchdog: its decisions in a world of its own, and that it tells while the loop is blocked."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, NamedTuple

import pytest

from django_asyncbridge.serving import watchdog
from django_asyncbridge.serving._stacks import Line, Stack, read_stack
from django_asyncbridge.serving.watchdog import LoopWatchdog, watched
from tests.serving.children import LIMIT_SECONDS
from tests.support import run_child

logger = logging.getLogger("django_asyncbridge.serving.watchdog")

THRESHOLD_SECONDS = 0.05
LIBRARY = Line("asyncio.events", asyncio.events.__file__, 88, "Handle._run")
VIEW = Line("shop.views", "views.py", 12, "report")
DEBUGGER = Line("bdb", "bdb.py", 1, "Bdb.dispatch_line")


class Heard(logging.Handler):
    """What the watchdog has said; `told` once it has warned of the function `block`."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.told = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        if record.levelno == logging.WARNING and "in block" in record.getMessage():
            self.told.set()

    def lines(self, containing: str = "", level: int = logging.INFO) -> list[str]:
        texts = [record.getMessage() for record in self.records if record.levelno >= level]
        return [text for text in texts if containing in text]

    async def until(self, containing: str, times: int = 1) -> None:
        async with asyncio.timeout(LIMIT_SECONDS):
            while len(self.lines(containing)) < times:
                await asyncio.sleep(0.005)


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler = Heard()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield handler
    logger.propagate = propagate
    logger.setLevel(level)
    logger.removeHandler(handler)
    assert "asyncbridge-watchdog" not in {thread.name for thread in threading.enumerate()}


# --- Decisions, in a world whose time passes only while the watchdog waits ------------


class Step(NamedTuple):
    """What happens in one wait of the watchdog."""

    late: float = 0.0
    # Of the time it took, what the process was computing.
    busy: float = 0.0
    # Whether the loop runs its callbacks in it.
    answers: bool = False
    running: bool = True


SILENT, ANSWERED = Step(), Step(answers=True)


class World:
    """A loop, a clock and a flag that ends the watch when the script is over."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.step = SILENT
        self.now = 1000.0
        self.cpu = 0.0
        self.waits: list[float] = []
        self.closed_in = -1
        self.callbacks: list[Callable[[], None]] = []

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        if not self.steps:
            return True
        self.step = self.steps.pop(0)
        self.now += seconds + self.step.late
        self.cpu += (seconds + self.step.late) * self.step.busy
        if self.step.answers:
            for callback in self.callbacks:
                callback()
            self.callbacks.clear()
        return False

    def read(self) -> watchdog._Reading:
        return watchdog._Reading(self.now, self.cpu)

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        if self.closed_in == len(self.steps):
            raise RuntimeError("Event loop is closed")
        self.callbacks.append(callback)

    def is_closed(self) -> bool:
        return self.closed_in == len(self.steps)

    def is_running(self) -> bool:
        return self.step.running


def watch(monkeypatch: pytest.MonkeyPatch, world: World, *lines: Line) -> None:
    """Run a watch with a threshold of 4 s, and so a look each second, in this thread."""
    loop: Any = world
    watching = watchdog._Watch(loop, 0, 4.0, None)
    monkeypatch.setattr(watching, "stopping", world)
    monkeypatch.setattr(watchdog, "_read_clocks", world.read)
    # A beat counts the frames around it, which in this world are the test's.
    monkeypatch.setattr(watchdog, "read_stack", lambda _thread: [LIBRARY] * 100 + list(lines))
    monkeypatch.setattr(watchdog, "Stack", lambda lines, _depth: Stack(lines, 100))
    watching.run()


@pytest.mark.parametrize(
    "steps",
    [
        [ANSWERED] * 20,
        [SILENT] * 3 + [ANSWERED] + [SILENT] * 3,
        [SILENT] * 3 + [Step(answers=True, late=0.9)],
        # Suspended for an hour, as seen with a beat on its way and without.
        [Step(late=3600), ANSWERED],
        [ANSWERED, Step(late=3600, answers=True), ANSWERED],
        [SILENT, SILENT, Step(late=3600, busy=0.4), ANSWERED],
        # The loop is not running: nobody is blocked.
        [Step(running=False)] * 20,
        [Step(running=False)] * 20 + [SILENT] * 3,
        # A call kept the GIL, but not for as long as the threshold.
        [Step(late=3.9, busy=1.0, answers=True), ANSWERED],
        [Step(late=3.9, busy=1.0, answers=True)] * 2,
    ],
)
def test_watch_with_nothing_that_blocks_for_the_threshold_says_nothing(
    monkeypatch: pytest.MonkeyPatch, heard: Heard, steps: list[Step]
) -> None:
    watch(monkeypatch, World(*steps), VIEW)
    assert heard.lines() == []


def test_watch_of_a_blocked_loop_warns_once_and_says_when_it_is_over(
    monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    watch(monkeypatch, World(*[SILENT] * 9, ANSWERED, ANSWERED), VIEW)
    warning, over = heard.lines()
    assert warning.startswith(
        "The event loop is blocked, for 4.00 s so far, by a callback at views.py:12 in report."
    )
    assert warning.endswith('  File "views.py", line 12, in report')
    assert over == "The event loop goes on; a callback had blocked it for 10.00 s."
    assert [record.levelno for record in heard.records] == [logging.WARNING, logging.INFO]


def test_watch_looks_again_no_later_than_when_the_threshold_is_reached(
    monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    world = World(*[Step(late=0.75)] * 2, SILENT, SILENT, ANSWERED)
    watch(monkeypatch, world, VIEW)
    assert world.waits == [1, 1, 0.5, 1, 1, 1]
    assert len(heard.lines("for 4.00 s so far")) == 1


def test_watch_of_a_suspended_process_takes_the_suspension_off(
    monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    steps = [SILENT, Step(late=3600), SILENT, SILENT, Step(late=3600), ANSWERED]
    watch(monkeypatch, World(*steps), VIEW)
    warning, over = heard.lines()
    assert "for 4.00 s so far" in warning
    assert over.endswith("had blocked it for 6.00 s.")


def test_watch_of_the_same_place_within_a_minute_counts_instead_of_explaining(
    monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    blocked = [*[SILENT] * 4, ANSWERED]
    watch(monkeypatch, World(*blocked * 3, *[ANSWERED] * 60, *blocked), VIEW)
    first, second, third, later = heard.lines(level=logging.WARNING)
    assert "\n" in first
    assert second == (
        "The event loop is blocked, for 4.00 s so far, by a callback at views.py:12 in report, "
        "as before: 2 times within a minute."
    )
    assert "3 times" in third
    assert "\n" in later
    assert len(heard.lines("goes on")) == 4


def test_watch_of_a_loop_in_a_debugger_says_nothing(
    monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    steps = [*[SILENT] * 50, ANSWERED, Step(late=10, busy=1, answers=True)]
    watch(monkeypatch, World(*steps), VIEW, DEBUGGER)
    assert heard.lines() == []


def test_watch_that_no_thread_let_run_says_so_and_where_the_loop_is(
    monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    held = Step(late=6, busy=0.9, answers=True)
    watch(monkeypatch, World(held, ANSWERED, held), VIEW)
    first, second = heard.lines()
    assert first.startswith("The event loop was blocked for 6.00 s, as was every other thread")
    assert "the loop now runs a callback at views.py:12 in report. What takes so long" in first
    assert second.endswith("at views.py:12 in report, as before: 2 times within a minute.")


def test_watch_that_no_thread_let_run_says_if_the_loop_is_idle(
    monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    monkeypatch.setattr(watchdog._Beat, "answer", lambda beat: answer_at_depth(beat, 100))
    watch(monkeypatch, World(ANSWERED, Step(late=6, busy=1, answers=True)))
    assert len(heard.lines("not known for sure; the loop is idle now.")) == 1


def answer_at_depth(beat: watchdog._Beat, depth: int) -> None:
    beat.depth = depth
    beat.answered_at = watchdog._read_clocks().now


def test_watch_that_no_thread_let_run_warns_again_if_the_loop_stays_blocked(
    monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    watch(monkeypatch, World(Step(late=6, busy=1), *[SILENT] * 4, ANSWERED), VIEW)
    held, blocked, over = heard.lines()
    assert "interpreter's lock" in held
    assert "for 4.00 s so far" in blocked
    assert over.endswith("had blocked it for 5.00 s.")


def test_watch_that_is_stopped_after_its_warning_says_that_it_is_over(
    monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    watch(monkeypatch, World(*[SILENT] * 5), VIEW)
    assert heard.lines()[-1] == "The event loop goes on; a callback had blocked it for 5.00 s."


@pytest.mark.parametrize("step", [SILENT, ANSWERED])
def test_watch_of_a_closed_loop_ends_without_a_word(
    monkeypatch: pytest.MonkeyPatch, heard: Heard, step: Step
) -> None:
    world = World(*[step] * 3)
    world.closed_in = 1
    watch(monkeypatch, world, VIEW)
    assert (len(world.steps), heard.lines()) == (1, [])


def test_watch_of_a_thread_that_is_gone_says_nothing(
    monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    world: Any = World(*[SILENT] * 9)
    watching = watchdog._Watch(world, 0, 4.0, None)
    monkeypatch.setattr(watching, "stopping", world)
    monkeypatch.setattr(watchdog, "_read_clocks", world.read)
    watching.run()
    assert heard.lines() == []


def test_watch_that_fails_says_so_and_ends(monkeypatch: pytest.MonkeyPatch, heard: Heard) -> None:
    world = World(*[SILENT] * 9)
    monkeypatch.setattr(watchdog._Watch, "_tell_blocked", lambda *_args: 1 / 0)
    watch(monkeypatch, world, VIEW)
    assert heard.lines() == ["The loop watchdog has failed and watches no longer."]
    assert heard.records[0].exc_info is not None


# --- Real loops -----------------------------------------------------------------------


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "asyncio":
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = pytest.importorskip("uvloop").new_event_loop()
    return loop


def run(coroutine: Coroutine[Any, Any, None], loop: str = "asyncio") -> None:
    with asyncio.Runner(loop_factory=lambda: new_loop(loop)) as runner:
        runner.run(coroutine)


def block(heard: Heard) -> None:
    """Block the loop until the watchdog has said so."""
    assert heard.told.wait(LIMIT_SECONDS)


async def page(heard: Heard) -> None:
    block(heard)


async def answered(dog: LoopWatchdog) -> None:
    """Wait for the first beat, which tells how deep the loop is in the stack."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while dog._watch is None or not dog._watch._depth:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_loop_watchdog_tells_while_the_loop_is_blocked_and_when_it_goes_on(
    heard: Heard, loop: str
) -> None:
    async def main() -> None:
        async with LoopWatchdog(THRESHOLD_SECONDS, describe=lambda _task: "GET /slow/") as dog:
            await answered(dog)
            for times in (1, 2):
                heard.told.clear()
                await asyncio.create_task(page(heard), name=f"page {times}")
                await heard.until("goes on; GET /slow/ (task 'page", times)

    run(main(), loop)
    first, second = heard.lines("in block", logging.WARNING)
    headline, *stack = first.splitlines()
    assert "by GET /slow/ (task 'page 1') at " in headline
    assert [line.rpartition(" in ")[2] for line in stack[:4:2]] == ["page", "block"]
    assert stack[3].strip() == "assert heard.told.wait(LIMIT_SECONDS)"
    assert stack[-2].endswith("in Condition.wait")
    assert "by GET /slow/ (task 'page 2') at " in second
    assert second.endswith("in block, as before: 2 times within a minute.")


@pytest.mark.parametrize(
    ("describe", "expected"),
    [
        (None, "by task 'page' at"),
        (lambda _task: None, "by task 'page' at"),
        (lambda _task: 1 / 0, "by describe() failed with ZeroDivisionError"),
    ],
)
def test_loop_watchdog_names_the_task_if_nothing_else_is_known(
    heard: Heard, describe: watchdog.Describe | None, expected: str
) -> None:
    async def main() -> None:
        async with LoopWatchdog(THRESHOLD_SECONDS, describe):
            await asyncio.create_task(page(heard), name="page")

    run(main())
    assert [expected in line for line in heard.lines("in block", logging.WARNING)] == [True]


def test_loop_watchdog_throws_away_the_stack_of_a_loop_that_goes_on_meanwhile(
    monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    looked, gone_on = threading.Event(), threading.Event()

    def read_late(thread: int) -> list[Line]:
        looked.set()
        assert gone_on.wait(LIMIT_SECONDS)
        return read_stack(thread)

    async def main() -> None:
        async with LoopWatchdog(THRESHOLD_SECONDS):
            assert looked.wait(LIMIT_SECONDS)
            # The beat comes before whatever the loop is asked for from now on.
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(gone_on.set)
            await asyncio.sleep(0)

    monkeypatch.setattr(watchdog, "read_stack", read_late)
    run(main())
    assert heard.lines() == []


def test_loop_watchdog_that_a_call_let_not_run_tells_after_it(
    monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    # On a machine with other work the process gets too little of the processor to be seen as busy.
    monkeypatch.setattr(watchdog, "_BUSY_SHARE", 0.0)

    async def main() -> None:
        async with LoopWatchdog(THRESHOLD_SECONDS), asyncio.timeout(LIMIT_SECONDS):
            numbers = 10**6
            while not heard.lines("interpreter's lock"):
                numbers *= 2
                sum(range(numbers))
                await asyncio.sleep(THRESHOLD_SECONDS)

    run(main())
    assert heard.lines("interpreter's lock")


def test_loop_watchdog_of_a_suspended_or_debugged_process_says_nothing() -> None:
    run_child(
        """
        import asyncio, io, logging, os, pdb, subprocess, sys, threading
        from django_asyncbridge.serving import watchdog

        said = []
        watchdog.logger.addHandler(logging.NullHandler())
        watchdog.logger.addFilter(lambda record: said.append(record.getMessage()))
        looked, read_stack = threading.Event(), watchdog.read_stack

        def read_and_tell(thread):
            lines = read_stack(thread)
            looked.set()
            return lines

        class User(io.StringIO):
            def readline(self, *args):
                looked.clear()
                assert looked.wait(20)
                return "continue\\n"

        async def main():
            async with watchdog.LoopWatchdog(0.5):
                await asyncio.sleep(0.2)
                suspend = f"kill -STOP {os.getpid()}; sleep 1.2; kill -CONT {os.getpid()}"
                helper = subprocess.Popen(["sh", "-c", suspend])
                while helper.poll() is None:
                    await asyncio.sleep(0.01)
                watchdog.read_stack = read_and_tell
                pdb.Pdb(stdin=User(), stdout=io.StringIO(), nosigint=True).set_trace()
                await asyncio.sleep(0)

        asyncio.run(main())
        assert looked.is_set()
        assert said == [], said
        """,
        timeout_seconds=LIMIT_SECONDS * 2,
    )


# --- Its life -------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_loop_watchdog_with_no_positive_threshold_raises(seconds: float) -> None:
    with pytest.raises(ValueError, match="threshold_seconds must be more than 0"):
        LoopWatchdog(seconds)


def test_loop_watchdog_may_be_started_again_once_it_is_stopped(heard: Heard) -> None:
    dog = LoopWatchdog(LIMIT_SECONDS)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        dog.stop()
        dog.start(loop)
        with pytest.raises(RuntimeError, match="watches a loop already"):
            dog.start(loop)
        dog.stop()
        dog.stop()
        async with dog:
            names = [thread.name for thread in threading.enumerate()]
            assert names.count("asyncbridge-watchdog") == 1

    run(main())
    assert heard.lines() == []


def test_loop_watchdog_without_a_thread_says_so_and_leaves_the_loop_alone(
    monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            async with LoopWatchdog():
                await asyncio.sleep(0)

    run(main())
    assert heard.lines() == [
        "The event loop is not watched, for there is no thread: can't start new thread"
    ]


def test_watched_without_a_threshold_watches_nothing(heard: Heard) -> None:
    async def main() -> None:
        async with watched(None):
            names = [thread.name for thread in threading.enumerate()]
            assert "asyncbridge-watchdog" not in names
        async with watched(LIMIT_SECONDS) as dog:
            assert dog.threshold_seconds == LIMIT_SECONDS

    run(main())
    assert heard.lines() == []
