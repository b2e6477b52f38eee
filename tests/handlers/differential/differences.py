"""Where our handler differs from Django's on purpose, and why.

The only differences that the comparison lets pass. An entry says what of an outcome of Django's becomes what with ours; everything
else has to stay as it is. Each entry names a stack and a question that show it, and is an error if they do not.

Which thread may touch what. The table does not change.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import django

from tests.handlers.differential.outcomes import LOADING, Outcome
from tests.handlers.differential.trace import colour_of, coloured, without_colour

__all__ = ("DIFFERENCES", "STAND_INS", "Difference", "expected")


@dataclass(frozen=True)
class Difference:
    """One difference that is on purpose.

    Attributes:
        reason: why.
        changed: given an outcome of Django's and that of ours, what the latter has to be; the former if this is not about it.
            It looks at ours only where there are several right ones.
        stack: the name of a stack that shows it.
        question: the name of what it is asked, or ``sides.LOADING``.
    """

    reason: str
    changed: Callable[[Outcome, Outcome], Outcome]
    stack: str
    question: str


def expected(theirs: Outcome, ours: Outcome, differences: Iterable[Difference]) -> Outcome:
    """Return what `ours` has to be where Django's is `theirs`."""
    for difference in differences:
        theirs = difference.changed(theirs, ours)
    return theirs


STAND_INS = {"class_async_unmarked": "class_async", "class_both_unmarked": "class_both"}
"""Shapes that Django's handler is given in the place of others.

An async middleware that forgets ``markcoroutinefunction`` does with ours what it would do with Django's if it had not.
There, the middlewares around it take it for sync, and return its coroutine as a response.
"""

_UNMARKED = "warning: UserWarning async_to_sync was passed a non-async-marked callable"
_CONSUMED = "warning: Warning StreamingHttpResponse must consume synchronous iterators"
_FINISHED = "signal: request_finished ASGIHandler ['signal'] NoneType"
_MAPS = ": maps "
_ENDINGS = {
    (_FINISHED,),
    ("response: closes 200", _FINISHED, "response: is closed"),
}


# --- The rules ----------------------------------------------------------------------


def warned_of_what_is_not_marked(theirs: Outcome, ours: Outcome) -> Outcome:
    others = tuple(line for line in ours.trace if not line.startswith(_UNMARKED))
    return replace(theirs, trace=ours.trace) if others == theirs.trace else theirs


def streamed(theirs: Outcome, ours: Outcome) -> Outcome:
    trace = tuple(line for line in theirs.trace if not line.startswith(_CONSUMED))
    if trace == theirs.trace:
        return theirs
    part_of_it = theirs.raised and not theirs.body
    return replace(theirs, trace=trace, body=ours.body if part_of_it else theirs.body)


def not_begun(theirs: Outcome, ours: Outcome) -> Outcome:
    if not theirs.raised.startswith("ContentNotRenderedError"):
        return theirs
    trace = tuple(line for line in theirs.trace if without_colour(line) != "answer: begins")
    return replace(theirs, trace=trace, status=None, headers=())


def closed(theirs: Outcome, ours: Outcome) -> Outcome:
    ending = ours.trace[len(theirs.trace) :]
    if not theirs.raised or tuple(map(without_colour, ending)) not in _ENDINGS:
        return theirs
    return replace(theirs, trace=theirs.trace + ending)


def read_in_larger_blocks(theirs: Outcome, ours: Outcome) -> Outcome:
    if not any("FileResponse" in line for line in theirs.trace):
        return theirs
    same = _without_sizes(theirs) == _without_sizes(ours) and _size(theirs) == _size(ours)
    return replace(theirs, trace=ours.trace) if same else theirs


def _without_sizes(outcome: Outcome) -> list[str]:
    return [line for line in outcome.trace if _MAPS not in line]


def _size(outcome: Outcome) -> int:
    lines = map(without_colour, outcome.trace)
    return sum(int(line.rpartition(_MAPS)[2]) for line in lines if _MAPS in line)


def in_one_context(theirs: Outcome, ours: Outcome) -> Outcome:
    begun = [number for number, line in enumerate(theirs.trace) if line.startswith("answer: ends")]
    if not begun or not (seen := colour_of(theirs.trace[begun[-1]])):
        return theirs
    until = begun[-1] + 1
    after = [coloured(without_colour(line), seen) for line in theirs.trace[until:]]
    return replace(theirs, trace=(*theirs.trace[:until], *after))


# --- The table ----------------------------------------------------------------------

_TASK = Difference(
    "C47: one context for the whole request; up to Django 6.0 the end is outside of that of the view",
    in_one_context,
    "all_nothing",
    "GET sync_context",
)
DIFFERENCES: list[Difference] = [
    *([_TASK] if django.VERSION < (6, 1) else []),
    Difference(
        "the original of a stand-in is not marked, and whoever makes it sync is warned of that",
        warned_of_what_is_not_marked,
        "class_async_unmarked__colours_after",
        LOADING,
    ),
    Difference(
        "C71: sync content is sent as it is made, with no warning; if it raises, what was made has been sent",
        streamed,
        "all_nothing",
        "GET sync_streams_and_raises",
    ),
    Difference(
        "files are read in larger blocks, also for middleware that maps them",
        read_in_larger_blocks,
        "all_streams",
        "GET sync_sends_file",
    ),
    Difference(
        "nothing is sent of an answer that has no content yet: the server can still say that something went wrong",
        not_begun,
        "process_request__answers_page",
        "GET sync_template",
    ),
    Difference(
        "C79: the response is closed and request_finished sent also when the handler raises",
        closed,
        "all_nothing",
        "GET async_streams_async_and_raises",
    ),
]
