"""A new event loop for one coroutine, when no loop waits for the thread that calls `async_to_sync`.

The loop runs in a thread of its own, so that the calling thread is free for the thread-sensitive work of the coroutine.
Both threads meet at the end: the loop's thread has ended, with every task and generator of the loop, before the
call returns.

Which thread may touch what. The loop belongs to its thread. The calling thread waits for `ended`, which that thread
completes last, and until then serves its executor: what is cancelled at the end may still need it.
"""

import asyncio
import itertools
import sys
import threading
from concurrent.futures import Future

from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge._contexts import AsyncSingleThreadContext, loop_worker_of
from django_asyncbridge.bridge._run import Run

__all__ = ("run_on_own_loop",)

_numbers = itertools.count(1)


def run_on_own_loop(run: Run) -> None:
    """Run a coroutine on a new event loop and wait until the loop is closed; in the waiting thread.

    The loop runs in the thread of the enclosing `AsyncSingleThreadContext` if there is one. Tasks that the coroutine
    leaves behind are cancelled and awaited, async generators closed.

    Raises:
        RuntimeError: when that thread runs the loop of a call further up, which waits for this one.
        BaseException: what ended the loop itself, such as SystemExit in a task.
    """
    ended: Future[None] = Future()
    context = _state.async_single_thread_context.get(None)
    try:
        worker = None if context is None else loop_worker_of(context)
        if context is None or worker is None:
            _wait_for_new_thread(run, ended)
        else:
            _refuse_busy_thread(context, run)
            worker.submit(_run_loop_of, context, run, ended)
            run.wait(ended)
        ended.result()
    finally:
        # The traceback of an error keeps this frame; nothing may lead from here back to the error.
        del ended, run


def _refuse_busy_thread(context: AsyncSingleThreadContext, run: Run) -> None:
    """Refuse a coroutine that would wait for a thread which waits for that coroutine."""
    # A waiting caller can be hidden from its context; the loop that waits for this thread cannot.
    loop = _state.calling_loop()
    caller = None if loop is None else _state.loop_thread_executors.get(loop)
    if context.busy_for is not None and context.busy_for in (caller, *run.executor._chain()):
        raise RuntimeError(
            f"async_to_sync({run.described}) would deadlock: it needs an event loop of its own in the one thread of "
            "the AsyncSingleThreadContext, and that thread runs the loop of a call further up, which waits for "
            "this one; leave out force_new_loop=True"
        )


def _run_loop_of(context: AsyncSingleThreadContext, run: Run, ended: "Future[None]") -> None:
    context.busy_for = run.executor
    try:
        _run_loop(run, ended)
    finally:
        context.busy_for = None
        del run, ended


def _wait_for_new_thread(run: Run, ended: "Future[None]") -> None:
    name = f"asyncbridge-loop-{next(_numbers)}"
    thread = threading.Thread(target=_run_loop, args=(run, ended), name=name, daemon=True)
    try:
        if _start(thread, run, ended):
            try:
                run.wait(ended)
            finally:
                if ended.done():
                    thread.join()
        else:
            # Without a thread the coroutine can do everything but call back into this one, and that raises.
            _run_loop(run, ended)
    finally:
        del run, ended


def _start(thread: threading.Thread, run: Run, ended: "Future[None]") -> bool:
    """Start the loop's thread; False if no thread can start any more (interpreter shutdown, a limit)."""
    if sys.is_finalizing():  # it would be started, but never run
        return False
    try:
        thread.start()
    except BaseException as error:
        if isinstance(error, RuntimeError) and thread.ident is None:
            return False
        # A signal handler's, such as Ctrl-C: what `Run.wait` does with it, a moment earlier. A thread that
        # is not known by its ident yet finds the coroutine withdrawn or cancelled, and ends.
        run.interrupt()
        if thread.ident is not None:
            run.wait(ended)
            thread.join()
        raise
    finally:
        del run, ended
    return True


def _run_loop(run: Run, ended: "Future[None]") -> None:
    """Run the loop until the coroutine and all that it started have ended; in the loop's thread."""
    try:
        # With a factory the runner leaves the thread's current event loop alone.
        runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        loop = runner.get_loop()
        _state.loop_thread_executors[loop] = run.executor
        try:
            with runner:
                run.start(loop)
                if run.task is not None:
                    loop.run_until_complete(run.task)
        finally:
            # A child forked in the middle finds the registry emptied.
            _state.loop_thread_executors.pop(loop, None)
    except BaseException as error:  # noqa: BLE001  # it belongs to the waiting thread
        ended.set_exception(error)
    else:
        ended.set_result(None)
    finally:
        del run, ended
