"""What grows with the number of calls: memory, threads, open files, objects. Nothing should.

``python -m tests.stress --flat N`` does N `ThreadSensitiveContext` blocks with a call in each and N top-level calls of
`async_to_sync`, some with thread-sensitive work inside, some that fail, are cancelled, leave something behind, or come from a
thread that ends afterwards. It prints a table of samples; its exit code is 0 if they are flat.
"""

import asyncio
import contextlib
import gc
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

from django_asyncbridge.bridge.sync import ThreadSensitiveContext, async_to_sync, sync_to_async

__all__ = ("Sample", "grown", "main")

CHUNKS = 12
# The first chunks fill caches and pools.
_WARM_CHUNKS = 4
_LIMIT_THREADS = 2
_LIMIT_FILES = 4
# Per call, over all after the warm-up: one object kept by one call in twenty is found, and so are a few bytes by each.
_LIMIT_OBJECTS_PER_CALL = 0.05
_LIMIT_BYTES_PER_CALL = 24
# What an allocator may do on its own, whatever is called. Not measured.
_FREE_OBJECTS = 150
_FREE_BYTES = 1_500_000


class Sample(NamedTuple):
    """How much there is after so many calls of each kind."""

    calls: int
    resident_bytes: int
    threads: int
    files: int
    objects: int


class _WantedError(Exception):
    """A failure that belongs to the plan."""


async def _plain() -> None:
    await asyncio.sleep(0)


async def _nested() -> None:
    await sync_to_async(_nothing)()


async def _nested_twice() -> None:
    await sync_to_async(async_to_sync(_nested))()


async def _aside() -> None:
    await sync_to_async(_nothing, thread_sensitive=False)()


async def _failing() -> None:
    raise _WantedError


async def _failing_in_thread() -> None:
    await sync_to_async(_fail)()


async def _cancelled() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(1)


async def _timed_out() -> None:
    async with asyncio.timeout(0):
        await sync_to_async(async_to_sync(asyncio.sleep))(3600)


async def _leaving() -> None:
    asyncio.create_task(asyncio.sleep(3600))  # noqa: RUF006  # it is left behind, that is the point
    await anext(_endless())


async def _endless() -> AsyncIterator[None]:
    while True:
        yield


def _nothing() -> None:
    """Do nothing."""


def _fail() -> None:
    raise _WantedError


def _in_new_thread() -> None:
    thread = threading.Thread(target=async_to_sync(_nested))
    thread.start()
    thread.join()


_CALLS: tuple[Callable[[], object], ...] = (
    async_to_sync(_plain),
    async_to_sync(_nested),
    async_to_sync(_plain),
    async_to_sync(_nested_twice),
    async_to_sync(_aside),
    async_to_sync(_failing),
    async_to_sync(_failing_in_thread),
    async_to_sync(_cancelled),
    async_to_sync(_timed_out),
    async_to_sync(_leaving),
    async_to_sync(_plain, force_new_loop=True),
    _in_new_thread,
)


def _calls(count: int) -> None:
    """Make top-level calls, of each kind in turn."""
    for number in range(count):
        with contextlib.suppress(_WantedError, TimeoutError, asyncio.CancelledError):
            _CALLS[number % len(_CALLS)]()


async def _contexts(count: int) -> None:
    """Enter contexts one after the other, now and then eight at once; make a call in each."""
    for _ in range(count // 16):
        for _ in range(8):
            await _context()
        await asyncio.gather(*(_context() for _ in range(8)))


async def _context() -> None:
    async with ThreadSensitiveContext():
        await sync_to_async(_nothing)()


def sample(calls: int) -> Sample:
    """Look how much there is now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(
        calls,
        pages * os.sysconf("SC_PAGE_SIZE"),
        threading.active_count(),
        len(list(Path("/proc/self/fd").iterdir())),
        len(gc.get_objects()),
    )


def grown(samples: list[Sample]) -> list[str]:
    """Return what has grown more than it may, from the first sample to the last."""
    first, last = samples[0], samples[-1]
    calls = last.calls - first.calls
    limits = {
        "resident_bytes": _FREE_BYTES + calls * _LIMIT_BYTES_PER_CALL,
        "threads": _LIMIT_THREADS,
        "files": _LIMIT_FILES,
        "objects": _FREE_OBJECTS + calls * _LIMIT_OBJECTS_PER_CALL,
    }
    return [
        f"{name}: {more} more after {calls} more calls; {limit:.0f} would be noise"
        for name, limit in limits.items()
        if (more := getattr(last, name) - getattr(first, name)) > limit
    ]


def _row(*cells: Any) -> None:
    print("".join(f"{cell:>14}" for cell in cells), flush=True)


def main(count: int) -> int:
    """Make `count` calls of each kind, print the samples, and return the exit code."""
    # The bridge may say what was left behind; here that is on purpose.
    logging.disable(logging.WARNING)
    _row("calls each", "seconds", "resident kB", "threads", "open files", "objects")
    samples, begin = [], time.monotonic()
    for chunk in range(CHUNKS):
        asyncio.run(_contexts(count // CHUNKS))
        _calls(count // CHUNKS)
        now = sample((chunk + 1) * (count // CHUNKS))
        samples.append(now)
        seconds = f"{time.monotonic() - begin:.1f}"
        _row(now.calls, seconds, now.resident_bytes // 1024, *now[2:])
    found = grown(samples[_WARM_CHUNKS - 1 :])
    print("flat" if not found else "grown: " + "; ".join(found))
    return 1 if found else 0
