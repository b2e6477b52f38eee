"""The deprecated timeout: its deadline, and that it takes back the cancellation it makes, and only that."""

import asyncio
import contextlib
import functools
import types
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from django_asyncbridge.bridge.timeout import timeout

LONG = 60.0
SHORT = 0.01


def quiet(*arguments: Any, **options: Any) -> timeout:
    """Make a timeout without its warning, which is tested on its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return timeout(*arguments, **options)


class AsSync:
    """The plain ``with`` of a timeout, to run each test with both forms."""

    def __init__(self, seconds: float | None) -> None:
        self.timeout = quiet(seconds)

    async def __aenter__(self) -> timeout:
        return self.timeout.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: types.TracebackType | None,
    ) -> None:
        self.timeout.__exit__(exc_type, exc_val, exc_tb)


Form = Callable[[float | None], Any]
both_forms = pytest.mark.parametrize("form", [quiet, AsSync], ids=["async with", "with"])


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*arguments: Any, **options: Any) -> None:
        asyncio.run(test(*arguments, **options))

    return run


async def forever() -> None:
    await asyncio.Event().wait()


def this_task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None
    return task


@both_forms
@in_loop
async def test_timeout_when_the_deadline_passes_raises_timeout_error(form: Form) -> None:
    with pytest.raises(TimeoutError) as caught:
        async with form(SHORT) as deadline:
            await forever()
    assert deadline.expired
    assert deadline.remaining == 0.0
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


@both_forms
@in_loop
async def test_timeout_when_the_block_ends_in_time_leaves_no_trace(form: Form) -> None:
    async with form(SHORT) as deadline:
        pass
    await asyncio.sleep(2 * SHORT)  # the timer would cancel this
    assert not deadline.expired
    assert this_task().cancelling() == 0


@both_forms
@pytest.mark.parametrize("seconds", [0, -1])
@in_loop
async def test_timeout_of_no_time_ends_the_block_at_its_first_wait(
    form: Form, seconds: float
) -> None:
    turns: list[int] = []

    async def count_turns() -> None:
        while True:
            turns.append(len(turns))
            await asyncio.sleep(0)

    with pytest.raises(TimeoutError):
        async with form(seconds) as deadline:
            await count_turns()
    assert turns == [0]
    assert deadline.expired
    assert deadline.remaining == 0.0


@in_loop
async def test_timeout_of_no_time_with_a_block_that_does_not_wait_does_nothing() -> None:
    async with quiet(0) as deadline:
        pass
    await asyncio.sleep(0)
    assert not deadline.expired


@both_forms
@in_loop
async def test_timeout_of_none_has_no_limit(form: Form) -> None:
    async with form(None) as deadline:
        await asyncio.sleep(0)
    assert deadline.remaining is None
    assert not deadline.expired


@in_loop
async def test_remaining_counts_down_from_entering() -> None:
    deadline = quiet(LONG)
    readings = [deadline.remaining]
    async with deadline:
        readings.append(deadline.remaining)
        await asyncio.sleep(SHORT)
        readings.append(deadline.remaining)
    before, first, second = readings
    assert before is None
    assert first is not None
    assert second is not None
    assert LONG >= first > second > 0


@both_forms
@in_loop
async def test_timeout_handled_takes_back_its_cancellation(form: Form) -> None:
    with pytest.raises(TimeoutError):
        async with form(SHORT):
            await forever()
    assert this_task().cancelling() == 0

    # The scenario: a task group that is ended by a failing child looks at that count (Python 3.13).
    async def fail() -> None:
        raise LookupError("the child's own")

    async def group_of_two() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await forever()

    with pytest.raises(ExceptionGroup) as caught:
        await group_of_two()
    assert [str(error) for error in caught.value.exceptions] == ["the child's own"]
    await asyncio.sleep(0)  # and the task is not cancelled


@both_forms
@in_loop
async def test_timeout_with_a_block_that_raises_after_the_deadline_passes_that_on(
    form: Form,
) -> None:
    async def translate() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            raise LookupError from None

    with pytest.raises(LookupError):
        async with form(SHORT):
            await translate()
    assert this_task().cancelling() == 0


@both_forms
@in_loop
async def test_timeout_with_a_block_that_swallows_the_deadline_says_so_and_no_more(
    form: Form,
) -> None:
    entered: list[timeout] = []

    async def swallow() -> None:
        async with form(SHORT) as deadline:
            entered.append(deadline)
            with contextlib.suppress(asyncio.CancelledError):
                await forever()

    task = asyncio.create_task(swallow())
    await task
    assert entered[0].expired
    assert task.cancelling() == 0


async def ends_cancelled(task: "asyncio.Task[Any]") -> bool:
    await asyncio.wait([task])
    return task.cancelled()


@both_forms
@in_loop
async def test_timeout_with_a_task_cancelled_by_others_ends_it_cancelled(form: Form) -> None:
    entered = asyncio.Event()

    async def limited() -> None:
        async with form(LONG):
            entered.set()
            await forever()

    task = asyncio.create_task(limited())
    await entered.wait()
    task.cancel()
    assert await ends_cancelled(task)


@both_forms
@pytest.mark.parametrize("first", ["deadline", "others"])
@in_loop
async def test_timeout_with_cancellation_by_others_in_the_same_turn_ends_cancelled(
    form: Form, first: str
) -> None:
    async def limited() -> None:
        task = this_task()
        loop = asyncio.get_running_loop()
        if first == "others":
            loop.call_soon(task.cancel)
        async with form(0):  # expires in the next turn of the loop
            if first == "deadline":
                loop.call_soon(task.cancel)
            await forever()

    task = asyncio.create_task(limited())
    assert await ends_cancelled(task)


@both_forms
@in_loop
async def test_timeout_entered_by_a_task_being_cancelled_still_works(form: Form) -> None:
    async def cleaning_up() -> None:
        try:
            await forever()
        finally:
            with pytest.raises(TimeoutError):
                async with form(SHORT):
                    await forever()

    task = asyncio.create_task(cleaning_up())
    await asyncio.sleep(0)
    task.cancel()
    assert await ends_cancelled(task)


@both_forms
@pytest.mark.parametrize("sooner", ["inner", "outer"])
@in_loop
async def test_timeouts_nested_raise_at_the_one_that_passed(form: Form, sooner: str) -> None:
    outer_seconds, inner_seconds = (SHORT, LONG) if sooner == "outer" else (LONG, SHORT)
    with pytest.raises(TimeoutError):
        async with form(outer_seconds) as outer, form(inner_seconds) as inner:
            await forever()
    assert (outer.expired, inner.expired) == (sooner == "outer", sooner == "inner")
    assert this_task().cancelling() == 0


@in_loop
async def test_timeout_used_again_starts_anew() -> None:
    deadline = quiet(SHORT)

    async def expire() -> None:
        async with deadline:
            assert not deadline.expired
            await forever()

    for _ in range(2):
        with pytest.raises(TimeoutError):
            await expire()


@in_loop
async def test_timeout_used_again_with_cancellation_by_others_ends_cancelled() -> None:
    deadline = quiet(SHORT)
    with pytest.raises(TimeoutError), deadline:
        await forever()

    async def limited() -> None:
        with deadline:
            this_task().cancel()
            await forever()

    assert await ends_cancelled(asyncio.create_task(limited()))


@in_loop
async def test_timeout_entered_inside_itself_is_refused() -> None:
    deadline = quiet(LONG)
    with deadline, pytest.raises(RuntimeError, match="entered already"):
        deadline.__enter__()


def test_timeout_outside_a_loop_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        quiet(1)


@in_loop
async def test_timeout_outside_a_task_is_refused() -> None:
    refused: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def callback() -> None:
        with pytest.raises(RuntimeError, match="inside a task") as caught:
            quiet(1).__enter__()
        refused.set_result(caught.value)

    asyncio.get_running_loop().call_soon(callback)
    await refused


@in_loop
async def test_timeout_warns_that_it_is_deprecated() -> None:
    with pytest.warns(DeprecationWarning, match=r"timeout\.timeout is deprecated") as caught:
        timeout(1)
    assert [record.filename for record in caught] == [__file__]
    assert "asyncio.timeout()" in str(caught[0].message)


@in_loop
async def test_timeout_with_loop_warns_of_that_too_and_uses_it() -> None:
    with pytest.warns(DeprecationWarning, match="deprecated") as caught:
        deadline = timeout(SHORT, loop=asyncio.get_running_loop())
    assert [record.filename for record in caught] == [__file__] * 2
    assert "loop argument" in str(caught[1].message)
    with pytest.raises(TimeoutError):
        async with deadline:
            await forever()
