"""What was measured, as it travels between processes and is kept in JSON; and what follows from it.

A file holds the slices of every round, so that table and chart can be made from it again.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from benchmarks.bridge import FIGURES, Figure
from benchmarks.measure import Spread
from benchmarks.peers import OURS

__all__ = ("Comparison", "FigureRounds", "PeerRounds", "Report", "comparisons")

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class PeerRounds:
    """One peer in one figure: CPU and wall time of a call in microseconds, one number for each round.

    Args:
        peer: its name.
        calls: how many calls a slice had.
        cpu_us: CPU time of a call.
        wall_us: wall time of a call.
        threads_per_1000: how many threads 1,000 calls started; None where that was not counted.
    """

    peer: str
    calls: int
    cpu_us: tuple[float, ...]
    wall_us: tuple[float, ...]
    threads_per_1000: float | None = None


@dataclass(frozen=True, slots=True)
class FigureRounds:
    """One figure on one kind of loop; `error` says why there are no peers in it."""

    figure: str
    loop: str
    peers: tuple[PeerRounds, ...]
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run.

    Args:
        metadata: versions, the number of processors, how long was measured; nothing that names the machine.
        figures: what was measured.
        left_out: peers and loops that are not installed.
    """

    metadata: Mapping[str, Any]
    figures: tuple[FigureRounds, ...]
    left_out: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return what `from_dict` takes, with the medians beside the rounds for other readers."""
        content = {
            "schema": SCHEMA,
            "left_out": list(self.left_out),
            "metadata": dict(self.metadata),
        }
        content["figures"] = [dataclasses.asdict(figure) for figure in self.figures]
        content["comparisons"] = [comparison.summary() for comparison in comparisons(self)]
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
            figures = tuple(map(_figure_from, content["figures"]))
            return cls(content["metadata"], figures, tuple(content["left_out"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no report of a benchmark ({error!r})") from error


def _figure_from(content: Mapping[str, Any]) -> FigureRounds:
    peers = tuple(
        PeerRounds(**{**peer, "cpu_us": tuple(peer["cpu_us"]), "wall_us": tuple(peer["wall_us"])})
        for peer in content["peers"]
    )
    return FigureRounds(content["figure"], content["loop"], peers, content["error"])


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours beside one peer in one figure; the ratios are ours to the peer's, made round by round."""

    figure: Figure
    loop: str
    ours: PeerRounds
    peer: PeerRounds

    @property
    def cpu_ratio(self) -> Spread:
        """The ratios of CPU time."""
        return _ratios(self.ours.cpu_us, self.peer.cpu_us)

    @property
    def wall_ratio(self) -> Spread:
        """The ratios of wall time."""
        return _ratios(self.ours.wall_us, self.peer.wall_us)

    @property
    def target(self) -> float | None:
        """The ratio of CPU time that is to be reached."""
        return self.figure.targets.get(self.peer.peer)

    @property
    def reached(self) -> bool | None:
        """Whether the median is at or below the target; None without a target."""
        return None if self.target is None else self.cpu_ratio.median <= self.target

    def summary(self) -> dict[str, Any]:
        """Return the numbers of the table."""
        return {
            "figure": self.figure.name,
            "title": self.figure.title,
            "loop": self.loop,
            "peer": self.peer.peer,
            "ours_cpu_us": dataclasses.asdict(Spread.of(self.ours.cpu_us)),
            "peer_cpu_us": dataclasses.asdict(Spread.of(self.peer.cpu_us)),
            "cpu_ratio": dataclasses.asdict(self.cpu_ratio),
            "target": self.target,
            "reached": self.reached,
            "ours_wall_us": dataclasses.asdict(Spread.of(self.ours.wall_us)),
            "peer_wall_us": dataclasses.asdict(Spread.of(self.peer.wall_us)),
            "wall_ratio": dataclasses.asdict(self.wall_ratio),
        }


def comparisons(report: Report) -> Iterator[Comparison]:
    """Yield ours beside each peer, figure by figure, each on all its loops."""
    for figure in FIGURES:
        for rounds in report.figures:
            if rounds.figure != figure.name:
                continue
            ours = [peer for peer in rounds.peers if peer.peer == OURS]
            others = [peer for peer in rounds.peers if peer.peer != OURS]
            yield from (Comparison(figure, rounds.loop, ours[0], other) for other in others)


def _ratios(ours: tuple[float, ...], theirs: tuple[float, ...]) -> Spread:
    return Spread.of([one / other for one, other in zip(ours, theirs, strict=True)])
