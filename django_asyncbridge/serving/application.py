"""What to serve: the project's ASGI application, with its static files while it is developed."""

from dataclasses import dataclass
from typing import cast

from django.apps import apps
from django.conf import settings
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.utils.module_loading import import_string

from django_asyncbridge.asgi import get_asgi_application
from django_asyncbridge.bridge.typing import ASGIApplication
from django_asyncbridge.serving.errors import ApplicationError

__all__ = ("Served", "import_application", "project_application", "with_static_files")


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
    if settings.DEBUG and apps.is_installed("django.contrib.staticfiles"):
        return Served(with_static_files(served.application), served.name)
    return served


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
