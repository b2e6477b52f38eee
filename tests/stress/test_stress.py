"""Random trees of calls keep the promises; and the stress test would notice if they did not."""

import os

import pytest

from tests.stress.grow import grow
from tests.stress.many import try_seeds
from tests.stress.plan import Node, Outcome, Plan, Step, outcome_of
from tests.stress.run import LIMIT_SECONDS
from tests.support import run_child

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# All kinds of roots on both kinds of loops; see `grow`.
SEEDS = range(8)
KINDS = {
    *("set", "pause", "fail", "token", "sensitive", "free", "executor", "own_context", "await"),
    *("task", "gather", "group", "timeout", "cancel", "context", "own_thread", "leave"),
    *("forever", "call", "swallow", "single", "fork"),
}


def kinds_of(steps: tuple[Step, ...]) -> set[str]:
    """Return the kinds of steps, at whatever depth."""
    found: set[str] = set()
    for step in steps:
        found |= {step.kind} | kinds_of(step.steps)
        for node in step.nodes:
            found |= kinds_of(node.steps)
    return found


def depth_of(node: Node) -> int:
    """Return how many crossings are below a node."""
    below = [0]
    todo = list(node.steps)
    while todo:
        step = todo.pop()
        if step.kind == "fork":  # another process begins anew
            continue
        todo += step.steps
        below += [depth_of(called) + (called.is_async != node.is_async) for called in step.nodes]
    return max(below)


def plans() -> list[Plan]:
    """Return the plans that run here."""
    return [grow(seed) for seed in SEEDS]


# --- The plans ------------------------------------------------------------------------


def test_grow_same_seed_twice_gives_the_same_plan() -> None:
    assert plans() == plans()


def test_grow_the_seeds_that_run_here_have_everything() -> None:
    roots = [root for plan in plans() for root in plan.roots]
    assert set().union(*(kinds_of(root.node.steps) for root in roots)) == KINDS
    assert {root.kind for root in roots} == {"task", "run", "thread"}
    assert {len(plan.roots) for plan in plans()} == {8}
    assert {plan.uvloop for plan in plans()} == {True, False}
    assert max(depth_of(root.node) for root in roots) == 5


def test_outcome_of_a_failure_that_is_caught_counts_one() -> None:
    failing = Node(2, True, (Step(3, "fail"),))
    assert outcome_of(failing) == Outcome(failed=3)
    assert outcome_of(Node(10, True, (Step(1, "await", (failing,), catch=True),))) == Outcome(11)
    assert outcome_of(Node(10, True, (Step(1, "await", (failing,)),))) == Outcome(failed=3)


# --- The runs -------------------------------------------------------------------------

RUN = """
    import sys
    from tests.stress.run import main
    sys.exit(main(int(sys.argv[1])))
"""


@pytest.mark.parametrize("seed", SEEDS[:-2])
def test_stress_random_trees_of_calls_keep_the_promises(seed: int) -> None:
    run_child(RUN, str(seed), timeout_seconds=LIMIT_SECONDS + 20)


def test_stress_command_tries_seeds_and_repeats_one() -> None:
    """The last two of the seeds, by way of the command."""
    command = "import runpy; runpy.run_module('tests.stress', run_name='__main__')"
    # Each takes seconds, and under coverage on a busy machine many of them.
    one = run_child(command, "--seeds=1", "--first=6", timeout_seconds=LIMIT_SECONDS - 5)
    assert "1 seeds, failed: none" in one.stdout
    assert "seed 7: " in run_child(command, "7", timeout_seconds=LIMIT_SECONDS - 5).stdout


def test_stress_of_many_seeds_names_those_that_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert try_seeds(range(2), "import sys; sys.exit('broken ' + sys.argv[1])") == 1
    printed = capsys.readouterr().out
    assert "broken 1" in printed
    assert "2 seeds, failed: [0, 1]" in printed


# --- What it would notice ---------------------------------------------------------------

BROKEN = """
    import asyncio, contextvars, os, sys, threading
    from tests.stress import run, steps

    right = steps.sync_to_async

    def in_any_thread(function, thread_sensitive=True, **options):
        return right(function, thread_sensitive=False, **options)

    def on_the_loop(function, **options):
        async def call(*args):
            return function(*args)
        return call

    def in_copies(function, context=None, **options):
        async def call(*args):
            return await right(function, context=contextvars.copy_context(), **options)(*args)
        return call

    def swallowing(function, **options):
        async def call(*args):
            try:
                return await right(function, **options)(*args)
            except asyncio.CancelledError:
                return 0
        return call

    # What swallows a cancellation may wait for ever afterwards.
    run.LIMIT_SECONDS = 2 if sys.argv[1] == "swallowing" else run.LIMIT_SECONDS

    def leaving(function, **options):
        async def call(*args):
            global kept
            loop = asyncio.new_event_loop()
            kept = loop, loop.create_task(asyncio.sleep(100))
            threading.Thread(target=threading.Event().wait, args=(70,), daemon=True).start()
            return await right(function, **options)(*args)
        return call

    steps.sync_to_async = globals()[sys.argv[1]]
    code = run.main(int(sys.argv[2]))
    sys.stdout.flush()
    os._exit(code)
"""


@pytest.mark.parametrize(
    ("fault", "noticed"),
    [
        ("in_any_thread", ["not at home"]),
        ("on_the_loop", ["sync code runs in a thread with a running loop"]),
        ("in_copies", ["variables: saw"]),
        ("leaving", ["a task stayed", "a thread stayed"]),
    ],
)
def test_stress_of_a_broken_bridge_notices_it_and_names_the_seed(
    fault: str, noticed: list[str]
) -> None:
    # It ends in the middle of whatever a broken bridge does, also in the middle of a fork.
    child = run_child(
        BROKEN,
        fault,
        "1",
        timeout_seconds=LIMIT_SECONDS + 20,
        expect_code=1,
        may_leave_processes=True,
    )
    for text in [*noticed, "again: python -m tests.stress 1"]:
        assert text in child.stderr


def test_stress_of_a_cancellation_that_is_swallowed_fails_or_is_seen_to_hang() -> None:
    child = run_child(
        BROKEN,
        "swallowing",
        "0",
        timeout_seconds=LIMIT_SECONDS,
        expect_code=None,
        may_leave_processes=True,
    )
    assert child.returncode in (1, 3)
    assert "a cancelled task ended with" in child.stderr or "hung: " in child.stderr


def test_stress_that_hangs_says_where_every_task_and_thread_is() -> None:
    child = run_child(
        """
        import asyncio
        from tests.stress.watch import set_limit

        async def wait_for_ever(step):
            await asyncio.sleep(3600)

        async def main():
            from tests.stress.plan import Step
            await wait_for_ever(Step(17, "forever"))

        set_limit(1)
        asyncio.run(main())
        """,
        expect_code=3,
    )
    assert "hung: process" in child.stderr
    assert "main > wait_for_ever 17 > sleep" in child.stderr
    assert "most recent call first" in child.stderr


def test_stress_notices_complaints_of_every_kind() -> None:
    run_child(
        """
        import logging, threading, warnings
        from tests.stress.model import Report
        from tests.stress.watch import install

        class Dying:
            def __del__(self):
                raise ValueError("in a finalizer")

        report = Report()
        install(report)
        logging.error("in the log")
        warnings.warn("of something")
        Dying()
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        logged, warned, unraisable, died = report.failures
        assert logged.startswith("logged: in the log")
        assert warned.startswith("warning: ") and "UserWarning: of something" in warned
        assert unraisable.startswith("unraisable: ") and "in a finalizer" in unraisable
        assert died.startswith("a thread died: ") and "ZeroDivisionError" in died
        """
    )


def test_stress_forked_child_that_fails_is_noticed() -> None:
    run_child(
        """
        from tests.stress.forks import fork

        assert fork(lambda: 42) == 42
        assert fork(lambda: 1 / 0) == "the forked child ended with 1"
        """
    )
