"""Which stacks of middleware there are, and what each is asked: a covering set, the same in every run.

Every shape stands in a stack with others around it, at any depth. Of the shapes that pass requests on, each kind
stands right above each other kind somewhere: at such a border a handler changes sides, or does not. Each stack is asked
what is essential, and some more by lot; so every question is asked of many stacks.

Hard rules. The lots come from the name of a stack alone.

Which thread may touch what. The tables do not change.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.handlers.differential.asking import Question
from tests.handlers.differential.hooks import MIXINS
from tests.handlers.differential.questions import ESSENTIAL, QUESTIONS
from tests.handlers.differential.shapes import DJANGOS, ODD, PASSING, STARTPROJECT, UNUSABLE
from tests.handlers.differential.wraps import WRAPS

__all__ = ("STACKS", "Stack", "questions_of")

DEPTH = 4
MORE_QUESTIONS = 1
URLS = "tests.handlers.differential.urls"
KINDS = ("mixin", "django", *WRAPS)
# The rare settings come round at these steps; they have no common factor, so they meet.
OWN_ERRORS_EACH, RAISING_ERRORS_EACH, ASYNC_RECEIVERS_EACH, DEBUG_EACH = 4, 7, 5, 9


@dataclass(frozen=True)
class Stack:
    """One test.

    Attributes:
        name: what the lots are drawn by.
        shapes: the outermost first; names or dotted paths.
        questions: all of them if None.
        settings: that are not as in `sites.SETTINGS`.
        async_receivers: whether signals are heard by coroutine functions.
    """

    name: str
    shapes: tuple[str, ...]
    questions: tuple[str, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    async_receivers: bool = False


def questions_of(stack: Stack) -> dict[str, Question]:
    """Return what a stack is asked, by name."""
    names = QUESTIONS if stack.questions is None else stack.questions
    return {name: QUESTIONS[name] for name in names}


# --- By lot ------------------------------------------------------------------------


def _drawn(name: str, shapes: tuple[str, ...], number: int) -> Stack:
    """Return a stack whose questions and settings are drawn."""
    lots = random.Random(f"questions of {name}")
    more = lots.sample(sorted(set(QUESTIONS) - set(ESSENTIAL)), MORE_QUESTIONS)
    return Stack(
        name,
        shapes,
        tuple(dict.fromkeys((*ESSENTIAL, *more))),
        _settings(number),
        number % ASYNC_RECEIVERS_EACH == 0,
    )


def _settings(number: int) -> dict[str, Any]:
    if number % DEBUG_EACH == 0:
        return {"DEBUG": True}
    if number % RAISING_ERRORS_EACH == 0:
        return {"ROOT_URLCONF": f"{URLS}_raising_errors"}
    if number % OWN_ERRORS_EACH == 0:
        return {"ROOT_URLCONF": f"{URLS}_own_errors"}
    return {}


def _passing(kind: str, lots: random.Random) -> str:
    """Return a shape of a kind that passes requests on."""
    if kind == "mixin":
        return lots.choice(sorted(MIXINS))
    return lots.choice(DJANGOS) if kind == "django" else kind


def _around_odd() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield a stack for each odd shape: it stands at any depth among others that pass requests on."""
    for odd in ODD:
        lots = random.Random(f"around {odd}")
        others = [_passing(lots.choice(KINDS), lots) for _ in range(lots.randrange(DEPTH))]
        others.insert(lots.randint(0, len(others)), odd)
        yield odd, tuple(others)


def _chains() -> Iterator[tuple[str, ...]]:
    """Yield chains of kinds until each has stood right above each other, itself too."""
    left = {(above, below): None for above in KINDS for below in KINDS}
    while left:
        chain = list(next(iter(left)))
        del left[chain[0], chain[1]]
        while len(chain) < DEPTH:
            following = [below for above, below in left if above == chain[-1]]
            if not following:
                break
            chain.append(following[-1])
            del left[chain[-2], chain[-1]]
        yield tuple(chain)


def _borders() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield stacks in which each kind stands right above each other, with shapes of these kinds."""
    for number, chain in enumerate(_chains()):
        lots = random.Random(f"border {number}")
        yield f"border_{number}", tuple(_passing(kind, lots) for kind in chain)


def _alone() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield a stack of one for each subset of hooks and each form of Django's."""
    for name in (*MIXINS, *DJANGOS):
        yield f"alone_{name.rpartition('.')[2]}", (name,)


# --- Whole sites ----------------------------------------------------------------------

_MIXED = ("mixin_qvtxr", "class_sync_with_hooks", "function_async", "mixin_qvtxr")
_WHOLE: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "startproject": ("mixin_qvtxr", *STARTPROJECT, "mixin_qvtxr"),
    "mixed": _MIXED,
}


def _whole() -> Iterator[Stack]:
    """Yield stacks that are asked everything, and stacks that are asked for each error."""
    for name, shapes in _WHOLE.items():
        yield Stack(f"all_{name}", shapes)
    yield Stack("all_async_receivers", ("mixin_qvtxr",), async_receivers=True)
    failing = tuple(name for name in QUESTIONS if "raises" in name or "nowhere" in name)
    debug = (*STARTPROJECT, "mixin_qvtxr")
    yield Stack("failing_own_errors", _MIXED, failing, {"ROOT_URLCONF": f"{URLS}_own_errors"})
    yield Stack(
        "failing_raising_errors", _MIXED, failing, {"ROOT_URLCONF": f"{URLS}_raising_errors"}
    )
    yield Stack("failing_debug", debug, failing, {"DEBUG": True})
    propagates = {"DEBUG_PROPAGATE_EXCEPTIONS": True}
    for name, shapes in ("nothing", ()), ("mixed", (*_MIXED, "catches")):
        yield Stack(f"failing_propagated_{name}", shapes, failing, propagates)
    streaming = tuple(name for name in QUESTIONS if "streams" in name or "file" in name)
    yield Stack("all_streams", ("process_response__maps_content", *_MIXED), streaming)
    yield Stack("all_streams_gzip", ("django.middleware.gzip.GZipMiddleware",), streaming)


def _all() -> Iterator[Stack]:
    yield from _whole()
    drawn = [*_alone(), *_borders(), *_around_odd()]
    for number, (name, shapes) in enumerate(drawn):
        yield _drawn(name, shapes, number)
    for name in UNUSABLE:
        yield Stack(name, ("function_both", name, next(iter(PASSING))), ())


STACKS: dict[str, Stack] = {stack.name: stack for stack in _all()}
