"""Tests of `django_asyncbridge.serving.supervisor`, with small programs as supervisor and workers, each a process of its own.

What is decided is tested in `test_roster`; here is that processes, signals and sockets do it.
"""

import contextlib
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from django_asyncbridge.serving import supervisor
from django_asyncbridge.serving.errors import ServingError
from django_asyncbridge.serving.supervisor import Supervisor
from tests.support import ROOT, run_in_thread

LIMIT_SECONDS = 30

# Answers each connection with its pid, its number and the version of its file. A client that sends "hold" is waited for at the end.
WORKER = """
    import os, select, signal, socket, sys, threading
    from django_asyncbridge.serving._worker_link import WorkerLink

    link = WorkerLink.from_environ(os.environ)
    exec(open("version.py").read())
    listener = socket.socket(fileno=link.listeners[0])
    reader, writer = os.pipe()
    held = []

    def stop(*_):
        os.write(writer, b"x")

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    link.watch(stop)
    link.ready()
    while not select.select([listener, reader], [], [])[0].count(reader):
        try:
            client, _ = listener.accept()
        except BlockingIOError:  # another worker was faster
            continue
        client.setblocking(True)
        client.sendall(f"{os.getpid()} {link.number} {version}\\n".encode())
        if client.recv(16) == b"hold":
            held.append(client)
        else:
            client.close()
    listener.close()
    for client in held:
        client.recv(16)
"""

PARENT = """
    import logging, os, sys
    from pathlib import Path
    from django_asyncbridge.serving._changes import Changes
    from django_asyncbridge.serving.address import Address, listen
    from django_asyncbridge.serving.supervisor import Supervisor

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("watchfiles").setLevel(logging.ERROR)
    workers, graceful, reload = sys.argv[1:]
    listener = listen(Address("127.0.0.1", 0))
    port = listener.getsockname()[1]
    supervisor = Supervisor(
        [sys.executable, "worker.py"],
        workers=int(workers),
        listeners=[listener],
        graceful_seconds=float(graceful) if graceful else None,
        changes=Changes([Path.cwd()]) if reload else None,
    )
    code = supervisor.run(lambda: print(f"INFO port {port}", file=sys.stderr, flush=True))
    try:
        os.waitpid(-1, os.WNOHANG)
        print("a child is left", file=sys.stderr)
    except ChildProcessError:
        sys.exit(code)
"""


class Parent:
    """A running supervisor, its log read as it comes."""

    def __init__(
        self, directory: Path, workers: int, graceful: str = "20", *, reload: bool = False
    ) -> None:
        self.directory = directory
        (directory / "worker.py").write_text(textwrap.dedent(WORKER))
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(PARENT),
                str(workers),
                graceful,
                "reload" if reload else "",
            ],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.log: list[str] = []
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port = int(self.wait_for(r"port (\d+)")[1])

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as pipe:
            for line in pipe:
                self.log.append(line)
                self._lines.put(line)
        self._lines.put("")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the first line, of those not looked at yet, that matches."""
        while True:
            line = ""
            with contextlib.suppress(queue.Empty):
                line = self._lines.get(timeout=LIMIT_SECONDS)
            if not line:
                raise AssertionError(f"no {pattern!r} in {self.log}")
            if match := re.search(pattern, line):
                return match

    def pid(self) -> int:
        """Return the process of the worker whose start is logged next."""
        return int(self.wait_for(r"Worker \d+ started \(pid (\d+)\)")[1])

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_SECONDS)

    def ask(self) -> tuple[int, str, str]:
        """Return the pid, the number and the version that answers."""
        with self.connect() as client:
            pid, number, version = client.recv(64).decode().split()
        return int(pid), number, version

    def ask_until(self, wanted: Callable[[tuple[int, str, str]], bool]) -> tuple[int, str, str]:
        """Ask until the answer is the wanted one; each time there has to be one."""
        limit = time.monotonic() + LIMIT_SECONDS
        while not wanted(answer := self.ask()):
            assert time.monotonic() < limit, f"still {answer}"
        return answer

    def ask_until_all(self, pids: set[int]) -> None:
        """Ask until each of these processes has answered."""
        seen: set[int] = set()

        def is_last(answer: tuple[int, str, str]) -> bool:
            seen.add(answer[0])
            return seen >= pids

        self.ask_until(is_last)

    def write(self, source: str) -> None:
        """Change the workers' file, in one step."""
        new = self.directory / "version.new"
        new.write_text(source)
        new.replace(self.directory / "version.py")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait until the supervisor has ended and all that has its standard streams; return the exit code."""
        code = self.process.wait(LIMIT_SECONDS)
        self._reader.join(LIMIT_SECONDS)
        assert not self._reader.is_alive()
        return code


Start = Callable[..., Parent]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start supervisors; in the end kill what is left of them and their workers."""
    (tmp_path / "version.py").write_text("version = 'old'")
    started: list[Parent] = []

    def start(workers: int = 2, graceful: str = "20", *, reload: bool = False) -> Parent:
        started.append(Parent(tmp_path, workers, graceful, reload=reload))
        return started[-1]

    yield start
    for one in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.end()


def test_worker_that_is_killed_is_replaced_and_sigterm_ends_all(start: Start) -> None:
    parent = start()
    pids = {parent.pid(), parent.pid()}
    victim = parent.ask_until(lambda answer: answer[1] == "2")[0]
    assert victim in pids

    os.kill(victim, signal.SIGKILL)

    parent.wait_for(rf"WARNING Worker 2 \(pid {victim}\) was killed by SIGKILL; it is started aga")
    new = parent.pid()
    assert parent.ask_until(lambda answer: answer[0] == new)[1] == "2"
    parent.signal(signal.SIGTERM)
    assert parent.end() == 0
    with pytest.raises(ConnectionRefusedError):
        parent.connect()


def test_all_workers_that_are_killed_at_once_are_replaced(start: Start) -> None:
    parent = start(3)
    old = {parent.pid() for _ in range(3)}
    parent.ask_until_all(old)

    for pid in old:
        os.kill(pid, signal.SIGKILL)

    new = {parent.pid() for _ in range(3)}
    assert not old & new
    assert parent.ask()[0] in new
    parent.signal(signal.SIGINT)
    assert parent.end() == 0


def test_worker_that_cannot_start_ends_all_with_its_code(start: Start, tmp_path: Path) -> None:
    (tmp_path / "version.py").write_text("sys.exit(3)")

    parent = start()

    assert parent.end() == 3
    assert "Worker 2" not in "".join(parent.log)


def test_ctrl_c_that_reaches_all_lets_them_finish(start: Start) -> None:
    parent = start(1)
    with parent.connect() as client:
        client.recv(64)
        client.sendall(b"hold")

        # All of the process group, as from a terminal.
        os.killpg(parent.process.pid, signal.SIGINT)
        parent.wait_for("Ctrl-C: all workers are to end")
        parent.signal(signal.SIGTERM)
        assert parent.process.poll() is None

    assert parent.end() == 0


def test_second_signal_kills_workers_at_once(start: Start) -> None:
    parent = start(1, "")
    with parent.connect() as client:
        client.recv(64)
        client.sendall(b"hold")

        parent.signal(signal.SIGTERM)
        parent.wait_for("SIGTERM: all")
        parent.signal(signal.SIGTERM)

        assert parent.end() == 128 + signal.SIGTERM


def test_supervisor_that_is_killed_leaves_no_worker(start: Start) -> None:
    parent = start()
    parent.ask_until_all({parent.pid(), parent.pid()})

    parent.signal(signal.SIGKILL)

    # Workers have the standard error too: it ends with the last of them.
    assert parent.end() == -signal.SIGKILL


def test_sighup_replaces_workers_without_a_refused_connection(start: Start) -> None:
    parent = start()
    old = {parent.pid(), parent.pid()}
    with parent.connect() as client:
        held = int(client.recv(64).decode().split()[0])
        assert held in old
        client.sendall(b"hold")
        parent.write("version = 'new'")

        parent.signal(signal.SIGHUP)

        new = {parent.pid(), parent.pid()}
        # Who answers does not matter, if only somebody does.
        parent.ask_until_all(new)
        parent.wait_for("All workers have been replaced")
        assert not old & new
        # The predecessor is there until its client has gone.
        os.kill(held, 0)
    parent.signal(signal.SIGTERM)
    assert parent.end() == 0


def test_sighup_with_a_broken_file_keeps_the_old_workers(start: Start) -> None:
    parent = start()
    old = {parent.pid(), parent.pid()}
    parent.ask_until_all(old)
    parent.write("sys.exit(1)")

    parent.signal(signal.SIGHUP)

    parent.wait_for("ERROR Worker 1 .* ended with exit code 1 before it was ready")
    assert parent.ask()[0] in old
    parent.write("version = 'mended'")
    parent.signal(signal.SIGHUP)
    parent.wait_for("All workers have been replaced")
    parent.ask_until(lambda answer: answer[2] == "mended")
    parent.signal(signal.SIGTERM)
    assert parent.end() == 0


def test_reload_starts_the_worker_anew_also_after_a_broken_file(start: Start) -> None:
    parent = start(1, reload=True)
    assert parent.ask()[2] == "old"

    parent.write("version = 'new'")
    parent.wait_for(r"Changed: version\.py; the worker is started anew")
    # The connection waits while no worker is there.
    parent.ask_until(lambda answer: answer[2] == "new")
    parent.write("1 / 0")
    parent.wait_for("ERROR .* it is started when a file has changed")
    parent.write("version = 'mended'")
    assert parent.ask()[2] == "mended"

    parent.signal(signal.SIGTERM)
    assert parent.end() == 0


def test_reload_sees_what_changes_while_the_worker_starts(start: Start, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    (tmp_path / "version.py").write_text("open('go').read(); version = 'old'")
    parent = start(1, reload=True)
    parent.pid()

    parent.write("version = 'new'")

    assert parent.ask()[2] == "new"
    parent.signal(signal.SIGHUP)
    assert parent.end() == -signal.SIGHUP


# --- In this process -------------------------------------------------------------------------


def new_supervisor(*command: str, workers: int = 1) -> Supervisor:
    return Supervisor(command, workers=workers, listeners=[], graceful_seconds=0, environ={})


def test_run_of_a_command_that_is_not_there_says_so(caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    one = new_supervisor("/not/there")

    assert one.run() == 1

    text = "Worker 1 cannot be started: No such file or directory before it was ready."
    assert [record.getMessage() for record in caplog.records] == [text]
    assert signal.getsignal(signal.SIGCHLD) == before
    with pytest.raises(RuntimeError, match="has run already"):
        one.run()


def test_run_that_fails_leaves_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    one = new_supervisor(sys.executable, "-c", "import time; time.sleep(1000)")
    started: list[int] = []

    def fail(_key: int, pid: int) -> None:
        started.append(pid)
        raise LookupError

    monkeypatch.setattr(one._roster, "started", fail)
    with pytest.raises(LookupError):
        one.run()

    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


def test_run_in_another_thread_is_refused() -> None:
    with pytest.raises(RuntimeError, match="main thread"):
        run_in_thread(new_supervisor("true").run)


def test_supervisor_of_no_worker_is_refused() -> None:
    with pytest.raises(ValueError, match="0 workers"):
        new_supervisor("true", workers=0)


def test_supervisor_where_there_is_no_sighup_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGHUP")

    with pytest.raises(ServingError, match="--workers 1 --noreload"):
        new_supervisor("true")


class NothingChanged:
    """Can be read, but somebody has taken all there was."""

    def start(self) -> None:
        raise AssertionError

    def fileno(self) -> int:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError

    def take(self) -> list[Path]:
        return []


def test_events_that_mean_nothing_any_more_change_nothing() -> None:
    one = Supervisor(
        ["true"], workers=1, listeners=[], graceful_seconds=0, changes=NothingChanged()
    )
    reader, writer = os.pipe()
    os.write(writer, bytes([signal.SIGALRM]))

    one._on_signals(reader)
    one._on_line(1)
    one._on_changes(-1)

    assert one._roster.exit_code is None
    os.close(reader)
    os.close(writer)


def test_path_outside_of_the_current_directory_is_shown_in_full() -> None:
    assert supervisor._shown(Path("/not/here.py")) == "/not/here.py"
