"""One bridge per process: asgiref's wrappers use our registries. The only module that imports asgiref.

Django calls its ORM, sessions and middleware through asgiref. Two bridges that do not know of each other
have two home threads, so two database connections, and one can wait for ever for a thread that the other
holds. asgiref keeps what it knows in attributes of its two classes; `share_registries` points those at ours, so
that both find the same threads, contexts and loops (promise P1). asgiref's code goes on as it is,
except that its workers forget the loop they worked for.

asgiref's `Local` (3.12 and newer) shows values in the thread that set them only, and asgiref stamps them anew
wherever it moves a context. `_adopt_locals` does that for our crossings: Django's active language, time zone and urlconf
live there.

Which thread may touch what. Sharing and unsharing are for start-up and tests, when no call is under way.
"""

import contextvars
import functools
import threading
from collections.abc import Callable
from typing import Any

import asgiref.local
import asgiref.sync

from django_asyncbridge.bridge import _mirror, _state
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor
from django_asyncbridge.bridge.sync import AsyncToSync, SyncToAsync

__all__ = ("share_registries", "unshare_registries")


class _Executor(CurrentThreadExecutor):
    """Ours, for asgiref to create: before 3.9 it does not say which executor is around."""

    def __init__(self, old_executor: CurrentThreadExecutor | None = None) -> None:
        super().__init__(_state.waiting_executor() if old_executor is None else old_executor)


_SHARED: tuple[tuple[Any, Any, tuple[str, ...]], ...] = (
    (
        asgiref.sync.SyncToAsync,
        SyncToAsync,
        (
            "threadlocal",
            "single_thread_executor",
            "thread_sensitive_context",
            "deadlock_context",
            "context_to_thread_executor",
        ),
    ),
    (
        asgiref.sync.AsyncToSync,
        AsyncToSync,
        (
            "executors",
            "loop_thread_executors",
            "async_single_thread_context",
            "context_to_thread_executor",
        ),
    ),
)

# What asgiref had; empty while nothing is shared.
_originals: list[tuple[Any, str, Any]] = []


def share_registries() -> None:
    """Have asgiref's wrappers use our registries, those made earlier included; again does nothing.

    The app does this when Django starts.
    """
    if _originals:
        return
    for theirs, ours, names in _SHARED:
        for name in names:
            # Older versions lack some.
            if name in vars(theirs):
                _replace(theirs, name, getattr(ours, name))
    _replace(asgiref.sync, "CurrentThreadExecutor", _Executor)
    thread_handler = asgiref.sync.SyncToAsync.thread_handler
    _replace(asgiref.sync.SyncToAsync, "thread_handler", _restoring(thread_handler))
    _mirror.on_arrival(_adopt_locals)


def _restoring(thread_handler: Callable[..., Any]) -> Callable[..., Any]:
    """Have asgiref's worker forget the loop it worked for; a later call in that thread would go there."""

    @functools.wraps(thread_handler)
    def restoring(self: Any, *args: Any, **kwargs: Any) -> Any:
        __traceback_hide__ = True
        outer = _state.caller_of_thread()
        try:
            return thread_handler(self, *args, **kwargs)
        finally:
            _state.set_caller_of_thread(outer)

    return restoring


def unshare_registries() -> None:
    """Give asgiref back what it had."""
    _mirror.on_arrival(None)
    while _originals:
        owner, name, value = _originals.pop()
        setattr(owner, name, value)


def _replace(owner: Any, name: str, value: Any) -> None:
    _originals.append((owner, name, getattr(owner, name)))
    setattr(owner, name, value)


# Absent before 3.12, where values are visible wherever their context is.
_Storage = getattr(asgiref.local, "_Storage", None)


def _adopt_locals() -> None:
    """Make the values of asgiref's `Local` in the current context belong to the current thread."""
    if _Storage is None:
        return
    ident = threading.get_ident()
    for var, value in contextvars.copy_context().items():
        if type(value) is _Storage and value.thread_id != ident:
            var.set(_Storage(ident, value.data))
