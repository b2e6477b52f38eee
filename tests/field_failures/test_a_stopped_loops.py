"""Section A, C02 and C03: `async_to_sync` toward a loop that no longer runs."""

from tests.support import run_child

STOPPED_LOOP = """
    import asyncio, threading
    from django_asyncbridge.bridge.sync import async_to_sync, sync_to_async

    stopped, begun, ended = (threading.Event() for _ in range(3))
    outcome, runs = [], []

    async def where():
        runs.append(asyncio.get_running_loop())
        return "result"

    async def begin():
        runs.append(asyncio.get_running_loop())
        begun.set()
        await again.wait()
        return "result"

    def call(coroutine_function):
        try:
            outcome.append(async_to_sync(coroutine_function)())
        except Exception as error:
            outcome.append(error)
        ended.set()

    def blocking():
        stopped.wait()
        call(where)

    async def leave(function):
        global again
        again = asyncio.Event()
        asyncio.ensure_future(sync_to_async(function)())
        # The function is in its thread once the loop has had some turns.
        for _ in range(5):
            await asyncio.sleep(0)

    async def leave_begun():
        await leave(lambda: call(begin))
        while not begun.is_set():
            await asyncio.sleep(0.001)

    loop = asyncio.new_event_loop()
"""


def test_c02_async_to_sync_toward_a_stopped_loop_runs_elsewhere() -> None:
    """C02: the coroutine is withdrawn from the loop that stopped, and runs on a loop of its own."""
    run_child(
        STOPPED_LOOP
        + """
    loop.run_until_complete(leave(blocking))
    stopped.set()
    assert ended.wait(8)
    assert outcome == ["result"], outcome
    assert len(runs) == 1 and runs[0] is not loop, runs
    """
    )


def test_c02_async_to_sync_toward_a_closed_loop_runs_elsewhere() -> None:
    """C02: a closed loop takes nothing, so the coroutine runs on a loop of its own."""
    run_child(
        STOPPED_LOOP
        + """
    loop.run_until_complete(leave(blocking))
    loop.close()
    stopped.set()
    assert ended.wait(8)
    assert outcome == ["result"], outcome
    assert len(runs) == 1 and runs[0] is not loop, runs
    """
    )


def test_c02_loop_that_runs_again_does_not_run_a_withdrawn_coroutine() -> None:
    """C02: whichever loop gets the coroutine, it runs once."""
    run_child(
        STOPPED_LOOP
        + """
    loop.run_until_complete(leave(blocking))
    stopped.set()
    assert ended.wait(8)
    loop.run_until_complete(asyncio.sleep(0.01))
    assert outcome == ["result"] and len(runs) == 1, (outcome, runs)
    """
    )


def test_c02_coroutine_that_had_begun_when_its_loop_stopped_raises() -> None:
    """C02: what had begun cannot move to another loop, so the sync caller is told."""
    run_child(
        STOPPED_LOOP
        + """
    import time
    loop.run_until_complete(leave_begun())
    since = time.monotonic()
    assert ended.wait(8)
    assert time.monotonic() - since < 4
    (error,) = outcome
    assert isinstance(error, RuntimeError) and "stopped" in str(error), repr(error)
    """
    )


def test_c02_coroutine_that_had_begun_when_its_loop_was_closed_raises_soon() -> None:
    """C02: a closed loop never runs again, so the sync caller is told without a long wait."""
    run_child(
        STOPPED_LOOP
        + """
    import time
    loop.run_until_complete(leave_begun())
    loop.close()
    since = time.monotonic()
    assert ended.wait(8)
    assert time.monotonic() - since < 2.5
    (error,) = outcome
    assert isinstance(error, RuntimeError), repr(error)
    assert "stopped" in str(error) or "closed" in str(error), repr(error)
    """
    )


def test_c02_coroutine_that_had_begun_goes_on_when_its_loop_soon_runs_again() -> None:
    """C02: a pause between two `run_until_complete` calls is not the end of a loop."""
    run_child(
        STOPPED_LOOP
        + """
    import time

    async def finish():
        again.set()
        while not ended.is_set():
            await asyncio.sleep(0.001)

    loop.run_until_complete(leave_begun())
    time.sleep(0.1)
    loop.run_until_complete(finish())
    assert outcome == ["result"], outcome
    """
    )


# --- C03: a pool thread keeps no loop --------------------------------------------


def test_c03_async_to_sync_in_a_pool_thread_that_served_an_ended_loop_works() -> None:
    """C03: a pool thread does not remember the loop of the call it once ran."""
    run_child(
        """
        import asyncio
        from concurrent.futures import ThreadPoolExecutor
        from django_asyncbridge.bridge.sync import async_to_sync, sync_to_async

        async def answer():
            return "answer"

        pool = ThreadPoolExecutor(1)
        loop = asyncio.new_event_loop()
        in_pool = sync_to_async(lambda: None, thread_sensitive=False, executor=pool)
        loop.run_until_complete(in_pool())
        assert pool.submit(async_to_sync(answer)).result(5) == "answer"
        """
    )
