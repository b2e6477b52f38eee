"""What is served: the application of the settings, and what is none."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from django.core.wsgi import get_wsgi_application
from django.test import override_settings

from django_asyncbridge.bridge.testing import ApplicationCommunicator
from django_asyncbridge.bridge.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from django_asyncbridge.handlers.asgi import ASGIHandler
from django_asyncbridge.serving.application import (
    Served,
    import_application,
    name_of_application,
    named_application,
    project_application,
)
from django_asyncbridge.serving.errors import ApplicationError
from tests.serving.children import LIMIT_SECONDS


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


# --- Applications named on the command line ----------------------------------------------


def wsgi(environ: dict[str, object], start_response: Callable[..., object]) -> list[bytes]:
    start_response("200 OK", [("content-type", "text/plain")])
    return [str(environ["PATH_INFO"]).encode()]


class NoApplication:
    """Takes too much."""

    def __call__(self, one: object, two: object, three: object, four: object) -> None:
        """Nothing."""


NONE = NoApplication()


@pytest.mark.parametrize("separator", [".", ":"])
def test_named_application_of_asgi_is_as_it_is(separator: str) -> None:
    with override_settings(DEBUG=False):
        served = named_application(f"{__name__}{separator}refuse")
    assert served == Served(refuse, f"ASGI application '{__name__}{separator}refuse'")


def test_named_application_has_its_static_files_while_debugging() -> None:
    with override_settings(DEBUG=True):
        served = named_application(f"{__name__}:refuse")
    assert getattr(served.application, "application", None) is refuse


@pytest.mark.parametrize("name", ["wsgi", "WSGI"])
def test_named_application_of_wsgi_is_wrapped(name: str) -> None:
    with override_settings(DEBUG=False):
        served = named_application(f"{__name__}:{name}")
    assert served.name == f"WSGI application '{__name__}:{name}'"
    application: Any = served.application

    async def main() -> Any:
        http = ApplicationCommunicator(
            application,
            {
                "type": "http",
                "method": "GET",
                "path": "/some/",
                "query_string": b"",
                "headers": [(b"host", b"localhost")],
                "http_version": "1.1",
                "scheme": "http",
            },
        )
        await http.send_input({"type": "http.request"})
        start = await http.receive_output(LIMIT_SECONDS)
        await http.wait(LIMIT_SECONDS)
        websocket = ApplicationCommunicator(application, {"type": "websocket", "path": "/"})
        await websocket.send_input({"type": "websocket.connect"})
        close = await websocket.receive_output(LIMIT_SECONDS)
        await websocket.wait(LIMIT_SECONDS)
        return start["type"], close["type"]

    assert asyncio.run(main()) == ("http.response.start", "websocket.close")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("NONE", f"'{__name__}:NONE' takes (one"),
        ("NOT_CALLABLE", "which cannot be called"),
        ("nothing", "cannot be imported: AttributeError"),
        ("not a name", "is not a dotted path such as 'mysite.asgi.application'"),
    ],
)
def test_named_application_that_is_none_raises_what_is_wrong(name: str, text: str) -> None:
    with pytest.raises(ApplicationError, match=re.escape(text)):
        named_application(f"{__name__}:{name}")


def test_name_of_application_is_known_without_importing_it() -> None:
    with override_settings(ASGI_APPLICATION="nowhere.application"):
        assert name_of_application(None) == "ASGI application 'nowhere.application'"
        assert name_of_application("there.app") == "application 'there.app'"
    with override_settings(ASGI_APPLICATION=None):
        assert name_of_application(None) == "the project"
