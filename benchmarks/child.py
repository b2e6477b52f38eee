"""The process in which the figures of one kind of event loop are taken, all peers in it.

Started by `processes`, with an `Order` in JSON as its one argument. Its last line on standard output is what it
measured, in JSON; on standard error it says how far it is. A figure that takes much longer than it can ends the
process with the tracebacks of all threads.

Which thread may touch what. Figures are taken in the main thread, or the other one of the `Bench`. Threads are
counted after the last clock has been read: counting them takes time.
"""

import asyncio
import faulthandler
import json
import os
import platform
import statistics
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, TypeVar

import django_asyncbridge
from benchmarks.bench import Bench
from benchmarks.bridge import FIGURES, Figure
from benchmarks.measure import Plan, Sample, Slice, alternate
from benchmarks.peers import HAS_ANYIO, refuse_patched_asgiref
from benchmarks.results import FigureRounds, PeerRounds, Report
from benchmarks.threads import ThreadCounter

__all__ = ("CAN_PIN", "Order", "main")

T = TypeVar("T")

ASYNCIO = "asyncio"
NO_LOOP = "-"
# Whether this system can keep a process on one processor.
CAN_PIN = hasattr(os, "sched_setaffinity")
# Threads that start in the warm-up are in both counts, and so in neither difference.
_COUNTED_CALLS = (1000, 2000)
# What building the peers and finding the number of calls may take, beyond the rounds.
_LIMIT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Order:
    """What one process is to measure.

    Args:
        loop: the kind of event loop.
        figures: names of figures.
        rounds: see `Plan`.
        slice_seconds: see `Plan`.
        one_cpu: whether to keep all threads on one processor; see `CAN_PIN`.
    """

    loop: str
    figures: tuple[str, ...]
    rounds: int
    slice_seconds: float
    one_cpu: bool = False


def main(arguments: list[str]) -> None:
    """Measure what the one argument asks for and print it."""
    order = Order(**json.loads(arguments[0]))
    left_out = () if HAS_ANYIO else ("anyio",)
    if order.loop == ASYNCIO or find_spec(order.loop) is not None:
        figures = _measure(order)
    else:
        figures, left_out = (), (*left_out, order.loop)
    report = Report(_metadata(order), figures, left_out)
    print(json.dumps(report.as_dict()))


def _measure(order: Order) -> tuple[FigureRounds, ...]:
    refuse_patched_asgiref()
    if order.one_cpu:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if order.loop != ASYNCIO:
        asyncio.set_event_loop_policy(_uvloop_policy())
    with Bench(order.loop) as bench:
        figures = [figure for figure in FIGURES if figure.name in order.figures]
        taken = {figure.name: _Taken(figure, bench, order) for figure in figures}
        for figure in taken.values():
            figure.take()
        with ThreadCounter() as threads:
            for figure in taken.values():
                figure.count(threads)
        refuse_patched_asgiref()
        return tuple(figure.rounds() for figure in taken.values())


def _uvloop_policy() -> asyncio.AbstractEventLoopPolicy:
    import uvloop  # noqa: PLC0415  # optional

    # The only way to have asgiref, which takes no loop factory, make its loops of this kind.
    policy: asyncio.AbstractEventLoopPolicy = uvloop.EventLoopPolicy()
    return policy


class _Taken:
    """One figure on its way: its peers, its slices, its threads, or what went wrong."""

    def __init__(self, figure: Figure, bench: Bench, order: Order) -> None:
        self._figure = figure
        self._bench = bench
        self._order = order
        self._peers: Mapping[str, Slice] = {}
        self._samples: Mapping[str, tuple[Sample, ...]] = {}
        self._threads: dict[str, float] = {}
        self._error: str | None = None

    def take(self) -> None:
        """Build the peers and measure them."""
        try:
            faulthandler.dump_traceback_later(self._limit(8), exit=True)
            self._peers = self._run(lambda: self._figure.slices(self._bench))
            plan = Plan(self._order.rounds, self._order.slice_seconds)
            faulthandler.dump_traceback_later(self._limit(len(self._peers)), exit=True)
            self._samples = self._run(lambda: alternate(self._peers, plan))
            self._tell()
        except Exception as error:  # noqa: BLE001  # one broken figure must not take the others along
            self._fail(error)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def count(self, threads: ThreadCounter) -> None:
        """Count the threads that the peers start, if this figure is about them."""
        if self._error is not None or not self._figure.counts_threads:
            return
        try:
            faulthandler.dump_traceback_later(_LIMIT_SECONDS, exit=True)
            self._run(lambda: self._count(threads))
        except Exception as error:  # noqa: BLE001  # as above
            self._fail(error)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def rounds(self) -> FigureRounds:
        """Return what was measured."""
        peers = tuple(
            PeerRounds(
                name,
                samples[0].calls,
                tuple(round(sample.cpu_us, 4) for sample in samples),
                tuple(round(sample.wall_us, 4) for sample in samples),
                self._threads.get(name),
            )
            for name, samples in self._samples.items()
        )
        return FigureRounds(self._figure.name, self._loop(), peers, self._error)

    def _run(self, function: Callable[[], T]) -> T:
        return self._bench.in_other_thread(function) if self._figure.other_thread else function()

    def _loop(self) -> str:
        return self._order.loop if self._figure.needs_loop else NO_LOOP

    def _limit(self, peers: int) -> float:
        # Ten times what it should take: a busy machine is no reason to give up, a deadlock is.
        slices = peers * (self._order.rounds + 2)
        return _LIMIT_SECONDS + 10 * slices * self._order.slice_seconds

    def _count(self, threads: ThreadCounter) -> None:
        for name, peer in self._peers.items():
            (few, few_started), (many, many_started) = (
                _started(peer, calls, threads) for calls in _COUNTED_CALLS
            )
            per_call = (many_started - few_started) / (many - few)
            self._threads[name] = round(per_call * 1000, 1)

    def _tell(self) -> None:
        medians = (
            f"{name} {statistics.median(sample.cpu_us for sample in samples):.3g} us"
            for name, samples in self._samples.items()
        )
        print(f"{self._loop():8}{self._figure.name}: {', '.join(medians)}", file=sys.stderr)

    def _fail(self, error: Exception) -> None:
        traceback.print_exception(error)
        self._samples = {}
        self._error = f"{type(error).__name__}: {error}"


def _started(peer: Slice, calls: int, threads: ThreadCounter) -> tuple[int, int]:
    """Return how many calls a slice had, and how many threads it started."""
    before = threads.started
    return peer(calls).calls, threads.started - before


def _metadata(order: Order) -> dict[str, Any]:
    packages = ("asgiref", "anyio", "uvloop")
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "processors": os.cpu_count(),
        "processors_used": len(os.sched_getaffinity(0)) if CAN_PIN else os.cpu_count(),
        "rounds": order.rounds,
        "slice_seconds": order.slice_seconds,
        "django_asyncbridge": django_asyncbridge.__version__,
        **{name: version(name) for name in packages if find_spec(name) is not None},
    }


if __name__ == "__main__":
    main(sys.argv[1:])
