"""The figures of the library: what each measures, beside whom, and what ratio is to be reached.

A figure's function takes a `Bench` and returns one slice for each peer. Ours and asgiref's come out of one
loop over `peers.BRIDGES`, so neither can be called in another way than the other. Figures without a
target are there because users pay for them too.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.bench import (
    FEW_VARIABLES,
    MANY_VARIABLES,
    AsyncCall,
    Bench,
    SyncCall,
    async_work,
    work,
)
from benchmarks.local_access import getting, setting
from benchmarks.measure import Slice
from benchmarks.peers import (
    ASGIREF,
    ASYNCIO_RUN,
    BRIDGES,
    HOP,
    Bridge,
    coroutine_runners,
    other_inner_calls,
    other_thread_calls,
)

__all__ = ("FIGURES", "Figure", "selected")

CONTEXTS_AT_ONCE = 8

Slices = dict[str, Slice]


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that is measured.

    Args:
        name: as ``--only`` and the table have it.
        title: what one call is, in words.
        slices: returns a slice for each peer.
        targets: the ratio ours to a peer's, CPU time, that is to be reached.
        needs_loop: whether the kind of event loop makes a difference.
        other_thread: whether to run it in a thread that is not the main thread.
        counts_threads: whether to count the threads that 1,000 calls start as well.
        threads_target: how many of those ours may start; None where nothing is to be reached.
    """

    name: str
    title: str
    slices: Callable[[Bench], Slices]
    targets: Mapping[str, float] = field(default_factory=dict)
    needs_loop: bool = True
    other_thread: bool = False
    counts_threads: bool = False
    threads_target: int | None = None


def _thread_calls(bench: Bench, variables: int) -> Slices:
    calls: dict[str, AsyncCall] = {bridge.name: bridge.sync_to_async(work) for bridge in BRIDGES}
    calls |= other_thread_calls(bench)
    return {name: bench.awaiting(call, variables) for name, call in calls.items()}


def _any_thread_calls(bench: Bench) -> Slices:
    calls: dict[str, AsyncCall] = {
        bridge.name: bridge.sync_to_async(work, thread_sensitive=False) for bridge in BRIDGES
    }
    calls |= other_thread_calls(bench)
    return {name: bench.awaiting(call) for name, call in calls.items()}


def _made_each_time(bench: Bench) -> Slices:
    # As Django's `aget` and its likes do.
    def call_of(bridge: Bridge) -> AsyncCall:
        def wrap_and_call() -> Awaitable[int]:
            return bridge.sync_to_async(work)()

        return wrap_and_call

    return {bridge.name: bench.awaiting(call_of(bridge)) for bridge in BRIDGES}


def _top_level(bench: Bench) -> Slices:
    runners = coroutine_runners(bench)
    return {name: bench.calling(runner(async_work)) for name, runner in runners.items()}


def _in_new_thread(bench: Bench) -> Slices:
    def call_of(call: SyncCall) -> SyncCall:
        def call_in_thread() -> int:
            results: list[int] = []
            thread = threading.Thread(target=lambda: results.append(call()))
            thread.start()
            thread.join()
            return results[0]

        return call_in_thread

    calls: dict[str, SyncCall] = {
        bridge.name: bridge.async_to_sync(async_work) for bridge in BRIDGES
    }
    calls[ASYNCIO_RUN] = lambda: asyncio.run(async_work())
    return {name: bench.calling(call_of(call)) for name, call in calls.items()}


def _top_level_and_back(bench: Bench) -> Slices:
    def call_of(bridge: Bridge) -> SyncCall:
        call_back = bridge.sync_to_async(work)

        async def calling_back() -> int:
            result: int = await call_back()
            return result

        return bridge.async_to_sync(calling_back)

    return {bridge.name: bench.calling(call_of(bridge)) for bridge in BRIDGES}


def _below_loop(bench: Bench) -> Slices:
    slices = {
        bridge.name: bench.calling_inside(bridge.sync_to_async, bridge.async_to_sync(async_work))
        for bridge in BRIDGES
    }
    for name, (in_thread, call) in other_inner_calls(bench).items():
        slices[name] = bench.calling_inside(in_thread, call)
    return slices


def _request_of(bridge: Bridge) -> AsyncCall:
    call = bridge.sync_to_async(work)
    make_context = bridge.ThreadSensitiveContext

    async def request() -> int:
        async with make_context():
            result: int = await call()
        return result

    return request


def _requests(bench: Bench) -> Slices:
    return {bridge.name: bench.awaiting(_request_of(bridge)) for bridge in BRIDGES}


def _requests_at_once(bench: Bench) -> Slices:
    return {
        bridge.name: bench.awaiting_many(_request_of(bridge), CONTEXTS_AT_ONCE)
        for bridge in BRIDGES
    }


def _local_gets(bench: Bench) -> Slices:
    return {
        **{bridge.name: bench.in_context(getting(bridge.Local())) for bridge in BRIDGES},
        "threading.local": bench.in_context(getting(threading.local())),
    }


def _local_sets(bench: Bench) -> Slices:
    return {
        **{bridge.name: bench.in_context(setting(bridge.Local())) for bridge in BRIDGES},
        "threading.local": bench.in_context(setting(threading.local())),
    }


def _local_sets_alone(bench: Bench) -> Slices:
    return {
        **{bridge.name: bench.in_context(setting(bridge.Local(), 0)) for bridge in BRIDGES},
        "threading.local": bench.in_context(setting(threading.local(), 0)),
    }


def _critical_gets(bench: Bench) -> Slices:
    return {
        bridge.name: bench.in_context(getting(bridge.Local(thread_critical=True)), loop=True)
        for bridge in BRIDGES
    }


def _critical_sets(bench: Bench) -> Slices:
    return {
        bridge.name: bench.in_context(setting(bridge.Local(thread_critical=True)), loop=True)
        for bridge in BRIDGES
    }


FIGURES = (
    Figure(
        "s2a-few",
        f"sync_to_async call, {FEW_VARIABLES} context variables set",
        lambda bench: _thread_calls(bench, FEW_VARIABLES),
        {ASGIREF: 0.6, HOP: 1.25},
    ),
    Figure(
        "s2a-many",
        f"sync_to_async call, {MANY_VARIABLES} context variables set",
        lambda bench: _thread_calls(bench, MANY_VARIABLES),
        {ASGIREF: 0.45},
    ),
    Figure("s2a-any-thread", "sync_to_async call, thread_sensitive=False", _any_thread_calls),
    Figure("s2a-made", "sync_to_async wrapped and called each time", _made_each_time),
    Figure(
        "a2s-main",
        "async_to_sync without a loop, main thread",
        _top_level,
        {ASGIREF: 0.08},
        counts_threads=True,
    ),
    Figure(
        "a2s-thread",
        "async_to_sync without a loop, another thread",
        _top_level,
        {ASGIREF: 0.08},
        other_thread=True,
        counts_threads=True,
    ),
    Figure("a2s-new-thread", "a new thread for one async_to_sync without a loop", _in_new_thread),
    Figure(
        "a2s-back",
        "async_to_sync without a loop, one thread-sensitive call inside",
        _top_level_and_back,
        counts_threads=True,
    ),
    Figure("a2s-below-loop", "async_to_sync under a running loop", _below_loop, {ASGIREF: 0.8}),
    Figure(
        "request",
        "ThreadSensitiveContext and one call in it",
        _requests,
        {ASGIREF: 0.2},
        counts_threads=True,
        threads_target=0,
    ),
    Figure(
        "request-8",
        f"the same, {CONTEXTS_AT_ONCE} contexts at once",
        _requests_at_once,
        counts_threads=True,
    ),
    Figure("local-get", "Local, get", _local_gets, {ASGIREF: 0.5}, needs_loop=False),
    Figure("local-set", "Local, set, three names", _local_sets, {ASGIREF: 0.5}, needs_loop=False),
    Figure(
        "local-set-alone",
        "Local, set, its only name",
        _local_sets_alone,
        {ASGIREF: 0.5},
        needs_loop=False,
    ),
    Figure(
        "local-critical-get",
        "Local(thread_critical=True), get in a coroutine",
        _critical_gets,
        needs_loop=False,
    ),
    Figure(
        "local-critical-set",
        "Local(thread_critical=True), set in a coroutine",
        _critical_sets,
        needs_loop=False,
    ),
)


def selected(only: Sequence[str]) -> tuple[Figure, ...]:
    """Return the figures whose name has one of the strings in it; all of them for no strings.

    Raises:
        ValueError: for a string that is in no name.
    """
    for part in only:
        if not any(part in figure.name for figure in FIGURES):
            names = ", ".join(figure.name for figure in FIGURES)
            raise ValueError(f"no figure has {part!r} in its name; there are {names}")
    return tuple(
        figure for figure in FIGURES if not only or any(part in figure.name for part in only)
    )
