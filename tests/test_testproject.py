"""Every page of testproject, through Django's test clients and as plain ASGI and WSGI."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast
from wsgiref.util import setup_testing_defaults

import django
import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.http import StreamingHttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import reverse

from django_asyncbridge import async_to_sync
from django_asyncbridge.bridge.typing import (
    ASGIReceiveEvent,
    ASGISendEvent,
    HTTPScope,
    Scope,
    WebSocketScope,
)
from testproject import asgi, wsgi
from testproject.guestbook import streaming
from testproject.guestbook.models import Entry
from tests.support import run_child

PASSWORD = "three-quiet-mice"
BOOKS = ["entries", "async-entries"]

# Each test is one transaction, which every request sees: whoever crosses, the ORM stays in this thread.
pytestmark = pytest.mark.django_db


class Browser:
    """Requests to one of the two books, with the test client of its side."""

    def __init__(self, name: str, user: User | None = None) -> None:
        self.path = reverse(name)
        self.client: Any = Client() if name == "entries" else AsyncClient()
        self._call = (lambda method: method) if name == "entries" else async_to_sync
        if user is not None:
            self.client.force_login(user)

    def get(self) -> Any:
        return self._call(self.client.get)(self.path)

    def post(self, text: str) -> Any:
        return self._call(self.client.post)(self.path, {"text": text})


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada", password=PASSWORD)


# --- The pages -------------------------------------------------------------


def test_index_links_to_every_page() -> None:
    page = Client().get(reverse("index")).content.decode()
    names = ["entries", "async-entries", "stream", "async-stream", "echo", "sign-up", "login"]
    for name in [*names, "admin:index"]:
        assert f'href="{reverse(name)}"' in page


@pytest.mark.parametrize("name", BOOKS)
def test_book_when_empty_says_so_and_offers_login(name: str) -> None:
    page = Browser(name).get().content.decode()
    assert "Nobody has written yet." in page
    assert f"{reverse('login')}?next={reverse(name)}" in page
    assert "0 lines by 0 authors." in page


@pytest.mark.parametrize("name", BOOKS)
def test_book_with_an_entry_shows_it_escaped_with_its_author(name: str, ada: User) -> None:
    Entry.objects.create(author=ada, text="<b>hello</b>")
    page = Browser(name).get().content.decode()
    assert "&lt;b&gt;hello&lt;/b&gt;" in page
    assert "ada" in page
    assert "1 line by 1 author." in page


@pytest.mark.parametrize("name", BOOKS)
def test_book_post_signed_in_writes_the_line_and_returns_to_the_book(name: str, ada: User) -> None:
    response = Browser(name, ada).post("  hello  ")
    assert (response.status_code, response.headers["location"]) == (302, reverse(name))
    assert list(Entry.objects.values_list("author", "text")) == [(ada.pk, "hello")]


@pytest.mark.parametrize("name", BOOKS)
def test_book_post_blank_line_shows_the_error_and_writes_nothing(name: str, ada: User) -> None:
    response = Browser(name, ada).post(" ")
    assert response.status_code == 200
    assert "This field is required." in response.content.decode()
    assert not Entry.objects.exists()


@pytest.mark.parametrize("name", BOOKS)
def test_book_post_signed_out_goes_to_login_and_writes_nothing(name: str) -> None:
    response = Browser(name).post("hello")
    assert response.headers["location"] == f"{reverse('login')}?next={reverse(name)}"
    assert not Entry.objects.exists()


def test_book_shows_both_sides_the_same_entries_newest_first(ada: User) -> None:
    for text in ("first", "second"):
        Entry.objects.create(author=ada, text=text)
    for name in BOOKS:
        page = Browser(name).get().content.decode()
        assert page.index("second") < page.index("first")


def test_post_without_csrf_token_is_refused_with_it_is_accepted(ada: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(ada)
    assert client.post(reverse("entries"), {"text": "forged"}).status_code == 403
    client.get(reverse("entries"))
    form = {"text": "real", "csrfmiddlewaretoken": client.cookies["csrftoken"].value}
    assert client.post(reverse("entries"), form).status_code == 302
    assert Entry.objects.get().text == "real"


# --- Accounts --------------------------------------------------------------


def test_sign_up_makes_the_account_and_signs_in() -> None:
    client = Client()
    form = {"username": "grace", "password1": PASSWORD, "password2": PASSWORD}
    response = client.post(reverse("sign-up"), form, follow=True)
    assert "Signed in as grace" in response.content.decode()


def test_sign_up_with_two_passwords_shows_the_error_and_makes_nothing() -> None:
    form = {"username": "grace", "password1": PASSWORD, "password2": "another-password"}
    response = Client().post(reverse("sign-up"), form)
    assert "errorlist" in response.content.decode()
    assert not User.objects.exists()


def test_sign_up_page_shows_the_form() -> None:
    assert 'name="password2"' in Client().get(reverse("sign-up")).content.decode()


@pytest.mark.usefixtures("ada")
def test_login_then_logout_changes_who_is_signed_in() -> None:
    client = Client()
    page = client.get(reverse("login")).content.decode()
    assert 'name="password"' in page
    form = {"username": "ada", "password": PASSWORD, "next": reverse("async-entries")}
    response = client.post(reverse("login"), form)
    assert response.headers["location"] == reverse("async-entries")
    assert "Signed in as ada" in client.get(reverse("index")).content.decode()
    client.post(reverse("logout"))
    assert "Signed in as" not in client.get(reverse("index")).content.decode()


def test_admin_lists_entries_by_their_text(admin_client: Client, ada: User) -> None:
    Entry.objects.create(author=ada, text="seen by the admin")
    page = admin_client.get(reverse("admin:guestbook_entry_changelist")).content.decode()
    assert "seen by the admin" in page


# --- Streaming -------------------------------------------------------------


@override_settings(STREAM_DELAY_SECONDS=7)
def test_stream_sync_sends_each_line_before_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    response = cast("StreamingHttpResponse", Client().get(reverse("stream")))
    pieces = iter(response)
    assert b"<ol>" in next(pieces)
    for number in range(1, streaming.LINES + 1):
        assert f"Line {number} of" in next(pieces).decode()
        assert waits == [7] * (number - 1)
    assert b"</html>" in next(pieces)
    assert list(pieces) == []
    response.close()


@override_settings(STREAM_DELAY_SECONDS=3600)
def test_stream_async_sends_the_first_line_without_waiting_for_the_next() -> None:
    async def main() -> list[bytes]:
        response: Any = await AsyncClient().get(reverse("async-stream"))
        pieces: AsyncIterator[bytes] = aiter(response)
        found = [await anext(pieces), await anext(pieces)]
        await response._iterator.aclose()
        return found

    head, line = async_to_sync(main)()
    assert b"<ol>" in head
    assert b"Line 1 of" in line


@override_settings(STREAM_DELAY_SECONDS=0)
def test_stream_async_sends_all_lines_and_the_end_of_the_page() -> None:
    async def main() -> str:
        response: Any = await AsyncClient().get(reverse("async-stream"))
        return b"".join([piece async for piece in response]).decode()

    page = async_to_sync(main)()
    assert [int(n) for n in re.findall(r"Line (\d) of", page)] == [1, 2, 3, 4, 5]
    assert page.rstrip().endswith("</html>")


# --- Entry points ----------------------------------------------------------


def call_asgi(scope: Scope, *events: ASGIReceiveEvent) -> list[ASGISendEvent]:
    """Run the ASGI application over `scope` with `events` to receive; return what it sent."""
    sent: list[ASGISendEvent] = []
    waiting = list(events)

    async def receive() -> ASGIReceiveEvent:
        if (
            not waiting
        ):  # pragma: no cover  # asked whether the client has left, if the answer takes long
            await asyncio.Event().wait()
        return waiting.pop(0)

    async def send(event: ASGISendEvent) -> None:
        sent.append(event)

    asyncio.run(asgi.application(scope, receive, send))
    return sent


def websocket_scope(path: str) -> WebSocketScope:
    return {"type": "websocket", "asgi": {"version": "3.0"}, "path": path, "headers": []}


def test_websocket_echo_returns_text_as_text_and_bytes_as_bytes() -> None:
    sent = call_asgi(
        websocket_scope("/ws/echo/"),
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": ""},
        {"type": "websocket.receive", "bytes": b"\x00", "text": None},
        {"type": "websocket.disconnect", "code": 1000},
    )
    assert sent == [
        {"type": "websocket.accept"},
        {"type": "websocket.send", "text": ""},
        {"type": "websocket.send", "bytes": b"\x00"},
    ]


def test_websocket_on_an_unknown_path_is_refused() -> None:
    assert call_asgi(websocket_scope("/ws/other/")) == [{"type": "websocket.close"}]


def test_echo_page_names_the_address_of_the_echo() -> None:
    assert "/ws/echo/" in Client().get(reverse("echo")).content.decode()


def test_asgi_application_serves_http_through_django() -> None:
    scope: HTTPScope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    start, body = call_asgi(scope, {"type": "http.request"})[:2]
    assert start["type"] == "http.response.start"
    assert start["status"] == 200
    assert body["type"] == "http.response.body"
    assert b"A guest book" in body["body"]


def test_wsgi_application_serves_the_same_pages() -> None:
    environ: dict[str, Any] = {"HTTP_HOST": "localhost"}
    setup_testing_defaults(environ)
    statuses: list[str] = []

    def start_response(status: str, *_: object) -> Any:
        statuses.append(status)
        return statuses.append

    response = wsgi.application(environ, start_response)
    assert b"A guest book" in b"".join(response)
    assert statuses == ["200 OK"]
    response.close()


# --- Settings and migrations -----------------------------------------------


def test_middleware_is_ours_and_startproject_s_in_its_order() -> None:
    template = Path(django.__file__).parent / "conf/project_template/project_name/settings.py-tpl"
    [block] = re.findall(r"^MIDDLEWARE = \[(.*?)^\]", template.read_text(), re.M | re.S)
    ours, *others = settings.MIDDLEWARE
    assert ours == "django_asyncbridge.middleware.ThreadSensitiveContextMiddleware"
    assert re.findall(r"[\"'](.+?)[\"']", block) == others


def test_migrations_describe_the_models() -> None:
    call_command("makemigrations", check_changes=True, dry_run=True, verbosity=0)


def test_settings_read_debug_and_the_secret_key_from_the_environment() -> None:
    source = "from testproject import settings; print(settings.DEBUG, settings.SECRET_KEY)"
    child = run_child(source, DJANGO_DEBUG="0", DJANGO_SECRET_KEY="given")
    assert child.stdout == "False given\n"
