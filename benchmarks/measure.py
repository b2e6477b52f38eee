"""How a figure is taken: peers in turn, in short slices, over several rounds.

A machine gets slower and faster while one measures. Peers that are measured one after the other get different
weather; peers that alternate in short slices share it, and the ratio of two slices of the same round says more
than the ratio of two averages. So every ratio is made within a round, and its median over the rounds is
what is reported, with the quartiles beside it.

CPU time is that of the whole process, all threads and the kernel's part included: a call that waits in a
second thread is not free. Wall time is beside it, because a call that hops between threads also waits.

The garbage collector is on, as it is in service, and every slice starts with nothing to collect: what a peer leaves
behind in cycles is collected at its own expense.

Which thread may touch what. A slice is run by one thread at a time; the clocks are of the process and may be
read in any.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

__all__ = ("Plan", "Sample", "Slice", "Spread", "alternate", "now", "since")

# The first number of calls tried; and how much longer the next try is.
_FIRST_CALLS = 10
_FACTOR = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """How to measure.

    Args:
        rounds: how many slices of each peer.
        slice_seconds: how long one slice shall take, about, in wall time.
        one_cpu: whether to keep all threads on one processor.
    """

    rounds: int
    slice_seconds: float
    one_cpu: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """What a number of calls took, in seconds."""

    calls: int
    cpu_seconds: float
    wall_seconds: float

    def __add__(self, other: "Sample") -> "Sample":
        return Sample(
            self.calls + other.calls,
            self.cpu_seconds + other.cpu_seconds,
            self.wall_seconds + other.wall_seconds,
        )

    @property
    def cpu_us(self) -> float:
        """CPU time of one call in microseconds."""
        return self.cpu_seconds / self.calls * 1e6

    @property
    def wall_us(self) -> float:
        """Wall time of one call in microseconds."""
        return self.wall_seconds / self.calls * 1e6


# Warms up, runs at least so many calls and says what those took.
Slice = Callable[[int], Sample]


@dataclass(frozen=True, slots=True)
class Spread:
    """Where a number of values lie."""

    minimum: float
    low: float
    median: float
    high: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return the median, the quartiles and the ends of at least one value."""
        if len(values) == 1:
            return cls(*[values[0]] * 5)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(min(values), low, median, high, max(values))


def now() -> tuple[float, float]:
    """Return a moment for `since`."""
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float], calls: int) -> Sample:
    """Return what `calls` calls took that were begun at `start`."""
    cpu = time.process_time()
    wall = time.perf_counter()
    return Sample(calls, cpu - start[1], wall - start[0])


def alternate(peers: Mapping[str, Slice], plan: Plan) -> dict[str, tuple[Sample, ...]]:
    """Measure the peers in turn and return the slices of each, one for each round.

    The number of calls in a slice is each peer's own, so that all slices take about as long. Each round
    starts with another peer, so that none always comes after the same one.
    """
    calls = {name: _calls_in(peer, plan.slice_seconds) for name, peer in peers.items()}
    names = list(peers)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for number in range(plan.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(_measured(peers[name], calls[name]))
    return {name: tuple(slices) for name, slices in samples.items()}


def _calls_in(peer: Slice, seconds: float) -> int:
    calls = _FIRST_CALLS
    while True:
        sample = _measured(peer, calls)
        # From half the time on, what is extrapolated is mostly measured.
        if sample.wall_seconds >= seconds / 2:
            return max(1, math.ceil(sample.calls * seconds / sample.wall_seconds))
        calls *= _FACTOR


def _measured(peer: Slice, calls: int) -> Sample:
    gc.unfreeze()
    gc.collect()
    # What is alive now is nobody's garbage: it would only make the collections of all peers dearer.
    gc.freeze()
    return peer(calls)
