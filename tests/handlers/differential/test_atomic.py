"""``ATOMIC_REQUESTS`` under both handlers: they need a database."""

from collections.abc import Iterator

import pytest
from django.db import connections

from tests.db_support import close_connections_of_requests
from tests.handlers.differential.differences import DIFFERENCES, expected
from tests.handlers.differential.outcomes import differing
from tests.handlers.differential.sides import both
from tests.handlers.differential.stacks import STACKS

pytestmark = pytest.mark.django_db(transaction=True)
NAMES = ("GET sync_transaction", "GET sync_raises_ValueError", "GET sync_template")


@pytest.fixture(autouse=True)
def atomic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have requests run in a transaction; afterwards close the connections of their threads, which stay open."""
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    yield
    close_connections_of_requests()


@pytest.mark.parametrize("name", ["all_nothing", "all_mixed", "all_startproject"])
def test_handler_with_atomic_requests_does_what_djangos_does(name: str) -> None:
    pairs = both(STACKS[name], NAMES)
    for there, here in pairs.values():
        assert differing(expected(there, here, DIFFERENCES), here) == {}
    assert "view: in a transaction True" in pairs[NAMES[0]][1].trace
