"""Running ``manage.py runasgi`` in a child process, and requests to it that stay in flight."""

import contextlib
import os
import queue
import re
import socket
import subprocess
import sys
import textwrap
import threading
import urllib.parse
from pathlib import Path
from typing import IO

from tests.support import ROOT

LIMIT_SECONDS = 30

# Settings of the children: testproject's, with a database of their own, and time that stands still in
# streams, so that a line which arrives has not waited for the next.
CHILD_SETTINGS = """
    from testproject.settings import *
    DATABASES["default"]["NAME"] = {database!r}
    STREAM_DELAY_SECONDS = 3600
"""

# Answers what it was sent, after an empty first piece: the client decides how long a request is in flight.
ECHO_APPLICATION = """
    async def application(scope, receive, send):
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"<", "more_body": True})
            body = (await receive())["body"]
            await send({"type": "http.response.body", "body": body})

    async def lifespan(receive, send):
        while True:
            event = (await receive())["type"]
            print(event, flush=True)
            await send({"type": event + ".complete"})
            if event == "lifespan.shutdown":
                return
"""

FAILING_APPLICATION = """
    async def application(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "the cache is cold"})
"""


class Child:
    """A running ``manage.py runasgi``, its output read as it comes."""

    def __init__(self, directory: Path, *args: str, **env: str) -> None:
        path = os.pathsep.join([str(directory), str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", *args],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": path,
                "DJANGO_SETTINGS_MODULE": "child_settings",
                **env,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.out), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self.err), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: IO[str], into: list[str]) -> None:
        with pipe:
            for line in pipe:
                into.append(line.rstrip("\n"))
                self._lines.put(line)
        self._lines.put("")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the first line, of those not looked at yet, that matches."""
        while True:
            line = ""
            with contextlib.suppress(queue.Empty):
                line = self._lines.get(timeout=LIMIT_SECONDS)
            if not line:
                raise AssertionError(f"no {pattern!r} in\n{self.out}\n{self.err}")
            if match := re.search(pattern, line):
                return match

    def wait_for_url(self) -> str:
        """Return the address from the banner, once the banner is complete."""
        url = self.wait_for(r"http://\S+/")[0]
        self.wait_for("Quit the server")
        return url

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait until the process has ended; return its code."""
        code = self.process.wait(LIMIT_SECONDS)
        for reader in self._readers:
            reader.join(LIMIT_SECONDS)
        return code

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()


class Project:
    """A directory with settings for children, and the children started in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.children: list[Child] = []
        self.write("child_settings", CHILD_SETTINGS.format(database=str(directory / "db.sqlite3")))

    def write(self, module: str, source: str, *, append: bool = False) -> None:
        with (self.directory / f"{module}.py").open("a" if append else "w") as file:
            file.write(textwrap.dedent(source))

    def use_application(self, source: str) -> None:
        self.write("child_application", source)
        line = 'ASGI_APPLICATION = "child_application.application"\n'
        self.write("child_settings", line, append=True)

    def start(self, *args: str, **env: str) -> Child:
        child = Child(self.directory, *args, **env)
        self.children.append(child)
        return child

    def close(self) -> None:
        for child in self.children:
            child.kill()


class InFlight:
    """A request whose body is still to come, so that it stays in flight until `finish`."""

    def __init__(self, url: str) -> None:
        host, port = urllib.parse.urlsplit(url).netloc.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=LIMIT_SECONDS)
        self.socket.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n")
        self.read_until(b"<")

    def read_until(self, end: bytes) -> bytes:
        data = b""
        while end not in data:
            piece = self.socket.recv(65536)
            if not piece:
                raise AssertionError(f"the server closed after {data!r}")
            data += piece
        return data

    def finish(self) -> None:
        self.socket.sendall(b"ok")
        self.read_until(b"ok")
        self.close()

    def close(self) -> None:
        self.socket.close()
