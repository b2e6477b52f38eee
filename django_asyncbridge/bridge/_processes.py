"""Calls of `sync_to_async` that run in another process: in a `concurrent.futures.ProcessPoolExecutor`.

Theory of operation. A `Job` is what the pool is given. The pool pickles it in a thread of its own; the job then pickles the
function and its arguments by itself (`__reduce__`), so that the process gets bytes, a `_Parcel`. It unpickles these within the call,
and answers with bytes again, which are unpickled here within the call. So whatever cannot be pickled, on either side, fails its
own call with an error that names the function. By itself the pool would be broken by it, with all other calls.

A decorator replaces the function it decorates: its name leads to the wrapper, and pickle refuses the function as "not the same
object". `_Pickler` sends the name and how many wrappers are to be taken off (`_strip`).

A `ProcessCall` is a `Call` whose work only the pool can withdraw. A pool with n processes takes n + 1 calls out of its queue
beforehand; from then on it does not give them back, and they count as running.

Which thread may touch what. A `ProcessCall` as a `Call`; `_Link.arrived` runs in the thread that manages the pool, or in the loop's
thread while that cancels. `Job.__reduce__` runs in the thread that feeds the pool. What is done before and after calls is set and read in the process.

Source: promises P4-P7.
"""

import asyncio
import contextlib
import importlib
import io
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Executor, Future
from types import FunctionType
from typing import Any

from django_asyncbridge.bridge import _call
from django_asyncbridge.bridge._call import Call, logger
from django_asyncbridge.bridge._crossings import Watch

__all__ = (
    "Job",
    "NoPassage",
    "ProcessCall",
    "is_process_pool",
    "is_process_pool_class",
    "set_after_call",
    "set_before_call",
)

# More than anybody decorates one function with; a ring of wrappers has to end somewhere.
_MOST_WRAPPERS = 50

_before_call: Callable[[], object] | None = None
_after_call: Callable[[], object] | None = None


def is_process_pool(executor: object) -> bool:
    """Tell whether calls of `executor` run in other processes."""
    return is_process_pool_class(type(executor))


def is_process_pool_class(kind: type) -> bool:
    """Tell whether calls of an executor of this class run in other processes."""
    # Without importing it, which takes long: nobody has one who has not.
    module = sys.modules.get("concurrent.futures.process")
    return module is not None and issubclass(kind, module.ProcessPoolExecutor)


def set_before_call(function: Callable[[], object] | None) -> None:
    """Have `function` called before each call that this process runs for another; what it raises is logged."""
    global _before_call
    _before_call = function


def set_after_call(function: Callable[[], object] | None) -> None:
    """Have `function` called after each call that this process runs for another; what it raises is logged."""
    global _after_call
    _after_call = function


# --- There ------------------------------------------------------------------------


class Job:
    """One call, to be submitted to a process pool.

    Args:
        function: takes no arguments; in the process it is found by its name, whatever wrappers have its place there.
        described: its name, for messages.
    """

    __slots__ = ("_described", "_function")

    def __init__(self, function: Callable[[], Any], described: str) -> None:
        self._function = function
        self._described = described

    def __call__(self) -> bytes:
        """Stand for the parcel, which is what the process calls."""
        raise AssertionError("a job runs in another process only")

    def __reduce__(self) -> tuple[type["_Parcel"], tuple[str, bytes]]:
        try:
            return _Parcel, (self._described, _dumps(self._function))
        except Exception as error:
            raise pickle.PicklingError(
                f"{self._described} cannot be run in another process, for it or one of its arguments cannot be pickled: "
                f"{_line(error)}; pass what can be pickled and a function that can be imported by its name, or use an "
                "executor with threads"
            ) from error


class _Pickler(pickle.Pickler):
    """Sends functions that were replaced by their wrappers, too."""

    def reducer_override(self, found: object) -> Any:
        if isinstance(found, FunctionType | staticmethod):
            module, name = str(found.__module__), str(found.__qualname__)
            layers = _count_layers(found, module, name)
            if layers:
                return _strip, (module, name, layers)
        return NotImplemented


def _dumps(content: object) -> bytes:
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(content)
    return file.getvalue()


def _count_layers(function: object, module: str, name: str) -> int:
    """Return how many wrappers are around a function where its name leads; 0 if it is not found there."""
    found = _look_up(module, name)
    for layers in range(_MOST_WRAPPERS):
        if found is function:
            return layers
        found = _inner(found)
    return 0


def _look_up(module: str, name: str) -> object:
    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _inner(wrapper: object) -> object:
    # A bound method shows what its function wraps, but not the function itself.
    inner = getattr(wrapper, "__wrapped__", None)
    return getattr(wrapper, "__func__", None) if inner is None else inner


def _strip(module: str, name: str, layers: int) -> object:
    """Return the function inside of its wrappers; in the process."""
    importlib.import_module(module)
    found = _look_up(module, name)
    for _ in range(layers):
        found = _inner(found)
    return found


# --- In the process -----------------------------------------------------------------


class _Parcel:
    """A call as bytes."""

    __slots__ = ("_content", "_described")

    def __init__(self, described: str, content: bytes) -> None:
        self._described = described
        self._content = content

    def __call__(self) -> bytes:
        """Run the call, and return its `_Answer` as bytes."""
        _look_after(_before_call)
        start = time.monotonic()
        value: Any = None
        error: BaseException | None = None
        try:
            value = self._run()
        except BaseException as caught:  # noqa: BLE001  # whatever it is belongs to the awaiting task
            error = caught
        seconds = time.monotonic() - start
        _look_after(_after_call)
        return _Answer(self._described, value, error, seconds).packed()

    def _run(self) -> Any:
        try:
            function = pickle.loads(self._content)
        except Exception as error:
            raise pickle.UnpicklingError(
                f"{self._described} or its arguments could not be unpickled in process {os.getpid()}: {_line(error)}"
            ) from error
        return function()


def _look_after(function: Callable[[], object] | None) -> None:
    if function is None:
        return
    try:
        function()
    except Exception:  # noqa: BLE001  # whatever it is, the call's own outcome counts
        logger.exception("what is done before or after each call in process %s raised", os.getpid())


class _Answer:
    """What became of a call, with where and how long it ran."""

    __slots__ = ("described", "error", "notes", "seconds", "value", "where")

    def __init__(
        self, described: str, value: Any, error: BaseException | None, seconds: float
    ) -> None:
        self.described = described
        self.value = value
        self.error = error
        self.seconds = seconds
        self.where = f"process-{os.getpid()}"
        # A traceback cannot be pickled.
        self.notes = "" if error is None else "".join(traceback.format_exception(error)).rstrip()

    def packed(self) -> bytes:
        """Return it as bytes that can be unpickled, whatever has to be replaced for that; in the process."""
        try:
            content = _dumps(self)
            if self.error is not None:
                # Exceptions often make no exception of what they pickle.
                pickle.loads(content)
        except Exception as error:  # noqa: BLE001  # whatever the classes of the values raise
            self.value, self.error = None, self._replacement(error)
            content = _dumps(self)
        return content

    def _replacement(self, error: Exception) -> Exception:
        if self.error is None:
            return pickle.PicklingError(
                f"what {self.described} returned cannot be pickled: {_line(error)}"
            )
        return RuntimeError(
            f"{self.described} raised {_line(self.error)}, an exception that cannot be pickled and unpickled: {_line(error)}"
        )


def _line(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


# --- Back -----------------------------------------------------------------------------


class NoPassage:
    """Stands for the `Passage` of a call that takes no context variables along."""

    __slots__ = ()

    def back(self, task: object, ran: bool) -> None:
        """Carry nothing back."""


class _Link:
    """What the pool holds of a call; empty once it has told of it, so that an error does not lead to its call."""

    __slots__ = ("call",)

    def __init__(self, call: "ProcessCall") -> None:
        self.call: ProcessCall | None = call

    def arrived(self, queued: "Future[bytes]") -> None:
        """Give the call its outcome."""
        call, self.call = self.call, None
        assert call is not None
        call.arrive(queued)


class ProcessCall(Call):
    """A call that runs in another process.

    Args:
        loop: the running loop.
        described: the function's name, for messages.
        abandon_on_cancel: let a cancelled task go although the function runs on.
        watch: the clock of the crossing, or None.
    """

    _queued: "Future[bytes] | None" = None
    _withdrawn = False

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        described: str,
        abandon_on_cancel: bool,
        watch: Watch | None,
    ) -> None:
        super().__init__(loop, described, None, abandon_on_cancel)
        self._watch = watch

    def submit(self, executor: Executor, work: Callable[[], Any]) -> None:
        """Have a `Job` run by a process pool; in the loop's thread.

        Raises:
            RuntimeError: what the pool raises when it takes no more calls. Nothing has run then.
        """
        link = _Link(self)
        self._queued = executor.submit(work)
        self._queued.add_done_callback(link.arrived)

    def abandon(self) -> bool:
        """Have the call never run, as nobody waits for it any more.

        Returns:
            False if the pool is running it, or about to, or it was withdrawn before.
        """
        queued = self._queued
        if queued is None:
            return False
        # Written before, since the pool tells of it at once; the pool never tells of anything else then.
        self._withdrawn = True
        if not queued.cancel():
            self._withdrawn = False
            return False
        self._queued = None
        return True

    def arrive(self, queued: "Future[bytes]") -> None:
        """Take over and deliver the outcome; in the thread that manages the pool."""
        if queued.cancelled():
            if self._withdrawn:
                return
            self._error = asyncio.CancelledError(f"the executor of {self._described} cancelled it")
        elif queued.exception() is not None:
            self._error = queued.exception()
        else:
            self._unpack(queued.result())
        # Delivered as one that no thread of this process has run.
        self._thread = 0
        self._queued = None
        self.deliver()

    def _unpack(self, content: bytes) -> None:
        try:
            answer: _Answer = pickle.loads(content)
        except Exception as error:  # noqa: BLE001  # whatever the classes of the values raise
            self._error = pickle.UnpicklingError(
                f"what {self._described} returned or raised in another process could not be unpickled here: {_line(error)}"
            )
            return
        if self._watch is not None:
            now = time.monotonic()
            self._watch._began = now - answer.seconds, answer.where
            self._watch._ended_at = now
        self._result, self._error = answer.value, answer.error
        if answer.error is None:
            return
        if isinstance(answer.error, StopIteration):
            self._error = _call._of_stop(answer.error, self._described)
        # Exceptions may refuse assignments (frozen dataclasses do).
        with contextlib.suppress(Exception):
            answer.error.add_note(f"In {answer.where}:\n{answer.notes}")

    def _report_overdue(self) -> None:
        logger.warning(
            "%s was cancelled %.0f s ago and is still running in a process of its pool; the task that called it ends "
            "when it does",
            self._described,
            _call._OVERDUE_SECONDS,
        )
