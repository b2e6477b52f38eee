"""The figures of the handler, in process and without a server: Django's own beside ours.

Each side is a process of its own (`handler_child`), since an app that is installed changes Django for the whole process. Both are
there at once and asked in turn, in short slices over several rounds, as in `measure`.

Which thread may touch what. All of it belongs to the main thread; the children work one at a time.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

from benchmarks.bench import BenchmarkError
from benchmarks.handler_child import Setup
from benchmarks.measure import Plan, Sample, Slice, alternate
from benchmarks.options import add_common, check_paths, chosen_pages, page_list, show_and_keep
from benchmarks.pages import OURS, STOCK, Page
from benchmarks.project import ROOT, Database, databases, ended_by_signals, environment, versions
from benchmarks.rates import Count, PageRates, Rates, RatesReport

__all__ = ("add_parser", "run")

_LOOPS = ("asyncio", "uvloop")
# The load of the figures under a server, and one request after the other.
_AT_ONCE = (16, 1)
_MODULES = {OURS: "benchmarks.site.asgi", STOCK: "benchmarks.site.stock_asgi"}
_PLAN = Plan(rounds=15, slice_seconds=0.15)
_QUICK_PLAN = Plan(rounds=3, slice_seconds=0.06)
_END_SECONDS = 10
_CAN_PIN = hasattr(os, "sched_setaffinity")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command ``handler``."""
    parser = commands.add_parser(
        "handler",
        help="our ASGI handler beside Django's, in process",
        epilog=page_list(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common(parser, _PLAN.rounds, f"{_QUICK_PLAN.rounds} rounds of short slices: rough")
    parser.add_argument(
        "--loop", choices=_LOOPS, action="append", default=[], help="only this kind of event loop"
    )
    parser.add_argument(
        "--one-cpu",
        action="store_true",
        help="keep all threads of a side on one processor: steadier, without the scheduler's part",
    )
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    """Measure, print the table, and return the exit code."""
    parser: argparse.ArgumentParser = options.parser
    pages = chosen_pages(options.only, parser)
    check_paths(options, parser)
    if options.one_cpu and not _CAN_PIN:
        parser.error("--one-cpu: this system cannot keep a process on one processor")
    usual = _QUICK_PLAN if options.quick else _PLAN
    plan = Plan(options.rounds or usual.rounds, usual.slice_seconds, options.one_cpu)
    loops = tuple(dict.fromkeys(options.loop)) or _LOOPS
    try:
        with ended_by_signals(), databases(options.postgres) as made:
            report = _measured(pages, loops, made, plan)
    except BenchmarkError as error:
        parser.exit(1, f"{error}\n")
    full = not (options.only or options.loop or options.quick or options.rounds)
    return show_and_keep(report, options.json, full=full)


def _measured(
    pages: Sequence[Page], loops: Sequence[str], made: Sequence[Database], plan: Plan
) -> RatesReport:
    present = [loop for loop in loops if loop == "asyncio" or find_spec(loop) is not None]
    rates: list[PageRates] = []
    counts: list[Count] = []
    for loop in present:
        for database in made:
            # A page that asks no database is the same with each.
            asked = [page for page in pages if page.queries or database is made[0]]
            with _sides(loop, database, plan) as sides:
                for page in asked:
                    rates += _page_rates(page, loop, database, sides, plan)
                if not counts:
                    counts = [count for page in asked for count in _counts(page, sides)]
    left_out = [f"Left out, not installed: {loop}" for loop in loops if loop not in present]
    return RatesReport(
        "handler", _metadata(made, plan), tuple(rates), tuple(counts), tuple(left_out)
    )


class _Child:
    """One side: a process with its handler in it; a context manager that ends it."""

    def __init__(self, side: str, loop: str, database: Database, plan: Plan) -> None:
        self._side = side
        setup = Setup(_MODULES[side], loop, side == OURS, plan.one_cpu)
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.handler_child",
                json.dumps(dataclasses.asdict(setup)),
            ],
            cwd=ROOT,
            env=environment(database, side, ours=setup.ours),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        try:
            if exc is None:
                self._process.communicate(timeout=_END_SECONDS)
        finally:
            self._process.kill()
            self._process.communicate()

    def slice(self, page: Page, at_once: int) -> Slice:
        """Return a slice of requests for one page."""

        def measure(calls: int) -> Sample:
            return Sample(*self.ask("measure", page, at_once=at_once, calls=calls))

        return measure

    def ask(self, order: str, page: Page, **details: int) -> Any:
        """Have the process do something, and return its result.

        Raises:
            BenchmarkError: when it could not.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise BenchmarkError("the process was started without pipes")
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            print(
                json.dumps({"order": order, "page": page.name, **details}), file=stdin, flush=True
            )
            answer = stdout.readline()
        if not answer:
            raise BenchmarkError(f"the process of {self._side} ended; what it said is above")
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            raise BenchmarkError(f"{self._side}: {found['error']}")
        return found["result"]


@contextlib.contextmanager
def _sides(loop: str, database: Database, plan: Plan) -> Iterator[Mapping[str, _Child]]:
    with contextlib.ExitStack() as stack:
        yield {side: stack.enter_context(_Child(side, loop, database, plan)) for side in _MODULES}


def _page_rates(
    page: Page, loop: str, database: Database, sides: Mapping[str, _Child], plan: Plan
) -> Iterator[PageRates]:
    for at_once in _AT_ONCE:
        where = {
            "loop": loop,
            "database": database.name if page.queries else "-",
            "at once": str(at_once),
        }
        slices = {side: child.slice(page, at_once) for side, child in sides.items()}
        try:
            samples = alternate(slices, plan)
        except BenchmarkError as error:
            yield PageRates(page.name, where, (), str(error))
            continue
        rates = tuple(_rates(side, taken) for side, taken in samples.items())
        _tell(page, where, rates)
        yield PageRates(page.name, where, rates)


def _rates(side: str, samples: Sequence[Sample]) -> Rates:
    return Rates(
        side,
        tuple(round(sample.calls / sample.wall_seconds, 1) for sample in samples),
        tuple(round(sample.cpu_us, 1) for sample in samples),
    )


def _tell(page: Page, where: Mapping[str, str], rates: Sequence[Rates]) -> None:
    medians = ", ".join(
        f"{one.side} {sorted(one.per_second)[len(one.per_second) // 2]:.0f}/s" for one in rates
    )
    print(f"{' '.join(where.values())}: {page.name}: {medians}", file=sys.stderr)


def _counts(page: Page, sides: Mapping[str, _Child]) -> Iterator[Count]:
    counted: tuple[tuple[str, str, float | None], ...] = (
        ("crossings per request", "crossings", page.crossings),
        ("threads started by 1,000 requests", "threads", None),
    )
    for what, order, target in counted:
        with contextlib.suppress(BenchmarkError):
            counts = {side: child.ask(order, page) for side, child in sides.items()}
            yield Count(what, page.name, counts, target)


def _metadata(made: Sequence[Database], plan: Plan) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "processors": os.cpu_count(),
        "one_cpu": plan.one_cpu,
        "rounds": plan.rounds,
        "slice_seconds": plan.slice_seconds,
        **versions("Django", "django-asyncbridge", "asgiref", "uvloop", "psycopg"),
        **{database.name: database.version for database in made},
    }
