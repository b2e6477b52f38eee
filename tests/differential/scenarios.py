"""The table of scenarios: a name, and a function from a library to an outcome that is JSON."""

import os
import threading

from tests.differential.calls import CALLS
from tests.differential.cancellations import CANCELLED
from tests.differential.cancelled_chains import CANCELLATIONS
from tests.differential.chains import CHAINS, Chain, Mode, modes_of
from tests.differential.contexts import CONTEXTS
from tests.differential.experiments import EXPERIMENTS, Experiment
from tests.differential.library import Library, Scenario, Table
from tests.differential.lifetimes import LIFETIMES
from tests.differential.locals import LOCALS
from tests.differential.threads import THREADS
from tests.differential.wrappers import WRAPPERS

__all__ = ("SAMPLES", "SCENARIOS")


def bound(experiment: Experiment, chain: Chain, mode: Mode) -> Scenario:
    """Return an experiment on one chain in one mode."""
    return lambda library: experiment(library, chain, mode)


def generated() -> dict[str, Scenario]:
    """Return every experiment on every chain in every mode.

    asgiref's cancellation is lost on the way into a new loop, whose thread nobody wakes: those chains would all
    hang there, and one call that does is enough (cancellations.py).
    """
    return {
        f"{name}/{chain.name}/{mode.name}": bound(run, chain, mode)
        for name, run in {**EXPERIMENTS, **CANCELLATIONS}.items()
        for chain in CHAINS
        for mode in modes_of(chain)
        if not (name in CANCELLATIONS and mode.async_options)
    }


SCENARIOS: dict[str, Scenario] = {
    **generated(),
    **CALLS,
    **THREADS,
    **CONTEXTS,
    **LOCALS,
    **CANCELLED,
    **LIFETIMES,
    **WRAPPERS,
}

# What the runner itself is tested with.
SAMPLES = Table("samples")


@SAMPLES.add
def hangs(library: Library) -> object:
    return threading.Event().wait()  # pragma: no cover  # the process is killed meanwhile


@SAMPLES.add
def returns(library: Library) -> object:
    return [1]


@SAMPLES.add
def fails(library: Library) -> object:
    raise LookupError


@SAMPLES.add
def crashes(library: Library) -> object:
    os._exit(3)
