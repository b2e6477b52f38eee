"""Nothing grows with the number of calls."""

import sys

import pytest

from tests.stress.flat import Sample, grown
from tests.support import run_child

FEW = Sample(calls=1000, resident_bytes=20_000_000, threads=3, files=8, objects=20_000)


COMMAND = "import runpy; runpy.run_module('tests.stress', run_name='__main__')"
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@on_linux
def test_flat_contexts_and_top_level_calls_leave_nothing() -> None:
    # Coverage keeps something of every thread, so what it measures grows: judged without it.
    child = run_child(
        COMMAND,
        "--flat=1200",
        timeout_seconds=60,
        COVERAGE_PROCESS_START="",
        COVERAGE_PROCESS_CONFIG="",
    )
    assert child.stdout.endswith("flat\n")


@on_linux
def test_flat_prints_a_sample_for_each_part_of_the_calls() -> None:
    child = run_child(COMMAND, "--flat=192", timeout_seconds=60, expect_code=None)
    calls = [line.split()[0] for line in child.stdout.splitlines()]
    assert calls[1:-1] == [str(16 * part) for part in range(1, 13)]


def test_grown_of_the_same_again_is_nothing() -> None:
    assert grown([FEW, FEW._replace(calls=2000)]) == []


@pytest.mark.parametrize(
    ("name", "more"),
    [("resident_bytes", 2_000_000), ("threads", 3), ("files", 5), ("objects", 300)],
)
def test_grown_of_what_has_grown_names_it(name: str, more: int) -> None:
    last = FEW._replace(**{name: getattr(FEW, name) + more}, calls=2000)
    (found,) = grown([FEW, last])
    assert found.startswith(f"{name}: {more} more after 1000 more calls")
