"""What is compared: our bridge and asgiref's through one and the same code, and what else there is for the work.

Every wrapper is made once and called often, for every peer, but for the figure that is about making them.
asgiref is asgiref as it is installed: nothing here imports Django, whose start would have
`django_asyncbridge.interop` point asgiref at our own threads.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar

import asgiref.local
import asgiref.sync

import django_asyncbridge.bridge.local
import django_asyncbridge.bridge.sync
from benchmarks.bench import AsyncCall, Bench, BenchmarkError, SyncCall, async_work, loop_kind, work

HAS_ANYIO = find_spec("anyio") is not None
if HAS_ANYIO:
    import anyio
    import anyio.from_thread
    import anyio.to_thread

__all__ = (
    "ANYIO",
    "ASGIREF",
    "ASYNCIO_RUN",
    "BRIDGES",
    "HAS_ANYIO",
    "HOP",
    "KEPT_LOOP",
    "OURS",
    "RUN_IN_EXECUTOR",
    "THREADSAFE",
    "TO_THREAD",
    "Bridge",
    "coroutine_runners",
    "other_inner_calls",
    "other_thread_calls",
    "refuse_patched_asgiref",
)

T = TypeVar("T")

OURS = "ours"
ASGIREF = "asgiref"
ANYIO = "anyio"
TO_THREAD = "asyncio.to_thread"
RUN_IN_EXECUTOR = "run_in_executor"
ASYNCIO_RUN = "asyncio.run"
THREADSAFE = "run_coroutine_threadsafe"
HOP = "bare hop"
KEPT_LOOP = "bare kept loop"


@dataclass(frozen=True, slots=True)
class Bridge:
    """One implementation of asgiref's names."""

    name: str
    sync_to_async: Callable[..., Callable[[], Awaitable[Any]]]
    async_to_sync: Callable[..., Callable[[], Any]]
    ThreadSensitiveContext: Callable[[], AbstractAsyncContextManager[object]]
    Local: Callable[..., Any]


BRIDGES = (
    Bridge(
        OURS,
        django_asyncbridge.bridge.sync.sync_to_async,
        django_asyncbridge.bridge.sync.async_to_sync,
        django_asyncbridge.bridge.sync.ThreadSensitiveContext,
        django_asyncbridge.bridge.local.Local,
    ),
    Bridge(
        ASGIREF,
        asgiref.sync.sync_to_async,
        asgiref.sync.async_to_sync,
        asgiref.sync.ThreadSensitiveContext,
        asgiref.local.Local,
    ),
)


def refuse_patched_asgiref() -> None:
    """Make sure that asgiref runs as it is installed and shares nothing with us.

    Raises:
        BenchmarkError: when it does not.
    """
    ours: Any = django_asyncbridge.bridge.sync.SyncToAsync
    theirs: Any = asgiref.sync.SyncToAsync
    if (
        theirs.__module__ != "asgiref.sync"
        or theirs.threadlocal is ours.threadlocal
        or theirs.single_thread_executor is ours.single_thread_executor
        or theirs.context_to_thread_executor is ours.context_to_thread_executor
    ):
        raise BenchmarkError(
            "asgiref has been pointed at django_asyncbridge (by django.setup()?): nothing would be compared"
        )


def other_thread_calls(bench: Bench) -> dict[str, AsyncCall]:
    """Return how else a coroutine calls a sync function in a thread, in any that is free."""
    calls: dict[str, AsyncCall] = {}
    if HAS_ANYIO:
        calls[ANYIO] = functools.partial(anyio.to_thread.run_sync, work)
    calls[TO_THREAD] = functools.partial(asyncio.to_thread, work)
    calls[RUN_IN_EXECUTOR] = functools.partial(bench.loop.run_in_executor, None, work)
    calls[HOP] = bench.bare_hop(work)
    return calls


def coroutine_runners(
    bench: Bench,
) -> dict[str, Callable[[Callable[[], Coroutine[Any, Any, Any]]], Callable[[], Any]]]:
    """Return how a thread without a loop calls a coroutine function; all make loops of the kind asked for.

    Raises:
        BenchmarkError: when one of them makes a loop of another kind.
    """
    runners: dict[str, Callable[[Callable[[], Coroutine[Any, Any, Any]]], Callable[[], Any]]]
    runners = {bridge.name: bridge.async_to_sync for bridge in BRIDGES}
    if HAS_ANYIO:
        runners[ANYIO] = lambda function: functools.partial(anyio.run, function)
    runners[ASYNCIO_RUN] = lambda function: lambda: asyncio.run(function())
    runners[KEPT_LOOP] = bench.bare_loop()
    for name, runner in runners.items():
        bench.check_loop(name, runner(loop_kind)())
    return runners


def other_inner_calls(
    bench: Bench,
) -> dict[str, tuple[Callable[[Callable[[], T]], Callable[[], Awaitable[T]]], SyncCall]]:
    """Return how else a sync function below a loop calls a coroutine on it: the way down, and the way back."""

    def in_anyio_thread(function: Callable[[], T]) -> Callable[[], Awaitable[T]]:
        return functools.partial(anyio.to_thread.run_sync, function)

    def in_thread(function: Callable[[], T]) -> Callable[[], Awaitable[T]]:
        return functools.partial(asyncio.to_thread, function)

    def call_threadsafe() -> int:
        return asyncio.run_coroutine_threadsafe(async_work(), bench.loop).result()

    ways: dict[str, tuple[Callable[[Callable[[], T]], Callable[[], Awaitable[T]]], SyncCall]] = {}
    if HAS_ANYIO:
        ways[ANYIO] = (in_anyio_thread, functools.partial(anyio.from_thread.run, async_work))
    ways[THREADSAFE] = (in_thread, call_threadsafe)
    return ways
