"""Work items: what the bridge's threads take from their queues.

A worker calls `run`, takes note that it is free again, and then calls `deliver`: whoever waits for the outcome finds the
worker free. An executor that will never run an item calls `drop` instead. All that an item refers to
is let go by these calls, because a queue may keep an item that was withdrawn.
"""

from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from typing import Any, ParamSpec, Protocol, TypeVar

__all__ = ("FutureWork", "Work", "WorkExecutor")

P = ParamSpec("P")
R = TypeVar("R")


class Work(Protocol):
    """One call, run at most once."""

    def run(self) -> None:
        """Run the function and keep the outcome; in the worker. It never raises what the function raises."""

    def deliver(self) -> None:
        """Hand the outcome over; in the worker, after `run`."""

    def drop(self, error: BaseException | None) -> None:
        """Fail with `error`, or as cancelled for None, unless it has begun; in any thread."""

    def wanted(self) -> bool:
        """Tell whether somebody still waits for it."""


class FutureWork:
    """A call submitted to an `Executor`, whose outcome goes into a concurrent future."""

    __slots__ = ("_args", "_error", "_function", "_kwargs", "_result", "_running", "future")

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.future: Future[Any] = Future()
        self._function: Callable[..., Any] | None = function
        self._args = args
        self._kwargs = kwargs
        self._running = False
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Run the function, unless the future was cancelled."""
        __traceback_hide__ = True
        function, args, kwargs = self._function, self._args, self._kwargs
        self._function, self._args, self._kwargs = None, (), {}
        try:
            self._running = self.future.set_running_or_notify_cancel()
            if self._running:
                assert function is not None
                self._result = function(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001  # an executor hands everything to whoever asked
            self._error = error
        finally:
            # The error's traceback refers to this frame; nothing may lead from here back to the error.
            del self, function, args, kwargs

    def deliver(self) -> None:
        """Complete the future."""
        future, result, error = self.future, self._result, self._error
        self._result = self._error = None
        try:
            if not self._running or future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        finally:
            del self, future, result, error

    def drop(self, error: BaseException | None) -> None:
        """Cancel the future, or fail it with `error`, unless it is done."""
        self._args, self._kwargs = (), {}
        if self._running:
            self._error = error
            self.deliver()
        elif self._function is not None:
            self._function = None
            if error is None:
                self.future.cancel()
            if self.future.set_running_or_notify_cancel():
                self.future.set_exception(error or CancelledError())

    def wanted(self) -> bool:
        """Tell whether the future was not cancelled."""
        return not self.future.cancelled()


class WorkExecutor(Executor):
    """An executor of ours: it takes work as it is, without a concurrent future for each call."""

    __slots__ = ()

    @abstractmethod
    def post(self, work: Work) -> None:
        """Have `work` run, or raise at once if that will never be."""

    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> "Future[R]":
        """Have ``function(*args, **kwargs)`` called in a thread of this executor.

        Returns:
            A future with what the function returns or raises. Cancelling it works until the function starts.

        Raises:
            RuntimeError: when it could never run: see `post`.
        """
        work = FutureWork(function, args, kwargs)
        self.post(work)
        return work.future
