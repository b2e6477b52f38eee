"""Context variables across a crossing: there with a call, and back with its result.

Theory of operation. A sync function called from a task runs in a copy of the task's context. Afterwards
the task's context is given what the function changed: what is another object than before, what is new, and what
was unset. Comparing is by identity, in C; nothing is asked of the values, whose ``==`` may do anything.

The context of a call that holds the process's shared thread carries one more variable, `mark`, so that everything started
from there can be told from what merely shares the task's context. It is no change of the function's.

A `contextvars.Token` can only be used in the context it was made in. So if a token outlives the
call, its context (the *twin* of the task's) is used for the task's next calls as well, after it was given what
changed in the task meanwhile. Nobody has to hold the twin: a token refers to it, so a weak reference tells
whether one is left. Without tokens a call costs one copy (constant time) and one comparison.

Why not run the function in the task's own context: a Context can be entered once at a time, and several tasks
may share one (``create_task(..., context=...)``; Django's ``Signal.asend`` does that). While a worker
were inside, the event loop could not run the other tasks' next step, and asyncio drops a step that fails.

Some values belong to the thread that set them (asgiref's `Local`). Who knows them has himself called where they have
arrived (`on_arrival`). What he does in the worker is no change of the function's: the comparison begins after that.

Which thread may touch what. `Passage.__init__` and `back` run in the task, `run` in the worker in
between; the task waits while `run` runs, so no two threads use a passage, or enter a twin, at once. A
coroutine stepped by hand could start a second call before the first is done; `in_use` gives that one a copy.

Source: PEP 567; promise P3.
"""

import asyncio
import contextlib
import contextvars
import functools
import weakref
from collections.abc import Callable
from contextvars import Context, ContextVar, Token
from operator import is_
from typing import Any, NamedTuple, TypeVar

__all__ = (
    "Passage",
    "arrived",
    "carry_back",
    "mark",
    "on_arrival",
    "restore_context",
    "run_here",
)

R = TypeVar("R")


class _Changes(NamedTuple):
    values: list[tuple[ContextVar[Any], Any]]
    unset: list[ContextVar[Any]]


_NO_CHANGES = _Changes([], [])
_arrival_hook: Callable[[], None] | None = None


def _everything(context: Context) -> bool:
    return True


_concerns: Callable[[Context], bool] = _everything


def on_arrival(
    hook: Callable[[], None] | None, concerns: Callable[[Context], bool] = _everything
) -> None:
    """Have `hook` called in the current context whenever a crossing has brought values to another thread.

    It is called before the function with everything that a call takes along, and after it if the function changed anything.

    Args:
        hook: called without arguments in the thread where the values have arrived; None for nobody.
        concerns: tells whether a context has values that the hook must see; if not, a call goes there without the hook.
            Any thread calls it.
    """
    global _arrival_hook, _concerns
    _arrival_hook, _concerns = hook, concerns


def arrived() -> None:
    """Say that the current context's values have come from another thread."""
    if _arrival_hook is not None:
        _arrival_hook()


_EMPTY = Context()


def _changes(old: Context, new: Context) -> _Changes:
    """Return what has to be done to `old` to make it `new`."""
    # Two contexts with the same variables list them in the same order, so these loops in C settle most calls.
    same_values = len(old) == len(new) and all(map(is_, old.values(), new.values()))
    if same_values and all(map(is_, old, new)):
        return _NO_CHANGES
    missing = object()
    values = [(var, value) for var, value in new.items() if old.get(var, missing) is not value]
    return _Changes(values, [var for var in old if var not in new])


def restore_context(context: Context) -> None:
    """Give the current context every value that differs in `context`; what only the current one has stays."""
    for var, value in _changes(contextvars.copy_context(), context).values:
        var.set(value)


def carry_back(before: Context, after: Context, left_out: ContextVar[Any]) -> None:
    """Give the current context what has changed from `before` to `after`, but for one variable."""
    for var, value in _changes(before, after).values:
        if var is not left_out:
            var.set(value)
    arrived()


# What a call holds; asgiref's `deadlock_context`.
mark: ContextVar[Any] = ContextVar("deadlock_context")

_Tokens = dict[ContextVar[Any], Token[Any]]


class _Twin:
    """What is kept about a context that a token keeps alive; see the module's theory of operation."""

    __slots__ = ("context", "firsts", "in_use", "inner_firsts", "owner")

    def __init__(
        self, context: "weakref.ref[Context]", owner: "asyncio.Task[Any]", firsts: _Tokens
    ) -> None:
        self.context = context
        self.owner = weakref.ref(owner)
        # Made in the task's context where a call set a variable first: they can unset it again.
        self.firsts = firsts
        # The same in `context`, of variables that the task set first. They keep it alive.
        self.inner_firsts: _Tokens = {}
        self.in_use = False

    def keep(self) -> None:
        """Be found by the next call, as a token (or anything) still refers to `context`; in the task."""
        context = self.context()
        if context is None:
            return
        owner = self.owner()
        if owner is not None:
            # They refer to their contexts, and those to them by way of `_twins`: no circle outlives the task.
            for tokens in (self.firsts, self.inner_firsts):
                owner.add_done_callback(functools.partial(_forget, tokens))
        # Tasks that share a context have a twin each.
        others = (twin for twin in _twins.get() if twin.owner() is not None and twin.context())
        twins = (self, *others)
        _twins.set(twins)
        context.run(_twins.set, twins)


def _forget(tokens: _Tokens, task: object) -> None:
    tokens.clear()


_twins: ContextVar[tuple[_Twin, ...]] = ContextVar("django_asyncbridge.twins", default=())


class Passage:
    """The context variables of one `sync_to_async` call.

    Args:
        task: the current task, whose context the current one is; or None when there is none.
        given: a context to run in instead, from which nothing is carried back.
        hold: the value of `mark` while the function runs, or None for that of the task.
        apart: never run in a twin: the function may go on when the task does.

    Attributes:
        run: calls a function with the task's context variables; in the worker. With a given context that is in
            use by another call it raises RuntimeError.
    """

    __slots__ = ("_before", "_changes", "_context", "_entered", "_given", "_hold", "_twin", "run")

    def __init__(
        self,
        task: "asyncio.Task[Any] | None",
        given: Context | None,
        hold: object = None,
        apart: bool = False,
    ) -> None:
        before = contextvars.copy_context()
        self._before: Context = before
        self._twin: _Twin | None = None
        self._given = given is not None
        self.run: Callable[[Callable[[], Any]], Any]
        if given is None and not _twins.get():
            self._context: Context | None = before.copy()
            if hold is not None:
                self._context.run(mark.set, hold)
                self._before = self._context.copy()
            self.run = self._context.run
            if _arrival_hook is not None and _concerns(before):
                self.run = self._run_arriving
            return
        self._hold = hold
        self._entered = False
        self._changes = _NO_CHANGES
        self.run = self._run_prepared
        if given is not None:
            self._context = given
            self.run = self._run_in_given
        elif apart or not self._use_twin(task):
            self._context = before.copy()

    def _use_twin(self, task: "asyncio.Task[Any] | None") -> bool:
        """Find the twin that earlier calls of this task left, if a token still needs it."""
        if task is None:
            return False
        twin = next((twin for twin in _twins.get() if twin.owner() is task), None)
        if twin is None or twin.in_use:
            return False
        context = twin.context()
        if context is None:
            return False
        changes = _without_mark(_changes(context, self._before))
        if not twin.inner_firsts.keys() >= set(changes.unset):
            # The task unset a variable that a call had set; only a token of that call could unset it there.
            return False
        self._twin, self._context, self._changes = twin, context, changes
        twin.in_use = True
        return True

    def _run_arriving(self, function: Callable[[], R]) -> R:
        __traceback_hide__ = True
        assert self._context is not None
        return self._context.run(self._arrive_and_call, function)

    def _arrive_and_call(self, function: Callable[[], R]) -> R:
        __traceback_hide__ = True
        self._arrive()
        return function()

    def _arrive(self) -> None:
        """Have the hook called; what it does to the worker's context is no change of the function's."""
        arrived()
        self._before = contextvars.copy_context()

    def _run_in_given(self, function: Callable[[], R]) -> R:
        __traceback_hide__ = True
        assert self._context is not None
        try:
            return self._context.run(self._call, function)
        except RuntimeError:
            if self._entered:
                raise
            raise RuntimeError(
                "the Context passed as context= is in use by a call that has not ended; "
                "pass a copy for each call that may run at the same time: context=context.copy()"
            ) from None

    def _run_prepared(self, function: Callable[[], R]) -> R:
        __traceback_hide__ = True
        assert self._context is not None
        return self._context.run(self._call, function)

    def _call(self, function: Callable[[], R]) -> R:
        __traceback_hide__ = True
        self._entered = True
        if self._twin is not None:
            _apply(self._changes, self._twin.inner_firsts)
        if _arrival_hook is not None:
            self._arrive()
        if self._hold is None:
            return function()
        token = mark.set(self._hold)
        try:
            return function()
        finally:
            mark.reset(token)
            # The traceback of an error keeps this frame, and a token would keep the context alive.
            del token

    def back(self, task: "asyncio.Task[Any] | None", ran: bool) -> None:
        """Give the current context what the function changed; in the task, once the worker is done.

        Args:
            task: as before.
            ran: whether the function has run.
        """
        context, before = self._context, self._before
        # A traceback keeps the frame of `run` and so this object; not every variable as well.
        self._context, self._before = None, _EMPTY
        del self.run
        if self._twin is not None:
            self._twin.in_use = False
        if self._given or not ran or context is None:
            return
        firsts = {} if self._twin is None else self._twin.firsts
        changes = _changes(before, context)
        if changes is not _NO_CHANGES:
            _apply(_without_mark(changes), firsts)
            arrived()
        if self._twin is None and task is not None:
            left = weakref.ref(context)
            del context
            if left() is not None:
                _Twin(left, task, firsts).keep()


def run_here(function: Callable[..., R], *args: Any) -> R:
    """Run a sync function in this thread, in a task, with its context variables as in a `sync_to_async` call.

    So a token made here can be reset in the task's next call, wherever that runs, and the other way round.
    """
    __traceback_hide__ = True
    task = asyncio.current_task()
    passage = Passage(task, None)
    try:
        result: R = passage.run(functools.partial(function, *args))
        return result
    finally:
        passage.back(task, ran=True)
        # The traceback of an error keeps this frame.
        del passage, task, args


def _without_mark(changes: _Changes) -> _Changes:
    return _Changes(
        [change for change in changes.values if change[0] is not mark],
        [var for var in changes.unset if var is not mark],
    )


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
