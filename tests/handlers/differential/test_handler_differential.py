"""Asks every stack the same under Django's handler and under ours, and compares outcome by outcome."""

import asgiref
import pytest

from tests.handlers.differential.differences import DIFFERENCES, Difference, expected
from tests.handlers.differential.outcomes import LOADING, differing
from tests.handlers.differential.sides import both
from tests.handlers.differential.stacks import STACKS

# What is asked is about Django: all of it with the newest asgiref, and with others a sample.
NEWEST = tuple(int(part) for part in asgiref.__version__.split(".")[:2]) >= (3, 13)
ASKED = list(STACKS)[:: 1 if NEWEST else 4]


@pytest.mark.parametrize("name", ASKED)
def test_handler_does_what_djangos_does_or_what_is_explained(name: str) -> None:
    outcomes = both(STACKS[name])
    assert set(outcomes) >= {LOADING}
    unexplained = {
        question: found
        for question, (there, here) in outcomes.items()
        if (found := differing(expected(there, here, DIFFERENCES), here))
    }
    assert unexplained == {}


@pytest.mark.parametrize("entry", DIFFERENCES, ids=lambda entry: entry.reason)
def test_handler_named_difference_is_there(entry: Difference) -> None:
    there, here = both(STACKS[entry.stack], [entry.question])[entry.question]
    others = [other for other in DIFFERENCES if other is not entry]
    assert differing(expected(there, here, others), here)
    assert not differing(expected(there, here, DIFFERENCES), here)
