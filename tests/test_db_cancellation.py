"""`aatomic` cancelled at every point: committed or rolled back, never in between, and CancelledError is raised."""

import asyncio
import logging

import pytest
from django.db import DatabaseError, connection, transaction
from django.db.transaction import Atomic

from django_asyncbridge.bridge import sync
from django_asyncbridge.bridge.sync import async_to_sync, sync_to_async
from django_asyncbridge.db import aatomic
from tests.db_support import (
    Gate,
    Run,
    cancelled,
    create,
    gate_before,
    in_both_homes,
    names,
    turns,
    until,
)

pytestmark = [pytest.mark.django_db(transaction=True), in_both_homes]


async def block(name: str = "in the block") -> None:
    """Be one transaction."""
    async with aatomic():
        await create(name)


async def busy_home() -> tuple[Gate, "asyncio.Task[None]"]:
    """Keep the home thread busy until the gate is opened."""
    gate = Gate()
    task = asyncio.ensure_future(sync_to_async(gate.pass_through)())
    await until(gate.reached)
    return gate, task


def test_cancelled_while_entering_waits_begins_nothing(run: Run) -> None:
    entered: list[Atomic] = []

    async def main() -> None:
        gate, busy = await busy_home()
        task = asyncio.create_task(block())
        await turns()
        task.cancel()
        # Before the thread is free.
        await cancelled(task)
        gate.opened.set()
        await busy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Atomic, "__enter__", entered.append)
        run(main)
    assert entered == []
    assert names() == []


@pytest.mark.parametrize("times", [1, 3])
def test_cancelled_while_entering_runs_is_rolled_back(run: Run, times: int) -> None:
    async def main() -> None:
        with gate_before("__enter__") as gate:
            task = asyncio.create_task(block())
            await until(gate.reached)
            for _ in range(times):
                task.cancel()
                await turns()
            assert not task.done()
            gate.opened.set()
            await cancelled(task)
        assert task.cancelling() == times

    run(main)
    assert names() == []


def test_cancelled_again_while_entering_is_undone_is_rolled_back(run: Run) -> None:
    async def main() -> None:
        with gate_before("__enter__") as entering, gate_before("__exit__") as leaving:
            task = asyncio.create_task(block())
            await until(entering.reached)
            task.cancel()
            entering.opened.set()
            await until(leaving.reached)
            task.cancel()
            await turns()
            assert not task.done()
            leaving.opened.set()
            await cancelled(task)

    run(main)
    assert names() == []


def test_cancelled_in_the_body_is_rolled_back(run: Run) -> None:
    async def main() -> None:
        inside = asyncio.Event()

        async def waiting() -> None:
            async with aatomic():
                await create("in the block")
                inside.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(waiting())
        await inside.wait()
        task.cancel()
        await cancelled(task)

    run(main)
    assert names() == []


def test_cancelled_while_leaving_waits_is_rolled_back(run: Run) -> None:
    async def main() -> None:
        inside, go = asyncio.Event(), asyncio.Event()

        async def waiting() -> None:
            async with aatomic():
                await create("in the block")
                inside.set()
                await go.wait()

        task = asyncio.create_task(waiting())
        await inside.wait()
        gate, busy = await busy_home()
        go.set()
        await turns()
        for _ in range(2):
            task.cancel()
            await turns()
        # It cannot be withdrawn.
        assert not task.done()
        gate.opened.set()
        await cancelled(task)
        await busy

    run(main)
    assert names() == []


def test_cancelled_while_commit_runs_is_committed_with_its_callbacks(run: Run) -> None:
    ran: list[str] = []

    async def from_callback() -> None:
        # Not cancelled: the block is completed as if nothing had happened.
        await turns()
        ran.append("async")

    async def committing() -> None:
        async with aatomic():
            await create("in the block")
            await sync_to_async(transaction.on_commit)(async_to_sync(from_callback))
            await sync_to_async(transaction.on_commit)(lambda: ran.append("sync"))

    async def main() -> None:
        with gate_before("__exit__") as gate:
            task = asyncio.create_task(committing())
            await until(gate.reached)
            task.cancel()
            await turns()
            assert not task.done()
            gate.opened.set()
            await cancelled(task)

    run(main)
    assert names() == ["in the block"]
    assert ran == ["async", "sync"]


def test_cancelled_while_commit_fails_has_the_error_as_cause_and_logs_it(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*args: object) -> None:
        raise DatabaseError("no commit")

    async def main() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(connection._connections["default"]), "commit", failing)  # type: ignore[attr-defined]
            with gate_before("__exit__") as gate:
                task = asyncio.create_task(block())
                await until(gate.reached)
                task.cancel()
                await turns()
                gate.opened.set()
                with pytest.raises(asyncio.CancelledError) as info:
                    await task
        assert isinstance(info.value.__cause__, DatabaseError)

    with caplog.at_level(logging.WARNING, sync.__name__):
        run(main)
    assert "raised after its call was cancelled" in caplog.text
    assert names() == []


@pytest.mark.parametrize("where", ["__enter__", "body"])
def test_cancelled_and_rollback_fails_is_logged_and_ends_cancelled(
    run: Run, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    original = Atomic.__exit__

    def failing(self: Atomic, *args: object) -> None:
        original(self, *args)  # type: ignore[arg-type]
        raise DatabaseError("no rollback")

    async def main() -> None:
        inside = asyncio.Event()

        async def waiting() -> None:
            async with aatomic():
                inside.set()
                await asyncio.Event().wait()

        with pytest.MonkeyPatch.context() as patch, gate_before("__enter__") as gate:
            patch.setattr(Atomic, "__exit__", failing)
            task = asyncio.create_task(waiting())
            await until(gate.reached)
            if where == "__enter__":
                task.cancel()
            gate.opened.set()
            if where == "body":
                await inside.wait()
                task.cancel()
            await cancelled(task)

    with caplog.at_level(logging.WARNING, "django_asyncbridge.db"):
        run(main)
    assert [record.name for record in caplog.records] == ["django_asyncbridge.db"]
    assert "no rollback" in caplog.text


def test_timeout_in_the_body_raises_timeout_error_and_leaves_task_uncancelled(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):  # noqa: PT012  # the block is what raises
            async with asyncio.timeout(None) as limit, aatomic():
                await create("in the block")
                limit.reschedule(0)
                await asyncio.Event().wait()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await block("after")

    run(main)
    assert names() == ["after"]


def test_timeout_while_commit_runs_raises_timeout_error_and_is_committed(run: Run) -> None:
    async def main() -> None:
        async def committing() -> None:
            async with asyncio.timeout(None) as limit:
                limits.append(limit)
                await block()

        limits: list[asyncio.Timeout] = []
        with gate_before("__exit__") as gate:
            task = asyncio.create_task(committing())
            await until(gate.reached)
            limits[0].reschedule(0)
            while not task.cancelling():
                await asyncio.sleep(0)
            gate.opened.set()
            with pytest.raises(TimeoutError):
                await task
            assert task.cancelling() == 0

    run(main)
    assert names() == ["in the block"]


def test_task_group_that_fails_rolls_back_the_block_of_its_other_task(run: Run) -> None:
    async def main() -> None:
        inside = asyncio.Event()

        async def waiting() -> None:
            async with aatomic():
                await create("in the block")
                inside.set()
                await asyncio.Event().wait()

        async def failing() -> None:
            await inside.wait()
            raise KeyError("of the group")

        async def both() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(waiting())
                group.create_task(failing())

        with pytest.raises(ExceptionGroup) as info:
            await both()
        assert [type(error) for error in info.value.exceptions] == [KeyError]

    run(main)
    assert names() == []


def test_cancelled_nested_block_leaves_the_outer_one_whole(run: Run) -> None:
    async def main() -> None:
        async with aatomic():
            await create("outer")
            with gate_before("__enter__") as gate:
                task = asyncio.create_task(block("nested"))
                await until(gate.reached)
                task.cancel()
                gate.opened.set()
                await cancelled(task)
            await block("nested again")

    run(main)
    assert names() == ["nested again", "outer"]


def test_cancelled_at_any_turn_of_the_loop_is_all_or_nothing(run: Run) -> None:
    """Both rows or none, and the next block finds everything as it should be."""
    outcomes: list[str] = []

    async def work(number: int) -> None:
        async with aatomic():
            await create(f"{number} a")
            async with aatomic():
                await create(f"{number} b")

    async def main() -> None:
        for number in range(61):
            task = asyncio.create_task(work(number))
            await turns(number)
            task.cancel()
            await asyncio.wait([task])
            outcomes.append("cancelled" if task.cancelled() else "done")
            if not task.cancelled():
                task.result()
        await work(61)

    run(main)
    written = names()
    for number, outcome in enumerate([*outcomes, "done"]):
        rows = [row for row in written if row.startswith(f"{number} ")]
        assert rows in ([], [f"{number} a", f"{number} b"])
        assert rows or outcome == "cancelled"
    assert outcomes[0] == "cancelled"


@pytest.mark.parametrize("where", ["waits", "runs"])
def test_coroutine_closed_while_entering_leaves_no_transaction(run: Run, where: str) -> None:
    """Nothing can be awaited then: the thread sees to it itself."""

    async def main() -> None:
        with gate_before("__enter__") as gate:
            if where == "waits":
                busy_gate, busy = await busy_home()
            coroutine = block()
            coroutine.send(None)
            if where == "runs":
                await until(gate.reached)
            coroutine.close()
            gate.opened.set()
            if where == "waits":
                busy_gate.opened.set()
                await busy

    run(main)
    assert names() == []


def test_coroutine_closed_when_entering_has_run_leaves_no_transaction(run: Run) -> None:
    async def main() -> None:
        coroutine = block()
        coroutine.send(None)
        # The home thread does one thing after the other.
        await sync_to_async(lambda: None)()
        coroutine.close()

    run(main)
    assert names() == []


def test_coroutine_closed_in_the_body_is_rolled_back(run: Run) -> None:
    """Python complains that the block waits; its end is on its way and goes on."""

    async def main() -> None:
        async def waiting() -> None:
            async with aatomic():
                await go

        go: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        coroutine = waiting()
        coroutine.send(None)
        # The home thread does one thing after the other, so it has entered the block.
        await sync_to_async(lambda: None)()
        assert coroutine.send(None) is go
        with gate_before("__exit__") as gate:
            with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
                coroutine.close()
            coroutine.close()
            gate.opened.set()
            await sync_to_async(lambda: None)()
        assert gate.reached.is_set()

    run(main)
