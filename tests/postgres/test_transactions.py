"""The tests of `django_asyncbridge.db`, again on PostgreSQL."""

import pytest

from tests.postgres.conftest import needs_postgres
from tests.support import ROOT, run_child

pytestmark = needs_postgres
FILES = sorted(path.name for path in (ROOT / "tests").glob("test_db*.py"))


@pytest.mark.parametrize("name", FILES)
def test_transactions_on_postgres_do_what_they_do_on_sqlite(database: str, name: str) -> None:
    run_child(
        """
        import sys
        import pytest
        sys.exit(pytest.main(["-q", "--create-db", "-p", "no:cacheprovider", f"tests/{sys.argv[1]}"]))
        """,
        name,
        timeout_seconds=110,
        TESTPROJECT_POSTGRES=database,
        DJANGO_SETTINGS_MODULE="testproject.settings",
    )
