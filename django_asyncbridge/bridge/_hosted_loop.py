"""`HostedLoop`: an event loop of somebody else's, whose thread is home for what runs on it.

Theory of operation. A thread that runs an event loop cannot serve the thread-sensitive work that comes from it, so under
`asyncio.run` that work goes to the process's shared thread. In a thread that wants to be home for it (`here`), `HostedLoop` stands in
front of three methods of the loop. The loop runs in that thread, as ever, until something on it needs the thread. Then the
loop stops (`move`), a worker runs it on, and the thread serves its executor until somebody else stops the loop. As only
`run_forever` is run elsewhere, all else stays what it was: the task is the Runner's, its result and its cancellation too,
and other tasks on the loop wait for the next run.

One loop has one executor for all its runs, which takes work during a run only: a task that lives on from one run to the next
finds it in its context.

Which thread may touch what. `here` is each thread's own. Of a `HostedLoop` all belongs to the thread that is home, but for
`stop`, which belongs to the thread that runs the loop: that one, or during a `Turn` the worker. An interruption of the waiting thread stops the loop in the worker before it is raised.
"""

import asyncio
import contextlib
import functools
import sys
import threading
import weakref
from collections.abc import Callable, Generator
from contextvars import Context, Token
from typing import Any, TypeVar

from django_asyncbridge.bridge import _fork, _state
from django_asyncbridge.bridge._hosted_turn import LOOKS_SECONDS, ForwardedInterrupt, Turn, Watch
from django_asyncbridge.bridge._loop_host import LoopHost
from django_asyncbridge.bridge._mirror import arrived
from django_asyncbridge.bridge.current_thread_executor import (
    CurrentThreadExecutor,
    _ForkedError,
    _hosted,
    _run,
)

__all__ = ("HostedLoop", "here", "hosted_of")

R = TypeVar("R")


class _Here(threading.local):
    depth = 0


# In how many blocks this thread is that make it home.
here = _Here()


class _HomeExecutor(CurrentThreadExecutor):
    """The executor of one loop, which takes work while the loop runs."""

    def __init__(self) -> None:
        super().__init__(None)
        self._open = False

    def open(self) -> None:
        """Take work from now on."""
        if self._epoch != _fork.epoch():
            # Whoever had the lock when the process was forked has it for ever.
            self._epoch, self._lock = _fork.epoch(), threading.RLock()
        with self._lock:
            self._open = True

    def finish(self) -> None:
        """Take no more work, and run what was taken: a task that goes on in the next run waits for it."""
        with self._lock:
            self._open = False
        while not self._queue.empty():
            work = self._queue.get()
            if work is not None:
                _run(work)


class HostedLoop(LoopHost):
    """An event loop of `asyncio.Runner` whose thread is home for what runs on it.

    Args:
        loop: the loop; methods of it are replaced, for this object alone.

    Attributes:
        executor: runs the thread-sensitive work, in the thread that runs the loop first.
    """

    __slots__ = (
        "__weakref__",
        "_busy",
        "_home",
        "_loop",
        "_stale_stop",
        "_stopped",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Weak: the loop refers to this object, and whoever forgets a loop is to be told at once.
        self._loop = weakref.ref(loop)
        self._settle()
        self._busy = False
        self._moving = False
        # Somebody else stopped the loop.
        self._stopped = False
        # uvloop may have kept a stop of ours for the next time it runs.
        self._stale_stop = False
        self._stuck = None
        for name in ("run_until_complete", "run_forever", "stop"):
            setattr(loop, name, getattr(self, name))

    def _its(self, name: str) -> Callable[..., Any]:
        """Return a method of the loop's own."""
        loop = self._loop()
        method: Callable[..., Any] = getattr(type(loop), name)
        return functools.partial(method, loop)

    def _settle(self) -> None:
        self.executor = self._home = _HomeExecutor()

    def _passes(self) -> bool:
        """Tell whether this thread is not home now, or is running the loop already."""
        if self._busy or here.depth == 0 or asyncio._get_running_loop() is not None:
            return True
        if self.executor._ident != threading.get_ident():
            self._settle()
        return False

    # --- In the home thread --------------------------------------------------------

    def run_in(self, context: Context | None, run: Callable[[], R]) -> R:
        """Call `run`, which runs the loop for a task in `context`, with this thread as the task's home.

        Args:
            context: the task's context variables; None for the current ones.
            run: the call.
        """
        if self._passes():
            return run()
        in_context: Callable[..., Any] = _call if context is None else context.run
        try:
            token = in_context(self._become_home)
        except RuntimeError:
            # It is in use, so the task will not run either; asyncio says so.
            return run()
        try:
            return run()
        finally:
            # RuntimeError: a loop was given up in the middle of a step.
            with contextlib.suppress(RuntimeError):
                in_context(_state.current_executor.reset, token)
                # The task may have set something in the worker last.
                in_context(arrived)
            del token

    def _become_home(self) -> "Token[CurrentThreadExecutor | None]":
        outer = _state.current_executor.get()
        if outer is not None and outer is not self.executor:
            self.executor._old_executor = outer._nearest_open()
        return _state.current_executor.set(self.executor)

    def run_until_complete(self, future: Any) -> Any:
        """Run the loop until the future is done, as the loop's own method does."""
        return self.run_in(None, functools.partial(self._its("run_until_complete"), future))

    def run_forever(self) -> None:
        """Run the loop until it is stopped, as the loop's own method does."""
        loop = self._loop()
        if loop is None or self._passes() or loop.is_closed() or loop.is_running():
            self._run_as_ever()
            return
        self._busy = True
        _state.loop_thread_executors[loop] = self.executor
        try:
            self._run(loop)
            self._home.finish()
        finally:
            self._end(loop)

    def _run_as_ever(self) -> None:
        try:
            self._its("run_forever")()
        finally:
            if not self._busy:
                self._stopped = False

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        self.executor._abort()
        self.executor._old_executor = None
        # A child forked in the middle finds the registry emptied.
        _state.loop_thread_executors.pop(loop, None)
        self._stale_stop = self._moving and not isinstance(loop, asyncio.BaseEventLoop)
        self._busy = self._moving = self._stopped = False
        self._stuck = None

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            if self._moving:
                self._run_in_worker(loop)
            else:
                self._run_here()
            if self._stopped or not (self._moving or self._stale_stop or self._stuck):
                return
            if not self._moving:
                self._stale_stop = False

    def _run_here(self) -> None:
        # Again after a worker has left the loop.
        self._home.open()
        if self._stuck is None and not self._home._begin_hosting(self):
            self._moving = True
            return
        outer, _hosted.host = _hosted.host, self
        try:
            self._its("run_forever")()
        finally:
            _hosted.host = outer
            self._home._end_hosting()

    def _hosted_loop(self) -> asyncio.AbstractEventLoop | None:
        return self._loop()

    def _stop_hosted_loop(self) -> None:
        self._its("stop")()

    def _run_in_worker(self, loop: asyncio.AbstractEventLoop) -> None:
        turn = Turn(self._turn, self.executor)
        with ForwardedInterrupt(loop):
            self._wait(turn, loop)
        self._moving = False
        self._stuck = turn.refusal
        if turn.refusal is not None:
            self.executor._refuse(turn.refusal)
        _adopt(loop)
        error, turn.error = turn.error, None
        try:
            if error is not None:
                raise error
        finally:
            # The traceback refers to this frame.
            del error

    def _wait(self, turn: Turn, loop: asyncio.AbstractEventLoop) -> None:
        """Serve the executor until a worker has run the loop; an exception raised here meanwhile stops the loop first."""
        interruption: BaseException | None = None
        posted = False
        watch = Watch()
        try:
            while True:
                try:
                    if not posted:
                        # Interrupted after this and before the next, it is posted twice; the second does nothing.
                        _state.loop_workers.post(turn)
                        posted = True
                    if turn.refusal is None:
                        self.executor._serve(turn.is_done, watch.look, LOOKS_SECONDS)
                except _ForkedError:
                    raise
                except BaseException as error:
                    if interruption is not None:
                        raise
                    interruption = watch.interruption = error
                    loop.call_soon_threadsafe(self._its("stop"))
                    continue
                break
            if interruption is not None:
                raise interruption
        finally:
            interruption = watch.interruption = None

    # --- In the thread that runs the loop --------------------------------------------

    def stop(self) -> None:
        """Stop the loop, as its own method does."""
        self._stopped = True
        self._its("stop")()

    def _turn(self) -> None:
        """Run the loop until somebody else stops it; in the worker."""
        loop = self._loop()
        assert loop is not None
        _adopt(loop)
        self._its("run_forever")()


def hosted_of(loop: asyncio.AbstractEventLoop) -> HostedLoop | None:
    """Return what stands in front of a loop; None for one whose methods cannot be replaced."""
    hosted = getattr(loop.run_forever, "__self__", None)
    if isinstance(hosted, HostedLoop):
        return hosted
    try:
        return HostedLoop(loop)
    except AttributeError:
        return None


def _call(function: Callable[..., R], *args: Any) -> R:
    return function(*args)


def _adopt(loop: asyncio.AbstractEventLoop) -> None:
    """Have values that belong to threads go with the tasks of a loop that has come to this one."""
    for context in _contexts(loop):
        # RuntimeError: it is in use.
        with contextlib.suppress(RuntimeError):
            context.run(arrived)


if sys.version_info >= (3, 12):

    def _contexts(loop: asyncio.AbstractEventLoop) -> Generator[Context]:
        for task in asyncio.all_tasks(loop):
            yield task.get_context()

else:

    def _contexts(loop: asyncio.AbstractEventLoop) -> tuple[Context, ...]:
        """As above. In Python 3.11 a task does not tell; its values come along with its next call."""
        return ()
