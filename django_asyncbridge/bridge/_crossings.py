"""`Crossing`: what observers are told of each move between the event loop and a thread.

Nobody pays for this while nobody observes: a call looks whether there are any. Observers are called in the thread that made the call,
after its end: the event loop's for `sync_to_async`, the waiting one for `async_to_sync`. One that raises is
dropped, so it can neither break a call nor fill the log.

Which thread may touch what. `observers` is a tuple that is replaced under `_lock` and read by any thread. The fields of a `Watch` are
written by one side of its crossing after the other.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context, ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

__all__ = (
    "Crossing",
    "Observed",
    "Observer",
    "Result",
    "Watch",
    "add_observer",
    "close",
    "fresh_context",
    "observers",
    "remove_observer",
    "tags",
)

R = TypeVar("R")

_Kind = Literal["sync_to_async", "async_to_sync"]
Result = Literal["returned", "raised", "cancelled"]

logger = logging.getLogger("django_asyncbridge.bridge.sync")


@dataclass(frozen=True, slots=True)
class Crossing:
    """One call between the event loop and a thread, after its end.

    Attributes:
        function: what was called.
        kind: ``"sync_to_async"`` or ``"async_to_sync"``.
        queued_at: when the call was made, in seconds on the clock of `time.monotonic`.
        started_at: when the function began, on the same clock; None if it never did.
        ended_at: when it ended, or when it was known that it would never begin.
        thread: the name of the thread that ran it: where it began, for a coroutine; None if it never began.
        result: ``"returned"``, ``"raised"``, or ``"cancelled"``: also of a call that an interruption (Ctrl-C) cancelled.
    """

    function: Callable[..., Any]
    kind: _Kind
    queued_at: float
    started_at: float | None
    ended_at: float
    thread: str | None
    result: Result


Observer = Callable[[Crossing], object]

observers: tuple[Observer, ...] = ()
_lock = threading.RLock()


def add_observer(observer: Observer) -> None:
    """Have `observer` called with a `Crossing` after each call of `sync_to_async` and `async_to_sync`.

    It is called in the thread that made the call and should not block: that may be an event loop's. If it
    raises, that is logged, and it is not called again. It is not told of the calls that observers make.
    """
    global observers
    with _lock:
        observers = (*observers, observer)


def remove_observer(observer: Observer) -> None:
    """Have `observer` not called any more; if it is not, do nothing."""
    global observers
    with _lock:
        observers = tuple(one for one in observers if one != observer)


# Whose crossings these are, for who counts them; it is not a variable of the application's.
tags: ContextVar[tuple[object, ...]] = ContextVar("django_asyncbridge.tags", default=())


def fresh_context() -> Context:
    """Return an empty context, but for the tags of the current one."""
    context = Context()
    if tags.get():
        context.run(tags.set, tags.get())
    return context


class _Telling(threading.local):
    now = False


# Whether this thread is telling observers: they are not told of the calls that they make themselves.
_telling = _Telling()


class Watch:
    """The clock of one crossing."""

    __slots__ = ("_began", "_ended_at", "_function", "_kind", "_queued_at")

    def __init__(self, function: Callable[..., Any], kind: _Kind) -> None:
        self._function = function
        self._kind = kind
        self._queued_at = time.monotonic()
        # When, and in which thread: written at once, since the caller may be let go in this moment.
        self._began: tuple[float, str] | None = None
        self._ended_at: float | None = None

    def running(self, run: Callable[[Callable[[], R]], R]) -> Callable[[Callable[[], R]], R]:
        """Return `run`, which calls its argument, with the beginning and the end noted."""

        def timed(function: Callable[[], R]) -> R:
            __traceback_hide__ = True
            self.begin()
            try:
                return run(function)
            finally:
                self.end()
                del function

        return timed

    def awaiting(self, awaitable: Awaitable[Any]) -> "Observed":
        """Return `awaitable` with the beginning and the end noted."""
        return Observed(self, awaitable)

    def begin(self) -> None:
        """Note that the function begins, in this thread."""
        self._began = time.monotonic(), threading.current_thread().name

    def end(self) -> None:
        """Note that the function has ended."""
        self._ended_at = time.monotonic()

    def tell(self, result: Result) -> None:
        """Tell the observers of the crossing, which has ended for its caller."""
        if _telling.now:
            return
        started_at, thread = self._began or (None, None)
        ended_at = self._ended_at or time.monotonic()
        crossing = Crossing(
            self._function, self._kind, self._queued_at, started_at, ended_at, thread, result
        )
        _telling.now = True
        try:
            for observer in observers:
                if observer in observers:
                    _tell(observer, crossing)
        finally:
            _telling.now = False


def _tell(observer: Observer, crossing: Crossing) -> None:
    try:
        observer(crossing)
    except (Exception, asyncio.CancelledError):
        remove_observer(observer)
        logger.exception("the observer %r of crossings raised and is not called again", observer)


class Observed:
    """An awaitable with a clock."""

    __slots__ = ("_awaitable", "_watch")

    def __init__(self, watch: Watch, awaitable: Awaitable[Any]) -> None:
        self._watch = watch
        self._awaitable = awaitable

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._run().__await__()

    async def _run(self) -> Any:
        __traceback_hide__ = True
        self._watch.begin()
        try:
            return await self._awaitable
        finally:
            self._watch.end()
            del self

    def close(self) -> None:
        """Close it if it is a coroutine: it was not awaited."""
        close(self._awaitable)


def close(awaitable: object) -> None:
    """Close a coroutine that will not be awaited, of which Python would warn; leave other awaitables alone."""
    if isinstance(awaitable, Coroutine | Observed):
        awaitable.close()
