"""`OwnLoop`: an event loop of the bridge's own, for coroutines that no other loop waits for.

Theory of operation. The loop runs in the thread that waits for the coroutine, as long as the coroutine does without that
thread. As soon as something on the loop needs it for thread-sensitive work, the loop stops (`move`), a worker runs it on, and
the waiting thread serves its `CurrentThreadExecutor`. A loop that does not run belongs to no thread, so this is
allowed; and a coroutine that needs nothing of that thread crosses to no other.

The coroutine's task ends when everything has ended that the coroutine left on the loop (`_leftovers`). The loop itself
stays, with its connections, for the next call.

Which thread may touch what. One call uses an `OwnLoop` at a time (`in_use`, changed by the thread the loop is kept for), and one
thread runs it at a time: the waiting one, and after `_hand_to_worker` the worker. In between nobody does: the first has
left `run_forever` before the second is told, and a `_Hosting` is done when the second has left it. All else belongs to
the thread that runs the loop. Whoever finds it stopped although the task has not ended runs it again: that it is stopped says nothing
(the user's code may have done that, and uvloop may have kept a stop of ours). An interruption of the waiting thread between any two of its steps finds the state of the
next step in these fields, and is followed by that step.
"""

import asyncio
import contextlib
import os
import weakref
from collections.abc import Callable

from django_asyncbridge.bridge import _fork, _state
from django_asyncbridge.bridge._interrupt import DeferredInterrupt
from django_asyncbridge.bridge._leftovers import Leftovers
from django_asyncbridge.bridge._loop_host import LoopHost
from django_asyncbridge.bridge._run import Run
from django_asyncbridge.bridge._work import WorkExecutor
from django_asyncbridge.bridge.current_thread_executor import (
    _ForkedError,
    _hosted,
)

__all__ = ("LoopFactory", "OwnLoop")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


# Every one of this process: in a child the collector would come upon their loops before it comes upon them.
_alive: "weakref.WeakSet[OwnLoop]" = weakref.WeakSet()


class OwnLoop(LoopHost):
    """An event loop, and the call that uses it.

    Args:
        factory: makes the loop.
    """

    __slots__ = (
        "__weakref__",
        "_debug",
        "_exception_handler",
        "_hosting",
        "_leftovers",
        "_pid",
        "_posted",
        "_task_factory",
        "in_use",
        "loop",
        "spoiled",
    )

    def __init__(self, factory: LoopFactory) -> None:
        self.loop = factory()
        self._pid = os.getpid()
        _alive.add(self)
        self.in_use = False
        # Whether something may be left on the loop that nobody waits for, so that it cannot be used again.
        self.spoiled = False
        self._leftovers = Leftovers(self.loop)
        self._task_factory = self.loop.get_task_factory()
        self._exception_handler = self.loop.get_exception_handler()
        self._debug = self.loop.get_debug()
        self._moving = False
        self._stuck = None
        self._hosting: _Hosting | None = None
        self._posted = False

    def close(self) -> None:
        """Close the loop, unless a worker still runs it: that one closes it, then. In a forked child, let go of it."""
        if self._pid != os.getpid():
            _disown(self.loop)
        elif not self.loop.is_running():
            self.loop.close()

    def __del__(self) -> None:
        # At the end of its thread, or of what made it. At the end of the interpreter half of what this needs may be gone.
        with contextlib.suppress(Exception):
            if not self.loop.is_closed():
                self.close()

    # --- In the waiting thread ---------------------------------------------------

    def run(self, run: Run, thread: WorkExecutor | None = None) -> None:
        """Run a coroutine and wait until all it left has ended; in the waiting thread, which runs no loop.

        An exception raised in this thread meanwhile, as by a signal handler (Ctrl-C), cancels the coroutine and is kept in
        `run.interruption`; a second one is raised at once. So is what ended the loop itself, as SystemExit in a task does.

        Args:
            run: the coroutine.
            thread: runs the loop from the beginning.
        """
        self.in_use = True
        self.executor = run.executor
        _state.loop_thread_executors[self.loop] = run.executor
        try:
            self._moving = thread is not None
            begun = False
            while True:
                try:
                    if not begun and thread is None:
                        begun = True
                        self._begin(run)
                    if not self._unfinished(run):
                        break
                    self._step(run, thread)
                except _ForkedError:
                    raise
                except BaseException as error:  # noqa: BLE001  # a signal handler's, or the loop's
                    run.interrupted(error)
            if not run.outcome.done():
                # Its task was cancelled before the first step.
                run._fail(asyncio.CancelledError())
        except BaseException:
            self._spoil()
            raise
        finally:
            self._end()
            del run

    def _begin(self, run: Run) -> None:
        """Make the task; in the thread that runs the loop first."""
        run.start(self.loop, self._main(run), self._stop)

    def _unfinished(self, run: Run) -> bool:
        if self._hosting is not None:
            return not self._hosting.done
        return self._moving or (run.task is not None and not run.task.done())

    def _step(self, run: Run, thread: WorkExecutor | None) -> None:
        if self._hosting is None and not self._moving:
            self._run_here(run)
        elif self._hosting is None or not self._posted:
            self._hand_to_worker(run, thread or _state.loop_workers)
        else:
            run.executor._serve(self._hosting.is_done)

    def _run_here(self, run: Run) -> None:
        if self._stuck is None and not run.executor._begin_hosting(self):
            self._moving = True
            return
        _hosted.host = self
        try:
            with DeferredInterrupt(run):
                self.loop.run_forever()
        finally:
            _hosted.host = None
            run.executor._end_hosting()

    def _hosted_loop(self) -> asyncio.AbstractEventLoop:
        return self.loop

    def _stop_hosted_loop(self) -> None:
        self.loop.stop()

    def _hand_to_worker(self, run: Run, thread: WorkExecutor) -> None:
        if self._hosting is None:
            if self._leftovers.must_watch:
                self.loop.call_soon(self._leftovers.watch)
            self._hosting = _Hosting(self, run)
        # Interrupted after this and before the next, it is posted twice: the second time nothing is left to do.
        thread.post(self._hosting)
        self._posted = True
        refusal = self._hosting.refusal
        if refusal is not None:
            self._hosting, self._posted, self._moving = None, False, False
            self._stuck = refusal
            run.executor._refuse(refusal)
            if run.task is None:
                self._begin(run)

    def _spoil(self) -> None:
        """Give the loop up; the worker that may still be running it closes it."""
        self.spoiled = True
        if self._hosting is None or self._hosting.done:
            self.close()

    def _end(self) -> None:
        # A child forked in the middle finds the registry emptied.
        _state.loop_thread_executors.pop(self.loop, None)
        if not self.spoiled:
            self._restore_settings()
            self._leftovers.end_signals()
        del self.executor
        self._hosting = self._stuck = None
        self._moving = self._posted = self.in_use = False

    # --- In the thread that runs the loop ----------------------------------------

    async def _main(self, run: Run) -> None:
        """Run the coroutine and end what it leaves behind."""
        if self._leftovers.must_watch:
            self._leftovers.watch()
        try:
            await run.coroutine
            if self._leftovers:
                await self._leftovers.end(run.described)
        finally:
            # Both end here, without another turn of the loop, which would find the next call there.
            assert run.task is not None
            run.task.remove_done_callback(self._stop)
            self.loop.stop()
            del run

    def _stop(self, task: "asyncio.Task[None]") -> None:
        # It was cancelled before its first step.
        self.loop.stop()

    def _turn_in_worker(self, run: Run) -> None:
        """Run the loop until the task has ended; what ends the loop itself is kept in `run.interruption`."""
        self._moving = False
        if run.task is None:
            self._begin(run)
        while run.task is not None and not run.task.done():
            try:
                self.loop.run_forever()
            except BaseException as error:  # noqa: BLE001  # it belongs to the waiting thread
                if self.spoiled:
                    return
                if run.interruption is None:
                    run.interruption = error
                run._cancel_task()

    # --- What a coroutine may change about its loop ------------------------------

    def _restore_settings(self) -> None:
        loop = self.loop
        if loop.get_task_factory() is not self._task_factory:
            loop.set_task_factory(self._task_factory)
        if loop.get_exception_handler() is not self._exception_handler:
            loop.set_exception_handler(self._exception_handler)
        if loop.get_debug() is not self._debug:
            loop.set_debug(self._debug)


class _Hosting:
    """The part of a call in which a worker runs the loop."""

    __slots__ = ("_executor", "_own", "_work", "done", "refusal")

    def __init__(self, own: OwnLoop, run: Run) -> None:
        self._own = own
        self._executor = run.executor
        # Taken by the worker that runs it, so that nobody else does.
        self._work = [run]
        self.done = False
        self.refusal: RuntimeError | None = None

    def is_done(self) -> bool:
        """Tell whether the call has ended and the worker has left the loop."""
        return self.done

    def run(self) -> None:
        """Run the loop until the call has ended; in the worker."""
        try:
            run = self._work.pop()
        except IndexError:
            return
        try:
            self._own._turn_in_worker(run)
        except BaseException:
            # The worker was ended from outside; nobody else would tell the waiting thread.
            self._finish()
            self.deliver()
            raise
        finally:
            del run
        self._finish()

    def _finish(self) -> None:
        self.done = True
        # Read after `done` was set; `_spoil` does it the other way round.
        if self._own.spoiled:
            self._own.close()

    def deliver(self) -> None:
        """Tell the waiting thread; in the worker."""
        if self.done:
            self._executor._close()

    def drop(self, error: BaseException | None) -> None:
        """Take note that no worker will run it, if that is so: it may have been posted twice."""
        with contextlib.suppress(IndexError):
            self._work.pop()
            self.refusal = RuntimeError(str(error))

    def wanted(self) -> bool:
        """Tell whether nobody has begun it."""
        return bool(self._work)


# Loops of a parent process: closing them would tell the kernel to watch their files no more, and its list is shared with the
# parent. Kept, because their finalizers would close them.
_disowned: list[asyncio.AbstractEventLoop] = []


def _disown(loop: asyncio.AbstractEventLoop) -> None:
    """Let go of a loop of the parent process; close this process's copies of its files, which is no loss to anybody."""
    if loop.is_closed():
        return
    _disowned.append(loop)
    if isinstance(loop, asyncio.SelectorEventLoop):
        # Private, but for closing a loop without unregistering its files there is no other way.
        for name in ("_selector", "_ssock", "_csock"):
            getattr(loop, name).close()
        loop._closed = True  # type: ignore[attr-defined]


def _disown_all() -> None:
    for own in list(_alive):
        _disown(own.loop)


_fork.on_fork(_disown_all)
