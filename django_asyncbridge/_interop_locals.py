"""Values that are stamped with a thread, kept visible wherever our crossings bring them.

Theory of operation. asgiref's `Local` (3.12 and newer) stamps its values with the thread that set them, and shows them
nowhere else. asgiref stamps them anew where it moves a context, looking at every variable. A context variable
says nothing of who owns it, so we know those of the existing `Local` objects once and for all (`find`) and of each new one when it is
made (`noting`). A context without any of them crosses as if there were no stamps (`concerns`); in others these few are
stamped anew (`adopt`).

A loop of ours may move from the thread that waits for it to another, with tasks that were started before. Their values are
stamped with the waiting thread; that is as good there as the loop's own (`reading`).

Before 3.12 nothing is stamped, but 3.8 changes the values of a context where they are, so that all see the change who have inherited
them: other requests' tasks, for instance. `copying` gives each context its own first.

Which thread may touch what. Any thread may make a `Local` and so come to `note`, which replaces the tuple of variables under a
lock; all others read the tuple that they find.
"""

import functools
import gc
import threading
import weakref
from asyncio import _get_running_loop
from collections.abc import Callable
from contextvars import Context, ContextVar
from threading import get_ident
from typing import Any

from django_asyncbridge.bridge import _fork, _state

__all__ = ("ThreadStamps", "copying")

# The thread that has it may take it again: finalizers run anywhere, and may make a `Local`.
_lock = threading.RLock()


class ThreadStamps:
    """The context variables of all `Local` objects.

    Args:
        holder: the class of what a `Local` holds its variable by, as ``_data``.
        value: the class of the variables' values: made of, and having, ``thread_id`` and ``data``.
    """

    def __init__(self, holder: Any, value: Any) -> None:
        self._holder = holder
        self._value = value
        # Weakly: asgiref makes one for each thread and loop as well, and they go with these.
        self._holders: list[tuple[weakref.ref[Any], ContextVar[Any]]] = []
        self._variables: tuple[ContextVar[Any], ...] = ()

    def find(self) -> None:
        """Know the variables of every `Local` that exists and was not put aside by `gc.freeze`, and no other."""
        with _lock:
            self._holders.clear()
            for one in gc.get_objects():
                # By type(): isinstance() would wake lazy objects. One may not have come to its variable yet.
                if type(one) is self._holder and "_data" in vars(one):
                    self._holders.append((weakref.ref(one), one._data))
            self._variables = tuple(variable for _, variable in self._holders)

    def note(self, holder: Any) -> None:
        """Know the variable of a new `Local`, and forget those of which the `Local` has gone."""
        with _lock:
            self._holders = [one for one in self._holders if one[0]() is not None]
            self._holders.append((weakref.ref(holder), holder._data))
            self._variables = tuple(variable for _, variable in self._holders)

    def concerns(self, context: Context) -> bool:
        """Tell whether `context` has a value of a `Local`."""
        # Several times faster than any(); each call asks.
        for variable in self._variables:  # noqa: SIM110
            if variable in context:
                return True
        return False

    def adopt(self) -> None:
        """Stamp the values in the current context with the current thread."""
        ident = get_ident()
        for variable in self._variables:
            value = variable.get(None)
            if value is not None and value.thread_id != ident:
                variable.set(self._value(ident, value.data))

    def noting(self, init: Callable[..., None]) -> Callable[..., None]:
        """Return `init`, the holder's ``__init__``, such that new ones are noted."""

        @functools.wraps(init)
        def noting(holder: Any) -> None:
            init(holder)
            self.note(holder)

        return noting

    def reading(self, own: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return `own`, the holder's ``_storage``, such that a loop which has moved sees its tasks' values."""

        @functools.wraps(own)
        def reading(holder: Any) -> Any:
            value = holder._data.get(None)
            if value is None or value.thread_id == get_ident() or not _waits_here(value.thread_id):
                return own(holder)
            return value

        return reading


def copying(change: Callable[..., None]) -> Callable[..., None]:
    """Return `change`, which sets or deletes an attribute of a holder, such that it is changed in the current context only."""

    @functools.wraps(change)
    def copying(holder: Any, name: str, *value: Any) -> None:
        values = None if name == "_data" else holder._data.get(None)
        if values is not None:
            holder._data.set(values.copy())
        change(holder, name, *value)

    return copying


def _waits_here(ident: int) -> bool:
    """Tell whether the thread `ident` waits for the event loop that this thread runs."""
    loop = _get_running_loop()
    caller = None if loop is None else _state.loop_thread_executors.get(loop)
    return caller is not None and caller._work_thread.ident == ident


def _reset_after_fork() -> None:
    global _lock
    _lock = threading.RLock()


_fork.on_fork(_reset_after_fork)
