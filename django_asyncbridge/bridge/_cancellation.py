"""`cancelled` and `check_cancelled`: sync code asks whether anybody still wants its result.

Which thread may touch what. Both read what `_children.Children` keeps for the function that the current thread runs; a cancellation
is noted there by the thread of the event loop.
"""

import asyncio

from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge._children import Children

__all__ = ("cancelled", "check_cancelled")


def cancelled() -> bool:
    """Tell whether the task that waits for this sync function has been cancelled.

    To be asked in a function that async code has called through `sync_to_async`, in the thread it runs in. It is
    true as soon as the task was cancelled: by a timeout, a failing task group, or a server whose client has left.
    Functions that are called through asgiref are not told.
    In async code it tells whether the current task is being cancelled; elsewhere it is False.
    """
    if asyncio._get_running_loop() is not None:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    children = _children()
    return children is not None and children.cancelled


def check_cancelled() -> None:
    """Raise CancelledError if the task that waits for this sync function has been cancelled; see `cancelled`.

    After that the function's clean-up may use `async_to_sync` again: its coroutines are not cancelled.

    Raises:
        asyncio.CancelledError: if so.
    """
    if not cancelled():
        return
    if asyncio._get_running_loop() is None and (children := _children()) is not None:
        children.note()
    raise asyncio.CancelledError("the task that waits for this function has been cancelled")


def _children() -> Children | None:
    # In a forked child nobody waits for the function any more.
    if _state.calling_loop() is None:
        return None
    children = _state.threadlocal.task_context
    return children if isinstance(children, Children) else None
