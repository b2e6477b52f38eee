"""Work items: run once at most, delivered or dropped in any case, and nothing kept."""

import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, wait
from typing import Any

import pytest

from django_asyncbridge.bridge._work import FutureWork, Work, WorkExecutor
from tests.bridge import LIMIT_SECONDS, Tracked, without_gc
from tests.bridge.pools import must_not_run


class Immediate(WorkExecutor):
    """Runs work as it comes."""

    def post(self, work: Work) -> None:
        work.run()
        work.deliver()


class Closed(WorkExecutor):
    def post(self, work: Work) -> None:
        raise RuntimeError("closed")


def fail(*things: object) -> None:
    raise ValueError(things)


def test_submit_gives_a_future_of_what_the_function_returns_or_raises() -> None:
    executor = Immediate()
    assert executor.submit(divmod, 7, 2).result(0) == (3, 1)
    assert executor.submit(int, "11", base=2).result(0) == 3
    assert isinstance(executor.submit(fail).exception(0), ValueError)


def test_submit_to_an_executor_that_takes_nothing_raises_what_that_says() -> None:
    with pytest.raises(RuntimeError, match="closed"):
        Closed().submit(print)


def test_work_does_not_complete_its_future_before_it_is_delivered() -> None:
    work = FutureWork(lambda: "result", (), {})
    work.run()
    assert not work.future.done()
    work.deliver()
    assert work.future.result(0) == "result"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), StopIteration(1)])
def test_work_hands_every_error_over(error: BaseException) -> None:
    def raise_it() -> None:
        raise error

    work = FutureWork(raise_it, (), {})
    work.run()
    work.deliver()
    assert work.future.exception(0) is error


def test_work_that_was_cancelled_does_not_run_and_tells_those_who_wait() -> None:
    work = FutureWork(must_not_run, (), {})
    assert work.wanted()
    work.future.cancel()
    assert not work.wanted()
    work.run()
    work.deliver()
    assert wait([work.future], LIMIT_SECONDS).done == {work.future}


def test_work_that_is_dropped_without_an_error_is_cancelled() -> None:
    work = FutureWork(must_not_run, (), {})
    work.drop(None)
    with pytest.raises(CancelledError):
        work.future.result(0)


def test_work_that_is_dropped_without_an_error_tells_those_who_wait_for_several() -> None:
    """As an executor of concurrent.futures does when it comes to what was cancelled."""
    work = FutureWork(must_not_run, (), {})
    work.drop(None)
    assert wait([work.future], 0).done == {work.future}


def test_work_that_is_dropped_with_an_error_raises_it() -> None:
    work = FutureWork(must_not_run, (), {})
    error = ValueError("dropped")
    work.drop(error)
    assert work.future.exception(0) is error


def test_work_that_is_dropped_when_it_was_cancelled_stays_cancelled() -> None:
    work = FutureWork(must_not_run, (), {})
    work.future.cancel()
    work.drop(ValueError("dropped"))
    assert work.future.cancelled()


def test_work_that_is_dropped_between_its_end_and_its_delivery_fails() -> None:
    """P4: an interruption of the thread that ran it; who submitted it must not wait for ever."""
    work = FutureWork(lambda: "lost", (), {})
    work.run()
    error = KeyboardInterrupt()
    work.drop(error)
    assert work.future.exception(0) is error


def test_work_that_is_dropped_after_its_delivery_keeps_its_result() -> None:
    work = FutureWork(lambda: "result", (), {})
    work.run()
    work.deliver()
    work.drop(KeyboardInterrupt())
    assert work.future.result(0) == "result"


def test_work_that_is_dropped_when_it_came_to_its_turn_cancelled_stays_as_it_is() -> None:
    work = FutureWork(must_not_run, (), {})
    work.future.cancel()
    work.run()
    work.drop(ValueError("dropped"))
    assert work.future.cancelled()


@pytest.mark.parametrize("function", [id, fail])
@pytest.mark.parametrize("drop", [False, True])
def test_work_that_is_over_keeps_nothing_of_its_call_alive(
    function: Callable[..., Any], drop: bool
) -> None:
    """P7: not even with an error, once that is gone."""
    with without_gc():
        tracked: list[Any] = [Tracked()]
        alive = weakref.ref(tracked[0])
        work = FutureWork(function, (tracked.pop(),), {})
        if drop:
            work.drop(None)
            # A queue may keep the item for long.
            assert alive() is None
        else:
            work.run()
            work.deliver()
            work.future.exception(0)
        del work
        assert alive() is None
