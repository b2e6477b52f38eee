"""`AsyncToSync`: a coroutine function as a sync function that waits for the coroutine's end.

The way of one call: a `CurrentThreadExecutor` is put into the context, so that thread-sensitive work below finds
the calling thread; a `_run.Run` starts the coroutine on the event loop that waits for this thread, or else
`_own_loop` makes one; meanwhile the calling thread serves its executor; at the end it takes over the coroutine's
context variables.

Which thread may touch what. An `AsyncToSync` is not changed after its creation and may be called from any thread that
runs no event loop. `main_wrap` runs in the loop's thread, all else in the calling thread.
"""

import asyncio
import contextvars
import sys
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast

from django_asyncbridge.bridge import _crossings, _state, _wrapping
from django_asyncbridge.bridge._children import Children
from django_asyncbridge.bridge._crossings import Watch
from django_asyncbridge.bridge._kept_loops import run_on_kept_loop
from django_asyncbridge.bridge._mirror import arrived, carry_back
from django_asyncbridge.bridge._own_loop import LoopFactory
from django_asyncbridge.bridge._run import Outcome, Run
from django_asyncbridge.bridge._single_thread import run_in_single_thread
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor

__all__ = ("AsyncToSync",)

_PUBLIC_MODULE = "django_asyncbridge.bridge.sync"

P = ParamSpec("P")
R = TypeVar("R")


class _Outcome(Protocol):
    """What `main_wrap` hands the outcome to; a concurrent future will do."""

    def done(self) -> bool: ...

    def set_result(self, result: Any, /) -> None: ...

    def set_exception(self, exception: BaseException, /) -> None: ...


class AsyncToSync(Generic[P, R]):
    """Turn a coroutine function into a sync function.

    Where it runs: on the event loop that waits for the calling thread (in `sync_to_async`) if it is running. Else on a
    loop that the calling thread keeps for such calls, until the thread ends: in that thread itself, up to the moment
    where the coroutine, or what it has started, needs that thread for thread-sensitive work; from then on in a worker,
    while the calling thread does that work.

    Context variables: the coroutine sees those of the caller, and what it changes is changed in the caller.

    Cancellation: the coroutine is cancelled when the task that waits for the calling thread is, and when an exception is raised in
    the calling thread by a signal handler (Ctrl-C); that exception is raised once the coroutine has ended. What the
    coroutine leaves behind on a loop of this thread ends with it: tasks are cancelled and awaited, and a warning
    names them; async generators are closed.

    Args:
        awaitable: a coroutine function, or anything whose call returns an awaitable; a warning tells when it is not
            marked as one.
        force_new_loop: run on a new event loop, which is closed at the end, even if one waits for the calling thread.
        loop_factory: makes the event loop if none waits for the calling thread, as ``uvloop.new_event_loop`` does. Each thread
            keeps one loop for each factory, as long as that exists: pass the same function each time.
        timeout: seconds after which the coroutine is cancelled and TimeoutError raised; None for no limit.

    Raises:
        TypeError: for a generator function.
        ValueError: for a negative `timeout`.

    Source: ``asgiref.sync.AsyncToSync``.
    """

    executors = _state.executors
    loop_thread_executors = _state.loop_thread_executors
    async_single_thread_context = _state.async_single_thread_context
    context_to_thread_executor = _state.single_thread_context_executors

    def __init__(
        self,
        awaitable: Callable[P, Coroutine[Any, Any, R]] | Callable[P, Awaitable[R]],
        force_new_loop: bool = False,
        *,
        loop_factory: LoopFactory | None = None,
        timeout: float | None = None,
    ) -> None:
        _wrapping.refuse_generator_function(awaitable, "async_to_sync")
        if timeout is not None and timeout < 0:
            raise ValueError(
                f"timeout must not be negative, or None for no limit; it is {timeout!r}"
            )
        if not _wrapping.is_async(awaitable):
            # A sync function may well return an awaitable, so this is not an error. The line to point at
            # is that of the user, who calls this class or the function in the public module.
            through_function = sys._getframe(1).f_globals.get("__name__") == _PUBLIC_MODULE
            warnings.warn(
                f"async_to_sync was passed a non-async-marked callable: {awaitable!r}",
                stacklevel=3 if through_function else 2,
            )
        _wrapping.look_like(self, awaitable)
        self.awaitable = awaitable
        self.force_new_loop = force_new_loop
        self.loop_factory = loop_factory
        self.timeout = timeout
        self._described = _wrapping.describe(awaitable)
        if hasattr(awaitable, "__self__"):
            self.__self__ = awaitable.__self__

    def _called(self, args: tuple[Any, ...]) -> Callable[..., Any]:
        """Return what observers are told was called; for subclasses whose coroutine calls others."""
        return self.awaitable

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the coroutine to its end and return what it returns.

        Raises:
            RuntimeError: when this thread runs an event loop; when the loop that was to run the coroutine stopped
                in the middle of it.
            TimeoutError: when the coroutine was cancelled at `timeout`.
        """
        __traceback_hide__ = True
        self._refuse_running_loop()
        watch = Watch(self._called(args), "async_to_sync") if _crossings.observers else None
        outcome = Outcome()
        outer = _state.current_executor.get()
        # Ended executors are skipped: a chain of tasks that start one another would keep them all.
        executor = CurrentThreadExecutor(None if outer is None else outer._nearest_open())
        before = contextvars.copy_context()
        before.run(_state.current_executor.set, executor)
        context = [before.copy()]
        awaitable: Any = None
        coroutine: Any = None
        try:
            awaitable = self.awaitable(*args, **kwargs)
            if watch is not None:
                awaitable = watch.awaiting(awaitable)
            # In a forked child there is none, and nobody to be cancelled by.
            loop = _state.calling_loop()
            task_context = None if loop is None else _state.threadlocal.task_context
            coroutine = self.main_wrap(outcome, sys.exc_info(), task_context, context, awaitable)
            self._run(
                Run(self._described, coroutine, awaitable, context[0], executor, outcome), loop
            )
            return cast("R", outcome.result())
        finally:
            executor._abort()
            carry_back(before, context[0], _state.current_executor)
            if watch is not None:
                watch.tell(outcome.kind)
            # The traceback of an error keeps this frame; nothing may lead from here back to the error.
            del outcome, context, before, executor, awaitable, coroutine

    def _run(self, run: Run, loop: asyncio.AbstractEventLoop | None) -> None:
        if self.force_new_loop:
            loop = None
        try:
            if loop is not None and not run.on_loop(loop):
                run = run.again()
                loop = None
            if loop is None:
                self._run_on_own_loop(run)
            if run.interruption is not None:
                raise run.interruption
        except BaseException:
            if run.discard() and run.interruption is None:
                run.outcome.kind = "raised"
            raise
        finally:
            run.interruption = None
            del run

    def _run_on_own_loop(self, run: Run) -> None:
        context = _state.async_single_thread_context.get(None)
        new = self.force_new_loop
        if context is None or not run_in_single_thread(context, run, self.loop_factory, new):
            run_on_kept_loop(run, self.loop_factory, new)

    def _refuse_running_loop(self) -> None:
        if asyncio._get_running_loop() is not None:
            raise RuntimeError(
                "You cannot use AsyncToSync in the same thread as an async event loop: just await "
                f"{self._described} directly"
            )

    def __get__(self, parent: Any, objtype: Any) -> Callable[P, R]:
        """Bind to an instance as a method does; through the class, return the wrapper itself."""
        if parent is None:
            return self
        return _wrapping.bind(self.__call__, self.awaitable, parent)

    async def main_wrap(
        self,
        call_result: _Outcome,
        exc_info: Any,
        task_context: "list[asyncio.Task[Any]] | None",
        context: list[contextvars.Context],
        awaitable: Coroutine[Any, Any, R] | Awaitable[R],
    ) -> None:
        """Await `awaitable` in the loop's thread and hand over what it returns or raises.

        Args:
            call_result: completed with the outcome.
            exc_info: what `sys.exc_info` returned in the caller: the coroutine sees that exception as being handled.
            task_context: list of tasks that the caller waits for; the current one is in it meanwhile.
            context: list of one; replaced by the context at the end.
            awaitable: what to await.
        """
        __traceback_hide__ = True
        arrived()
        task = asyncio.current_task()
        result: Any = None
        error: BaseException | None = None
        try:
            if _cancelled_before(task_context, task):
                _crossings.close(awaitable)
                raise asyncio.CancelledError
            if self.timeout is None and exc_info[1] is None:
                result = await awaitable
            else:
                result = await self._await_as_called(awaitable, exc_info)
        except BaseException as caught:  # noqa: BLE001  # it belongs to the waiting thread
            error = caught
        if task_context is not None and task is not None:
            task_context.remove(task)
        # Before the result: the waiting thread reads it at once.
        context[0] = contextvars.copy_context()
        try:
            if call_result.done():  # the waiting thread has given up
                return
            if error is None:
                call_result.set_result(result)
            else:
                call_result.set_exception(error)
        finally:
            # The error's traceback refers to this frame; nothing may lead from here back to the error.
            del call_result, exc_info, error, result, task, awaitable

    async def _await_as_called(self, awaitable: Awaitable[R], exc_info: Any) -> R:
        """Await with the caller's time limit, and its exception as the one that is being handled."""
        __traceback_hide__ = True
        if exc_info[1] is None:
            return await self._await_in_time(awaitable)
        chained = exc_info[1].__context__
        try:
            raise exc_info[1]
        except BaseException as handled:  # noqa: BLE001  # the caller is handling it, whatever it is
            _wrapping.restore_exception(handled, exc_info[2], chained)
            return await self._await_in_time(awaitable)
        finally:
            del self, awaitable, exc_info, chained

    async def _await_in_time(self, awaitable: Awaitable[R]) -> R:
        __traceback_hide__ = True
        limit = asyncio.timeout(self.timeout)
        try:
            async with limit:
                return await awaitable
        except TimeoutError as error:
            if limit.expired():
                raise TimeoutError(
                    f"{self._described} did not end within {self.timeout} s"
                ) from error
            raise
        finally:
            del awaitable, limit


def _cancelled_before(
    task_context: "list[asyncio.Task[Any]] | None", task: "asyncio.Task[Any] | None"
) -> bool:
    """Say that the caller waits for `task`; True if the caller's cancellation was waiting for it."""
    if task_context is None or task is None:
        return False
    if isinstance(task_context, Children):
        return task_context.join(task)
    task_context.append(task)
    return False
