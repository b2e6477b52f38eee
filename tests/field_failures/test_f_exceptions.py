"""Section F: exceptions arrive, and keep their traceback."""

import asyncio
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from django_asyncbridge.bridge.sync import async_to_sync, sync_to_async
from tests.field_failures.common import HOMES, Main, noop
from tests.support import run_child, run_in_thread

each_home = pytest.mark.parametrize("home", HOMES.values(), ids=HOMES.keys())
each_sensitivity = pytest.mark.parametrize("thread_sensitive", [True, False])
Home = Callable[[Main[Any]], Any]


# --- C56: StopIteration ---------------------------------------------------------------------


@pytest.mark.parametrize("root", ["asyncio.run(main())", "async_to_sync(main)()"])
def test_c56_stop_iteration_of_a_sync_function_becomes_a_runtime_error(root: str) -> None:
    """C56: `next` on an empty iterator raises, instead of a task that never goes on."""
    run_child(
        f"""
        import asyncio
        from django_asyncbridge.bridge.sync import async_to_sync, sync_to_async

        async def main():
            for thread_sensitive in (True, False):
                try:
                    await sync_to_async(next, thread_sensitive=thread_sensitive)(iter([]))
                except RuntimeError as error:
                    assert isinstance(error.__cause__, StopIteration), repr(error.__cause__)
                    assert "StopIteration" in str(error), error
                else:
                    raise SystemExit("no error")
            assert await sync_to_async(next)(iter([]), "default") == "default"

        {root}
        """,
        timeout_seconds=10,
    )


# --- C59: tracebacks -------------------------------------------------------------------------------


def length(traceback: types.TracebackType | None) -> int:
    """Return the number of entries of a traceback."""
    return 0 if traceback is None else 1 + length(traceback.tb_next)


@each_home
@each_sensitivity
def test_c59_call_while_an_exception_is_handled_leaves_its_traceback_as_it_is(
    home: Home, thread_sensitive: bool
) -> None:
    """C59: a retry loop inside `except` does not grow the traceback of what it handles."""

    async def main() -> tuple[int, int]:
        try:
            raise ValueError("handled")
        except ValueError as error:
            before = length(error.__traceback__)
            for _ in range(20):
                await sync_to_async(noop, thread_sensitive=thread_sensitive)()
            return before, length(error.__traceback__)

    before, after = home(main)
    assert before == after


@pytest.mark.parametrize("force_new_loop", [False, True])
def test_c59_coroutine_called_while_an_exception_is_handled_leaves_its_traceback_as_it_is(
    force_new_loop: bool,
) -> None:
    """C59: the same in sync code, at the top level and below async code."""

    async def inner() -> None:
        await sync_to_async(noop)()

    def caller() -> tuple[int, int]:
        try:
            raise ValueError("handled")
        except ValueError as error:
            before = length(error.__traceback__)
            for _ in range(20):
                async_to_sync(inner, force_new_loop=force_new_loop)()
            return before, length(error.__traceback__)

    before, after = run_in_thread(caller)
    assert before == after
    before, after = run_in_thread(lambda: asyncio.run(sync_to_async(caller)()))
    assert before == after


@each_home
def test_c59_function_called_while_an_exception_is_handled_can_see_it(home: Home) -> None:
    """C59: `logging.exception` and a bare `raise` on the other side work as if called directly."""

    def handled() -> BaseException | None:
        return sys.exception()

    async def ahandled() -> BaseException | None:
        return sys.exception()

    def reraise() -> None:
        raise  # noqa: PLE0704

    async def main() -> list[bool]:
        try:
            raise ValueError("handled")
        except ValueError as error:
            seen = [
                await sync_to_async(handled)(),
                await sync_to_async(handled, thread_sensitive=False)(),
                await sync_to_async(async_to_sync(ahandled))(),
            ]
            with pytest.raises(ValueError, match="handled") as raised:
                await sync_to_async(reraise)()
            return [exception is error for exception in (*seen, raised.value)]

    assert home(main) == [True] * 4


@each_home
def test_p7_traceback_of_an_error_shows_the_frame_that_raised(home: Home) -> None:
    """P7: an error that crosses both bridges still says where it comes from."""

    def fail() -> None:
        raise ValueError("expected")

    async def view() -> None:
        await sync_to_async(fail)()

    async def main() -> list[str]:
        try:
            await sync_to_async(async_to_sync(view))()
        except ValueError as error:
            names = []
            traceback = error.__traceback__
            while traceback is not None:
                names.append(traceback.tb_frame.f_code.co_name)
                traceback = traceback.tb_next
            return names
        raise AssertionError("no error")

    names = home(main)
    assert names[0] == "main"
    assert names[-1] == "fail"
    assert "view" in names
