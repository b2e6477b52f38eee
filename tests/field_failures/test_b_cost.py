"""Section B: threads, queues and the price of a crossing, as structure: what is started, woken and walked over.

Times are the benchmarks' business. Here it is counted what a call does, which is the same on every machine.
"""

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from django_asyncbridge.bridge import _state, sync
from django_asyncbridge.bridge.sync import (
    Crossing,
    ThreadSensitiveContext,
    WorkerPool,
    WorkersBusy,
    add_observer,
    async_to_sync,
    remove_observer,
    sync_to_async,
)
from tests.field_failures.common import HOMES, Main, Work, loop_turns, noop, on_plain_loop, until
from tests.support import run_child, run_in_thread

each_home = pytest.mark.parametrize("home", HOMES.values(), ids=HOMES.keys())
Home = Callable[[Main[Any]], Any]
BRIDGE = str(Path(sync.__file__).parent)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the names of all threads that are started from now on."""
    names: list[str] = []
    start = threading.Thread.start

    def counted(thread: threading.Thread) -> None:
        names.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", counted)
    return names


@pytest.fixture
def request_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., WorkerPool]]:
    """Return a function that makes a pool of the test's own, from which contexts lease from then on."""
    pools: list[WorkerPool] = []

    def replace(**limits: Any) -> WorkerPool:
        pool = WorkerPool("tested", **limits)
        monkeypatch.setattr(_state, "request_workers", pool)
        pools.append(pool)
        return pool

    yield replace
    for pool in pools:
        pool.shutdown()


@pytest.fixture
def crossings() -> Iterator[list[Crossing]]:
    """Return a list of all crossings from now on."""
    seen: list[Crossing] = []
    add_observer(seen.append)
    yield seen
    remove_observer(seen.append)


def ident() -> int:
    return threading.get_ident()


# --- C16: independent tasks --------------------------------------------------------------


def test_c16_consumers_with_a_context_each_run_at_the_same_time_in_a_thread_each() -> None:
    """C16: websocket consumers, workers, activities: a context makes each independent of the others."""
    together = threading.Barrier(5, timeout=10)

    def work() -> int:
        # Only all five at once get past this.
        together.wait()
        return ident()

    async def consumer() -> tuple[int, int]:
        async with ThreadSensitiveContext():
            return await sync_to_async(work)(), await sync_to_async(ident)()

    async def main() -> list[tuple[int, int]]:
        return await asyncio.gather(*(consumer() for _ in range(5)))

    threads = on_plain_loop(main)
    assert len({first for first, _ in threads}) == 5
    assert all(first == second for first, second in threads)


@each_home
def test_c16_work_that_is_not_thread_sensitive_runs_at_the_same_time_everywhere(home: Home) -> None:
    """C16: the other way out, without a context."""
    together = threading.Barrier(5, timeout=10)

    def work() -> str:
        together.wait()
        return threading.current_thread().name

    async def main() -> list[str]:
        call = sync_to_async(work, thread_sensitive=False)
        return await asyncio.gather(*(call() for _ in range(5)))

    names = home(main)
    assert len(set(names)) == 5
    assert all(name.startswith("asyncbridge-default-") for name in names)


def test_c16_thread_sensitive_work_outside_of_any_context_keeps_its_one_thread() -> None:
    """C16, GUARD: one after the other in one thread is what thread-sensitive means, and code relies on it."""
    running: list[str] = []
    most: list[int] = []

    def work() -> int:
        running.append("one")
        most.append(len(running))
        running.pop()
        return ident()

    async def main() -> list[int]:
        return await asyncio.gather(*(sync_to_async(work)() for _ in range(5)))

    assert len(set(on_plain_loop(main))) == 1
    assert most == [1] * 5


# --- C17: threads per request ------------------------------------------------------------


def test_c17_requests_one_after_the_other_start_no_thread_each(
    started: list[str], request_workers: Callable[..., WorkerPool]
) -> None:
    """C17: the first request starts the thread that all the others use."""
    pool = request_workers()

    async def request() -> int:
        async with ThreadSensitiveContext():
            return await sync_to_async(ident)()

    async def main() -> set[int]:
        return {await request() for _ in range(200)}

    assert len(on_plain_loop(main)) == 1
    assert [name for name in started if name.startswith("asyncbridge-")] == ["asyncbridge-tested-1"]
    figures = pool.statistics()
    assert (figures.started, figures.lent, figures.workers, figures.idle) == (1, 200, 1, 1)


def test_c17_requests_at_the_same_time_start_as_many_threads_as_there_are_at_once(
    started: list[str], request_workers: Callable[..., WorkerPool]
) -> None:
    """C17: eight at a time, twenty times: eight threads."""
    request_workers()

    async def main() -> None:
        for _ in range(20):
            together = threading.Barrier(8, timeout=10)

            async def request(together: threading.Barrier = together) -> None:
                async with ThreadSensitiveContext():
                    await sync_to_async(together.wait)()

            await asyncio.gather(*(request() for _ in range(8)))

    on_plain_loop(main)
    assert len([name for name in started if name.startswith("asyncbridge-")]) == 8


def test_c17_purely_async_requests_start_no_thread_at_all(
    started: list[str], request_workers: Callable[..., WorkerPool]
) -> None:
    """C17: a context nobody runs sync code in costs no thread, not even for its end."""
    pool = request_workers()

    async def main() -> None:
        for _ in range(200):
            async with ThreadSensitiveContext():
                await asyncio.sleep(0)

    on_plain_loop(main)
    assert [name for name in started if name.startswith("asyncbridge-")] == []
    assert pool.statistics().lent == 0


def test_c17_request_that_fails_or_is_cancelled_gives_its_thread_back(
    request_workers: Callable[..., WorkerPool],
) -> None:
    """C17: a thread is not lost with a request that did not end well."""
    pool = request_workers()

    async def request(ending: BaseException) -> None:
        async with ThreadSensitiveContext():
            await sync_to_async(noop)()
            raise ending

    async def main() -> None:
        for ending in [ValueError(), asyncio.CancelledError(), KeyError()] * 10:
            await asyncio.gather(request(ending), return_exceptions=True)

    on_plain_loop(main)
    figures = pool.statistics()
    assert (figures.started, figures.lent, figures.idle) == (1, 30, 1)


def test_c17_c40_top_level_async_to_sync_starts_no_thread_and_one_loop(started: list[str]) -> None:
    """C17, C19: 100 calls from sync code: none starts a thread, all share one event loop."""

    async def loop() -> asyncio.AbstractEventLoop:
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    def caller() -> int:
        del started[:]
        return len({async_to_sync(loop)() for _ in range(100)})

    assert run_in_thread(caller) == 1
    assert started == []


def test_c17_c40_top_level_async_to_sync_with_sync_work_inside_starts_one_thread_at_most(
    started: list[str],
) -> None:
    """C17, C19: the loop moves to a thread that is used again."""

    def caller() -> tuple[set[int], int]:
        del started[:]
        return {async_to_sync(sync_to_async(ident))() for _ in range(100)}, ident()

    threads, own = run_in_thread(caller)
    assert threads == {own}
    assert len(started) <= 1


# --- C18: a bound ------------------------------------------------------------------------


class Gauge:
    """Work that notes how many threads do it at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.threads: set[int] = set()

    def __call__(self) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.threads.add(ident())
        # Gives the others their chance.
        threading.Event().wait(0.001)
        with self.lock:
            self.now -= 1


def test_c18_number_of_request_threads_can_be_bounded(
    request_workers: Callable[..., WorkerPool],
) -> None:
    """C18: 100 requests at once in 4 threads, and each request in one of them."""
    pool = request_workers(maximum=4)
    gauge = Gauge()

    async def request() -> bool:
        async with ThreadSensitiveContext():
            first = await sync_to_async(ident)()
            await sync_to_async(gauge)()
            return first == await sync_to_async(ident)()

    async def main() -> list[bool]:
        return await asyncio.gather(*(request() for _ in range(100)))

    assert on_plain_loop(main) == [True] * 100
    assert gauge.most <= 4
    assert len(gauge.threads) <= 4
    figures = pool.statistics()
    assert (figures.started, figures.lent, figures.waiting) == (4, 100, 0)
    assert figures.longest_wait_seconds > 0


def test_c18_requests_get_the_threads_in_the_order_in_which_they_came(
    request_workers: Callable[..., WorkerPool], work: Work
) -> None:
    """C18: first come, first served."""
    request_workers(maximum=1)
    order: list[int] = []

    async def request(function: Callable[..., Any], *args: Any) -> None:
        async with ThreadSensitiveContext():
            await sync_to_async(function)(*args)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(request(work))
            await until(work.started)
            for number in range(5):
                group.create_task(request(order.append, number))
                await loop_turns()
            work.release.set()

    on_plain_loop(main)
    assert order == list(range(5))


def test_c18_request_that_waits_too_long_is_told_who_has_the_threads(
    request_workers: Callable[..., WorkerPool], work: Work
) -> None:
    """C18, P4: a bound does not turn into a hang without a word."""
    pool = request_workers(maximum=1, wait_seconds=0.05)
    told: list[str] = []

    async def request(function: Callable[..., Any]) -> None:
        async with ThreadSensitiveContext():
            await sync_to_async(function)()

    async def main() -> None:
        holder = asyncio.create_task(request(work))
        await until(work.started)
        try:
            await request(noop)
        except WorkersBusy as error:
            told.append(str(error))
        work.release.set()
        await holder
        # The pool is none the worse for it.
        await request(noop)

    on_plain_loop(main)
    assert pool.statistics().expired == 1
    (message,) = told
    assert "asyncbridge-tested-1 for " in message
    # Where the holder is: it waits for an event, as sync code that takes too long mostly waits for something.
    assert "in Work.__call__ (common.py:" in message


def test_c18_default_pool_has_a_bound() -> None:
    """C18: 300 calls at once that are not thread-sensitive: 32 threads."""
    gauge = Gauge()

    async def main() -> None:
        call = sync_to_async(gauge, thread_sensitive=False)
        await asyncio.gather(*(call() for _ in range(300)))

    on_plain_loop(main)
    assert gauge.most <= 32
    assert _state.default_workers.statistics().workers <= 32


STARVATION = """
    import asyncio, faulthandler, threading
    from concurrent.futures import ThreadPoolExecutor
    from django_asyncbridge.bridge.sync import (
        ThreadSensitiveContext, WorkerPool, async_to_sync, sync_to_async
    )

    faulthandler.dump_traceback_later(5, exit=True)

    def in_pool(function, pool=None):
        return sync_to_async(function, thread_sensitive=False, executor=pool)

    first, second = WorkerPool("first", maximum=1), WorkerPool("second", maximum=1)

    async def leaf():
        return await in_pool(threading.get_ident, first)()
"""


def test_c18_nested_calls_in_the_default_pool_do_not_starve_it() -> None:
    """C18, P4: 100 calls, each of which waits for two more of the same pool, three levels deep."""
    run_child(
        STARVATION
        + """
    def nested(levels):
        return 1 if levels == 0 else async_to_sync(both)(levels - 1)

    async def both(levels):
        return sum(await asyncio.gather(*(in_pool(nested)(levels) for _ in range(2))))

    async def main():
        return await asyncio.gather(*(in_pool(nested)(3) for _ in range(100)))

    assert asyncio.run(main()) == [8] * 100
    """
    )


@pytest.mark.parametrize(
    "between",
    [
        "leaf()",
        "asyncio.create_task(leaf())",
        "in_pool(async_to_sync(leaf), second)()",
        "sync_to_async(async_to_sync(leaf))()",
        "in_context()",
    ],
)
def test_c18_call_in_a_full_pool_below_one_of_its_threads_does_not_wait_for_it(
    between: str,
) -> None:
    """C18, P4: the pool's only thread waits for the call, whatever lies between."""
    run_child(
        STARVATION
        + f"""
    async def in_context():
        with ThreadPoolExecutor(1) as executor:
            async with ThreadSensitiveContext(executor=executor):
                return await leaf()

    async def through():
        return await {between}

    asyncio.run(in_pool(async_to_sync(through), first)())
    """
    )


# --- C19, C20, C21: what a crossing does -------------------------------------------------


class WakeUps:
    """Counts how often other threads wake a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.original = loop.call_soon_threadsafe
        patch.setattr(loop, "call_soon_threadsafe", self)

    def __call__(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
        self.count += 1
        return self.original(*args, **kwargs)


def test_c19_call_wakes_its_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """C19: there by way of a queue, back with one wake-up."""

    async def main() -> list[int]:
        call = sync_to_async(noop)
        await call()
        wake_ups = WakeUps(asyncio.get_running_loop(), monkeypatch)
        counts = []
        for _ in range(3):
            before = wake_ups.count
            await call()
            counts.append(wake_ups.count - before)
        return counts

    assert on_plain_loop(main) == [1, 1, 1]


def test_c21_async_code_below_sync_middleware_wakes_the_loop_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C21: sync and async middleware in turns: two wake-ups for each sync one, in one thread for all."""
    threads: list[int] = []
    levels = 8

    async def view(level: int) -> None:
        if level < levels:
            await sync_to_async(middleware)(level)

    def middleware(level: int) -> None:
        threads.append(ident())
        async_to_sync(view)(level + 1)

    async def main() -> int:
        async with ThreadSensitiveContext():
            await sync_to_async(noop)()
            wake_ups = WakeUps(asyncio.get_running_loop(), monkeypatch)
            await view(0)
            return wake_ups.count

    assert on_plain_loop(main) == 2 * levels
    assert len(threads) == levels
    assert len(set(threads)) == 1


def test_c21_alternating_middleware_starts_no_thread_and_makes_two_crossings_each(
    started: list[str], crossings: list[Crossing]
) -> None:
    """C21: the number of crossings is that of the changes of side, and no more."""

    async def view(level: int = 0) -> None:
        if level < 8:
            await sync_to_async(async_to_sync(view))(level + 1)

    async def main() -> None:
        async with ThreadSensitiveContext():
            await sync_to_async(noop)()
            del started[:], crossings[:]
            await view()

    on_plain_loop(main)
    assert started == []
    assert sorted(one.kind for one in crossings) == ["async_to_sync"] * 8 + ["sync_to_async"] * 8


class Steps:
    """Counts the calls that the bridge's own code makes, Python's and C's, in the thread that counts."""

    def __init__(self) -> None:
        self.count = 0

    # While the interpreter calls this, it traces nothing.
    def __call__(  # pragma: no cover
        self, frame: FrameType, event: str, arg: object
    ) -> None:
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(BRIDGE):
            self.count += 1


VARIABLES = [ContextVar[int](f"variable_{number}") for number in range(200)]


@each_home
@pytest.mark.parametrize("thread_sensitive", [True, False])
def test_c20_call_does_no_more_with_200_context_variables(
    home: Home, thread_sensitive: bool
) -> None:
    """C20: nothing walks over the variables one by one, in the task or in the worker."""

    call = sync_to_async(noop, thread_sensitive=thread_sensitive)
    profile = sync_to_async(sys.setprofile, thread_sensitive=thread_sensitive)

    async def count() -> int:
        """Count what one call does on both sides; the worker's side with the end of the call before it."""
        in_task, in_worker = Steps(), Steps()
        await profile(in_worker)
        coroutine = call()
        sys.setprofile(in_task)
        try:
            await coroutine
        finally:
            sys.setprofile(None)
            await profile(None)
        assert in_task.count > 0 < in_worker.count
        return in_task.count + in_worker.count

    async def main() -> tuple[int, int]:
        await count()
        few = await count()
        for variable in VARIABLES:
            variable.set(1)
        many = await count()
        return few, many

    few, many = home(main)
    assert few == many


# --- C22: what can be seen -----------------------------------------------------------------


def test_c22_statistics_show_busy_threads_and_the_queue(work: Work) -> None:
    """C22: saturation does not look like slow code."""
    pool = WorkerPool("watched", maximum=2)

    async def main() -> None:
        call = sync_to_async(work, thread_sensitive=False, executor=pool)
        assert (pool.statistics().workers, pool.statistics().waiting) == (0, 0)
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(call())
            await until(work.started)
            full = pool.statistics()
            assert (full.name, full.maximum) == ("watched", 2)
            assert (full.workers, full.idle, full.waiting) == (2, 0, 3)
            work.release.set()
        after = pool.statistics()
        assert (after.workers, after.idle, after.waiting) == (2, 2, 0)
        assert (after.started, after.retired, after.lent, after.expired) == (2, 0, 5, 0)
        assert 0 < after.longest_wait_seconds < 10

    on_plain_loop(main)
    pool.shutdown()


def test_c22_statistics_show_the_requests_that_wait_for_a_thread(
    request_workers: Callable[..., WorkerPool], work: Work
) -> None:
    """C22: the same for contexts."""
    pool = request_workers(maximum=1)

    async def request() -> None:
        async with ThreadSensitiveContext():
            await sync_to_async(work)()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(request())
            await until(work.started)
            full = pool.statistics()
            assert (full.workers, full.idle, full.waiting) == (1, 0, 3)
            work.release.set()

    on_plain_loop(main)
    assert (pool.statistics().idle, pool.statistics().waiting) == (1, 0)


def test_c22_call_that_is_withdrawn_from_the_queue_gets_no_thread(work: Work) -> None:
    """C22, C35: what waits and is cancelled is not lent a thread later."""
    pool = WorkerPool("watched", maximum=1)

    async def main() -> None:
        call = sync_to_async(work, thread_sensitive=False, executor=pool)
        running = asyncio.create_task(call())
        await until(work.started)
        waiting = asyncio.create_task(call())
        await loop_turns()
        waiting.cancel()
        await asyncio.wait([waiting])
        work.release.set()
        await running

    on_plain_loop(main)
    figures = pool.statistics()
    assert (figures.lent, figures.waiting, figures.idle) == (1, 0, 1)
    pool.shutdown()


def test_c22_observers_tell_waiting_time_from_running_time(
    crossings: list[Crossing], work: Work
) -> None:
    """C22: three calls for one thread: each begins when the one before it has ended."""

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(sync_to_async(work)())
            await until(work.started)
            work.release.set()

    on_plain_loop(main)
    first, second, third = sorted(crossings, key=lambda one: one.started_at or 0)
    for before, after in ((first, second), (second, third)):
        assert after.started_at is not None
        # All three were made before the first had ended: from then on they waited.
        assert after.queued_at < first.ended_at
        assert before.ended_at <= after.started_at
    assert {one.function for one in crossings} == {work}
    assert len({one.thread for one in crossings}) == 1


def test_c22_observers_tell_of_the_wait_for_a_thread_of_a_full_pool(
    crossings: list[Crossing], work: Work
) -> None:
    """C22: PostHog's `thread_wait_seconds`: the time from the call to its beginning."""
    pool = WorkerPool("watched", maximum=1)
    released_at: list[float] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        blocking = sync_to_async(work, thread_sensitive=False, executor=pool)
        quick = sync_to_async(noop, thread_sensitive=False, executor=pool)
        async with asyncio.TaskGroup() as group:
            group.create_task(blocking())
            await until(work.started)
            group.create_task(quick())
            await loop_turns()
            released_at.append(loop.time())
            work.release.set()

    on_plain_loop(main)
    (waited,) = (one for one in crossings if one.function is noop)
    assert waited.started_at is not None
    assert waited.queued_at <= released_at[0] <= waited.started_at
    assert waited.thread == "asyncbridge-watched-1"
    pool.shutdown()


def test_c18_pool_that_is_shut_down_twice_while_it_is_busy_ends() -> None:
    """C18, P8: by its owner and then by the interpreter's end, for instance."""
    run_child(
        """
        import faulthandler, threading
        from django_asyncbridge.bridge.sync import WorkerPool

        faulthandler.dump_traceback_later(5, exit=True)
        started, release = threading.Event(), threading.Event()

        def work():
            started.set()
            assert release.wait(10)

        pool = WorkerPool("tested")
        pool.submit(work)
        assert started.wait(10)
        pool.shutdown(wait=False)
        pool.shutdown(wait=False)
        release.set()
        # Joined at the end.
        """
    )
