"""What a `WorkerPool` says of itself: its figures, and its errors with who has the workers.

Any thread may call what is here: it only reads.
"""

import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django_asyncbridge.bridge._worker import Worker

__all__ = (
    "LeaseEndedError",
    "WorkerPoolStatistics",
    "WorkersBusy",
    "check_limits",
    "describe_busy",
)

_OWN_DIRECTORY = Path(__file__).parent
# The log has such a message for each that waited in vain, and there may be many workers.
_SHOWN = 8
# Where threads wait and begin: what they do is found further out.
_WAITING = frozenset({"asyncio", "concurrent", "queue", "selectors", "threading"})


class WorkersBusy(TimeoutError):  # noqa: N818  # it names a state, as queue.Full does
    """No worker of a bounded pool became free in time; the message says who has them and for how long.

    Attributes:
        pool: the name of the pool.
    """

    pool = ""


class LeaseEndedError(RuntimeError):
    """The lease was given back and takes no more calls."""


@dataclass(frozen=True, slots=True)
class WorkerPoolStatistics:
    """What a `WorkerPool` is doing, at one moment, and has done since the process began.

    Attributes:
        name: the pool's.
        maximum: how many workers there may be; None for any number.
        workers: how many there are.
        idle: how many of these are lent to nobody.
        waiting: how many leases and calls wait for a worker.
        started: workers started so far.
        retired: workers that have ended, being idle for too long or refused by the hand-over hook.
        lent: how often a worker was lent.
        expired: how often somebody waited in vain and got `WorkersBusy`.
        longest_wait_seconds: the longest that anybody waited for a worker and got one.
    """

    name: str
    maximum: int | None
    workers: int
    idle: int
    waiting: int
    started: int
    retired: int
    lent: int
    expired: int
    longest_wait_seconds: float


def describe_busy(pool: str, wait_seconds: float, workers: "Iterable[Worker]") -> str:
    """Return who has the workers of a pool, for how long, and what they are doing."""
    frames = sys._current_frames()
    now = time.monotonic()
    lent = sorted(workers, key=lambda worker: worker.lent_at)
    holders = "; ".join(
        f"{worker.thread.name} for {now - worker.lent_at:.1f} s{_holder(worker)}"
        f"{_place(frames.get(worker.thread.ident or 0))}"
        for worker in lent[:_SHOWN]
    )
    if len(lent) > _SHOWN:
        holders += f"; and {len(lent) - _SHOWN} more for less time"
    return (
        f"no worker of the pool {pool!r} became free within {wait_seconds:g} s; all are lent: {holders}; "
        "raise the pool's maximum, or find out what takes them so long"
    )


def _holder(worker: "Worker") -> str:
    return f" to {worker.holder}" if worker.holder else ""


def _place(frame: FrameType | None) -> str:
    """Return where a thread is, in the code of whoever uses the bridge."""
    while frame is not None and _only_waits(frame):
        frame = frame.f_back
    if frame is None:
        return ""
    code = frame.f_code
    return f", in {code.co_qualname} ({Path(code.co_filename).name}:{frame.f_lineno})"


def _only_waits(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    return package in _WAITING or Path(frame.f_code.co_filename).parent == _OWN_DIRECTORY


def check_limits(
    maximum: int | None, idle_seconds: float | None, wait_seconds: float | None
) -> None:
    """Refuse limits that make no sense.

    Raises:
        ValueError: saying which.
    """
    if maximum is not None and maximum < 1:
        raise ValueError(
            f"maximum must be at least 1 worker, or None for any number, not {maximum!r}"
        )
    for name, seconds in (("idle_seconds", idle_seconds), ("wait_seconds", wait_seconds)):
        if seconds is not None and not 0 <= seconds <= threading.TIMEOUT_MAX:
            raise ValueError(
                f"{name} must be from 0 to {threading.TIMEOUT_MAX:.0f}, or None for no limit; it is {seconds!r}"
            )
