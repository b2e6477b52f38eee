"""``manage.py runstateless`` as a user starts it, with the syslog server of testproject and with others."""

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connections

from django_asyncbridge.management.commands import runstateless
from django_asyncbridge.serving.errors import ListenError
from testproject import syslog
from testproject.syslog import SyslogServer, parse
from tests.serving.children import LIMIT_SECONDS, Child, Project
from tests.support import ROOT, run_child


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    project = Project(tmp_path)
    yield project
    project.close()


SYSLOG = [
    *("runstateless", "testproject.syslog.SyslogServer"),
    *("--app", "testproject.syslog:application", "--option", "port=0"),
]


def port_of(child: Child) -> int:
    """Return the port that a syslog server listens on, once it does."""
    return int(child.wait_for(r"Listening on udp://127\.0\.0\.1:(\d+)/")[1])


@contextlib.contextmanager
def client(port: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp_socket:
        udp_socket.connect(("127.0.0.1", port))
        yield udp_socket


def tracebacks(child: Child) -> list[str]:
    return [line for line in child.err if "Traceback" in line]


def assert_one_line_error(child: Child, text: str) -> None:
    """Assert that the command ended with one line that says `text`, and no traceback."""
    assert child.end() == 1
    assert child.err[-1].startswith("CommandError: ")
    assert text in child.err[-1]
    assert not tracebacks(child)


# --- The syslog server, served ---------------------------------------------------------


def test_syslog_messages_of_two_clients_are_kept_apart_and_counted(project: Project) -> None:
    child = project.start(*SYSLOG)
    port = port_of(child)
    with client(port) as one, client(port) as other:
        one.send(b"<34>the printer is on fire")
        assert child.wait_for("#")[0]
        one.send(b"<190>all is well")
        one.send(b"<12>still burning\nslowly")
        child.wait_for(r"127\.0\.0\.1 #2 warning: still burning\\nslowly$")
        other.send(b"<8>here too")
        child.wait_for(r"127\.0\.0\.1 #1 emergency: here too$")
    child.signal(signal.SIGTERM)
    assert child.end() == 0
    kept = [line for line in child.out if "#" in line]
    assert [re.sub(r"^\S+ ", "", line) for line in kept] == [
        "127.0.0.1 #1 critical: the printer is on fire",
        r"127.0.0.1 #2 warning: still burning\nslowly",
        "127.0.0.1 #1 emergency: here too",
    ]
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 ", kept[0])
    assert not tracebacks(child)


def test_banner_names_the_class_the_application_the_settings_and_how_to_stop(
    project: Project,
) -> None:
    child = project.start(*SYSLOG)
    port_of(child)
    banner = "\n".join(child.out)
    assert "using settings 'child_settings'" in banner
    name = "ASGI application 'testproject.syslog:application'"
    assert f"Running testproject.syslog.SyslogServer for {name}" in banner
    assert "Quit the server with CONTROL-C." in banner


def test_port_in_use_is_one_line(project: Project) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        child = project.start(*SYSLOG[:-1], f"port={port}")
        assert_one_line_error(child, f"Cannot listen on 127.0.0.1, port {port}: ")


def test_unapplied_migrations_are_warned_about(project: Project) -> None:
    child = project.start(*SYSLOG)
    child.wait_for("unapplied migration")
    port_of(child)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere.Server"], "'nowhere.Server' cannot be imported: ModuleNotFoundError"),
        (["testproject.urls.urlpatterns"], "is not a class, but a list"),
        (["pathlib.Path"], "let it inherit from django_asyncbridge.bridge.server.StatelessServer."),
        (["django_asyncbridge.bridge.server:StatelessServer"], "has no handle()"),
        (["testproject.syslog:SyslogServer", "--option", "prot=1"], "did you mean port?"),
        (["testproject.syslog:SyslogServer", "--app", "testproject.ws.echoes"], "cannot be imp"),
    ],
)
def test_wrong_arguments_are_one_line(project: Project, arguments: list[str], text: str) -> None:
    child = project.start("runstateless", *arguments)
    assert_one_line_error(child, text)
    assert not [line for line in child.out if "Running" in line]


WRONG = """
    ASYNCBRIDGE = {"REQUEST_THREADS": {"MAX": "8"}}
    ASGI_APPLICATION = None
"""


def test_settings_that_are_wrong_are_one_line_also_without_checks(project: Project) -> None:
    project.write("child_settings", WRONG, append=True)
    child = project.start("runstateless", SYSLOG[1], "--skip-checks")
    assert_one_line_error(child, """ASYNCBRIDGE["REQUEST_THREADS"]["MAX"] is '8'""")


def test_system_checks_are_run_first(project: Project) -> None:
    project.write("child_settings", WRONG, append=True)
    child = project.start(*SYSLOG)
    assert child.end() == 1
    assert [line for line in child.err if "SystemCheckError" in line]
    assert not [line for line in child.out if "Running" in line]


def test_command_runs_without_uvicorn() -> None:
    source = """
        import sys
        sys.modules["uvicorn"] = None
        from django.core.management import execute_from_command_line
        execute_from_command_line(["manage.py", "runstateless", "pathlib.Path"])
    """
    child = run_child(source, expect_code=1, DJANGO_SETTINGS_MODULE="testproject.settings")
    assert "is not a StatelessServer" in child.stderr


# --- Start and end ---------------------------------------------------------------------

# One instance, which is busy when the server says so, and finishes when a Django signal says that it stops.
SERVERS = """
    import asyncio
    import logging

    from django_asyncbridge.bridge.server import StatelessServer
    from django_asyncbridge.signals import server_started, server_stopping

    stopping = asyncio.Event()


    def note_start(sender, address, **kwargs):
        print("started", sender.__name__, address, flush=True)


    async def note_stop(sender, address, **kwargs):
        print("stopping", sender.__name__, address, flush=True)
        stopping.set()


    server_started.connect(note_start)
    server_stopping.connect(note_stop)


    async def application(scope, receive, send):
        await receive()
        await send("busy")
        await stopping.wait()
        await send("finished")


    async def stubborn(scope, receive, send):
        await receive()
        await send("busy")
        await asyncio.Event().wait()


    class Server(StatelessServer):
        application_drain_seconds = 3600

        async def handle(self):
            self.get_or_create_application_instance("one", {}).put_nowait("work")
            await asyncio.Event().wait()

        async def application_send(self, scope, message):
            print(message, flush=True)


    class Ends(Server):
        async def handle(self):
            logging.getLogger("child_servers").warning("not disabled")
            logging.getLogger("django_asyncbridge.child").info("shown")


    class Fails(Server):
        async def handle(self):
            raise LookupError("no printer")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_signal_lets_applications_finish_and_ends_with_code_0(
    project: Project, number: int
) -> None:
    project.write("child_servers", SERVERS)
    child = project.start(
        "runstateless", "child_servers:Server", "--app", "child_servers:application"
    )
    child.wait_for("busy")
    child.signal(number)
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    child.wait_for(rf"^INFO: Stopping\. \({name} again ends the process at once\)$")
    assert child.end() == 0
    assert child.out[-4:] == ["started Server None", "busy", "stopping Server None", "finished"]
    assert not tracebacks(child)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_second_signal_of_a_kind_ends_at_once(project: Project, number: int) -> None:
    project.write("child_servers", SERVERS)
    child = project.start("runstateless", "child_servers.Server", "--app", "child_servers.stubborn")
    child.wait_for("busy")
    child.signal(number)
    child.wait_for("stopping Server")
    child.signal(number)
    assert child.end() == 128 + number
    assert not tracebacks(child)


def test_sigterm_after_sigint_is_one_wish_to_stop(project: Project) -> None:
    project.write("child_servers", SERVERS)
    source = """
        import os, signal, sys
        from django.core.management import execute_from_command_line
        from django_asyncbridge.signals import server_stopping
        import child_servers

        def second(**kwargs):
            signal.raise_signal(signal.SIGTERM)

        server_stopping.connect(second)

        async def application(scope, receive, send):
            await receive()
            signal.raise_signal(signal.SIGINT)
            await child_servers.stopping.wait()
            await send("finished")

        child_servers.application = application
        execute_from_command_line(
            ["manage.py", "runstateless", "child_servers.Server", "--app", "child_servers.application"]
        )
    """
    path = os.pathsep.join([str(project.directory), str(ROOT)])
    child = run_child(source, PYTHONPATH=path, DJANGO_SETTINGS_MODULE="child_settings")
    assert child.stdout.splitlines()[-1] == "finished"
    assert "Traceback" not in child.stderr


def test_signal_right_after_the_banner_ends_with_code_0(project: Project) -> None:
    child = project.start(*SYSLOG)
    child.wait_for("Quit the server")
    child.signal(signal.SIGINT)
    assert child.end() == 0
    assert not tracebacks(child)


# What many projects have; it disables the loggers that exist when an asgi.py configures logging again.
LOGGING = """
    LOGGING = {
        "version": 1,
        "handlers": {"console": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["console"]},
    }
"""


def test_server_that_ends_by_itself_ends_with_code_0_and_logs_are_seen(project: Project) -> None:
    project.write("child_servers", SERVERS)
    project.write("child_settings", LOGGING, append=True)
    child = project.start("runstateless", "child_servers.Ends")
    assert child.end() == 0
    assert [line for line in child.out if "for ASGI application 'testproject.asgi.app" in line]
    assert [line for line in child.err if line in ("not disabled", "shown")] == [
        "not disabled",
        "shown",
    ]


def test_server_that_fails_keeps_its_traceback(project: Project) -> None:
    project.write("child_servers", SERVERS)
    child = project.start("runstateless", "child_servers.Fails")
    assert child.end() == 1
    assert child.err[-1] == "LookupError: no printer"
    assert tracebacks(child)


# --- The command, in process -----------------------------------------------------------


def test_command_without_a_server_is_an_error() -> None:
    with pytest.raises(CommandError, match="server"):
        call_command("runstateless")


def test_command_with_a_database_that_is_down_warns_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check_migrations(_self: Any) -> None:
        raise OperationalError("nobody there")

    closed: list[bool] = []
    monkeypatch.setattr(runstateless.Command, "check_migrations", check_migrations)
    monkeypatch.setattr(connections, "close_all", lambda: closed.append(True))
    error = StringIO()
    runstateless.Command(stderr=error).warn_about_migrations()
    assert "not checked: nobody there" in error.getvalue()
    assert closed


class Once(SyslogServer):
    """Takes in one datagram, which it sends itself."""

    async def handle(self) -> None:
        self.take(b"<11>hello", ("127.0.0.1", 1))
        self.application_drain_seconds = LIMIT_SECONDS


def test_command_with_options_makes_the_server_with_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def close() -> None:
        """Leave the connection of the tests alone."""

    monkeypatch.setattr(connections, "close_all", close)
    monkeypatch.setattr(runstateless.Command, "check_migrations", lambda _self: None)
    monkeypatch.setattr(runstateless, "show_logs", close)
    out = StringIO()
    options = ["allow=127.0.0.1", "max_applications=1"]
    path = f"{__name__}:Once"
    call_command(
        "runstateless", path, option=options, app="testproject.syslog.application", stdout=out
    )
    assert f"Running {__name__}.Once for " in out.getvalue()
    assert "#1 error: hello" in capsys.readouterr().out


# --- The syslog server, in process -----------------------------------------------------


@pytest.mark.parametrize(
    ("datagram", "message"),
    [
        (
            b"<34>1 2003-10-11T22:14:15.003Z host su - - - failed\n",
            (4, 2, "1 2003-10-11T22:14:15.003Z host su - - - failed"),
        ),
        (b"<0>a", (0, 0, "a")),
        (b"<191>a", (23, 7, "a")),
        (b"<192>a", (1, 5, "<192>a")),
        (b"<x>a", (1, 5, "<x>a")),
        (b"", (1, 5, "")),
        (b"<13>\xff\xc3\xa9", (1, 5, "\\xff\u00e9")),
    ],
)
def test_parse_reads_priority_and_text(datagram: bytes, message: tuple[int, int, str]) -> None:
    assert parse(datagram) == message


async def idle(_scope: Any, _receive: Any, _send: Any) -> None:
    """An application that does nothing."""


def test_syslog_server_takes_from_whom_it_may_and_no_more_than_a_queue_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        monkeypatch.setattr(syslog, "_LONGEST_QUEUE", 2)
        server = SyslogServer(idle, allow=["127.0.0.1"])
        for host in ("127.0.0.1", "127.0.0.2"):
            for _ in range(3):
                server.take(b"<13>hello", (host, 1))
        assert list(server.application_instances) == [("127.0.0.1", 1)]
        [details] = server.application_instances.values()
        assert details["scope"] == {"type": "syslog", "client": ("127.0.0.1", 1)}
        assert details["input_queue"].qsize() == 2
        message = {"type": "syslog.message", "facility": 1, "severity": 5, "text": "hello"}
        assert details["input_queue"].get_nowait() == message
        server.delete_oldest_application_instance()
        await asyncio.wait([details["future"]])

    asyncio.run(main())


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("..", 0)])
def test_syslog_server_that_cannot_listen_raises(host: str, port: int) -> None:
    with pytest.raises(ListenError, match=f"Cannot listen on {re.escape(host)}, port {port}: "):
        SyslogServer(idle, host=host, port=port).listen()


# --- Reloading ---------------------------------------------------------------------------

RELOADED = """
    import asyncio
    from django_asyncbridge.bridge.server import StatelessServer

    class Server(StatelessServer):
        async def handle(self):
            print("{text}", flush=True)
            await asyncio.Event().wait()
"""


def test_reload_runs_the_server_anew_with_changed_code(project: Project) -> None:
    project.write("child_settings", 'INSTALLED_APPS += ["child_app"]', append=True)
    (project.directory / "child_app").mkdir()
    project.write("child_app/__init__", "")
    project.write("child_app/servers", RELOADED.format(text="the first"))
    child = project.start("runstateless", "child_app.servers.Server", "--reload")
    child.wait_for("the first")
    project.write("child_app/servers", "def")
    child.wait_for("CommandError: 'child_app.servers.Server' cannot be imported: SyntaxError")
    project.write("child_app/servers", RELOADED.format(text="the second"))
    child.wait_for("the second")
    child.signal(signal.SIGTERM)
    assert child.end() == 0
    assert not tracebacks(child)


def test_reload_of_call_command_is_an_error() -> None:
    with pytest.raises(CommandError, match="not to call_command"):
        call_command("runstateless", "child_app.servers.Server", reload=True)
