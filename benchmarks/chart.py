"""A report as an SVG chart of bars: one panel for each figure and loop, each with a scale of its own.

The background is transparent and the colours are mid-tones, to be read on a light page and on a dark one. A
thin line through the end of a bar shows the quartiles, an upright one in our bar the target.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.sax.saxutils import escape

from benchmarks.bridge import Figure
from benchmarks.measure import Spread
from benchmarks.peers import OURS
from benchmarks.results import Comparison, PeerRounds, Report, comparisons

__all__ = ("svg",)

_LABEL = "CPU time of calls between sync and async code"
_OURS, _PEER, _TARGET, _TEXT = "#2f80d0", "#9299a1", "#e8710a", "#7b828a"
# Pixels. A panel has names, bars and values, from left to right.
_COLUMNS = (0, 452)
_WIDTH = 900
_NAMES = 158
_BARS = 180
_VALUE_GAP = 6
_BAR = 11
_ROW = 16
_HEAD = 20
_GAP = 16
_MARGIN = 12


@dataclass(frozen=True, slots=True)
class _Panel:
    """Ours and its peers in one figure on one loop."""

    compared: tuple[Comparison, ...]

    @property
    def figure(self) -> Figure:
        return self.compared[0].figure

    @property
    def title(self) -> str:
        first = self.compared[0]
        return first.figure.title + (f", {first.loop}" if first.figure.needs_loop else "")

    @property
    def peers(self) -> tuple[PeerRounds, ...]:
        return self.compared[0].ours, *(comparison.peer for comparison in self.compared)

    @property
    def height(self) -> int:
        return _HEAD + _ROW * len(self.peers)

    @property
    def scale(self) -> float:
        """Pixels for a microsecond."""
        return _BARS / max(Spread.of(peer.cpu_us).high for peer in self.peers)


def svg(report: Report) -> str:
    """Return a chart of the figures that have a target, or of all if none has one."""
    compared = list(comparisons(report))
    aimed = {comparison.figure.name for comparison in compared if comparison.target is not None}
    shown = [c for c in compared if not aimed or c.figure.name in aimed]
    y = _MARGIN + _HEAD
    body = [_text(_MARGIN, _MARGIN + 9, _heading(report))]
    for line in _lines(shown):
        for x, panel in zip(_COLUMNS, line, strict=False):
            body.extend(_drawn(panel, x + _MARGIN, y))
        y += max(panel.height for panel in line) + _GAP
    return _document(y, body)


def _heading(report: Report) -> str:
    versions = report.metadata
    used = versions["processors_used"]
    return (
        f"CPU time of one call, microseconds, less is better: Python {versions['python']}, "
        f"asgiref {versions['asgiref']}, {used} processor{'s' if used > 1 else ''}, median of the rounds"
    )


def _lines(compared: Sequence[Comparison]) -> Iterator[Sequence[_Panel]]:
    """Yield what stands side by side: a figure's loops, or two figures without a loop."""
    panels = [
        _Panel(tuple(of_panel))
        for _, of_panel in groupby(compared, key=lambda one: (one.figure.name, one.loop))
    ]
    for needs_loop, group in groupby(panels, key=lambda panel: panel.figure.needs_loop):
        of_kind = list(group)
        if needs_loop:
            yield from (
                list(side) for _, side in groupby(of_kind, key=lambda panel: panel.figure.name)
            )
        else:
            yield from (of_kind[start : start + 2] for start in range(0, len(of_kind), 2))


def _drawn(panel: _Panel, x: int, y: int) -> Iterator[str]:
    yield _text(x, y + 10, panel.title, "bold")
    for number, peer in enumerate(panel.peers):
        yield from _bar(panel, peer, x, y + _HEAD + _ROW * number)
    for comparison in panel.compared:
        if comparison.target is not None:
            aim = (
                x
                + _NAMES
                + Spread.of(comparison.peer.cpu_us).median * comparison.target * panel.scale
            )
            top = y + _HEAD - 2
            yield _line(
                aim,
                top,
                aim,
                top + _BAR + 4,
                _TARGET,
                2,
                f"{comparison.target} x {comparison.peer.peer}",
            )


def _bar(panel: _Panel, peer: PeerRounds, x: int, y: int) -> Iterator[str]:
    spread = Spread.of(peer.cpu_us)
    left, middle = x + _NAMES, y + _BAR / 2
    width = spread.median * panel.scale
    colour = _OURS if peer.peer == OURS else _PEER
    yield _text(left - 6, y + 10, _name(peer), "end")
    yield f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="1" fill="{colour}"/>'
    yield _line(
        left + spread.low * panel.scale,
        middle,
        left + spread.high * panel.scale,
        middle,
        _TEXT,
        1.5,
    )
    yield _text(left + _BARS + _VALUE_GAP, y + 10, _value(panel, peer, spread.median))


def _name(peer: PeerRounds) -> str:
    return "django-asyncbridge" if peer.peer == OURS else peer.peer


def _value(panel: _Panel, peer: PeerRounds, median: float) -> str:
    text = f"{median:.2f}" if median < 1 else f"{median:.1f}"
    for comparison in panel.compared:
        if comparison.peer is peer:
            text += f" ({comparison.cpu_ratio.median:.2f}x)"
    return text


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>'


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str, width: float, title: str = ""
) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"><title>{escape(title)}</title></line>'
    )


def _document(y: int, body: Sequence[str]) -> str:
    height = y + _HEAD
    legend = [
        _line(_MARGIN + 3, y - 2, _MARGIN + 3, y + 13, _TARGET, 2),
        _text(
            _MARGIN + 12,
            y + 9,
            "target, a ratio to asgiref or to the bare hop; in brackets: ours to the peer's",
        ),
    ]
    style = (
        f"text{{font:11px system-ui,sans-serif;fill:{_TEXT}}}"
        ".bold{font-weight:600}.end{text-anchor:end}"
    )
    root = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img">'
    )
    lines = [
        root,
        f"<title>{escape(_LABEL)}</title>",
        f"<style>{style}</style>",
        *body,
        *legend,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"
