"""`SyncToAsync`: a sync function as a coroutine function whose body runs in a thread.

The way of one call: `_home` decides on the executor, `_mirror.Passage` takes the context variables along, a
`_call.Call` is submitted and awaited, `thread_handler` runs the function in the worker, `Passage.back` brings changed context
variables back. `_routing` below is the whole rule of where thread-sensitive work runs.

Which thread may touch what. A `SyncToAsync` is not changed after its creation and may be called from any loop in any
thread. `thread_handler` runs in the worker, all else in the loop's thread.
"""

import asyncio
import contextvars
import functools
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, Generic, ParamSpec, TypeVar, cast

from django_asyncbridge.bridge import _fork, _state, _wrapping
from django_asyncbridge.bridge._call import Call, Hold, logger
from django_asyncbridge.bridge._contexts import executor_of
from django_asyncbridge.bridge._mirror import Passage
from django_asyncbridge.bridge.current_thread_executor import _ExecutorEndedError

__all__ = ("SyncToAsync",)

P = ParamSpec("P")
R = TypeVar("R")


class SyncToAsync(Generic[P, R]):
    """Turn a sync function into a coroutine function that runs it in a thread.

    Where it runs: thread-sensitive functions run in the home thread of the call chain: the nearest sync caller
    that waits in `async_to_sync`, else the thread of the enclosing `ThreadSensitiveContext`, else the process's
    one shared thread. Others run in the executor given, else in the event loop's default one.

    Context variables: the function sees those of the calling task, and what it changes is changed in the task
    when the call ends. Tokens made in one call can be reset in the next of the same task.

    Cancellation: a call that still waits for its thread is withdrawn and never runs. One that runs is waited for: its
    cancellation goes to what the function waits for in `async_to_sync` (now or next), and takes effect
    when the function has ended. If the function then raised an exception, that is the cause of the CancelledError
    and is logged as a warning.

    A function that raises StopIteration raises RuntimeError here, with the StopIteration as its cause.

    Args:
        func: the sync function, method, partial or callable object.
        thread_sensitive: whether it must run in the home thread.
        executor: where to run it instead of the loop's default executor; only with ``thread_sensitive=False``.
        context: run it in this context instead of a copy of the task's; nothing is carried back from it.

    Raises:
        TypeError: for a coroutine function or a generator function, for something that cannot be called, or for an executor
            together with ``thread_sensitive=True``.

    Source: ``asgiref.sync.SyncToAsync``.
    """

    threadlocal = _state.threadlocal
    single_thread_executor: Executor = _state.shared_worker
    thread_sensitive_context = _state.thread_sensitive_context
    deadlock_context = _state.deadlock_context
    context_to_thread_executor = _state.context_to_thread_executor

    def __init__(
        self,
        func: Callable[P, R],
        thread_sensitive: bool = True,
        executor: Executor | None = None,
        context: contextvars.Context | None = None,
    ) -> None:
        _refuse_unfit(func)
        if thread_sensitive and executor is not None:
            raise TypeError(
                "executor= was given to a thread-sensitive sync_to_async, which has to run in its home "
                "thread; pass thread_sensitive=False with it"
            )
        functools.update_wrapper(self, func)
        self.func = func
        self.context = context
        self._thread_sensitive = thread_sensitive
        self._executor = executor
        self._described = _wrapping.describe(func)
        _wrapping.markcoroutinefunction(self)
        if hasattr(func, "__self__"):
            self.__self__ = func.__self__

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function in its thread and return what it returns.

        Raises:
            RuntimeError: when the call could never run: its thread is the one that runs this event loop, or is held by
                a call further up that would wait for this one.
        """
        __traceback_hide__ = True
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        child = functools.partial(self.func, *args, **kwargs)
        call, passage = self._begin(loop, task, child)
        closed = False
        lost: Exception | None = None
        try:
            return cast("R", await call)
        except GeneratorExit:
            # Whoever closes a coroutine may be anybody, in any context, which is not to be changed.
            closed = True
            raise
        except asyncio.CancelledError as cancelled:
            lost = call.lost_error
            if lost is None:
                raise
            logger.warning("%s raised after its call was cancelled", self._described, exc_info=lost)
            raise cancelled from lost
        finally:
            if call.done() and not closed:
                passage.back()
            else:
                call.abandon()
            # The traceback of an error keeps this frame; nothing may lead from here back to the error.
            del call, passage, child, task, lost

    def _begin(
        self,
        loop: asyncio.AbstractEventLoop,
        task: "asyncio.Task[Any] | None",
        child: Callable[[], R],
    ) -> tuple[Call, Passage]:
        """Submit the call to the thread it belongs to."""
        while True:
            executor, hold = self._home(loop)
            mark = None if hold is None else (self.deadlock_context, hold)
            passage = Passage(task, self.context, mark)
            call = Call(loop, self._described, hold)
            work = functools.partial(
                self.thread_handler, loop, sys.exc_info(), call.children, passage.run, child
            )
            try:
                call.submit(executor, work)
            except _ExecutorEndedError:
                # The sync caller stopped waiting in this moment: somewhere else is home now.
                passage.back()
            except BaseException:
                if call.abandon():
                    passage.back()
                raise
            else:
                return call, passage

    def _home(self, loop: asyncio.AbstractEventLoop) -> tuple[Executor | None, Hold | None]:
        """Return where this call has to run, and its hold on the shared thread if it is there."""
        if not self._thread_sensitive:
            return self._executor, None
        caller = _state.waiting_executor()
        if caller is not None and caller._nearest_open() is not None:
            return caller, None
        context = self.thread_sensitive_context.get(None)
        if context is not None and (executor := executor_of(context)) is not None:
            return executor, None
        # Tasks that were started with a context of their own below a waiting sync caller.
        caller = _state.loop_thread_executors.get(loop)
        if caller is not None and caller._nearest_open() is not None:
            return caller, None
        return self.single_thread_executor, self._hold_shared_thread()

    def _hold_shared_thread(self) -> Hold:
        holder = self.deadlock_context.get(None)
        if holder:
            raise RuntimeError(
                f"sync_to_async({self._described}) would deadlock: the process's shared thread is running "
                f"{getattr(holder, 'caller', 'another call')}, from which this call was started; use "
                "async_to_sync() there, or enter a ThreadSensitiveContext here"
            )
        return Hold(self._described)

    def __get__(self, parent: Any, objtype: Any) -> Callable[P, Coroutine[Any, Any, R]]:
        """Bind to an instance as a method does; through the class, return the wrapper itself."""
        if parent is None:
            return self
        return _wrapping.bind(self.__call__, self.func, parent)

    def thread_handler(
        self,
        loop: asyncio.AbstractEventLoop,
        exc_info: Any,
        task_context: Any,
        func: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Run ``func(*args, **kwargs)`` in the worker, as seen from the task that waits.

        Subclasses may wrap it, to do something in the worker before and after each call.

        Args:
            loop: the event loop that waits; `async_to_sync` in the function uses it.
            exc_info: what `sys.exc_info` returned in the task: the function sees that exception as being handled.
            task_context: list in which tasks that the function waits for are kept meanwhile.
            func: calls its one argument in the task's context variables.
            args: one `functools.partial` of the wrapped function.
            kwargs: none.
        """
        __traceback_hide__ = True
        outer = _state.caller_of_thread()
        _state.set_caller_of_thread((loop, _fork.pid(), task_context))
        try:
            if exc_info[1] is None:
                return func(*args, **kwargs)
            context = exc_info[1].__context__
            try:
                raise exc_info[1]
            except BaseException as handled:  # noqa: BLE001  # the task is handling it, whatever it is
                _wrapping.restore_exception(handled, exc_info[2], context)
                return func(*args, **kwargs)
        finally:
            _state.set_caller_of_thread(outer)
            # The traceback of an error keeps this frame.
            context = None
            del outer, exc_info, task_context, func, args, kwargs


def _refuse_unfit(func: object) -> None:
    if not callable(func) or _wrapping.is_async(func):
        raise TypeError(
            f"sync_to_async can only be applied to sync functions, not to {func!r}"
            + ("; it can be awaited as it is" if callable(func) else "")
        )
    _wrapping.refuse_generator_function(func, "sync_to_async")
