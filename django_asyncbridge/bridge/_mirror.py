"""Context variables across a crossing: there with a call, and back with its result.

Theory of operation. A sync function called from a task runs in a copy of the task's context. Afterwards
the task's context is given what the function changed: what is another object than before, what is new, and what
was unset. Comparing is by identity, in C; nothing is asked of the values, whose ``==`` may do anything.

While the function runs, its context carries one more variable, the `mark` of the call, so that everything
started from there can be told from what merely shares the task's context.

A `contextvars.Token` can only be used in the context it was made in. So if a token outlives the
call, its context (the *twin* of the task's) is used for the task's next calls as well, after it was given what
changed in the task meanwhile. Nobody has to hold the twin: a token refers to it, so a weak reference tells
whether one is left. Without tokens a call costs one copy (constant time) and one comparison.

Why not run the function in the task's own context: a Context can be entered once at a time, and several tasks
may share one (``create_task(..., context=...)``; Django's ``Signal.asend`` does that). While a worker
were inside, the event loop could not run the other tasks' next step, and asyncio drops a step that fails.

Which thread may touch what. `Passage.__init__` and `back` run in the task, `run` in the worker in
between; the task waits while `run` runs, so no two threads use a passage, or enter a twin, at once. A
coroutine stepped by hand could start a second call before the first is done; `in_use` gives that one a copy.

Source: PEP 567; promise P3.
"""

import asyncio
import contextlib
import contextvars
import weakref
from collections.abc import Callable
from contextvars import Context, ContextVar, Token
from operator import is_
from typing import Any, NamedTuple, TypeVar

__all__ = ("Passage", "arrived", "on_arrival", "restore_context")

R = TypeVar("R")


class _Changes(NamedTuple):
    values: list[tuple[ContextVar[Any], Any]]
    unset: list[ContextVar[Any]]


_NO_CHANGES = _Changes([], [])
_arrival_hook: Callable[[], None] | None = None


def on_arrival(hook: Callable[[], None] | None) -> None:
    """Have `hook` called in the current context whenever a crossing has brought values to another thread."""
    global _arrival_hook
    _arrival_hook = hook


def arrived() -> None:
    """Say that the current context's values have come from another thread."""
    if _arrival_hook is not None:
        _arrival_hook()


_EMPTY = Context()


def _changes(old: Context, new: Context) -> _Changes:
    """Return what has to be done to `old` to make it `new`."""
    # Two contexts with the same variables list their values in the same order, so this loop in C settles
    # most calls. With all values the same, == looks at variables only; it is instant for a mere copy.
    if len(old) == len(new) and all(map(is_, old.values(), new.values())) and old == new:
        return _NO_CHANGES
    missing = object()
    values = [(var, value) for var, value in new.items() if old.get(var, missing) is not value]
    return _Changes(values, [var for var in old if var not in new])


def restore_context(context: Context) -> None:
    """Give the current context every value that differs in `context`; what only the current one has stays."""
    for var, value in _changes(contextvars.copy_context(), context).values:
        var.set(value)


_Tokens = dict[ContextVar[Any], Token[Any]]


class _Twin:
    """What is kept about a context that a token keeps alive; see the module's theory of operation."""

    __slots__ = ("context", "firsts", "in_use", "owner")

    def __init__(
        self, context: "weakref.ref[Context]", owner: "asyncio.Task[Any]", firsts: _Tokens
    ) -> None:
        self.context = context
        self.owner = weakref.ref(owner)
        # Made in the task's context where a call set a variable first: they can unset it again.
        self.firsts = firsts
        self.in_use = False

    def keep_if_needed(self) -> None:
        """Be found by the next call if a token (or anything) still refers to `context`; in the task."""
        context = self.context()
        if context is None:
            return
        owner = self.owner()
        if owner is not None and self.firsts:
            # They refer to the task's context, and that to them by way of `_twins`: no circle outlives the task.
            firsts = self.firsts
            owner.add_done_callback(lambda _: firsts.clear())
        # Tasks that share a context have a twin each.
        others = (twin for twin in _twins.get() if twin.owner() is not None and twin.context())
        twins = (self, *others)
        _twins.set(twins)
        context.run(_twins.set, twins)


_twins: ContextVar[tuple[_Twin, ...]] = ContextVar("django_asyncbridge.twins", default=())

_Mark = tuple[ContextVar[Any], Any]


class Passage:
    """The context variables of one `sync_to_async` call.

    Args:
        task: the current task, whose context the current one is; or None when there is none.
        given: a context to run in instead, from which nothing is carried back.
        mark: a context variable and its value while the function runs.
    """

    __slots__ = ("_before", "_changes", "_context", "_entered", "_given", "_mark", "_task", "_twin")

    def __init__(
        self, task: "asyncio.Task[Any] | None", given: Context | None, mark: _Mark | None = None
    ) -> None:
        self._task = task
        self._mark = mark
        self._given = given is not None
        self._entered = False
        self._twin: _Twin | None = None
        self._changes = _NO_CHANGES
        self._before = contextvars.copy_context()
        if given is not None:
            self._context = given
        elif not self._use_twin():
            self._context = self._before.copy()

    def _use_twin(self) -> bool:
        """Find the twin that earlier calls of this task left, if a token still needs it."""
        task = self._task
        if task is None:
            return False
        twin = next((twin for twin in _twins.get() if twin.owner() is task), None)
        if twin is None or twin.in_use:
            return False
        context = twin.context()
        if context is None:
            return False
        changes = _changes(context, self._before)
        if changes.unset:
            # The task unset a variable; only a token of the twin could unset it there.
            return False
        self._twin, self._context, self._changes = twin, context, changes
        twin.in_use = True
        return True

    def run(self, function: Callable[[], R]) -> R:
        """Call `function` with the task's context variables; in the worker.

        Raises:
            RuntimeError: when the context given for the call is in use by another call.
        """
        __traceback_hide__ = True
        try:
            return self._context.run(self._call, function)
        except RuntimeError:
            if self._entered:
                raise
            raise RuntimeError(
                "the Context passed as context= is in use by a call that has not ended; "
                "pass a copy for each call that may run at the same time: context=context.copy()"
            ) from None

    def _call(self, function: Callable[[], R]) -> R:
        __traceback_hide__ = True
        self._entered = True
        for var, value in self._changes.values:
            var.set(value)
        arrived()
        if self._mark is None:
            return function()
        var, value = self._mark
        token = var.set(value)
        try:
            return function()
        finally:
            var.reset(token)
            # The traceback of an error keeps this frame, and a token would keep the context alive.
            del token

    def back(self) -> None:
        """Give the current context what the function changed; in the task, once the worker is done."""
        context, before = self._context, self._before
        # A traceback keeps the frame of `run` and so this object; not every variable and the task as well.
        self._context = self._before = _EMPTY
        self._changes = _NO_CHANGES
        task, self._task = self._task, None
        if self._twin is not None:
            self._twin.in_use = False
        if self._given or not self._entered:
            return
        firsts = {} if self._twin is None else self._twin.firsts
        _apply(_changes(before, context), firsts)
        arrived()
        if self._twin is None and task is not None:
            twin = _Twin(weakref.ref(context), task, firsts)
            del context
            twin.keep_if_needed()


def _apply(changes: _Changes, firsts: _Tokens) -> None:
    """Change the current context; `firsts` takes a token for each variable that was not set before."""
    for var, value in changes.values:
        token = var.set(value)
        if token.old_value is Token.MISSING:
            firsts[var] = token
    for var in changes.unset:
        if var in firsts:
            # ValueError: the task's code has been moved to another context since.
            with contextlib.suppress(ValueError):
                var.reset(firsts.pop(var))
