"""Iterate over sync iterables in async code, and over async ones in sync code.

`iterate_in_thread` has a sync iterable advanced in its thread, `iterate_on_loop` an async iterable on its event
loop. `sync_to_async` of a generator function and `async_to_sync` of an async generator function are functions
that do so with each generator they make.

How it is done is in `_thread_iteration` and `_loop_iteration`. Which thread may touch what: a `ThreadIterator` belongs to
the thread of the event loop that iterates, a `LoopIterator` to the thread that began to iterate.
"""

from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Iterable,
)
from concurrent.futures import Executor
from contextvars import Context
from types import TracebackType
from typing import Self, TypeVar

from django_asyncbridge.bridge import _wrapping
from django_asyncbridge.bridge._iterating import error_of
from django_asyncbridge.bridge._loop_iterator import LoopIterator
from django_asyncbridge.bridge._thread_iteration import Feed

__all__ = (
    "LoopIterator",
    "ThreadIterator",
    "iterate_in_thread",
    "iterate_on_loop",
)

Y = TypeVar("Y")

# An item then costs about a twelfth of a `sync_to_async` call; each doubling halves that, down to the item's own cost.
_AHEAD = 16


class ThreadIterator(AsyncIterator[Y]):
    """The async iterator that `iterate_in_thread` returns; also an async context manager that closes it.

    Close it, or iterate to the end: ``async with`` does, and ``contextlib.aclosing``. One that is dropped in the middle
    is closed by its event loop, as async generators are, at the latest when the loop ends.

    Like an async generator it is advanced by one task at a time.
    """

    def __init__(self, feed: Feed[Y]) -> None:
        self._items = feed.items()

    def __anext__(self) -> Awaitable[Y]:
        """Wait for the next item.

        Cancellation: what the iterable is waiting for in `async_to_sync` is cancelled, the iterable is waited for
        and closed in its thread, and the task ends cancelled.

        Raises:
            RuntimeError: when another task is waiting for an item; when the thread of the iteration is not to be had
                any more, since the context it belonged to has ended.
        """
        return self._items.__anext__()

    def athrow(
        self,
        error: BaseException | type[BaseException],
        value: object = None,
        traceback: TracebackType | None = None,
        /,
    ) -> Awaitable[Y]:
        """Raise `error` in a generator, in its thread, where it stands, and wait for its next item.

        Items that it made ahead are lost. An iterator that is no generator ends with the error.

        Args:
            error: the exception. With its class, it is the `value` or made of it, as Python 3.11 has it.
            value: see above.
            traceback: not used; an exception has its own.
        """
        return self._items.athrow(error_of(error, value))

    def aclose(self) -> Awaitable[None]:
        """End the iteration, and close the generator in its thread.

        Waits for the item that is being made. A cancellation takes effect when the generator is closed.
        What was never begun is left as it is.

        Raises:
            RuntimeError: when a task is waiting for an item.
            BaseException: what the generator raises when it is closed.
        """
        return self._items.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.aclose()


def iterate_in_thread(
    iterable: Iterable[Y],
    *,
    ahead: int = _AHEAD,
    thread_sensitive: bool = True,
    executor: Executor | str | None = None,
    context: Context | None = None,
) -> ThreadIterator[Y]:
    """Iterate over a sync iterable in async code: it runs in a thread, ``async for`` gets its items.

    Example::

        async with iterate_in_thread(rows(), ahead=100) as items:
            async for row in items:
                await send(row)

    Each item is there as soon as it is made. To save crossings the thread goes on meanwhile, until `ahead` items are
    made that nobody has asked for yet; a thread-sensitive iterable for a millisecond at most, because then others
    may be waiting for that thread. The thread never waits for the consumer, whose own thread-sensitive calls run between the items.
    Running ahead begins with the second item. What an iterable does ahead of its consumer is done even if the consumer
    stops; if that matters, or if the iterable waits for something its consumer does, pass ``ahead=0``.

    Where it runs: ``iter()``, every item and the closing in one thread: with ``thread_sensitive=True`` the home thread of the task
    that asks for the first item. Otherwise in the executor, each crossing in any of its threads, one at a time.

    Context variables: the iterable sees those of the consumer, and what it changes is changed in the consumer as
    it gets the next item. Tokens hold from item to item.

    Closing: when the consumer stops (see `ThreadIterator`), a generator is closed in its thread, and so is an iterator that
    ``iter()`` made. An iterator passed in that is no generator, such as an open file, stays open.

    Args:
        iterable: what to iterate over.
        ahead: number of items that may be made before they are asked for, from 0.
        thread_sensitive: whether it must run in the home thread.
        executor: where to run it instead; only with ``thread_sensitive=False``.
        context: run it in this context instead of one that follows the consumer's; nothing is carried back from it.

    Raises:
        TypeError: for something that cannot be iterated over, or for an executor together with ``thread_sensitive=True``.
        ValueError: when `ahead` is negative.
    """
    _refuse_not_iterable(iterable)
    _refuse_ahead(ahead)
    _refuse_executor(thread_sensitive, executor)
    return ThreadIterator(Feed(iterable, ahead, thread_sensitive, executor, context))


def _refuse_not_iterable(iterable: object) -> None:
    if isinstance(iterable, Iterable) or hasattr(type(iterable), "__getitem__"):
        return
    hint = ""
    if isinstance(iterable, AsyncIterable):
        hint = "; iterate over it with 'async for' as it is"
    elif _wrapping.is_generator_function(iterable):
        hint = "; call the generator function"
    raise TypeError(f"iterate_in_thread needs an iterable, not {iterable!r}{hint}")


def _refuse_ahead(ahead: object) -> None:
    if not isinstance(ahead, int) or isinstance(ahead, bool):
        raise TypeError(f"ahead= is a number of items, not {ahead!r}; pass 0 for none")
    if ahead < 0:
        raise ValueError(f"ahead={ahead} is negative; pass 0 for no items ahead")


def _refuse_executor(thread_sensitive: bool, executor: Executor | str | None) -> None:
    if thread_sensitive and executor is not None:
        raise TypeError(
            "executor= was given to a thread-sensitive iteration, which has to run in its home thread; "
            "pass thread_sensitive=False with it"
        )


def iterate_on_loop(iterable: AsyncIterable[Y], *, force_new_loop: bool = False) -> LoopIterator[Y]:
    """Iterate over an async iterable in sync code: it runs on an event loop, ``for`` gets its items.

    Example::

        with iterate_on_loop(messages()) as items:
            for message in items:
                print(message)

    Each item is made when it is asked for. The calling thread waits, and runs the thread-sensitive work of the
    iterable meanwhile, as in `async_to_sync`.

    Where it runs: in one task, on the event loop that waits for the calling thread when the first item is asked for; it then
    ends with the call from that loop at the latest. In a thread that no loop waits for, on an event loop of its
    own, in a thread of its own, until the end of the iteration: what it starts goes on between the items.
    Tasks that it leaves on a loop of its own are cancelled and awaited at the end, async generators closed.

    Context variables: the iterable sees those of the caller, and what it changes is changed in the caller as it
    gets the next item. Tokens hold from item to item.

    Closing: when the consumer stops (see `LoopIterator`), an async generator is closed, and so is an iterator that
    ``aiter()`` made. An iterator passed in that is no generator stays open.

    Args:
        iterable: what to iterate over.
        force_new_loop: run on an event loop of its own even if one waits for the calling thread.

    Raises:
        TypeError: for something that cannot be iterated over with ``async for``.
    """
    _refuse_not_async_iterable(iterable)
    return LoopIterator(iterable, force_new_loop)


def _refuse_not_async_iterable(iterable: object) -> None:
    if isinstance(iterable, AsyncIterable):
        return
    hint = ""
    if isinstance(iterable, Iterable):
        hint = "; iterate over it with 'for' as it is"
    elif _wrapping.is_async_generator_function(iterable):
        hint = "; call the async generator function"
    raise TypeError(f"iterate_on_loop needs an async iterable, not {iterable!r}{hint}")
