"""`ThreadSensitiveContext`: which thread a block gets, when that is given back, and what those see who outlive the block."""

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, NoReturn

import pytest

from django_asyncbridge.bridge import _contexts, _state
from django_asyncbridge.bridge._leases import Lease
from django_asyncbridge.bridge._workers import WorkerPool
from django_asyncbridge.bridge.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from tests.bridge import HookedLock, ManualExecutor, wait
from tests.bridge.pools import new_pool

current_thread = sync_to_async(threading.current_thread)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPool]:
    """Give the contexts of this test a pool that nobody has used."""
    pool = WorkerPool("testing")
    monkeypatch.setattr(_state, "request_workers", pool)
    yield pool
    pool.shutdown()


def run_all(*functions: Callable[[], object]) -> None:
    """Call each function in a thread of its own, all at the same time, and wait for them."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)


def new_threads(before: list[threading.Thread]) -> set[threading.Thread]:
    """Return who has come since; threads of an earlier test may still be going."""
    return set(threading.enumerate()).difference(before)


# --- ThreadSensitiveContext: its thread ------------------------------------------


def test_thread_sensitive_context_gives_its_calls_one_thread_and_gives_it_back_at_the_end(
    workers: WorkerPool,
) -> None:
    async def main() -> None:
        async with ThreadSensitiveContext():
            first, second = await current_thread(), await current_thread()
            task = await asyncio.create_task(current_thread())
            assert workers.statistics().idle == 0
        assert first is second is task
        assert first.name == "asyncbridge-testing-1"
        assert workers.statistics().idle == 1
        assert await current_thread() is not first

    asyncio.run(main())


def test_thread_sensitive_context_with_a_pool_is_lent_one_of_its_threads() -> None:
    async def main(pool: WorkerPool) -> None:
        async with ThreadSensitiveContext(executor=pool):
            first, second = await current_thread(), await current_thread()
            assert pool.owns(first)
            assert pool.statistics().idle == 0
        assert first is second
        assert pool.statistics().idle == 1

    with new_pool() as pool:
        asyncio.run(main(pool))


def test_thread_sensitive_context_has_a_request_worker() -> None:
    async def main() -> str:
        async with ThreadSensitiveContext():
            return (await current_thread()).name

    assert asyncio.run(main()).startswith("asyncbridge-request-")


def test_thread_sensitive_contexts_one_after_the_other_share_a_thread_and_at_once_have_each_their_own(
    workers: WorkerPool,
) -> None:
    async def block(entered: asyncio.Barrier | None = None) -> threading.Thread:
        async with ThreadSensitiveContext():
            thread = await current_thread()
            if entered is not None:
                await entered.wait()
            return thread

    async def main() -> None:
        assert await block() is await block()
        entered = asyncio.Barrier(2)
        first, second = await asyncio.gather(block(entered), block(entered))
        assert first is not second
        assert await block() in (first, second)

    asyncio.run(main())
    assert workers.statistics().started == 2


def test_thread_sensitive_context_without_a_call_starts_no_thread() -> None:
    async def main() -> None:
        before = threading.enumerate()
        async with ThreadSensitiveContext():
            assert new_threads(before) == set()
        assert new_threads(before) == set()

    asyncio.run(main())


def test_thread_sensitive_context_inside_another_one_changes_nothing() -> None:
    async def main() -> None:
        async with ThreadSensitiveContext():
            outer = await current_thread()
            async with ThreadSensitiveContext():
                assert await current_thread() is outer
            assert await current_thread() is outer

    asyncio.run(main())


def test_thread_sensitive_context_entered_twice_ends_with_the_outermost_block(
    workers: WorkerPool,
) -> None:
    async def main() -> None:
        context = ThreadSensitiveContext()
        async with context:
            outer = await current_thread()
            async with context:
                assert await current_thread() is outer
            assert await current_thread() is outer
            assert workers.statistics().idle == 0
        assert workers.statistics().idle == 1

    asyncio.run(main())


def test_thread_sensitive_context_used_again_has_a_thread_again(workers: WorkerPool) -> None:
    async def main() -> None:
        context = ThreadSensitiveContext()
        for _ in range(2):
            async with context:
                assert (await current_thread()).name == "asyncbridge-testing-1"
            assert workers.statistics().idle == 1

    asyncio.run(main())
    assert workers.statistics().lent == 2


def test_thread_sensitive_context_below_a_waiting_sync_caller_lets_that_come_first() -> None:
    async def main() -> threading.Thread:
        async with ThreadSensitiveContext():
            return await current_thread()

    assert async_to_sync(main)() is threading.current_thread()


# --- ThreadSensitiveContext: leaving ---------------------------------------------


def test_thread_sensitive_context_left_in_another_context_ends_for_all_who_inherited_it(
    workers: WorkerPool,
) -> None:
    """As test fixtures do that are entered in one task and left in another."""

    async def main() -> None:
        context = ThreadSensitiveContext()
        await context.__aenter__()
        assert (await current_thread()).name == "asyncbridge-testing-1"
        await asyncio.get_running_loop().create_task(
            context.__aexit__(None, None, None), context=contextvars.Context()
        )
        assert workers.statistics().idle == 1
        assert (await current_thread()).name.startswith("asyncbridge-shared-")

    asyncio.run(main())


def test_thread_sensitive_context_left_without_having_been_entered_does_nothing() -> None:
    async def main() -> None:
        async with ThreadSensitiveContext():
            mine = await current_thread()
            await ThreadSensitiveContext().__aexit__(None, None, None)
            assert await current_thread() is mine

    asyncio.run(main())


def test_thread_sensitive_context_waits_for_a_running_call_without_blocking_the_loop() -> None:
    log: list[str] = []
    begun = threading.Event()

    async def help_it() -> None:
        log.append("loop ran")

    def work() -> None:
        begun.set()
        async_to_sync(help_it)()
        log.append("call ended")

    async def main() -> None:
        async with ThreadSensitiveContext():
            task = asyncio.create_task(sync_to_async(work)())
            await asyncio.sleep(0)
            # The loop is not free before the block is being left.
            wait(begun)
        log.append("left")
        await task

    asyncio.run(main())
    assert log == ["loop ran", "call ended", "left"]


def test_thread_sensitive_context_cancelled_while_leaving_goes_and_gives_its_thread_back_later(
    workers: WorkerPool,
) -> None:
    begun, release = threading.Event(), threading.Event()

    def work() -> threading.Thread:
        begun.set()
        wait(release)
        return threading.current_thread()

    async def main() -> None:
        calls: list[asyncio.Task[threading.Thread]] = []
        context = ThreadSensitiveContext()

        async def block() -> None:
            async with context:
                calls.append(asyncio.create_task(sync_to_async(work)()))
                await asyncio.sleep(0)
                wait(begun)

        task = asyncio.create_task(block())
        while not context._exited:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        # The call runs on, and its thread is nobody else's.
        assert workers.statistics().idle == 0
        release.set()
        thread = await calls[0]
        async with ThreadSensitiveContext():
            later = await current_thread()
            assert (later is thread) == (workers.statistics().started == 1)

    asyncio.run(main())
    workers.shutdown()
    assert workers.statistics().workers == 0


class Joined(ThreadPoolExecutor):
    """Somebody else's executor in the registry, as asgiref puts it there."""

    def __init__(self) -> None:
        super().__init__(1, thread_name_prefix="theirs")
        self.shut_down_in: list[threading.Thread] = []
        self.waited: list[bool] = []
        self.release = threading.Event()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.shut_down_in.append(threading.current_thread())
        self.waited.append(wait)
        if wait:
            assert self.release.wait(10)
        super().shutdown(wait, cancel_futures=cancel_futures)


def test_thread_sensitive_context_whose_executor_is_somebody_elses_ends_it_without_blocking_the_loop() -> (
    None
):
    async def main() -> None:
        theirs = Joined()
        async with ThreadSensitiveContext() as context:
            _state.context_to_thread_executor[context] = theirs
            assert (await current_thread()).name.startswith("theirs")
            asyncio.get_running_loop().call_soon(theirs.release.set)
        (joining,) = theirs.shut_down_in
        assert joining is not threading.current_thread()
        with pytest.raises(RuntimeError, match="shutdown"):
            theirs.submit(print)

    asyncio.run(main())


def test_thread_sensitive_context_cancelled_while_it_waits_for_somebody_elses_executor_goes() -> (
    None
):
    async def main() -> None:
        theirs = Joined()

        async def block() -> None:
            async with ThreadSensitiveContext() as context:
                _state.context_to_thread_executor[context] = theirs

        task = asyncio.create_task(block())
        while not theirs.shut_down_in:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        theirs.release.set()
        theirs.shut_down_in[0].join(10)
        assert not theirs.shut_down_in[0].is_alive()

    asyncio.run(main())


def test_thread_sensitive_context_left_when_no_thread_can_start_is_left_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P4: at a limit of threads, a block that has done its work does not fail at its end."""

    def refuse(thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    async def main() -> Joined:
        async with ThreadSensitiveContext() as context:
            _state.context_to_thread_executor[context] = theirs = Joined()
            await current_thread()
            monkeypatch.setattr(threading.Thread, "start", refuse)
        return theirs

    assert asyncio.run(main()).waited == [False]


# --- ThreadSensitiveContext: with an executor ------------------------------------


def test_thread_sensitive_context_with_an_executor_uses_it_inside_another_and_leaves_it_running() -> (
    None
):
    async def main() -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="mine") as pool:
            async with ThreadSensitiveContext():
                outer = await current_thread()
                async with ThreadSensitiveContext(executor=pool):
                    mine = await current_thread()
                assert await current_thread() is outer
            assert mine.name.startswith("mine")
            assert pool.submit(threading.current_thread).result() is mine

    asyncio.run(main())


def test_thread_sensitive_context_with_an_executor_comes_before_a_waiting_sync_caller() -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="mine") as pool:
            async with ThreadSensitiveContext(executor=pool):
                assert (await current_thread()).name.startswith("mine")
                assert (await asyncio.create_task(current_thread())).name.startswith("mine")
            assert await current_thread() is caller

    caller = threading.current_thread()
    async_to_sync(main)()


def test_thread_sensitive_context_with_an_executor_cannot_be_entered_again() -> None:
    async def main() -> None:
        context = ThreadSensitiveContext(executor=ManualExecutor())
        async with context:
            with pytest.raises(RuntimeError, match="entered a second time"):
                await context.__aenter__()
        with pytest.raises(RuntimeError, match="make a new one for each block"):
            await context.__aenter__()

    asyncio.run(main())


def test_thread_sensitive_context_with_an_executor_refuses_tasks_that_outlived_it() -> None:
    async def main() -> None:
        left = asyncio.Event()

        async def late() -> None:
            await left.wait()
            with pytest.raises(RuntimeError, match="has outlived it"):
                await current_thread()

        async with ThreadSensitiveContext(executor=ManualExecutor()):
            task = asyncio.create_task(late())
            await asyncio.sleep(0)
        left.set()
        await task

    asyncio.run(main())


def test_thread_sensitive_context_with_an_executor_left_in_another_context_does_not_change_that() -> (
    None
):
    """P2: what was put aside on entering goes back to where it was found, or nowhere."""

    async def main() -> None:
        outer = _state.current_executor.get()
        assert outer is not None
        context = ThreadSensitiveContext(executor=ManualExecutor())
        await context.__aenter__()
        empty = contextvars.Context()
        leave = context.__aexit__(None, None, None)
        await asyncio.get_running_loop().create_task(leave, context=empty)
        assert empty.run(_state.current_executor.get) is None

    # Nobody takes the block out of the context that it was entered in; so that is not the test's.
    contextvars.copy_context().run(async_to_sync(main))


# --- executor_of -----------------------------------------------------------------


def test_executor_of_an_open_context_asked_by_many_threads_is_one() -> None:
    async def main() -> None:
        async with ThreadSensitiveContext() as context:
            barrier = threading.Barrier(4)
            seen: list[object] = []

            def ask() -> None:
                barrier.wait(10)
                seen.append(_contexts.executor_of(context))

            run_all(*[ask] * 4)
            assert len(seen) == 4
            assert len(set(seen)) == 1

    asyncio.run(main())


def test_executor_of_a_context_that_is_left_in_this_moment_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a thread would start that nobody ends."""

    async def main() -> None:
        async with ThreadSensitiveContext() as context:
            real = _state.registry_lock

            def leave() -> None:
                monkeypatch.setattr(_state, "registry_lock", real)
                context._leave()

            monkeypatch.setattr(_state, "registry_lock", HookedLock(real, leave))
            assert _contexts.executor_of(context) is None
            assert context not in _state.context_to_thread_executor

    asyncio.run(main())


def test_executor_of_a_context_that_a_finalizer_asks_for_meanwhile_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lock is one that its thread may take again."""
    made: list[Executor | None] = []

    class Noting(Lease):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            monkeypatch.undo()
            made.append(_contexts.executor_of(context))

    async def main() -> None:
        async with context:
            # As asgiref's class leaves it.
            del _state.context_to_thread_executor[context]
            monkeypatch.setattr(_contexts, "Lease", Noting)
            assert [_contexts.executor_of(context)] == made

    context = ThreadSensitiveContext()
    asyncio.run(main())


def test_executor_of_a_context_of_asgirefs_is_made_for_it() -> None:
    """Its contexts share our registries, and know nothing of ours that asgiref's class does not have."""

    class Foreign(ThreadSensitiveContext):
        def __init__(self) -> None:
            pass

    context = Foreign()
    executor = _contexts.executor_of(context)
    assert executor is not None
    assert _state.context_to_thread_executor[context] is executor
    executor.shutdown()
