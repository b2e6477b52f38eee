"""The measured project from outside: its databases, and the environment and processors of the processes that run it.

Every database is made for one run and is gone after it, also when the run fails. PostgreSQL is asked over one
connection to its database ``postgres``; the user must be allowed to make databases.

Which thread may touch what. All of it belongs to the main thread of the command.
"""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from benchmarks.bench import BenchmarkError

if find_spec("psycopg") is not None:
    import psycopg
    from psycopg import sql

__all__ = (
    "CONN_MAX_AGE_SECONDS",
    "ROOT",
    "Database",
    "Postgres",
    "databases",
    "ended_by_signals",
    "environment",
    "on_processors",
    "versions",
)

ROOT = Path(__file__).resolve().parent.parent
# Long enough to outlive every slice: whoever can keep a connection keeps it.
CONN_MAX_AGE_SECONDS = 60
_FILL_SECONDS = 120
_CLOSE_SECONDS = 20
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Database:
    """One database of a run.

    Args:
        name: as the tables have it.
        settings: the value for Django's ``DATABASES``.
        postgres: the server it is in; None for SQLite.
    """

    name: str
    settings: Mapping[str, Any]
    postgres: "Postgres | None" = None

    @property
    def version(self) -> str:
        """The version of the database's software, and how many connections it takes if they are limited."""
        if self.postgres is None:
            return sqlite3.sqlite_version
        return f"{self.postgres.version} (max_connections {self.postgres.max_connections})"

    def settings_for(self, client: str) -> dict[str, Any]:
        """Return the settings for one process, whose connections can be told from those of others."""
        settings = dict(self.settings)
        if self.postgres is not None:
            settings["OPTIONS"] = {**settings["OPTIONS"], "application_name": client}
        return settings


class Postgres:
    """A PostgreSQL server, and the database in it that is made for one run.

    Args:
        conninfo: where it is, as libpq has it: ``"host=127.0.0.1 user=postgres"``.

    Raises:
        BenchmarkError: when it does not answer, or psycopg is not installed.
    """

    def __init__(self, conninfo: str) -> None:
        if find_spec("psycopg") is None:
            raise BenchmarkError("--postgres needs psycopg: pip install -e '.[bench]'")
        self.database = f"benchmarks_{os.getpid()}"
        self._conninfo = conninfo
        try:
            self._connection = psycopg.connect(conninfo, dbname="postgres", autocommit=True)
        except psycopg.Error as error:
            raise BenchmarkError(f"PostgreSQL does not answer: {error}") from error

    @property
    def version(self) -> str:
        """The version of the server."""
        version: str = self._value("SHOW server_version")
        return version.split(maxsplit=1)[0]

    @property
    def max_connections(self) -> int:
        """How many connections the server takes, from all its clients."""
        return int(self._value("SHOW max_connections"))

    @contextlib.contextmanager
    def made(self) -> Generator[Database]:
        """Make the database, and drop it at the end, whoever may be connected to it."""
        name = sql.Identifier(self.database)
        try:
            self._connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
            yield Database("PostgreSQL", self._settings(), self)
        finally:
            drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
            self._connection.execute(drop.format(name))
            self._connection.close()

    def connections_of(self, client: str) -> int:
        """Return how many connections that client has open now."""
        return int(
            self._value(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name = %s",
                (self.database, client),
            )
        )

    def close_connections_of(self, client: str) -> None:
        """End all connections of that client from the server's side, and wait until their places are free.

        Raises:
            BenchmarkError: when they are not after some seconds.
        """
        limit = time.monotonic() + _CLOSE_SECONDS
        while self.connections_of(client):
            if time.monotonic() > limit:
                raise BenchmarkError(f"PostgreSQL does not close the connections of {client}")
            self._connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = %s AND application_name = %s",
                (self.database, client),
            )
            time.sleep(_POLL_SECONDS)

    def _settings(self) -> dict[str, Any]:
        options: dict[str, Any] = psycopg.conninfo.conninfo_to_dict(self._conninfo)
        options.pop("dbname", None)
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": self.database,
            "CONN_MAX_AGE": CONN_MAX_AGE_SECONDS,
            "OPTIONS": options,
        }

    def _value(self, query: str, parameters: Sequence[object] = ()) -> Any:
        # Queries of this module, and no others.
        row = self._connection.execute(query.encode(), parameters).fetchone()
        if row is None:
            raise BenchmarkError(f"PostgreSQL has no answer to {query!r}")
        return row[0]


@contextlib.contextmanager
def databases(conninfo: str | None) -> Generator[tuple[Database, ...]]:
    """Make and fill the databases of a run: SQLite in a temporary file, and PostgreSQL if it is named.

    Args:
        conninfo: see `Postgres`; None for SQLite alone.

    Raises:
        BenchmarkError: when a database cannot be made or filled.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmarks-"))
        made = [_sqlite(Path(folder))]
        if conninfo is not None:
            made.append(stack.enter_context(Postgres(conninfo).made()))
        for database in made:
            _fill(database)
        yield tuple(made)


def _sqlite(folder: Path) -> Database:
    settings = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(folder / "db.sqlite3"),
        "CONN_MAX_AGE": CONN_MAX_AGE_SECONDS,
    }
    return Database("SQLite", settings)


def _fill(database: Database) -> None:
    command = [sys.executable, "-m", "benchmarks.site.fill"]
    filled = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(database, "fill", ours=False),
        timeout=_FILL_SECONDS,
        check=False,
    )
    if filled.returncode != 0:
        raise BenchmarkError(f"{database.name} could not be filled; the reason is above")


def environment(database: Database, client: str, *, ours: bool) -> dict[str, str]:
    """Return the environment of a process that runs the project.

    Args:
        database: which one it uses.
        client: what the process is called there.
        ours: whether this package is one of its apps.
    """
    # Debug modes, tracing allocations and the like would measure something else.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(paths),
        "DJANGO_SETTINGS_MODULE": "benchmarks.site.settings",
        "BENCHMARKS_DATABASE": json.dumps(database.settings_for(client)),
        "BENCHMARKS_OURS": str(int(ours)),
    }


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@contextlib.contextmanager
def on_processors(processors: frozenset[int] | None) -> Generator[None]:
    """Have the processes that are started in the block run on these processors; None for where the system likes."""
    if processors is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def ended_by_signals() -> Generator[None]:
    """Have SIGTERM end the block as Ctrl-C does, so that what it has started is ended too."""
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    # The code that shells give for a death by signal.
    sys.exit(128 + number)
