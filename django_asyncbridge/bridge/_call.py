"""`Call`: one crossing from a task into a thread and back, as a future that knows both sides.

Theory of operation. The task submits `Call.run` to an executor (through a `_Link`) and awaits the call. `run` does the work in the
worker and hands the outcome to the loop with one `call_soon_threadsafe`. Whoever takes `_claim` first decides
what becomes of the call: the worker (it runs), a cancellation (it never runs), or the executor that
dropped it (it fails).

Cancelling a call that runs does not complete it. The cancellation is remembered, is passed on to the tasks
the function waits for in turn (`children`), and takes effect once the function has ended: what a
call started ends with it, and the next call of the task finds the thread free.

Which thread may touch what. Everything belongs to the loop's thread except `run` and `dropped`, which other threads call
and which touch nothing but `_claim` (a lock, taken once and never released), `_work`, `_hold` and `_thread` (once they have
the claim) and `children` (which has its own lock).

Source: promises P4-P7.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Protocol

from django_asyncbridge.bridge import _fork

__all__ = ("Call", "Children", "Hold", "logger")

# A call that was cancelled but whose function runs on is reported after this many seconds. Not measured.
_OVERDUE_SECONDS = 10.0

# The name of the public module: what users configure should not follow how we cut the private ones.
logger = logging.getLogger("django_asyncbridge.bridge.sync")


class Hold:
    """Stands for a call that holds the process's shared thread; false once it does not."""

    __slots__ = ("_epoch", "active", "caller")

    def __init__(self, caller: str) -> None:
        self.active = True
        self.caller = caller
        self._epoch = _fork.epoch()

    def __bool__(self) -> bool:
        return self.active and self._epoch == _fork.epoch()


class Children(list["asyncio.Task[Any]"]):
    """The tasks that a running sync function waits for in `async_to_sync`, and its pending cancellation.

    Tasks add and remove themselves in the thread of their loop, which need not be the caller's.
    """

    __slots__ = ("_cancel_due", "_lock")

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._cancel_due = False

    def append(self, task: "asyncio.Task[Any]") -> None:
        """Add the current task; it is cancelled if a cancellation has found nobody to go to before."""
        with self._lock:
            super().append(task)
            due, self._cancel_due = self._cancel_due, False
        if due:
            task.cancel()

    def remove(self, task: "asyncio.Task[Any]") -> None:
        """Take a task out that has ended."""
        with self._lock:
            super().remove(task)

    def cancel(self) -> None:
        """Cancel the tasks that are waited for now, or else the next one."""
        with self._lock:
            tasks = tuple(self)
            self._cancel_due = not tasks
        for task in tasks:
            # RuntimeError: its loop is closed, so it has ended.
            with contextlib.suppress(RuntimeError):
                task.get_loop().call_soon_threadsafe(self._cancel_task, task)

    def _cancel_task(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancel():
            # It has ended in between; the function may be waiting for another by now.
            self.cancel()


class _Cancellable(Protocol):
    def cancel(self) -> bool: ...

    def add_done_callback(self, function: Callable[[Any], object], /) -> None: ...


class _Link:
    """What an executor holds of a call; empty once the call runs or is known never to.

    An error's traceback leads to the executor's frames and from there to all that the executor keeps of a
    call; it must not lead on to the call, which has the error.
    """

    __slots__ = ("call",)

    def __init__(self, call: "Call") -> None:
        self.call: Call | None = call

    def run(self) -> None:
        """Run the call, unless it was withdrawn; in the worker."""
        __traceback_hide__ = True
        call, self.call = self.call, None
        if call is None:
            return
        try:
            call.run()
        finally:
            del call

    def dropped(self, queued: Any) -> None:
        """End the call if its executor is done with it without having run it; in any thread."""
        call, self.call = self.call, None
        if call is not None:
            call.dropped(queued)


class Call(asyncio.Future[Any]):
    """The future result of a function that runs in a thread.

    Args:
        loop: the running loop.
        described: the function's name, for messages.
        hold: given back when the function has ended or is known never to run.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, described: str, hold: Hold | None) -> None:
        super().__init__(loop=loop)
        self.children = Children()
        self._lost_error: Exception | None = None
        self._described = described
        self._hold = hold
        self._claim = threading.Lock()
        self._work: Callable[[], Any] | None = None
        self._queued: _Cancellable | None = None
        self._cancel_requested = False
        self._overdue: asyncio.TimerHandle | None = None
        self._thread: threading.Thread | None = None
        self._cancel_message_wanted: Any = None

    def submit(self, executor: Executor | None, work: Callable[[], Any]) -> None:
        """Have `work` run by `executor`, or by the loop's default executor for None; in the loop's thread.

        Raises:
            RuntimeError: what the executor raises when it takes no more calls. Nothing has run then.
        """
        self._work = work
        link = _Link(self)
        try:
            queued: _Cancellable
            if executor is None:
                queued = self.get_loop().run_in_executor(None, link.run)
            else:
                queued = executor.submit(link.run)
        except BaseException:
            link.call = None
            self._release()
            raise
        self._queued = queued
        # Executors drop calls: shutdown(cancel_futures=True), a broken pool, a call that cannot be pickled.
        queued.add_done_callback(link.dropped)

    def run(self) -> None:
        """Run the function, unless the call was withdrawn; in the worker."""
        __traceback_hide__ = True
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._hand_over(*self._outcome())
        except BaseException as interruption:  # noqa: BLE001  # it belongs to the awaiting task
            # Of a signal handler, in a main thread that works for others meanwhile, before or after the
            # function itself: nobody must wait for ever for what it has cut off.
            self._hand_over(None, interruption)
        finally:
            # The error's traceback refers to this frame; nothing may lead from here back to the error.
            del self

    def _outcome(self) -> tuple[Any, BaseException | None]:
        """Run the function and return what it returned, or what the task is to see raised."""
        __traceback_hide__ = True
        self._thread = threading.current_thread()
        work, self._work = self._work, None
        assert work is not None
        try:
            return work(), None
        except StopIteration as stop:
            return None, self._of_stop(stop)
        except BaseException as caught:  # noqa: BLE001  # whatever it is belongs to the awaiting task
            return None, caught
        finally:
            # Before the task goes on: it may look at once.
            self._release()
            del self, work

    def _of_stop(self, stop: StopIteration) -> RuntimeError:
        """Return what stands for a StopIteration, which the interpreter takes for a coroutine's end."""
        error = RuntimeError(
            f"{self._described} raised StopIteration, which cannot pass through await; "
            "use next(iterator, default) or return a marker"
        )
        error.__cause__ = stop
        return error

    def _hand_over(self, result: object, error: BaseException | None) -> None:
        try:
            self.get_loop().call_soon_threadsafe(self._complete, result, error)
        except RuntimeError:
            logger.warning(
                "%s ended after the event loop that waited for it was closed; its result is lost",
                self._described,
                exc_info=error,
            )
        finally:
            del error

    def _complete(self, result: object, error: BaseException | None) -> None:
        """Take over what the worker hands over; in the loop's thread."""
        if self.done():  # handed over before an interruption, and again with it
            return
        self._queued = None
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        fatal = error is not None and not isinstance(error, (Exception, asyncio.CancelledError))
        if self._cancel_requested and not fatal:
            self._lost_error = error if isinstance(error, Exception) else None
            super().cancel(msg=self._cancel_message_wanted)
        elif error is not None:
            self.set_exception(error)
        else:
            self.set_result(result)

    def dropped(self, queued: Any) -> None:
        """End the call if its executor is done with it without having run it; in any thread."""
        if not self._claim.acquire(blocking=False):
            return
        self._release()
        error: BaseException | None
        try:
            error = queued.exception()
        except (asyncio.CancelledError, concurrent.futures.CancelledError):
            error = asyncio.CancelledError(f"the executor of {self._described} cancelled it")
        self._hand_over(None, error)

    def _release(self) -> None:
        self._work = None
        if self._hold is not None:
            self._hold.active = False

    def cancel(self, msg: Any = None) -> bool:
        """Withdraw the call, or have its cancellation take effect when the function has ended.

        Called by the awaiting task's `cancel`; in the loop's thread.
        """
        if self.done():
            return False
        if self._claim.acquire(blocking=False):
            self._release()
            queued, self._queued = self._queued, None
            super().cancel(msg=msg)
            if queued is not None:
                queued.cancel()
        else:
            if not self._cancel_requested:
                self._overdue = self.get_loop().call_later(_OVERDUE_SECONDS, self._report_overdue)
            self._cancel_requested = True
            self._cancel_message_wanted = msg
            self.children.cancel()
        return True

    def _report_overdue(self) -> None:
        """Say who is waited for, so that a task which seems to ignore its cancellation can be understood."""
        if self._thread is None:  # its executor is dropping it
            return
        frame = sys._current_frames().get(self._thread.ident or 0)
        logger.warning(
            "%s was cancelled %.0f s ago and is still running in %s; the task that called it ends when it does%s",
            self._described,
            _OVERDUE_SECONDS,
            self._thread.name,
            "" if frame is None else ":\n" + "".join(traceback.format_stack(frame)),
        )

    @property
    def lost_error(self) -> Exception | None:
        """What the function raised, for a task that only sees that it was cancelled."""
        if self._lost_error is None and self.done() and not self.cancelled():
            # The task was cancelled after the call had ended, before it could look.
            error = self.exception()
            return error if isinstance(error, Exception) else None
        return self._lost_error

    def abandon(self) -> bool:
        """Have the call never run, as nobody waits for it any more; in any thread.

        Returns:
            False if it has begun, or was withdrawn before.
        """
        if not self._claim.acquire(blocking=False):
            return False
        self._release()
        return True
