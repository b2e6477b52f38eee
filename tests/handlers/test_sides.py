"""`step_of`: where what is called may run; and what is kept of that from request to request."""

import functools
from collections.abc import Callable
from typing import Any

import pytest

from django_asyncbridge.handlers import sides
from django_asyncbridge.handlers.sides import Side, Step, kept_step_of, never_blocks, step_of
from django_asyncbridge.safety import async_safe, name_async_safe
from tests.bridge import without_gc


def plain() -> None: ...


async def coroutine() -> None: ...


@async_safe
def marked() -> None: ...


def sometimes(*_args: object) -> bool:
    raise AssertionError


class Callee:
    """A callable object."""

    def __call__(self) -> None: ...


callee = Callee()


@pytest.mark.parametrize(
    ("call", "condition", "step"),
    [
        (plain, None, Step(plain, Side.THREAD)),
        (plain, sometimes, Step(plain, Side.THREAD, sometimes)),
        (plain, never_blocks, Step(plain, Side.ANY)),
        (coroutine, None, Step(coroutine, Side.LOOP)),
        # What is awaited needs no condition.
        (coroutine, never_blocks, Step(coroutine, Side.LOOP)),
        (marked, None, Step(marked, Side.ANY, keeps_tokens=True)),
        (marked, sometimes, Step(marked, Side.ANY, keeps_tokens=True)),
        (callee, None, Step(callee, Side.THREAD)),
    ],
)
def test_step_of(call: Callable[..., Any], condition: sides.Condition | None, step: Step) -> None:
    assert step_of(call, condition) == step
    # Of a test with another condition.
    sides._kept.pop(id(call), None)
    for _ in range(2):
        assert kept_step_of(call, lambda _: condition) == step
    sides._kept.pop(id(call), None)


def test_kept_step_of_a_function_asks_once() -> None:
    asked: list[object] = []

    def function() -> None: ...

    def condition_of(call: object) -> None:
        asked.append(call)

    assert kept_step_of(function, condition_of) == kept_step_of(function, condition_of)
    assert asked == [function]


def test_kept_step_of_anything_else_is_not_kept() -> None:
    asked: list[object] = []
    bound = functools.partial(plain)
    for _ in range(2):
        kept_step_of(bound, asked.append)
    assert len(asked) == 2
    assert id(bound) not in sides._kept


def test_kept_step_of_a_function_that_is_marked_later_changes() -> None:
    def function() -> None: ...

    assert kept_step_of(function).side is Side.THREAD
    async_safe(function)
    assert kept_step_of(function).side is Side.ANY


def test_kept_step_of_a_function_that_is_named_later_changes() -> None:
    path = f"{__name__}.plain"
    assert kept_step_of(plain).side is Side.THREAD
    name_async_safe([path])
    try:
        assert kept_step_of(plain).side is Side.ANY
    finally:
        name_async_safe([])
    assert kept_step_of(plain).side is Side.THREAD


def test_kept_step_of_a_function_keeps_nothing_alive() -> None:
    def function() -> None: ...

    key = id(function)
    kept_step_of(function)
    assert key in sides._kept
    with without_gc():
        del function
        assert key not in sides._kept
