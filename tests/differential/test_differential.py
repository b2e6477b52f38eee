"""Runs the table of scenarios with asgiref and with ours, and compares outcome by outcome."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import asgiref
import pytest

from tests.differential.differences import DIFFERENCES, Difference
from tests.differential.runner import CRASHES, FAILS, HANGS, outcomes
from tests.differential.scenarios import SAMPLES, SCENARIOS

REFERENCE = (3, 13)
INSTALLED = tuple(int(part) for part in asgiref.__version__.split(".")[:2])
pytestmark = pytest.mark.skipif(
    INSTALLED < REFERENCE, reason="asgiref 3.13 is the reference; older ones have other faults"
)


class Outcomes(NamedTuple):
    """What came out of each scenario with either library."""

    theirs: dict[str, object]
    ours: dict[str, object]


def group_of(name: str) -> str:
    """Return a scenario's name without its mode: what is one test."""
    return "/".join(name.split("/")[:2])


GROUPS = sorted({group_of(name) for name in SCENARIOS})


@pytest.fixture(scope="module")
def both() -> Outcomes:
    """Run the table with both libraries at once, each in a process of its own."""
    hanging = frozenset(entry.scenarios for entry in DIFFERENCES if entry.asgiref_hangs)
    with ThreadPoolExecutor(2) as pool:
        theirs = pool.submit(outcomes, "asgiref", list(SCENARIOS), hanging)
        ours = pool.submit(outcomes, "ours", list(SCENARIOS))
        return Outcomes(theirs.result(), ours.result())


@pytest.mark.parametrize("group", GROUPS)
def test_differential_scenarios_end_as_with_asgiref_or_as_explained(
    group: str, both: Outcomes
) -> None:
    unexplained = {
        name: {"asgiref": theirs, "ours": both.ours[name]}
        for name, theirs in both.theirs.items()
        if group_of(name) == group
        and theirs != both.ours[name]
        and not any(entry.explains(name, theirs, both.ours[name]) for entry in DIFFERENCES)
    }
    assert unexplained == {}


@pytest.mark.parametrize("entry", DIFFERENCES, ids=lambda entry: entry.scenarios)
def test_differential_named_difference_is_there(entry: Difference, both: Outcomes) -> None:
    explained = [
        name
        for name, theirs in both.theirs.items()
        if theirs != both.ours[name] and entry.explains(name, theirs, both.ours[name])
    ]
    assert explained or not entry.on_every_python


def test_differential_ours_neither_hangs_nor_fails(both: Outcomes) -> None:
    bad = (HANGS, CRASHES, FAILS)
    assert {name: end for name, end in both.ours.items() if str(end).startswith(bad)} == {}


def test_differential_runner_goes_on_after_hang_and_crash() -> None:
    found = outcomes("ours", list(SAMPLES), frozenset({"samples/hangs"}))
    assert found == {
        "samples/returns": [1],
        "samples/fails": f"{FAILS} LookupError",
        "samples/hangs": HANGS,
        "samples/crashes": CRASHES,
    }
