"""`Call`: one crossing from a task into a thread and back, as a future that knows both sides.

Theory of operation. The task posts the call to an executor and awaits it. `run` does the work in the worker, and
`deliver` hands the outcome to the loop with one `call_soon_threadsafe`; `_complete`, there, lets the task go on at once,
where asyncio's own futures would let the loop turn once more. Whoever takes the work out of `_work`, a list of one, decides what
becomes of the call: the worker (it runs), a cancellation (it never runs), or the executor that drops it (it
fails). Taking is atomic, and only one can.

Cancelling a call that runs does not complete it. The cancellation is remembered, is passed on to the tasks
the function waits for in turn (`children`), and takes effect once the function has ended: what a
call started ends with it, and the next call of the task finds the thread free. Only if the caller asked for
`abandon_on_cancel` is the task let go at once.

A call is not an `asyncio.Future`, only awaitable like one: most of what that offers is not needed here, and its
wake-up through the loop is what a call spends most of its time on.

Which thread may touch what. Everything belongs to the loop's thread except `run`, `deliver` and `drop`, which other
threads call and which touch nothing but `_work`, and once they have taken that, `_hold`, `_thread`, `_result` and
`_error`, which the loop's thread reads when it has been told.

Source: promises P4-P7.
"""

import asyncio
import concurrent.futures
import contextvars
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from typing import Any, Protocol

from django_asyncbridge.bridge._children import Children, Hold
from django_asyncbridge.bridge._crossings import Result
from django_asyncbridge.bridge._work import WorkExecutor

__all__ = ("Call", "logger")

# A call that was cancelled but whose function runs on is reported after this many seconds. Not measured.
_OVERDUE_SECONDS = 10.0

# The name of the public module: what users configure should not follow how we cut the private ones.
logger = logging.getLogger("django_asyncbridge.bridge.sync")


class _Cancellable(Protocol):
    def cancel(self) -> bool: ...

    def add_done_callback(self, function: Callable[[Any], object], /) -> None: ...


class _Link:
    """What an executor of somebody else's holds of a call; empty once the call runs or is known never to.

    An error's traceback leads to the executor's frames and from there to all that the executor keeps of a
    call; it must not lead on to the call, which has the error.
    """

    __slots__ = ("call",)

    def __init__(self, call: "Call") -> None:
        self.call: Call | None = call

    def run(self) -> None:
        """Run the call, unless it was withdrawn, and deliver it; in the worker."""
        __traceback_hide__ = True
        call, self.call = self.call, None
        if call is None:
            return
        try:
            call.run()
            call.deliver()
        except BaseException as interruption:
            # A signal handler's, before or after the function itself.
            call.drop(interruption)
            raise
        finally:
            del call

    def dropped(self, queued: Any) -> None:
        """Fail the call if its executor is done with it without having run it; in any thread."""
        call, self.call = self.call, None
        if call is None:
            return
        try:
            error = queued.exception()
        except (asyncio.CancelledError, concurrent.futures.CancelledError):
            error = None
        call.drop(error)


_Callback = tuple[Callable[[Any], object], contextvars.Context]


class Call:
    """The result, some day, of a function that runs in a thread; awaited by one task.

    Args:
        loop: the running loop.
        described: the function's name, for messages.
        hold: given back when the function has ended or is known never to run.
        abandon_on_cancel: let a cancelled task go although the function runs on.
    """

    # Most calls never get others than these: not setting them for each is faster than slots are.
    _asyncio_future_blocking = False
    _queued: _Cancellable | None = None
    # The thread that runs the function; 0 if it was dropped.
    _thread: int | None = None
    _result: Any = None
    _error: BaseException | None = None
    _done = _cancelled = _failed = False
    _cancel_message: Any = None
    # Set once the call was cancelled but its function runs on.
    _overdue: asyncio.TimerHandle | None = None
    # Almost always there is one, of the task that waits.
    _first: _Callback | None = None
    _others: tuple[_Callback, ...] = ()
    # Whether the task was let go although the function runs on.
    abandoned = False
    # What the function raised, for a task that only sees that it was cancelled.
    lost_error: Exception | None = None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        described: str,
        hold: Hold | None,
        abandon_on_cancel: bool = False,
    ) -> None:
        self._loop = loop
        self._described = described
        self._hold = hold
        self._abandon_on_cancel = abandon_on_cancel
        self._work: list[Callable[[], Any]] = []
        self.children = Children()

    # --- On the way there -------------------------------------------------------

    def submit(self, executor: Executor, work: Callable[[], Any]) -> None:
        """Have `work` run by `executor`; in the loop's thread.

        Raises:
            RuntimeError: what the executor raises when it takes no more calls. Nothing has run then.
        """
        self._work.append(work)
        try:
            if isinstance(executor, WorkExecutor):
                executor.post(self)
            else:
                self._submit_to_foreign(executor)
        except BaseException:
            self._release()
            raise

    def _submit_to_foreign(self, executor: Executor) -> None:
        link = _Link(self)
        try:
            self._queued = executor.submit(link.run)
        except BaseException:
            link.call = None
            raise
        # Executors drop calls: shutdown(cancel_futures=True), a broken pool, a call that cannot be pickled.
        self._queued.add_done_callback(link.dropped)

    # --- In the worker ----------------------------------------------------------

    def run(self) -> None:
        """Run the function, unless the call was withdrawn; in the worker."""
        __traceback_hide__ = True
        try:
            work = self._work.pop()
        except IndexError:
            return
        self._thread = threading.get_ident()
        try:
            self._result = work()
        except StopIteration as stop:
            self._error = _of_stop(stop, self._described)
        except BaseException as caught:  # noqa: BLE001  # whatever it is belongs to the awaiting task
            self._error = caught
        finally:
            # Before the task goes on: it may look at once.
            if self._hold is not None:
                self._hold.active = False
            # The error's traceback refers to this frame; nothing may lead from here back to the error.
            del self, work

    def deliver(self) -> None:
        """Hand the outcome over to the loop, unless the call was withdrawn; in the worker."""
        if self._thread is None:
            return
        if self.abandoned:
            # The loop need not run any more, so that nobody would be told.
            self._come_late()
            return
        try:
            self._loop.call_soon_threadsafe(self._complete)
        except RuntimeError:
            logger.warning(
                "%s ended after the event loop that waited for it was closed; its result is lost",
                self._described,
                exc_info=self._error,
            )
            self._error = None

    def drop(self, error: BaseException | None) -> None:
        """Fail the call, as cancelled for None, unless it has been delivered or withdrawn; in any thread."""
        if self.abandon():
            self._thread = 0
        self._error = error or asyncio.CancelledError(
            f"the executor of {self._described} cancelled it"
        )
        self.deliver()

    def wanted(self) -> bool:
        """Tell whether the call was not withdrawn; in any thread."""
        return bool(self._work)

    @property
    def ran(self) -> bool:
        """Whether the function has been run."""
        return bool(self._thread)

    def _release(self) -> None:
        if self._hold is not None:
            self._hold.active = False

    def abandon(self) -> bool:
        """Have the call never run, as nobody waits for it any more; in any thread.

        Returns:
            False if it has begun, or was withdrawn before.
        """
        try:
            self._work.pop()
        except IndexError:
            return False
        self._release()
        return True

    # --- Back in the loop -------------------------------------------------------

    def _complete(self) -> None:
        """Take over the outcome and let the task go on; as a callback of the loop."""
        if self._done:
            self._come_late()
            return
        if self._overdue is not None:
            self._overdue.cancel()
            self._end_cancellation(self._error)
        self._done = True
        first, self._first = self._first, None
        if self._others:
            self._call_soon(*self._others)
        if first is None:
            return
        callback, context = first
        try:
            # No other task is in the middle of a step here, so this one's can be taken at once.
            context.run(callback, self)
        finally:
            # An error's traceback leads to `result`, which is called from here, and the callback to its task.
            del self, first, callback, context

    def _come_late(self) -> None:
        """Let go of an outcome that was delivered before its interruption and is again with it, or was abandoned.

        In the loop's thread, or in the worker if the call was abandoned before.
        """
        error, self._error, self._result = self._error, None, None
        if self.abandoned and isinstance(error, Exception):
            logger.warning(
                "%s raised after its call was abandoned", self._described, exc_info=error
            )

    def _end_cancellation(self, error: BaseException | None) -> None:
        if error is None or isinstance(error, (Exception, asyncio.CancelledError)):
            self.lost_error = error if isinstance(error, Exception) else None
            self._error = None
            self._cancelled = True

    def cancel(self, msg: Any = None) -> bool:
        """Withdraw the call, or have its cancellation take effect when the function has ended.

        Called by the awaiting task's `cancel`; in the loop's thread.
        """
        if self._done:
            return False
        self._cancel_message = msg
        if self.abandon():
            queued, self._queued = self._queued, None
            self._end_now()
            if queued is not None:
                queued.cancel()
        else:
            self.children.cancel()
            if self._abandon_on_cancel:
                self.abandoned = True
                self._end_now()
            elif self._overdue is None:
                self._overdue = self._loop.call_later(_OVERDUE_SECONDS, self._report_overdue)
        return True

    def _end_now(self) -> None:
        self._done = self._cancelled = True
        # By way of the loop: this is another task's step.
        if self._first is not None:
            self._call_soon(self._first, *self._others)
        self._first = None

    def _call_soon(self, *callbacks: _Callback) -> None:
        self._others = ()
        for callback, context in callbacks:
            self._loop.call_soon(callback, self, context=context)

    def _report_overdue(self) -> None:
        """Say who is waited for, so that a task which seems to ignore its cancellation can be understood."""
        frame = sys._current_frames().get(self._thread or 0)
        if frame is None:  # its executor is dropping it
            return
        name = next(
            (one.name for one in threading.enumerate() if one.ident == self._thread), "a thread"
        )
        logger.warning(
            "%s was cancelled %.0f s ago and is still running in %s; the task that called it ends when it does:\n%s",
            self._described,
            _OVERDUE_SECONDS,
            name,
            "".join(traceback.format_stack(frame)),
        )

    # --- As asyncio's tasks see it ----------------------------------------------

    def __await__(self) -> Generator[Any, None, Any]:
        if not self._done:
            self._asyncio_future_blocking = True
            yield self
            if not self._done:
                raise RuntimeError(f"the task that waits for {self._described} was woken too early")
        return self.result()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop that waits."""
        return self._loop

    def add_done_callback(
        self,
        callback: Callable[[Any], object],
        *,
        context: contextvars.Context | None = None,
    ) -> None:
        """Have `callback` called with this call when it is done; in the loop's thread."""
        if context is None:
            context = contextvars.copy_context()
        entry = callback, context
        if self._done:
            self._call_soon(entry)
        elif self._first is None:
            self._first = entry
        else:
            self._others += (entry,)

    @property
    def outcome(self) -> Result:
        """What the task saw, or sees if it looks."""
        if self._cancelled or not self._done:
            return "cancelled"
        return "raised" if self._failed else "returned"

    def ended(self) -> bool:
        """Tell whether the function runs no more, or never will."""
        return self._done and not self.abandoned

    def done(self) -> bool:
        """Tell whether there is an outcome."""
        return self._done

    def cancelled(self) -> bool:
        """Tell whether the outcome is a cancellation."""
        return self._cancelled

    def result(self) -> Any:
        """Return what the function returned, or raise what it raised."""
        error, self._error = self._error, None
        if self._cancelled:
            error = _cancelled_error(self._cancel_message)
        if error is None:
            return self._result
        if isinstance(error, asyncio.CancelledError):
            self._cancelled = True
        self._failed = True
        try:
            raise error
        finally:
            # The traceback refers to this frame.
            del self, error


def _cancelled_error(message: Any) -> asyncio.CancelledError:
    return asyncio.CancelledError() if message is None else asyncio.CancelledError(message)


def _of_stop(stop: StopIteration, described: str) -> RuntimeError:
    """Return what stands for a StopIteration, which the interpreter takes for a coroutine's end."""
    error = RuntimeError(
        f"{described} raised StopIteration, which cannot pass through await; "
        "use next(iterator, default) or return a marker"
    )
    error.__cause__ = stop
    return error
