"""A Redis of these tests, servers that use it, and what became of the messages."""

import asyncio
import collections
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from channels_redis.core import RedisChannelLayer

from tests.serving.children import Child

VARIABLE = "ASYNCBRIDGE_TEST_REDIS"
needs_redis = pytest.mark.skipif(
    VARIABLE not in os.environ,
    reason=f"needs Redis: {VARIABLE}=redis://127.0.0.1:6379/9",
)
needs_redis_server = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="needs the program redis-server, to restart it"
)
LIMIT_SECONDS = 60
CHANNEL = "numbers"


class OwnRedis:
    """A Redis server of the test, which keeps what it has when it is restarted."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._socket = directory / "socket"
        self.url = f"unix://{self._socket}"
        self._process: subprocess.Popen[bytes]

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["redis-server", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=self._directory,
        )
        configuration = f"port 0\nunixsocket {self._socket}\nappendonly yes\nsave ''\n"
        assert self._process.stdin is not None
        with self._process.stdin as pipe:
            pipe.write(configuration.encode())
        with contextlib.closing(redis.Redis.from_url(self.url)) as client:
            until(lambda: _answers(client))

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(LIMIT_SECONDS)


def _answers(client: Any) -> bool:
    answer = False
    with contextlib.suppress(redis.exceptions.RedisError):
        answer = client.ping()
    return answer


class Numbers:
    """Messages with numbers, servers that work on them, and what these have written down."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.prefix = f"test-asyncbridge-{uuid.uuid4().hex}:"
        self._directory = directory
        self._servers: list[Child] = []

    def serve(self, places: int) -> Child:
        """Start a server, and wait until it runs."""
        server = Child(
            self._directory,
            "runstateless",
            "django_asyncbridge.serving.channel.ChannelServer",
            "--app=tests.redis.site.application",
            f"--option=channels={CHANNEL}",
            f"--option=max_applications={places}",
            DJANGO_SETTINGS_MODULE="tests.redis.settings",
            TEST_REDIS=self.url,
            TEST_PREFIX=self.prefix,
            TEST_DIRECTORY=str(self._directory),
        )
        self._servers.append(server)
        server.wait_for("^Running ")
        return server

    def send(self, numbers: Iterable[int], *, held: bool = False) -> None:
        """Send numbers, in their order; work on those that are held goes on until `let_go`."""

        async def send(layer: Any) -> None:
            for number in numbers:
                message = {"type": "number", "number": number, "held": held}
                await layer.send(CHANNEL, message)

        self._with_layer(send)

    def _with_layer(self, use: Callable[[Any], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            layer = RedisChannelLayer([self.url], self.prefix, expiry=3600, capacity=100_000)
            try:
                await use(layer)
            finally:
                await layer.close_pools()

        asyncio.run(main())

    def waiting(self) -> int:
        """Return how many messages are still in Redis."""
        with contextlib.closing(redis.Redis.from_url(self.url)) as client:
            return int(client.zcard(self.prefix + CHANNEL))

    def keys(self) -> list[bytes]:
        """Return what the layer has in Redis for the channel, beside the messages."""
        with contextlib.closing(redis.Redis.from_url(self.url)) as client:
            return list(client.scan_iter(f"{self.prefix}{CHANNEL}$*"))

    def let_go(self, numbers: Iterable[int]) -> None:
        """Let work end that is held."""
        for number in numbers:
            (self._directory / str(number)).touch()

    def noted(self, word: str, server: Child | None = None) -> "collections.Counter[int]":
        """Return how often each number was begun or ended, by one server or any."""
        found: collections.Counter[int] = collections.Counter()
        name = "*" if server is None else str(server.process.pid)
        for path in self._directory.glob(f"{name}.log"):
            for line in path.read_text().splitlines():
                if line.startswith(word):
                    found[int(line.split()[1])] += 1
        return found

    def in_work(self, server: Child) -> set[int]:
        """Return what a server has begun and not ended."""
        return set(self.noted("begun", server)) - set(self.noted("ended", server))

    def close(self) -> None:
        for server in self._servers:
            server.kill()
        client = redis.Redis.from_url(self.url)
        # A server of the test may have stopped.
        with contextlib.closing(client), contextlib.suppress(redis.exceptions.ConnectionError):
            client.delete(self.prefix, *client.scan_iter(f"{self.prefix}*"))


def until(condition: Callable[[], object]) -> None:
    """Wait until something has come true."""
    end = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        threading.Event().wait(0.02)


@pytest.fixture
def own_redis() -> Iterator[OwnRedis]:
    # Not pytest's directory: the path of a socket has to be short.
    with tempfile.TemporaryDirectory(prefix="redis-") as directory:
        server = OwnRedis(Path(directory))
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def numbers(tmp_path: Path) -> Iterator[Numbers]:
    """Give messages on the Redis server of the variable."""
    with contextlib.closing(Numbers(os.environ[VARIABLE], tmp_path)) as numbers:
        yield numbers


@pytest.fixture
def own_numbers(own_redis: OwnRedis, tmp_path: Path) -> Iterator[Numbers]:
    """Give messages on a Redis server of the test."""
    with contextlib.closing(Numbers(own_redis.url, tmp_path)) as numbers:
        yield numbers
