"""The database of these tests, and programs that use it."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests.support import run_child

VARIABLE = "ASYNCBRIDGE_TEST_POSTGRES"
needs_postgres = pytest.mark.skipif(
    VARIABLE not in os.environ,
    reason=f"needs PostgreSQL: {VARIABLE}='host=127.0.0.1 user=postgres'",
)
LIMIT_SECONDS = 60
Run = Callable[..., str]


@pytest.fixture(scope="session")
def server() -> str:
    """Return the conninfo of a server where databases may be created."""
    return os.environ[VARIABLE]


@pytest.fixture(scope="session")
def database(server: str) -> Iterator[str]:
    """Give the conninfo of a new database with the tables of testproject."""
    name = f"test_asyncbridge_{os.getpid()}"
    with psycopg.connect(f"{server} dbname=postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        try:
            conninfo = f"{server} dbname={name}"
            run_child(
                """
                import django
                from django.core.management import call_command
                django.setup()
                call_command("migrate", verbosity=0)
                """,
                timeout_seconds=LIMIT_SECONDS,
                DJANGO_SETTINGS_MODULE="testproject.settings",
                TESTPROJECT_POSTGRES=conninfo,
            )
            yield conninfo
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def run(database: str) -> Run:
    """Return a function that runs a program with `tests.postgres.site` as its project.

    Its keyword arguments are settings of the program: those of the database, and ``ASYNCBRIDGE``.
    """

    def run(program: str, **settings: Any) -> str:
        child = run_child(
            "from tests.postgres.site import *\n" + program,
            timeout_seconds=LIMIT_SECONDS,
            DJANGO_SETTINGS_MODULE="tests.postgres.settings",
            TESTPROJECT_POSTGRES=database,
            TEST_SETTINGS=repr(settings),
        )
        return child.stdout

    return run
