"""Calls whose end comes at an odd moment: at interpreter shutdown, just before a cancellation, inside submit."""

import asyncio
import logging
import sys
import threading
from concurrent.futures import Executor, Future
from contextvars import ContextVar
from typing import Any

import pytest

from django_asyncbridge.bridge._call import Call
from django_asyncbridge.bridge.sync import async_to_sync, sync_to_async
from tests.support import run_in_thread

variable: ContextVar[str] = ContextVar("variable", default="unset")


def test_own_loop_while_the_interpreter_finalizes_runs_in_the_calling_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P8: a thread could be started then, but would never run."""

    async def main() -> int:
        return threading.get_ident()

    def caller() -> bool:
        return async_to_sync(main)() == threading.get_ident()

    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    assert run_in_thread(caller)


def test_call_cancelled_after_it_failed_and_before_the_task_could_look_tells_of_the_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """P5: the task ends cancelled, and what the function raised is not lost."""
    tasks: list[asyncio.Task[Any]] = []
    complete = Call._complete

    def cancel_and_complete(call: Call) -> None:
        assert not call.done()
        tasks[0].cancel()
        complete(call)

    def fail() -> None:
        raise ValueError("expected")

    async def main() -> None:
        tasks.append(asyncio.create_task(sync_to_async(fail)()))
        await asyncio.wait(tasks)

    monkeypatch.setattr(Call, "_complete", cancel_and_complete)
    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert tasks[0].cancelled()
    assert [record.message for record in caplog.records if "after its call" in record.message]


class RunsThenRaises(Executor):
    """An executor that breaks after it has run the call."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        function(*args, **kwargs)
        raise RuntimeError("broken")


class RaisesFirst(Executor):
    """An executor that is broken."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> "Future[Any]":
        raise RuntimeError("broken")


@pytest.mark.parametrize("executor", [RunsThenRaises(), RaisesFirst()])
def test_call_whose_executor_raises_raises_that_and_changes_nothing(executor: Executor) -> None:
    call = sync_to_async(variable.set, thread_sensitive=False, executor=executor)

    async def main() -> None:
        with pytest.raises(RuntimeError, match="broken"):
            await call("set")
        assert variable.get() == "unset"

    asyncio.run(main())
