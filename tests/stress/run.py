"""One run: all roots of a plan at once, and what must be true when they have ended.

`main` is for a process of its own. When a run takes too long, that prints where every task and thread stands, and ends.
"""

import asyncio
import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from contextlib import AsyncExitStack
from dataclasses import replace

import uvloop

from django_asyncbridge.bridge.sync import ThreadSensitiveContext
from tests.stress.grow import grow
from tests.stress.model import Flow, Report, Scene
from tests.stress.plan import Plan, Root
from tests.stress.steps import Walker
from tests.stress.walk import Here
from tests.stress.watch import Before, install, set_limit

__all__ = ("LIMIT_SECONDS", "main", "run", "run_plan")

#: A run takes about a second; on a busy machine, measured by coverage, some.
LIMIT_SECONDS = 60


class _Run:
    """The roots of a plan, each in its place."""

    def __init__(self, plan: Plan, report: Report) -> None:
        self.plan = plan
        self.walker = Walker(report)

    def all_roots(self) -> None:
        """Run everything, and return when it has ended."""
        roots = [root for root in self.plan.roots if root.kind != "task"]
        threads = [threading.Thread(target=self.in_thread, args=(root,)) for root in roots]
        threads.append(threading.Thread(target=self.fork_at_times))
        for thread in threads:
            thread.start()
        self.on_new_loop([root for root in self.plan.roots if root.kind == "task"])
        for thread in threads:
            thread.join()

    def on_new_loop(self, roots: list[Root]) -> None:
        """Run roots as tasks of one loop in this thread."""
        here = Here(Scene(), Flow(), {})

        async def main() -> None:
            scene = replace(here.scene, loop=asyncio.get_running_loop())
            starts = (self.as_task(root, replace(here.apart(), scene=scene)) for root in roots)
            await asyncio.gather(*starts)

        asyncio.run(main())
        self.walker.check_left(here.scene.left)

    async def as_task(self, root: Root, here: Here) -> None:
        """Be a root in a task of its own."""
        async with AsyncExitStack() as stack:
            if root.in_context:
                await stack.enter_async_context(ThreadSensitiveContext())
                name = stack.enter_context(self.walker.homes.place("root"))
                here = replace(here, scene=replace(here.scene, context=name))
            for _ in range(root.repeat):
                # What is not planned is reported already; the others go on.
                with contextlib.suppress(Exception, asyncio.CancelledError):
                    await self.walker.called(root.node, here)

    def in_thread(self, root: Root) -> None:
        """Be a root in a thread of its own."""
        here = Here(Scene(), Flow(), {})
        for _ in range(root.repeat):
            if root.kind == "run":
                self.on_new_loop([replace(root, repeat=1)])
            else:
                self.walker.root(root.node, here)

    def fork_at_times(self) -> None:
        """Fork a child now and then, as a server does that forks beside its threads."""
        for fork in self.plan.forks:
            time.sleep(fork.delay_seconds)
            self.walker.fork_child(fork.node, Here(Scene(), Flow(), {}))


def run(seed: int) -> Report:
    """Run the plan of a seed in this process, and return what was wrong and what was done."""
    return run_plan(grow(seed))


def run_plan(plan: Plan) -> Report:
    """Run any plan."""
    report = Report()
    install(report)
    if plan.uvloop:
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    if plan.debug:
        os.environ["PYTHONASYNCIODEBUG"] = "1"
    before = Before()
    _Run(plan, report).all_roots()
    before.check(report)
    return report


def main(seed: int) -> int:
    """Run the plan of a seed, print what came of it, and return the exit code."""
    set_limit(LIMIT_SECONDS)
    # And if the main thread is stuck where no signal is handled.
    faulthandler.dump_traceback_later(LIMIT_SECONDS + 10, exit=True)
    begin = time.monotonic()
    report = run(seed)
    signal.alarm(0)
    faulthandler.cancel_dump_traceback_later()
    print(f"seed {seed}: {time.monotonic() - begin:.2f} s, {sum(report.counts.values())} steps")
    print(", ".join(f"{what} {count}" for what, count in sorted(report.counts.items())))
    if report.failures:
        print(f"\n{len(report.failures)} failures with seed {seed}", file=sys.stderr)
        print(f"again: python -m tests.stress {seed}", file=sys.stderr)
    return 1 if report.failures else 0
