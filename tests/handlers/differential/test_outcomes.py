"""Whatever differs between two outcomes is seen, and named differences explain nothing but themselves."""

from dataclasses import replace
from typing import Any

import pytest

from tests.handlers.differential.differences import (
    DIFFERENCES,
    closed,
    expected,
    in_one_context,
    not_begun,
    read_in_larger_blocks,
    streamed,
    warned_of_what_is_not_marked,
)
from tests.handlers.differential.outcomes import Outcome, differing

FINISHED = "signal: request_finished ASGIHandler ['signal'] NoneType"
CONSUMED = "warning: Warning StreamingHttpResponse must consume synchronous iterators in order"
UNMARKED = "warning: UserWarning async_to_sync was passed a non-async-marked callable"
PLAIN = Outcome(
    ("a: enters", "b: enters", "answer: begins", "answer: ends", FINISHED),
    status=200,
    headers=((b"A", b"1"), (b"B", b"2")),
    body=b"body",
    ended=True,
)
CHANGES: dict[str, dict[str, Any]] = {
    "order of hooks": {"trace": ("b: enters", "a: enters", *PLAIN.trace[2:])},
    "hook not called": {"trace": PLAIN.trace[1:]},
    "hook called twice": {"trace": (PLAIN.trace[0], *PLAIN.trace)},
    "context lost": {"trace": ("a: enters | colour red", *PLAIN.trace[1:])},
    "signal not sent": {"trace": PLAIN.trace[:-1]},
    "signal sent twice": {"trace": (*PLAIN.trace, FINISHED)},
    "status": {"status": 500},
    "order of headers": {"headers": PLAIN.headers[::-1]},
    "case of a header": {"headers": ((b"a", b"1"), (b"B", b"2"))},
    "header missing": {"headers": PLAIN.headers[1:]},
    "body": {"body": b"Body"},
    "end missing": {"ended": False},
    "error": {"raised": "ValueError: no"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_comparison_of_any_change_sees_it(name: str) -> None:
    changed = replace(PLAIN, **CHANGES[name])
    for there, here in ((PLAIN, changed), (changed, PLAIN)):
        assert set(differing(expected(there, here, DIFFERENCES), here)) == set(CHANGES[name])


def test_comparison_of_the_same_finds_nothing() -> None:
    assert differing(expected(PLAIN, PLAIN, DIFFERENCES), PLAIN) == {}


def test_comparison_of_traces_shows_what_is_gone_and_what_has_come() -> None:
    found = differing(Outcome(("one", "two")), Outcome(("two", "three")))
    assert found == {"trace": ["- one", "  two", "+ three"]}


def test_difference_of_closing_takes_only_a_whole_ending_after_an_error() -> None:
    broken = Outcome(("view: raises",), raised="ValueError: no")
    endings: list[tuple[str, ...]] = [
        (FINISHED,),
        ("response: closes 200", FINISHED, "response: is closed"),
    ]
    for ending in endings:
        ours = replace(broken, trace=broken.trace + ending)
        assert closed(broken, ours) == ours
        assert closed(replace(broken, raised=""), ours) == replace(broken, raised="")
    no_endings: list[tuple[str, ...]] = [(FINISHED, FINISHED), ("response: closes 200",), ()]
    for ending in no_endings:
        assert closed(broken, replace(broken, trace=broken.trace + ending)) == broken


def test_difference_of_streaming_takes_a_warning_away_and_keeps_the_body() -> None:
    warned = replace(PLAIN, trace=(*PLAIN.trace, CONSUMED))
    assert streamed(warned, replace(PLAIN, body=b"other")) == PLAIN
    assert streamed(PLAIN, replace(PLAIN, body=b"other")) == PLAIN


def test_difference_of_streaming_lets_the_body_begin_that_was_lost_by_an_error() -> None:
    failed = Outcome((CONSUMED,), raised="ValueError: no", status=200)
    assert streamed(failed, Outcome(body=b"part")).body == b"part"
    assert streamed(replace(failed, body=b"half"), Outcome(body=b"part")).body == b"half"


def test_difference_of_unrendered_content_takes_the_beginning_away() -> None:
    begun = replace(PLAIN, raised="ContentNotRenderedError: no", trace=("a", "answer: begins"))
    here = not_begun(begun, begun)
    assert (here.trace, here.status, here.headers) == (("a",), None, ())
    assert not_begun(PLAIN, PLAIN) == PLAIN


def test_difference_of_blocks_takes_the_same_bytes_in_another_number_of_blocks() -> None:
    there = Outcome(("view: FileResponse 200", "a: maps 2", "a: maps 3 | colour red"))
    here = replace(there, trace=(there.trace[0], "a: maps 5"))
    assert read_in_larger_blocks(there, here) == here
    for trace in ((there.trace[0], "a: maps 6"), (there.trace[0], "b: enters", "a: maps 5")):
        assert read_in_larger_blocks(there, replace(here, trace=trace)) == there
    assert read_in_larger_blocks(PLAIN, here) == PLAIN


def test_difference_of_stand_ins_takes_nothing_but_the_warning() -> None:
    loading = Outcome(("log: one", "log: two"))
    warned = Outcome(("log: one", UNMARKED, "log: two"))
    assert warned_of_what_is_not_marked(loading, warned) == warned
    assert warned_of_what_is_not_marked(Outcome(("log: one",)), warned) == Outcome(("log: one",))


def test_difference_of_contexts_colours_the_end_as_the_answer() -> None:
    there = Outcome(("view: a", "answer: ends | colour red", FINISHED))
    here = Outcome((*there.trace[:2], f"{FINISHED} | colour red"))
    assert in_one_context(there, here) == here
    assert in_one_context(PLAIN, here) == PLAIN
    assert in_one_context(Outcome(("view: a | colour red",)), here).trace == (
        "view: a | colour red",
    )
