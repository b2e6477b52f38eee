"""`Call`: a call of one of Django's own hooks, and what requests, responses and settings it is made with; for `django_cases`.

A call that is known not to block is made on the event loop under the detector, and compared with the same call in a thread. One
that may block is made under the detector as well, to see that it does, unless there is a reason why that cannot be seen.
"""

import contextlib
import functools
import sys
import types
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any
from unittest import mock

from django.contrib.auth.models import AnonymousUser
from django.contrib.messages.storage.base import BaseStorage
from django.core.cache import caches
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import RequestFactory, override_settings
from django.utils.module_loading import import_string
from django.utils.translation import trans_real

SLOW = "tests.handlers.slow_code"
KEY = "abcdefgh12345678"
LARGE = b"0123456789" * 2000
Prepare = Callable[[HttpRequest], object]


def view(request: HttpRequest) -> HttpResponse:
    """Stand for any view."""
    raise AssertionError


@dataclass(frozen=True)
class Call:
    """One call of a hook.

    Attributes:
        case: what is special about it.
        hook: its path below ``django``.
        blocks: whether it may block.
        unseen: why that it blocks cannot be seen, if so.
        prepare: what to do with the request before.
        response: what the response is made with.
        request: method, path and more, for `RequestFactory.generic`.
        cookies: of the request.
        view: attributes of the view.
        settings: to be overridden.
        around: where the call is made.
    """

    case: str
    hook: str = ""
    blocks: bool = False
    unseen: str = ""
    prepare: tuple[Prepare, ...] = ()
    response: Callable[[], HttpResponseBase] = HttpResponse
    request: dict[str, Any] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)
    view: dict[str, object] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext

    def __str__(self) -> str:
        return f"{'.'.join(self.hook.split('.')[-2:])}: {self.case}"

    @contextlib.contextmanager
    def made_in(self) -> Iterator[None]:
        """Override the settings, and do what else has to be done around the call."""
        with override_settings(**self.settings), self.around():
            yield

    def bound(self) -> Any:
        """Return the hook of a new middleware."""
        path, _, name = self.hook.rpartition(".")
        return getattr(import_string(f"django.{path}")(view), name)

    def arguments(self) -> tuple[Any, ...]:
        """Return a new request, and what else the hook is called with."""
        request = RequestFactory().generic(**{"method": "GET", "path": "/", **self.request})
        request.COOKIES.update(self.cookies)
        for prepare in self.prepare:
            prepare(request)
        if self.hook.endswith("process_request"):
            return (request,)
        if self.hook.endswith("process_response"):
            return (request, self.response())
        return (request, types.SimpleNamespace(__name__="view", **self.view), (), {})


# --- What requests come with ----------------------------------------------------------------


def has(**attributes: object) -> Prepare:
    """Give the request attributes."""
    return lambda request: vars(request).update(attributes)


def session(
    kind: str = "db", key: str | None = None, touch: bool = False, **data: object
) -> Prepare:
    """Give the request a session: not loaded if it has a key and no data."""

    def prepare(request: Any) -> None:
        engine = import_module(f"django.contrib.sessions.backends.{kind}")
        use(engine.SessionStore, key, touch, **data)(request)

    return prepare


def use(store: Any, key: str | None = None, touch: bool = False, **data: object) -> Prepare:
    """Give the request a session of a store class."""

    def prepare(request: Any) -> None:
        request.session = store(key)
        if data:
            request.session._session_cache = data
        request.session.modified = touch

    return prepare


def lazy_user(request: Any) -> None:
    """Give the request the user that Django's middleware gives it."""
    path = "django.contrib.auth.middleware.AuthenticationMiddleware"
    import_string(path)(view).process_request(request)


def loaded_user(request: Any) -> None:
    """Have the user of the request loaded."""
    request._cached_user = AnonymousUser()
    lazy_user(request)
    assert not request.user.is_authenticated


def lazy_user_of_another(request: Any) -> None:
    """Give the request the user of a request that has a session."""
    other = HttpRequest()
    session(key=KEY)(other)
    lazy_user(other)
    request.user = other.user


def messages(path: str, *texts: Any, used: bool = False) -> Prepare:
    """Give the request a storage with messages; a storage that is used has shown them."""

    def prepare(request: Any) -> None:
        storage: BaseStorage = import_string(path)(request)
        for text in texts:
            storage.add(20, text)
        storage.used = used
        request._messages = storage

    return prepare


STORAGE = "django.contrib.messages.storage"
COOKIE, SESSION, FALLBACK = (
    f"{STORAGE}.{name}.{name.title()}Storage" for name in ("cookie", "session", "fallback")
)


def forget_languages(_request: object) -> None:
    """Forget which languages there are."""
    trans_real.reset_cache(setting="LANGUAGES")


def meta(**values: object) -> Prepare:
    """Put values into ``request.META``."""
    return lambda request: request.META.update(values)


# --- Responses ------------------------------------------------------------------------------


def status(code: int) -> Callable[[], HttpResponse]:
    """Make responses with a status."""
    return lambda: HttpResponse(b"content", status=code)


def body(content: bytes, **headers: str) -> Callable[[], HttpResponse]:
    """Make responses with a body."""
    return lambda: HttpResponse(content, headers=headers)


def stream() -> StreamingHttpResponse:
    """Make a response of three pieces."""
    return StreamingHttpResponse([b"one", b"two", b"three"])


def async_stream() -> StreamingHttpResponse:
    """Make a response of pieces that come from an async iterator."""

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"one", b"two"):
            yield piece

    return StreamingHttpResponse(pieces())


# --- Settings and surroundings ---------------------------------------------------------------

LOCMEM, FILES = (
    f"django.core.cache.backends.{name}"
    for name in ("locmem.LocMemCache", "filebased.FileBasedCache")
)
SITES = {
    "INSTALLED_APPS": [
        f"django.contrib.{name}"
        for name in ("auth", "contenttypes", "sessions", "sites", "flatpages", "redirects")
    ],
    "SITE_ID": 1,
}


def engine(path: str, **settings: object) -> dict[str, Any]:
    """Return the settings for a session engine."""
    return {
        "SESSION_ENGINE": path if "." in path else f"django.contrib.sessions.backends.{path}",
        **settings,
    }


def cache(backend: str, **params: object) -> dict[str, Any]:
    """Return the settings for sessions in a cache."""
    params = {"LOCATION": "/not/there", **params}
    return engine("cache", CACHES={"default": {"BACKEND": backend, **params}})


@contextlib.contextmanager
def memcached() -> Iterator[None]:
    """Have a library for memcached."""
    serde = types.ModuleType("pymemcache.serde")
    library = types.ModuleType("pymemcache")
    vars(serde)["pickle_serde"] = vars(library)["Client"] = vars(library)["HashClient"] = object
    vars(library)["serde"] = serde
    with mock.patch.dict(sys.modules, {"pymemcache": library, "pymemcache.serde": serde}):
        yield


@contextlib.contextmanager
def made_cache() -> Iterator[None]:
    """Have the cache made before."""
    assert caches["default"] is not None
    yield


@contextlib.contextmanager
def file_store(known: bool) -> Iterator[None]:
    """Have the store of files know its directory or not."""
    store = import_module("django.contrib.sessions.backends.file").SessionStore
    path = "/not/there"
    with mock.patch.object(store, "_storage_path", path, create=True):
        if not known:
            del store._storage_path
        try:
            yield
        finally:
            store._storage_path = path


@contextlib.contextmanager
def without(module: str) -> Iterator[None]:
    """Have a module not imported yet."""
    with mock.patch.dict(sys.modules):
        sys.modules.pop(module, None)
        yield


ok = Call
may = functools.partial(Call, blocks=True)
