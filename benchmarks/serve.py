"""The figures under real servers: ours and Django's handlers, ASGI and WSGI, asked over 127.0.0.1.

Servers are measured in turn, over several rounds: each is started, asked for every page in slices of a second or more, and ended; each
round begins with another one. So none has a neighbour that holds threads, or connections that
PostgreSQL has only so many of. With two processors or more, servers run on one and the load on another, so that
neither is slowed down by the other's work. PostgreSQL runs where its system puts it.

Which thread may touch what. All of it belongs to the main thread of the command.
"""

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.bench import BenchmarkError
from benchmarks.load import CONNECTIONS, OWN, WRK, Load
from benchmarks.load_child import Answers
from benchmarks.options import (
    add_common,
    check_paths,
    chosen_pages,
    count,
    page_list,
    show_and_keep,
)
from benchmarks.pages import PAGES, Page
from benchmarks.project import Database, databases, ended_by_signals, versions
from benchmarks.rates import Count, PageRates, Rates, RatesReport
from benchmarks.servers import (
    OPTIONAL,
    SERVERS,
    Running,
    Server,
    cpu_seconds,
    fetch,
    missing,
    started,
)

__all__ = ("add_parser", "run")

_ROUNDS, _QUICK_ROUNDS = 5, 1
_SLICE_SECONDS = 1
# Enough for threads and connections to be there.
_WARM_UP_REQUESTS = 100
_COUNTED_REQUESTS = 1000
_COUNTED_PAGES = ("sync-query", "async-aget")
_OPENED = "connections opened"
# A load generator that can do no more than so many times what is measured is part of the measurement.
_ENOUGH_CEILING = 3
_HELLO = PAGES[1]


@dataclass(frozen=True, slots=True)
class _Plan:
    """How to measure, and on which processors the servers run; None for anywhere."""

    rounds: int
    seconds: int
    load: Load
    processors: frozenset[int] | None


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command ``serve``."""
    parser = commands.add_parser(
        "serve",
        help="our handler and Django's under real servers",
        epilog=f"{page_list()}\n\nservers:\n{_server_list()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common(parser, _ROUNDS, f"{_QUICK_ROUNDS} round: to see that it runs, not to publish")
    parser.add_argument(
        "--server",
        metavar="NAME",
        action="append",
        default=[],
        help="only servers with NAME in their name (can be given several times)",
    )
    parser.add_argument(
        "--seconds",
        type=count,
        metavar="N",
        default=_SLICE_SECONDS,
        help=f"how long a slice takes (default {_SLICE_SECONDS})",
    )
    parser.add_argument(
        "--load",
        choices=(WRK, OWN),
        help="what asks: wrk, or a generator of our own (default: wrk where it is installed)",
    )
    parser.add_argument(
        "--no-pin",
        action="store_true",
        help="do not keep the servers on one processor and the load on another",
    )
    parser.set_defaults(run=run, parser=parser)


def _server_list() -> str:
    lines = [f"  {server.name}" for server in SERVERS]
    return "\n".join([*lines, *(f"  {one.name} (only with --server)" for one in OPTIONAL)])


def run(options: argparse.Namespace) -> int:
    """Measure, print the tables, and return the exit code."""
    parser: argparse.ArgumentParser = options.parser
    pages = chosen_pages(options.only, parser)
    servers = _chosen_servers(options.server, parser)
    check_paths(options, parser)
    plan = _plan(options, parser)
    try:
        with ended_by_signals(), databases(options.postgres) as made:
            report = _Run(pages, servers, made, plan).report()
    except BenchmarkError as error:
        parser.exit(1, f"{error}\n")
    full = not (
        *options.only,
        *options.server,
        *filter(None, (options.quick, options.rounds, options.no_pin, options.load)),
    )
    return show_and_keep(report, options.json, full=full)


def _chosen_servers(only: Sequence[str], parser: argparse.ArgumentParser) -> tuple[Server, ...]:
    for part in only:
        if not any(part in server.name for server in SERVERS + OPTIONAL):
            parser.error(
                f"--server: no server has {part!r} in its name; there are\n{_server_list()}"
            )
    if not only:
        return SERVERS
    return tuple(
        server for server in SERVERS + OPTIONAL if any(part in server.name for part in only)
    )


def _plan(options: argparse.Namespace, parser: argparse.ArgumentParser) -> _Plan:
    if options.load == WRK and shutil.which(WRK) is None:
        parser.error("--load wrk: there is no program wrk; the package of that name has it")
    servers_on, load_on = (None, None) if options.no_pin else _processors()
    load = Load(options.load or Load.best(), load_on)
    rounds = options.rounds or (_QUICK_ROUNDS if options.quick else _ROUNDS)
    return _Plan(rounds, options.seconds, load, servers_on)


def _processors() -> tuple[frozenset[int] | None, frozenset[int] | None]:
    """Return where the servers run, and where the load; None where that cannot be chosen."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(usable) < 2:
        return None, None
    return frozenset({usable[-1]}), frozenset({usable[0]})


@dataclass(slots=True)
class _Taken:
    """What one server gave with one page so far."""

    answers: list[Answers] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    def rates(self, side: str) -> Rates:
        return Rates(
            side,
            tuple(round(one.good / one.seconds, 1) for one in self.answers),
            tuple(round(cpu, 1) for cpu in self.cpu_us),
            tuple(round(one.p50_ms, 3) for one in self.answers),
            tuple(round(one.p99_ms, 3) for one in self.answers),
            sum(one.failed for one in self.answers),
        )


class _Rounds:
    """All rounds with one database."""

    def __init__(
        self, pages: Sequence[Page], servers: Sequence[Server], database: Database, plan: _Plan
    ) -> None:
        self._pages = pages
        self._servers = servers
        self._database = database
        self._plan = plan
        self._taken = {page: {server: _Taken() for server in servers} for page in pages}
        self._counted: dict[tuple[Page, str], dict[str, float]] = {}
        self._errors: dict[Page, str] = {}

    def run(self) -> None:
        """Take them, one server after the other; each round begins with another one."""
        for number in range(self._plan.rounds):
            first = number % len(self._servers)
            for server in (*self._servers[first:], *self._servers[:first]):
                self._turn(server, counting=number == 0 and self._database.postgres is not None)
            print(
                f"{self._database.name}: round {number + 1} of {self._plan.rounds}", file=sys.stderr
            )

    def rates(self) -> Iterator[PageRates]:
        """Yield what was timed."""
        for page, taken in self._taken.items():
            where = {"database": self._database.name if page.queries else "-"}
            error = self._errors.get(page)
            sides = () if error else tuple(one.rates(server.name) for server, one in taken.items())
            # One round without an answer is a bad round; nothing but such rounds is no figure.
            for side in sides:
                if not any(side.per_second):
                    error = f"{side.side}: no answer was good"
            yield PageRates(page.name, where, () if error else sides, error)

    def counts(self) -> Iterator[Count]:
        """Yield what was counted."""
        for (page, what), counts in self._counted.items():
            # One connection for each request that can be under way.
            target = CONNECTIONS if what == _OPENED else None
            yield Count(
                f"PostgreSQL, {_COUNTED_REQUESTS} requests, {what}", page.name, counts, target
            )

    def _turn(self, server: Server, *, counting: bool) -> None:
        """Start a server, ask it for each page, and end it."""
        with started(server, self._database, _HELLO, self._plan.processors) as running:
            for page in self._pages:
                if page in self._errors:
                    continue
                try:
                    if counting and page.name in _COUNTED_PAGES:
                        self._count(page, running)
                    self._slice(page, running)
                except BenchmarkError as error:
                    self._errors[page] = f"{server.name}: {error}"

    def _slice(self, page: Page, running: Running) -> None:
        load = self._plan.load
        load.times(running.port, page, _WARM_UP_REQUESTS)
        self._close_leaked(running)
        before = cpu_seconds(running.session)
        answers = load.for_seconds(running.port, page, self._plan.seconds)
        after = cpu_seconds(running.session)
        self._close_leaked(running)
        taken = self._taken[page][running.server]
        taken.answers.append(answers)
        if before is not None and after is not None:
            taken.cpu_us.append((after - before) / max(1, answers.good + answers.failed) * 1e6)

    def _count(self, page: Page, running: Running) -> None:
        """Count the connections to PostgreSQL that requests open, and leave."""
        before = int(fetch(running.port, "/connections/"))
        answers = self._plan.load.times(running.port, page, _COUNTED_REQUESTS)
        opened = int(fetch(running.port, "/connections/")) - before
        postgres = self._database.postgres
        left = 0 if postgres is None else postgres.connections_of(running.server.name)
        found = {_OPENED: opened, "connections left open": left, "failed": answers.failed}
        for what, number in found.items():
            self._counted.setdefault((page, what), {})[running.server.name] = number
        self._close_leaked(running)

    def _close_leaked(self, running: Running) -> None:
        # What threads that have ended leave open would be taken from the requests that follow.
        if running.server.leaks and self._database.postgres is not None:
            self._database.postgres.close_connections_of(running.server.name)


class _Run:
    """One run of the command."""

    def __init__(
        self,
        pages: Sequence[Page],
        servers: Sequence[Server],
        made: Sequence[Database],
        plan: _Plan,
    ) -> None:
        self._pages = pages
        self._servers = [server for server in servers if not missing(server)]
        self._left_out = [server.name for server in servers if missing(server)]
        self._databases = made
        self._plan = plan
        self._rates: list[PageRates] = []
        self._counts: list[Count] = []

    def report(self) -> RatesReport:
        """Measure everything and return what was found."""
        ceiling = self._ceiling()
        for database in self._databases:
            # A page that asks no database is the same with each.
            pages = [page for page in self._pages if page.queries or database is self._databases[0]]
            rounds = _Rounds(pages, self._servers, database, self._plan)
            if pages:
                rounds.run()
            self._rates += rounds.rates()
            self._counts += rounds.counts()
        return RatesReport(
            "serve",
            self._metadata(ceiling),
            tuple(self._rates),
            tuple(self._counts),
            tuple(self._remarks(ceiling)),
        )

    def _ceiling(self) -> float:
        """Return how many requests per second the load generator makes where the server does nothing."""
        bare = Server("bare", lambda port: ["-m", "benchmarks.bare_server", str(port)], "asyncio")
        with started(bare, self._databases[0], _HELLO, self._plan.processors) as running:
            answers = self._plan.load.for_seconds(running.port, _HELLO, self._plan.seconds)
        return answers.good / answers.seconds

    def _remarks(self, ceiling: float) -> Iterator[str]:
        if self._left_out:
            yield f"Left out, not installed: {', '.join(self._left_out)} (pip install -e '.[bench]')"
        measured = [max(side.per_second) for page in self._rates for side in page.sides]
        if measured and max(measured) * _ENOUGH_CEILING > ceiling:
            yield "The load generator is too slow for these servers: the fastest are faster than shown"

    def _metadata(self, ceiling: float) -> dict[str, Any]:
        packages = ("uvicorn", "uvloop", "httptools", "gunicorn", "granian", "psycopg")
        pinned = self._plan.processors is not None
        return {
            "python": platform.python_version(),
            "system": platform.system(),
            "processors": os.cpu_count(),
            "pinned": pinned,
            "rounds": self._plan.rounds,
            "slice_seconds": self._plan.seconds,
            "connections": CONNECTIONS,
            "load": self._plan.load.tool,
            "load_ceiling": round(ceiling),
            **versions("Django", "django-asyncbridge", "asgiref", *packages),
            **{database.name: database.version for database in self._databases},
        }
