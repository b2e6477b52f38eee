"""What to serve: the project's ASGI application, with its static files while it is developed."""

import importlib
import operator
import re
from dataclasses import dataclass
from typing import Any, cast

from django.apps import apps
from django.conf import settings
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.utils.module_loading import import_string

from django_asyncbridge._servable import application_refusal, is_wsgi
from django_asyncbridge.asgi import get_asgi_application
from django_asyncbridge.bridge.typing import ASGIApplication
from django_asyncbridge.bridge.wsgi import WsgiToAsgi
from django_asyncbridge.serving.errors import ApplicationError, ServingError, in_one_line

__all__ = (
    "Served",
    "import_application",
    "import_object",
    "name_of_application",
    "named_application",
    "project_application",
    "with_static_files",
)

# A module, and a name in it; after a colon also a name in that.
_PATH = re.compile(r"(\w+(?:\.\w+)*)[.:](\w+(?:\.\w+)*)")


@dataclass(frozen=True)
class Served:
    """An ASGI application and the words a banner uses for it."""

    application: ASGIApplication
    name: str


def project_application() -> Served:
    """Return what ``settings.ASGI_APPLICATION`` names, or the bridge's own handler if it is not set.

    With ``DEBUG`` and ``django.contrib.staticfiles`` installed, requests below ``STATIC_URL`` are
    answered from the apps' static files, as runserver does; everything else, WebSockets and lifespan
    included, goes to the application as it is.

    Raises:
        ApplicationError: the setting does not name an ASGI application that can be imported.
    """
    path = getattr(settings, "ASGI_APPLICATION", None)
    if path is None:
        served = Served(cast("ASGIApplication", get_asgi_application()), "the project")
    else:
        served = Served(import_application(path), f"ASGI application {path!r}")
    return _while_debugging(served)


def named_application(path: str) -> Served:
    """Return the application that `path` names, instead of the project's; a WSGI application is wrapped.

    With ``DEBUG`` static files are served beside it, as beside the project's.

    Args:
        path: ``mysite.asgi.application`` or ``mysite.asgi:application``.

    Raises:
        ApplicationError: it cannot be imported, or is neither an ASGI nor a WSGI application.
    """
    application = import_object(path, "mysite.asgi.application", ApplicationError)
    if is_wsgi(application):
        return _while_debugging(Served(_wrapped(application), f"WSGI application {path!r}"))
    refusal = application_refusal(application)
    if refusal is not None:
        raise ApplicationError(f"{path!r} {refusal.problem}. {refusal.hint}")
    return _while_debugging(Served(application, f"ASGI application {path!r}"))


def name_of_application(path: str | None) -> str:
    """Return the words for what will be served, without importing it: what ``--app`` names, or the project's application."""
    if path is not None:
        return f"application {path!r}"
    named = getattr(settings, "ASGI_APPLICATION", None)
    return "the project" if named is None else f"ASGI application {named!r}"


def _wrapped(application: Any) -> ASGIApplication:
    """Return a WSGI application as an ASGI application, which has no WebSockets."""
    http = WsgiToAsgi(application)

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        else:
            # It refuses a lifespan with an exception, as ASGI has it.
            await http(scope, receive, send)

    return cast("ASGIApplication", serve)


def _while_debugging(served: Served) -> Served:
    if settings.DEBUG and apps.is_installed("django.contrib.staticfiles"):
        return Served(with_static_files(served.application), served.name)
    return served


def import_object(path: str, example: str, error_class: type[ServingError]) -> Any:
    """Import what `path` names, a module and a name in it, with a dot or a colon between.

    Raises:
        ServingError: of the class that is given: `path` is none, `example` is one; or it cannot be imported.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        raise error_class(f"{path!r} is not a dotted path such as {example!r}.")
    module, name = match.groups()
    try:
        return operator.attrgetter(name)(importlib.import_module(module))
    except Exception as error:
        raise error_class(f"{path!r} cannot be imported: {in_one_line(error)}") from error


def import_application(path: object) -> ASGIApplication:
    """Import the application that a dotted `path` names.

    Args:
        path: for example ``"mysite.asgi.application"``; a setting, so it may be anything.

    Raises:
        ApplicationError: it is no path, nothing is there, importing it raised, or it is not callable or
            Django's WSGI handler. What the import raised is the error's ``__cause__``.
    """
    if not isinstance(path, str) or not path:
        raise ApplicationError(
            f"ASGI_APPLICATION is {path!r}; it must be a dotted path such as 'mysite.asgi.application'."
        )
    try:
        application = import_string(path)
    except Exception as error:
        raise ApplicationError(
            f"ASGI_APPLICATION {path!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(application):
        raise ApplicationError(
            f"ASGI_APPLICATION {path!r} is not an ASGI application: "
            f"{type(application).__name__} is not callable."
        )
    if isinstance(application, WSGIHandler):
        raise ApplicationError(
            f"ASGI_APPLICATION {path!r} is a WSGI application; "
            "name the one that get_asgi_application() returned, in asgi.py."
        )
    return cast("ASGIApplication", application)


def with_static_files(application: ASGIApplication) -> ASGIApplication:
    """Return `application` behind the handler that serves the apps' static files."""
    # The type stubs ask for Django's own handler; the wrapper only calls what it wraps.
    return cast("ASGIApplication", ASGIStaticFilesHandler(cast("ASGIHandler", application)))
