"""Shapes of `MiddlewareMixin`: every subset of hooks, and each hook with each behaviour, sync and async.

A shape is a function that makes a middleware with a label: each place in a stack has its own class, and its own lines in
the trace.

Which thread may touch what. Classes are made when a handler loads them, and do not change.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from django.http import HttpRequest
from django.utils.deprecation import MiddlewareMixin

from tests.handlers.differential.behaviours import AFTER, BEFORE, Behaviour
from tests.handlers.differential.trace import describe, keeping, note

__all__ = ("HOOK_NAMES", "MIXINS", "ODD_HOOKS", "Shape", "hooks_of", "mixin")

Shape = Callable[[str], Any]
HOOK_NAMES = {
    "q": "process_request",
    "v": "process_view",
    "t": "process_template_response",
    "x": "process_exception",
    "r": "process_response",
}
_AFTER_HOOKS = ("process_template_response", "process_response")


def mixin(label: str, hooks: Mapping[str, Behaviour]) -> type[MiddlewareMixin]:
    """Return a `MiddlewareMixin` with the given hooks and no others."""
    return type(label, (MiddlewareMixin,), dict(hooks))


def hook(label: str, name: str, behaviour: Behaviour) -> Behaviour:
    """Return a sync hook."""

    def method(self: object, request: HttpRequest, *given: Any) -> Any:
        note(label, name, *map(_described, given))
        return behaviour(label, request, *given)

    return _named(method, label, name)


def async_hook(label: str, name: str, behaviour: Behaviour) -> Behaviour:
    """Return an async hook."""

    @keeping
    async def method(self: object, request: HttpRequest, *given: Any) -> Any:
        note(label, f"async {name}", *map(_described, given))
        return behaviour(label, request, *given)

    return _named(method, label, name)


def hooks_of(label: str, letters: str) -> dict[str, Behaviour]:
    """Return hooks that pass on, by name.

    Args:
        label: of their middleware.
        letters: keys of `HOOK_NAMES`.
    """
    names = [HOOK_NAMES[letter] for letter in letters]
    return {name: hook(label, name, behaviours_of(name)["passes"]) for name in names}


def behaviours_of(name: str) -> Mapping[str, Behaviour]:
    """Return what a hook may do."""
    return AFTER if name in _AFTER_HOOKS else BEFORE


def _named(method: Behaviour, label: str, name: str) -> Behaviour:
    method.__name__, method.__qualname__ = name, f"{label}.{name}"
    return method


def _described(given: object) -> object:
    """Name a view by its name, its arguments as they are, anything else by its kind."""
    if isinstance(given, tuple | dict):
        return given
    return getattr(given, "__name__", None) or describe(given)


# --- The table ----------------------------------------------------------------------


def _subset(letters: str) -> Shape:
    return lambda label: mixin(label, hooks_of(label, letters))


def _odd(name: str, behaviour: str, as_async: bool) -> Shape:
    """Have one hook do something, and the others of the same middleware pass on."""

    def shape(label: str) -> type[MiddlewareMixin]:
        make = async_hook if as_async else hook
        odd = {name: make(label, name, behaviours_of(name)[behaviour])}
        return mixin(label, {**hooks_of(label, "qvtxr"), **odd})

    return shape


_LETTERS = [
    "".join(letters)
    for size in range(len(HOOK_NAMES) + 1)
    for letters in itertools.combinations(HOOK_NAMES, size)
]
MIXINS: dict[str, Shape] = {f"mixin_{letters}": _subset(letters) for letters in _LETTERS}

# Where the same comes of it for sync and async hooks, a few will do.
_ASYNC = ("passes", "answers", "answers_page", "raises_ValueError", "raises_Http404", "colours")
ODD_HOOKS: dict[str, Shape] = {
    f"{name}__{behaviour}": _odd(name, behaviour, as_async=False)
    for name in HOOK_NAMES.values()
    for behaviour in behaviours_of(name)
    if behaviour != "passes"
} | {
    f"{name}__async_{behaviour}": _odd(name, behaviour, as_async=True)
    for name in HOOK_NAMES.values()
    for behaviour in _ASYNC
}
