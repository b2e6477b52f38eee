"""Which of ASGI's two calling styles an application has, and one way to call both.

ASGI 3 applications are called once, ``await application(scope, receive, send)``. ASGI 2 applications are
called twice, ``await application(scope)(receive, send)``. Nothing on an application says which it is, so it
is decided by the table in `is_double_callable`: first by what is certain without a call, and only where that
leaves both open, by what a call returns.

Nothing here keeps state; every function may be called from any thread.
"""

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from django_asyncbridge.bridge.sync import iscoroutinefunction

__all__ = (
    "double_to_single_callable",
    "guarantee_single_callable",
    "is_double_callable",
)

# How many partials and decorators are looked through before giving up, so that a wrapper that wraps
# itself cannot hold us for ever. Real ones are a handful deep; the figure is not measured.
_MAX_LAYERS = 100


def is_double_callable(application: Callable[..., Any]) -> bool:
    """Tell whether an application is an ASGI 2 (double-callable) one.

    The first row that applies decides:

    === ============================================================================ ===========
    row the application                                                              taken for
    === ============================================================================ ===========
    1   has a true attribute ``_asgi_single_callable``                               ASGI 3
    2   has a true attribute ``_asgi_double_callable``                               ASGI 2
    3   is a class with ``__await__`` (an instance is awaited, as Starlette's
        endpoints are)                                                               ASGI 3
    4   is any other class                                                           ASGI 2
    5   is a coroutine function, is marked as one, or is an object whose
        ``__call__`` is one                                                          ASGI 3
    6   can be called with three positional arguments and not with one               ASGI 3
    7   can be called with one and not with three, or with neither                   ASGI 2
    8   can be called with one and with three (``*args``, optional arguments), or
        its signature cannot be read, and it has ``__wrapped__``                     as that is
    9   is anything else                                                             not known
    === ============================================================================ ===========

    A `functools.partial` counts as the function that it calls in rows 1 to 5 and 8, and as itself, with
    fewer arguments, in rows 6 and 7.

    Row 9 is answered with False, since most such callables wrap ASGI 3 applications;
    `guarantee_single_callable` does not rely on that answer and decides at the call.

    The application is not called.

    Args:
        application: Any ASGI application.

    Returns:
        True for ASGI 2; False for ASGI 3 and where only a call could tell.

    Source: ASGI specification, "Legacy Applications".
    """
    return _is_double(application) is True


def double_to_single_callable(
    application: Callable[..., Any],
) -> Callable[[Any, Any, Any], Awaitable[Any]]:
    """Make an ASGI 3 application of an ASGI 2 one.

    The result runs the application in the task that awaits it: context variables, cancellation and
    exceptions pass through unchanged. What is given here is taken for ASGI 2 without a test.

    Args:
        application: An ASGI 2 application: called with the scope, it returns what is called with
            receive and send.

    Returns:
        A coroutine function of scope, receive and send.

    Source: ASGI specification, "Legacy Applications".
    """

    async def new_application(scope: Any, receive: Any, send: Any) -> Any:
        instance = application(scope)
        return await instance(receive, send)

    return new_application


def guarantee_single_callable(
    application: Callable[..., Any],
) -> Callable[[Any, Any, Any], Awaitable[Any]]:
    """Return an application that can be called the ASGI 3 way, whatever its style.

    An ASGI 3 application comes back as the same object; an ASGI 2 one comes back adapted. The table
    is that of `is_double_callable`. Where it leaves the style open (row 9), every call decides for
    itself:

    ================================================== =============================================
    called with scope, receive and send, it            then
    ================================================== =============================================
    returns an awaitable                               that is awaited: ASGI 3
    returns a callable                                 that is called with receive and send: ASGI 2
    returns anything else                              TypeError
    raises TypeError, and called with the scope alone
    returns a callable                                 that is called with receive and send: ASGI 2
    raises TypeError otherwise                         that TypeError
    raises anything else                               that
    ================================================== =============================================

    So a callable of open style whose own code raises TypeError before it returns is called twice.
    The attributes of rows 1 and 2 avoid that.

    The result runs the application in the task that awaits it: context variables, cancellation and
    exceptions pass through unchanged.

    Args:
        application: Any ASGI application.

    Returns:
        What can be awaited as ``result(scope, receive, send)``.

    Source: ASGI specification, "Applications" and "Legacy Applications".
    """
    double = _is_double(application)
    if double is None:
        return _decided_at_the_call(application)
    return double_to_single_callable(application) if double else application


def _is_double(application: object) -> bool | None:
    """True for ASGI 2, False for ASGI 3, None where only a call can tell."""
    # Layer by layer, since a decorator may turn one style into the other and still show, as
    # functools.wraps makes it, what it wraps: the outermost one that says anything is what is called.
    for _ in range(_MAX_LAYERS):
        for verdict in (_by_hint, _by_kind, _by_signature):
            double = verdict(application)
            if double is not None:
                return double
        application = _next_layer(application)
        if application is None:
            break
    return None


def _by_hint(application: object) -> bool | None:
    places = (application, _without_partials(application))
    if any(getattr(place, "_asgi_single_callable", False) for place in places):
        return False
    if any(getattr(place, "_asgi_double_callable", False) for place in places):
        return True
    return None


def _by_kind(application: object) -> bool | None:
    application = _without_partials(application)
    if inspect.isclass(application):
        return not hasattr(application, "__await__")
    if iscoroutinefunction(application):
        return False
    # Of the type, as Python itself calls: functools.wraps leaves a class's methods in the function.
    if iscoroutinefunction(getattr(type(application), "__call__", None)):  # noqa: B004
        return False
    return None


def _by_signature(application: Any) -> bool | None:
    try:
        signature = inspect.signature(application, follow_wrapped=False)
    except (TypeError, ValueError):  # not to be had: some extension functions, malformed ones
        return None
    takes_three = _takes(signature, 3)
    if takes_three and _takes(signature, 1):
        return None
    return not takes_three


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*(None,) * count)
    except TypeError:
        return False
    return True


def _without_partials(application: object) -> object:
    while isinstance(application, functools.partial):
        application = application.func
    return application


def _next_layer(application: object) -> object | None:
    """Return what an application wraps, with the arguments that partials on the way have bound."""
    if not isinstance(application, functools.partial):
        return getattr(application, "__wrapped__", None)
    inner: Any = _next_layer(application.func)
    if inner is None:
        return None
    return functools.partial(inner, *application.args, **application.keywords)


def _decided_at_the_call(
    application: Callable[..., Any],
) -> Callable[[Any, Any, Any], Awaitable[Any]]:
    async def new_application(scope: Any, receive: Any, send: Any) -> Any:
        try:
            outcome = application(scope, receive, send)
        except TypeError:
            outcome = _double_instance(application, scope)
            if outcome is None:
                raise
        if inspect.isawaitable(outcome):
            return await outcome
        if callable(outcome):
            return await outcome(receive, send)
        raise TypeError(
            f"The application {application!r} returned {outcome!r}. An ASGI 3 application returns an "
            "awaitable; an ASGI 2 application returns a callable that takes receive and send."
        )

    return new_application


def _double_instance(
    application: Callable[..., Any], scope: Any
) -> Callable[[Any, Any], Any] | None:
    """Call an application the ASGI 2 way; None if it refuses that too or returns no instance."""
    try:
        instance: object = application(scope)
    except TypeError:
        return None
    if callable(instance):
        return instance
    if inspect.iscoroutine(instance):
        instance.close()  # else it is reported as never awaited, beside the error that matters
    return None
