"""`ThreadSensitiveContext` and `AsyncSingleThreadContext`: a thread of its own for a block.

Which thread may touch what. A context object is entered and exited in async code of one event loop (or sync code of
one thread); its fields are touched there only. `executor_of` and `loop_worker_of` may be called by any thread and
create what is missing under `_state.registry_lock`.
"""

import asyncio
import contextlib
import contextvars
import threading
from concurrent.futures import Executor, Future, InvalidStateError
from types import TracebackType
from typing import Any, Self

from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge._workers import Worker
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor

__all__ = ("AsyncSingleThreadContext", "ThreadSensitiveContext", "executor_of", "loop_worker_of")


class ThreadSensitiveContext:
    """Give the thread-sensitive sync calls of an async block a thread of their own.

    Without it such calls run in the process's one shared thread, unless a sync caller further up waits in
    `async_to_sync`: that caller's thread comes first. Entering it inside another one changes nothing: the outermost
    decides. The thread starts with the first call and has ended when the block is left; waiting for that
    does not block the event loop. Cancellation while leaving goes through; the thread then ends by itself.

    With an `executor` the block uses that one instead, even inside another context or below a waiting
    sync caller, and leaves it running at the end: it belongs to the caller. Such a context can be entered once.

    Tasks started in the block inherit it. Those that outlive it run their calls in the shared thread
    again; with an `executor` their calls are refused.

    Args:
        executor: runs one call at a time in one thread, for instance ``ThreadPoolExecutor(max_workers=1)``; not in
            use by another block at the same time.

    Raises:
        RuntimeError: on entering one with an executor a second time.

    Source: ``asgiref.sync.ThreadSensitiveContext``.
    """

    def __init__(self, *, executor: Executor | None = None) -> None:
        self._executor = executor
        self._exited = False
        self._entered = 0
        self.token: contextvars.Token[ThreadSensitiveContext] | None = None
        self._outer_executor: Any = None

    async def __aenter__(self) -> Self:
        if self._executor is not None:
            self._enter_with_executor(self._executor)
        elif self.token is not None:
            self._entered += 1
        elif _state.thread_sensitive_context.get(None) is None:
            self.token = _state.thread_sensitive_context.set(self)
            self._entered, self._exited = 1, False
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
        self._outer_executor = _state.waiting_executor()
        _state.executors.current = None

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
        if self._executor is None and executor is not None:
            await _shut_down(executor)

    def _leave(self) -> Executor | None:
        """End the block for everybody who inherited it, and return the executor it used."""
        assert self.token is not None
        # ValueError: entered in another context, as test fixtures do; there is nothing to put back here.
        with contextlib.suppress(ValueError):
            _state.thread_sensitive_context.reset(self.token)
            if self._executor is not None:
                _state.executors.current = self._outer_executor
        self.token = self._outer_executor = None
        with _state.registry_lock:
            self._exited = True
            return _state.context_to_thread_executor.pop(self, None)


async def _shut_down(executor: Executor) -> None:
    """Wait for `executor`'s thread to end, in another thread: the one that ends may need this event loop."""
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
                executor = _state.context_to_thread_executor.setdefault(context, Worker("request"))
            return executor
    if context._executor is None:
        return None
    raise RuntimeError(
        "this task was started inside a ThreadSensitiveContext with an executor and has outlived it; "
        "wait for such tasks before the block ends, or start them outside"
    )


class AsyncSingleThreadContext:
    """Run the coroutines of every `async_to_sync` call in a block in one and the same thread.

    Without it each call from a thread that no event loop waits for makes a thread for its event loop. Entering it inside
    another one changes nothing: the outermost decides. Leaving waits for the thread to end.

    Example::

        with AsyncSingleThreadContext():
            async_to_sync(first)()
            async_to_sync(second)()  # in the same thread as first

    Source: ``asgiref.sync.AsyncSingleThreadContext``.
    """

    def __init__(self) -> None:
        self.token: contextvars.Token[AsyncSingleThreadContext] | None = None
        self._entered = 0
        # The executor of the call whose event loop the thread runs now; written by that thread.
        self.busy_for: CurrentThreadExecutor | None = None
        self._exited = False

    def __enter__(self) -> Self:
        if self.token is not None:
            self._entered += 1
        elif _state.async_single_thread_context.get(None) is None:
            self.token = _state.async_single_thread_context.set(self)
            self._entered, self._exited = 1, False
        return self

    def __exit__(
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
        with contextlib.suppress(ValueError):
            _state.async_single_thread_context.reset(self.token)
        self.token = None
        with _state.registry_lock:
            self._exited = True
            executor = _state.single_thread_context_executors.pop(self, None)
        if executor is not None:
            executor.shutdown()


def loop_worker_of(context: AsyncSingleThreadContext) -> Executor | None:
    """Return the executor whose thread runs the event loops of `context`; None if its block has been left."""
    with _state.registry_lock:
        if context._exited:
            return None
        executor = _state.single_thread_context_executors.get(context)
        if executor is None:
            executor = _state.single_thread_context_executors.setdefault(context, Worker("loop"))
        return executor
