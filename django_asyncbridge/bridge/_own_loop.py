"""A new event loop for one coroutine, when no loop waits for the thread that calls `async_to_sync`.

The loop runs in a thread of its own, so that the calling thread is free for the thread-sensitive work of the coroutine.
Both threads meet at the end: the loop's thread has ended, with every task and generator of the loop, before the
call returns.

Which thread may touch what. The loop belongs to its thread. The calling thread waits for `ended`, which that thread
completes last, and until then serves its executor: what is cancelled at the end may still need it.
"""

import asyncio
import itertools
import threading
from concurrent.futures import Future

from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge._contexts import loop_worker_of
from django_asyncbridge.bridge._run import Run

__all__ = ("run_on_own_loop",)

_numbers = itertools.count(1)


def run_on_own_loop(run: Run) -> None:
    """Run a coroutine on a new event loop and wait until the loop is closed; in the waiting thread.

    The loop runs in the thread of the enclosing `AsyncSingleThreadContext` if there is one. Tasks that the coroutine
    leaves behind are cancelled and awaited, async generators closed.

    Raises:
        BaseException: what ended the loop itself, such as SystemExit in a task.
    """
    ended: Future[None] = Future()
    context = _state.async_single_thread_context.get(None)
    try:
        if context is not None:
            loop_worker_of(context).submit(_run_loop, run, ended)
            run.wait(ended)
        else:
            _wait_for_new_thread(run, ended)
        ended.result()
    finally:
        # The traceback of an error keeps this frame; nothing may lead from here back to the error.
        del ended, run


def _wait_for_new_thread(run: Run, ended: "Future[None]") -> None:
    name = f"asyncbridge-loop-{next(_numbers)}"
    thread = threading.Thread(target=_run_loop, args=(run, ended), name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        # No thread can start any more (interpreter shutdown, a limit); without one the coroutine can do
        # everything but call back into this thread, and that raises.
        _run_loop(run, ended)
    else:
        run.wait(ended)
        thread.join()
    finally:
        del run, ended


def _run_loop(run: Run, ended: "Future[None]") -> None:
    """Run the loop until the coroutine and all that it started have ended; in the loop's thread."""
    try:
        runner = asyncio.Runner()
        loop = runner.get_loop()
        _state.loop_thread_executors[loop] = run.executor
        try:
            with runner:
                run.start(loop)
                if run.task is not None:
                    loop.run_until_complete(run.task)
        finally:
            del _state.loop_thread_executors[loop]
    except BaseException as error:  # noqa: BLE001  # it belongs to the waiting thread
        ended.set_exception(error)
    else:
        ended.set_result(None)
    finally:
        del run, ended
