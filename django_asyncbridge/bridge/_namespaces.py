"""What a `Local` has in each context: names that go where their context goes, and go with their `Local`.

Theory of operation. The names of one `Local` live in one `contextvars.ContextVar`, as a `Namespace` that
is never changed while a context has it: setting a name puts another one there. So a value goes wherever its
context goes, and a change is seen by nobody who copied the context before.

A context keeps its variables and their values for as long as it lives, so a `Local` that is thrown away has
its namespaces emptied: `Namespaces.live` has a weak reference to each. The values are referred to by their
contexts alone (were they kept here, a value that leads back to its own context would never go). The
variable, empty in every context by then, serves the next `Local`: a thread that lives on does not pile
up variables.

Making a namespace and its weak reference costs more than all else in setting a name. One that was
replaced is therefore used again, if the number of references to it shows that no other context has it.

Which thread may touch what. A context is entered by one thread at a time and a namespace that is in one is
not changed, so getting and setting need no lock. `live` and `spare` are touched by every thread, and
by finalizers in the middle of anything: each operation on them is atomic, and nothing iterates over them.
Code that interrupts the setting of a name (a signal handler, a finalizer) and changes the same `Local` is
noticed by what the variable held in the end, and its change is kept.

Source: contextvars, PEP 567.
"""

import contextvars
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, cast

__all__ = ("ALONE", "LateNamespaces", "Namespace", "Namespaces", "references")

# Free-threaded builds, and others on request, start a thread in a copy of its creator's context.
_THREADS_INHERIT_CONTEXT = bool(getattr(sys.flags, "thread_inherit_context", False))

# What counts the references to an object, and its answer where two variables of the asking function have the
# only ones (the argument is the third). From 3.14 on some references are not counted, and without the GIL
# the count is out of date when it arrives: there no namespace is used again.
references: Callable[[object], int] = getattr(sys, "getrefcount", id)
_COUNTED = (
    sys.implementation.name == "cpython"
    and sys.version_info < (3, 14)
    and "free-threading" not in sys.version
)
ALONE = 3 if _COUNTED else -1

# How many empty namespaces one `Local` keeps for later; not measured. Setting needs one for each thread that is
# just about it, the rest is for names that are deleted and set again.
_SPARES = 8

_MISSING = object()

# What a variable had in a context that had none.
_UNSET = contextvars.Token.MISSING


class _ThreadToken:
    """Stands for one thread for as long as that lives; unlike a thread's ident it is never used again."""

    __slots__ = ("__weakref__",)


class _Tokens(threading.local):
    def __init__(self) -> None:
        self.token = _ThreadToken()


_threads = _Tokens()


class Namespace:
    """The names of one `Local` in one context: a single name in place, several in a dict.

    A single name is in the dict as well where threads inherit contexts: there `owner` matters, and who looks for
    the name in place need not ask.
    """

    __slots__ = ("__weakref__", "name", "names", "owner", "value")

    def __init__(self) -> None:
        self.name: str | None = None
        self.value: Any = None
        self.names: dict[str, Any] | None = None
        # The token of the thread that set these names. It may be read by any thread.
        self.owner: _ThreadToken | None = None

    def clear(self) -> None:
        """Let the values go."""
        self.name = self.names = self.value = None

    def copy_with(self, old: "Namespace", name: str, value: object) -> None:
        """Take the names of `old`, and one of them anew; this is empty so far."""
        if old.names is not None:
            self.names = {**old.names, name: value}
        elif old.name is None or old.name == name:
            self.name, self.value = name, value
        else:
            self.names = {old.name: old.value, name: value}
        if _THREADS_INHERIT_CONTEXT:
            self._belong_to_thread()

    def copy_without(self, old: "Namespace", name: str) -> None:
        """Take the names of `old`, except one; this is empty so far."""
        if old.names is None:
            names = {} if old.name is None else {old.name: old.value}
        else:
            names = old.names.copy()
        names.pop(name, None)
        if len(names) == 1:
            ((self.name, self.value),) = names.items()
        else:
            self.names = names or None
        if _THREADS_INHERIT_CONTEXT:
            self._belong_to_thread()

    def _belong_to_thread(self) -> None:
        self.owner = _threads.token
        if self.name is not None:
            self.names = {self.name: self.value}
            self.name = self.value = None


# In every context in which there are no names. It stays empty.
_NOTHING = Namespace()

# Variables whose `Local` is gone. They show nothing in any context.
_unused_vars: list[contextvars.ContextVar[Namespace]] = []


def _new_var() -> contextvars.ContextVar[Namespace]:
    return contextvars.ContextVar("django_asyncbridge.local", default=_NOTHING)


def _any_var() -> contextvars.ContextVar[Namespace]:
    try:
        return _unused_vars.pop()
    except IndexError:
        return _new_var()


class Namespaces:
    """Every namespace that one `Local` has in some context, found through its context variable."""

    __slots__ = ("live", "spare", "var")

    def __init__(
        self, take_var: Callable[[], contextvars.ContextVar[Namespace]] = _any_var
    ) -> None:
        self.var = take_var()
        self.live: set[weakref.ref[Namespace]] = set()
        # Empty ones that no context has.
        self.spare: list[Namespace] = []

    def get(self, name: str, default: object) -> Any:
        """Return a value from the current context."""
        found = self.var.get()
        if found.name == name:
            return found.value
        if _THREADS_INHERIT_CONTEXT:
            found = _visible(found)
        return default if found.names is None else found.names.get(name, default)

    def set(self, found: Any, name: str, value: object) -> None:
        """Set a name in the current context, in which the variable has `found`."""
        old: Namespace = _visible(found) if _THREADS_INHERIT_CONTEXT else found
        new = self.take()
        new.copy_with(old, name, value)
        found = self.var.set(new).old_value
        if found is not old:
            if _visible(found) is not old:
                self.set_again(found, name, value)
        elif references(old) == ALONE:
            self.use_again(old)

    def set_again(self, lost: Any, name: str, value: object) -> None:
        """Set a name for the second time: `lost` was put into the context in the middle of the first."""
        new = self.take()
        new.copy_with(_visible(lost), name, value)
        self.var.set(new)

    def delete(self, name: str) -> bool:
        """Delete a name in the current context, and tell whether it was there."""
        if self.get(name, _MISSING) is _MISSING:
            return False
        old = _visible(self.var.get())
        new = _NOTHING
        if old.name != name:
            new = self.take()
            new.copy_without(old, name)
        found: Any = self.var.set(new).old_value
        if found is not old:
            self._delete_again(found, name)
        elif references(old) == ALONE:
            self.use_again(old)
        return True

    def _delete_again(self, lost: Any, name: str) -> None:
        """Delete a name for the second time: `lost` was put into the context in the middle of the first."""
        new = self.take()
        new.copy_without(_visible(lost), name)
        self.var.set(new)

    def take(self) -> Namespace:
        """Return an empty namespace, which this finds again whatever becomes of it."""
        spare = self.spare
        if spare:
            try:
                return spare.pop()
            except IndexError:  # pragma: no cover  # another thread took the last one in between
                pass
        return self.make()

    def make(self) -> Namespace:
        """Return a new namespace, which this finds again whatever becomes of it."""
        new, live = Namespace(), self.live
        live.add(weakref.ref(new, live.discard))
        return new

    def use_again(self, old: Namespace) -> None:
        """Keep for later what no context has any more, and nobody else."""
        # An empty one may be from the former `Local` of the variable, and unknown here.
        if (old.name is not None or old.names is not None) and len(self.spare) < _SPARES:
            old.clear()
            self.spare.append(old)

    def end(self) -> None:
        """Let all values go; nobody uses this any more, and the variable may serve another `Local`."""
        _empty(self.live)
        # Other finalizers may have brought the `Local` back to life, and a thread be in the middle of using it.
        if not _COUNTED or references(self) == ALONE:
            _unused_vars.append(self.var)


def _empty(live: set[weakref.ref[Namespace]]) -> None:
    while live:
        try:
            names = live.pop()()
        except KeyError:  # pragma: no cover  # another thread's namespace died in between
            break
        if names is not None:
            names.clear()


class LateNamespaces(Namespaces):
    """Those of a `Local` whose finalizer has run, for finalizers of the same garbage that still use it.

    Such finalizers are rare, so everything is made when one comes.
    """

    __slots__ = ("_end",)

    def __init__(self) -> None: ...

    def __getattr__(self, name: str) -> Any:
        super().__init__(_new_var)
        self._end = _End(self.live)
        return getattr(self, name)


class _End:
    """Lets the values go at its own end."""

    __slots__ = ("live",)

    def __init__(self, live: set[weakref.ref[Namespace]]) -> None:
        self.live = live

    def __del__(self) -> None:
        _empty(self.live)


def _visible(found: Any) -> Namespace:
    """Return what a variable had, or nothing if it had nothing that is for this thread."""
    if found is _UNSET or (_THREADS_INHERIT_CONTEXT and _inherited(found)):
        return _NOTHING
    return cast("Namespace", found)


def _inherited(found: Namespace) -> bool:
    """Tell whether this thread only has these names because it was started in a copy of a context.

    That is so in the context the thread was started in; one that is run in it on purpose is another.
    """
    return found.owner not in (None, _threads.token) and _in_context_of_thread()


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
