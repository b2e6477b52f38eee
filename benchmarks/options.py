"""What the commands of `handler` and `serve` have in common: options, and where their reports go."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import rates_report
from benchmarks.pages import PAGES, Page, selected_pages
from benchmarks.rates import RatesReport

__all__ = ("add_common", "check_paths", "chosen_pages", "count", "page_list", "show_and_keep")


def count(text: str) -> int:
    """Return the number that an option has, which is 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds, which is 1 or more")
    return int(text)


def add_common(parser: argparse.ArgumentParser, rounds: int, quick: str) -> None:
    """Add the options that both commands have.

    Args:
        parser: that of the command.
        rounds: how many there are if nothing is said.
        quick: what ``--quick`` does.
    """
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        default=[],
        help="only the page NAME, or those with NAME in their name (can be given several times)",
    )
    parser.add_argument(
        "--postgres",
        metavar="CONNINFO",
        help='a PostgreSQL server as well, for example "host=127.0.0.1 user=postgres"; '
        "a database is made there, and dropped at the end",
    )
    parser.add_argument(
        "--rounds", type=count, metavar="N", help=f"slices of each side (default {rounds})"
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument(
        "--json",
        type=Path,
        metavar="PATH",
        help="where to keep the report (default for a full run: a file in benchmarks/results/)",
    )


def page_list() -> str:
    """Return the names and titles of the pages, for the help."""
    width = max(len(page.name) for page in PAGES)
    return "\n".join(("pages:", *(f"  {page.name:{width}}  {page.title}" for page in PAGES)))


def chosen_pages(only: Sequence[str], parser: argparse.ArgumentParser) -> tuple[Page, ...]:
    """Return what ``--only`` asks for, or end with what is wrong."""
    try:
        return selected_pages(only)
    except ValueError as error:
        parser.error(f"--only: {error}")


def check_paths(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End if the report could not be kept: that is said before minutes are spent."""
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"the folder of {options.json} does not exist")


def show_and_keep(report: RatesReport, path: Path | None, *, full: bool) -> int:
    """Print the report and keep it; return the exit code.

    Args:
        report: what was measured.
        path: where to keep it; None for nowhere, or the usual place of a full run.
        full: whether nothing was left out.
    """
    print(rates_report.table(report))
    if path is None and full and not report.failed:
        path = rates_report.default_path(report)
    if path is not None:
        rates_report.write_json(report, path)
        print(f"\nReport kept; to see it again: python -m benchmarks show {path}")
    return 1 if report.failed else 0
