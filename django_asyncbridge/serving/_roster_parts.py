"""What the roster of workers is made of: the records it keeps, the actions it answers with, and words for how a process ended.

Which thread may touch what. Actions never change. The records belong to their roster.
"""

import enum
import signal
from dataclasses import dataclass, field

__all__ = (
    "Action",
    "Kill",
    "Place",
    "Roll",
    "Say",
    "Start",
    "State",
    "StopListening",
    "Terminate",
    "Worker",
    "exit_code_of",
    "how_it_ended",
)


@dataclass(frozen=True, slots=True)
class Start:
    """Start a worker process for a place; `key` is its name from now on."""

    key: int
    number: int


@dataclass(frozen=True, slots=True)
class Terminate:
    """Ask a worker to end: SIGTERM."""

    key: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End a worker now: SIGKILL."""

    key: int


@dataclass(frozen=True, slots=True)
class StopListening:
    """Close the supervisor's own listening sockets: who connects now is to be refused, not to wait."""


@dataclass(frozen=True, slots=True)
class Say:
    """Write a line to the log."""

    level: int
    text: str


Action = Start | Terminate | Kill | StopListening | Say


class State(enum.Enum):
    """What a worker is doing; ENDING once it has been asked to end."""

    STARTING = enum.auto()
    READY = enum.auto()
    ENDING = enum.auto()


@dataclass(slots=True, eq=False)
class Worker:
    """A worker, from its `Start` until its process has ended."""

    key: int
    number: int
    state: State = State.STARTING
    pid: int | None = None
    ready_at: float | None = None
    # When something has to be done about it: it is not ready yet, or has not ended yet.
    deadline: float | None = None
    late: bool = False

    def __str__(self) -> str:
        return f"Worker {self.number}" + ("" if self.pid is None else f" (pid {self.pid})")


@dataclass(slots=True, eq=False)
class Place:
    """A worker number: who serves, who is to follow, and who finishes its requests."""

    number: int
    current: Worker | None = None
    following: Worker | None = None
    previous: Worker | None = None
    early_ends: int = 0
    start_at: float | None = None


@dataclass(slots=True)
class Roll:
    """The replacing of all workers, one by one."""

    left: list[int] = field(default_factory=list)
    active: bool = False
    again: bool = False


def how_it_ended(worker: Worker, code: int) -> str:
    """Return how the process of a worker ended, as the end of a sentence about it."""
    if worker.late and worker.state is State.STARTING:
        return "took too long and was killed"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # a realtime signal
        return f"was killed by signal {-code}"


def exit_code_of(code: int) -> int:
    """Return what shells give for a return code of `subprocess`."""
    return 128 - code if code < 0 else code
