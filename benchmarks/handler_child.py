"""A process with one ASGI handler in it, which is asked for pages without any server.

Started by `handler`, with a `Setup` in JSON as its one argument. It takes one order per line on standard input, answers each
with one line of JSON on standard output, and ends when its input does. The application is imported by name:
Django's own has to run where this package is not.

Every request is a task of its own, as under a server, and its answer is checked. An order that takes much longer than it
can ends the process with the tracebacks of all threads.

Which thread may touch what. The loop runs in the main thread; the other threads are the handler's.
"""

import asyncio
import faulthandler
import gc
import importlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import asgiref.sync

from benchmarks.bench import BenchmarkError
from benchmarks.measure import Sample, now, since
from benchmarks.pages import PAGES, Page
from benchmarks.threads import ThreadCounter

__all__ = ("Setup", "main")

T = TypeVar("T")
Message = MutableMapping[str, Any]
Application = Callable[[dict[str, Any], Any, Any], Awaitable[None]]

# Much more than any order should take: a busy machine is no reason to give up, a deadlock is.
_LIMIT_SECONDS = 60
_COUNTED_CALLS = 100
# Of each task, before each slice: most is warm from the slice before.
_WARM_UP_CALLS = 2
# What a browser or a load generator at least sends.
_HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"user-agent", b"benchmarks"),
    (b"accept", b"*/*"),
]


@dataclass(frozen=True, slots=True)
class Setup:
    """What one process runs.

    Args:
        module: has the ASGI application, as ``application``.
        loop: ``"asyncio"`` or ``"uvloop"``.
        ours: whether this package is in the process.
        one_cpu: whether to keep all threads on one processor.
    """

    module: str
    loop: str
    ours: bool
    one_cpu: bool


class _Exchange:
    """One request and its answer, with what a server does for them."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self._asked = False
        self._ended = asyncio.get_running_loop().create_future()

    async def receive(self) -> Message:
        """Return the request, which has no body; from then on wait until the answer is complete."""
        if self._asked:
            await self._ended
            return {"type": "http.disconnect"}
        self._asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Message) -> None:
        """Take a piece of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        self.body += message.get("body", b"")
        if not message.get("more_body", False) and not self._ended.done():
            self._ended.set_result(None)


class _Project:
    """The measured project: one application, asked for pages."""

    def __init__(self, setup: Setup) -> None:
        self._ours = setup.ours
        self._application: Application = importlib.import_module(setup.module).application
        self._runner = asyncio.Runner(loop_factory=_loop_factory(setup.loop))

    def measure(self, page: Page, at_once: int, calls: int) -> Sample:
        """Return what so many requests took, of which so many are always under way."""
        each = -(-calls // at_once)

        async def run() -> Sample:
            await self._repeat_at_once(page, at_once, _WARM_UP_CALLS)
            start = now()
            await self._repeat_at_once(page, at_once, each)
            return since(start, each * at_once)

        return self._run(run())

    def crossings(self, page: Page) -> float:
        """Return how often one request goes from the loop to a thread and back, or the other way round."""
        counter = _crossing_counter(self._ours)

        async def run() -> float:
            await self._repeat(page, _WARM_UP_CALLS)
            with counter() as crossings:
                await self._repeat(page, _COUNTED_CALLS)
            counted: int = crossings.count
            return round(counted / _COUNTED_CALLS, 2)

        return self._run(run())

    def threads(self, page: Page) -> float:
        """Return how many threads 1,000 requests start."""

        async def run() -> float:
            await self._repeat(page, _WARM_UP_CALLS)
            with ThreadCounter() as threads:
                before = threads.started
                await self._repeat(page, _COUNTED_CALLS)
                return (threads.started - before) / _COUNTED_CALLS * 1000

        return self._run(run())

    def close(self) -> None:
        """End the loop."""
        self._runner.close()

    def _run(self, run: Coroutine[Any, Any, T]) -> T:
        faulthandler.dump_traceback_later(_LIMIT_SECONDS, exit=True)
        gc.unfreeze()
        gc.collect()
        # What is alive now is nobody's garbage: it would only make the collections dearer.
        gc.freeze()
        try:
            return self._runner.run(run)
        finally:
            faulthandler.cancel_dump_traceback_later()

    async def _repeat_at_once(self, page: Page, at_once: int, calls: int) -> None:
        await asyncio.gather(*(self._repeat(page, calls) for _ in range(at_once)))

    async def _repeat(self, page: Page, calls: int) -> None:
        for _ in range(calls):
            await asyncio.create_task(self._ask(page))

    async def _ask(self, page: Page) -> None:
        exchange = _Exchange()
        await self._application(_scope(page.path), exchange.receive, exchange.send)
        if exchange.status != 200 or exchange.body.decode() != page.body:
            raise BenchmarkError(
                f"{page.path} was answered {exchange.status} {exchange.body[:80]!r} "
                f"instead of 200 {page.body!r}"
            )


def _scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": list(_HEADERS),
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }


def _loop_factory(kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if kind == "uvloop":
        import uvloop  # noqa: PLC0415  # optional

        return uvloop.new_event_loop
    return asyncio.new_event_loop


class _Crossings:
    """How many there were."""

    count = 0


def _crossing_counter(ours: bool) -> Callable[[], Any]:
    if not ours:
        return _count_in_asgiref
    # Not imported above: it must not be in the process of Django's own handler.
    module: Any = importlib.import_module("django_asyncbridge.testing")
    counter: Callable[[], Any] = module.count_crossings
    return counter


@contextmanager
def _count_in_asgiref() -> Iterator[_Crossings]:
    """Count each call that asgiref takes from a loop to a thread or from a thread to a loop."""
    crossings = _Crossings()
    originals: list[tuple[Any, Any]] = [
        (wrapper, wrapper.__call__)
        for wrapper in (asgiref.sync.SyncToAsync, asgiref.sync.AsyncToSync)
    ]
    for wrapper, original in originals:
        wrapper.__call__ = _counting(original, crossings)
    try:
        yield crossings
    finally:
        for wrapper, original in originals:
            wrapper.__call__ = original


def _counting(call: Callable[..., Any], crossings: _Crossings) -> Callable[..., Any]:
    # Requests are counted one after the other, so nothing here needs a lock.
    def count_and_call(*args: Any, **kwargs: Any) -> Any:
        crossings.count += 1
        return call(*args, **kwargs)

    return count_and_call


def main(arguments: list[str]) -> None:
    """Answer orders until there are no more."""
    # Ctrl-C is for the process that started this one, which then closes the input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setup = Setup(**json.loads(arguments[0]))
    if setup.one_cpu:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pages = {page.name: page for page in PAGES}
    project = _Project(setup)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(_answer(project, pages[order.pop("page")], **order)), flush=True)
    project.close()


def _answer(project: _Project, page: Page, order: str, **details: int) -> dict[str, Any]:
    try:
        if order == "measure":
            sample = project.measure(page, **details)
            return {"result": [sample.calls, sample.cpu_seconds, sample.wall_seconds]}
        return {"result": {"crossings": project.crossings, "threads": project.threads}[order](page)}
    except Exception as error:  # noqa: BLE001  # one broken page must not take the others along
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main(sys.argv[1:])
