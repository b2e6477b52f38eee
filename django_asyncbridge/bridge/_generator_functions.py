"""What the wrappers of the bridge make of generator functions, and how that looks to type checkers.

Which thread may touch what. The objects are not changed after their creation and may be called in any thread. A call
only makes a generator, and binds its arguments; nothing of its body runs.

Source: promise P9; field failures C60-C62.
"""

import functools
from abc import abstractmethod
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
)
from concurrent.futures import Executor
from contextvars import Context
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

from django_asyncbridge.bridge import _wrapping
from django_asyncbridge.bridge.iteration import (
    LoopIterator,
    ThreadIterator,
    iterate_in_thread,
    iterate_on_loop,
)

__all__ = ("AsyncGeneratorToSync", "GeneratorToAsync", "ThreadCall")

P = ParamSpec("P")
Y = TypeVar("Y")
R_co = TypeVar("R_co", covariant=True)


class ThreadCall(Coroutine[Any, Any, R_co]):
    """What type checkers see of the result of a `sync_to_async` function; at run time there is none of it.

    The annotation ``Iterator[Y]`` or ``Generator[Y, None, None]`` may be that of a generator function, whose result is a
    `ThreadIterator`, or of a function that returns an iterator, whose result is a coroutine. A type checker
    sees the annotation only; so for these it is both, and for every other type a coroutine.
    """

    @abstractmethod
    def __aiter__(self: "ThreadCall[Iterator[Y]]") -> AsyncIterator[Y]: ...

    @abstractmethod
    def __anext__(self: "ThreadCall[Iterator[Y]]") -> Awaitable[Y]: ...

    @abstractmethod
    def athrow(
        self: "ThreadCall[Iterator[Y]]",
        error: BaseException | type[BaseException],
        value: object = None,
        traceback: TracebackType | None = None,
        /,
    ) -> Awaitable[Y]:
        """See `ThreadIterator.athrow`."""

    @abstractmethod
    def aclose(self: "ThreadCall[Iterator[Y]]") -> Awaitable[None]:
        """See `ThreadIterator.aclose`."""

    @abstractmethod
    async def __aenter__(self: "ThreadCall[Iterator[Y]]") -> ThreadIterator[Y]: ...

    @abstractmethod
    async def __aexit__(
        self: "ThreadCall[Iterator[Y]]",
        exc: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None: ...


async def _async_generator_function() -> AsyncGenerator[None, None]:
    """Lend its code's flags; never called."""
    yield  # pragma: no cover


class _Wrapper:
    """What a callable that looks like `function` needs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)  # type: ignore[arg-type]  # any object with a __dict__ will do
        self.func = function
        owner = getattr(function, "__self__", None)
        if owner is not None:
            self.__self__ = owner


class GeneratorToAsync(_Wrapper, Generic[P, Y]):
    """Turn a generator function into a function that returns a `ThreadIterator`; see `iterate_in_thread`.

    `inspect.isasyncgenfunction` says True of it.

    Args:
        func: the generator function.
        thread_sensitive: whether the generators must run in the home thread.
        executor: where to run them instead; only with ``thread_sensitive=False``.
        context: run them in this context, one at a time, instead of one that follows the consumer's.

    Raises:
        TypeError: for an executor together with ``thread_sensitive=True``.
    """

    # What inspect looks at.
    __code__ = _async_generator_function.__code__
    __defaults__ = None
    __kwdefaults__ = None

    def __init__(
        self,
        func: Callable[P, Generator[Y, Any, Any]],
        *,
        thread_sensitive: bool,
        executor: Executor | str | None,
        context: Context | None,
    ) -> None:
        super().__init__(func)
        self._iterate = functools.partial(
            iterate_in_thread,
            thread_sensitive=thread_sensitive,
            executor=executor,
            context=context,
        )
        # Wrong arguments are wrong at once.
        self._iterate(())

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> ThreadIterator[Y]:
        """Return an async iterator over what the generator yields in its thread."""
        return self._iterate(self.func(*args, **kwargs))

    def __get__(self, parent: Any, objtype: Any) -> Callable[P, ThreadIterator[Y]]:
        """Bind to an instance as a method does; through the class, return the wrapper itself."""
        return self if parent is None else _wrapping.bind(self, self.func, parent)


class AsyncGeneratorToSync(_Wrapper, Generic[P, Y]):
    """Turn an async generator function into a function that returns a `LoopIterator`; see `iterate_on_loop`.

    Args:
        func: the async generator function.
        force_new_loop: run its generators on event loops of their own even if one waits for the calling thread.
    """

    def __init__(self, func: Callable[P, AsyncIterator[Y]], *, force_new_loop: bool) -> None:
        super().__init__(func)
        self._force_new_loop = force_new_loop

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> LoopIterator[Y]:
        """Return an iterator over what the async generator yields on its loop."""
        return iterate_on_loop(self.func(*args, **kwargs), force_new_loop=self._force_new_loop)

    def __get__(self, parent: Any, objtype: Any) -> Callable[P, LoopIterator[Y]]:
        """Bind to an instance as a method does; through the class, return the wrapper itself."""
        return self if parent is None else _wrapping.bind(self, self.func, parent)
