"""Makes a plan from a seed: the same plan for the same seed, on every Python.

What no bridge could do is not planned: threads waiting for one another in a circle. Two rules keep it out.
What waits for ever is cancelled by code that needs no thread (`_region`). And few calls hold a thread of a bounded pool while
they wait for another thread of it (`HOLDERS`).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from tests.stress.plan import Fork, Kind, Node, Plan, Root, Step

__all__ = ("VARIABLES", "grow")

#: How many variables there are, see `model.Variables`.
VARIABLES = 4
MAXIMUM_DEPTH = 5
NODES_OF_A_ROOT = 30
NODES_OF_A_FORK = 6
# The smallest pool has five threads: the loop's default one, on a machine with one core.
HOLDERS = 3


@dataclass(frozen=True)
class _Place:
    """Where in the tree a step is planned, as far as it matters for what can be planned there.

    Args:
        depth: how many crossings are above it.
        region: whether all this is cancelled if it does not end.
        single: whether an `AsyncSingleThreadContext` is around it.
        single_busy: whether the thread of that runs a loop which waits for this.
        looped: whether an event loop waits for this (or runs it), so that calls of `async_to_sync` use that one.
        top: whether tasks of this loop that are left to its end are at home where this is.
        contexts: whether contexts may be entered here.
    """

    depth: int = 0
    looped: bool = True
    region: bool = False
    single: bool = False
    single_busy: bool = False
    top: bool = True
    contexts: bool = True

    def across(self) -> "_Place":
        """Return the other side of a crossing."""
        return replace(self, depth=self.depth + 1, looped=True, top=False)


Maker = Callable[[_Place], Step]


class _Grower:
    """Plans the nodes of one seed."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.number = 0
        self.nodes_left = 0
        self.holders_left = HOLDERS
        self.async_makers: dict[Kind, tuple[int, Maker]] = {
            "set": (3, self._set),
            "pause": (3, self._pause),
            "await": (2, self._async_call("await")),
            "task": (2, self._async_call("task")),
            "sensitive": (9, self._hop("sensitive")),
            "free": (4, self._hop("free")),
            "executor": (2, self._hop("executor")),
            "own_context": (1, self._hop("own_context")),
            "gather": (3, self._gather),
            "group": (3, self._group),
            "timeout": (2, self._region("timeout")),
            "cancel": (5, self._region("cancel")),
            "context": (2, self._block("context", is_async=True)),
            "own_thread": (1, self._block("own_thread", is_async=True)),
            "token": (2, self._block("token", is_async=True)),
            "leave": (1, self._leave),
        }
        self.sync_makers: dict[Kind, tuple[int, Maker]] = {
            "set": (3, self._set),
            "pause": (2, self._pause),
            "call": (8, self._call),
            "single": (1, self._block("single", is_async=False)),
            "token": (1, self._block("token", is_async=False)),
            "fork": (1, self._fork),
        }

    def _next(self) -> int:
        self.number += 1
        return self.number

    def node(self, is_async: bool, place: _Place) -> Node:
        self.nodes_left -= 1
        number = self._next()
        # The first nodes are to have somebody below them.
        least = 3 if place.depth == 0 else 2 if place.depth < 3 else 1
        steps = self._steps(is_async, place, self.chance.randint(least, 4))
        if place.depth and self.chance.random() < 0.15:
            steps += (Step(self._next(), "fail"),)
        elif is_async and place.region and self.chance.random() < 0.5:
            steps += (Step(self._next(), "forever"),)
        elif (
            not is_async
            and place.region
            and place.depth < MAXIMUM_DEPTH
            and self.chance.random() < 0.3
        ):
            # Last, since whatever came after it might not hear of the cancellation any more.
            self.nodes_left += 1
            steps += (replace(self._call(place), kind="swallow"),)
        return Node(number, is_async, steps)

    def _steps(self, is_async: bool, place: _Place, count: int) -> tuple[Step, ...]:
        makers = self.async_makers if is_async else self.sync_makers
        weights = [weight for weight, _ in makers.values()]
        names = list(makers)
        steps = []
        nodes_left = self.nodes_left
        for index in range(count):
            last = index == count - 1
            share = nodes_left if last else self.chance.randint(0, max(nodes_left, 0))
            self.nodes_left = share
            kind = self.chance.choices(names, weights)[0]
            if not self._possible(kind, place):
                kind = self.chance.choice(("set", "pause"))
            steps.append(replace(makers[kind][1](place), catch=self.chance.random() < 0.8))
            nodes_left -= share - self.nodes_left
        self.nodes_left = nodes_left
        return tuple(steps)

    def _possible(self, kind: Kind, place: _Place) -> bool:
        if kind in ("set", "pause", "leave"):
            return True
        if kind in ("context", "own_thread", "single") and not place.contexts:
            return False
        return place.depth < MAXIMUM_DEPTH and self.nodes_left > 0

    # --- what both sides do -----------------------------------------------------

    def _set(self, place: _Place) -> Step:
        return Step(self._next(), "set", variable=self.chance.randrange(VARIABLES))

    def _pause(self, place: _Place) -> Step:
        return Step(self._next(), "pause", pause=self._duration())

    def _duration(self) -> float:
        """Return turns of the loop or seconds: both, since they cut in at different moments."""
        return self.chance.choice((0, 1, 2, 3, 0.0003, 0.001, 0.003, 0.006))

    def _block(self, kind: Kind, is_async: bool) -> Maker:
        def make(place: _Place) -> Step:
            inside = replace(
                place,
                top=place.top and kind == "token",
                single=place.single or kind == "single",
            )
            return Step(
                self._next(),
                kind,
                steps=self._steps(is_async, inside, self.chance.randint(1, 3)),
                variable=self.chance.randrange(VARIABLES - 1),
                flag=self.chance.random() < 0.5,
            )

        return make

    # --- what async code does ---------------------------------------------------

    def _async_call(self, kind: Kind) -> Maker:
        def make(place: _Place) -> Step:
            return Step(self._next(), kind, (self.node(True, place),))

        return make

    def _hop(self, kind: Kind) -> Maker:
        def make(place: _Place) -> Step:
            node = self.node(False, place.across())
            actual = kind
            if kind == "free" and _calls_free(node):
                self.holders_left -= 1
                actual = kind if self.holders_left >= 0 else "executor"
            return Step(self._next(), actual, (node,))

        return make

    def _gather(self, place: _Place) -> Step:
        nodes = tuple(self.node(True, place) for _ in range(self.chance.randint(2, 3)))
        return Step(self._next(), "gather", nodes)

    def _group(self, place: _Place) -> Step:
        trigger = self.chance.random() < 0.5
        inside = replace(place, region=place.region or trigger)
        nodes = tuple(self.node(True, inside) for _ in range(self.chance.randint(1, 2)))
        if trigger:
            # It fails whatever the others do, since it needs no thread.
            steps = (self._pause(place), Step(self._next(), "fail"))
            nodes += (Node(self._next(), True, steps),)
        return Step(self._next(), "group", nodes)

    def _region(self, kind: Kind) -> Maker:
        def make(place: _Place) -> Step:
            node = self.node(True, replace(place, region=True))
            again = self.chance.random() < 0.2
            return Step(self._next(), kind, (node,), pause=self._duration(), flag=again)

        return make

    def _leave(self, place: _Place) -> Step:
        return Step(self._next(), "leave", flag=place.top)

    # --- what sync code does ----------------------------------------------------

    def _call(self, place: _Place) -> Step:
        # In the thread of an AsyncSingleThreadContext only one new loop can run at a time.
        new_loop = not place.single_busy and self.chance.random() < 0.2
        own_loop = new_loop or not place.looped
        busy = place.single_busy or (place.single and own_loop)
        inside = replace(place.across(), top=own_loop, single_busy=busy)
        return Step(self._next(), "call", (self.node(True, inside),), flag=new_loop)

    def _fork(self, place: _Place) -> Step:
        inherit = self.chance.random() < 0.5
        left, self.nodes_left = self.nodes_left, NODES_OF_A_FORK
        node = self.forked(contexts=not inherit)
        self.nodes_left = left - 1
        return Step(self._next(), "fork", (node,), flag=inherit)

    def forked(self, contexts: bool) -> Node:
        """Plan what a forked child does."""
        is_async = self.chance.random() < 0.5
        return self.node(is_async, _Place(depth=3, looped=is_async, contexts=contexts))


def _calls_free(node: Node) -> bool:
    """Tell whether a call of `node` needs a thread of the pool, at whatever depth."""
    return any(_needs_free(step) for step in node.steps)


def _needs_free(step: Step) -> bool:
    if step.kind == "free":
        return True
    if step.kind == "fork":  # another process, other threads
        return False
    return any(map(_calls_free, step.nodes)) or any(map(_needs_free, step.steps))


_SHAPES: tuple[tuple[tuple[Literal["task", "run", "thread"], int], ...], ...] = (
    (("task", 8),),
    (("thread", 8),),
    (("task", 4), ("thread", 4)),
    (("run", 4), ("thread", 4)),
)


def grow(seed: int) -> Plan:
    """Make the plan of a seed. Four seeds in a row have all kinds of roots, eight in a row both kinds of loops."""
    chance = random.Random(seed)
    grower = _Grower(chance)
    roots = tuple(
        _root(grower, kind, index)
        for kind, count in _SHAPES[seed % len(_SHAPES)]
        for index in range(count)
    )
    forks = []
    for _ in range(2):
        grower.nodes_left = NODES_OF_A_FORK
        forks.append(Fork(chance.uniform(0, 0.1), grower.forked(contexts=True)))
    return Plan(
        seed=seed,
        uvloop=seed // len(_SHAPES) % 2 == 1,
        debug=chance.random() < 0.25,
        roots=roots,
        forks=tuple(forks),
    )


def _root(grower: _Grower, kind: Literal["task", "run", "thread"], index: int) -> Root:
    # One in four shares the process's shared thread with others.
    in_context = kind != "thread" and index % 4 != 3
    is_async = kind != "thread"
    grower.nodes_left = NODES_OF_A_ROOT
    place = _Place(looped=is_async, top=not in_context)
    node = grower.node(is_async, place)
    return Root(kind, in_context, node, repeat=1 + index % 3)
