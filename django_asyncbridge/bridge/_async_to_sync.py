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
from concurrent.futures import Future
from typing import Any, Generic, ParamSpec, TypeVar

from django_asyncbridge.bridge import _state, _wrapping
from django_asyncbridge.bridge._mirror import arrived, restore_context
from django_asyncbridge.bridge._own_loop import run_on_own_loop
from django_asyncbridge.bridge._run import Run
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor

__all__ = ("AsyncToSync",)

_PUBLIC_MODULE = "django_asyncbridge.bridge.sync"

P = ParamSpec("P")
R = TypeVar("R")


class AsyncToSync(Generic[P, R]):
    """Turn a coroutine function into a sync function.

    Where it runs: on the event loop that waits for the calling thread (in `sync_to_async`) if it is running, else on
    a new loop that is closed before the call returns. The calling thread runs the thread-sensitive work
    of the coroutine meanwhile.

    Context variables: the coroutine sees those of the caller, and what it changes is changed in the caller.

    Cancellation: the coroutine is cancelled when the task that waits for the calling thread is, and when an exception is raised in
    the calling thread by a signal handler (Ctrl-C); that exception is raised once the coroutine has ended. Tasks
    that the coroutine started on a new loop are cancelled and awaited when it ends.

    Args:
        awaitable: a coroutine function, or anything whose call returns an awaitable; a warning tells when it is not
            marked as one.
        force_new_loop: run on a new event loop even if one waits for the calling thread.

    Raises:
        TypeError: for a generator function.

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
    ) -> None:
        _wrapping.refuse_generator_function(awaitable, "async_to_sync")
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
        self._described = _wrapping.describe(awaitable)
        if hasattr(awaitable, "__self__"):
            self.__self__ = awaitable.__self__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the coroutine to its end and return what it returns.

        Raises:
            RuntimeError: when this thread runs an event loop; when the loop that was to run the coroutine stopped
                in the middle of it.
        """
        __traceback_hide__ = True
        self._refuse_running_loop()
        result: Future[R] = Future()
        outer = _state.waiting_executor()
        # Ended executors are skipped: a chain of tasks that start one another would keep them all.
        executor = CurrentThreadExecutor(None if outer is None else outer._nearest_open())
        self.executors.current = executor
        context = [contextvars.copy_context()]
        awaitable: Any = None
        coroutine: Any = None
        try:
            awaitable = self.awaitable(*args, **kwargs)
            task_context = getattr(_state.threadlocal, "task_context", None)
            coroutine = self.main_wrap(result, sys.exc_info(), task_context, context, awaitable)
            self._run(Run(self._described, coroutine, awaitable, context[0], executor, result))
            return result.result()
        finally:
            executor._abort()
            restore_context(context[0])
            arrived()
            self.executors.current = outer
            # The traceback of an error keeps this frame; nothing may lead from here back to the error.
            del result, context, executor, awaitable, coroutine

    def _run(self, run: Run) -> None:
        loop = None if self.force_new_loop else _state.calling_loop()
        try:
            if loop is None:
                run_on_own_loop(run)
            elif not run.on_loop(loop):
                run = run.again()
                run_on_own_loop(run)
        except BaseException:
            run.discard()
            raise
        finally:
            del run

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
        call_result: "Future[R]",
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
        if task_context is not None and task is not None:
            task_context.append(task)
        result: Any = None
        error: BaseException | None = None
        try:
            if exc_info[1] is None:
                result = await awaitable
            else:
                chained = exc_info[1].__context__
                try:
                    raise exc_info[1]
                except BaseException as handled:  # noqa: BLE001  # the caller is handling it, whatever it is
                    _wrapping.restore_exception(handled, exc_info[2], chained)
                    result = await awaitable
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
