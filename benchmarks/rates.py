"""Requests per second as they travel and are kept in JSON, and what follows from them: the results of `handler` and `serve`.

A file holds the slices of every round, so that the tables can be made from it again. Ratios are ours to the
peer's, made within each round.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from benchmarks.measure import Spread
from benchmarks.pages import OURS, PAGES, Page

__all__ = ("Count", "Faced", "PageRates", "Rates", "RatesReport", "faced", "is_ours")

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Rates:
    """One side with one page: one number for each round.

    Args:
        side: its name.
        per_second: good answers per second.
        cpu_us: CPU time of one request, all processes of the side; empty where the system does not tell.
        p50_ms: the latency that half of the requests stayed below; empty where that was not measured.
        p99_ms: the same for 99 of 100.
        failed: how many requests were answered with an error, or not at all, in all rounds together.
    """

    side: str
    per_second: tuple[float, ...]
    cpu_us: tuple[float, ...] = ()
    p50_ms: tuple[float, ...] = ()
    p99_ms: tuple[float, ...] = ()
    failed: int = 0


@dataclass(frozen=True, slots=True)
class PageRates:
    """All sides with one page.

    Args:
        page: its name.
        where: what else distinguishes this line, by the name of its column.
        sides: what was measured; empty after an error.
        error: why there is nothing.
    """

    page: str
    where: Mapping[str, str]
    sides: tuple[Rates, ...]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Count:
    """Something that is counted, not timed.

    Args:
        what: in words.
        page: with which page.
        counts: how many, by side.
        target: how many ours may have; None where nothing is to be reached.
    """

    what: str
    page: str
    counts: Mapping[str, float]
    target: float | None = None


@dataclass(frozen=True, slots=True)
class RatesReport:
    """A whole run of ``handler`` or ``serve``.

    Args:
        benchmark: which of them.
        metadata: versions, processors, how long was measured; nothing that names the machine.
        pages: what was timed.
        counts: what was counted.
        remarks: what the reader should know.
    """

    benchmark: str
    metadata: Mapping[str, Any]
    pages: tuple[PageRates, ...]
    counts: tuple[Count, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether something could not be measured."""
        return any(page.error for page in self.pages)

    def as_dict(self) -> dict[str, Any]:
        """Return what `from_dict` takes, with the ratios beside the rounds for other readers."""
        content = {"schema": SCHEMA, **dataclasses.asdict(self)}
        content["comparisons"] = [one.summary() for one in faced(self)]
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return the report that `as_dict` was called on.

        Raises:
            ValueError: when `content` is something else.
        """
        try:
            if content["schema"] != SCHEMA:
                raise ValueError(f"schema {content['schema']!r} instead of {SCHEMA}")
            return cls(
                content["benchmark"],
                content["metadata"],
                tuple(map(_page_from, content["pages"])),
                tuple(Count(**count) for count in content["counts"]),
                tuple(content["remarks"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no report of a benchmark ({error!r})") from error


def _page_from(content: Mapping[str, Any]) -> PageRates:
    sides = tuple(map(_side_from, content["sides"]))
    return PageRates(content["page"], content["where"], sides, content["error"])


def _side_from(content: Mapping[str, Any]) -> Rates:
    lists = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
    fields: dict[str, Any] = {**content, **lists}
    return Rates(**fields)


def is_ours(side: str) -> bool:
    """Tell whether a side is this package; there may be several, under several servers."""
    return side.startswith(OURS)


@dataclass(frozen=True, slots=True)
class Faced:
    """Ours beside one peer with one page."""

    page: Page
    where: Mapping[str, str]
    ours: Rates
    peer: Rates
    target: float | None

    @property
    def ratio(self) -> Spread:
        """Ours to the peer's requests per second, round by round."""
        return _ratios(self.ours.per_second, self.peer.per_second)

    @property
    def cpu_ratio(self) -> Spread | None:
        """Ours to the peer's CPU time of one request; None where that was not measured."""
        if not self.ours.cpu_us or not self.peer.cpu_us:
            return None
        return _ratios(self.ours.cpu_us, self.peer.cpu_us)

    @property
    def reached(self) -> bool | None:
        """Whether the median is at or above the target; None without a target."""
        return None if self.target is None else self.ratio.median >= self.target

    def summary(self) -> dict[str, Any]:
        """Return the numbers of the table."""
        cpu = self.cpu_ratio
        return {
            "page": self.page.name,
            "where": dict(self.where),
            "ours": self.ours.side,
            "peer": self.peer.side,
            "ours_per_second": dataclasses.asdict(Spread.of(self.ours.per_second)),
            "peer_per_second": dataclasses.asdict(Spread.of(self.peer.per_second)),
            "ratio": dataclasses.asdict(self.ratio),
            "cpu_ratio": None if cpu is None else dataclasses.asdict(cpu),
            "target": self.target,
            "reached": self.reached,
        }


def faced(report: RatesReport) -> Iterator[Faced]:
    """Yield each side of ours beside each peer, in the order in which the pages were measured."""
    known = {page.name: page for page in PAGES}
    for rates in report.pages:
        page = known[rates.page]
        targets = page.handler if report.benchmark == "handler" else page.served
        peers = [side for side in rates.sides if not is_ours(side.side)]
        for ours in (side for side in rates.sides if is_ours(side.side)):
            for peer in peers:
                yield Faced(page, rates.where, ours, peer, targets.get(peer.side))


def _ratios(ours: tuple[float, ...], theirs: tuple[float, ...]) -> Spread:
    # A peer that answered nothing at all in a round has no rate to divide by.
    infinity = float("inf")
    return Spread.of([a / b if b else infinity for a, b in zip(ours, theirs, strict=True)])
