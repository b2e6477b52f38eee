"""Section C: a cancellation reaches the other side and is never swallowed."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from django_asyncbridge.bridge.sync import async_to_sync, sync_to_async
from tests.field_failures.common import HOMES, Main, Work, end_of, loop_turns, on_plain_loop, until

each_home = pytest.mark.parametrize("home", HOMES.values(), ids=HOMES.keys())
each_sensitivity = pytest.mark.parametrize("thread_sensitive", [True, False])
Home = Callable[[Main[Any]], Any]


# --- C25, C26: cancellation through sync code ------------------------------------------


@each_home
def test_c25_cancelled_request_below_sync_middleware_is_logged_nowhere(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    """C25: a client that left is no error: neither asyncio nor the bridge logs it."""
    reported: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: reported.append(what))
        started, cleaned = asyncio.Event(), []

        async def view() -> None:
            started.set()
            try:
                await asyncio.sleep(10)
            finally:
                await asyncio.sleep(0)
                cleaned.append("view")

        task = asyncio.create_task(sync_to_async(async_to_sync(view))())
        await started.wait()
        task.cancel()
        assert isinstance(await end_of(task), asyncio.CancelledError)
        assert task.cancelled()
        assert cleaned == ["view"]
        del task
        await loop_turns()

    with caplog.at_level(logging.INFO):
        home(main)
    assert reported == []
    assert caplog.records == []


@each_home
def test_c26_coroutine_that_answers_a_cancellation_does_not_undo_it(
    home: Home,
) -> None:
    """C26: the view returns a partial answer, the task that was cancelled ends cancelled."""

    async def main() -> None:
        started = asyncio.Event()

        async def view() -> str:
            started.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(10)
            return "partial"

        task = asyncio.create_task(sync_to_async(async_to_sync(view))())
        await started.wait()
        task.cancel()
        assert isinstance(await end_of(task), asyncio.CancelledError)
        assert task.cancelled()

    home(main)


@each_home
def test_c26_sync_function_that_answers_a_cancellation_does_not_undo_it(
    home: Home,
) -> None:
    """C26: the same when it is the sync middleware that catches and answers."""

    async def main() -> list[str]:
        started, caught = asyncio.Event(), []

        async def view() -> None:
            started.set()
            await asyncio.sleep(10)

        def middleware() -> str:
            try:
                async_to_sync(view)()
            except asyncio.CancelledError:
                caught.append("in middleware")
            return "partial"

        task = asyncio.create_task(sync_to_async(middleware)())
        await started.wait()
        task.cancel()
        assert isinstance(await end_of(task), asyncio.CancelledError)
        assert task.cancelled()
        return caught

    assert home(main) == ["in middleware"]


@each_home
def test_c26_cancellation_reaches_a_coroutine_on_a_loop_of_its_own(home: Home) -> None:
    """P5: the coroutine runs on another loop in another thread than the task that was cancelled."""

    async def main() -> list[str]:
        started = threading.Event()
        cleaned: list[str] = []

        async def view() -> None:
            started.set()
            try:
                await asyncio.sleep(10)
            finally:
                await asyncio.sleep(0)
                cleaned.append("view")

        task = asyncio.create_task(sync_to_async(async_to_sync(view, force_new_loop=True))())
        await until(started)
        task.cancel()
        await end_of(task)
        assert task.cancelled()
        return cleaned

    assert home(main) == ["view"]


@each_home
def test_c26_cancellation_between_two_bridge_calls_is_delivered_to_the_next(
    home: Home, work: Work
) -> None:
    """P5: sync code learns of a cancellation at its next `async_to_sync`."""
    outcome: list[str] = []

    async def first() -> str:
        await asyncio.sleep(0)
        return "first"

    async def second() -> str:
        raise AssertionError("it was begun")  # pragma: no cover  # it is not

    def middleware() -> None:
        outcome.append(async_to_sync(first)())
        work()
        try:
            outcome.append(async_to_sync(second)())
        except asyncio.CancelledError:
            outcome.append("cancelled")
            raise

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(middleware)())
        await until(work.started)
        task.cancel()
        await loop_turns()
        work.release.set()
        await end_of(task)
        assert task.cancelled()

    home(main)
    assert outcome == ["first", "cancelled"]


@each_home
def test_c26_cancellation_reaches_the_bottom_of_nested_calls_and_comes_back_up(
    home: Home,
) -> None:
    """P5: sync below async below sync below async: every layer cleans up, the lowest first."""
    cleaned: list[str] = []

    def clean_up(layer: str) -> None:
        cleaned.append(layer)

    async def main() -> None:
        started = asyncio.Event()

        async def bottom() -> None:
            started.set()
            try:
                await asyncio.sleep(10)
            finally:
                # A cleanup may cross into the home thread itself.
                await sync_to_async(clean_up)("bottom")

        def lower() -> None:
            try:
                async_to_sync(bottom)()
            finally:
                clean_up("lower")

        async def upper() -> None:
            try:
                await sync_to_async(lower)()
            finally:
                clean_up("upper")

        task = asyncio.create_task(sync_to_async(async_to_sync(upper))())
        await started.wait()
        task.cancel()
        await end_of(task)
        assert task.cancelled()

    home(main)
    assert cleaned == ["bottom", "lower", "upper"]


# --- C34, C35 ------------------------------------------------------------------------


@each_home
@each_sensitivity
def test_c34_call_in_the_handler_of_a_cancellation_works(
    home: Home, thread_sensitive: bool
) -> None:
    """C34: a task that was cancelled can still save something through sync code."""

    async def main() -> list[str]:
        started = asyncio.Event()
        saved: list[str] = []
        save = sync_to_async(saved.append, thread_sensitive=thread_sensitive)

        async def request() -> None:
            started.set()
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                await save("in except")
                raise
            finally:
                await save("in finally")

        task = asyncio.create_task(request())
        await started.wait()
        task.cancel()
        await end_of(task)
        assert task.cancelled()
        return saved

    assert home(main) == ["in except", "in finally"]


@each_home
def test_c35_queued_call_that_is_cancelled_ends_at_once_and_never_runs(
    home: Home, work: Work
) -> None:
    """C35: what has not begun is withdrawn, without a wait for the call that holds the thread."""
    ran: list[str] = []

    async def main() -> None:
        first = asyncio.create_task(sync_to_async(work)())
        await until(work.started)
        second = asyncio.create_task(sync_to_async(ran.append)("second"))
        await loop_turns()
        second.cancel()
        await loop_turns()
        assert second.cancelled()
        work.release.set()
        assert await first == "result"
        await sync_to_async(ran.append)("third")

    home(main)
    assert ran == ["third"]


def test_c35_queued_call_of_a_full_pool_that_is_cancelled_never_runs(work: Work) -> None:
    """C35: the same where the thread is one of an executor of the caller's own."""
    ran: list[str] = []

    async def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            first = asyncio.create_task(
                sync_to_async(work, thread_sensitive=False, executor=pool)()
            )
            await until(work.started)
            append = sync_to_async(ran.append, thread_sensitive=False, executor=pool)
            second = asyncio.create_task(append("second"))
            await loop_turns()
            second.cancel()
            await loop_turns()
            assert second.cancelled()
            work.release.set()
            await first
            await append("third")

    on_plain_loop(main)
    assert ran == ["third"]
