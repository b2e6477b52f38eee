"""A report of requests per second as tables to read and as a JSON file to keep."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.measure import Spread
from benchmarks.rates import Count, Faced, PageRates, Rates, RatesReport, faced, is_ours

__all__ = ("default_path", "read_json", "table", "write_json")

_RESULTS = Path(__file__).resolve().parent / "results"
_MEASURED = ("req/s", "quartiles", "cpu us", "p50 ms", "p99 ms", "failed")
_FACED = ("ours/s", "peer", "peer/s", "ratio", "quartiles", "target", "reached")
_CPU = ("cpu ours", "cpu peer", "cpu ratio")
# Columns of words; all others are numbers.
_LEFT = frozenset({"page", "loop", "database", "side", "ours", "peer"})


def table(report: RatesReport) -> str:
    """Return the whole report as text: every side, ours beside each peer, what was counted."""
    compared = list(faced(report))
    parts = [
        _versions(report),
        "\n".join(_measured(report)),
        "\n".join(_compared(report, compared)),
        "\n".join(map(_count, report.counts)),
        "\n".join(_remarks(report)),
        _summary(report, compared),
    ]
    return "\n\n".join(filter(None, parts))


def _versions(report: RatesReport) -> str:
    named = ", ".join(f"{name} {value}" for name, value in report.metadata.items())
    return f"{named}\nmedians of the rounds; ratio ours/peer of requests per second, made within each round"


def _measured(report: RatesReport) -> Iterator[str]:
    # Without latencies it would only repeat what is in the other table.
    if any(side.p50_ms for page in report.pages for side in page.sides):
        head = ("page", *_columns(report), "side", *_MEASURED)
        rows = [_side_row(page, side) for page in report.pages for side in page.sides]
        yield from _aligned([head, *rows])


def _side_row(page: PageRates, side: Rates) -> tuple[str, ...]:
    rate = Spread.of(side.per_second)
    return (
        page.page,
        *page.where.values(),
        side.side,
        f"{rate.median:.0f}",
        f"{rate.low:.0f}-{rate.high:.0f}",
        _median(side.cpu_us, 0),
        _median(side.p50_ms, 2),
        _median(side.p99_ms, 2),
        str(side.failed or ""),
    )


def _compared(report: RatesReport, compared: Sequence[Faced]) -> Iterator[str]:
    if compared:
        head = ("page", *_columns(report), "ours", *_FACED, *_CPU)
        yield from _aligned([head, *map(_faced_row, compared)])


def _faced_row(one: Faced) -> tuple[str, ...]:
    ratio = one.ratio
    cpu = one.cpu_ratio
    return (
        one.page.name,
        *one.where.values(),
        one.ours.side,
        _median(one.ours.per_second, 0),
        one.peer.side,
        _median(one.peer.per_second, 0),
        f"{ratio.median:.2f}",
        f"{ratio.low:.2f}-{ratio.high:.2f}",
        "" if one.target is None else f"{one.target:g}",
        _yes_or_no(one.reached),
        _median(one.ours.cpu_us, 0),
        _median(one.peer.cpu_us, 0),
        "" if cpu is None else f"{cpu.median:.3f}",
    )


def _columns(report: RatesReport) -> tuple[str, ...]:
    return tuple(report.pages[0].where) if report.pages else ()


def _median(values: Sequence[float], digits: int) -> str:
    return f"{Spread.of(values).median:.{digits}f}" if values else ""


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


def _count(count: Count) -> str:
    named = ", ".join(f"{side} {number:g}" for side, number in count.counts.items())
    text = f"{count.what}, {count.page}: {named}"
    if count.target is None:
        return text
    return f"{text}; target {count.target:g}, reached: {_yes_or_no(_count_reached(count))}"


def _count_reached(count: Count) -> bool | None:
    ours = [number for side, number in count.counts.items() if is_ours(side)]
    return None if count.target is None or not ours else max(ours) <= count.target


def _remarks(report: RatesReport) -> Iterator[str]:
    yield from report.remarks
    for page in report.pages:
        if page.error:
            yield f"FAILED: {' '.join((page.page, *page.where.values()))}: {page.error}"


def _summary(report: RatesReport, compared: Sequence[Faced]) -> str:
    reached = [one.reached for one in compared] + [_count_reached(one) for one in report.counts]
    known = [one for one in reached if one is not None]
    return f"{sum(known)} of {len(known)} targets reached" if known else ""


def default_path(report: RatesReport) -> Path:
    """Return where a full run is kept unless told otherwise."""
    one_cpu = "-one-cpu" if report.metadata.get("one_cpu") else ""
    return _RESULTS / f"{report.benchmark}-{report.metadata['python']}{one_cpu}.json"


def write_json(report: RatesReport, path: Path) -> None:
    """Keep the report in a file whose folder exists, or is the one for results."""
    if path.parent == _RESULTS:
        _RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> RatesReport | None:
    """Return the report that `write_json` kept; None for a report of another kind.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it holds no report.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or "benchmark" not in content:
        return None
    return RatesReport.from_dict(content)
