"""System checks: each message with its condition, its hint and the cases that look alike and are right."""

import importlib
import io
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.conf import settings
from django.core import checks as django_checks
from django.core.checks import CheckMessage
from django.core.handlers.asgi import ASGIHandler
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.test import override_settings

import django_asyncbridge
from django_asyncbridge import checks
from django_asyncbridge._checks_asgi import check_asgi_application
from django_asyncbridge._checks_handlers import check_lifespan, check_websocket_application
from django_asyncbridge._checks_middleware import check_middleware, check_middleware_order
from tests.support import ROOT

ALL_CHECKS = (
    checks.check_settings,
    checks.check_setting_names,
    checks.check_executors,
    checks.check_async_safe,
    check_lifespan,
    check_websocket_application,
    check_middleware,
    check_middleware_order,
    checks.check_connections,
    checks.check_pools,
    check_asgi_application,
    checks.check_production,
)

# The modules of a project. The names in it are the cases below.
MIDDLEWARE = """
import functools
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.utils.decorators import (
    async_only_middleware, sync_and_async_middleware, sync_only_middleware,
)
from django.utils.deprecation import MiddlewareMixin

class Both(MiddlewareMixin):
    def process_request(self, request): ...

class Both2(Both): ...

class SyncOnly(MiddlewareMixin):
    async_capable = False

class Neither(MiddlewareMixin):
    sync_capable = async_capable = False

class Silent:
    def __init__(self, get_response): self.get_response = get_response
    def __call__(self, request): return self.get_response(request)

def silent(get_response):
    return lambda request: get_response(request)

@sync_only_middleware
def sync_only(get_response):
    return lambda request: get_response(request)

@sync_and_async_middleware
def both(get_response): ...

@async_only_middleware
def async_only(get_response): ...

class OwnCall(MiddlewareMixin):
    def __call__(self, request):
        response = self.get_response(request)
        response["X-Own"] = "1"
        return response

class OwnCallWithoutMixin(Silent):
    sync_capable = async_capable = True

class OwnCallWrapped(MiddlewareMixin):
    @functools.wraps(OwnCall.__call__)
    def __call__(self, *args):
        return OwnCall.process(self, *args)

class OwnCallSyncOnly(OwnCall):
    async_capable = False

class WithMode(MiddlewareMixin):
    def __call__(self, request):
        if self.async_mode:
            return self.__acall__(request)
        return self.get_response(request)

class WithSuper(MiddlewareMixin):
    def __call__(self, request):
        request.started = 1
        return super().__call__(request)

class WithBase(MiddlewareMixin):
    def __call__(self, request):
        return MiddlewareMixin.__call__(self, request)

class WithInner(MiddlewareMixin):
    def __call__(self, request):
        async def later():
            return await self.get_response(request)
        return later() if self.flag else self.get_response(request)

class WithOther(MiddlewareMixin):
    async def later(self, request): ...
    def __call__(self, request):
        return self.later(request) if self.flag else self.get_response(request)

class WithMark(Silent):
    sync_capable = async_capable = True
    def __call__(self, request):
        if iscoroutinefunction(self):
            return self.later(request)
        return self.get_response(request)

class WithDecorator(MiddlewareMixin):
    def __call__(self, request): ...

    def decorated(call):
        @functools.wraps(call)
        def wrapper(self, request):
            return call(self, request)
        return wrapper

    __call__ = decorated(WithMode.__call__)

class AsyncCall:
    sync_capable, async_capable = False, True
    async def __call__(self, request): ...

class CallIsObject(MiddlewareMixin):
    __call__ = functools.partial(print)

class NoCall:
    async_capable = True
"""

SAFE = """
import functools
from mysite.middleware import Both

def note(sender): ...
async def anote(sender): ...
value = 1
note_object = functools.partial(note, 1)

def decorated(func):
    @functools.wraps(func)
    def wrapper(*args): ...
    return wrapper

@decorated
def decorated_note(sender): ...
"""

LIFESPANS = """
import contextlib
import functools

async def plain(): ...

async def generator():
    yield

@contextlib.asynccontextmanager
async def right():
    yield

@contextlib.asynccontextmanager
async def optional(app=None):
    yield

@contextlib.asynccontextmanager
async def with_app(app):
    yield

def sync_generator():
    yield

@contextlib.contextmanager
def sync_manager():
    yield

def function():
    return right()

def supplying(function):
    return functools.wraps(function)(lambda: function(1))

supplied = supplying(with_app)

made = right()
bound = functools.partial(with_app, 1)
partial_plain = functools.partial(plain)
value = 3
def unreadable(*args): ...
unreadable.__signature__ = 3

class Pool:
    async def __aenter__(self): ...
    async def __aexit__(self, *error): ...
    async def method(self): ...

class PoolOf(Pool):
    def __init__(self, size): ...

class Half:
    async def __aenter__(self): ...
"""

SOCKETS = """
import functools
from django_asyncbridge.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler

async def right(scope, receive, send): ...

async def with_more(scope, receive, send, **options): ...

def anything(*args): ...

def two(scope):
    async def instance(receive, send): ...
    return instance

class Two:
    def __init__(self, scope): ...
    async def __call__(self, receive, send): ...

class Three:
    def __init__(self, inner=None): ...
    async def __call__(self, scope, receive, send): ...

class Consumer:
    def __init__(self, *args, **kwargs): ...
    @classmethod
    def as_asgi(cls): return cls()
    async def __call__(self, scope, receive, send): ...

three = Three()
consumer = Consumer.as_asgi()
partial = functools.partial(with_more, x=1)
django = ASGIHandler.__new__(ASGIHandler)
wsgi = WSGIHandler.__new__(WSGIHandler)
value = 3
def unreadable(*args): ...
unreadable.__signature__ = 3

async def one_argument(websocket): ...
async def none(): ...
def old(environ, start_response): ...
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Write modules of the package ``mysite``; they are gone afterwards."""
    package = tmp_path / "mysite"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, source: str) -> None:
        (package / f"{name}.py").write_text(source, encoding="utf-8")

    write("middleware", MIDDLEWARE)
    write("safe", SAFE)
    write("lifespans", LIFESPANS)
    write("sockets", SOCKETS)
    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == "mysite"]:
        del sys.modules[name]


@pytest.fixture
def databases(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set what the checks see as ``DATABASES``. Not by override_settings, which Django refuses for it."""

    def set_databases(**databases: dict[str, Any]) -> None:
        monkeypatch.setattr(settings, "DATABASES", databases)

    return set_databases


def ids(messages: list[CheckMessage]) -> list[str]:
    """Return the ids without the name of the app, after looking at what every message has to have."""
    for message in messages:
        assert message.hint
        assert message.msg.endswith(".")
        assert (message.level >= django_checks.ERROR) is str(message.id).startswith("asyncbridge.E")
    return [str(message.id).removeprefix("asyncbridge.") for message in messages]


def one(messages: list[CheckMessage], number: str) -> CheckMessage:
    """Return the only message, which has to have that id."""
    assert ids(messages) == [number]
    return messages[0]


def middleware(*names: str) -> list[str]:
    return [f"mysite.middleware.{name}" for name in names]


# --- ASYNCBRIDGE -----------------------------------------------------------------------


def test_checks_settings_right_are_silent() -> None:
    with override_settings(ASYNCBRIDGE={"REQUEST_THREADS": {"MAX": 4}}):
        assert checks.check_settings() == []


def test_checks_settings_mistyped_key_is_named_with_the_nearest() -> None:
    with override_settings(ASYNCBRIDGE={"REQUEST_THREAD": {}}):
        message = one(checks.check_settings(), "E001")
    assert message.msg == "ASYNCBRIDGE has the unknown key 'REQUEST_THREAD'."
    assert message.hint == 'Did you mean "REQUEST_THREADS"?'


def test_checks_settings_wrong_value_is_named_with_what_it_has_to_be() -> None:
    with override_settings(ASYNCBRIDGE={"REQUEST_THREADS": {"MAX": "4"}}):
        message = one(checks.check_settings(), "E002")
    assert message.msg == 'ASYNCBRIDGE["REQUEST_THREADS"]["MAX"] is \'4\'.'
    assert message.hint == "It has to be a whole number above 0, or None."
    assert message.obj == 'ASYNCBRIDGE["REQUEST_THREADS"]["MAX"]'


def test_checks_settings_all_problems_are_named_at_once() -> None:
    with override_settings(ASYNCBRIDGE={"NO": 1, "ACCELERATE_DJANGO": 1, "ASYNC_SAFE": ["x"]}):
        assert ids(checks.check_settings()) == ["E001", "E002", "E002"]


# --- Executors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "executor",
    [
        {},
        {"MAX_WORKERS": 2, "OPTIONS": {"idle_seconds": 5}},
        {"BACKEND": "concurrent.futures.ThreadPoolExecutor", "MAX_WORKERS": 2},
        {"BACKEND": "concurrent.futures.ProcessPoolExecutor"},
    ],
    ids=str,
)
def test_checks_executor_that_can_be_built_is_silent(executor: dict[str, Any]) -> None:
    with override_settings(ASYNCBRIDGE={"EXECUTORS": {"reports": executor}}):
        assert checks.check_executors() == []


@pytest.mark.parametrize(
    ("executor", "said"),
    [
        ({"BACKEND": "no_such_package.Executor"}, "no_such_package"),
        ({"BACKEND": "concurrent.futures.Future"}, "concurrent.futures.Future"),
        ({"BACKEND": "concurrent.futures.wait"}, "concurrent.futures.wait"),
        (
            {"BACKEND": "concurrent.futures.ThreadPoolExecutor", "OPTIONS": {"no_such": 1}},
            "no_such",
        ),
        ({"OPTIONS": {"no_such": 1}}, "no_such"),
    ],
    ids=str,
)
def test_checks_executor_that_cannot_be_built_is_named(executor: dict[str, Any], said: str) -> None:
    with override_settings(ASYNCBRIDGE={"EXECUTORS": {"reports": executor, "right": {}}}):
        message = one(checks.check_executors(), "E003")
    assert message.msg.startswith('ASYNCBRIDGE["EXECUTORS"]["reports"] cannot be built: ')
    assert said in message.msg
    assert "BACKEND" in str(message.hint)


def test_checks_executors_start_nothing() -> None:
    executors = {
        name: {"BACKEND": f"concurrent.futures.{name}", "MAX_WORKERS": 2}
        for name in (ThreadPoolExecutor.__name__, "ProcessPoolExecutor")
    }
    before = threading.enumerate()
    with override_settings(ASYNCBRIDGE={"EXECUTORS": executors}):
        assert checks.check_executors() == []
    assert threading.enumerate() == before


# --- ASYNC_SAFE ------------------------------------------------------------------------


def async_safe_messages(*paths: str) -> list[CheckMessage]:
    with override_settings(ASYNCBRIDGE={"ASYNC_SAFE": list(paths)}):
        return checks.check_async_safe()


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "path", ["safe.note", "middleware.Both", "middleware.Both.process_request"]
)
def test_checks_async_safe_right_path_is_silent(path: str) -> None:
    assert async_safe_messages(f"mysite.{path}") == []


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "path", ["no_such_package.note", "mysite.safe.nothing", "mysite.no_such_module.note"]
)
def test_checks_async_safe_path_that_cannot_be_imported_is_named(path: str) -> None:
    message = one(async_safe_messages(path), "E004")
    assert f'names "{path}", which cannot be imported' in message.msg


def test_checks_async_safe_module_that_raises_is_named(project: Callable[..., None]) -> None:
    project("broken", "1 / 0")
    message = one(async_safe_messages("mysite.broken.note"), "E004")
    assert "ZeroDivisionError" in message.msg


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("anote", "it is async"),
        ("value", "it is not callable"),
        ("note_object", "it is a partial object"),
    ],
)
def test_checks_async_safe_path_of_what_cannot_be_marked_is_named(name: str, reason: str) -> None:
    message = one(async_safe_messages(f"mysite.safe.{name}"), "E005")
    assert f"cannot be marked: {reason}" in message.msg


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("safe.Both", "middleware.Both"),
        ("middleware.Both2.process_request", "middleware.Both.process_request"),
    ],
)
def test_checks_async_safe_path_of_an_imported_or_inherited_name_is_named_with_its_own(
    path: str, own: str
) -> None:
    message = one(async_safe_messages(f"mysite.{path}"), "E006")
    assert message.hint == f'Write "mysite.{own}" instead.'


@pytest.mark.usefixtures("project")
def test_checks_async_safe_path_of_a_wrapper_is_named() -> None:
    message = one(async_safe_messages("mysite.safe.decorated_note"), "E006")
    assert "is a wrapper" in message.msg
    assert '"@async_safe"' in str(message.hint)


# --- LIFESPAN and WEBSOCKET_APPLICATION ------------------------------------------------


def lifespan_messages(path: str | None) -> list[CheckMessage]:
    with override_settings(ASYNCBRIDGE={"LIFESPAN": path}):
        assert check_websocket_application() == []
        return check_lifespan()


def socket_messages(path: str | None) -> list[CheckMessage]:
    with override_settings(ASYNCBRIDGE={"WEBSOCKET_APPLICATION": path}):
        assert check_lifespan() == []
        return check_websocket_application()


BOTH_MESSAGES = pytest.mark.parametrize("messages", [lifespan_messages, socket_messages])
Messages = Callable[[str | None], list[CheckMessage]]


@BOTH_MESSAGES
@pytest.mark.parametrize("path", [None, "no path"])
def test_checks_scope_types_unset_or_no_path_are_silent_here(
    messages: Messages, path: str | None
) -> None:
    assert messages(path) == []


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "name", ["right", "optional", "function", "bound", "Pool", "unreadable", "supplied"]
)
def test_checks_lifespan_that_is_one_is_silent(name: str) -> None:
    assert lifespan_messages(f"mysite.lifespans.{name}") == []


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", ["plain", "generator", "partial_plain"])
def test_checks_lifespan_without_its_decorator_is_named_with_it(name: str) -> None:
    message = one(lifespan_messages(f"mysite.lifespans.{name}"), "E008")
    assert f'names "mysite.lifespans.{name}", which is an async function without' in message.msg
    assert '"@contextlib.asynccontextmanager" above it' in str(message.hint)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("name", "problem", "hint"),
    [
        ("with_app", "takes (app)", "without arguments"),
        ("PoolOf", "takes (size)", "without arguments"),
        ("sync_generator", "is a generator function", '"async def"'),
        ("sync_manager", "is a generator function, or a context", '"async def"'),
        ("made", "is an async context manager, not a function", "Name the function"),
        ("value", "is 3, which cannot be called", "asynccontextmanager"),
        ("Half", "is a class without __aenter__ and __aexit__", "Give it both"),
    ],
)
def test_checks_lifespan_that_is_none_is_named_with_what_to_write(
    name: str, problem: str, hint: str
) -> None:
    message = one(lifespan_messages(f"mysite.lifespans.{name}"), "E008")
    assert f'ASYNCBRIDGE["LIFESPAN"] names "mysite.lifespans.{name}", which {problem}' in (
        message.msg
    )
    assert hint in str(message.hint)
    assert message.obj == f"mysite.lifespans.{name}"


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "name",
    ["right", "with_more", "anything", "two", "Two", "three", "consumer", "partial", "unreadable"],
)
def test_checks_websocket_application_that_is_one_is_silent(name: str) -> None:
    assert socket_messages(f"mysite.sockets.{name}") == []


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("name", "problem", "hint"),
    [
        ("django", "is Django's handler", "answers WebSockets"),
        ("wsgi", "takes (environ, start_response)", "WsgiToAsgi(application)"),
        ("old", "takes (environ, start_response)", "WsgiToAsgi(application)"),
        ("value", "is 3, which cannot be called", "async def application(scope, receive, send)"),
        ("Consumer", "is a consumer class", "Consumer.as_asgi()"),
        ("one_argument", "takes (websocket)", "async def application(scope, receive, send)"),
        ("none", "takes ()", "async def application(scope, receive, send)"),
    ],
)
def test_checks_websocket_application_that_is_none_is_named_with_what_to_write(
    name: str, problem: str, hint: str
) -> None:
    message = one(socket_messages(f"mysite.sockets.{name}"), "E009")
    start = f'ASYNCBRIDGE["WEBSOCKET_APPLICATION"] names "mysite.sockets.{name}", which {problem}'
    assert message.msg.startswith(start)
    assert hint in str(message.hint)


@BOTH_MESSAGES
@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "path",
    [
        "no_such_package.name",
        "mysite.no_such_module.name",
        "mysite.lifespans.no_such_name",
        "no_such_package.asgi.name",
        "mysite.asgi.name",
    ],
)
def test_checks_scope_types_that_cannot_be_imported_are_named(
    messages: Messages, path: str
) -> None:
    message = one(messages(path), "E007")
    assert f'names "{path}", which cannot be imported' in message.msg
    assert not message.msg.endswith("..")


@BOTH_MESSAGES
@pytest.mark.parametrize("module", ["broken", "asgi"])
def test_checks_scope_types_in_a_module_that_is_broken_are_named(
    messages: Messages, module: str, project: Callable[..., None]
) -> None:
    project(module, "def broken(")
    assert "SyntaxError" in one(messages(f"mysite.{module}.name"), "E007").msg


ASGI_MODULE = """
import contextlib
from somewhere import elsewhere, far as away
import somewhere.other

raise AssertionError("imported")

async def plain():
    yield

async def decorated_later():
    yield

decorated_later = contextlib.asynccontextmanager(decorated_later)

@contextlib.asynccontextmanager
async def right():
    yield

class Lifespan: ...
def function(): ...
"""
SAID_IN_SOURCE = {
    "plain": "E008",
    "far": "E007",
    "gone": "E007",
    "raise": "E007",
    **dict.fromkeys(
        [
            "decorated_later",
            "right",
            "elsewhere",
            "away",
            "somewhere",
            "Lifespan",
            "function",
        ]
    ),
}


@pytest.mark.parametrize(("name", "number"), SAID_IN_SOURCE.items())
@pytest.mark.parametrize("module", ["asgi", "entry"])
def test_checks_lifespan_in_an_asgi_module_is_read_and_not_imported(
    name: str, number: str | None, module: str, project: Callable[..., None]
) -> None:
    project(module, ASGI_MODULE)
    with override_settings(ASGI_APPLICATION="mysite.entry.application"):
        assert ids(lifespan_messages(f"mysite.{module}.{name}")) == ([number] if number else [])
    assert f"mysite.{module}" not in sys.modules


def test_checks_websocket_application_in_an_asgi_module_may_be_a_plain_function(
    project: Callable[..., None],
) -> None:
    project("asgi", ASGI_MODULE)
    assert socket_messages("mysite.asgi.plain") == []
    assert "mysite.asgi" not in sys.modules


def test_checks_lifespan_in_an_asgi_module_that_imports_everything_is_silent(
    project: Callable[..., None],
) -> None:
    project("asgi", "from somewhere import *")
    assert lifespan_messages("mysite.asgi.whatever") == []


def test_checks_lifespan_in_an_asgi_package_without_source_is_silent(
    project: Callable[..., None], tmp_path: Path
) -> None:
    # A package without an __init__.py has no source.
    (tmp_path / "mysite" / "asgi").mkdir()
    assert lifespan_messages("mysite.asgi.whatever") == []


def test_checks_lifespan_in_an_asgi_module_that_is_imported_is_looked_at(
    project: Callable[..., None],
) -> None:
    project("asgi", "from mysite.lifespans import generator as lifespan")
    assert lifespan_messages("mysite.asgi.lifespan") == []
    importlib.import_module("mysite.asgi")
    one(lifespan_messages("mysite.asgi.lifespan"), "E008")


# --- Middleware ------------------------------------------------------------------------


def middleware_messages(*names: str) -> list[CheckMessage]:
    with override_settings(MIDDLEWARE=middleware(*names)):
        return check_middleware()


def test_checks_middleware_of_startproject_is_silent() -> None:
    assert check_middleware() == []
    assert check_middleware_order() == []


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", ["SyncOnly", "sync_only", "OwnCallSyncOnly"])
def test_checks_middleware_sync_only_between_async_capable_is_named(name: str) -> None:
    message = one(middleware_messages("Both", "both", name, "Both2", "async_only"), "W001")
    assert message.obj == f"mysite.middleware.{name}"
    assert f"'{message.obj}' is sync-only" in message.msg
    assert "between 'mysite.middleware.both' and 'mysite.middleware.Both2'" in message.msg
    assert "below 'mysite.middleware.async_only'" in str(message.hint)
    way = "@sync_and_async_middleware" if name.islower() else "MiddlewareMixin"
    assert way in str(message.hint)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", ["Silent", "silent"])
def test_checks_middleware_that_says_nothing_between_async_capable_is_named(name: str) -> None:
    message = one(middleware_messages("Both", name, "Both2"), "W002")
    assert "does not say that it can be async" in message.msg
    way = "@sync_and_async_middleware" if name.islower() else "MiddlewareMixin"
    assert way in str(message.hint)


@pytest.mark.usefixtures("project")
def test_checks_middleware_sync_only_first_is_named_with_the_server() -> None:
    messages = middleware_messages("SyncOnly", "Silent", "Both")
    assert ids(messages) == ["W001", "W002"]
    assert all(
        "between the server and 'mysite.middleware.Both'" in message.msg for message in messages
    )


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "names", [("Both", "SyncOnly", "silent"), ("SyncOnly",), ("Neither", "Both")], ids=str
)
def test_checks_middleware_sync_only_before_the_view_or_unusable_is_silent(
    names: tuple[str, ...],
) -> None:
    assert middleware_messages(*names) == []


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", ["OwnCall", "OwnCallWithoutMixin", "OwnCallWrapped"])
def test_checks_middleware_with_a_sync_call_of_its_own_is_named(name: str) -> None:
    message = one(middleware_messages("Both", name), "W003")
    assert message.obj == f"mysite.middleware.{name}"
    assert '"async_capable = False"' in str(message.hint)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "name",
    [
        "WithMode",
        "WithSuper",
        "WithBase",
        "WithInner",
        "WithOther",
        "WithMark",
        "WithDecorator",
        "AsyncCall",
        "CallIsObject",
        "NoCall",
    ],
)
def test_checks_middleware_with_a_call_that_knows_of_async_is_silent(name: str) -> None:
    assert middleware_messages("Both", name) == []


def test_checks_middleware_that_cannot_be_imported_is_left_to_django(
    project: Callable[..., None],
) -> None:
    project("broken", "1 / 0")
    paths = [*middleware("SyncOnly", "gone"), "mysite.broken.Broken", "nothing"]
    with override_settings(MIDDLEWARE=[*paths, *middleware("Both")]):
        assert ids(check_middleware()) == ["W001"]


CONTEXT = "django_asyncbridge.middleware.ThreadSensitiveContextMiddleware"


def test_checks_order_context_middleware_not_first_is_named_with_those_before() -> None:
    with override_settings(MIDDLEWARE=["a.One", "a.Two", CONTEXT, "a.Three"]):
        message = one(check_middleware_order(), "W004")
    assert "'a.One', 'a.Two' runs outside of its context" in message.msg
    assert f'Move the line "{CONTEXT}" to the top' in str(message.hint)


@pytest.mark.parametrize("paths", [[CONTEXT, "a.One"], [CONTEXT], []], ids=len)
def test_checks_order_context_middleware_first_or_absent_is_silent(paths: list[str]) -> None:
    with override_settings(MIDDLEWARE=paths):
        assert check_middleware_order() == []


# --- Threads and connections -----------------------------------------------------------


def threads(**values: object) -> override_settings:
    return override_settings(ASYNCBRIDGE={"REQUEST_THREADS": values})


@pytest.mark.parametrize("age", [60, None])
def test_checks_connections_kept_by_unbounded_threads_are_named(
    databases: Callable[..., None], age: int | None
) -> None:
    databases(default={}, other={"CONN_MAX_AGE": age}, third={"CONN_MAX_AGE": 0})
    with threads():
        message = one(checks.check_connections(), "W005")
    assert message.obj == 'DATABASES["other"]'
    assert f"CONN_MAX_AGE = {age}" in message.msg
    assert '"REQUEST_THREADS": {"MAX": 20}' in str(message.hint)


def test_checks_connections_kept_by_bounded_threads_are_silent(
    databases: Callable[..., None],
) -> None:
    databases(default={"CONN_MAX_AGE": 60})
    with threads(MAX=4):
        assert checks.check_connections() == []


def postgresql(pool: object) -> dict[str, Any]:
    return {"ENGINE": "django.db.backends.postgresql", "OPTIONS": {"pool": pool}}


@pytest.mark.parametrize(
    ("pool", "size"),
    [
        (True, 4),
        ({"timeout": 5}, 4),
        ({"min_size": 6}, 6),
        ({"max_size": 7}, 7),
        ({"min_size": 2, "max_size": 7}, 7),
        ({"min_size": 2, "max_size": None}, 2),
    ],
    ids=str,
)
def test_checks_pool_smaller_than_the_threads_is_named_with_its_size(
    databases: Callable[..., None], pool: object, size: int
) -> None:
    databases(default={}, big=postgresql(pool))
    with threads():
        message = one(checks.check_pools(), "W006")
    assert f'DATABASES["big"] has {size} connections at most, and REQUEST_THREADS has no MAX' in (
        message.msg
    )
    assert f'"REQUEST_THREADS": {{"MAX": {size}}}' in str(message.hint)
    assert "enlarge" not in str(message.hint)
    with threads(MAX=size + 1):
        message = one(checks.check_pools(), "W006")
    assert f"REQUEST_THREADS has MAX = {size + 1}" in message.msg
    assert f'"OPTIONS": {{"pool": {{"max_size": {size + 1}}}}}' in str(message.hint)
    with threads(MAX=size):
        assert checks.check_pools() == []


@pytest.mark.parametrize(
    "database",
    [
        {},
        {"ENGINE": "django.db.backends.postgresql"},
        {"ENGINE": "django.db.backends.postgresql", "OPTIONS": None},
        postgresql({}),
        postgresql(False),
        postgresql({"max_size": "7"}),
        {"ENGINE": "django.db.backends.oracle", "OPTIONS": {"pool": {"max": 2}}},
    ],
    ids=str,
)
def test_checks_database_without_a_pool_of_psycopg_is_silent(
    databases: Callable[..., None], database: dict[str, Any]
) -> None:
    databases(default=database)
    with threads():
        assert checks.check_pools() == []


# --- asgi.py ---------------------------------------------------------------------------

DJANGOS = {
    "startproject": """
        from django.core.asgi import get_asgi_application
        application = get_asgi_application()
    """,
    "inside a router": """
        from django.core.asgi import get_asgi_application as make
        application = Router({"http": make(), "websocket": None})
    """,
    "beside a function": """
        import django.core.asgi
        django_application = cast("App", django.core.asgi.get_asgi_application())
        async def application(scope, receive, send): ...
    """,
    "the module": """
        from django.core import asgi
        application = asgi.get_asgi_application()
    """,
    "the class": """
        from django.core.handlers.asgi import ASGIHandler
        application = ASGIHandler()
    """,
}
NOT_DJANGOS = {
    "ours": """
        from django_asyncbridge.asgi import get_asgi_application
        application = get_asgi_application()
    """,
    "ours, or Django's": """
        try:
            from django_asyncbridge.asgi import get_asgi_application
        except ImportError:
            from django.core.asgi import get_asgi_application
        application = get_asgi_application()
    """,
    "imported only": "from django.core.asgi import get_asgi_application",
    "a subclass": """
        from django.core.handlers.asgi import ASGIHandler
        class Handler(ASGIHandler): ...
        application = Handler()
    """,
    "another": """
        from starlette.applications import Starlette
        application = Starlette()
    """,
    "relative": """
        from . import server
        application = server.make()[0]()
    """,
    "not Python": "application =",
}


def dedented(source: str) -> str:
    return re.sub(r"^ {8}", "", source, flags=re.MULTILINE)


@pytest.mark.parametrize("source", DJANGOS.values(), ids=DJANGOS.keys())
def test_checks_asgi_module_that_makes_djangos_handler_is_named_and_not_imported(
    project: Callable[..., None], source: str
) -> None:
    project("asgi", dedented(source))
    with override_settings(ASGI_APPLICATION="mysite.asgi.application"):
        message = one(check_asgi_application(), "W007")
    assert message.obj == "mysite.asgi"
    assert '"from django_asyncbridge.asgi import get_asgi_application"' in str(message.hint)
    assert "mysite.asgi" not in sys.modules


@pytest.mark.parametrize("source", NOT_DJANGOS.values(), ids=NOT_DJANGOS.keys())
def test_checks_asgi_module_without_djangos_handler_is_silent(
    project: Callable[..., None], source: str
) -> None:
    project("asgi", dedented(source))
    with override_settings(ASGI_APPLICATION="mysite.asgi.application"):
        assert check_asgi_application() == []


def test_checks_asgi_module_without_the_setting_is_that_beside_the_urls(
    project: Callable[..., None],
) -> None:
    project("asgi", dedented(DJANGOS["startproject"]))
    with override_settings(ASGI_APPLICATION=None, ROOT_URLCONF="mysite.urls"):
        assert ids(check_asgi_application()) == ["W007"]
    with override_settings(ASGI_APPLICATION=None, ROOT_URLCONF="urls"):
        assert check_asgi_application() == []


@pytest.mark.parametrize(
    "path", ["mysite.no_such_module.application", "no_such_package.asgi.application", "", "nothing"]
)
@pytest.mark.usefixtures("project")
def test_checks_asgi_module_that_is_not_there_is_silent(path: str) -> None:
    with override_settings(ASGI_APPLICATION=path):
        assert check_asgi_application() == []


class OwnHandler(ASGIHandler):
    def __init__(self) -> None: ...


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (ASGIHandler.__new__(ASGIHandler), ["W007"]),
        (OwnHandler(), []),
        (ASGIHandler, []),
        (None, []),
    ],
    ids=["Django's", "a subclass", "the class", "none"],
)
@pytest.mark.usefixtures("project")
def test_checks_asgi_module_that_is_loaded_is_looked_at_for_handlers_made_elsewhere(
    monkeypatch: pytest.MonkeyPatch, value: object, expected: list[str]
) -> None:
    module: Any = ModuleType("mysite.asgi")
    module.http = value
    module.application = print
    monkeypatch.setitem(sys.modules, "mysite.asgi", module)
    with override_settings(ASGI_APPLICATION="mysite.asgi.application"):
        assert ids(check_asgi_application()) == expected


# --- For production ----------------------------------------------------------------------


def test_checks_production_unbounded_threads_are_named(databases: Callable[..., None]) -> None:
    databases(default={})
    with threads(WAIT_SECONDS=None):
        message = one(checks.check_production(), "W021")
    assert '"REQUEST_THREADS": {"MAX": 20}' in str(message.hint)


def test_checks_production_endless_waiting_is_named(databases: Callable[..., None]) -> None:
    databases(default={})
    with threads(MAX=4, WAIT_SECONDS=None):
        message = one(checks.check_production(), "W022")
    assert "MAX = 4 and WAIT_SECONDS = None" in message.msg
    assert '"WAIT_SECONDS": 10' in str(message.hint)


def test_checks_production_kept_connections_without_health_checks_are_named(
    databases: Callable[..., None],
) -> None:
    engine = "django.db.backends.postgresql"
    databases(
        checked={"ENGINE": engine, "CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True},
        closed={"ENGINE": engine},
        file={"ENGINE": "django.db.backends.sqlite3", "CONN_MAX_AGE": 60},
        unchecked={"ENGINE": engine, "CONN_MAX_AGE": None},
    )
    with threads(MAX=4):
        message = one(checks.check_production(), "W023")
    assert message.obj == 'DATABASES["unchecked"]'
    assert message.hint == 'Write "CONN_HEALTH_CHECKS": True in DATABASES["unchecked"].'


def test_checks_production_bounded_threads_are_silent(databases: Callable[..., None]) -> None:
    databases(default={})
    with threads(MAX=4):
        assert checks.check_production() == []


# --- All of them -------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the checks with an empty registry of Django's."""
    registry = django_checks.registry.registry
    monkeypatch.setattr(registry, "registered_checks", set())
    monkeypatch.setattr(registry, "deployment_checks", set())
    checks.register_checks()
    checks.register_checks()


@pytest.mark.usefixtures("registered")
def test_checks_registered_twice_are_there_once_and_production_only_for_deploy() -> None:
    registry = django_checks.registry.registry
    usual: list[object] = [*registry.get_checks()]
    everything: list[object] = [*registry.get_checks(include_deployment_checks=True)]
    assert len(everything) == len(ALL_CHECKS)
    assert {*everything} == {*ALL_CHECKS}
    assert {*everything} - {*usual} == {checks.check_production}
    assert registry.tags_available(deployment_checks=True) == {checks.TAG}


@pytest.mark.usefixtures("registered", "project")
def test_checks_command_names_what_is_wrong_and_what_to_do() -> None:
    broken = {"REQUEST_THREAD": {}, "ASYNC_SAFE": ["mysite.safe.anote"]}
    with (
        override_settings(ASYNCBRIDGE=broken, MIDDLEWARE=middleware("SyncOnly", "Both")),
        pytest.raises(SystemCheckError) as caught,
    ):
        call_command("check", "--tag", checks.TAG)
    said = str(caught.value)
    found = re.findall(r"\(asyncbridge\.(\w+)\)", said)
    assert {"E001", "E005", "W001"} <= {*found}
    assert 'HINT: Did you mean "REQUEST_THREADS"?' in said


@pytest.mark.usefixtures("registered", "project")
def test_checks_command_with_deploy_adds_those_for_production() -> None:
    plain, deploy = io.StringIO(), io.StringIO()
    with override_settings(ASYNCBRIDGE={}, ASGI_APPLICATION="mysite.no_asgi.application"):
        call_command("check", "--tag", checks.TAG, stdout=plain, stderr=plain)
        call_command("check", "--tag", checks.TAG, "--deploy", stdout=deploy, stderr=deploy)
    assert "no issues" in plain.getvalue()
    assert "(asyncbridge.W021)" in deploy.getvalue()


@pytest.mark.parametrize("raw", [[], 3, {"EXECUTORS": 1}, {"REQUEST_THREADS": {"MAX": "x"}}])
def test_checks_collect_and_never_raise(raw: object) -> None:
    with override_settings(ASYNCBRIDGE=raw, MIDDLEWARE=["nothing"], ASGI_APPLICATION=3):
        found = [message for check in ALL_CHECKS for message in check()]
    assert "E002" in ids(found)


def test_checks_documentation_has_exactly_the_ids_of_the_code() -> None:
    package = Path(django_asyncbridge.__file__).parent
    code = "".join(path.read_text("utf-8") for path in package.glob("*checks*.py"))
    docs = (ROOT / "docs" / "checks.md").read_text("utf-8")
    in_code = set(re.findall(r'"(?:asyncbridge\.)?([EW]\d{3})"', code))
    in_docs = re.findall(r"^\| asyncbridge\.([EW]\d{3}) \|", docs, flags=re.MULTILINE)
    assert sorted(in_code) == in_docs
    assert {"E001", "W001", "W023"} <= in_code


@pytest.mark.parametrize(
    "name", ["ASYNC_BRIDGE", "DJANGO_ASYNCBRIDGE", "ASYNCBRIDGE_LIFESPAN", "ASYNCBRIDGES"]
)
def test_setting_whose_name_is_almost_ours_is_named(name: str) -> None:
    with override_settings(**{name: {}}):
        message = one(checks.check_setting_names(), "W008")
    assert name in message.msg
    assert "ASYNCBRIDGE" in str(message.hint)


@pytest.mark.parametrize("name", ["ASYNCBRIDGE", "ASYNC_THING", "BRIDGE", "DJANGO_ASYNC"])
def test_setting_of_another_name_is_nobodys_business_here(name: str) -> None:
    with override_settings(**{name: {}}):
        assert checks.check_setting_names() == []
