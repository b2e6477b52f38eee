"""`Feed`: a sync iterable in its thread, and the async generator that its items come out of.

Theory of operation. The items are made in *crossings*: calls of `SyncToAsync`, one at a time, each in a task of its
own, so that the consumer can go on with the first item while the thread makes the next. `Source.produce` makes some
items and returns; it never waits in the thread for the consumer, whose own thread-sensitive calls need that
thread. A crossing begins only while the consumer waits and nothing is left in the `Buffer`. So no more than `ahead`
items are ever made that were not asked for. The first crossing makes one item, the second at most two, and so on up
to ``1 + ahead``: whoever wants one item only, or uses a generator as a context manager, has no more of it run
than that.

The iterable runs in one context through all crossings. When a crossing begins, that context is given the
consumer's variables; each item brings along what the iterable has changed since the one before, and the consumer's
context is given that together with the item. So both see what they would see in a plain ``for`` loop.

Which thread may touch what. `Source` belongs to the thread of the crossing that runs, between crossings to nobody.
`Feed` belongs to the loop's thread. Both use `Buffer`: the thread appends an item, then looks whether it is wanted;
the consumer says that one is wanted, then looks for items. One of the two sees the other's.

Source: promises P1-P7; field failures C61, C71.
"""

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import Executor
from contextvars import Context
from typing import Any, Generic, TypeVar

from django_asyncbridge.bridge import _wrapping
from django_asyncbridge.bridge._iterating import Variables, named, to_the_end
from django_asyncbridge.bridge._sync_to_async import SyncToAsync
from django_asyncbridge.bridge._thread_source import Buffer, Source

__all__ = ("Feed",)

Y = TypeVar("Y")

# Thread-sensitive work runs ahead for at most this long, since others wait for that thread. It is many times the cost
# of a crossing, which is all that running ahead has to make up for.
_AHEAD_SECONDS = 0.001
# For the second and later items of a crossing the thread does not wake the consumer within this time: most likely
# the crossing ends first. A wake costs the thread ten times what a plain item does.
_GATHER_SECONDS = 0.001

# The name of the public module: what users configure should not follow how we cut the private ones.
logger = logging.getLogger("django_asyncbridge.bridge.iteration")


class Feed(Generic[Y]):
    """A sync iterable as seen from the event loop; see the module's theory of operation.

    The home thread is asked for anew by each crossing, since a sync caller can wait in one `async_to_sync` call after another;
    `Source` refuses to go on in another thread.

    Args:
        iterable: what to iterate over, in its thread.
        ahead: how many items may be made that were not asked for.
        thread_sensitive: whether its thread is the home thread.
        executor: where to run it instead; only with ``thread_sensitive=False``.
        context: run it in this context instead of one that follows the consumer's.
    """

    def __init__(
        self,
        iterable: Iterable[Y],
        ahead: int,
        thread_sensitive: bool,
        executor: Executor | str | None,
        context: Context | None,
    ) -> None:
        self._buffer: Buffer[Y] = Buffer()
        seconds = _AHEAD_SECONDS if thread_sensitive else float("inf")
        self._source = Source(iterable, self._buffer, seconds, pinned=thread_sensitive)
        self._described = _wrapping.describe(iterable)
        self._most, self._room = 1 + ahead, 1
        self._variables = Variables(context)
        self._thread_sensitive, self._executor = thread_sensitive, executor
        self._cross: SyncToAsync[..., None] | None = None
        # Of whoever asked last, to find the home thread again.
        self._home: Context | None = None
        self._crossing: asyncio.Task[None] | None = None
        self._waited_for: asyncio.Task[None] | None = None
        self._over = False

    async def items(self) -> AsyncGenerator[Y, None]:
        """Iterate over the items; in the loop's thread.

        What is thrown in here is thrown into a generator in its thread, where it stands.
        """
        __traceback_hide__ = True
        lost: BaseException | None = None
        try:
            while self._buffer.items or await self._more():
                try:
                    yield self._next()
                except GeneratorExit:
                    raise
                except BaseException as error:  # noqa: BLE001  # it belongs to the iterable
                    await self._throw(error)
        except asyncio.CancelledError as cancelled:
            lost = await self._close(cancelled=True)
            if not isinstance(lost, Exception):
                raise
            logger.warning(
                "%s raised after its iteration was cancelled", self._described, exc_info=lost
            )
            raise cancelled from lost
        except BaseException:
            lost = await self._close(cancelled=False)
            if lost is None:
                raise
            raise lost  # noqa: B904  # its context, not its cause
        finally:
            # The error's traceback refers to this frame; nothing may lead from here back to the error.
            del lost, self

    def _next(self) -> Y:
        item, changes = self._buffer.items.popleft()
        self._variables.take_over(changes)
        return item

    async def _more(self) -> bool:
        """Wait for an item; False at the end."""
        __traceback_hide__ = True
        while not self._buffer.items:
            crossing = self._crossing
            if crossing is None:
                if self._buffer.ended is not None:
                    return self._end()
                self._start(self._source.produce, self._room)
                self._room = min(2 * self._room, self._most)
            elif crossing.done():
                self._crossing = None
                crossing.result()
            else:
                await self._wait(crossing)
        return True

    def _end(self) -> bool:
        __traceback_hide__ = True
        error = self._finish()
        try:
            if error is not None:
                raise error
        finally:
            # The error's traceback refers to this frame; nothing may lead from here back to the error.
            del error
        return False

    def _finish(self) -> BaseException | None:
        """Let go of everything; return the error that was the end."""
        error, changes = self._buffer.ended or (None, None)
        self._buffer.ended = None
        self._over = True
        self._variables.take_over(changes)
        self._home = self._cross = self._waited_for = None
        self._variables = Variables()
        return error

    async def _wait(self, crossing: "asyncio.Task[None]") -> None:
        buffer, loop = self._buffer, crossing.get_loop()
        waiter = buffer.waiter = loop.create_future()
        later: asyncio.TimerHandle | None = None
        if crossing is self._waited_for:
            later = loop.call_later(_GATHER_SECONDS, buffer.want)
        else:
            self._waited_for = crossing
            buffer.want()
        try:
            await waiter
        finally:
            buffer.waiter, buffer.wanted = None, False
            if later is not None:
                later.cancel()

    def _start(self, work: Callable[..., None], *args: Any) -> None:
        """Begin a crossing."""
        loop = self._buffer.loop = asyncio.get_running_loop()
        self._variables.follow()
        self._home = contextvars.copy_context()
        if self._cross is None:
            self._cross = SyncToAsync(
                named(lambda work, *args, **kwargs: work(*args, **kwargs), self._described),
                thread_sensitive=self._thread_sensitive,
                executor=self._executor,
                context=self._variables.context,
            )
        self._crossing = loop.create_task(self._cross(work, *args))
        self._crossing.add_done_callback(self._buffer.wake)

    async def _throw(self, error: BaseException) -> None:
        __traceback_hide__ = True
        try:
            await self._settle()
            # What was made ahead is lost: the generator stands behind it.
            self._buffer.items.clear()
            if self._buffer.ended is not None:
                raise error
            self._buffer.stopped = False
            self._start(self._source.throw, [error])
        finally:
            # The error's traceback refers to this frame; nothing may lead from here back to the error.
            del error

    async def _settle(self) -> None:
        """Wait for the end of the crossing that runs, and have it come soon."""
        self._buffer.stopped = True
        if self._crossing is not None:
            await asyncio.wait([self._crossing])
            # Looked at: what kept it from running will keep the next, or was the consumer's own cancellation.
            _ = self._crossing.cancelled() or self._crossing.exception()
            self._crossing = None

    async def _close(self, *, cancelled: bool) -> BaseException | None:
        """End the iteration in its thread; return what that raised. Again does nothing.

        A cancellation meanwhile takes effect when that is done.
        """
        __traceback_hide__ = True
        if self._over:
            return None
        self._over = True
        if self._crossing is not None and cancelled:
            self._crossing.cancel()
        closing = asyncio.get_running_loop().create_task(self._close_source())
        try:
            await to_the_end(closing)
        finally:
            lost = self._finish()
        return closing.exception() or lost

    async def _close_source(self) -> None:
        await self._settle()
        self._buffer.items.clear()
        cross, home = self._cross, self._home
        if not self._source.begun or cross is None or home is None:
            return
        if self._buffer.ended is None:
            # Whoever closes may be anybody: the event loop does it for a consumer that is gone.
            with contextlib.suppress(RuntimeError):
                await cross(self._source.stop, anywhere=False)
        if self._buffer.ended is None:
            loop = asyncio.get_running_loop()
            await loop.create_task(cross(self._source.stop, anywhere=True), context=home)
