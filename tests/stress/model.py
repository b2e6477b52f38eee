"""What the promises say must be seen at every place of a tree, kept beside the bridge and without it.

Theory of operation. Each call is given, as plain arguments, what the bridge has to carry in its own way: a `Scene` (who
waits for whom, so which thread is home and which loop is used), a `Shadow` (the values of all variables) and a `Flow` (what may be
cancelled). A shadow is handed on where changes must come back to the caller, and copied where they must not. So it
follows a cancelled call to the very step that was the last, which no computation beforehand could.

Which thread may touch what. Scenes do not change. A shadow belongs to one call chain, in which one thread at a
time does something. `Homes` and `Report` have a lock. A flow is marked before the cancellation that it tells of is asked for.

Source: promises P1, P2, P3, P5.
"""

import asyncio
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from django_asyncbridge.bridge.local import Local
from tests.stress.grow import VARIABLES

__all__ = ("Flow", "Homes", "Left", "Report", "Scene", "Shadow", "Variables")

Home = threading.Thread | str
SHARED = "shared"
_PRINTED_FAILURES = 3


@dataclass(frozen=True)
class Scene:
    """What is around a call.

    Args:
        loop: the event loop that runs it or waits for it; None where a new one has to be made.
        caller: the thread that waits in `async_to_sync`, nearest up the chain.
        context: name of the block whose thread is home unless somebody waits.
        single: name of the outermost `AsyncSingleThreadContext` around it.
        left: what was left to the end of `loop`.
    """

    loop: asyncio.AbstractEventLoop | None = None
    caller: threading.Thread | None = None
    context: str = SHARED
    single: str | None = None
    left: "list[Left]" = field(default_factory=list)

    @property
    def home(self) -> Home:
        """Where thread-sensitive calls run (P1)."""
        return self.caller or self.context


class Flow:
    """Tells whether a call may be cut off: it, or what called it, may have been cancelled.

    Args:
        outer: the flow of the caller.
        disturbed: whether it may be cancelled from the beginning.
    """

    def __init__(self, outer: "Flow | None" = None, disturbed: bool = False) -> None:
        self._outer = outer
        self._disturbed = disturbed

    def disturb(self) -> None:
        """Say so before the cancellation is asked for."""
        self._disturbed = True

    @property
    def disturbed(self) -> bool:
        """Whether this call may end in another way than planned."""
        return self._disturbed or (self._outer is not None and self._outer.disturbed)


class Left:
    """A task or an async generator that was left to the end of its loop (P6)."""

    def __init__(self) -> None:
        self.kept: asyncio.Task[None] | AsyncIterator[None] | None = None
        self._begun = self._ended = False

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Surround its body."""
        self._begun = True
        try:
            yield
        finally:
            self._ended = True

    def is_over(self) -> bool:
        """Tell whether it has come to its end; a task may have been cancelled before it began."""
        done = not isinstance(self.kept, asyncio.Task) or self.kept.done()
        return done and self._begun == self._ended


Shadow = dict[int, str]


class Variables:
    """The variables of a run: context variables, and last an attribute of a `Local`."""

    def __init__(self) -> None:
        names = [f"stress_{number}" for number in range(VARIABLES - 1)]
        self.vars: list[ContextVar[str]] = [ContextVar(name) for name in names]
        self._local = Local()

    def set(self, number: int, value: str, shadow: Shadow) -> None:
        """Set one here, and note it."""
        shadow[number] = value
        if number < len(self.vars):
            self.vars[number].set(value)
        else:
            self._local.value = value

    def seen(self) -> Shadow:
        """Return the values seen here; what is not set is not in it."""
        values = [var.get(None) for var in self.vars] + [getattr(self._local, "value", None)]
        return {number: value for number, value in enumerate(values) if value is not None}


class Report:
    """Collects what is wrong, and counts what was done."""

    def __init__(self) -> None:
        # A finalizer of the same thread may complain while something is counted.
        self._lock = threading.RLock()
        self.failures: list[str] = []
        self.counts: dict[str, int] = {}

    def check(self, right: object, what: str) -> None:
        """Note a failure, with the stack, unless it is right."""
        if not right:
            self.fail(what)

    def fail(self, what: str) -> None:
        """Note a failure, and print it at once: it may be why the run hangs later."""
        stack = "".join(traceback.format_stack(limit=12)[:-1])
        failure = f"{what}\n  in {threading.current_thread().name}\n{stack}"
        with self._lock:
            self.failures.append(failure)
            if len(self.failures) <= _PRINTED_FAILURES:
                print(f"\n{failure}", file=sys.stderr, flush=True)

    def count(self, what: str) -> None:
        """Count something done."""
        with self._lock:
            self.counts[what] = self.counts.get(what, 0) + 1


class Homes:
    """Which thread each home turned out to be, who works aside, and which loops run."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._threads: dict[str, threading.Thread] = {}
        self._same: dict[str, threading.Thread] = {}
        self._aside: list[threading.Thread] = []
        self._loops: list[asyncio.AbstractEventLoop] = []
        self._names = 0

    @contextmanager
    def place(self, what: str) -> Iterator[str]:
        """Name a block that has a thread of its own, until it ends."""
        with self._lock:
            self._names += 1
            name = f"{what}-{self._names}"
        try:
            yield name
        finally:
            # Before the thread is given back: the next block may have it at once.
            with self._lock:
                self._threads.pop(name, None)

    def check(self, home: Home) -> None:
        """Check that the current thread is a home; a block's becomes known with its first call."""
        current = threading.current_thread()
        if isinstance(home, threading.Thread):
            self._report.check(current is home, f"not at home: should be {home.name}")
            return
        with self._lock:
            expected = self._threads.get(home)
            if expected is None:
                free = current not in self._threads.values() and current not in self._aside
                self._threads[home] = expected = current
            else:
                free = True
        self._report.check(free, f"{home} got a thread that is in use for something else")
        self._report.check(current is expected, f"not at home: {home} should be {expected.name}")

    def check_same(self, name: str) -> None:
        """Check that all calls with this name come in one thread, whatever else that does."""
        current = threading.current_thread()
        with self._lock:
            expected = self._same.setdefault(name, current)
        self._report.check(current is expected, f"{name} should be {expected.name}")

    @contextmanager
    def aside(self, prefix: str) -> Iterator[None]:
        """Check that the current thread is called so and nobody's home, and stays so in the block."""
        current = threading.current_thread()
        self._report.check(current.name.startswith(prefix), f"not in a thread of {prefix}")
        with self._lock:
            free = current not in self._threads.values()
            self._aside.append(current)
        self._report.check(free, "a call that is not thread-sensitive runs in a home thread")
        try:
            yield
        finally:
            with self._lock:
                self._aside.remove(current)

    @contextmanager
    def own_loop(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Check that nobody else runs a call of its own on this loop."""
        with self._lock:
            free = loop not in self._loops
            self._loops.append(loop)
        self._report.check(free, "a loop of its own was wanted, and somebody's was used")
        try:
            yield
        finally:
            with self._lock:
                self._loops.remove(loop)
