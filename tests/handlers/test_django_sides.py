"""`condition_of`: each entry of the table is called on the event loop under a detector, and compared with Django's own call."""

import asyncio
import functools
import gzip
from collections.abc import Callable, Iterator
from typing import Any

import django
import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.messages.storage.base import BaseStorage
from django.contrib.sessions.backends.base import SessionBase
from django.core.cache import caches, close_caches
from django.core.handlers.base import reset_urlconf
from django.db import close_old_connections, connections, reset_queries
from django.http import HttpRequest, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import override_settings
from django.test.utils import isolate_apps
from django.urls import get_urlconf, set_urlconf
from django.utils.functional import SimpleLazyObject, empty

from django_asyncbridge.handlers import django_sides
from django_asyncbridge.handlers.django_sides import condition_of
from django_asyncbridge.handlers.sides import Condition, never_blocks
from tests.handlers import slow_code
from tests.handlers.blocking import BlockingCallError, no_blocking
from tests.handlers.django_calls import Call
from tests.handlers.django_cases import CALLS
from tests.support import run_in_thread

SAFE = [call for call in CALLS if not call.blocks]
BLOCKING = [call for call in CALLS if call.blocks]
SEEN = [call for call in BLOCKING if not call.unseen]


# --- What a call left behind ------------------------------------------------------------


def outcome_of(call: Call, run: Callable[[Callable[[], Any]], Any]) -> dict[str, Any]:
    """Make the call through `run`, and return what came of it, without what is random or of the moment."""
    hook, arguments = call.bound(), call.arguments()

    def attempt() -> Any:
        try:
            return hook(*arguments)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    result = run(attempt)
    seen: dict[str, Any] = {
        name: seen_of(name, value)
        for name, value in vars(arguments[0]).items()
        if name not in ("environ", "_stream")
    }
    return seen | {"result": answer_of(result) if isinstance(result, HttpResponseBase) else result}


def seen_of(name: str, value: Any) -> Any:
    """Return what there is to be compared of an attribute of a request."""
    if name in ("META", "COOKIES"):
        return {key: one for key, one in value.items() if "." not in key} | {
            "CSRF_COOKIE": len(value.get("CSRF_COOKIE", ""))
        }
    if type(value) is SimpleLazyObject:
        wrapped = vars(value)["_wrapped"]
        return "lazy" if wrapped is empty else type(wrapped)
    if isinstance(value, SessionBase):
        attributes = {key: vars(value).get(key) for key in ("accessed", "modified")}
        return attributes | {"data": vars(value).get("_session_cache")}
    if isinstance(value, BaseStorage):
        queued = [str(one) for one in vars(value)["_queued_messages"]]
        return (type(value), value.used, value.added_new, queued)
    # Lazy values would be made by asking for more than their class.
    return value if type(value) in (str, bool, type(None)) else type(value)


def answer_of(response: Any) -> dict[str, Any]:
    """Return what there is to be compared of a response."""
    headers = {key: value for key, value in response.items() if key != "Content-Length"}
    cookies = {
        name: {key: value for key, value in morsel.items() if key != "expires"}
        for name, morsel in response.cookies.items()
    }
    content = content_of(response)
    if headers.get("Content-Encoding") == "gzip" and content is not None:
        # Its header has random bytes.
        content = gzip.decompress(content)
    return {
        "status": response.status_code,
        "headers": headers,
        "cookies": cookies,
        "content": content,
    }


def content_of(response: Any) -> bytes | None:
    if not isinstance(response, StreamingHttpResponse):
        return bytes(response.content)
    if not response.is_async:
        return b"".join(response)

    async def gather() -> bytes:
        return b"".join([piece async for piece in response])

    return run_in_thread(lambda: asyncio.run(gather()))


def on_loop(call: Callable[[], Any]) -> Any:
    """Call it on a running event loop, with blocking calls forbidden."""

    async def main() -> Any:
        with no_blocking():
            return call()

    return asyncio.run(main())


# --- The table ----------------------------------------------------------------------------


@pytest.mark.parametrize("call", SAFE, ids=str)
def test_condition_of_a_call_that_never_blocks_is_true_and_the_call_as_in_a_thread(
    call: Call,
) -> None:
    def ask_and_call(hook: Callable[[], Any]) -> Any:
        assert on_loop(functools.partial(condition, *arguments)) is True
        return on_loop(hook)

    with call.made_in():
        condition: Any = condition_of(call.bound())
        expected = outcome_of(call, run_in_thread)
        arguments = call.arguments()
        assert outcome_of(call, ask_and_call) == expected


@pytest.mark.parametrize("call", SAFE, ids=str)
def test_condition_when_asked_changes_nothing(call: Call) -> None:
    with call.made_in():
        condition: Any = condition_of(call.bound())
        asked, other = call.arguments(), call.arguments()
        on_loop(functools.partial(condition, *asked))
        before, after = (
            {name: seen_of(name, value) for name, value in vars(one[0]).items()}
            for one in (other, asked)
        )
        assert after == before


@pytest.mark.parametrize("call", BLOCKING, ids=str)
def test_condition_of_a_call_that_may_block_is_false(call: Call) -> None:
    with call.made_in():
        condition: Any = condition_of(call.bound())
        assert on_loop(functools.partial(condition, *call.arguments())) is False


@pytest.mark.parametrize("call", SEEN, ids=str)
def test_call_of_which_the_condition_is_false_blocks_indeed(call: Call) -> None:
    with call.made_in():
        hook, arguments = call.bound(), call.arguments()
        with pytest.raises(BlockingCallError):
            on_loop(functools.partial(hook, *arguments))


def entries() -> Iterator[tuple[str, Condition]]:
    """Yield the hooks in the table that this version of Django has."""
    for path, condition in django_sides._HOOKS.items():
        if django.VERSION >= (6, 0) or ".csp." not in path:
            yield path.removeprefix("django."), condition


def test_table_has_a_call_for_each_entry_and_each_answer_of_it() -> None:
    assert {path for path, _ in entries()} == {call.hook for call in SAFE}
    conditional = {path for path, condition in entries() if condition is not never_blocks}
    assert conditional == {call.hook for call in BLOCKING}
    assert set(RECEIVERS) == set(django_sides._RECEIVERS)


def test_table_without_condition_gives_the_one_that_is_recognised() -> None:
    always = {path for path, condition in entries() if condition is never_blocks}
    known = {call.hook: call for call in SAFE if call.hook in always}
    for call in known.values():
        with call.made_in():
            assert condition_of(call.bound()) is never_blocks


def test_condition_when_settings_change_follows_at_the_next_call() -> None:
    call = next(one for one in SAFE if str(one) == "SessionMiddleware.process_response: untouched")
    condition: Any = condition_of(call.bound())
    arguments = call.arguments()
    assert condition(*arguments)
    with override_settings(SESSION_SAVE_EVERY_REQUEST=True):
        assert not condition(*arguments)
    assert condition(*arguments)


def test_condition_with_a_bare_request_and_no_response_tells_without_an_error() -> None:
    for call in {call.hook: call for call in SAFE}.values():
        with call.made_in():
            condition: Any = condition_of(call.bound())
            rest = [None for _ in call.arguments()[1:]]
            assert condition(HttpRequest(), *rest) in (True, False)


# --- Receivers ----------------------------------------------------------------------------

RECEIVERS: dict[str, Callable[..., Any]] = {
    "django.core.cache.close_caches": close_caches,
    "django.core.handlers.base.reset_urlconf": reset_urlconf,
    "django.db.close_old_connections": close_old_connections,
    "django.db.reset_queries": reset_queries,
}


@pytest.fixture
def separate_caches() -> Iterator[None]:
    """Have no cache made before, and none kept."""
    path = "django.core.cache.backends.locmem.LocMemCache"
    with override_settings(CACHES={"default": {"BACKEND": path}, "other": {"BACKEND": path}}):
        yield


@pytest.mark.usefixtures("separate_caches")
@pytest.mark.parametrize("path", RECEIVERS)
def test_receiver_with_nothing_to_close_never_blocks(path: str) -> None:
    receiver = RECEIVERS[path]

    def ask_and_call() -> None:
        assert None not in (caches["default"], connections["default"])
        condition: Any = condition_of(receiver)
        assert condition() is True
        receiver(sender=object, signal=None)

    # A thread of its own has no connections of other tests.
    run_in_thread(functools.partial(on_loop, ask_and_call))


def test_receiver_of_urlconf_on_the_loop_resets_it_as_django_does() -> None:
    def reset() -> str | None:
        set_urlconf("other.urls")
        reset_urlconf(object)
        return get_urlconf()

    assert on_loop(reset) == run_in_thread(reset)


@pytest.mark.usefixtures("separate_caches")
def test_receiver_with_a_cache_that_is_closed_may_block() -> None:
    def ask() -> None:
        caches["other"] = slow_code.Cache("x", {})
        condition: Any = condition_of(close_caches)
        assert not condition()
        close_caches()

    with pytest.raises(BlockingCallError):
        on_loop(ask)


def test_receiver_with_an_open_connection_may_block() -> None:
    def ask() -> None:
        # What is on the loop has connections of its own, also apart from the thread's.
        connection: Any = connections["default"]
        connection.connection = object()
        try:
            condition: Any = condition_of(close_old_connections)
            assert not condition()
            close_old_connections()
        finally:
            connection.connection = None

    with pytest.raises(BlockingCallError):
        on_loop(ask)


# --- Users ----------------------------------------------------------------------------------


# Not in Django's own registry: it would be a change that lacks a migration.
with isolate_apps("django.contrib.auth"):

    class Account(User):
        class Meta:
            proxy = True
            app_label = "auth"


class Intercepted(AnonymousUser):
    def __getattribute__(self, name: str) -> Any:
        raise AssertionError


@pytest.mark.parametrize(
    ("user", "plain"),
    [
        (User, True),
        (Account, True),
        (AnonymousUser, True),
        (slow_code.User, False),
        (Intercepted, False),
        (type(None), False),
    ],
)
def test_user_is_plain_unless_it_tells_its_login_itself(user: type, plain: bool) -> None:
    assert django_sides._is_plain_user(user) is plain
