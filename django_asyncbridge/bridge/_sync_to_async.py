"""`SyncToAsync`: a sync function as a coroutine function whose body runs in a thread.

The way of one call: `_home` decides on the executor, `_mirror.Passage` takes the context variables along, a
`_call.Call` is submitted and awaited, `thread_handler` runs the function in the worker, `Passage.back` brings changed context
variables back. `_home` is also the whole rule of where thread-sensitive work runs. In a process pool a `_processes.ProcessCall`
is submitted instead, which takes no context variables along and does not go through `thread_handler`.

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

from django_asyncbridge.bridge import _crossings, _fork, _state, _wrapping
from django_asyncbridge.bridge._call import Call, logger
from django_asyncbridge.bridge._children import Hold
from django_asyncbridge.bridge._contexts import executor_of
from django_asyncbridge.bridge._crossings import Watch
from django_asyncbridge.bridge._leases import LeaseEndedError
from django_asyncbridge.bridge._mirror import Passage, run_here
from django_asyncbridge.bridge._processes import Job, NoPassage, ProcessCall, is_process_pool
from django_asyncbridge.bridge._workers import WorkerPool
from django_asyncbridge.bridge.current_thread_executor import (
    CurrentThreadExecutor,
    _ExecutorEndedError,
)

__all__ = ("SyncToAsync",)

P = ParamSpec("P")
R = TypeVar("R")


class SyncToAsync(Generic[P, R]):
    """Turn a sync function into a coroutine function that runs it in a thread.

    Where it runs: thread-sensitive functions run in the home thread of the call chain: the nearest sync caller
    that waits in `async_to_sync`, else the thread of the enclosing `ThreadSensitiveContext`, else the process's
    one shared thread. One that is marked as never blocking (`async_safe`) runs right here, on the event loop. Others run in the executor given, else in one of the process's reused workers, of which there
    are 32 at most.

    Context variables: the function sees those of the calling task, and what it changes is changed in the task
    when the call ends. Tokens made in one call can be reset in the next of the same task.

    Cancellation: a call that still waits for its thread is withdrawn and never runs. One that runs is waited for: its
    cancellation goes to what the function waits for in `async_to_sync` (now or next), and takes effect
    when the function has ended; the function can ask with `cancelled` and `check_cancelled`. If it then raised an
    exception, that is the cause of the CancelledError and is logged as a warning. With `abandon_on_cancel` the task is let go at
    once: the function runs on, what it changes in context variables and returns is lost, what it raises is
    logged (as long as the event loop lives; after that a warning says that its result is lost).

    A function that raises StopIteration raises RuntimeError here, with the StopIteration as its cause.

    An executor given by its name is looked up anew for each call: the setting need not be read before. In a
    ``ProcessPoolExecutor``, by name or not, the function runs in another process: it is found there by its name, what goes there and
    comes back is pickled (``pickle.PicklingError`` if it cannot be), no context variables travel, and it cannot learn of its
    cancellation. A pool keeps one call more ready than it has processes; these count as running.

    Args:
        func: the sync function, method, partial or callable object.
        thread_sensitive: whether it must run in the home thread.
        executor: where to run it instead of in a reused worker; only with ``thread_sensitive=False``. An alias of
            ``ASYNCBRIDGE["EXECUTORS"]`` is enough where the Django app is installed.
        context: run it in this context instead of a copy of the task's; nothing is carried back from it.
        abandon_on_cancel: do not wait for the function when the task is cancelled; only with ``thread_sensitive=False``,
            as nothing else may run in a home thread before it has ended.

    Raises:
        TypeError: for a coroutine function or a generator function, for something that cannot be called, or for an executor
            or `abandon_on_cancel` together with ``thread_sensitive=True``.

    Source: ``asgiref.sync.SyncToAsync``.
    """

    threadlocal = _state.threadlocal
    single_thread_executor: Executor = _state.shared_worker
    thread_sensitive_context = _state.thread_sensitive_context
    deadlock_context = _state.deadlock_context
    context_to_thread_executor = _state.context_to_thread_executor
    # For subclasses that are cancelled in a way of their own.
    _call_type: type[Call] = Call

    def __init__(
        self,
        func: Callable[P, R],
        thread_sensitive: bool = True,
        executor: Executor | str | None = None,
        context: contextvars.Context | None = None,
        *,
        abandon_on_cancel: bool = False,
    ) -> None:
        _refuse_unfit(func)
        if thread_sensitive and executor is not None:
            raise TypeError(
                "executor= was given to a thread-sensitive sync_to_async, which has to run in its home "
                "thread; pass thread_sensitive=False with it"
            )
        if thread_sensitive and abandon_on_cancel:
            raise TypeError(
                "abandon_on_cancel=True was given to a thread-sensitive sync_to_async, whose thread nothing else could "
                "use before the function has ended; pass thread_sensitive=False with it"
            )
        functools.update_wrapper(self, func)
        self.func = func
        self.context = context
        self._thread_sensitive = thread_sensitive
        self._executor = executor
        self._abandon_on_cancel = abandon_on_cancel
        self._described = _wrapping.describe(func)
        _wrapping.markcoroutinefunction(self)
        if hasattr(func, "__self__"):
            self.__self__ = func.__self__

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function in its thread and return what it returns.

        Raises:
            RuntimeError: when the call could never run: its thread is the one that runs this event loop, or is held by
                a call further up that would wait for this one.
            LookupError: when there is no executor of the name given.
        """
        __traceback_hide__ = True
        if _state.runs_anywhere is not None and self._runs_here(_state.runs_anywhere):
            return run_here(functools.partial(self.func, *args, **kwargs))
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        watch = Watch(self._called(args), "sync_to_async") if _crossings.observers else None
        call, passage = self._begin(
            loop, task, functools.partial(self.func, *args, **kwargs), watch
        )
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
            if closed or not call.ended():
                call.abandon()
            else:
                passage.back(task, call.ran)
            if watch is not None:
                watch.tell(call.outcome)
            # The traceback of an error keeps this frame; nothing may lead from here back to the error.
            del call, passage, task, lost

    def _called(self, args: tuple[Any, ...]) -> Callable[..., Any]:
        """Return what observers are told was called; for subclasses whose function calls others."""
        return self.func

    def _runs_here(self, runs_anywhere: Callable[[object], bool]) -> bool:
        """Tell whether the function needs no thread, and nobody has said where it is to run."""
        return self._executor is None and self.context is None and runs_anywhere(self.func)

    def _begin(
        self,
        loop: asyncio.AbstractEventLoop,
        task: "asyncio.Task[Any] | None",
        child: Callable[[], R],
        watch: Watch | None,
    ) -> tuple[Call, Passage | NoPassage]:
        """Submit the call to the thread it belongs to, or to a process."""
        call: Call
        passage: Passage | NoPassage
        work: Callable[[], Any]
        refused: Executor | None = None
        while True:
            executor, hold = self._home(loop)
            if self._executor is not None and is_process_pool(executor):
                call, passage, work = self._for_process(loop, child, watch)
            else:
                passage = Passage(task, self.context, hold, self._abandon_on_cancel)
                call = self._call_type(loop, self._described, hold, self._abandon_on_cancel)
                run = passage.run if watch is None else watch.running(passage.run)
                work = functools.partial(
                    self.thread_handler, loop, sys.exc_info(), call.children, run, child
                )
            try:
                call.submit(executor, work)
            except BaseException as error:
                if call.abandon():
                    passage.back(task, ran=False)
                if executor is refused or not self._has_moved(executor, error, refused):
                    raise
                refused = executor
            else:
                return call, passage

    def _for_process(
        self,
        loop: asyncio.AbstractEventLoop,
        child: Callable[[], R],
        watch: Watch | None,
    ) -> tuple[Call, NoPassage, Job]:
        if self.context is not None:
            raise TypeError(
                f"{self._described} cannot be run in a process pool: a call with context=, and an iteration, need "
                "context variables, which do not travel there; use an executor with threads"
            )
        call = ProcessCall(loop, self._described, self._abandon_on_cancel, watch)
        return call, NoPassage(), Job(child, self._described)

    def _has_moved(
        self, executor: Executor, error: BaseException, refused: Executor | None
    ) -> bool:
        """Tell whether a call that `executor` refused has another home now."""
        if isinstance(error, _ExecutorEndedError | LeaseEndedError):
            # The sync caller stopped waiting, or the block was left, in this moment: somewhere else is home now.
            return True
        # The executor of that name was shut down in this moment, since its settings changed, or is broken.
        named = isinstance(self._executor, str) and isinstance(error, RuntimeError)
        return named and refused is None and self._given() is not executor

    def _home(self, loop: asyncio.AbstractEventLoop) -> tuple[Executor, Hold | None]:
        """Return where this call has to run, and its hold on the shared thread if it is there."""
        if not self._thread_sensitive:
            given = _state.default_workers if self._executor is None else self._given()
            if isinstance(given, WorkerPool) and given.is_exhausted():
                return _waiting_thread(given, loop) or given, None
            return given, None
        caller = _state.current_executor.get()
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

    def _given(self) -> Executor:
        """Return the executor that was given, by its name or not.

        Raises:
            LookupError: when there is no executor of that name.
        """
        given = cast("Executor | str", self._executor)
        if not isinstance(given, str):
            return given
        resolve = _state.resolve_executor
        if resolve is None:
            raise LookupError(
                f"{self._described} is to run in the executor {given!r}, but names of executors are those of the setting "
                'ASYNCBRIDGE["EXECUTORS"] and need the Django app; add "django_asyncbridge" to INSTALLED_APPS and '
                "have django.setup() called, or pass an executor object"
            )
        return resolve(given)

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


def _waiting_thread(
    pool: WorkerPool, loop: asyncio.AbstractEventLoop
) -> CurrentThreadExecutor | None:
    """Return the executor of a sync caller up the chain that waits in one of the pool's own threads.

    It has to run the call if all threads of the pool are busy: if they all wait for such calls, no other ever will.
    """
    # A context with an executor of its own hides who waits; so does a context of the task's own.
    hidden = getattr(_state.thread_sensitive_context.get(None), "_outer_executor", None)
    caller = _state.current_executor.get() or hidden or _state.loop_thread_executors.get(loop)
    if caller is None:
        return None
    waiting = (one for one in caller._chain() if one._open and pool.owns(one._work_thread))
    return next(waiting, None)


def _refuse_unfit(func: object) -> None:
    if not callable(func) or _wrapping.is_async(func):
        raise TypeError(
            f"sync_to_async can only be applied to sync functions, not to {func!r}"
            + ("; it can be awaited as it is" if callable(func) else "")
        )
    _wrapping.refuse_generator_function(func, "sync_to_async")
