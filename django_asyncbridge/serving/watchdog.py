"""The loop watchdog: says in the log what blocks an event loop, while it blocks.

Theory of operation. A thread asks the loop again and again to run a callback, the beat. A loop that is idle or goes from one short
callback to the next runs it at once. If it has not run after the threshold, the thread reads the stack of the loop's thread.

Which thread may touch what. `LoopWatchdog.start` and `stop` belong to the loop's thread. All that a watch knows is in a `_Watch`
of the watchdog's thread alone; they share its beats. The loop's thread writes a beat once, `answered_at` last, so that whoever
sees it answered sees all of it. A beat that is answered while the stack is being read makes the stack that of something else: it
is thrown away.

Which time counts. A process that was suspended (SIGSTOP, a laptop that slept) or got no processor was late itself, not blocked:
what the watchdog's own waits took too long is taken off, unless the process was computing. Then a call has kept the interpreter's lock
(GIL), and no thread could run, this one neither.
"""

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from contextvars import Context
from types import TracebackType
from typing import Any, NamedTuple, Self

from django_asyncbridge.serving._stacks import Repeats, Stack, read_stack

__all__ = ("DEFAULT_THRESHOLD_SECONDS", "LoopWatchdog", "watched")

# Not measured. asyncio's debug mode says 0.1 s; the first request may take longer, for it imports the URL conf.
DEFAULT_THRESHOLD_SECONDS = 0.5

# Looks per threshold. A blocking may begin just after a beat, so what takes 1 + 1/4 thresholds is told.
_LOOKS = 4
# A suspended process computes nothing, a call that keeps the GIL nearly always. Not measured.
_BUSY_SHARE = 0.5
# The thread ends at once unless a log handler keeps it. Not measured.
_JOIN_SECONDS = 2.0

_ADVICE_BLOCKED = "Nothing else is answered meanwhile; call what blocks through sync_to_async."
_ADVICE_HELD = "What takes so long in one call belongs in another process."

logger = logging.getLogger("django_asyncbridge.serving.watchdog")

Describe = Callable[["asyncio.Task[Any]"], str | None]


class LoopWatchdog:
    """Warns while an event loop is blocked, with the stack that blocks it; for development.

    Use it as an async context manager in the loop that is to be watched, or `start` and `stop` it there. While the loop
    is blocked for longer than the threshold there is one warning, and one line at INFO when that is over. A place that blocks again within
    a minute is told in a line, with a count. What a debugger stops is not told. If very many short callbacks keep the loop
    busy for that long, the stack is of the one which runs at that moment.

    The loop is woken four times per threshold, and pays nothing else: with half a second, 0.3 % of a processor where it was measured.

    Args:
        threshold_seconds: for how long the loop must be blocked.
        describe: says what a task does for whom, as "GET /reports/"; None if it does not know. It is called in the watchdog's thread.

    Raises:
        ValueError: the threshold is no positive number of seconds.
    """

    def __init__(
        self,
        threshold_seconds: float = DEFAULT_THRESHOLD_SECONDS,
        describe: Describe | None = None,
    ) -> None:
        if not 0 < threshold_seconds <= threading.TIMEOUT_MAX:
            raise ValueError(
                f"threshold_seconds must be more than 0 and at most {threading.TIMEOUT_MAX:.0f}, "
                f"not {threshold_seconds!r}"
            )
        self.threshold_seconds = threshold_seconds
        self._describe = describe
        self._watch: _Watch | None = None
        self._thread: threading.Thread | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch a loop from now on; on the thread that runs it.

        If no thread can be started, a warning says so and nothing is watched.

        Raises:
            RuntimeError: it watches a loop already.
        """
        if self._thread is not None:
            raise RuntimeError(
                "This LoopWatchdog watches a loop already; stop() it first, or make another."
            )
        watch = _Watch(loop, threading.get_ident(), self.threshold_seconds, self._describe)
        thread = threading.Thread(target=watch.run, name="asyncbridge-watchdog", daemon=True)
        try:
            # Where threads inherit context variables, this one would keep them alive.
            Context().run(thread.start)
        except RuntimeError as error:
            logger.warning("The event loop is not watched, for there is no thread: %s", error)
            return
        self._watch, self._thread = watch, thread

    def stop(self) -> None:
        """End the watch, and wait for its thread, which takes no time; on the loop's thread. Does nothing if none runs."""
        watch, self._watch = self._watch, None
        thread, self._thread = self._thread, None
        if watch is not None and thread is not None:
            watch.stopping.set()
            thread.join(_JOIN_SECONDS)

    async def __aenter__(self) -> Self:
        self.start(asyncio.get_running_loop())
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.stop()


def watched(
    threshold_seconds: float | None, describe: Describe | None = None
) -> AbstractAsyncContextManager[Any]:
    """Return a `LoopWatchdog` to enter, or a block that does nothing if the threshold is None.

    Raises:
        ValueError: the threshold is no positive number of seconds.
    """
    if threshold_seconds is None:
        return contextlib.nullcontext()
    return LoopWatchdog(threshold_seconds, describe)


class _Reading(NamedTuple):
    """What the clocks say: the time, and the processor time of the process."""

    now: float
    cpu: float


def _read_clocks() -> _Reading:
    return _Reading(time.monotonic(), time.process_time())


class _Silence:
    """How long a beat has had no answer; decides and does nothing else.

    Attributes:
        held_seconds: of that, how long no thread could run.
    """

    def __init__(self, threshold_seconds: float, sent_at: float) -> None:
        self._threshold = threshold_seconds
        self._interval = threshold_seconds / _LOOKS
        self.restart(sent_at)

    def restart(self, now: float) -> None:
        """Count from now on."""
        self._from = now
        self.held_seconds = 0.0

    def pause(self, now: float) -> float:
        """Return for how long to wait until the next look: no longer than until the threshold."""
        left = self._threshold - self.seconds(now)
        return min(self._interval, left) if left > 0 else self._interval

    def note(self, asked: float, before: _Reading, after: _Reading) -> None:
        """Take notice of how long a wait really took, and off what does not count."""
        took = after.now - before.now
        late = took - asked
        if late <= self._interval:
            return
        if after.cpu - before.cpu >= took * _BUSY_SHARE:
            self.held_seconds += late
        else:
            self._from += late

    def seconds(self, now: float) -> float:
        return max(0.0, now - self._from)

    def is_too_long(self, now: float) -> bool:
        return self.seconds(now) >= self._threshold

    def was_held_too_long(self) -> bool:
        return self.held_seconds >= self._threshold


class _Beat:
    """A callback for the loop: that it has run says that the loop is not blocked."""

    __slots__ = ("answered_at", "depth")

    def __init__(self) -> None:
        self.answered_at: float | None = None
        # How many frames are around every callback of the loop: its own, and whoever has started it.
        self.depth = 0

    def answer(self) -> None:
        frame = sys._getframe().f_back
        while frame is not None:
            self.depth += 1
            frame = frame.f_back
        self.answered_at = _read_clocks().now


class _Watch:
    """One watch over a loop, and all that its thread knows; `stopping` ends it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        thread: int,
        threshold_seconds: float,
        describe: Describe | None,
    ) -> None:
        self.stopping = threading.Event()
        self._loop = loop
        self._thread = thread
        self._threshold = threshold_seconds
        self._describe = describe
        self._depth = 0
        self._repeats = Repeats()

    def run(self) -> None:
        """Send beats until told to stop or the loop is closed; in the watchdog's thread."""
        try:
            going_on = True
            while going_on:
                beat = _Beat()
                try:
                    self._loop.call_soon_threadsafe(beat.answer)
                except RuntimeError:  # It has been closed.
                    return
                going_on = self._follow(beat)
        except Exception:
            logger.exception("The loop watchdog has failed and watches no longer.")

    def _follow(self, beat: _Beat) -> bool:
        """Wait for the answer to a beat, and tell what there is to tell; return whether to send the next."""
        now = _read_clocks().now
        silence = _Silence(self._threshold, now)
        culprit: str | None = None
        while True:
            stopped, now = self._pause(silence, now)
            if culprit is None and silence.was_held_too_long():
                self._tell_held(silence.held_seconds)
                silence.restart(now)
            if stopped or beat.answered_at is not None:
                break
            if self._loop.is_closed():
                return False
            if not self._loop.is_running():
                silence.restart(now)
            elif culprit is None and silence.is_too_long(now):
                culprit = self._tell_blocked(beat, silence.seconds(now))
        self._depth = beat.depth or self._depth
        if culprit:
            # Who stops the watch does it on the loop's thread, which is not blocked then.
            seconds = silence.seconds(now if beat.answered_at is None else beat.answered_at)
            logger.info("The event loop goes on; %s had blocked it for %.2f s.", culprit, seconds)
        return not stopped

    def _pause(self, silence: _Silence, now: float) -> tuple[bool, float]:
        """Wait until the next look; return whether to stop, and the time."""
        asked = silence.pause(now)
        before = _read_clocks()
        stopped = self.stopping.wait(asked)
        after = _read_clocks()
        silence.note(asked, before, after)
        return stopped, after.now

    def _tell_blocked(self, beat: _Beat, seconds: float) -> str | None:
        """Warn, and return who blocks the loop: "" if that is a debugger, None if nobody does any more."""
        lines = read_stack(self._thread)
        task = asyncio.current_task(self._loop)
        if not lines or beat.answered_at is not None:
            return None
        stack = Stack(lines, self._depth)
        if stack.debugged:
            return ""
        culprit = self._name(task)
        logger.warning(
            "The event loop is blocked, for %.2f s so far, by %s %s",
            seconds,
            culprit,
            self._where(stack, _ADVICE_BLOCKED),
        )
        return culprit

    def _tell_held(self, seconds: float) -> None:
        """Warn of what could not be seen: the loop's thread may still be where it was, for it had to let this one run first."""
        lines = read_stack(self._thread)
        task = asyncio.current_task(self._loop)
        if not lines[self._depth :]:
            now = "the loop is idle now."
        elif (stack := Stack(lines, self._depth)).debugged:
            return
        else:
            now = f"the loop now runs {self._name(task)} {self._where(stack, _ADVICE_HELD)}"
        logger.warning(
            "The event loop was blocked for %.2f s, as was every other thread, by a call that kept "
            "the interpreter's lock (GIL). Which call is not known for sure; %s",
            seconds,
            now,
        )

    def _where(self, stack: Stack, advice: str) -> str:
        """Return where it is, with the stack unless that was told within the last minute."""
        times = self._repeats.count(stack.place, _read_clocks().now)
        if times > 1:
            return f"at {stack.place}, as before: {times} times within a minute."
        return f"at {stack.place}. {advice} Most recent call last:\n{stack}"

    def _name(self, task: "asyncio.Task[Any] | None") -> str:
        if task is None:
            return "a callback"
        name = f"task {task.get_name()!r}"
        if self._describe is None:
            return name
        try:
            description = self._describe(task)
        except Exception as error:  # noqa: BLE001  # a watchdog that fails would be worse
            description = f"describe() failed with {error!r}"
        return name if description is None else f"{description} ({name})"
