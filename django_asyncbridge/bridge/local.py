"""`Local`: a namespace that belongs to a task, or to a thread where no event loop runs.

Theory of operation. The values of a plain `Local` live in one `contextvars.ContextVar` of its own, as a
`_Namespace` that is never changed once it is in a context: setting a name puts a changed copy there.
So a value goes wherever its context goes (to awaited code, to new tasks, through the bridge, into any thread
that runs a copy of the context), and a change is seen by nobody who copied the context before.

Which thread may touch what. A context is entered by one thread at a time and a namespace is not
changed after it is published, so getting and setting need no lock. `_Namespaces.live` is touched by every
thread that sets a name: its operations (`set.add`, `set.discard`, `set.pop`) are each atomic.

A context keeps its variables and their values for as long as it lives, so a `Local` that is thrown away has
to empty its namespaces itself: they are known through weak references and cleared at the end.

Source: contextvars, PEP 567; the meaning of the class is that of ``asgiref.local.Local``.
"""

import asyncio
import contextvars
import sys
import threading
import weakref
from typing import Any, final

__all__ = ("Local",)

# Free-threaded builds, and others on request, start a thread in a copy of its creator's context.
_THREADS_INHERIT_CONTEXT = bool(getattr(sys.flags, "thread_inherit_context", False))


class _ThreadToken:
    """Stands for one thread for as long as that lives; unlike a thread's ident it is never used again."""

    __slots__ = ("__weakref__",)


class _Tokens(threading.local):
    def __init__(self) -> None:
        self.token = _ThreadToken()


_threads = _Tokens()


class _Namespace(dict[str, Any]):
    """The names of one `Local` in one context; a dict that can be referred to weakly."""

    __slots__ = ("__weakref__", "owner")

    # The token of the thread that set these names. It may be read by any thread.
    owner: _ThreadToken

    __hash__ = object.__hash__  # type: ignore[assignment]  # a dict has none; weak references need one


class _Namespaces:
    """Every namespace that one `Local` has in some context, found through its context variable."""

    __slots__ = ("live", "var")

    def __init__(self) -> None:
        self.var: contextvars.ContextVar[_Namespace | None] = contextvars.ContextVar(
            "django_asyncbridge.local", default=None
        )
        self.live: set[weakref.ref[_Namespace]] = set()

    def set(self, name: str, value: object, names: _Namespace | None) -> None:
        """Publish `names` with one name set, in the current context."""
        changed = _Namespace() if names is None else _Namespace(names)
        changed[name] = value
        self._publish(changed)

    def delete(self, local: object, name: str, names: _Namespace | None) -> None:
        """Publish `names` without one name, in the current context."""
        if names is None or name not in names:
            raise _no_attribute(local, name)
        changed = _Namespace(names)
        del changed[name]
        self._publish(changed)

    def _publish(self, names: _Namespace) -> None:
        names.owner = _threads.token
        live = self.live
        live.add(weakref.ref(names, live.discard))
        self.var.set(names)

    def inherited(self, names: _Namespace) -> bool:
        """Tell whether this thread only has these names because it was started in a copy of a context.

        That is so in the context the thread was started in; one that is run in it on purpose is another.
        """
        return names.owner is not _threads.token and _in_context_of_thread()

    def __del__(self) -> None:
        # The `Local` is gone, and nobody can reach its values any more.
        while self.live:
            try:
                names = self.live.pop()()
            except KeyError:  # pragma: no cover  # another thread's namespace died in between
                break
            if names is not None:
                names.clear()


_probe: contextvars.ContextVar[object] = contextvars.ContextVar("django_asyncbridge.probe")


def _in_context_of_thread() -> bool:
    """Tell whether the current context is the one that this thread was started in."""
    start = getattr(threading.current_thread(), "_context", None)
    if start is None:
        return False
    mark = object()
    token = _probe.set(mark)
    try:
        return start.get(_probe) is mark
    finally:
        _probe.reset(token)


def _no_attribute(local: object, name: str) -> AttributeError:
    message = f"Local has no attribute {name!r} here: it was not set in this task or thread"
    return AttributeError(message, name=name, obj=local)


@final
class Local:
    """A namespace whose attributes are local to the current task, or thread where no loop runs.

    In async code a value is visible to what is awaited from there, to tasks started afterwards, and to sync
    code called through `sync_to_async`. In a thread without a running event loop it is visible in that
    thread and to async code called through `async_to_sync`. Changes travel back the same ways. Whoever runs
    a copy of the context in another thread (`asyncio.to_thread`, anyio, a framework's thread
    pool) sees the values as well; changes made there stay there.

    With `thread_critical` nothing crosses the bridge: in a thread without a running loop it behaves as
    `threading.local`, in async code as a context variable that no other thread sees. That is for what must
    never be used by two threads, such as a database connection.

    Any thread may use one `Local` at any time. Values are let go when their context ends or when the
    `Local` does.

    Args:
        thread_critical: keep values in the thread that set them.

    Raises:
        AttributeError: on reading or deleting a name that is not set here.
        TypeError: on subclassing.

    Source: ``asgiref.local.Local``.
    """

    __slots__ = ("__weakref__",)

    def __new__(cls, thread_critical: bool = False) -> "Local":
        """Make one of the two kinds."""
        if cls is not Local:
            raise TypeError("Local cannot be subclassed: put a Local into an attribute instead")
        return object.__new__(_ThreadCriticalLocal if thread_critical else _DefaultLocal)

    def __init__(self, thread_critical: bool = False) -> None: ...

    def __getattr__(self, name: str) -> Any: ...

    def __setattr__(self, name: str, value: Any) -> None: ...

    def __delattr__(self, name: str) -> None: ...


class _DefaultLocal(Local):  # type: ignore[misc]  # final for users, not for this module
    """`Local` as a context variable."""

    __slots__ = ("_namespaces",)

    _namespaces: _Namespaces

    def __init__(self, thread_critical: bool = False) -> None:
        object.__setattr__(self, "_namespaces", _Namespaces())

    def _visible(self) -> _Namespace | None:
        names = self._namespaces.var.get()
        if _THREADS_INHERIT_CONTEXT and names is not None and self._namespaces.inherited(names):
            return None
        return names

    def __getattr__(self, name: str) -> Any:
        names = self._namespaces.var.get()
        if _THREADS_INHERIT_CONTEXT:
            names = self._visible()
        if names is not None and name in names:
            return names[name]
        raise _no_attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _refuse_reserved(name)
        self._namespaces.set(name, value, self._visible())

    def __delattr__(self, name: str) -> None:
        self._namespaces.delete(self, name, self._visible())


class _ThreadNamespaces(threading.local):
    def __init__(self) -> None:
        self.namespaces = _Namespaces()


class _ThreadCriticalLocal(Local):  # type: ignore[misc]  # final for users, not for this module
    """`Local` as `threading.local`, and as a context variable of one thread where an event loop runs.

    Each thread has a variable of its own: a context that comes by with another thread's values must
    not take this thread's away.
    """

    __slots__ = ("_async_storage", "_sync_storage")

    _sync_storage: threading.local
    _async_storage: _ThreadNamespaces

    def __init__(self, thread_critical: bool = True) -> None:
        object.__setattr__(self, "_sync_storage", threading.local())
        object.__setattr__(self, "_async_storage", _ThreadNamespaces())

    def __getattr__(self, name: str) -> Any:
        if asyncio._get_running_loop() is None:
            if hasattr(self._sync_storage, name):
                return getattr(self._sync_storage, name)
        else:
            names = self._async_storage.namespaces.var.get()
            if names is not None and name in names:
                return names[name]
        raise _no_attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _refuse_reserved(name)
        if asyncio._get_running_loop() is None:
            setattr(self._sync_storage, name, value)
        else:
            namespaces = self._async_storage.namespaces
            namespaces.set(name, value, namespaces.var.get())

    def __delattr__(self, name: str) -> None:
        if asyncio._get_running_loop() is not None:
            namespaces = self._async_storage.namespaces
            namespaces.delete(self, name, namespaces.var.get())
        elif hasattr(self._sync_storage, name):
            delattr(self._sync_storage, name)
        else:
            raise _no_attribute(self, name)


# What a class has hides a value of the instance: setting it would seem to work, reading would not.
_RESERVED = frozenset().union(*map(vars, (object, Local, _DefaultLocal, _ThreadCriticalLocal)))


def _refuse_reserved(name: str) -> None:
    if name in _RESERVED:
        raise AttributeError(f"{name!r} is used by Local itself: choose another name")
