"""Promise P8 and row C33: calls at the end of the interpreter."""

import pytest

from tests.support import run_child

LATE = """
    import asyncio, atexit, sys, threading
    from django_asyncbridge.bridge.sync import (
        ThreadSensitiveContext, async_to_sync, sync_to_async
    )

    async def answer():
        return "answer"

    async def nested():
        return await sync_to_async(lambda: async_to_sync(answer)())()

    async def request():
        async with ThreadSensitiveContext():
            return await nested()

    def late():
        for name, call in {
            "async_to_sync": lambda: async_to_sync(answer)(),
            "nested below async_to_sync": lambda: async_to_sync(nested)(),
            "new loop": lambda: async_to_sync(answer, force_new_loop=True)(),
            "sync_to_async": lambda: asyncio.run(nested()),
            "context": lambda: asyncio.run(request()),
        }.items():
            try:
                print(name, "->", call())
            except RuntimeError as error:
                print(name, "-> RuntimeError:", error)
        sys.stdout.flush()

    if sys.argv[1] == "used before":
        asyncio.run(request())
        asyncio.run(nested())
        async_to_sync(nested)()
"""


def check_late(source: str, used: str) -> None:
    """Run `source`, and expect of each late call an answer or a RuntimeError with a reason."""
    child = run_child(LATE + source, used, timeout_seconds=15)
    lines = child.stdout.splitlines()
    assert len(lines) == 5, child
    for line in lines:
        outcome = line.partition(" -> ")[2]
        assert outcome == "answer" or outcome.removeprefix("RuntimeError: ").strip(), line
    assert "never awaited" not in child.stderr
    assert "Traceback" not in child.stderr


@pytest.mark.parametrize("used", ["used before", "not used before"])
def test_p8_calls_at_the_exit_of_the_interpreter_answer_or_say_why_not(used: str) -> None:
    """P8, C33: in an `atexit` function no thread can be started: a result or a clear error."""
    check_late("    atexit.register(late)\n", used)


@pytest.mark.parametrize("used", ["used before", "not used before"])
def test_p8_calls_in_a_thread_that_outlives_the_main_thread_answer_or_say_why_not(
    used: str,
) -> None:
    """P8: a thread that goes on after the main thread has ended gets the same."""
    check_late(
        """
    def outlive():
        threading.main_thread().join()
        late()

    threading.Thread(target=outlive).start()
    """,
        used,
    )
