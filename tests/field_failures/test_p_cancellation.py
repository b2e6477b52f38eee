"""Promise P6: a cancelled call ends when its function has ended, and ends cancelled."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from django_asyncbridge.bridge.sync import sync_to_async
from tests.field_failures.common import HOMES, Main, Work, end_of, loop_turns, on_plain_loop, until

each_home = pytest.mark.parametrize("home", HOMES.values(), ids=HOMES.keys())
each_sensitivity = pytest.mark.parametrize("thread_sensitive", [True, False])
Home = Callable[[Main[Any]], Any]
LOGGER = "django_asyncbridge.bridge.sync"


@each_home
@each_sensitivity
def test_p6_cancelled_call_ends_after_its_function_and_ends_cancelled(
    home: Home, thread_sensitive: bool, work: Work
) -> None:
    """P6: structured concurrency holds: nothing that a cancelled task started goes on after it."""

    async def main() -> None:
        call = sync_to_async(work, thread_sensitive=thread_sensitive)
        task = asyncio.create_task(call())
        await until(work.started)
        task.cancel()
        await loop_turns()
        assert not task.done()
        # A second cancellation does not cut the waiting short either.
        task.cancel()
        await loop_turns()
        assert not task.done()
        work.release.set()
        assert isinstance(await end_of(task), asyncio.CancelledError)
        work.effects.append("task ended")
        assert task.cancelled()

    home(main)
    assert work.effects == ["function ended", "task ended"]


def test_p6_timeout_of_asyncio_around_a_call_waits_and_then_reports_the_timeout(work: Work) -> None:
    """P6: what asyncio builds on cancellation works with it: here `asyncio.timeout`."""

    async def main() -> int:
        asyncio.get_running_loop().call_later(0.05, work.release.set)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await sync_to_async(work)()
        assert work.effects == ["function ended"]
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert on_plain_loop(main) == 0


def test_p6_task_group_ends_after_the_functions_that_it_started(work: Work) -> None:
    """P6: the group's failure cancels the call, and the group waits for the function."""

    async def fail() -> None:
        await until(work.started)
        asyncio.get_running_loop().call_later(0.02, work.release.set)
        raise ValueError

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(sync_to_async(work)())
            group.create_task(fail())

    async def main() -> None:
        with pytest.raises(ExceptionGroup):
            await both()
        work.effects.append("group ended")

    on_plain_loop(main)
    assert work.effects == ["function ended", "group ended"]


@each_home
@each_sensitivity
def test_p6_exception_after_a_cancellation_is_the_cause_and_is_logged(
    home: Home,
    thread_sensitive: bool,
    caplog: pytest.LogCaptureFixture,
    work: Work,
) -> None:
    """P5, P6: the task ends cancelled, and the error that nobody can catch is not lost."""
    work.error = ValueError("after the cancellation")
    caught: list[BaseException] = []

    async def request() -> None:
        try:
            await sync_to_async(work, thread_sensitive=thread_sensitive)()
        except BaseException as error:
            caught.append(error)
            raise

    async def main() -> None:
        task = asyncio.create_task(request())
        await until(work.started)
        task.cancel()
        await loop_turns()
        work.release.set()
        await end_of(task)
        assert task.cancelled()

    with caplog.at_level(logging.WARNING):
        home(main)
    (error,) = caught
    assert isinstance(error, asyncio.CancelledError)
    assert error.__cause__ is work.error
    (record,) = caplog.records
    assert (record.name, record.levelno) == (LOGGER, logging.WARNING)
    assert record.exc_info is not None
    assert record.exc_info[1] is work.error


def test_p6_exception_of_a_call_that_is_not_cancelled_is_raised_and_not_logged(
    caplog: pytest.LogCaptureFixture, work: Work
) -> None:
    """P6: the other side of the rule: an error that its caller gets is not logged."""
    work.error = ValueError("plain")
    work.release.set()

    async def main() -> None:
        with pytest.raises(ValueError, match="plain"):
            await sync_to_async(work)()

    on_plain_loop(main)
    assert caplog.records == []
