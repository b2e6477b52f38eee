"""The command line: ``python -m benchmarks``, from the root of the repository."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import handler, rates_report, serve
from benchmarks import report as reports
from benchmarks.bridge import FIGURES, Figure, selected
from benchmarks.chart import svg
from benchmarks.child import CAN_PIN
from benchmarks.measure import Plan
from benchmarks.processes import ChildFailedError, measure
from benchmarks.rates import RatesReport
from benchmarks.results import Report

__all__ = ("main",)

_LOOPS = ("asyncio", "uvloop")
# Enough for quartiles that mean something; the whole run takes some minutes.
_PLAN = Plan(rounds=25, slice_seconds=0.06)
# To see that everything runs, not to publish.
_QUICK_PLAN = Plan(rounds=7, slice_seconds=0.02)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark, or say which there are; return the exit code."""
    parser, bridge, show = _parsers()
    options = parser.parse_args(arguments)
    if options.benchmark is None:
        parser.print_help()
        return 0
    if options.benchmark == "show":
        return _show(options, show)
    return _bridge(options, bridge) if options.benchmark == "bridge" else _run(options)


def _parsers() -> tuple[argparse.ArgumentParser, ...]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Figures of django-asyncbridge beside those of its peers, from one run on one machine.",
        epilog=_figures(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK")
    bridge = commands.add_parser(
        "bridge",
        help="the library beside asgiref, anyio and asyncio",
        epilog=_figures(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_what(bridge)
    _add_how(bridge)
    _add_where(bridge)
    handler.add_parser(commands)
    serve.add_parser(commands)
    show = commands.add_parser("show", help="table and chart of a report that was kept")
    show.add_argument("report", type=Path, help="a JSON file of an earlier run")
    show.add_argument("--svg", type=Path, metavar="PATH", help="draw a chart (of bridge alone)")
    return parser, bridge, show


def _add_what(bridge: argparse.ArgumentParser) -> None:
    bridge.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        default=[],
        help="only figures with NAME in their name (can be given several times)",
    )
    bridge.add_argument(
        "--loop", choices=_LOOPS, action="append", default=[], help="only this kind of event loop"
    )
    bridge.add_argument(
        "--python",
        metavar="EXECUTABLE",
        default=sys.executable,
        help="the interpreter to measure (default: this one)",
    )


def _add_how(bridge: argparse.ArgumentParser) -> None:
    bridge.add_argument(
        "--rounds",
        type=_positive,
        metavar="N",
        help=f"slices of each peer (default {_PLAN.rounds})",
    )
    bridge.add_argument(
        "--quick", action="store_true", help=f"{_QUICK_PLAN.rounds} rounds of short slices: rough"
    )
    bridge.add_argument(
        "--one-cpu",
        action="store_true",
        help="keep all threads on one processor: steadier, without the scheduler's part",
    )


def _add_where(bridge: argparse.ArgumentParser) -> None:
    bridge.add_argument(
        "--json",
        type=Path,
        metavar="PATH",
        help="where to keep the report (default for a full run: benchmarks/results/bridge-<python version>.json)",
    )
    bridge.add_argument("--svg", type=Path, metavar="PATH", help="draw a chart")


def _figures() -> str:
    width = max(len(figure.name) for figure in FIGURES)
    lines = (f"  {figure.name:{width}}  {figure.title}" for figure in FIGURES)
    return "\n".join(("figures of bridge:", *lines))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds, which is 1 or more")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    code: int = options.run(options)
    return code


def _bridge(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    figures = _selected(options.only, parser)
    for path in filter(None, (options.json, options.svg)):
        _refuse_missing_folder(path, parser)
    if shutil.which(options.python) is None:
        parser.error(f"--python: there is no program {options.python}")
    if options.one_cpu and not CAN_PIN:
        parser.error("--one-cpu: this system cannot keep a process on one processor")
    usual = _QUICK_PLAN if options.quick else _PLAN
    plan = Plan(options.rounds or usual.rounds, usual.slice_seconds, options.one_cpu)
    loops = tuple(dict.fromkeys(options.loop)) or _LOOPS
    try:
        report = measure(figures, loops, plan, options.python)
    except ChildFailedError as error:
        parser.exit(1, f"{error}\n")
    print(reports.table(report))
    full = not (options.only or options.loop or options.quick or options.rounds)
    path = options.json or (reports.default_path(report) if full else None)
    if path is not None:
        reports.write_json(report, path)
        print(f"\nReport kept; to see it again: python -m benchmarks show {path}")
    return _draw(report, options.svg)


def _selected(only: Sequence[str], parser: argparse.ArgumentParser) -> Sequence[Figure]:
    try:
        return selected(only)
    except ValueError as error:
        parser.error(f"--only: {error}")


def _refuse_missing_folder(path: Path, parser: argparse.ArgumentParser) -> None:
    # Said before minutes are spent.
    if not path.parent.is_dir():
        parser.error(f"the folder of {path} does not exist")


def _show(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    try:
        if (rates := rates_report.read_json(options.report)) is not None:
            return _show_rates(rates, options, parser)
        report = reports.read_json(options.report)
    except (OSError, ValueError) as error:
        parser.error(f"{options.report}: {error}")
    if options.svg is not None:
        _refuse_missing_folder(options.svg, parser)
    print(reports.table(report))
    return _draw(report, options.svg)


def _show_rates(
    report: RatesReport, options: argparse.Namespace, parser: argparse.ArgumentParser
) -> int:
    if options.svg is not None:
        parser.error(f"--svg: there is no chart of {report.benchmark}")
    print(rates_report.table(report))
    return 1 if report.failed else 0


def _draw(report: Report, path: Path | None) -> int:
    if path is not None:
        path.write_text(svg(report), encoding="utf-8")
    return 1 if any(figure.error for figure in report.figures) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
