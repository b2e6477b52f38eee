"""`Plan`: what ``settings.MIDDLEWARE`` comes to, as layers of hooks around a core.

Django loads the middleware; here is decided how each one is run. A middleware that is nothing but hooks, a plain
``MiddlewareMixin``, becomes a `Layer`: its hooks are steps of their own, and between them the request stays where it is. A
middleware of any other shape (a function, a ``__call__`` of its own) is never guessed at: it is the core of a
plan, called with the request as Django calls it, and what it gets as ``get_response`` runs the plan inside.

Which thread may touch what. Plans are made when the handler is, and do not change.

Source: Django's documentation, "Middleware".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.utils.deprecation import MiddlewareMixin

from django_asyncbridge.bridge.sync import iscoroutinefunction
from django_asyncbridge.handlers.django_sides import condition_of
from django_asyncbridge.handlers.sides import Side, Step, step_of

__all__ = (
    "Hooks",
    "Layer",
    "Plan",
    "around",
    "enclosing",
    "is_plain",
    "is_transparent",
    "step_of_hook",
)

_Callable = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Layer:
    """A middleware that is nothing but hooks.

    Attributes:
        process_request: called on the way in; None if it has none.
        process_response: called on the way out; None if it has none.
    """

    process_request: Step | None
    process_response: Step | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The rest of a request's way, from one middleware inwards.

    Attributes:
        layers: outermost first.
        core: a middleware of another shape, which runs what is inside of it itself; None for the view.
    """

    layers: tuple[Layer, ...] = ()
    core: Step | None = None


@dataclass(frozen=True, slots=True)
class Hooks:
    """The hooks around the view, of all middlewares, in the order they are called in.

    Attributes:
        view: ``process_view``.
        template_response: ``process_template_response``.
        exception: ``process_exception``.
    """

    view: tuple[Step, ...] = ()
    template_response: tuple[Step, ...] = ()
    exception: tuple[Step, ...] = ()


def is_plain(middleware: object) -> bool:
    """Tell whether a middleware is nothing but its hooks, so that they can be called one by one."""
    if not isinstance(middleware, MiddlewareMixin):
        return False
    cls: Any = type(middleware)
    if cls.__call__ is not MiddlewareMixin.__call__:
        return False
    # Of Django's own making, and so not in everybody's type stubs.
    if cls.__acall__ is not MiddlewareMixin.__acall__:
        return False
    hooks = (getattr(middleware, name, None) for name in ("process_request", "process_response"))
    # Django refuses async ones when they are called, and in which way is Django's business.
    return not any(iscoroutinefunction(hook) for hook in hooks)


def is_transparent(middleware: object) -> bool:
    """Tell whether a middleware of ours does for other handlers what this one does itself."""
    return "passes_through_our_handler" in vars(type(middleware))


def enclosing(middleware: object, inside: Plan) -> Plan:
    """Return the plan of a plain middleware around another plan."""
    layer = Layer(
        _step_if_any(getattr(middleware, "process_request", None)),
        _step_if_any(getattr(middleware, "process_response", None)),
    )
    return Plan((layer, *inside.layers), inside.core)


def around(middleware: _Callable, is_async: bool) -> Plan:
    """Return the plan of a middleware that runs what is inside itself.

    Args:
        middleware: what Django's factory returned.
        is_async: whether it was made to be awaited. A sync one holds its thread, whoever marked it: what it calls may block.
    """
    return Plan(core=Step(middleware, Side.LOOP if is_async else Side.THREAD))


def step_of_hook(hook: _Callable) -> Step:
    """Return a hook of a middleware with the side it may run on."""
    return step_of(hook, condition_of(hook))


def _step_if_any(hook: _Callable | None) -> Step | None:
    return None if hook is None else step_of_hook(hook)
