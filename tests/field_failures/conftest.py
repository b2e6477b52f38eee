"""Fixtures of the tests of the field failures."""

import gc
from collections.abc import Iterator

import pytest

from tests.field_failures.common import Work


@pytest.fixture
def work() -> Iterator[Work]:
    """Return a `Work` that holds its thread no longer than the test, even one that fails."""
    work = Work()
    yield work
    work.release.set()


@pytest.fixture
def no_gc() -> Iterator[None]:
    """Switch the garbage collector off, so that a reference cycle keeps its objects alive."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
