"""The parent process of ``--workers`` and ``--reload``: it starts worker processes, and keeps them as the roster says.

A worker is the same command line, started anew: it inherits the listening sockets and, in its environment, what
`django_asyncbridge.serving._worker_link` reads. Nothing of this process is forked or pickled. What is done, and when, is decided in
`django_asyncbridge.serving._roster`; here is what it is done with: processes, signals, sockets.

Which thread may touch what. All of it is the main thread's, which waits for everything in one place. A signal handler does nothing: the
interpreter writes the signal's number into a pipe, and the main thread finds it there in its turn, so that no signal comes between two
steps and none is lost before a wait. SIGCHLD says that some worker has ended, not which, and two may come as one: all are looked
at each time. A worker says that it is ready on its line, which is read once more when it has ended, since both may be found at once.
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from django_asyncbridge.serving._roster import Roster
from django_asyncbridge.serving._roster_parts import (
    Action,
    Kill,
    Start,
    StopListening,
    Terminate,
)
from django_asyncbridge.serving._worker_link import READY, environment_of
from django_asyncbridge.serving.errors import ServingError

__all__ = ("Supervisor", "WatchesChanges")

logger = logging.getLogger("django_asyncbridge.serving")

# Not measured: much longer than a project takes to be imported, and short for one who waits to see what is wrong.
_START_SECONDS = 60.0


class WatchesChanges(Protocol):
    """What `Supervisor` needs of `django_asyncbridge.serving._changes.Changes`."""

    def start(self) -> None:
        """Begin to look; what changes after the return is reported."""

    def fileno(self) -> int:
        """Return what can be read when there is something to `take`."""

    def take(self) -> list[Path]:
        """Return what has changed since the last time."""

    def close(self) -> None:
        """Stop looking."""


@dataclass(frozen=True, slots=True)
class _Worker:
    """A worker's process, and our end of the line to it."""

    process: "subprocess.Popen[bytes]"
    line: socket.socket


class Supervisor:
    """Runs a command in worker processes until it is told to stop.

    The first worker is started alone, and the others when it is ready: if it cannot start, it alone has said why. From then on a worker
    that ends is started again; one that ends early again and again, after pauses of 1 s, then 2 s, up to 30 s.

    - SIGTERM, SIGINT: all workers get SIGTERM, and SIGKILL when their time is over. The same signal again: SIGKILL at once.
    - SIGHUP: all workers are replaced, one by one: the next one starts, and when it is ready its predecessor gets SIGTERM. If it does
      not become ready, those that were not replaced go on. Not taken with `changes`: closing the terminal ends the process then.

    A worker whose supervisor is gone ends by itself.

    Args:
        command: the program and its arguments. Each worker makes a `django_asyncbridge.serving._worker_link.WorkerLink`, calls
            `ready` of it when it serves, ends on SIGTERM, and inherits the standard streams.
        workers: how many, at least 1; with `changes` 1.
        listeners: sockets that listen, for all workers. They are the supervisor's from here on: closed when it stops.
        graceful_seconds: how long requests in flight may take to finish; None for any time. Workers keep to it themselves, and are
            killed some seconds later.
        changes: reports files that have changed; then the worker is started anew. While a worker cannot start, that is waited for.
            It is the supervisor's from here on: started and closed by it.
        start_seconds: how long a worker may take to become ready; None for any time. No limit with `changes`.
        environ: the environment of the workers; None for this process's.

    Raises:
        ServingError: the system is not POSIX.
        ValueError: the number of workers is none that is possible.
    """

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        workers: int,
        listeners: Iterable[socket.socket],
        graceful_seconds: float | None,
        changes: WatchesChanges | None = None,
        start_seconds: float | None = _START_SECONDS,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        if not hasattr(signal, "SIGHUP"):
            raise ServingError(
                "Workers and reloading need a POSIX system, as Linux or macOS; "
                "here serve with one process: --workers 1 --noreload."
            )
        if workers < 1 or (changes is not None and workers > 1):
            raise ValueError(f"{workers} workers are not possible; one at least, one with changes.")
        self._command = tuple(command)
        self._listeners = tuple(listeners)
        self._changes = changes
        self._environ = environ
        self._roster = Roster(
            workers,
            graceful_seconds=graceful_seconds,
            start_seconds=start_seconds,
            reload=changes is not None,
        )
        self._workers: dict[int, _Worker] = {}
        self._selector: selectors.BaseSelector | None = None

    def run(self, announce: Callable[[], object] | None = None) -> int:
        """Run the workers until they have ended, because of a signal or because they cannot start; return the exit code.

        Main thread only, once. Signal handlers are as before when it returns or raises, and no worker is left.

        Args:
            announce: called before the first worker is started, for a banner: whoever reads it may send a signal at once, which is
                taken already.

        Returns:
            0 after a signal; 128 and the signal's number after the second of a kind; what the first worker ended with, if it was never
            ready.

        Raises:
            RuntimeError: in another thread, or for the second time.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("Supervisor.run takes signals; call it in the main thread.")
        if self._selector is not None:
            raise RuntimeError("This Supervisor has run already; make a new one to run again.")
        with contextlib.ExitStack() as stack:
            self._selector = stack.enter_context(selectors.DefaultSelector())
            stack.callback(self._stop_listening)
            signals = stack.enter_context(_signals_into_pipe(self._signals()))
            stack.callback(self._end_all)
            self._selector.register(signals, selectors.EVENT_READ, self._on_signals)
            if self._changes is not None:
                stack.callback(self._changes.close)
                # Before the first worker reads a file, or a change of that one would be missed.
                self._changes.start()
                self._selector.register(self._changes, selectors.EVENT_READ, self._on_changes)
            if announce is not None:
                announce()
            self._do(self._roster.begin(time.monotonic()))
            while self._roster.exit_code is None:
                self._wait(self._selector)
            return self._roster.exit_code

    def _signals(self) -> list[int]:
        wanted: list[int] = [signal.SIGCHLD, signal.SIGINT, signal.SIGTERM]
        return wanted if self._changes is not None else [*wanted, signal.SIGHUP]

    def _wait(self, selector: selectors.BaseSelector) -> None:
        """Wait for the next event, and do what follows from it."""
        at = self._roster.next_at()
        for key, _events in selector.select(None if at is None else at - time.monotonic()):
            key.data(key.fd)
        self._do(self._roster.tick(time.monotonic()))

    # --- Events ------------------------------------------------------------------

    def _on_signals(self, pipe: int) -> None:
        """Do what the signals mean, in the order in which they came."""
        for number in os.read(pipe, 4096):
            now = time.monotonic()
            if number == signal.SIGCHLD:
                self._find_ended()
            elif number == signal.SIGHUP:
                self._do(self._roster.asked_to_roll(now))
            elif number in (signal.SIGINT, signal.SIGTERM):
                self._do(self._roster.asked_to_stop(number, now))

    def _find_ended(self) -> None:
        for key, worker in list(self._workers.items()):
            code = worker.process.poll()
            if code is not None:
                self._on_line(key)
                self._forget(key)
                self._do(self._roster.ended(key, code, time.monotonic()))

    def _on_line(self, key: int) -> None:
        """Hear what a worker says. That its line is broken says nothing: whether it has ended, the system tells."""
        if key not in self._workers:
            return  # it was found to have ended in the same turn
        line = self._workers[key].line
        heard = b""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            heard = line.recv(16)
            if not heard:
                self._let_go(line)
        if READY in heard:
            self._do(self._roster.ready(key, time.monotonic()))

    def _on_changes(self, _fd: int) -> None:
        assert self._changes is not None
        paths = self._changes.take()
        if paths:
            names = [_shown(path) for path in paths]
            self._do(self._roster.changed(names, time.monotonic()))

    # --- Actions -----------------------------------------------------------------

    def _do(self, actions: Iterable[Action]) -> None:
        """Do what the roster wants, and what follows from doing it."""
        left = deque(actions)
        while left:
            left.extend(self._perform(left.popleft()))

    def _perform(self, action: Action) -> list[Action]:
        match action:
            case Start():
                return self._start(action)
            case Terminate(key):
                # Popen sends nothing to a process that it knows to have ended; its number may be another's by now.
                self._workers[key].process.terminate()
            case Kill(key):
                self._workers[key].process.kill()
            case StopListening():
                self._stop_listening()
            case _:
                logger.log(action.level, "%s", action.text)
        return []

    def _start(self, start: Start) -> list[Action]:
        """Start a worker's process; if the system cannot, that is how it has ended."""
        ours, its = socket.socketpair()
        ours.setblocking(False)
        fds = [one.fileno() for one in self._listeners]
        try:
            environ = os.environ if self._environ is None else self._environ
            process = subprocess.Popen(
                self._command,
                env={**environ, **environment_of(start.number, its.fileno(), fds)},
                pass_fds=(its.fileno(), *fds),
            )
        except OSError as error:
            ours.close()
            how = f"cannot be started: {error.strerror or error}"
            return self._roster.ended(start.key, 1, time.monotonic(), how)
        finally:
            its.close()
        self._workers[start.key] = _Worker(process, ours)
        self._roster.started(start.key, process.pid)
        assert self._selector is not None
        self._selector.register(ours, selectors.EVENT_READ, lambda _fd: self._on_line(start.key))
        logger.info("Worker %d started (pid %d).", start.number, process.pid)
        return []

    def _forget(self, key: int) -> None:
        line = self._workers.pop(key).line
        self._let_go(line)
        line.close()

    def _let_go(self, line: socket.socket) -> None:
        assert self._selector is not None
        with contextlib.suppress(KeyError):
            self._selector.unregister(line)

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()

    def _end_all(self) -> None:
        """Leave no worker, however `run` ends; normally there is none any more."""
        for worker in self._workers.values():
            worker.process.kill()
            worker.process.wait()
            worker.line.close()
        self._workers.clear()


@contextlib.contextmanager
def _signals_into_pipe(numbers: Iterable[int]) -> Iterator[int]:
    """Have the numbers of signals written into a pipe, one byte each, while the block runs; yield its reading end."""
    reader, writer = os.pipe()
    # 65536 signals fit, on Linux; the main thread would have to be stuck for as long as that many take.
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, _do_nothing) for number in numbers}
    try:
        yield reader
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


def _do_nothing(_number: int, _frame: object) -> None:
    """Be a handler: with none, the interpreter would not write the signal into the pipe."""


def _shown(path: Path) -> str:
    """Return a path as short as it can be written here."""
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return str(path)
