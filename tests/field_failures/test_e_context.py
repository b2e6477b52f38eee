"""Section E: context variables on both sides of a crossing, and code of monitoring agents."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any

import pytest

from django_asyncbridge.bridge.sync import async_to_sync, sync_to_async
from tests.field_failures.common import HOMES, Main, noop, on_plain_loop, until
from tests.support import run_in_thread

each_home = pytest.mark.parametrize("home", HOMES.values(), ids=HOMES.keys())
each_sensitivity = pytest.mark.parametrize("thread_sensitive", [True, False])
Home = Callable[[Main[Any]], Any]


# --- C47: tokens ---------------------------------------------------------------------


class Middleware:
    """Sets a context variable when a request comes in and resets it when the response goes out."""

    def __init__(self, variable: ContextVar[str], thread_sensitive: bool) -> None:
        self.variable = variable
        self.token: Token[str] | None = None
        self.come_in: Callable[..., Any] = sync_to_async(
            self.process_request, thread_sensitive=thread_sensitive
        )
        self.go_out: Callable[..., Any] = sync_to_async(
            self.process_response, thread_sensitive=thread_sensitive
        )

    def process_request(self, value: str = "request") -> None:
        self.token = self.variable.set(value)

    def process_response(self) -> None:
        assert self.token is not None
        self.variable.reset(self.token)


@each_home
@each_sensitivity
def test_c47_token_of_one_call_resets_in_the_next_and_the_async_code_sees_it(
    home: Home, thread_sensitive: bool
) -> None:
    """C47: `process_request` sets, `process_response` resets, each in a call of its own."""
    variable = ContextVar("variable", default="default")

    async def main() -> list[str]:
        variable.set("outer")
        middleware = Middleware(variable, thread_sensitive)
        await middleware.come_in()
        seen = [variable.get()]
        await middleware.go_out()
        return [*seen, variable.get(), await sync_to_async(variable.get)()]

    assert home(main) == ["request", "outer", "outer"]


@each_home
@each_sensitivity
def test_c47_reset_of_a_variable_that_was_unset_unsets_it_again(
    home: Home, thread_sensitive: bool
) -> None:
    """C47: back to unset, which is not the same as back to a default."""
    variable: ContextVar[str] = ContextVar("variable")

    async def main() -> list[str]:
        middleware = Middleware(variable, thread_sensitive)
        await middleware.come_in()
        seen = [variable.get()]
        await middleware.go_out()
        in_thread = await sync_to_async(lambda: variable.get("unset"))()
        return [*seen, variable.get("unset"), in_thread]

    assert home(main) == ["request", "unset", "unset"]


@each_home
def test_c47_token_survives_what_happens_between_the_calls(home: Home) -> None:
    """C47: an async view, nested calls and other variables come between request and response."""
    variable: ContextVar[str] = ContextVar("variable")
    other: ContextVar[str] = ContextVar("other")

    async def view() -> str:
        other.set("set by the view")
        await asyncio.sleep(0)
        return await sync_to_async(variable.get)()

    async def main() -> list[str]:
        middleware = Middleware(variable, thread_sensitive=True)
        await middleware.come_in()
        seen = [await view(), await sync_to_async(async_to_sync(view))()]
        await sync_to_async(noop, thread_sensitive=False)()
        await middleware.go_out()
        return [*seen, other.get(), variable.get("unset")]

    assert home(main) == ["request", "request", "set by the view", "unset"]


@each_home
def test_c47_tokens_of_nested_middleware_reset_in_reverse_order(home: Home) -> None:
    """C47: each layer gets back what the layer around it had set."""
    variable: ContextVar[str] = ContextVar("variable")

    async def main() -> list[str]:
        outer, inner = Middleware(variable, True), Middleware(variable, True)
        seen = []
        for step, value in (
            (outer.come_in, ["outer"]),
            (inner.come_in, ["inner"]),
            (inner.go_out, []),
            (outer.go_out, []),
        ):
            await step(*value)
            seen.append(variable.get("unset"))
        return seen

    assert home(main) == ["outer", "inner", "outer", "unset"]


@each_home
def test_c47_concurrent_requests_keep_their_tokens_apart(home: Home) -> None:
    """C47: each task resets its own."""
    variable: ContextVar[str] = ContextVar("variable")

    async def request(name: str) -> list[str]:
        middleware = Middleware(variable, thread_sensitive=True)
        await middleware.come_in(name)
        await asyncio.sleep(0)
        seen = [variable.get(), await sync_to_async(variable.get)()]
        await middleware.go_out()
        return [*seen, variable.get("unset")]

    async def main() -> list[list[str]]:
        return await asyncio.gather(*(request(name) for name in "abc"))

    assert home(main) == [[name, name, "unset"] for name in "abc"]


def test_c47_token_of_a_nested_sync_call_resets_in_the_next_below_async_to_sync() -> None:
    """C47: the same where the task itself runs below sync code."""
    variable: ContextVar[str] = ContextVar("variable")

    async def view() -> list[str]:
        middleware = Middleware(variable, thread_sensitive=True)
        await middleware.come_in()
        seen = [variable.get()]
        await middleware.go_out()
        return [*seen, variable.get("unset")]

    async def main() -> list[str]:
        return await sync_to_async(async_to_sync(view))()

    assert on_plain_loop(main) == ["request", "unset"]


@each_sensitivity
def test_c47_task_that_shares_its_context_runs_while_the_other_is_in_a_sync_function(
    thread_sensitive: bool,
) -> None:
    """C47: Django's `Signal.asend` runs several tasks in one context; none may shut the others out."""
    variable = ContextVar("variable", default="unset")
    started, release = threading.Event(), threading.Event()

    def blocking() -> None:
        started.set()
        # Only the other task, in the same context, ends this.
        assert release.wait(10)
        variable.set("sync")

    async def other() -> str:
        await until(started)
        before = variable.get()
        variable.set("async")
        await asyncio.sleep(0)
        release.set()
        return before

    async def main() -> tuple[str, str]:
        context = contextvars.copy_context()
        call = sync_to_async(blocking, thread_sensitive=thread_sensitive)
        first = asyncio.create_task(call(), context=context)
        second = asyncio.create_task(other(), context=context)
        await first
        return await second, context[variable]

    assert on_plain_loop(main) == ("unset", "sync")


def test_c47_tasks_that_share_their_context_are_in_sync_functions_at_the_same_time() -> None:
    """C47: two sync receivers of one signal, in two threads: both changes arrive."""
    both = threading.Barrier(2, timeout=10)
    variables = [ContextVar(name, default="unset") for name in ("first", "second")]

    def receiver(variable: ContextVar[str]) -> None:
        both.wait()
        variable.set("set")

    async def main() -> list[str]:
        context = contextvars.copy_context()
        call = sync_to_async(receiver, thread_sensitive=False)
        tasks = [asyncio.create_task(call(variable), context=context) for variable in variables]
        await asyncio.gather(*tasks)
        return [context[variable] for variable in variables]

    assert on_plain_loop(main) == ["set", "set"]


# --- C54: changes come back --------------------------------------------------------------


@each_home
@each_sensitivity
def test_c54_variable_set_in_a_sync_function_is_seen_by_the_awaiting_task(
    home: Home, thread_sensitive: bool
) -> None:
    """C54: what sync code sets is there for the async code after it, and for nobody else."""
    variable = ContextVar("variable", default="unset")

    async def main() -> list[str]:
        unrelated = asyncio.create_task(sync_to_async(variable.get)())
        await sync_to_async(variable.set, thread_sensitive=thread_sensitive)("set")
        related = asyncio.create_task(sync_to_async(variable.get)())
        return [variable.get(), await unrelated, await related]

    assert home(main) == ["set", "unset", "set"]


@each_home
def test_c54_variable_set_before_a_sync_function_raised_is_seen(home: Home) -> None:
    """C54: an exception does not take the changes away."""
    variable = ContextVar("variable", default="unset")

    def fail() -> None:
        variable.set("set")
        raise ValueError("expected")

    async def main() -> str:
        with pytest.raises(ValueError, match="expected"):
            await sync_to_async(fail)()
        return variable.get()

    assert home(main) == "set"


@pytest.mark.parametrize("fails", [False, True])
def test_c54_variable_set_below_async_to_sync_is_seen_by_the_sync_caller(fails: bool) -> None:
    """C54: the other direction, through a task of its own, and through two crossings."""
    variable = ContextVar("variable", default="unset")

    async def inner() -> None:
        await sync_to_async(variable.set)(variable.get() + " and set")
        if fails:
            raise ValueError("expected")

    def caller() -> str:
        variable.set("caller")
        if fails:
            with pytest.raises(ValueError, match="expected"):
                async_to_sync(inner)()
        else:
            async_to_sync(inner)()
        return variable.get()

    async def main() -> tuple[str, str]:
        return await sync_to_async(caller)(), variable.get()

    assert run_in_thread(caller) == "caller and set"
    assert on_plain_loop(main) == ("caller and set", "caller and set")


def test_p2_sync_caller_of_async_to_sync_keeps_its_context_as_it_was() -> None:
    """P2: a call that sets nothing adds no variable of value to the caller's context."""
    variable = ContextVar("variable", default="unset")

    async def inner() -> str:
        task = asyncio.create_task(sync_to_async(variable.set)("in another task"))
        await task
        return variable.get()

    def caller() -> tuple[dict[ContextVar[Any], Any], dict[ContextVar[Any], Any], str]:
        variable.set("caller")
        # The first call may leave variables of the bridge's own, empty.
        async_to_sync(inner)()
        before = dict(contextvars.copy_context())
        seen = async_to_sync(inner)()
        return before, dict(contextvars.copy_context()), seen

    before, after, seen = run_in_thread(caller)
    assert before == after
    assert seen == "caller"
