"""`AsyncSingleThreadContext`: one thread and one event loop for the coroutines of a block.

Which thread may touch what. A context object is entered and exited in sync code of one thread; its fields are touched there only, but
for `busy_for`, which the thread that runs the loop writes. `_thread_of` may be called by any thread and creates what is missing
under `_state.registry_lock`.
"""

import contextlib
import contextvars
from types import TracebackType
from typing import Self

from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge._kept_loops import LoopSet
from django_asyncbridge.bridge._leases import Lease
from django_asyncbridge.bridge._own_loop import LoopFactory
from django_asyncbridge.bridge._run import Run
from django_asyncbridge.bridge._work import WorkExecutor
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor

__all__ = ("AsyncSingleThreadContext", "run_in_single_thread")


class AsyncSingleThreadContext:
    """Run the coroutines of every `async_to_sync` call in a block in one and the same thread, on one event loop.

    Without it a call from a thread that no event loop waits for uses the event loop of that thread, and moves it to another when
    the coroutine needs the calling thread. Entering it inside another one changes nothing: the outermost decides. The
    loop is closed when the block is left. Where an event loop waits for the calling thread, that loop is used as ever.

    Example::

        with AsyncSingleThreadContext():
            async_to_sync(first)()
            async_to_sync(second)()  # in the same thread as first

    Source: ``asgiref.sync.AsyncSingleThreadContext``.
    """

    def __init__(self) -> None:
        self.token: contextvars.Token[AsyncSingleThreadContext] | None = None
        self._entered = 0
        self._exited = False
        # The executors of the calls whose event loops the thread runs or has to run; under `registry_lock`.
        self.callers: set[CurrentThreadExecutor] = set()
        self.loops = LoopSet()

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
        with _state.registry_lock:
            self.loops.close()


def run_in_single_thread(
    context: AsyncSingleThreadContext, run: Run, factory: LoopFactory | None, new: bool
) -> bool:
    """Run a coroutine in the thread of `context` and wait until all it left has ended.

    Args:
        context: the enclosing block.
        run: the coroutine.
        factory: makes the loop; None for asyncio's.
        new: use a new loop, not the one of the block, and close it at the end.

    Returns:
        False, without having done so, if the block has been left.

    Raises:
        RuntimeError: when that thread runs the loop of a call further up, which waits for this one.
    """
    with _state.registry_lock:
        if context._exited:
            return False
        _refuse_busy_thread(context, run)
        thread = _thread_of(context)
        own = context.loops.take(factory, new)
        context.callers.add(run.executor)
    try:
        own.run(run, thread)
    finally:
        with _state.registry_lock:
            context.callers.discard(run.executor)
            context.loops.put_back(own)
        del run
    return True


def _thread_of(context: AsyncSingleThreadContext) -> WorkExecutor:
    executor = _state.single_thread_context_executors.get(context)
    if isinstance(executor, WorkExecutor):
        return executor
    lease = Lease(_state.loop_workers)
    _state.single_thread_context_executors[context] = lease
    return lease


def _refuse_busy_thread(context: AsyncSingleThreadContext, run: Run) -> None:
    """Refuse a coroutine that would wait for a thread which waits for that coroutine."""
    # A waiting caller can be hidden from its context; the loop that waits for this thread cannot.
    loop = _state.calling_loop()
    caller = None if loop is None else _state.loop_thread_executors.get(loop)
    if not context.callers.isdisjoint((caller, *run.executor._chain())):
        raise RuntimeError(
            f"async_to_sync({run.described}) would deadlock: it needs an event loop of its own in the one thread of "
            "the AsyncSingleThreadContext, and that thread runs the loop of a call further up, which waits for "
            "this one; leave out force_new_loop=True"
        )
