"""What iterating in both directions shares: context variables that follow, names, waiting to the end.

Which thread may touch what. `follow` runs in the thread of the loop or caller that begins a step, while the
context it changes is not in use; the rest keeps no state.
"""

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import Context
from typing import Any, TypeVar

from django_asyncbridge.bridge import _mirror

__all__ = ("Changes", "Variables", "Watch", "close_method", "error_of", "named", "to_the_end")

F = TypeVar("F", bound=Callable[..., Any])

#: What one side changed among the context variables, for the other; None for nothing.
Changes = _mirror._Changes | None


class Variables:
    """The context variables of an iteration: a context of its own that follows the consumer's, and back.

    The iterable runs in one and the same `context` throughout, so tokens hold from item to item.

    Args:
        given: a context to run in instead, which follows nothing and from which nothing is carried back.
    """

    def __init__(self, given: Context | None = None) -> None:
        self._given = given
        self._context = given
        self._there: _mirror._Tokens = {}
        self._here: _mirror._Tokens = {}

    @property
    def context(self) -> Context:
        """The context in which the iterable runs; a copy of the current one if this is the first use."""
        if self._context is None:
            self._context = contextvars.copy_context()
        return self._context

    def follow(self) -> None:
        """Give the iterable the values of the current context; while its own is not in use."""
        if self._given is None:
            changes = _mirror._changes(self.context, contextvars.copy_context())
            if changes is not _mirror._NO_CHANGES:
                self.context.run(_mirror._apply, changes, self._there)

    def take_over(self, changes: Changes) -> None:
        """Give the current context what the iterable changed in its own."""
        if changes is not None and self._given is None:
            _mirror._apply(changes, self._here)
            _mirror.arrived()


class Watch:
    """Notices what changes among the variables of the current context, from its making on."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen = contextvars.copy_context()

    def changes(self) -> Changes:
        """Return what has changed since this was last asked."""
        now = contextvars.copy_context()
        changes = _mirror._changes(self._seen, now)
        if changes is _mirror._NO_CHANGES:
            return None
        self._seen = now
        return changes


def close_method(iterable: object, iterator: object, name: str) -> Callable[[], Any] | None:
    """Return the method `name` that closes an iterator, if the iterator is ours to close.

    It is if it was made for this iteration, or if it is a generator. An open file or a database cursor that was passed in
    is its own iterator, and belongs to whoever opened it.
    """
    if iterator is iterable and not isinstance(iterator, (Generator, AsyncGenerator)):
        return None
    return getattr(iterator, name, None)


def error_of(error: BaseException | type[BaseException], value: object) -> BaseException:
    """Return the exception that the arguments of a generator's ``throw`` mean; the older form has two and more."""
    if isinstance(error, BaseException):
        return error
    if isinstance(value, BaseException):
        return value
    return error() if value is None else error(value)


def named(function: F, name: str) -> F:
    """Give a function the name that messages are to show."""
    function.__qualname__, function.__module__ = name, ""
    return function


async def to_the_end(future: "asyncio.Future[Any]") -> None:
    """Wait until `future` is done, whatever happens; a cancellation meanwhile takes effect then."""
    interruption: asyncio.CancelledError | None = None
    try:
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as again:
                interruption = again
        if interruption is not None:
            raise interruption
    finally:
        # The error's traceback refers to this frame; nothing may lead from here back to the error.
        del interruption
