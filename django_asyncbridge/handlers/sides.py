"""`Step` and `Side`: what is called on a request's way, and where it may run.

A `Side` is decided once, when the handler loads the middleware: `step_of` looks at what will be called. Code that blocks
only sometimes has a `Condition`, which is asked at each call, and only where the answer matters: on the event loop.

Hard rules. Unknown sync code may block. A condition never blocks itself, and never guesses: False costs one
crossing, a wrong True stops every request of the process.

Which thread may touch what. Steps do not change; conditions are asked in the thread of the event loop. `_kept` is
read and written by any thread, one entry at a time; two that miss the same one make equal entries.
"""

import enum
import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from django_asyncbridge import safety
from django_asyncbridge.bridge.sync import iscoroutinefunction

__all__ = ("Condition", "Side", "Step", "kept_step_of", "never_blocks", "step_of")

Condition = Callable[..., bool]


class Side(enum.Enum):
    """Where a step may run.

    Attributes:
        THREAD: in the request's home thread, since it may block.
        LOOP: on the event loop; it is a coroutine function.
        ANY: wherever the request is, since it never blocks.
    """

    THREAD = "thread"
    LOOP = "loop"
    ANY = "any"


class Step(NamedTuple):
    """One callable on a request's way.

    Attributes:
        call: what is called.
        side: where it may run.
        unless: of a `THREAD` step: called with the same arguments, it tells whether this very call never blocks.
        keeps_tokens: whether it may reset a context variable with a token that another sync step made, or the other way
            round: that has to work also where only one of them needs the thread.
    """

    call: Callable[..., Any]
    side: Side
    unless: Condition | None = None
    keeps_tokens: bool = False


def never_blocks(*_args: object) -> bool:
    """Be the condition of code that never blocks, whatever it is called with."""
    return True


def step_of(call: Callable[..., Any], condition: Condition | None = None) -> Step:
    """Return `call` with the side it may run on.

    Args:
        call: a function, a method, or an object that is called.
        condition: what is known of it, if something is.
    """
    if iscoroutinefunction(call):
        return Step(call, Side.LOOP)
    if condition is never_blocks:
        return Step(call, Side.ANY)
    if safety.is_async_safe(call):
        # The project's own. Of Django's, none keeps a token.
        return Step(call, Side.ANY, keeps_tokens=True)
    return Step(call, Side.THREAD, condition)


# By the identity of a function: a reference to it, what `safety` knew, and the rest of its step.
_kept: dict[int, tuple["weakref.ref[Any]", object, tuple[Side, Condition | None, bool]]] = {}


def kept_step_of(
    call: Callable[..., Any], condition_of: Callable[[Any], Condition | None] | None = None
) -> Step:
    """Return what `step_of` does, and keep it for functions: views and receivers come by with every request.

    Args:
        call: as for `step_of`. Nothing is kept alive.
        condition_of: returns what is known of a callable, always the same.
    """
    known = _kept.get(id(call))
    if known is not None and known[0]() is call and known[1] is safety.version:
        return Step(call, *known[2])
    version = safety.version
    step = step_of(call, None if condition_of is None else condition_of(call))
    if isinstance(call, types.FunctionType):
        # Not the step itself, which refers to the function.
        _kept[id(call)] = (weakref.ref(call, _forgetting(id(call))), version, step[1:])
    return step


def _forgetting(key: int) -> Callable[[object], None]:
    def forget(_reference: object) -> None:
        _kept.pop(key, None)

    return forget
