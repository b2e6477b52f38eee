"""Section C, C32: Ctrl-C, or an exception of another signal handler, during `async_to_sync`."""

import pytest

from tests.support import run_child

INTERRUPTED = """
    import asyncio, signal, sys, threading, time
    from django_asyncbridge.bridge.sync import async_to_sync, sync_to_async

    signal_number, expected = signal.SIGINT, KeyboardInterrupt
    if sys.argv[1] == "SIGALRM":
        signal_number, expected = signal.SIGALRM, TimeoutError

        def raise_timeout(*_):
            raise TimeoutError

        signal.signal(signal_number, raise_timeout)

    def interrupt_soon():
        # Later than the caller's way into its wait; nothing else hangs on this delay.
        delayed = threading.Timer(
            0.2, signal.pthread_kill, (threading.main_thread().ident, signal_number)
        )
        delayed.daemon = True
        delayed.start()

    cleaned = []

    async def wait():
        interrupt_soon()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cleaned.append("cancelled")
            raise
        finally:
            await asyncio.sleep(0.01)
            cleaned.append("cleaned")

    def run(function):
        since = time.monotonic()
        try:
            async_to_sync(function)()
        except expected as error:
            assert type(error) is expected, repr(error)
        else:
            raise SystemExit("not interrupted")
        assert time.monotonic() - since < 5
        assert asyncio._get_running_loop() is None
        assert async_to_sync(after)() == "works"
        print("passed")

    async def after():
        return await sync_to_async(lambda: "works")()
"""

each_signal = pytest.mark.parametrize("signal_name", ["SIGINT", "SIGALRM"])


@each_signal
def test_c32_interrupted_call_cancels_its_coroutine_and_raises(signal_name: str) -> None:
    """C32: the coroutine's cleanup has run when the interruption leaves `async_to_sync`."""
    run_child(
        INTERRUPTED
        + """
    run(wait)
    assert cleaned == ["cancelled", "cleaned"], cleaned
    """,
        signal_name,
        timeout_seconds=10,
    )


@each_signal
def test_c32_interrupted_call_that_served_its_thread_before_raises(signal_name: str) -> None:
    """C32: the same when the caller is waiting for thread-sensitive work instead."""
    run_child(
        INTERRUPTED
        + """
    async def main():
        await sync_to_async(time.time)()
        await wait()

    run(main)
    assert cleaned == ["cancelled", "cleaned"], cleaned
    """,
        signal_name,
        timeout_seconds=10,
    )


@each_signal
def test_c32_cleanup_of_an_interrupted_call_can_use_the_home_thread(signal_name: str) -> None:
    """C32, P1: the caller serves its thread until the coroutine has cleaned up."""
    run_child(
        INTERRUPTED
        + """
    async def main():
        try:
            await wait()
        finally:
            cleaned.append(await sync_to_async(threading.current_thread)())

    run(main)
    assert cleaned == ["cancelled", "cleaned", threading.main_thread()], cleaned
    """,
        signal_name,
        timeout_seconds=10,
    )


@each_signal
def test_c32_interrupted_nested_call_unwinds_every_layer(signal_name: str) -> None:
    """C32: sync below async below sync: each coroutine cleans up, then the root raises."""
    run_child(
        INTERRUPTED
        + """
    async def main():
        try:
            await sync_to_async(lambda: async_to_sync(wait)())()
        finally:
            await asyncio.sleep(0.01)
            cleaned.append("outer")

    run(main)
    assert cleaned == ["cancelled", "cleaned", "outer"], cleaned
    """,
        signal_name,
        timeout_seconds=10,
    )


@each_signal
def test_c32_interrupted_sync_function_below_the_call_unwinds_every_layer(
    signal_name: str,
) -> None:
    """C32: the main thread is inside a thread-sensitive function when the signal comes."""
    run_child(
        INTERRUPTED
        + """
    def view():
        interrupt_soon()
        try:
            time.sleep(30)
        finally:
            cleaned.append("view")

    async def main():
        try:
            await sync_to_async(view)()
        finally:
            await asyncio.sleep(0.01)
            cleaned.append("outer")

    run(main)
    assert cleaned == ["view", "outer"], cleaned
    """,
        signal_name,
        timeout_seconds=10,
    )


def test_c32_interrupted_program_ends_at_once_with_a_traceback_of_the_interruption() -> None:
    """C32: an interrupted management command does not hang at its exit."""
    child = run_child(
        INTERRUPTED + "    async_to_sync(wait)()\n",
        "SIGINT",
        timeout_seconds=10,
        expect_code=None,
    )
    # Python ends by the signal itself after an uncaught KeyboardInterrupt.
    assert child.returncode in (-2, 130)
    assert child.stderr.rstrip().endswith("KeyboardInterrupt")
