"""``manage.py runasgi`` in a child process, with what it says.

Which thread may touch what. Two threads read what the child writes; they and whoever waits for a line share `lines` under a condition.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tests.serving.e2e.wire import LIMIT_SECONDS, Connection
from tests.support import ROOT

_marks = itertools.count(1)


class Server:
    """A running ``runasgi`` of the project `tests.serving.e2e.site`, in a process group of its own.

    Attributes:
        lines: what it has written so far, to both of its outputs.
    """

    def __init__(
        self, *args: str, cwd: Path = ROOT, pass_fds: Sequence[int] = (), **env: str
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "django", "runasgi", *args],
            cwd=cwd,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(cwd), str(ROOT)]),
                "DJANGO_SETTINGS_MODULE": "tests.serving.e2e.settings",
                **env,
            },
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._read_up_to = 0
        self._open = 2
        self._changed = threading.Condition()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(pipe,), daemon=True)
            for pipe in (self.process.stdout, self.process.stderr)
        ]
        for reader in self._readers:
            reader.start()
        self.address = ("127.0.0.1", 0)

    def _read(self, pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                self._tell(line.rstrip("\n"))
        self._tell(None)

    def _tell(self, line: str | None) -> None:
        with self._changed:
            if line is None:
                self._open -= 1
            else:
                self.lines.append(line)
            self._changed.notify_all()

    # --- What it says ------------------------------------------------------------

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the match of the first line, of those after the last that was waited for, that has one."""
        end = time.monotonic() + LIMIT_SECONDS
        with self._changed:
            while True:
                while self._read_up_to < len(self.lines):
                    match = re.search(pattern, self.lines[self._read_up_to])
                    self._read_up_to += 1
                    if match:
                        return match
                left = end - time.monotonic()
                if not self._open or left < 0:
                    raise AssertionError("\n".join([f"no line with {pattern!r} in", *self.lines]))
                self._changed.wait(left)

    def wait_for_start(self) -> None:
        """Wait for the banner, and remember the address in it, if it has one."""
        where = self.wait_for(r"^Serving .* at (.*)$")[1]
        self.wait_for("Quit the server")
        if match := re.fullmatch(r"https?://127\.0\.0\.1:(\d+)/", where):
            self.address = ("127.0.0.1", int(match[1]))

    def now(self) -> int:
        """Return how many lines the server has written; all that it has done so far is in them."""
        mark = str(next(_marks))
        self.fetch(f"/log/?mark={mark}")
        self.wait_for(rf"mark {mark}$")
        return self._read_up_to

    def log_since(self, line: int) -> list[str]:
        """Return what the server has written since it had written so many lines."""
        return self.lines[line : self.now()]

    # --- Asking ------------------------------------------------------------------

    def connect(self) -> Connection:
        return Connection(self.address)

    def websocket_url(self) -> str:
        return "ws://{}:{}/ws/".format(*self.address)

    def fetch(self, target: str, *headers: str) -> bytes:
        """Return the body of a page, asked for on a connection of its own."""
        with self.connect() as connection:
            response = connection.ask(target, "connection: close", *headers)
        assert response.status == 200, response
        return response.body

    def fetch_json(self, target: str, *headers: str) -> Any:
        return json.loads(self.fetch(target, *headers))

    def wait_until_idle(self) -> None:
        """Wait until the server has ended all it was asked for, also by clients that have left."""
        until(lambda: self.fetch_json("/active/")["requests"] == 0)

    # --- Its end -----------------------------------------------------------------

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait until the process has ended; return its code. Nothing that it has started may be left."""
        code = self.process.wait(LIMIT_SECONDS)
        until(lambda: not self._has_processes())
        for reader in self._readers:
            reader.join(LIMIT_SECONDS)
        return code

    def stop(self) -> int:
        """Ask it to end, and wait until it has; return its code."""
        self.signal(signal.SIGTERM)
        return self.end()

    def _has_processes(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        """End it and all that it has started, whatever they do."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.end()


@contextlib.contextmanager
def running(*args: str) -> Iterator[Server]:
    """Have a server with these arguments while the block runs."""
    server = Server(*args)
    try:
        server.wait_for_start()
        yield server
    finally:
        server.kill()


def until(condition: Callable[[], bool]) -> None:
    """Wait until it has become true."""
    end = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.01)


def complaints(lines: Sequence[str]) -> list[str]:
    """Return the lines that say that something has gone wrong."""
    return [line for line in lines if re.search(r"Traceback|ERROR|CRITICAL|[a-z]Error\b", line)]
