"""The servers that are measured, one worker process each, and their life: started, waited for, ended.

Each is set up as its documentation has it for service: ``DEBUG`` off, no line per request, uvloop and httptools where the
server has the choice, eight threads where it has threads. A server is a session of its own, so that all its
processes can be found, and ended together.

Which thread may touch what. All of it belongs to the main thread of the command.
"""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.bench import BenchmarkError
from benchmarks.pages import GRANIAN, GUNICORN, OURS, STOCK, Page
from benchmarks.project import ROOT, Database, environment, on_processors

__all__ = (
    "HOST",
    "OPTIONAL",
    "SERVERS",
    "Running",
    "Server",
    "cpu_seconds",
    "fetch",
    "free_port",
    "missing",
    "started",
)

HOST = "127.0.0.1"
THREADS = 8
_START_SECONDS = 30
_END_SECONDS = 8
_POLL_SECONDS = 0.05
_ANSWER_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Server:
    """One server and what it runs.

    Args:
        name: as the tables have it.
        command: its arguments after the interpreter, for a port.
        needs: the package that has to be installed.
        ours: whether this package is in it.
        leaks: whether connections that requests leave open are nobody's: they are ended before the next slice.
    """

    name: str
    command: Callable[[int], list[str]]
    needs: str
    ours: bool = False
    leaks: bool = False


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    server: Server
    port: int
    session: int


def _uvicorn(application: str) -> Callable[[int], list[str]]:
    def command(port: int) -> list[str]:
        how = "--loop uvloop --http httptools --no-access-log --log-level warning"
        return _module(f"uvicorn {application} --host {HOST} --port {port} {how}")

    return command


def _runasgi(port: int) -> list[str]:
    return _module(f"django runasgi {HOST}:{port} --noreload --no-access-log")


def _gunicorn(port: int) -> list[str]:
    # uvicorn's time for an idle connection; this server's own is 2 seconds.
    how = f"--workers 1 --worker-class gthread --threads {THREADS} --keep-alive 5"
    quiet = "--log-level warning --no-control-socket"
    return _module(f"gunicorn --bind {HOST}:{port} {how} {quiet} benchmarks.site.wsgi:application")


def _granian_wsgi(port: int) -> list[str]:
    return _granian(port, f"--interface wsgi --blocking-threads {THREADS}", "wsgi")


def _granian_asgi(port: int) -> list[str]:
    return _granian(port, "--interface asgi --loop uvloop", "asgi")


def _granian(port: int, how: str, module: str) -> list[str]:
    quiet = "--http 1 --no-ws --no-access-log --log-level warning"
    where = f"--host {HOST} --port {port} --workers 1"
    return _module(f"granian {where} {how} {quiet} benchmarks.site.{module}:application")


def _module(arguments: str) -> list[str]:
    return ["-m", *arguments.split()]


SERVERS = (
    Server(f"{OURS} uvicorn", _uvicorn("benchmarks.site.asgi:application"), "uvicorn", ours=True),
    Server(f"{OURS} runasgi", _runasgi, "uvicorn", ours=True),
    Server(STOCK, _uvicorn("benchmarks.site.stock_asgi:application"), "uvicorn", leaks=True),
    Server(GUNICORN, _gunicorn, "gunicorn"),
    Server(GRANIAN, _granian_wsgi, "granian"),
)
# Measured when they are asked for.
OPTIONAL = (Server(f"{OURS} granian asgi", _granian_asgi, "granian", ours=True),)


@contextlib.contextmanager
def started(
    server: Server, database: Database, first: Page, processors: frozenset[int] | None
) -> Iterator[Running]:
    """Start a server, wait until it answers, and end it with the block.

    Args:
        server: which one.
        database: what its project uses.
        first: a page that asks no database.
        processors: where its threads run; None for anywhere.

    Raises:
        BenchmarkError: when it does not answer in time, or wrongly.
    """
    port = free_port()
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        with on_processors(processors):
            process = subprocess.Popen(
                [sys.executable, *server.command(port)],
                cwd=ROOT,
                env=environment(database, server.name, ours=server.ours),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        stack.callback(_end, process)
        try:
            _wait_until_up(process, port)
            fetch(port, first)
        except BenchmarkError as error:
            log.seek(0)
            said = log.read().decode(errors="replace")
            raise BenchmarkError(f"{server.name}: {error}; it said:\n{said}") from error
        yield Running(server, port, process.pid)


def free_port() -> int:
    """Return a port that the system chose and that is free just now."""
    with socket.socket() as listener:
        # A server must be able to take it over at once.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_until_up(process: subprocess.Popen[bytes], port: int) -> None:
    limit = time.monotonic() + _START_SECONDS
    while time.monotonic() < limit and process.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection((HOST, port), timeout=1).close()
            return
        time.sleep(_POLL_SECONDS)
    raise BenchmarkError("it did not start")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End all processes of a server, in order if it does so in time."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
    # Also what a master has left behind.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def fetch(port: int, page: Page | str) -> str:
    """Ask for a page once and return the body of its answer.

    Args:
        port: of the server.
        page: a page, whose body is checked as well, or a path.

    Raises:
        BenchmarkError: when the answer is not the right one.
    """
    path = page if isinstance(page, str) else page.path
    connection = http.client.HTTPConnection(HOST, port, timeout=_ANSWER_SECONDS)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode(errors="replace")
    if answer.status != 200 or (isinstance(page, Page) and body != page.body):
        raise BenchmarkError(f"{path} was answered {answer.status} {body[:80]!r}")
    return body


def cpu_seconds(session: int) -> float | None:
    """Return the CPU time that all processes of a session have used so far; None where that cannot be known."""
    if not Path("/proc/self/stat").exists():
        return None
    ticks = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            # It may end while we look.
            with contextlib.suppress(OSError):
                ticks += _ticks((folder / "stat").read_text(), session)
    return ticks / os.sysconf("SC_CLK_TCK")


def _ticks(stat: str, session: int) -> int:
    # What is in parentheses may hold anything; proc(5) counts these fields from 1, the first below is its third.
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]) if int(fields[3]) == session else 0


def missing(server: Server) -> bool:
    """Tell whether the package of a server is not installed."""
    return find_spec(server.needs) is None
