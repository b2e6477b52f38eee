"""`Local`: a namespace that belongs to a task, or to a thread where no event loop runs.

Theory of operation. A plain `Local` is a context variable whose values go when the `Local` goes
(`bridge._namespaces`). A thread-critical one has a `threading.local` for sync code, and for async code such a variable for each
event loop: a context that comes by with another loop's values must not take this loop's away. It asks for the loop and not for the
thread because a loop may move from one thread to another (`async_to_sync`), though it runs in one at a time.

Which thread may touch what. Any thread may use one `Local` at any time; see `bridge._namespaces` for why that needs
no lock, also in finalizers and signal handlers.

Source: the meaning of the class is that of ``asgiref.local.Local``.
"""

import threading
import weakref
from asyncio import AbstractEventLoop, _get_running_loop
from typing import Any, final

from django_asyncbridge.bridge._namespaces import (
    ALONE,
    LateNamespaces,
    Namespaces,
    references,
)

__all__ = ("Local",)

_MISSING = object()


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
    `threading.local`, in async code as a context variable that no other event loop sees (a loop runs in
    one thread at a time). That is for what must never be used by two threads, such as a database connection.

    Any thread may use one `Local` at any time. Values are let go when their context ends or when the
    `Local` does; thread-critical ones also when their thread or event loop does.

    Args:
        thread_critical: keep values in the thread or event loop that set them.

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
    """`Local` as a context variable. The usual case, a single name, is written out for speed."""

    __slots__ = ("_namespaces",)

    _namespaces: Namespaces

    def __init__(self, thread_critical: bool = False) -> None:
        object.__setattr__(self, "_namespaces", Namespaces())

    def __getattr__(self, name: str) -> Any:
        namespaces = self._namespaces
        found = namespaces.var.get()
        if found.name == name:
            return found.value
        value = namespaces.get(name, _MISSING)
        if value is _MISSING:
            raise _no_attribute(self, name)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        namespaces = self._namespaces
        var = namespaces.var
        old = var.get()
        if old.name != name:
            if name in _RESERVED:
                raise _reserved(name)
            del old  # which is used again only if nobody has it
            namespaces.set(var.get(), name, value)
            return
        spare = namespaces.spare
        try:
            new = spare.pop() if spare else namespaces.make()
        except IndexError:  # pragma: no cover  # another thread took the last one in between
            new = namespaces.make()
        new.name = name
        new.value = value
        found = var.set(new).old_value
        if found is not old:
            # An interruption came in between: its names are to be kept.
            namespaces.set_again(found, name, value)
        elif references(old) == ALONE:
            old.name = old.value = None  # whose finalizer may use this `Local`
            spare.append(old)

    def __delattr__(self, name: str) -> None:
        if not self._namespaces.delete(name):
            raise _no_attribute(self, name)

    def __del__(self) -> None:
        namespaces = _own(self, "_namespaces")
        if namespaces is not None:
            object.__setattr__(self, "_namespaces", LateNamespaces())
            namespaces.end()


class _LoopNamespaces(Namespaces):
    """What one thread-critical `Local` has in the contexts of one event loop."""

    __slots__ = ("loop",)

    def __init__(self, loop: "weakref.ref[AbstractEventLoop]") -> None:
        super().__init__()
        self.loop = loop


class _Loops:
    """What one thread-critical `Local` has, by the id of the event loop.

    A loop runs in one thread at a time, so an entry is used by one thread at a time; the dict by any. The
    entry goes when its loop does. Should that have failed (an interruption can do that to any weak reference's
    callback), the id may be another loop's: the weak reference tells.
    """

    __slots__ = ("by_id",)

    def __init__(self) -> None:
        self.by_id: dict[int, _LoopNamespaces] = {}

    def get(self, loop: AbstractEventLoop, name: str, default: object) -> Any:
        """Return a value from the current context, if it belongs to this loop, which runs here."""
        namespaces = self.by_id.get(id(loop))
        if namespaces is None or namespaces.loop() is not loop:
            return default
        return namespaces.get(name, default)

    def of(self, loop: AbstractEventLoop) -> Namespaces:
        """Return what there is for a loop, which runs here, from now on if it is new."""
        namespaces = self.by_id.get(id(loop))
        if namespaces is not None and namespaces.loop() is loop:
            return namespaces
        return self._new(loop, id(loop))

    def _new(self, loop: AbstractEventLoop, ident: int) -> Namespaces:
        by_id = self.by_id
        _end(by_id, ident)
        # What the callback refers to must not lead here: this is to go with its `Local`.
        new = _LoopNamespaces(weakref.ref(loop, lambda _: _end(by_id, ident)))
        # An interruption may have made some meanwhile.
        return by_id.setdefault(ident, new)

    def end(self) -> None:
        """Let all values go; nobody uses this any more."""
        for ident in tuple(self.by_id):
            _end(self.by_id, ident)


def _end(by_id: dict[int, _LoopNamespaces], ident: int) -> None:
    namespaces = by_id.pop(ident, None)
    if namespaces is not None:
        namespaces.end()


class _LateLoops(_Loops):
    """Those of a `Local` whose finalizer has run, for finalizers of the same garbage that still use it."""

    __slots__ = ()

    def __del__(self) -> None:
        self.end()


class _ThreadCriticalLocal(Local):  # type: ignore[misc]  # final for users, not for this module
    """`Local` as `threading.local`, and as a context variable of one event loop where that runs."""

    __slots__ = ("_loops", "_thread")

    _thread: threading.local
    _loops: _Loops

    def __init__(self, thread_critical: bool = True) -> None:
        object.__setattr__(self, "_thread", threading.local())
        object.__setattr__(self, "_loops", _Loops())

    def __getattr__(self, name: str) -> Any:
        loop = _get_running_loop()
        if loop is None:
            value = getattr(self._thread, name, _MISSING)
        else:
            value = self._loops.get(loop, name, _MISSING)
        if value is _MISSING:
            raise _no_attribute(self, name)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _RESERVED:
            raise _reserved(name)
        loop = _get_running_loop()
        if loop is None:
            setattr(self._thread, name, value)
        else:
            namespaces = self._loops.of(loop)
            namespaces.set(namespaces.var.get(), name, value)

    def __delattr__(self, name: str) -> None:
        loop = _get_running_loop()
        if loop is None:
            found = hasattr(self._thread, name)
            if found:
                delattr(self._thread, name)
        else:
            found = self._loops.of(loop).delete(name)
        if not found:
            raise _no_attribute(self, name)

    def __del__(self) -> None:
        loops = _own(self, "_loops")
        if loops is not None:
            object.__setattr__(self, "_loops", _LateLoops())
            loops.end()


def _own(local: Local, name: str) -> Any:
    """Return an attribute of the object itself; it has none if an interruption prevented that it was made."""
    try:
        return object.__getattribute__(local, name)
    except AttributeError:
        return None


# What a class has hides a value of the instance: setting it would seem to work, reading would not.
_RESERVED = frozenset().union(*map(vars, (object, Local, _DefaultLocal, _ThreadCriticalLocal)))


def _reserved(name: str) -> AttributeError:
    return AttributeError(f"{name!r} is used by Local itself: choose another name")
