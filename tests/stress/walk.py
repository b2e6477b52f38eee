"""Goes through the nodes of a plan: what both sides have in common, and the steps of sync code.

The steps of async code are in `steps`, which makes the whole of it.
"""

import asyncio
import contextvars
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from django_asyncbridge.bridge.sync import AsyncSingleThreadContext, async_to_sync
from tests.stress.forks import fork
from tests.stress.model import Flow, Homes, Left, Report, Scene, Shadow, Variables
from tests.stress.plan import Node, Outcome, Step, outcome_of
from tests.stress.watch import Before, install

__all__ = ("Got", "Here", "PlannedError", "Walk")


class PlannedError(Exception):
    """An exception of the plan."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True)
class Here:
    """What the model knows of one place in the tree."""

    scene: Scene
    flow: Flow
    shadow: Shadow

    def apart(self, flow: Flow | None = None) -> "Here":
        """Return the place of a call whose changes of variables stay its own, as a task's do."""
        return Here(self.scene, flow or self.flow, dict(self.shadow))


class Got:
    """What a call returned."""

    value = 0


class Walk(ABC):
    """Walks through nodes, compares all the way, and tells `report` what is wrong.

    May be used by any number of threads.
    """

    def __init__(self, report: Report, variables: Variables | None = None) -> None:
        self.report = report
        self.homes = Homes(report)
        self.variables = variables or Variables()
        self.sync_kinds: dict[str, Callable[[Step, Here], int]] = {
            "set": self.set_variable,
            "pause": self.pause_in_thread,
            "fail": self.fail,
            "token": self.token_in_thread,
            "call": self.call,
            "swallow": self.swallow,
            "single": self.single,
            "fork": self.fork,
        }

    # --- both sides -------------------------------------------------------------

    def look(self, here: Here) -> None:
        """Check that the variables are what they should be here."""
        seen = self.variables.seen()
        self.report.check(seen == here.shadow, f"variables: saw {seen}, expected {here.shadow}")

    @contextmanager
    def judged(self, node: Node, here: Here) -> Iterator[Got]:
        """Check how the call of a node in this block ends."""
        got = Got()
        try:
            yield got
        except PlannedError as error:
            self._judge(node, here, Outcome(failed=error.number))
            last = traceback.extract_tb(error.__traceback__)[-1].name
            self.report.check(last in ("fail", "group"), f"a traceback that ends in {last}")
            raise
        except asyncio.CancelledError:
            self.report.check(here.flow.disturbed, f"node {node.number} was cancelled by nobody")
            raise
        except BaseException:
            self.report.fail(f"node {node.number} failed unexpectedly: {traceback.format_exc()}")
            raise
        self._judge(node, here, Outcome(got.value))

    def _judge(self, node: Node, here: Here, outcome: Outcome) -> None:
        expected = outcome_of(node)
        right = outcome == expected or here.flow.disturbed
        self.report.check(right, f"node {node.number}: got {outcome}, expected {expected}")

    def set_variable(self, step: Step, here: Here) -> int:
        """Set a variable."""
        self.variables.set(step.variable, f"by {step.number}", here.shadow)
        return 0

    def fail(self, step: Step, here: Here) -> NoReturn:
        """Fail as planned."""
        raise PlannedError(step.number)

    def begin_token(self, step: Step, here: Here) -> tuple[Any, str | None]:
        """Set a variable; return what it takes to undo that."""
        before = here.shadow.get(step.variable)
        token = self.variables.vars[step.variable].set(f"in {step.number}")
        here.shadow[step.variable] = f"in {step.number}"
        return token, before

    def end_token(self, step: Step, here: Here, begun: tuple[Any, str | None]) -> None:
        """Undo `begin_token`."""
        token, before = begun
        try:
            self.variables.vars[step.variable].reset(token)
        except ValueError as error:
            self.report.fail(f"token of step {step.number}: {error}")
            return
        if before is None:
            del here.shadow[step.variable]
        else:
            here.shadow[step.variable] = before

    # --- sync code --------------------------------------------------------------

    def sync_node(self, node: Node, here: Here) -> int:
        """Be a sync function of the plan."""
        self.report.check(not _loop_runs(), "sync code runs in a thread with a running loop")
        self.look(here)
        return node.number + self.sync_steps(node.steps, here)

    def sync_steps(self, steps: tuple[Step, ...], here: Here) -> int:
        """Do steps in order."""
        return sum(self.sync_step(step, here) for step in steps)

    def sync_step(self, step: Step, here: Here) -> int:
        """Do one step; look at the variables after it, however it ended."""
        self.report.count(step.kind)
        thread = threading.current_thread()
        try:
            return self.sync_kinds[step.kind](step, here)
        except PlannedError:
            if not step.catch:
                raise
            return 1
        finally:
            self.look(here)
            self.report.check(threading.current_thread() is thread, "the thread has changed")

    def pause_in_thread(self, step: Step, here: Here) -> int:
        """Block the thread for a moment."""
        time.sleep(min(step.pause, 0.003))
        return 0

    def token_in_thread(self, step: Step, here: Here) -> int:
        """Set a variable around steps, and reset it."""
        begun = self.begin_token(step, here)
        try:
            return self.sync_steps(step.steps, here)
        finally:
            self.end_token(step, here, begun)

    def call(self, step: Step, here: Here) -> int:
        """Call an async node, which makes this thread home for all below."""
        (node,) = step.nodes
        scene = replace(here.scene, caller=threading.current_thread())
        if step.flag or here.scene.loop is None:
            scene = replace(scene, loop=None, left=[])
        below = replace(here, scene=scene)
        try:
            with self.judged(node, below) as got:
                got.value = async_to_sync(self.enter, force_new_loop=step.flag)(node, below)
        finally:
            if scene.loop is None:
                self.check_left(scene.left)
        return got.value

    async def enter(self, node: Node, here: Here) -> int:
        """Be the first coroutine below a sync caller."""
        loop = asyncio.get_running_loop()
        scene = here.scene
        if scene.loop is not None:
            self.report.check(loop is scene.loop, "not on the loop that waits for the caller")
            return await self.async_node(node, here)
        if scene.single is not None:
            self.homes.check_same(scene.single)
        with self.homes.own_loop(loop):
            return await self.async_node(node, replace(here, scene=replace(scene, loop=loop)))

    @abstractmethod
    async def async_node(self, node: Node, here: Here) -> int:
        """Be an async function of the plan."""

    def check_left(self, left: list[Left]) -> None:
        """Check that a loop has ended what was left on it."""
        for one in left:
            self.report.check(one.is_over(), f"was left and has not ended: {one.kept!r}")

    def swallow(self, step: Step, here: Here) -> int:
        """Call an async node and ignore whatever it raises, also a cancellation (P5)."""
        try:
            self.call(step, here)
        except (PlannedError, asyncio.CancelledError):
            self.report.count("swallowed")
        return 0

    def single(self, step: Step, here: Here) -> int:
        """Do steps in an `AsyncSingleThreadContext`; the outermost decides."""
        with AsyncSingleThreadContext(), self.homes.place("single") as name:
            scene = replace(here.scene, single=here.scene.single or name)
            return self.sync_steps(step.steps, replace(here, scene=scene))

    # --- fork -------------------------------------------------------------------

    def fork(self, step: Step, here: Here) -> int:
        """Fork a child that walks through a tree of its own, in this context or a new one."""
        (node,) = step.nodes
        if step.flag:
            inherited = Here(Scene(context="inherited"), Flow(), dict(here.shadow))
            self.fork_child(node, inherited)
        else:
            self.fork_child(node, Here(Scene(), Flow(), {}), contextvars.Context())
        return 0

    def fork_child(
        self, node: Node, here: Here, context: contextvars.Context | None = None
    ) -> None:
        """Fork a child for a tree, and check what it tells."""

        def child() -> tuple[
            Outcome, list[str]
        ]:  # pragma: no cover  # nor is what it calls: see forks
            return type(self)(Report(), self.variables).as_child(node, here)

        told = fork(child if context is None else lambda: context.run(child))
        expected = [list(outcome_of(node)), []]
        self.report.check(told == expected, f"a child of {node.number} told {told}")

    def as_child(self, node: Node, here: Here) -> tuple[Outcome, list[str]]:  # pragma: no cover
        """Walk through a tree in a forked child; return the outcome and what is wrong."""
        install(self.report)
        before = Before()
        outcome = self.root(node, here)
        before.check(self.report)
        return outcome, self.report.failures

    def root(self, node: Node, here: Here) -> Outcome:
        """Start a tree in this thread, which nobody waits for."""
        try:
            with self.judged(node, here) as got:
                if node.is_async:  # pragma: no cover
                    got.value = asyncio.run(self.alone(node, here))
                else:
                    got.value = self.sync_node(node, here)
        except PlannedError as error:  # pragma: no cover
            return Outcome(failed=error.number)
        except (Exception, asyncio.CancelledError):  # pragma: no cover
            return Outcome(failed=-1)  # reported already
        finally:
            self.check_left(here.scene.left)
        return Outcome(got.value)

    async def alone(self, node: Node, here: Here) -> int:  # pragma: no cover
        """Be the first coroutine of a loop in this thread."""
        loop = asyncio.get_running_loop()
        with self.homes.own_loop(loop):
            scene = replace(here.scene, loop=loop)
            return await self.async_node(node, replace(here.apart(), scene=scene))


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
