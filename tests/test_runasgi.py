"""``manage.py runasgi`` as a user starts it."""

import http.cookiejar
import re
import signal
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connections
from django.test import override_settings
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from django_asyncbridge.management.commands.runasgi import Command
from django_asyncbridge.serving.address import Address, listen
from tests.serving.children import (
    ECHO_APPLICATION,
    FAILING_APPLICATION,
    LIMIT_SECONDS,
    Child,
    InFlight,
    Project,
)
from tests.support import run_child


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path)
    yield project
    project.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Child, str]]:
    """Testproject served from a migrated database, and its address."""
    project = Project(tmp_path_factory.mktemp("site"))
    assert project.start("migrate").end() == 0
    child = project.start("runasgi", "0", "--noreload")
    yield child, child.wait_for_url()
    project.close()


def get(url: str) -> tuple[int, str]:
    with urllib.request.urlopen(url, timeout=LIMIT_SECONDS) as response:
        return response.status, response.read().decode()


def assert_one_line_error(child: Child, text: str) -> None:
    """Assert that the command ended with one line that says `text`, and served nothing."""
    assert child.end() == 1
    assert child.err[-1].startswith("CommandError: ")
    assert text in child.err[-1]
    assert not [line for line in child.err if "Traceback" in line]


# --- The site, served -----------------------------------------------------


def test_banner_names_the_application_the_settings_and_how_to_stop(site: tuple[Child, str]) -> None:
    child, url = site
    banner = "\n".join(child.out[:5])
    assert "using settings 'child_settings'" in banner
    assert f"Serving ASGI application 'testproject.asgi.application' at {url}" in banner
    assert "Quit the server with CONTROL-C." in banner
    assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*/", url)
    assert not [line for line in child.out if "unapplied" in line]


@pytest.mark.parametrize("path", ["", "entries/", "async/entries/", "echo/", "login/", "sign-up/"])
def test_pages_answer(site: tuple[Child, str], path: str) -> None:
    status, page = get(site[1] + path)
    assert status == 200
    assert page.rstrip().endswith("</html>")


def test_page_that_is_not_there_answers_404(site: tuple[Child, str]) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404") as caught:
        get(site[1] + "nothing/here/")
    caught.value.close()


def test_static_files_are_served_while_debugging(site: tuple[Child, str]) -> None:
    assert "body" in get(site[1] + "static/admin/css/base.css")[1]


def test_stream_async_first_line_arrives_before_the_second_is_made(site: tuple[Child, str]) -> None:
    with urllib.request.urlopen(site[1] + "async/stream/", timeout=LIMIT_SECONDS) as response:
        lines = iter(response.readline, b"")
        assert any(b"Line 1 of" in line for line in lines)


def test_form_post_after_sign_up_and_login_is_seen_on_both_sides(site: tuple[Child, str]) -> None:
    url = site[1]
    cookies = http.cookiejar.CookieJar()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(cookies))

    def fetch(path: str, **form: str) -> str:
        """Get a page and, if fields are given, send its form with them and the page's token."""
        with opener.open(url + path, timeout=LIMIT_SECONDS) as response:
            page: str = response.read().decode()
        if not form:
            return page
        tokens = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
        data = urllib.parse.urlencode({"csrfmiddlewaretoken": tokens[-1], **form}).encode()
        with opener.open(url + path, data, timeout=LIMIT_SECONDS) as response:
            answer: str = response.read().decode()
        return answer

    secret = "three-quiet-mice"
    fetch("sign-up/", username="ada", password1=secret, password2=secret)
    cookies.clear()
    assert "Signed in as ada" in fetch("login/", username="ada", password=secret)
    assert "from the sync side" in fetch("entries/", text="from the sync side")
    assert "from the async side" in fetch("async/entries/", text="from the async side")
    for path in ("entries/", "async/entries/"):
        page = fetch(path)
        assert page.index("from the async side") < page.index("from the sync side")


def test_websocket_echo_answers_text_and_bytes(site: tuple[Child, str]) -> None:
    with connect(site[1].replace("http", "ws") + "ws/echo/", proxy=None) as websocket:
        for message in ("hello", b"\x00\xff"):
            websocket.send(message)
            assert websocket.recv(timeout=LIMIT_SECONDS) == message


def test_websocket_on_an_unknown_path_is_refused(site: tuple[Child, str]) -> None:
    with (
        pytest.raises(InvalidStatus, match="403"),
        connect(site[1].replace("http", "ws") + "ws/other/", proxy=None),
    ):
        raise AssertionError("accepted")


# --- Start and end --------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_signal_lets_the_request_in_flight_finish_and_ends_with_code_0(
    project: Project, number: int
) -> None:
    project.use_application(ECHO_APPLICATION)
    child = project.start("runasgi", "0", "--noreload")
    url = child.wait_for_url()
    request = InFlight(url)
    child.signal(number)
    child.wait_for("Waiting for connections to close")
    request.finish()
    assert child.end() == 0
    assert "lifespan.shutdown" in child.out
    assert not [line for line in child.err if "Traceback" in line or "ERROR" in line]
    assert len([line for line in child.out if '"POST / HTTP/1.1" 200' in line]) == 1
    listen(Address(port=int(url.rstrip("/").rpartition(":")[2]))).close()


def test_signal_right_after_the_banner_ends_with_code_0(project: Project) -> None:
    child = project.start("runasgi", "0", "--noreload")
    child.wait_for("Quit the server")
    child.signal(signal.SIGINT)
    assert child.end() == 0
    assert not [line for line in child.err if "Traceback" in line]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_second_signal_of_a_kind_ends_at_once(project: Project, number: int) -> None:
    project.use_application(ECHO_APPLICATION)
    child = project.start("runasgi", "0", "--noreload")
    request = InFlight(child.wait_for_url())
    child.signal(number)
    child.wait_for("Waiting for connections to close")
    child.signal(number)
    assert child.end() == 128 + number
    assert "lifespan.shutdown" not in child.out
    request.close()


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")]
)
def test_log_says_which_signal_ends_at_once(project: Project, number: int, name: str) -> None:
    project.use_application(ECHO_APPLICATION)
    child = project.start("runasgi", "0", "--noreload")
    request = InFlight(child.wait_for_url())
    child.signal(number)
    child.wait_for(rf"to close\. \({name} again ends the process at once\)$")
    request.finish()
    assert child.end() == 0


def test_sigterm_after_sigint_is_one_wish_to_stop(project: Project) -> None:
    project.use_application(ECHO_APPLICATION)
    child = project.start("runasgi", "0", "--noreload")
    request = InFlight(child.wait_for_url())
    child.signal(signal.SIGINT)
    child.wait_for("Waiting for connections to close")
    child.signal(signal.SIGTERM)
    request.finish()
    assert child.end() == 0
    assert "lifespan.shutdown" in child.out


def test_port_in_use_is_one_line_before_any_banner(project: Project) -> None:
    with listen(Address(port=0)) as taken:
        child = project.start("runasgi", str(taken.getsockname()[1]))
        assert_one_line_error(child, "that port is already in use")
    assert not [line for line in child.out if "Serving" in line]


def test_bad_address_is_one_line(project: Project) -> None:
    assert_one_line_error(project.start("runasgi", "127.0.0.1:port"), "is not a port number")


def test_application_that_cannot_be_imported_is_one_line(project: Project) -> None:
    project.use_application("other_name = None")
    assert_one_line_error(project.start("runasgi", "0", "--noreload"), "cannot be imported")


def test_lifespan_that_fails_to_start_is_one_line_after_its_log(project: Project) -> None:
    project.use_application(FAILING_APPLICATION)
    child = project.start("runasgi", "0", "--noreload")
    assert_one_line_error(child, "failed to start")
    assert [line for line in child.err if "the cache is cold" in line]


# What many projects have; it disables the loggers that exist when logging is configured again.
LOGGING = """
    LOGGING = {
        "version": 1,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["console"]},
    }
"""

# As in a project's asgi.py, this configures logging for the second time.
GET_APPLICATION = """
    from django.core.asgi import get_asgi_application
    get_asgi_application()
"""


def test_application_that_raises_is_logged_with_an_ordinary_logging_setting(
    project: Project,
) -> None:
    project.write("child_settings", LOGGING, append=True)
    project.use_application(
        GET_APPLICATION
        + """
    async def application(scope, receive, send):
        raise ValueError("the application is broken")
    """
    )
    child = project.start("runasgi", "0", "--noreload")
    with pytest.raises(urllib.error.HTTPError, match="500") as caught:
        get(child.wait_for_url())
    caught.value.close()
    child.signal(signal.SIGTERM)
    assert child.end() == 0
    assert [line for line in child.err if "Traceback" in line]
    assert [line for line in child.err if line == "ValueError: the application is broken"]
    assert [line for line in child.err if '"GET / HTTP/1.1" 500' in line]


def test_lifespan_that_fails_says_why_with_an_ordinary_logging_setting(project: Project) -> None:
    project.write("child_settings", LOGGING, append=True)
    project.use_application(GET_APPLICATION + FAILING_APPLICATION)
    child = project.start("runasgi", "0", "--noreload")
    assert_one_line_error(child, "failed to start")
    assert [line for line in child.err if "the cache is cold" in line]


@pytest.mark.parametrize("value", ["''", "7"])
def test_asgi_application_that_is_no_path_is_one_line(project: Project, value: str) -> None:
    project.write("child_settings", f"ASGI_APPLICATION = {value}\n", append=True)
    assert_one_line_error(
        project.start("runasgi", "0", "--noreload"), "such as 'mysite.asgi.application'"
    )


def test_missing_extra_is_one_line_that_says_what_to_install() -> None:
    source = """
        import sys
        sys.modules["uvicorn"] = None
        from django.core.management import execute_from_command_line
        execute_from_command_line(["manage.py", "runasgi"])
    """
    child = run_child(source, expect_code=1, DJANGO_SETTINGS_MODULE="testproject.settings")
    assert len(child.stderr.splitlines()) == 1
    assert 'pip install "django-asyncbridge[server]"' in child.stderr


def test_unapplied_migrations_are_warned_about(project: Project) -> None:
    child = project.start("runasgi", "0", "--noreload")
    child.wait_for("unapplied migration")
    child.wait_for_url()


# --- The command, in process ----------------------------------------------


def test_command_without_allowed_hosts_outside_debug_is_an_error() -> None:
    with (
        override_settings(DEBUG=False, ALLOWED_HOSTS=[]),
        pytest.raises(CommandError, match="ALLOWED_HOSTS"),
    ):
        call_command("runasgi")


def test_command_with_a_database_that_is_down_warns_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check_migrations(_self: Command) -> None:
        raise OperationalError("nobody there")

    closed: list[bool] = []
    monkeypatch.setattr(Command, "check_migrations", check_migrations)
    monkeypatch.setattr(connections, "close_all", lambda: closed.append(True))
    error = StringIO()
    Command(stderr=error).warn_about_migrations()
    assert "not checked: nobody there" in error.getvalue()
    assert closed


WRONG = """
    ASYNCBRIDGE = {"REQUEST_THREADS": {"MAX": "8"}}
    ASGI_APPLICATION = None
"""


def test_settings_that_are_wrong_are_one_line_also_without_checks(project: Project) -> None:
    project.write("child_settings", WRONG, append=True)
    child = project.start("runasgi", "0", "--noreload", "--skip-checks")
    assert_one_line_error(child, """ASYNCBRIDGE["REQUEST_THREADS"]["MAX"] is '8'""")


@pytest.mark.parametrize("option", [{"workers": 2}, {"reload": True}])
def test_workers_of_call_command_are_an_error(option: dict[str, Any]) -> None:
    with pytest.raises(CommandError, match="not to call_command"):
        call_command("runasgi", **option)


def test_environment_of_a_worker_set_by_hand_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCBRIDGE_WORKER", "yes")
    with pytest.raises(CommandError, match="ASYNCBRIDGE_WORKER is 'yes'"):
        call_command("runasgi")
