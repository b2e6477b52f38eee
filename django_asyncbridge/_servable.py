"""What can be served: is an object an ASGI application, is it a lifespan? And the objects that the settings name.

`application_refusal` and `lifespan_refusal` are the rules, pure functions: they look at an object and call nothing. Start-up and the system checks ask
the same ones, so what one refuses the other has named. Nobody's signature is trusted for more than it says: where it cannot be
read, or takes anything, the object is accepted, and the call decides.

Which thread may touch what. Nothing is kept here; any thread may call all of it. Importing takes as long as the module does.
"""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.utils.module_loading import import_string

from django_asyncbridge.bridge import _wrapping

__all__ = (
    "LIFESPAN",
    "UNDECORATED",
    "WEBSOCKET_APPLICATION",
    "Refusal",
    "application_refusal",
    "import_lifespan",
    "import_websocket_application",
    "is_wsgi",
    "lifespan_refusal",
    "manager_refusal",
    "websocket_refusal",
)

LIFESPAN = 'ASYNCBRIDGE["LIFESPAN"]'
WEBSOCKET_APPLICATION = 'ASYNCBRIDGE["WEBSOCKET_APPLICATION"]'


class Refusal(NamedTuple):
    """Why an object cannot be served.

    Attributes:
        problem: the end of a sentence about the object.
        hint: a sentence: what to write instead.
    """

    problem: str
    hint: str


# --- Applications --------------------------------------------------------------------

_HOW_TO_WRITE_ONE = 'Name what is written as "async def application(scope, receive, send)".'


def application_refusal(code: object) -> Refusal | None:
    """Return why an object is no ASGI application of version 3 or 2; None if nothing speaks against it."""
    if not callable(code):
        return Refusal(f"is {code!r}, which cannot be called", _HOW_TO_WRITE_ONE)
    if isinstance(code, type) and hasattr(code, "as_asgi"):
        hint = f"Name what {code.__qualname__}.as_asgi() returns, as a variable of the module."
        return Refusal("is a consumer class, not an application made of it", hint)
    signature = _signature(code)
    if signature is None or _takes(signature, 3):
        return None
    single = _takes(signature, 1)
    if is_wsgi(code):
        hint = (
            "Wrap it: WsgiToAsgi(application), with "
            '"from django_asyncbridge.bridge.wsgi import WsgiToAsgi".'
        )
        return Refusal(f"takes {signature}, as WSGI applications do", hint)
    # A class of ASGI 2 has an async __call__, but calling the class is not that.
    if not single or (not isinstance(code, type) and _wrapping.is_async(code)):
        return Refusal(f"takes {signature}", _HOW_TO_WRITE_ONE)
    return None


def is_wsgi(code: object) -> bool:
    """Tell whether a callable takes two arguments, as WSGI applications do, and cannot be called as ASGI applications are."""
    signature = _signature(code) if callable(code) else None
    if signature is None:
        return False
    return _takes(signature, 2) and not (_takes(signature, 1) or _takes(signature, 3))


def websocket_refusal(code: object) -> Refusal | None:
    """Return why an object is no application for WebSockets; None if nothing speaks against it."""
    if isinstance(code, ASGIHandler):
        return Refusal(
            "is Django's handler, which has no WebSockets but those of this very setting",
            "Name the application that answers WebSockets.",
        )
    return application_refusal(code)


def import_websocket_application(path: str) -> Callable[..., Any]:
    """Import what ``WEBSOCKET_APPLICATION`` names.

    Raises:
        django.core.exceptions.ImproperlyConfigured: it cannot be imported, or is no application; with what to write instead.
    """
    return _import(WEBSOCKET_APPLICATION, path, websocket_refusal)


# --- Lifespans -----------------------------------------------------------------------

UNDECORATED = Refusal(
    "is an async function without the decorator that makes it a context manager",
    'Write "@contextlib.asynccontextmanager" above it, and "yield" in it where the server runs.',
)
"""The common mistake."""


def lifespan_refusal(code: Any) -> Refusal | None:
    """Return why an object is no async context manager function; None if nothing speaks against it."""
    if isinstance(code, type):
        if not _is_async_context_manager(code):
            hint = 'Give it both, or write a function with "@contextlib.asynccontextmanager".'
            return Refusal("is a class without __aenter__ and __aexit__", hint)
    elif _is_async_context_manager(type(code)):
        hint = "Name the function that makes it; each server needs one of its own."
        return Refusal("is an async context manager, not a function that makes one", hint)
    elif not callable(code):
        return Refusal(f"is {code!r}, which cannot be called", UNDECORATED.hint)
    elif _wrapping.is_async(code) or _wrapping.is_async_generator_function(code):
        return UNDECORATED
    elif _wrapping.is_generator_function(code) or _is_made_by(contextlib.contextmanager, code):
        hint = 'Write "async def", and "@contextlib.asynccontextmanager" above it.'
        return Refusal("is a generator function, or a context manager made of one", hint)
    # It takes anything, and hands it on.
    handed_on = _is_made_by(contextlib.asynccontextmanager, code)
    signature = _signature(code.__wrapped__ if handed_on else code)
    if signature is None or _takes(signature, 0):
        return None
    return Refusal(f"takes {signature}", "It is called without arguments; write it without.")


def manager_refusal(made: object) -> Refusal | None:
    """Return why what a lifespan function returned is no async context manager; None if it is one."""
    if _is_async_context_manager(type(made)):
        return None
    return Refusal(
        f"returned {made!r}, which is no async context manager",
        'Write it as "async def", with "@contextlib.asynccontextmanager" above it.',
    )


def import_lifespan(path: str) -> Callable[[], Any]:
    """Import what ``LIFESPAN`` names.

    Raises:
        django.core.exceptions.ImproperlyConfigured: it cannot be imported, or is no async context manager function; with what to
            write instead.
    """
    return _import(LIFESPAN, path, lifespan_refusal)


def _is_made_by(decorator: Callable[[Any], Any], code: object) -> bool:
    """Tell whether a function is what this very decorator returns, not one that was wrapped once more."""
    return getattr(code, "__code__", None) is decorator(_is_made_by).__code__


def _is_async_context_manager(cls: type) -> bool:
    return hasattr(cls, "__aenter__") and hasattr(cls, "__aexit__")


# --- Both ----------------------------------------------------------------------------


def _import(
    setting: str, path: str, refusal_of: Callable[[object], Refusal | None]
) -> Callable[..., Any]:
    try:
        code: Callable[..., Any] = import_string(path)
    except Exception as error:
        raise ImproperlyConfigured(
            f'{setting} names "{path}", which cannot be imported: {type(error).__name__}: {error}'
        ) from error
    refusal = refusal_of(code)
    if refusal is not None:
        raise ImproperlyConfigured(
            f'{setting} names "{path}", which {refusal.problem}. {refusal.hint}'
        )
    return code


def _signature(code: Any) -> inspect.Signature | None:
    """Return what a callable takes; None if it does not tell, as some that are written in C."""
    try:
        return inspect.signature(code, follow_wrapped=False)
    except (TypeError, ValueError):
        return None


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*(None,) * count)
    except TypeError:
        return False
    return True
