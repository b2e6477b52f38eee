"""`Leftovers`: what a coroutine has started on its event loop and not ended.

Source: promise P6. `asyncio.run` ends the same things, and the loop with them; here the loop is used again, so neither
`shutdown_asyncgens` nor `shutdown_default_executor` will do: both are for good.

Which thread may touch what. All of it belongs to the thread that runs the loop.
"""

import asyncio
import contextlib
import logging
import signal
import sys
import weakref
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from django_asyncbridge.bridge import _state

__all__ = ("Leftovers",)

P = ParamSpec("P")
R = TypeVar("R")
_Generator = AsyncGenerator[Any, Any]

# How often tasks are cancelled that were started by tasks while those were cancelled. Not measured.
_ROUNDS = 10

_FIRST_HOOK, _LAST_HOOK = "_asyncgen_firstiter_hook", "_asyncgen_finalizer_hook"

logger = logging.getLogger("django_asyncbridge.bridge.sync")


class Leftovers:
    """The tasks, async generators and functions in threads that are left on one loop; true if there are any.

    Attributes:
        must_watch: whether `watch` has to be called whenever the loop has begun to run.

    Args:
        loop: the loop. It gets a default executor whose threads are the bridge's reused ones.
    """

    __slots__ = (
        "_closing",
        "_dropped",
        "_generators",
        "_loop",
        "_signals",
        "_threads",
        "must_watch",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._generators: weakref.WeakSet[_Generator] = weakref.WeakSet()
        self._threads = _LoopThreads()
        loop.set_default_executor(self._threads)
        self._signals: dict[int, Any] = {}
        # Nothing else tells which signals are handled; and a loop that is kept without running handles none.
        with contextlib.suppress(AttributeError):
            loop.add_signal_handler = self._add_signal_handler  # type: ignore[assignment]
        self._closing: set[asyncio.Task[None]] = set()
        self._dropped: list[_Generator] = []
        # asyncio's loops and uvloop's take these for their hooks whenever they run. They are private, but hooks set
        # in the running loop miss what begins before them: when the loop moves to another thread, that may be much.
        self.must_watch = not (hasattr(loop, _FIRST_HOOK) and hasattr(loop, _LAST_HOOK))
        if not self.must_watch:
            setattr(loop, _FIRST_HOOK, self._note)
            setattr(loop, _LAST_HOOK, self._note_end)

    def watch(self) -> None:
        """Note the async generators that begin from now on; in the running loop, as that forgets it when it stops."""
        sys.set_asyncgen_hooks(self._note, self._note_end)

    def _note(self, generator: _Generator) -> None:
        self._generators.add(generator)

    def _note_end(self, generator: _Generator) -> None:
        """Have a generator closed that nobody refers to any more; in any thread, as finalizers run anywhere."""
        if not self._loop.is_closed():
            self._dropped.append(generator)
            self._loop.call_soon_threadsafe(self._close_dropped)

    def _close_dropped(self) -> None:
        while self._dropped:
            task = self._loop.create_task(self._close(self._dropped.pop()))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _add_signal_handler(self, number: int, callback: Callable[..., object], *args: Any) -> None:
        before = signal.getsignal(number)
        type(self._loop).add_signal_handler(self._loop, number, callback, *args)
        self._signals.setdefault(number, before)

    def end_signals(self) -> None:
        """Have signals handled as before the call; in the waiting thread, which may be the only one that can."""
        while self._signals:
            number, before = self._signals.popitem()
            self._loop.remove_signal_handler(number)
            signal.signal(number, before)

    def __bool__(self) -> bool:
        return (
            len(self._generators) > 0
            or len(self._dropped) > 0
            or len(self._threads.running) > 0
            or len(asyncio.all_tasks(self._loop)) > 1
        )

    async def end(self, described: str) -> None:
        """Cancel the tasks and wait for them, close the generators, wait for the functions.

        Args:
            described: whose leftovers they are, for the log.
        """
        cancelled: set[asyncio.Task[Any]] = set()
        for _ in range(_ROUNDS):
            # CancelledError: the waiting thread was interrupted. That is raised there when all has ended.
            with contextlib.suppress(asyncio.CancelledError):
                await self._end(described, cancelled)
                return

    async def _end(self, described: str, cancelled: "set[asyncio.Task[Any]]") -> None:
        self._close_dropped()
        for _ in range(_ROUNDS):
            tasks = asyncio.all_tasks() - {asyncio.current_task()} - self._closing
            if not tasks:
                break
            self._cancel(tasks - cancelled, described)
            cancelled |= tasks
            await asyncio.wait(tasks)
            self._report_failed(tasks, described)
        generators = tuple(self._generators)
        self._generators.clear()
        await asyncio.gather(*map(self._close, generators))
        while self._closing:
            await asyncio.wait(self._closing)
        while self._threads.running:
            await asyncio.wait(map(asyncio.wrap_future, tuple(self._threads.running)))

    def _cancel(self, tasks: "set[asyncio.Task[Any]]", described: str) -> None:
        if not tasks:
            return
        logger.warning(
            "%s ended, and with it the event loop's run; cancelled what it had started and not awaited: %s",
            described,
            ", ".join(sorted(task.get_name() + _coroutine_name(task) for task in tasks)),
        )
        for task in tasks:
            task.cancel()

    def _report_failed(self, tasks: "set[asyncio.Task[Any]]", described: str) -> None:
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                self._report(f"a task left by {described} raised when it was cancelled", error)

    async def _close(self, generator: _Generator) -> None:
        try:
            await generator.aclose()
        except Exception as error:  # noqa: BLE001  # as asyncio does with what nobody can catch
            self._report(
                f"an async generator that was not closed raised at its end: {generator!r}", error
            )

    def _report(self, message: str, error: BaseException) -> None:
        self._loop.call_exception_handler({"message": message, "exception": error})


def _coroutine_name(task: "asyncio.Task[Any]") -> str:
    name = getattr(task.get_coro(), "__qualname__", None)
    return f" ({name})" if name else ""


class _LoopThreads(ThreadPoolExecutor):
    """A loop's default executor, which has to be of this class, without threads of its own.

    Attributes:
        running: the calls that have not ended.
    """

    def __init__(self) -> None:
        super().__init__(1)
        self.running: set[Future[Any]] = set()

    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> "Future[R]":
        """Have `function` called by one of the bridge's workers."""
        future = _state.default_workers.submit(function, *args, **kwargs)
        self.running.add(future)
        future.add_done_callback(self.running.discard)
        return future
