"""Start one process for each kind of event loop, one after the other, and gather what they measured."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bridge import Figure
from benchmarks.child import Order
from benchmarks.measure import Plan
from benchmarks.results import Report

__all__ = ("ChildFailedError", "measure")

_ROOT = Path(__file__).resolve().parent.parent


class ChildFailedError(Exception):
    """A measuring process ended without a result."""


def measure(
    figures: Sequence[Figure], loops: Sequence[str], plan: Plan, python: str = sys.executable
) -> Report:
    """Measure the figures on each kind of loop; those that need none, once.

    Args:
        figures: what to measure.
        loops: ``"asyncio"``, ``"uvloop"`` or both.
        plan: how.
        python: the interpreter to measure, by name or path.

    Raises:
        ChildFailedError: when a process ends otherwise than with a result.
    """
    reports = []
    for number, loop in enumerate(loops):
        names = tuple(figure.name for figure in figures if figure.needs_loop or number == 0)
        if names:
            reports.append(
                _run(Order(loop, names, plan.rounds, plan.slice_seconds, plan.one_cpu), python)
            )
    return Report(
        reports[0].metadata,
        tuple(figure for report in reports for figure in report.figures),
        tuple(dict.fromkeys(name for report in reports for name in report.left_out)),
    )


def _run(order: Order, python: str) -> Report:
    command = [python, "-m", "benchmarks.child", json.dumps(dataclasses.asdict(order))]
    child = subprocess.run(
        command, cwd=_ROOT, env=_environment(), stdout=subprocess.PIPE, text=True, check=False
    )
    if child.returncode != 0:
        raise ChildFailedError(
            f"the {order.loop} process ended with exit code {child.returncode} and without a result; "
            "what it said is above"
        )
    return Report.from_dict(json.loads(child.stdout.splitlines()[-1]))


def _environment() -> dict[str, str]:
    # Debug modes, tracing allocations and the like would measure something else.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    paths = filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}
