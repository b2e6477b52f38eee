"""`Turn`, `Watch` and `ForwardedInterrupt`, without a loop that runs."""

import asyncio
import functools
import math
import signal
from typing import Any

import pytest

from django_asyncbridge.bridge import _hosted_turn
from django_asyncbridge.bridge._hosted_turn import ForwardedInterrupt, Turn, Watch
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor
from tests.support import run_in_thread


@pytest.fixture
def executor() -> CurrentThreadExecutor:
    return CurrentThreadExecutor(None)


def test_turn_that_is_run_twice_runs_and_tells_once(executor: CurrentThreadExecutor) -> None:
    ran: list[str] = []
    turn = Turn(lambda: ran.append("ran"), executor)
    assert turn.wanted()
    turn.deliver()
    assert executor._queue.empty()
    for _ in range(2):
        turn.run()
        turn.deliver()
        assert ran == ["ran"]
        assert turn.is_done()
        assert not turn.wanted()
    turn.drop(None)
    assert turn.refusal is None
    assert executor._queue.get() is None
    assert executor._queue.empty()


def test_turn_whose_loop_raises_keeps_the_error(executor: CurrentThreadExecutor) -> None:
    error = SystemExit(3)

    def fail() -> None:
        raise error

    turn = Turn(fail, executor)
    turn.run()
    assert turn.is_done()
    assert turn.error is error


def test_turn_that_is_dropped_says_why(executor: CurrentThreadExecutor) -> None:
    turn = Turn(lambda: None, executor)
    turn.drop(RuntimeError("no thread"))
    assert turn.is_done()
    assert str(turn.refusal) == "no thread"
    assert executor._queue.get() is None


def test_watch_raises_only_what_has_waited_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    assert watch.look() > 0
    watch.interruption = LookupError()
    assert watch.look() > 0
    monkeypatch.setattr(_hosted_turn, "_STUCK_SECONDS", -math.inf)
    watch._until = -math.inf
    with pytest.raises(LookupError) as caught:
        watch.look()
    assert "did not stop" in caught.value.__notes__[0]


class _Interrupts:
    """A runner's handler as asyncio installs it, and what it was called with."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.loop = self.runner.get_loop()
        task: Any = self.loop.create_future()
        self.task = task
        on_sigint: Any = getattr(self.runner, "_on_sigint")  # noqa: B009  # private
        self.handler = functools.partial(on_sigint, main_task=task)


@pytest.fixture
def interrupts() -> Any:
    interrupts = _Interrupts()
    before = signal.signal(signal.SIGINT, interrupts.handler)
    yield interrupts
    signal.signal(signal.SIGINT, before)
    interrupts.runner.close()


def test_interrupt_is_handled_by_the_loop(interrupts: _Interrupts) -> None:
    with ForwardedInterrupt(interrupts.loop):
        signal.raise_signal(signal.SIGINT)
        assert not interrupts.task.cancelled()
        interrupts.loop.run_until_complete(asyncio.sleep(0))
        assert interrupts.task.cancelled()
    assert signal.getsignal(signal.SIGINT) is interrupts.handler


def test_interrupt_that_the_loop_does_not_come_to_is_handled_at_the_end(
    interrupts: _Interrupts,
) -> None:
    with ForwardedInterrupt(interrupts.loop):
        signal.raise_signal(signal.SIGINT)
        assert not interrupts.task.cancelled()
    assert interrupts.task.cancelled()
    interrupts.loop.run_until_complete(asyncio.sleep(0))


def test_second_interrupt_raises_at_once(interrupts: _Interrupts) -> None:
    with ForwardedInterrupt(interrupts.loop):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert interrupts.task.cancelled()


def test_handler_installed_meanwhile_stays(interrupts: _Interrupts) -> None:
    with ForwardedInterrupt(interrupts.loop):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_handler_in_another_thread_stays(interrupts: _Interrupts) -> None:
    def enter() -> None:
        with ForwardedInterrupt(interrupts.loop):
            assert signal.getsignal(signal.SIGINT) is interrupts.handler

    run_in_thread(enter)


def test_handler_of_somebody_else_stays(interrupts: _Interrupts) -> None:
    handler = functools.partial(lambda number, frame: None)
    signal.signal(signal.SIGINT, handler)
    with ForwardedInterrupt(interrupts.loop):
        assert signal.getsignal(signal.SIGINT) is handler
