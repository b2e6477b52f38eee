"""A report as a table to read and as a JSON file to keep."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.bridge import FIGURES
from benchmarks.measure import Spread
from benchmarks.peers import OURS
from benchmarks.results import Comparison, FigureRounds, Report, comparisons

__all__ = ("default_path", "read_json", "table", "write_json")

# The targets were set beside this one.
_ASGIREF_OF_TARGETS = "3.13."
_RESULTS = Path(__file__).resolve().parent / "results"

_HEAD = (
    *("figure", "loop", "ours us", "peer", "peer us", "ratio", "quartiles", "target", "reached"),
    *("wall ours", "wall peer", "wall ratio"),
)
# Columns of words; all others are numbers.
_LEFT = frozenset({"figure", "loop", "peer"})


def table(report: Report) -> str:
    """Return the whole report as text: CPU time of a call, its ratio and target, and wall time."""
    compared = list(comparisons(report))
    parts = [
        _versions(report),
        "\n".join(_aligned([_HEAD, *map(_row, compared)])),
        "\n".join(_threads(report)),
        "\n".join(_remarks(report)),
        _summary(compared),
    ]
    return "\n\n".join(filter(None, parts))


def _versions(report: Report) -> str:
    named = ", ".join(f"{name} {value}" for name, value in report.metadata.items())
    return f"{named}\nCPU time of one call, median of the rounds; ratio ours/peer made within each round"


def _row(comparison: Comparison) -> tuple[str, ...]:
    ratio = comparison.cpu_ratio
    return (
        comparison.figure.name,
        comparison.loop,
        _microseconds(comparison.ours.cpu_us),
        comparison.peer.peer,
        _microseconds(comparison.peer.cpu_us),
        f"{ratio.median:.3f}",
        f"{ratio.low:.3f}-{ratio.high:.3f}",
        "" if comparison.target is None else f"{comparison.target:.2f}",
        _yes_or_no(comparison.reached),
        _microseconds(comparison.ours.wall_us),
        _microseconds(comparison.peer.wall_us),
        f"{comparison.wall_ratio.median:.3f}",
    )


def _microseconds(values: Sequence[float]) -> str:
    median = Spread.of(values).median
    return f"{median:.3f}" if median < 2 else f"{median:.1f}"


def _yes_or_no(reached: bool | None) -> str:
    return {None: "", True: "yes", False: "NO"}[reached]


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.ljust(width) if name in _LEFT else cell.rjust(width)
            for name, cell, width in zip(rows[0], row, widths, strict=True)
        )
        yield "  ".join(cells).rstrip()


def _threads(report: Report) -> Iterator[str]:
    targets = {figure.name: figure.threads_target for figure in FIGURES}
    for rounds in report.figures:
        counts = {peer.peer: peer.threads_per_1000 for peer in rounds.peers}
        if None in counts.values() or not counts:
            continue
        line = ", ".join(f"{name} {count:g}" for name, count in counts.items())
        text = f"threads started by 1,000 calls of {rounds.figure} on {rounds.loop}: {line}"
        target = targets[rounds.figure]
        ours = counts[OURS]
        if target is not None and ours is not None:
            text += f"; target {target}, reached: {_yes_or_no(ours <= target)}"
        yield text


def _remarks(report: Report) -> Iterator[str]:
    if report.left_out:
        names = ", ".join(report.left_out)
        yield f"Left out, not installed: {names} (pip install -e '.[bench]')"
    if not str(report.metadata["asgiref"]).startswith(_ASGIREF_OF_TARGETS):
        yield f"The targets are for asgiref {_ASGIREF_OF_TARGETS}x, this is {report.metadata['asgiref']}"
    yield from (
        f"FAILED: {_place(figure)}: {figure.error}" for figure in report.figures if figure.error
    )


def _place(figure: FigureRounds) -> str:
    return f"{figure.figure} on {figure.loop}"


def _summary(compared: Sequence[Comparison]) -> str:
    reached = [comparison.reached for comparison in compared if comparison.reached is not None]
    return f"{sum(reached)} of {len(reached)} ratios reached" if reached else ""


def default_path(report: Report) -> Path:
    """Return where a full run is kept unless told otherwise."""
    one_cpu = "-one-cpu" if report.metadata["processors_used"] == 1 else ""
    return _RESULTS / f"bridge-{report.metadata['python']}{one_cpu}.json"


def write_json(report: Report, path: Path) -> None:
    """Keep the report in a file whose folder exists, or is the one for results."""
    if path.parent == _RESULTS:
        _RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Report:
    """Return the report that `write_json` kept.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it holds something else.
    """
    return Report.from_dict(json.loads(path.read_text(encoding="utf-8")))
