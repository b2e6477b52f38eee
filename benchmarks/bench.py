"""`Bench`: the event loop and the threads that the figures of one process share, and how calls become slices.

Every slice runs in a new `contextvars.Context` with the same number of variables set: what one peer leaves in
its context must not be carried around by the next.

Which thread may touch what. The runner's loop runs in the thread that calls a slice made by `awaiting` or
`awaiting_many`, which is the main thread. `in_other_thread` runs everything in one thread that stays.
"""

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

from benchmarks.measure import Sample, Slice, now, since

__all__ = (
    "FEW_VARIABLES",
    "INNER_CALLS",
    "MANY_VARIABLES",
    "RESULT",
    "WARM_UP_CALLS",
    "AsyncCall",
    "Bench",
    "BenchmarkError",
    "SyncCall",
    "async_work",
    "loop_kind",
    "work",
)

T = TypeVar("T")
AsyncCall = Callable[[], Awaitable[int]]
SyncCall = Callable[[], int]

RESULT = 1
# Enough for every thread, loop and cache that a peer keeps to be there.
WARM_UP_CALLS = 10
# A request without tracing or structured logs carries about so many.
FEW_VARIABLES = 3
MANY_VARIABLES = 200
# Calls of one sync function back to its loop, when that is what is measured.
INNER_CALLS = 50

_variables = tuple(
    contextvars.ContextVar[object](f"benchmarks.variable_{number}")
    for number in range(MANY_VARIABLES)
)


class BenchmarkError(Exception):
    """A figure would be wrong: a peer did something else than it was to do."""


def work() -> int:
    """Do what every sync call does here: nothing."""
    return RESULT


async def async_work() -> int:
    """Do what every coroutine does here: nothing."""
    return RESULT


async def loop_kind() -> str:
    """Return whose event loop this runs on: ``"asyncio"`` or ``"uvloop"``."""
    module = type(asyncio.get_running_loop()).__module__
    return "uvloop" if module.partition(".")[0] == "uvloop" else "asyncio"


class Bench:
    """One event loop, one more thread, and what has to be closed at the end; a context manager.

    Args:
        kind: ``"asyncio"`` or ``"uvloop"``; the event loop policy of the process must be set accordingly.

    Raises:
        BenchmarkError: on entering, when the policy makes loops of another kind.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        # With a factory the runner does not make its loop the current one of the thread.
        self._runner = self._stack.enter_context(
            asyncio.Runner(loop_factory=asyncio.new_event_loop)
        )
        self.loop = self._runner.get_loop()
        self._thread = self._stack.enter_context(ThreadPoolExecutor(1, "benchmark"))
        self.check_loop("the benchmark itself", self._runner.run(loop_kind()))
        return self

    def __exit__(
        self,
        exc: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._stack.close()

    def check_loop(self, peer: str, kind: str) -> None:
        """Refuse a peer that runs its coroutines on another kind of loop.

        Raises:
            BenchmarkError: when `kind` is not that of this bench.
        """
        if kind != self.kind:
            raise BenchmarkError(f"{peer} ran on a loop of {kind} where {self.kind} was asked for")

    def in_other_thread(self, function: Callable[[], T]) -> T:
        """Call `function` in the one thread that is not the main thread and has no loop."""
        return self._thread.submit(function).result()

    def awaiting(self, call: AsyncCall, variables: int = FEW_VARIABLES) -> Slice:
        """Return a slice that awaits `call` again and again in one task.

        Args:
            call: returns something to await whose result is `RESULT`.
            variables: how many context variables are set in the task.
        """

        async def run(calls: int) -> Sample:
            for _ in range(WARM_UP_CALLS):
                _check(await call())
            start = now()
            for _ in range(calls):
                await call()
            return since(start, calls)

        return self._in_task(run, variables)

    def awaiting_many(self, call: AsyncCall, tasks: int) -> Slice:
        """Return a slice in which so many tasks at once await `call` again and again."""

        async def repeat(calls: int) -> None:
            for _ in range(calls):
                await call()

        async def run(calls: int) -> Sample:
            _check(await call())
            await asyncio.gather(*(repeat(WARM_UP_CALLS) for _ in range(tasks)))
            each = -(-calls // tasks)
            start = now()
            await asyncio.gather(*(repeat(each) for _ in range(tasks)))
            return since(start, each * tasks)

        return self._in_task(run, FEW_VARIABLES)

    def calling_inside(
        self,
        in_thread: Callable[[Callable[[], Sample]], Callable[[], Awaitable[Sample]]],
        call: SyncCall,
    ) -> Slice:
        """Return a slice of sync functions that run below a loop and call back into it; only the calls back count.

        Args:
            in_thread: makes a coroutine function of the sync function, which runs it in a thread.
            call: is called `INNER_CALLS` times by each; its result is `RESULT`.
        """

        def block() -> Sample:
            _check(call())
            start = now()
            for _ in range(INNER_CALLS):
                call()
            return since(start, INNER_CALLS)

        outer = in_thread(block)

        async def run(calls: int) -> Sample:
            await outer()
            total = await outer()
            while total.calls < calls:
                total += await outer()
            return total

        return self._in_task(run, FEW_VARIABLES)

    def calling(self, call: SyncCall) -> Slice:
        """Return a slice that calls `call` again and again, in whatever thread runs it."""

        def run(calls: int) -> Sample:
            for _ in range(WARM_UP_CALLS):
                _check(call())
            start = now()
            for _ in range(calls):
                call()
            return since(start, calls)

        return lambda calls: _context(FEW_VARIABLES).run(run, calls)

    def in_context(self, run: Slice, *, loop: bool = False) -> Slice:
        """Return `run` in a new context, on request with the loop running.

        Args:
            run: does its own warming up and reads the clocks itself.
            loop: call it in a coroutine.
        """

        async def run_in_loop(calls: int) -> Sample:
            return run(calls)

        if loop:
            return self._in_task(run_in_loop, FEW_VARIABLES)
        return lambda calls: _context(FEW_VARIABLES).run(run, calls)

    def _in_task(self, run: Callable[[int], Coroutine[Any, Any, Sample]], variables: int) -> Slice:
        return lambda calls: self._runner.run(run(calls), context=_context(variables))

    def bare_hop(self, function: SyncCall) -> AsyncCall:
        """Return the least a call in a thread can cost: a queue there and a callback back.

        Exceptions, cancellation, context variables and the end of the loop are nobody's business here.
        """
        calls: queue.SimpleQueue[tuple[asyncio.Future[int], SyncCall] | None] = queue.SimpleQueue()
        loop = self.loop

        def serve() -> None:
            while (call := calls.get()) is not None:
                future, function = call
                loop.call_soon_threadsafe(future.set_result, function())

        async def hop() -> int:
            future: asyncio.Future[int] = loop.create_future()
            calls.put((future, function))
            return await future

        threading.Thread(target=serve, name="bare-hop", daemon=True).start()
        self._stack.callback(calls.put, None)
        return hop

    def bare_loop(self) -> Callable[[Callable[[], Coroutine[Any, Any, T]]], Callable[[], T]]:
        """Return the least a coroutine without a loop can cost: a loop that is kept, run in the calling thread."""
        loop = asyncio.new_event_loop()
        self._stack.callback(loop.close)
        return lambda function: lambda: loop.run_until_complete(function())


def _context(variables: int) -> contextvars.Context:
    context = contextvars.Context()
    for variable in _variables[:variables]:
        context.run(variable.set, object())
    return context


def _check(result: int) -> None:
    if result != RESULT:
        raise BenchmarkError(f"a call returned {result!r} instead of {RESULT!r}")
