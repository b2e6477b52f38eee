"""Section E, C47: a token made in one call resets in another of the same task, wherever the two of them run.

`test_e_context` has the plain case in each home; here the calls run in different places, in other orders, and between them
lies what can go wrong in a request.
"""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, ContextVar, Token
from typing import Any

import pytest

from django_asyncbridge.bridge.sync import (
    ThreadSensitiveContext,
    WorkerPool,
    async_to_sync,
    sync_to_async,
)
from tests.field_failures.common import (
    HOMES,
    Main,
    Work,
    end_of,
    loop_turns,
    noop,
    on_plain_loop,
    until,
)

each_home = pytest.mark.parametrize("home", HOMES.values(), ids=HOMES.keys())
Home = Callable[[Main[Any]], Any]

variable: ContextVar[str] = ContextVar("variable")


class Layer:
    """Sets a variable, and resets it with the token it kept, as middleware does."""

    def __init__(self, of: ContextVar[str] = variable) -> None:
        self.variable = of
        self.token: Token[str] | None = None
        self.threads: list[int] = []

    def set(self, value: str = "set") -> None:
        self.threads.append(threading.get_ident())
        self.token = self.variable.set(value)

    def reset(self) -> None:
        self.threads.append(threading.get_ident())
        assert self.token is not None
        self.variable.reset(self.token)


def value(of: ContextVar[str] = variable) -> str:
    return of.get("unset")


# --- Across places -------------------------------------------------------------------------


async def in_shared_thread(function: Callable[[], Any]) -> Any:
    return await sync_to_async(function)()


async def in_pool(function: Callable[[], Any]) -> Any:
    return await sync_to_async(function, thread_sensitive=False)()


async def in_own_executor(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as executor:
        return await sync_to_async(function, thread_sensitive=False, executor=executor)()


async def in_own_pool(function: Callable[[], Any]) -> Any:
    pool = WorkerPool("tested")
    try:
        return await sync_to_async(function, thread_sensitive=False, executor=pool)()
    finally:
        pool.shutdown()


PLACES = (in_shared_thread, in_pool, in_own_executor, in_own_pool)


@each_home
@pytest.mark.parametrize(("first", "second"), list(itertools.product(PLACES, repeat=2)))
def test_c47_token_of_a_call_in_one_place_resets_in_a_call_in_another(
    home: Home, first: Callable[..., Any], second: Callable[..., Any]
) -> None:
    """C47: the token goes with the task, not with the thread."""

    async def main() -> list[str]:
        variable.set("outer")
        layer = Layer()
        await first(layer.set)
        seen = [value(), await in_shared_thread(value)]
        await second(layer.reset)
        return [*seen, value(), await in_shared_thread(value)]

    assert home(main) == ["set", "set", "outer", "outer"]


def test_c47_token_from_before_a_context_block_resets_inside_it() -> None:
    """C47: set in the process's shared thread, reset in the block's."""
    layer = Layer()

    async def main() -> list[str]:
        await sync_to_async(layer.set)()
        async with ThreadSensitiveContext():
            seen = [value(), await sync_to_async(value)()]
            await sync_to_async(layer.reset)()
            seen.append(value())
        return [*seen, value(), await sync_to_async(value)()]

    assert on_plain_loop(main) == ["set", "set", "unset", "unset", "unset"]
    assert len(set(layer.threads)) == 2


@pytest.mark.parametrize("between", [0, 1, 3])
def test_c47_token_from_before_a_context_block_resets_after_it(between: int) -> None:
    """C47: whatever the block's own calls did."""
    other: ContextVar[str] = ContextVar("other")
    layer = Layer()

    async def main() -> list[str]:
        await sync_to_async(layer.set)()
        async with ThreadSensitiveContext():
            for number in range(between):
                await sync_to_async(other.set)(str(number))
        seen = [value()]
        await sync_to_async(layer.reset)()
        return [*seen, value(), await sync_to_async(value)()]

    assert on_plain_loop(main) == ["set", "unset", "unset"]


@pytest.mark.parametrize("calls_in_later", [False, True])
def test_c47_token_of_one_context_block_resets_in_a_later_block(calls_in_later: bool) -> None:
    """C47: two requests on one connection, in one task: the second puts right what the first left."""
    layer = Layer()

    async def main() -> list[str]:
        async with ThreadSensitiveContext():
            await sync_to_async(layer.set)()
        seen = [value()]
        async with ThreadSensitiveContext():
            if calls_in_later:
                await sync_to_async(noop)()
            await sync_to_async(layer.reset)()
            seen += [value(), await sync_to_async(value)()]
        return [*seen, value()]

    assert on_plain_loop(main) == ["set", "unset", "unset", "unset"]


def test_c47_token_of_one_context_block_resets_in_the_next_but_two_with_calls_in_each() -> None:
    """C47: and with another token from each block in between."""
    layers = [Layer(ContextVar(f"variable_{number}")) for number in range(4)]

    async def main() -> list[str]:
        for layer in layers:
            async with ThreadSensitiveContext():
                await sync_to_async(layer.set)()
        async with ThreadSensitiveContext():
            for layer in layers:
                await sync_to_async(layer.reset)()
            return [value(layer.variable) for layer in layers]

    assert on_plain_loop(main) == ["unset"] * 4


def test_c47_token_of_a_context_block_after_all_blocks_is_refused_as_documented() -> None:
    """C47: leaving the block unsets a variable that was set when the token was made; the guide says so."""
    layer = Layer()

    async def main() -> str:
        async with ThreadSensitiveContext():
            await sync_to_async(layer.set)()
        with pytest.raises(ValueError, match="different Context"):
            await sync_to_async(layer.reset)()
        # The value itself is the task's, and can be set again.
        await sync_to_async(variable.set)("again")
        return value()

    assert on_plain_loop(main) == "again"


@each_home
def test_c47_token_of_a_call_in_a_context_with_an_executor_resets_in_its_next(home: Home) -> None:
    """C47: asgiref 3.13's hook for threads of one's own."""
    layer = Layer()

    async def main() -> list[str]:
        with ThreadPoolExecutor(1) as executor:
            async with ThreadSensitiveContext(executor=executor):
                await sync_to_async(layer.set)()
                seen = [value()]
                await sync_to_async(layer.reset)()
                return [*seen, value()]

    assert home(main) == ["set", "unset"]
    assert len(set(layer.threads)) == 1


@each_home
def test_c47_token_of_a_call_in_a_context_given_resets_in_the_next_with_it(home: Home) -> None:
    """C47: `context=` is a place as well; the task's own variables are not touched."""
    layer = Layer()
    context = Context()

    async def main() -> list[str]:
        await sync_to_async(layer.set, context=context)()
        seen = [context[variable], value()]
        await sync_to_async(layer.reset, context=context)()
        return [*seen, context.get(variable, "unset"), value()]

    assert home(main) == ["set", "unset", "unset", "unset"]


@each_home
def test_c47_token_of_a_call_below_sync_code_resets_in_the_next_below_it(home: Home) -> None:
    """C47: three levels down, in a task of its own, on the thread that waits above."""
    layer = Layer()

    async def view() -> list[str]:
        await sync_to_async(layer.set)()
        seen = [value(), await sync_to_async(value)()]
        await sync_to_async(layer.reset)()
        return [*seen, value()]

    async def main() -> list[str]:
        seen: list[str] = await sync_to_async(async_to_sync(view))()
        return [*seen, value()]

    assert home(main) == ["set", "set", "unset", "unset"]
    assert len(set(layer.threads)) == 1


@each_home
def test_c47_token_made_in_sync_code_stays_good_there_across_what_it_calls(home: Home) -> None:
    """C47: `with override(...)` around an async view: set and reset in one function, two crossings between."""

    async def view() -> str:
        await sync_to_async(noop)()
        return value()

    def middleware() -> list[str]:
        token = variable.set("set")
        seen = async_to_sync(view)()
        variable.reset(token)
        return [seen, value()]

    async def main() -> list[str]:
        return [*await sync_to_async(middleware)(), value()]

    assert home(main) == ["set", "unset", "unset"]


@each_home
def test_c47_token_of_a_generators_first_step_resets_in_its_last(home: Home) -> None:
    """C47: a generator function sets, yields, and resets in its `finally`."""

    def generate() -> Iterator[str]:
        token = variable.set("set")
        try:
            for _ in range(3):
                yield value()
        finally:
            variable.reset(token)

    async def main() -> list[str]:
        seen = [item async for item in sync_to_async(generate)()]
        return [*seen, value(), await sync_to_async(value)()]

    assert home(main) == ["set", "set", "set", "unset", "unset"]


# --- In any order --------------------------------------------------------------------------


def in_sync_code(steps: Sequence[tuple[str, int]], layers: Sequence[Layer]) -> list[list[str]]:
    """Take the steps in one context, without any bridge: that is what they mean."""
    seen = []
    for step, number in steps:
        layer = layers[number]
        layer.set(str(number)) if step == "set" else layer.reset()
        seen.append([value(layer.variable) for layer in layers])
    return seen


async def in_calls(steps: Sequence[tuple[str, int]], layers: Sequence[Layer]) -> list[list[str]]:
    """Take each step in a call of its own, and look from the async code after each."""
    seen = []
    for step, number in steps:
        layer = layers[number]
        if step == "set":
            await sync_to_async(layer.set)(str(number))
        else:
            await sync_to_async(layer.reset)()
        seen.append([value(layer.variable) for layer in layers])
    return seen


SETS = [("set", 0), ("set", 1), ("set", 2)]
RESETS = [("reset", 0), ("reset", 1), ("reset", 2)]
ORDERS = [[*SETS, *order] for order in itertools.permutations(RESETS)]
# A reset may also come between the sets of others.
ORDERS += [
    [("set", 0), ("set", 1), ("reset", 0), ("set", 2), ("reset", 2), ("reset", 1)],
    [("set", 0), ("set", 1), ("reset", 0), ("set", 0), ("reset", 1), ("reset", 0)],
    [("set", 2), ("reset", 2), ("set", 0), ("set", 2), ("reset", 0), ("reset", 2)],
]


@each_home
@pytest.mark.parametrize("same", [True, False], ids=["one-variable", "three-variables"])
@pytest.mark.parametrize("initial", ["initial", None])
@pytest.mark.parametrize(
    "steps", ORDERS, ids=lambda steps: "".join(s[0] + str(n) for s, n in steps)
)
def test_c47_sets_and_resets_in_any_order_mean_what_they_mean_without_a_bridge(
    home: Home, steps: Sequence[tuple[str, int]], same: bool, initial: str | None
) -> None:
    """C47: middleware need not be left in the reverse order, and may share a variable."""
    variables = [ContextVar[str](f"variable_{0 if same else number}") for number in range(3)]
    if same:
        variables = variables[:1] * 3

    def prepared() -> list[Layer]:
        if initial is not None:
            for one in variables:
                one.set(initial)
        return [Layer(one) for one in variables]

    async def main() -> list[list[str]]:
        return await in_calls(steps, prepared())

    assert home(main) == Context().run(lambda: in_sync_code(steps, prepared()))


@each_home
def test_c47_token_can_be_used_once_as_everywhere(home: Home) -> None:
    """C47: the second time is the error that it is without a bridge."""
    layer = Layer()

    async def main() -> list[str]:
        await sync_to_async(layer.set)()
        await sync_to_async(layer.reset)()
        with pytest.raises(RuntimeError, match="already been used"):
            await sync_to_async(layer.reset)()
        await sync_to_async(layer.set)()
        seen = [value()]
        await sync_to_async(layer.reset)()
        return [*seen, value()]

    assert home(main) == ["set", "unset"]


@each_home
def test_c47_token_resets_to_what_the_variable_was_though_async_code_has_set_it_since(
    home: Home,
) -> None:
    """C47: the async view overrides what the middleware set; the middleware's reset is its own."""
    layer = Layer()

    async def main() -> list[str]:
        variable.set("outer")
        await sync_to_async(layer.set)()
        variable.set("by the view")
        seen = [await sync_to_async(value)()]
        await sync_to_async(layer.reset)()
        return [*seen, value(), await sync_to_async(value)()]

    assert home(main) == ["by the view", "outer", "outer"]


@each_home
def test_c47_tokens_of_1000_calls_in_turn_stay_good(home: Home) -> None:
    """C47: a task that lives long, such as a websocket's, may set and reset as often as it likes."""
    layer = Layer()

    async def main() -> set[str]:
        seen = set()
        for _ in range(500):
            await sync_to_async(layer.set)()
            seen.add(value())
            await sync_to_async(layer.reset)()
            seen.add(value() + " after")
        return seen

    assert home(main) == {"set", "unset after"}


# --- Whatever happens in between -----------------------------------------------------------


@each_home
def test_c47_token_of_a_call_that_raised_resets_in_the_next(home: Home) -> None:
    """C47: `process_request` set and failed; `process_exception` puts it right."""
    layer = Layer()

    def fail() -> None:
        layer.set()
        raise ValueError("expected")

    async def main() -> list[str]:
        with pytest.raises(ValueError, match="expected"):
            await sync_to_async(fail)()
        seen = [value()]
        await sync_to_async(layer.reset)()
        return [*seen, value()]

    assert home(main) == ["set", "unset"]


@each_home
def test_c47_token_stays_good_after_a_call_that_raised(home: Home) -> None:
    """C47: the view failed between the two."""
    layer = Layer()

    def fail() -> None:
        raise ValueError("expected")

    async def main() -> list[str]:
        await sync_to_async(layer.set)()
        with pytest.raises(ValueError, match="expected"):
            await sync_to_async(fail)()
        await sync_to_async(layer.reset)()
        return [value(), await sync_to_async(value)()]

    assert home(main) == ["unset", "unset"]


@each_home
def test_c47_token_of_a_cancelled_call_resets_in_the_clean_up(home: Home, work: Work) -> None:
    """C47: the client left while `process_request` ran; `finally` puts right what it had set."""
    layer = Layer()
    seen: list[str] = []

    def process_request() -> None:
        layer.set()
        work()

    async def request() -> None:
        try:
            await sync_to_async(process_request)()
        finally:
            seen.append(value())
            await sync_to_async(layer.reset)()
            seen.append(value())

    async def main() -> None:
        task = asyncio.create_task(request())
        await until(work.started)
        task.cancel()
        await loop_turns()
        work.release.set()
        await end_of(task)
        assert task.cancelled()

    home(main)
    assert seen == ["set", "unset"]


@each_home
@pytest.mark.parametrize("queued", [False, True])
def test_c47_token_stays_good_after_a_call_that_was_cancelled(
    home: Home, work: Work, queued: bool
) -> None:
    """C47: the view was cancelled between the two, while it ran or while it waited for its thread."""
    layer = Layer()
    seen: list[str] = []

    async def request(ready: asyncio.Event, go: asyncio.Event) -> None:
        await sync_to_async(layer.set)()
        ready.set()
        await go.wait()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await sync_to_async(noop if queued else work)()
        finally:
            await sync_to_async(layer.reset)()
            seen.extend([value(), await sync_to_async(value)()])

    async def main() -> None:
        ready, go = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(request(ready, go))
        await ready.wait()
        # It holds the thread that the request's call then has to wait for.
        holder = asyncio.create_task(sync_to_async(work)()) if queued else None
        if queued:
            await until(work.started)
        go.set()
        await loop_turns()
        await until(work.started)
        task.cancel()
        work.release.set()
        await end_of(task)
        if holder is not None:
            await holder

    home(main)
    assert seen == ["unset", "unset"]


@each_home
def test_c47_tokens_of_tasks_in_turns_stay_with_their_tasks(home: Home) -> None:
    """C47: several requests, each step of one between those of the others."""
    turns = 3

    async def request(number: int, gate: asyncio.Barrier) -> list[str]:
        layers = [Layer() for _ in range(turns)]
        seen = []
        for turn, layer in enumerate(layers):
            await sync_to_async(layer.set)(f"{number}-{turn}")
            await gate.wait()
            seen.append(value())
        for layer in reversed(layers):
            await sync_to_async(layer.reset)()
            await gate.wait()
            seen.append(value())
        return seen

    async def main() -> list[list[str]]:
        gate = asyncio.Barrier(4)
        return await asyncio.gather(*(request(number, gate) for number in range(4)))

    assert home(main) == [
        [f"{n}-0", f"{n}-1", f"{n}-2", f"{n}-1", f"{n}-0", "unset"] for n in range(4)
    ]


def test_c47_token_of_another_tasks_call_is_refused_as_asyncio_refuses_it() -> None:
    """C47, the limit: a task of its own has a context of its own, with the bridge as without."""
    layer = Layer()

    async def main() -> list[str]:
        await asyncio.create_task(sync_to_async(layer.set)())
        seen = [value()]
        with pytest.raises(ValueError, match="different Context"):
            await sync_to_async(layer.reset)()
        return [*seen, value()]

    assert on_plain_loop(main) == ["unset", "unset"]
