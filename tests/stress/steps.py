"""The steps of async code, and so the whole walk."""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from django_asyncbridge.bridge.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from tests.stress.model import SHARED, Flow, Left, Report, Variables
from tests.stress.plan import Node, Step, outcome_of
from tests.stress.walk import Here, PlannedError, Walk

__all__ = ("Walker",)

# Never reached: whoever waits so long is cancelled, or else the run's own limit says where it stands.
_FOR_EVER_SECONDS = 3600
_PROBE_SECONDS = 20


class Walker(Walk):
    """Walks through nodes of both kinds."""

    def __init__(self, report: Report, variables: Variables | None = None) -> None:
        super().__init__(report, variables)
        self.async_kinds: dict[str, Callable[[Step, Here], Awaitable[int]]] = {
            "set": self.set_in_task,
            "pause": self.pause,
            "fail": self.fail_in_task,
            "token": self.token,
            "sensitive": self.sensitive,
            "free": self.free,
            "executor": self.executor,
            "own_context": self.own_context,
            "await": self.await_node,
            "task": self.task,
            "gather": self.gather,
            "group": self.group,
            "timeout": self.timeout,
            "cancel": self.cancel,
            "context": self.context,
            "own_thread": self.own_thread,
            "leave": self.leave,
            "forever": self.forever,
        }

    async def async_node(self, node: Node, here: Here) -> int:
        """Be an async function of the plan."""
        self.report.check(
            asyncio.get_running_loop() is here.scene.loop, "a task on another loop than its parent"
        )
        self.look(here)
        return node.number + await self.async_steps(node.steps, here)

    async def async_steps(self, steps: tuple[Step, ...], here: Here) -> int:
        """Do steps in order."""
        value = 0
        for step in steps:
            value += await self.async_step(step, here)
        return value

    async def async_step(self, step: Step, here: Here) -> int:
        """Do one step; look at the variables after it, however it ended."""
        self.report.count(step.kind)
        try:
            return await self.async_kinds[step.kind](step, here)
        except PlannedError:
            if not step.catch:
                raise
            return 1
        finally:
            self.look(here)

    async def called(self, node: Node, here: Here) -> int:
        """Call an async node."""
        with self.judged(node, here) as got:
            got.value = await self.async_node(node, here)
        return got.value

    # --- simple steps -----------------------------------------------------------

    async def set_in_task(self, step: Step, here: Here) -> int:
        """Set a variable."""
        return self.set_variable(step, here)

    async def fail_in_task(self, step: Step, here: Here) -> int:
        """Fail as planned."""
        self.fail(step, here)

    async def pause(self, step: Step, here: Here) -> int:
        """Let others run, for some turns of the loop or some time."""
        if isinstance(step.pause, int):
            for _ in range(step.pause):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(step.pause)
        return 0

    async def forever(self, step: Step, here: Here) -> int:
        """Wait to be cancelled."""
        await asyncio.sleep(_FOR_EVER_SECONDS)
        raise AssertionError("nobody cancelled what waits for ever")

    async def token(self, step: Step, here: Here) -> int:
        """Set a variable in one call and reset it in another, around steps (P3)."""
        begun = await sync_to_async(self.begin_token)(step, here)
        if not step.flag:
            value = await self.async_steps(step.steps, here)
            await sync_to_async(self.end_token)(step, here, begun)
            return value
        try:
            return await self.async_steps(step.steps, here)
        finally:
            await sync_to_async(self.end_token)(step, here, begun)

    # --- crossings --------------------------------------------------------------

    async def sensitive(self, step: Step, here: Here) -> int:
        """Call a sync node at home."""
        (node,) = step.nodes
        with self.judged(node, here) as got:
            got.value = await sync_to_async(self.at_home)(node, here)
        return got.value

    def at_home(self, node: Node, here: Here) -> int:
        """Be a sync function that must run at home (P1)."""
        self.homes.check(here.scene.home)
        return self.sync_node(node, here)

    async def own_context(self, step: Step, here: Here) -> int:
        """Call a sync node at home in a context of its own."""
        (node,), apart = step.nodes, here.apart()
        with self.judged(node, apart) as got:
            in_copy = sync_to_async(self.at_home, context=contextvars.copy_context())
            got.value = await in_copy(node, apart)
        return got.value

    async def free(self, step: Step, here: Here) -> int:
        """Call a sync node in any thread that is nobody's home."""
        (node,) = step.nodes
        with self.judged(node, here) as got:
            got.value = await sync_to_async(self.aside, thread_sensitive=False)(node, here)
        return got.value

    def aside(self, node: Node, here: Here, executor: str = "") -> int:
        """Be a sync function that runs beside others."""
        with self.homes.aside(executor):
            return self.sync_node(node, here)

    async def executor(self, step: Step, here: Here) -> int:
        """Call a sync node in an executor, and see that its thread is as before afterwards (P2)."""
        (node,), name = step.nodes, f"stress-{step.number}_"
        with ThreadPoolExecutor(1, thread_name_prefix=name) as executor:
            try:
                with self.judged(node, here) as got:
                    in_executor = sync_to_async(
                        self.aside, thread_sensitive=False, executor=executor
                    )
                    got.value = await in_executor(node, here, name)
            finally:
                executor.submit(self.probe, here).result(_PROBE_SECONDS)
        return got.value

    def probe(self, here: Here) -> None:
        """Look, in a thread where a call has ended, whether it has left a trace."""
        self.report.check(not self.variables.seen(), "variables stayed in an executor's thread")
        loop = async_to_sync(_running_loop)()
        self.report.check(loop is not here.scene.loop, "a thread still knows the loop of a call")

    # --- async code calling async code --------------------------------------------

    async def await_node(self, step: Step, here: Here) -> int:
        """Await a node in the same task."""
        return await self.called(step.nodes[0], here)

    async def task(self, step: Step, here: Here) -> int:
        """Await a node in a task of its own."""
        return await asyncio.create_task(self.called(step.nodes[0], here.apart()))

    async def gather(self, step: Step, here: Here) -> int:
        """Await several nodes at once, however they end."""
        results = await asyncio.gather(
            *(self.called(node, here.apart()) for node in step.nodes), return_exceptions=True
        )
        return sum(result if isinstance(result, int) else 1 for result in results)

    async def group(self, step: Step, here: Here) -> int:
        """Await several nodes in a TaskGroup: the first that fails cancels the others."""
        fails = any(outcome_of(node).failed for node in step.nodes)
        flow = Flow(here.flow, disturbed=fails)
        task = _current_task()
        # A cancellation that is counted already but comes with the next await would be taken for an old one.
        await asyncio.sleep(0)
        cancelling = task.cancelling()
        try:
            async with asyncio.TaskGroup() as group:
                calls = [self.called(node, here.apart(flow)) for node in step.nodes]
                tasks = [group.create_task(call) for call in calls]
                # Not in the group's own wait at the end: that counts cancellations wrongly before 3.13.
                await asyncio.wait(tasks)
        except BaseExceptionGroup as errors:
            strange = errors.split(PlannedError)[1]
            self.report.check(strange is None, f"a group failed with {strange!r}")
            if task.cancelling() > cancelling:  # pragma: no cover  # it takes the right moment
                # asyncio prefers the errors, and would so lose the cancellation; from 3.13 on it comes
                # once more with the next await.
                await asyncio.sleep(0)
                raise asyncio.CancelledError from None
            raise PlannedError(step.number) from None
        return sum(task.result() for task in tasks)

    # --- cancellation ---------------------------------------------------------------

    async def timeout(self, step: Step, here: Here) -> int:
        """Call a node with too little time, or just enough."""
        seconds = step.pause / 2000 if isinstance(step.pause, int) else step.pause
        inside = replace(here, flow=Flow(here.flow, disturbed=True))
        try:
            async with asyncio.timeout(seconds):
                await self.called(step.nodes[0], inside)
        except TimeoutError:
            self.report.count("timed out")
        except PlannedError:
            self.report.count("failed in time")
        return 0

    async def cancel(self, step: Step, here: Here) -> int:
        """Call a node in a task and cancel that at some moment."""
        flow = Flow(here.flow)
        task = asyncio.create_task(self.called(step.nodes[0], here.apart(flow)))
        try:
            await self.pause(step, here)
        finally:
            flow.disturb()
            cancelled = task.cancel()
            if step.flag:
                asyncio.get_running_loop().call_soon(task.cancel)
            await _settle(task)
            self._check_end(task, cancelled)
        return 0

    def _check_end(self, task: "asyncio.Task[int]", cancelled: bool) -> None:
        """Check that a cancelled task ended cancelled (P5)."""
        self.report.count("cancelled" if cancelled else "too late to cancel")
        if not task.cancelled():
            error = task.exception()
            self.report.check(
                not cancelled, f"a cancelled task ended with {error!r} or a result: {task!r}"
            )

    # --- blocks -----------------------------------------------------------------------

    async def context(self, step: Step, here: Here) -> int:
        """Do steps in a `ThreadSensitiveContext`; the outermost decides."""
        async with ThreadSensitiveContext():
            with self.homes.place("context") as name:
                old = here.scene.context
                scene = replace(here.scene, context=name if old == SHARED else old)
                return await self.async_steps(step.steps, replace(here, scene=scene))

    async def own_thread(self, step: Step, here: Here) -> int:
        """Do steps in a `ThreadSensitiveContext` with an executor, which comes before all others."""
        name = f"own-{step.number}_"
        with ThreadPoolExecutor(1, thread_name_prefix=name) as executor:
            async with ThreadSensitiveContext(executor=executor):
                with self.homes.place("own") as home:
                    scene = replace(here.scene, context=home, caller=None)
                    return await self.async_steps(step.steps, replace(here, scene=scene))

    # --- what is left to the end of the loop ------------------------------------------

    async def leave(self, step: Step, here: Here) -> int:
        """Leave a task and a generator to the end of the loop (P6)."""
        task, generator = Left(), Left()
        task.kept = asyncio.create_task(self.linger(task, step, here.apart(Flow(disturbed=True))))
        endless = self.endless(generator)
        generator.kept = endless
        here.scene.left.extend((task, generator))
        await anext(endless)
        return 0

    async def linger(self, left: Left, step: Step, here: Here) -> None:
        """Wait for the end of the loop; then, where it is known which thread is home, go there once more."""
        with left.alive():
            try:
                await asyncio.sleep(_FOR_EVER_SECONDS)
            finally:
                if step.flag:
                    await sync_to_async(self.at_home)(Node(step.number, False, ()), here)

    async def endless(self, left: Left) -> AsyncIterator[None]:
        """Be a generator that nobody exhausts."""
        with left.alive():
            while True:
                yield


async def _settle(task: "asyncio.Task[Any]") -> None:
    """Wait until a task is done; a cancellation meanwhile takes effect after that."""
    interrupted = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            interrupted = True
    if interrupted:
        raise asyncio.CancelledError


async def _running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def _current_task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None
    return task
