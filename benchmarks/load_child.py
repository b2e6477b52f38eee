"""A small load generator: HTTP/1.1 over several connections that are kept, one request at a time on each.

Started by `load`, with an `Order` in JSON as its one argument; it prints `Answers` in JSON. It reads nothing of an answer but the
status, the ``Content-Length`` and the body, so that it costs less than the servers it measures.

Which thread may touch what. There is one thread.
"""

import asyncio
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import cast

__all__ = ("Answers", "Order", "loop_factory", "main")

_HOST = "127.0.0.1"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_HEAD_END = b"\r\n\r\n"
# "HTTP/1.1 200": where the number is.
_STATUS = slice(9, 12)


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be asked for; one of `seconds` and `requests` says how often.

    Args:
        port: of the server.
        path: of the page.
        body: what it has to answer.
        connections: how many are kept.
        seconds: for how long.
        requests: how many.
    """

    port: int
    path: str
    body: str
    connections: int
    seconds: float | None = None
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """What came back.

    Args:
        good: how many answers were right.
        failed: how many were not, or did not come.
        seconds: how long it took.
        p50_ms: the latency that half of the answers stayed below.
        p99_ms: the same for 99 of 100.
    """

    good: int
    failed: int
    seconds: float
    p50_ms: float
    p99_ms: float


class _Load:
    """What all connections share: how often to ask, and what came back."""

    def __init__(self, order: Order) -> None:
        self.request = f"GET {order.path} HTTP/1.1\r\nHost: {_HOST}:{order.port}\r\n\r\n".encode()
        self.body = order.body.encode()
        self.failed = 0
        self.latencies: list[float] = []
        self.until = time.perf_counter() + (order.seconds or float("inf"))
        self._left = order.requests
        self._open = order.connections
        self.done = asyncio.get_running_loop().create_future()

    def another(self, now: float) -> bool:
        """Take one of the requests that are left; tell whether there was one."""
        if self._left is not None:
            self._left -= 1
            return self._left >= 0
        return now < self.until

    def leave(self) -> None:
        """Count one connection less; the last one ends the load."""
        self._open -= 1
        if self._open == 0:
            self.done.set_result(None)


class _Connection(asyncio.Protocol):
    """One connection that is kept, and opened anew when the server closes it."""

    def __init__(self, load: _Load, reconnect: Callable[[], None]) -> None:
        self._load = load
        self._reconnect = reconnect
        self._data = b""
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ask(time.perf_counter())

    def _ask(self, now: float) -> None:
        if not self._load.another(now):
            self._transport.close()
            return
        self._waiting = True
        self._asked = now
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head = self._data.find(_HEAD_END)
        if head < 0:
            return
        length = _LENGTH.search(self._data, 0, head + 2)
        end = head + len(_HEAD_END)
        if length is None or len(self._data) < end + int(length[1]):
            if length is None:
                self._transport.abort()
            return
        self._answered(self._data[_STATUS] == b"200" and self._data[end:] == self._load.body)

    def _answered(self, good: bool) -> None:
        now = time.perf_counter()
        self._waiting = False
        self._data = b""
        if good:
            self._load.latencies.append(now - self._asked)
        else:
            self._load.failed += 1
        self._ask(now)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting:
            self._load.failed += 1
            self._reconnect()
        else:
            self._load.leave()


async def _run(order: Order) -> Answers:
    load = _Load(order)
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[object]] = set()

    def connect() -> None:
        made = loop.create_connection(lambda: _Connection(load, connect), _HOST, order.port)
        task: asyncio.Task[object] = loop.create_task(made)
        tasks.add(task)
        task.add_done_callback(connected)

    def connected(task: asyncio.Task[object]) -> None:
        tasks.discard(task)
        if (error := task.exception()) is not None and not load.done.done():
            load.done.set_exception(error)

    start = time.perf_counter()
    for _ in range(order.connections):
        connect()
    await load.done
    seconds = time.perf_counter() - start
    p50, p99 = _percentiles(load.latencies)
    return Answers(len(load.latencies), load.failed, seconds, p50 * 1e3, p99 * 1e3)


def _percentiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return (values or [0.0])[0], (values or [0.0])[0]
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes event loops of the cheapest kind there is."""
    if find_spec("uvloop") is None:
        return None
    import uvloop  # noqa: PLC0415  # optional

    return uvloop.new_event_loop


def main(arguments: list[str]) -> None:
    """Ask for what the one argument says and print what came back."""
    order = Order(**json.loads(arguments[0]))
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        print(json.dumps(asdict(runner.run(_run(order)))))


if __name__ == "__main__":
    main(sys.argv[1:])
