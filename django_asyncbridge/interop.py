"""One bridge per process: asgiref's wrappers use our registries, and run on our code. The only module that imports asgiref.

Django calls its ORM, sessions and middleware through asgiref. Two bridges that do not know of each other
have two home threads, so two database connections, and one can wait for ever for a thread that the other
holds. asgiref keeps what it knows in attributes of its two classes; `share_registries` points those at ours, so
that both find the same threads, contexts and loops (promise P1). asgiref's code goes on as it is,
except that its workers forget the loop they worked for. asgiref's `Local` (3.12 and newer) shows values in the thread
that set them only; `_interop_locals` keeps them visible where our crossings bring them: Django's active language, time zone and
urlconf live there.

`accelerate` makes asgiref's wrappers and contexts ours in all but name: their classes stay, their methods become those of our
classes. Not the classes: asgiref's are imported by name in half of Django, subclassed (Channels) and asked for with `isinstance`.
So all of these run on ours as well: what Django imported, wrappers and subclasses made before or afterwards, and what
monitoring agents patch. Constructors stay asgiref's: it takes what it always took, such as generator functions, and warns as
it did.

A method that somebody else has replaced before is left alone. Of ``thread_handler`` and ``main_wrap`` that costs nothing, as ours call
them as well. Whoever has replaced ``SyncToAsync.__call__`` or ``AsyncToSync.__call__`` keeps asgiref's code for that class:
slower, but in the same threads.

What differs from asgiref's own code then: it is ours. Not thread-sensitive calls without an executor run in our reused workers,
not in the loop's default executor. An `AsyncToSync` of asgiref 3.8 called in a plain thread does not go to the loop it was made
under, as in 3.9 and newer.

Which thread may touch what. Installing and uninstalling are for start-up and tests. `accelerate` and `decelerate` may come in the
middle of calls and contexts, from one thread at a time: those under way end right. Not so `share_registries` and
`unshare_registries`: a context, or a call, that began in one registry would look for itself in the other.
"""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import asgiref.local
import asgiref.sync

from django_asyncbridge._interop_locals import ThreadStamps, copying
from django_asyncbridge._interop_replacing import Replacements
from django_asyncbridge.bridge import _mirror, _state, _wrapping
from django_asyncbridge.bridge._leases import Lease
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor
from django_asyncbridge.bridge.sync import (
    AsyncSingleThreadContext,
    AsyncToSync,
    SyncToAsync,
    ThreadSensitiveContext,
)

__all__ = (
    "accelerate",
    "decelerate",
    "install",
    "share_registries",
    "uninstall",
    "unshare_registries",
)


class _Executor(CurrentThreadExecutor):
    """Ours, for asgiref to create: before 3.9 it does not say which executor is around."""

    def __init__(self, old_executor: CurrentThreadExecutor | None = None) -> None:
        super().__init__(_state.current_executor.get() if old_executor is None else old_executor)


# A class of asgiref's, and ours of the same name.
_SYNC_TO_ASYNC: tuple[Any, Any] = (asgiref.sync.SyncToAsync, SyncToAsync)
_ASYNC_TO_SYNC: tuple[Any, Any] = (asgiref.sync.AsyncToSync, AsyncToSync)
_THREAD_CONTEXT: tuple[Any, Any] = (
    asgiref.sync.ThreadSensitiveContext,
    ThreadSensitiveContext,
)
# Absent before 3.10.
_LOOP_CONTEXT: tuple[Any, Any] = (
    getattr(asgiref.sync, "AsyncSingleThreadContext", None),
    AsyncSingleThreadContext,
)

_SHARED: tuple[tuple[tuple[Any, Any], tuple[str, ...]], ...] = (
    (
        _SYNC_TO_ASYNC,
        (
            "threadlocal",
            "single_thread_executor",
            "thread_sensitive_context",
            "deadlock_context",
            "context_to_thread_executor",
        ),
    ),
    (
        _ASYNC_TO_SYNC,
        (
            "executors",
            "loop_thread_executors",
            "async_single_thread_context",
            "context_to_thread_executor",
        ),
    ),
)

_sharing = Replacements()
_acceleration = Replacements()


def install(accelerate: bool) -> None:
    """Make one bridge of asgiref's and ours; again with another value, change the kind.

    The app does this when Django starts and when its settings change. In any thread, one at a time.

    Args:
        accelerate: whether asgiref's wrappers are to run on our code (`accelerate`), or on their own with our registries.
    """
    if accelerate:
        _accelerate()
    else:
        decelerate()
        share_registries()


def uninstall() -> None:
    """Give asgiref back all that it had, whatever was installed; if nothing was, do nothing."""
    unshare_registries()


# --- Sharing ---------------------------------------------------------------------


def share_registries() -> None:
    """Have asgiref's wrappers use our registries, those made earlier included; again does nothing."""
    if _sharing:
        return
    for (theirs, ours), names in _SHARED:
        for name in names:
            # Older versions lack some.
            if name in vars(theirs):
                _sharing.put(theirs, name, getattr(ours, name))
    _sharing.put(asgiref.sync, "CurrentThreadExecutor", _Executor)
    theirs = _SYNC_TO_ASYNC[0]
    _sharing.put(theirs, "thread_handler", _restoring(theirs.thread_handler))
    _lend_parts()
    _share_locals()


def unshare_registries() -> None:
    """Give asgiref back what it had, its own code included."""
    decelerate()
    _mirror.on_arrival(None)
    _sharing.undo()


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


def _share_locals() -> None:
    holder: Any = asgiref.local._CVar
    # Absent before 3.12, where values are visible wherever their context is.
    storage = getattr(asgiref.local, "_Storage", None)
    if storage is None:
        for name in ("__setattr__", "__delattr__"):
            _sharing.put(holder, name, copying(getattr(holder, name)))
        return
    stamps = ThreadStamps(holder, storage)
    _sharing.put(holder, "__init__", stamps.noting(holder.__init__))
    _sharing.put(holder, "_storage", stamps.reading(holder._storage))
    # After that: what is made meanwhile is in both.
    stamps.find()
    _mirror.on_arrival(stamps.adopt, stamps.concerns)


# --- What our methods find in asgiref's objects ------------------------------------


class _Described:
    """A wrapper's name for messages, found when it is first asked for."""

    def __init__(self, wrapped: str) -> None:
        self._wrapped = wrapped

    def __get__(self, instance: Any, owner: Any) -> Any:
        if instance is None:
            return self
        described = _wrapping.describe(getattr(instance, self._wrapped))
        vars(instance)["_described"] = described
        return described


class _Renamed:
    """An attribute that asgiref keeps under another name, or not at all."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self if instance is None else vars(instance).get(self._name)

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self._name] = value


def _lend_parts() -> None:
    """Give asgiref's classes what the methods of ours use there, and ours in asgiref's contexts.

    With the registries, not with the acceleration: whatever is under way when that ends goes on with these.
    """
    described = _Described("func"), _Described("awaitable")
    _lend(_SYNC_TO_ASYNC, context=None, _abandon_on_cancel=False, _described=described[0])
    _lend(_ASYNC_TO_SYNC, loop_factory=None, timeout=None, _described=described[1])
    _lend(
        _THREAD_CONTEXT,
        holder="",
        # Entered by asgiref's code it was entered once, if there is a token.
        _entered=1,
        _executor=None,
        _exited=False,
        _outer_executor=_Renamed("_old_executor"),
    )
    if _LOOP_CONTEXT[0] is not None:
        leave = AsyncSingleThreadContext.__exit__
        _lend(_LOOP_CONTEXT, __enter__=_enter_loop_context, __exit__=leave)


def _lend(classes: tuple[Any, Any], **attributes: Any) -> None:
    """Give a class of asgiref's the private functions of ours, and these attributes."""
    theirs, ours = classes
    functions = {
        name: value
        for name, value in vars(ours).items()
        if name.startswith("_") and not name.startswith("__") and callable(value)
    }
    for name, value in {**functions, **attributes}.items():
        _sharing.put(theirs, name, value)


def _enter_loop_context(self: Any) -> Any:
    """Enter an `AsyncSingleThreadContext` of asgiref's as one of ours."""
    for name, value in vars(AsyncSingleThreadContext()).items():
        vars(self).setdefault(name, value)
    AsyncSingleThreadContext.__enter__(self)
    if self.token is not None:
        # At once: asgiref's code would put another thread there.
        with _state.registry_lock:
            _state.single_thread_context_executors.setdefault(self, Lease(_state.loop_workers))
    return self


# --- Acceleration ----------------------------------------------------------------


def accelerate() -> None:
    """Have asgiref's wrappers and contexts run on our code, those made earlier included; again does nothing.

    It shares the registries first, if they are not. Each `sync_to_async` and `async_to_sync` call of Django's then
    costs what ours costs, is seen by observers, and a `ThreadSensitiveContext` of asgiref's lends a thread instead of starting
    one. Objects of asgiref's stay instances of asgiref's classes, and are none of ours.
    """
    if _acceleration:
        return
    share_registries()
    if _is_asgirefs(_SYNC_TO_ASYNC[0].__call__):
        _use_ours(_SYNC_TO_ASYNC, "__call__")
        _use_ours(_THREAD_CONTEXT, "__aenter__", "__aexit__")
        if _is_asgirefs(_SYNC_TO_ASYNC[0].thread_handler):
            _use_ours(_SYNC_TO_ASYNC, "thread_handler")
    if _is_asgirefs(_ASYNC_TO_SYNC[0].__call__):
        _accelerate_async_to_sync()


# `install` has a parameter of that name.
_accelerate = accelerate


def decelerate() -> None:
    """Have asgiref's wrappers run on asgiref's code again, with our registries; if they do, do nothing.

    What others have put in the place of our methods meanwhile goes as well. Calls and contexts that are under way end right.
    """
    _acceleration.undo()


def _accelerate_async_to_sync() -> None:
    theirs = _ASYNC_TO_SYNC[0]
    if _is_asgirefs(theirs.main_wrap):
        _use_ours(_ASYNC_TO_SYNC, "main_wrap")
    elif "awaitable" not in inspect.signature(theirs.main_wrap).parameters:
        # Before 3.9 it is to call the function itself; what has taken its place would do so with our awaitable.
        return
    _use_ours(_ASYNC_TO_SYNC, "__call__")


def _use_ours(classes: tuple[Any, Any], *names: str) -> None:
    theirs, ours = classes
    for name in names:
        _acceleration.put(theirs, name, vars(ours)[name])


def _is_asgirefs(function: Any) -> bool:
    """Tell whether a method is asgiref's own, not what somebody else has put there."""
    if not isinstance(function, types.FunctionType):
        return False
    if function.__globals__ is globals():  # of `_restoring`
        return _is_asgirefs(vars(function)["__wrapped__"])
    return function.__globals__ is vars(asgiref.sync)
