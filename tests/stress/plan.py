"""What a run is made of: nodes (functions, sync or async) with steps, some of which call other nodes.

A plan holds no randomness: what it says is what is done, and what comes of it can be computed (`outcome_of`), except
where something is cancelled on its way.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ("Caught", "Fork", "Node", "Outcome", "Plan", "Root", "Step", "outcome_of")

AsyncKind = Literal[
    "await",
    "task",
    "gather",
    "group",
    "timeout",
    "cancel",
    "context",
    "own_thread",
    "leave",
    "forever",
]
SyncKind = Literal["call", "swallow", "single", "fork"]
HopKind = Literal["sensitive", "free", "executor", "own_context"]
Kind = Literal["set", "pause", "fail", "token"] | AsyncKind | SyncKind | HopKind


@dataclass(frozen=True)
class Step:
    """One thing that a node does.

    Args:
        number: unique in its plan.
        kind: what is done.
        nodes: whom it calls.
        steps: what it does inside, for a step that surrounds others.
        catch: whether the node goes on when the step fails as planned.
        variable: which of the variables it changes.
        pause: how long it waits: so many turns of the event loop, or seconds if not a whole number.
        flag: a detail that depends on the kind, see where that is walked.
    """

    number: int
    kind: Kind
    nodes: "tuple[Node, ...]" = ()
    steps: "tuple[Step, ...]" = ()
    catch: bool = False
    variable: int = 0
    pause: float = 0
    flag: bool = False


@dataclass(frozen=True)
class Node:
    """A function: does its steps in order, and returns a number made of theirs."""

    number: int
    is_async: bool
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Root:
    """What starts on its own, beside the others.

    Args:
        kind: a task of the one loop in the main thread; a thread with a loop of its own; or a thread that calls
            `async_to_sync`.
        in_context: whether a `ThreadSensitiveContext` is around it.
        node: the first call; sync in a thread that calls `async_to_sync`, else async.
        repeat: how often it is called.
    """

    kind: Literal["task", "run", "thread"]
    in_context: bool
    node: Node
    repeat: int = 1


@dataclass(frozen=True)
class Fork:
    """A child forked at the top level, while the roots are going."""

    delay_seconds: float
    node: Node


@dataclass(frozen=True)
class Plan:
    """One run."""

    seed: int
    uvloop: bool
    debug: bool
    roots: tuple[Root, ...]
    forks: tuple[Fork, ...]


class Outcome(NamedTuple):
    """What a node returns, or the number of the step that makes it fail."""

    value: int = 0
    failed: int | None = None


class Caught(NamedTuple):
    """The value of a step that failed and was caught is 1, whatever it would have been."""

    value: int = 1


def outcome_of(node: Node) -> Outcome:
    """Compute what a call of a node comes to when nothing is cancelled."""
    inside = _outcome_of_steps(node.steps)
    return inside if inside.failed else Outcome(node.number + inside.value)


def _outcome_of_steps(steps: tuple[Step, ...]) -> Outcome:
    value = 0
    for step in steps:
        outcome = _outcome_of_step(step)
        if outcome.failed and not step.catch:
            return outcome
        value += Caught().value if outcome.failed else outcome.value
    return Outcome(value)


def _outcome_of_step(step: Step) -> Outcome:
    match step.kind:
        case "fail":
            return Outcome(failed=step.number)
        case "gather" | "group":
            return _outcome_of_several(step)
        case "await" | "task" | "call" | "sensitive" | "free" | "executor" | "own_context":
            return outcome_of(step.nodes[0])
        case "context" | "own_thread" | "single" | "token":
            return _outcome_of_steps(step.steps)
        case _:  # what comes of the rest depends on the moment, or is nothing: it counts nothing
            return Outcome()


def _outcome_of_several(step: Step) -> Outcome:
    outcomes = [outcome_of(node) for node in step.nodes]
    value = sum(Caught().value if outcome.failed else outcome.value for outcome in outcomes)
    if step.kind == "group" and any(outcome.failed for outcome in outcomes):
        return Outcome(failed=step.number)
    return Outcome(value)
