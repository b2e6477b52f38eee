"""`Mounts`: who gets which path, and what is left of it there."""

import asyncio
import io
import json
from typing import Any

import pytest
from django.core.handlers.asgi import ASGIHandler, ASGIRequest
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, JsonResponse
from django.urls import re_path, reverse

from django_asyncbridge.asgi import get_asgi_application
from django_asyncbridge.bridge.wsgi import WsgiToAsgi
from django_asyncbridge.handlers.mounts import Mounts
from tests.handlers.requests import get
from tests.handlers.requests import scope as get_scope


class Note:
    """An ASGI application that notes the scopes it gets."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)


def wsgi_echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Say where it is, and which way was asked for, as WSGI applications see it."""
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps([environ["SCRIPT_NAME"], environ["PATH_INFO"]]).encode()]


class WsgiSite:
    """A WSGI application with a method of its own, as frameworks have it."""

    def __call__(self, environ: Any, start_response: Any) -> Any:
        raise AssertionError


async def legacy_free(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError


def echo(request: HttpRequest, rest: str) -> JsonResponse:
    return JsonResponse([request.path, request.path_info, reverse("echo", args=["x"])], safe=False)


urlpatterns = [re_path("^(.*)$", echo, name="echo")]


def sent_to(path: str, prefixes: list[str], **scope: Any) -> tuple[str, Any]:
    """Return which prefix a path is mounted at, or "default", and the scope of the application there."""
    notes = {prefix: Note() for prefix in prefixes}
    default = Note()
    mounts = Mounts(notes, default=default)
    asyncio.run(mounts({**get_scope(path), **scope}, None, None))
    ((name, note),) = [
        (name, note) for name, note in [*notes.items(), ("default", default)] if note.scopes
    ]
    return name, note.scopes[0]


# --- Who gets it -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("/old", "/old"),
        ("/old/", "/old"),
        ("/old/x", "/old"),
        ("/old//x", "/old"),
        ("/older", "default"),
        ("/older/old/", "default"),
        ("/ol", "default"),
        ("/", "default"),
        ("", "default"),
        ("*", "default"),
        ("/OLD/", "default"),
        ("/new/old", "default"),
        ("/old/shop", "/old/shop"),
        ("/old/shop/x", "/old/shop"),
        ("/old/shops", "/old"),
        ("/é/ü", "/é"),
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_mounts_path_goes_to_the_longest_prefix_it_is_below(
    path: str, prefix: str, kind: str
) -> None:
    for prefixes in (["/old", "/old/shop", "/é"], ["/é", "/old/shop", "/old"]):
        assert sent_to(path, prefixes, type=kind)[0] == prefix


def test_mounts_what_has_no_path_goes_to_the_default_as_it_came() -> None:
    default, mounted = Note(), Note()
    mounts = Mounts({"/old": mounted}, default=default)
    for scope in ({"type": "lifespan"}, {"type": "other", "path": "/old"}):
        asyncio.run(mounts(scope, None, None))
        assert default.scopes.pop() is scope
    assert mounted.scopes == []


def test_mounts_hand_on_receive_and_send_and_what_is_raised() -> None:
    async def failing(*call: Any) -> None:
        raise LookupError(*call[1:])

    with pytest.raises(LookupError) as raised:
        asyncio.run(Mounts({"/old": failing}, default=Note())(get_scope("/old"), 1, 2))
    assert raised.value.args == (1, 2)


def test_mounts_call_applications_of_asgi_2() -> None:
    scopes: list[Any] = []

    class Legacy:
        def __init__(self, scope: Any) -> None:
            scopes.append(scope)

        async def __call__(self, receive: Any, send: Any) -> None: ...

    mounts = Mounts({"/old": Legacy}, default=Legacy)
    asyncio.run(mounts(get_scope("/old/x"), None, None))
    asyncio.run(mounts(get_scope("/x"), None, None))
    assert [scope.get("root_path") for scope in scopes] == ["/old", None]


# --- What it gets ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root_path", "path", "raw_path", "mounted"),
    [
        ("", "/old/x", b"/old/x", ("/old", "/old/x", b"/old/x")),
        (None, "/old", b"/old", ("/old", "/old", b"/old")),
        ("/site", "/site/old/x", b"/site/old/x", ("/site/old", "/site/old/x", b"/site/old/x")),
        ("/site/", "/site/old", b"/site/old", ("/site/old", "/site/old", b"/site/old")),
        # A server that sends the path without the root path.
        ("/site", "/old/x", b"/old/x", ("/site/old", "/site/old/x", b"/site/old/x")),
        ("/é", "/old/ü", b"/old/%C3%BC", ("/é/old", "/é/old/ü", b"/%C3%A9/old/%C3%BC")),
        ("/site", "/old/x", None, ("/site/old", "/site/old/x", None)),
    ],
)
def test_mounts_mounted_application_gets_the_whole_path_and_a_longer_root_path(
    root_path: Any, path: str, raw_path: Any, mounted: tuple[Any, ...]
) -> None:
    extra = {"root_path": root_path, "raw_path": raw_path, "state": {"pool": 1}}
    prefix, scope = sent_to(path, ["/old"], **extra)
    assert prefix == "/old"
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == mounted
    assert scope["state"] is extra["state"]


@pytest.mark.parametrize(
    ("root_path", "path"),
    [("/site", "/site/older"), ("/old", "/old/x"), ("/old", "/old"), ("/site", "/elsewhere")],
)
def test_mounts_prefixes_are_relative_to_the_root_path(root_path: str, path: str) -> None:
    prefix, scope = sent_to(path, ["/old"], root_path=root_path)
    assert prefix == "default"
    assert (scope["root_path"], scope["path"]) == (root_path, path)


def test_mounts_leave_the_scope_of_the_server_as_it_is() -> None:
    scope = {**get_scope("/old/x"), "root_path": ""}
    before = dict(scope)
    asyncio.run(Mounts({"/old": Note()}, default=Note())(scope, None, None))
    assert scope == before


def test_mounts_inside_of_mounts_take_their_part_of_the_path() -> None:
    note = Note()
    inner = Mounts({"/b": note}, default=Note())
    outer = Mounts({"/a": inner}, default=Note())
    asyncio.run(outer(get_scope("/a/b/c"), None, None))
    ((scope,),) = (note.scopes,)
    assert (scope["root_path"], scope["path"]) == ("/a/b", "/a/b/c")


@pytest.mark.parametrize(
    ("root_path", "path", "script_name", "path_info"),
    [
        ("", "/old", "/old", ""),
        ("", "/old/", "/old", "/"),
        ("", "/old/x/ü", "/old", "/x/\xc3\xbc"),
        ("/site", "/site/old/x", "/site/old", "/x"),
        ("/site", "/old/x", "/site/old", "/x"),
    ],
)
def test_mounts_wsgi_application_finds_its_own_part_in_path_info(
    root_path: str, path: str, script_name: str, path_info: str
) -> None:
    mounts = Mounts({"/old": WsgiToAsgi(wsgi_echo)}, default=Note())

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await mounts({**scope, "root_path": root_path, "http_version": "1.1"}, receive, send)

    answer = asyncio.run(get(application, path))
    assert answer.status == 200
    assert json.loads(answer.body) == [script_name, path_info]


@pytest.mark.urls(__name__)
@pytest.mark.parametrize(
    ("root_path", "path", "path_info", "reversed_path"),
    [
        ("", "/page/", "/page/", "/x"),
        ("/site", "/site/page/", "/page/", "/site/x"),
        ("/site", "/site/new/page/", "/page/", "/site/new/x"),
        ("", "/new/page/", "/page/", "/new/x"),
    ],
)
def test_mounts_django_finds_its_own_part_in_path_info(
    root_path: str, path: str, path_info: str, reversed_path: str
) -> None:
    """As the default and mounted at "/new"."""
    django = get_asgi_application()
    mounts = Mounts({"/new": django, "/old": Note()}, default=django)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await mounts({**scope, "root_path": root_path}, receive, send)

    answer = asyncio.run(get(application, path))
    assert json.loads(answer.body) == [path, path_info, reversed_path]


def test_mounts_request_of_django_agrees_with_the_environ_of_wsgi() -> None:
    _, scope = sent_to("/site/old/x", ["/old"], root_path="/site")
    request = ASGIRequest(scope, io.BytesIO())
    assert (request.META["SCRIPT_NAME"], request.META["PATH_INFO"]) == ("/site/old", "/x")


# --- What is refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("", "give that application as default"),
        ("/", "give that application as default"),
        ("old", "does not begin with a slash"),
        ("/old/", "ends with a slash"),
        (b"/old", "is no str"),
        (None, "is no str"),
    ],
    ids=str,
)
def test_mounts_prefix_that_is_none_is_refused(prefix: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        Mounts({prefix: Note(), "/right": Note()}, default=Note())
    assert repr(prefix) in str(raised.value)


@pytest.mark.parametrize(
    ("application", "said"),
    [
        (3, "is 3, which cannot be called"),
        (wsgi_echo, r"takes \(environ.* WsgiToAsgi\(application\)"),
        (WsgiSite(), r"takes \(environ.* WsgiToAsgi\(application\)"),
        (WSGIHandler(), r"takes \(environ.* WsgiToAsgi\(application\)"),
        (lambda: None, r"takes \(\)"),
    ],
    ids=["a number", "a WSGI function", "a WSGI object", "Django's WSGI handler", "no arguments"],
)
def test_mounts_what_is_no_asgi_application_is_refused(application: Any, said: str) -> None:
    with pytest.raises(TypeError, match=f"^What is mounted at '/old' {said}"):
        Mounts({"/old": application}, default=Note())
    with pytest.raises(TypeError, match=f"^The default application {said}"):
        Mounts({}, default=application)


def test_mounts_djangos_handlers_are_asgi_applications() -> None:
    Mounts({"/old": ASGIHandler(), "/new": legacy_free}, default=get_asgi_application())
