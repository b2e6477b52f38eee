"""`ThreadSensitiveContext`: a thread of its own for a block.

Which thread may touch what. A context object is entered and exited in async code of one event loop;
its fields are touched there only. `executor_of` may be called by any thread and creates what is missing
under `_state.registry_lock`.
"""

import asyncio
import contextlib
import contextvars
import threading
from concurrent.futures import Executor, Future, InvalidStateError
from types import TracebackType
from typing import Any, Self

from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge._leases import Lease
from django_asyncbridge.bridge._workers import WorkerPool

__all__ = ("ThreadSensitiveContext", "executor_of")


class ThreadSensitiveContext:
    """Give the thread-sensitive sync calls of an async block a thread of their own.

    Without it such calls run in the process's one shared thread, unless a sync caller further up waits in
    `async_to_sync`: that caller's thread comes first. Entering it inside another one changes nothing: the outermost
    decides. The thread comes with the first call, from those that earlier blocks have given back, and is given back when the
    block is left, once its calls have ended; waiting for that does not block the event loop. Thread-locals that others have set
    in it are still there. A cancellation while leaving goes through; the thread is then given back later.

    With an `executor` the block uses that one instead, even inside another context or below a waiting
    sync caller, and leaves it running at the end: it belongs to the caller. Such a context can be entered once.

    Tasks started in the block inherit it. Those that outlive it run their calls in the shared thread
    again; with an `executor` their calls are refused.

    Attributes:
        holder: who the block is for, in messages about threads that are in use; set it before the first call.

    Args:
        executor: runs one call at a time in one thread, for instance ``ThreadPoolExecutor(max_workers=1)``; not in
            use by another block at the same time. Or a `WorkerPool`, which lends the block one of its threads.

    Raises:
        RuntimeError: on entering one with an executor a second time.

    Source: ``asgiref.sync.ThreadSensitiveContext``.
    """

    def __init__(self, *, executor: Executor | None = None) -> None:
        self.holder = ""
        self._executor = executor
        self._exited = False
        self._entered = 0
        self.token: contextvars.Token[ThreadSensitiveContext] | None = None
        self._outer_executor: Any = None

    async def __aenter__(self) -> Self:
        if isinstance(self._executor, WorkerPool):
            self._enter_with_executor(Lease(self._executor, self.holder))
        elif self._executor is not None:
            self._enter_with_executor(self._executor)
        elif self.token is not None:
            self._entered += 1
        elif _state.thread_sensitive_context.get(None) is None:
            self.token = _state.thread_sensitive_context.set(self)
            self._entered, self._exited = 1, False
            # At once, although it takes its worker with the first call only: asgiref's wrappers would make an executor.
            with _state.registry_lock:
                _state.context_to_thread_executor[self] = Lease(_state.request_workers, self.holder)
        return self

    def _enter_with_executor(self, executor: Executor) -> None:
        if self.token is not None or self._exited:
            raise RuntimeError(
                "a ThreadSensitiveContext with an executor was entered a second time; tasks that outlived the "
                "first block would run in the second: make a new one for each block"
            )
        self.token = _state.thread_sensitive_context.set(self)
        with _state.registry_lock:
            _state.context_to_thread_executor[self] = executor
        # A waiting sync caller comes before a context; for this block it has to step back.
        self._outer_executor = _state.current_executor.get()
        _state.current_executor.set(None)

    async def __aexit__(
        self,
        exc: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self.token is None:
            return
        self._entered -= 1
        if self._entered > 0:
            return
        executor = self._leave()
        if executor is not None and (self._executor is None or executor is not self._executor):
            await _shut_down(executor)

    def _leave(self) -> Executor | None:
        """End the block for everybody who inherited it, and return the executor it used."""
        assert self.token is not None
        # ValueError: entered in another context, as test fixtures do; there is nothing to put back here.
        with contextlib.suppress(ValueError):
            _state.thread_sensitive_context.reset(self.token)
            if self._executor is not None:
                _state.current_executor.set(self._outer_executor)
        self.token = self._outer_executor = None
        with _state.registry_lock:
            self._exited = True
            return _state.context_to_thread_executor.pop(self, None)


async def _shut_down(executor: Executor) -> None:
    """Wait until `executor` has run what it has."""
    if isinstance(executor, Lease):
        calls = executor.give_back()
        if calls is not None:
            await asyncio.wrap_future(calls)
        return
    # Somebody else's, who knows the registry: in another thread, since it may need this event loop to end.
    ended: Future[None] = Future()

    def join() -> None:
        executor.shutdown()
        # InvalidStateError: the task that waited was cancelled.
        with contextlib.suppress(InvalidStateError):
            ended.set_result(None)

    try:
        threading.Thread(target=join, name="asyncbridge-join", daemon=True).start()
    except RuntimeError:
        # No thread can start any more (interpreter shutdown, a limit): the other one ends by itself.
        executor.shutdown(wait=False)
    else:
        await asyncio.wrap_future(ended)


def executor_of(context: ThreadSensitiveContext) -> Executor | None:
    """Return the executor of an inherited context; None if its block has been left.

    Raises:
        RuntimeError: when its block has been left and had an executor of the caller's.
    """
    # Only what asgiref's class has as well is used here: its contexts may come this way too.
    with _state.registry_lock:
        if not getattr(context, "_exited", False):
            executor = _state.context_to_thread_executor.get(context)
            if executor is None:
                # setdefault: a finalizer that ran just now may have made one.
                lease = Lease(_state.request_workers, getattr(context, "holder", ""))
                executor = _state.context_to_thread_executor.setdefault(context, lease)
            return executor
    if context._executor is None:
        return None
    raise RuntimeError(
        "this task was started inside a ThreadSensitiveContext with an executor and has outlived it; "
        "wait for such tasks before the block ends, or start them outside"
    )
