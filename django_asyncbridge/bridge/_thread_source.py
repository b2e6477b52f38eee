"""`Source`: a sync iterable in its thread, and the `Buffer` through which its items go to the event loop.

The theory of operation is in `_thread_iteration`. Which thread may touch what: `Source` belongs to the thread of the
crossing that runs, between crossings to nobody. Of the `Buffer` both sides use all but `want`, `wake` and `waiter`, which
belong to the loop's thread. The thread appends an item, then looks whether it is wanted; the consumer says that one is
wanted, then looks for items. One of the two sees the other's.
"""

import asyncio
import collections
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Generic, TypeVar

from django_asyncbridge.bridge import _wrapping
from django_asyncbridge.bridge._iterating import Changes, Watch, close_method

__all__ = ("Buffer", "Source")

Y = TypeVar("Y")

_clock = time.monotonic
_END = object()


class Buffer(Generic[Y]):
    """What was made and not yet consumed, and the end: the error that was it, or None."""

    __slots__ = ("ended", "items", "loop", "stopped", "waiter", "wanted")

    def __init__(self) -> None:
        self.items: collections.deque[tuple[Y, Changes]] = collections.deque()
        self.ended: tuple[BaseException | None, Changes] | None = None
        self.stopped = False
        # Whether the thread has to wake the waiter when there is an item.
        self.wanted = False
        self.waiter: asyncio.Future[None] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    def wake(self, _crossing: object = None) -> None:
        """Have the consumer look again; in the loop's thread."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def want(self) -> None:
        """Have the consumer woken by the next item, or by one that is there; in the loop's thread."""
        self.wanted = True
        if self.items:
            self.wake()

    def wake_from_thread(self) -> None:
        """Have the consumer look again; in the thread, which goes on."""
        if not self.wanted or self.loop is None:
            return
        self.wanted = False
        try:
            self.loop.call_soon_threadsafe(self.wake)
        except RuntimeError:  # the loop is closed: nobody consumes any more
            self.stopped = True


class Source(Generic[Y]):
    """The iterable; every method runs in its thread, as one crossing.

    Args:
        iterable: what to iterate over.
        buffer: where the items go.
        seconds: how long a crossing may run ahead.
        pinned: whether all crossings must be in one thread.
    """

    def __init__(
        self, iterable: Iterable[Y], buffer: Buffer[Y], seconds: float, pinned: bool
    ) -> None:
        self.begun = False
        self._described = _wrapping.describe(iterable)
        self._iterable: Iterable[Y] | None = iterable
        self._iterator: Iterator[Y] | None = None
        self._buffer = buffer
        self._seconds = seconds
        self._pinned = pinned
        self._thread: threading.Thread | None = None

    def produce(self, room: int) -> None:
        """Make up to `room` items, at least one, or come to the end."""
        self._run(lambda watch: self._make(room, watch))

    def throw(self, errors: list[BaseException]) -> None:
        """Raise an error in a generator where it stands, and make the next item; end another iterator with it.

        Args:
            errors: the one error, which is taken out: its traceback leads to every frame that has the list.
        """
        self._run(lambda watch: self._throw(errors.pop(), watch))

    def stop(self, anywhere: bool) -> None:
        """End the iteration before its end; in another thread than its own only if it may be `anywhere`."""
        if anywhere or not self._pinned or self._thread is threading.current_thread():
            self._run(lambda _: True)

    def _make(self, room: int, watch: Watch) -> bool:
        """Make items; True at the end of the iterable."""
        __traceback_hide__ = True
        self._refuse_other_thread()
        buffer = self._buffer
        if self._iterator is None:
            assert self._iterable is not None
            self._iterator = iter(self._iterable)
        give_back = _clock() + self._seconds
        while True:
            item: Any = next(self._iterator, _END)
            if item is _END:
                return True
            buffer.items.append((item, watch.changes()))
            item = None
            room -= 1
            if room == 0 or buffer.stopped or _clock() > give_back:
                # The end of the crossing, which comes at once, wakes the consumer as well.
                return False
            buffer.wake_from_thread()

    def _throw(self, error: BaseException, watch: Watch) -> bool:
        __traceback_hide__ = True
        try:
            self._refuse_other_thread()
            if not isinstance(self._iterator, Generator):
                raise error
            try:
                item = self._iterator.throw(error)
            except StopIteration:
                return True
            self._buffer.items.append((item, watch.changes()))
            return False
        finally:
            # The error's traceback refers to this frame; nothing may lead from here back to the error.
            del error

    def _run(self, work: Callable[[Watch], bool]) -> None:
        """Do the work of one crossing; the end, which may be an error, goes behind the items."""
        __traceback_hide__ = True
        watch = Watch()
        over, error = True, None
        try:
            try:
                over = work(watch)
            finally:
                if over:
                    self._close()
        except BaseException as caught:  # noqa: BLE001  # whatever it is belongs to the consumer
            error = caught
        if over:
            self._buffer.ended = (error, watch.changes())
        # The error's traceback refers to this frame; nothing may lead from here back to the error.
        del error, work, self

    def _close(self) -> None:
        iterable, self._iterable = self._iterable, None
        iterator, self._iterator = self._iterator, None
        close = close_method(iterable, iterator, "close")
        if close is not None:
            close()

    def _refuse_other_thread(self) -> None:
        here = threading.current_thread()
        if not self.begun:
            self.begun, self._thread = True, here
        elif self._pinned and self._thread is not here:
            raise RuntimeError(
                f"{self._described} was begun in {getattr(self._thread, 'name', None)} and would have to go on in "
                f"{here.name}: the ThreadSensitiveContext or sync caller to which the first thread belonged has ended; "
                "iterate to the end inside it, or pass thread_sensitive=False if the thread does not matter"
            )
