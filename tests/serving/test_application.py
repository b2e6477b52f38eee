"""What is served: the application of the settings, and what is none."""

import re

import pytest
from django.core.wsgi import get_wsgi_application
from django.test import override_settings

from django_asyncbridge.bridge.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from django_asyncbridge.handlers.asgi import ASGIHandler
from django_asyncbridge.serving.application import import_application, project_application
from django_asyncbridge.serving.errors import ApplicationError


async def refuse(_scope: Scope, _receive: ASGIReceiveCallable, _send: ASGISendCallable) -> None:
    """An application that answers nothing."""


NOT_CALLABLE = "text"
WSGI = get_wsgi_application()


def test_project_application_is_the_one_of_the_settings_as_it_is_outside_debug() -> None:
    with override_settings(DEBUG=False, ASGI_APPLICATION=f"{__name__}.refuse"):
        served = project_application()
    assert served.application is refuse
    assert served.name == f"ASGI application '{__name__}.refuse'"


def test_project_application_without_the_setting_is_ours() -> None:
    with override_settings(DEBUG=True, ASGI_APPLICATION=None):
        served = project_application()
    assert served.name == "the project"
    # Behind the static files.
    assert type(getattr(served.application, "application", None)) is ASGIHandler


def test_project_application_without_staticfiles_is_not_wrapped() -> None:
    with override_settings(DEBUG=True, INSTALLED_APPS=[], ASGI_APPLICATION=f"{__name__}.refuse"):
        assert project_application().application is refuse


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("nowhere.application", "ModuleNotFoundError: No module named 'nowhere'"),
        ("application", "doesn't look like a module path"),
        (f"{__name__}.nothing", "cannot be imported: ImportError"),
        (f"{__name__}.NOT_CALLABLE", "is not an ASGI application: str is not callable"),
        (f"{__name__}.WSGI", "is a WSGI application; name the one that get_asgi_application()"),
        ("", "is ''; it must be a dotted path such as 'mysite.asgi.application'"),
        (refuse, "; it must be a dotted path such as 'mysite.asgi.application'"),
    ],
)
def test_import_application_that_is_none_raises_what_is_wrong(path: object, text: str) -> None:
    with pytest.raises(ApplicationError, match=re.escape(text)):
        import_application(path)
