"""Which class is run, what it is made with, and how a run of it ends."""

import abc
import asyncio
import contextlib
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asgiref.server
import pytest
from django.core.wsgi import get_wsgi_application
from django.test import override_settings

from django_asyncbridge.bridge.server import StatelessServer
from django_asyncbridge.handlers.asgi import ASGIHandler
from django_asyncbridge.management.commands.runstateless import show_logs
from django_asyncbridge.serving.address import Address
from django_asyncbridge.serving.errors import ApplicationError
from django_asyncbridge.serving.http import HTTPServer
from django_asyncbridge.serving.stateless import (
    OptionError,
    ServerClassError,
    ServerRun,
    choose_application,
    import_server,
    make_server,
)
from django_asyncbridge.signals import server_started, server_stopping
from tests.serving.test_logs import new_loggers
from tests.support import run_in_thread

if TYPE_CHECKING:
    from typing import Any as Unknown

LIMIT_SECONDS = 30


async def idle(_scope: Any, receive: Any, _send: Any) -> None:
    """An application that waits for what never comes."""
    await receive()


class Server(StatelessServer):
    """Ends at once."""

    async def handle(self) -> None: ...

    class Inner(StatelessServer):
        async def handle(self) -> None: ...


class AsgirefServer(asgiref.server.StatelessServer):
    async def handle(self) -> None:
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(asyncio.Event().wait(), LIMIT_SECONDS)


class WithoutHandle(StatelessServer): ...


class AsgirefWithoutHandle(asgiref.server.StatelessServer): ...


class Abstract(StatelessServer, abc.ABC):
    async def handle(self) -> None: ...

    @abc.abstractmethod
    def read(self) -> None: ...

    @abc.abstractmethod
    def decode(self) -> None: ...


an_object = Server(idle)
TEXT = "text"
WSGI = get_wsgi_application()

# --- What to run ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (f"{__name__}.Server", Server),
        (f"{__name__}:Server", Server),
        (f"{__name__}:Server.Inner", Server.Inner),
        (f"{__name__}.AsgirefServer", AsgirefServer),
    ],
)
def test_import_server_by_either_kind_of_path_returns_the_class(path: str, found: type) -> None:
    assert import_server(path) is found


OURS = "django_asyncbridge.bridge.server.StatelessServer"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("nowhere.Server", "cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
        (f"{__name__}.Missing", "cannot be imported: AttributeError: module"),
        ("broken_module.Server", "cannot be imported: ValueError: two lines"),
        ("Server", "'Server' is not a dotted path such as 'mysite.servers.SyslogServer'."),
        ("", "'' is not a dotted path"),
        ("a b:c", "'a b:c' is not a dotted path"),
        (f"{__name__}:", "is not a dotted path"),
        (__name__, "is not a class, but a module; name a class that inherits from " + OURS),
        (f"{__name__}.idle", "is not a class, but a function; name a class that inherits"),
        (f"{__name__}.an_object", f"but an object of one; name {__name__}.Server."),
        (f"{__name__}.Path", f"is not a StatelessServer; let it inherit from {OURS}."),
        (f"{__name__}.WithoutHandle", "has no handle(); override it"),
        (f"{__name__}.AsgirefWithoutHandle", "has no handle(); override it"),
        (OURS, "has no handle(); override it"),
        (f"{__name__}.Abstract", "is abstract; name a class that overrides decode(), read()."),
    ],
)
def test_import_server_that_is_none_raises_what_is_wrong(
    path: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text("raise ValueError('two\\nlines')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ServerClassError, match=re.escape(text)) as caught:
        import_server(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", [f"{__name__}.idle", f"{__name__}:idle"])
def test_choose_application_that_is_named_is_that_one(path: str) -> None:
    assert choose_application(path) == (idle, f"ASGI application {path!r}")


def test_choose_application_by_the_settings_is_theirs_as_it_is() -> None:
    path = f"{__name__}.idle"
    with override_settings(DEBUG=True, ASGI_APPLICATION=path):
        assert choose_application(None) == (idle, f"ASGI application {path!r}")


def test_choose_application_without_the_setting_is_the_project() -> None:
    with override_settings(DEBUG=True, ASGI_APPLICATION=None):
        application, name = choose_application(None)
    assert type(application) is ASGIHandler
    assert name == "the project"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("nowhere.application", "No module named 'nowhere'"),
        ("application", "is not a dotted path such as 'mysite.syslog.application'."),
        (f"{__name__}.TEXT", "is 'text', which cannot be called. Name what is written as"),
        (f"{__name__}.WSGI", "as WSGI applications do. Wrap it"),
    ],
)
def test_choose_application_that_is_none_raises_what_is_wrong(path: str, text: str) -> None:
    with pytest.raises(ApplicationError, match=re.escape(text)):
        choose_application(path)


# --- What to make it with ------------------------------------------------------------


class Keeps(Server):
    """Keeps what it was made with."""

    def __init__(
        self,
        application: Any,
        max_applications: int = 1000,
        plain: Any = None,
        counted: Any = 7,
        ratio: Any = 0.5,
        loud: Any = False,
        names: Any = ("a",),
        *,
        host: str = "",
        port: int | None = None,
        seconds: "float" = 1.0,
        quiet: bool = False,
        hosts: list[str] | None = None,
        ports: Sequence[int] = (),
        any_list: list = [],  # type: ignore[type-arg]  # noqa: B006
        several: tuple[float, ...] = (),
        pair: tuple[int, str] = (1, ""),
        mixed: int | str = 0,
        unknown: "Unknown" = 3,
        path: Path | None = None,
    ) -> None:
        super().__init__(application, max_applications)
        self.given = dict(locals())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_applications=5", 5),
        ("plain=5", "5"),
        ("counted=-8", -8),
        ("ratio=2", 2.0),
        ("loud=Yes", True),
        ("names=a, b", ("a", "b")),
        ("host=a=b,c", "a=b,c"),
        ("host=", ""),
        ("port=0", 0),
        ("seconds=1e3", 1000.0),
        ("quiet=true", True),
        ("quiet=OFF", False),
        ("hosts=127.0.0.1,::1,", ["127.0.0.1", "::1"]),
        ("hosts=", []),
        ("ports=1,2", [1, 2]),
        ("any_list=1,b", ["1", "b"]),
        ("several=1,2", (1.0, 2.0)),
        ("pair=1,b", ("1", "b")),
        ("mixed=1", 1),
        ("unknown=1", 1),
        ("path=/x", "/x"),
    ],
)
def test_make_server_gives_each_option_as_its_parameter_says(option: str, value: object) -> None:
    server = make_server(Keeps, idle, [option])
    given = server.given[option.partition("=")[0]]
    assert given == value
    assert type(given) is type(value)
    assert server.application is idle


def test_make_server_with_several_options_gives_all() -> None:
    server = make_server(Keeps, idle, ["port=1", "host=b"])
    assert (server.given["port"], server.given["host"]) == (1, "b")


class Passes(Keeps):
    def __init__(self, *args: Any, host: str, depth: int, **kwargs: Any) -> None:
        super().__init__(*args, host=host, **kwargs)
        self.depth = depth


class Mixin:
    def __init__(self, *, level: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.level = level


class Mixed(Mixin, Keeps): ...


class Open(StatelessServer):
    def __init__(self, application: Any, **anything: Any) -> None:
        super().__init__(application)
        self.anything = anything


@dataclass(eq=False)
class Data(Server):
    application: Any
    port: int

    def __post_init__(self) -> None:
        super().__init__(self.application)


class Unreadable(Server):
    def __init__(self, application: Any, port: int, *names: str) -> None:
        raise RuntimeError("there is\nno printer")


class Alone(Server):
    def __init__(self, port: int = 1) -> None: ...


class Nothing(Server):
    def __init__(self, application: Any) -> None: ...


def test_make_server_that_hands_keywords_on_knows_the_options_of_its_bases() -> None:
    server = make_server(Passes, idle, ["host=b", "depth=3", "port=1", "max_applications=2"])
    assert (server.depth, server.given["port"], server.max_applications) == (3, 1, 2)
    server = make_server(Mixed, idle, ["level=3", "port=1"])
    assert (server.level, server.given["port"]) == (3, 1)


def test_make_server_that_takes_anything_gets_what_it_does_not_name_as_text() -> None:
    server = make_server(Open, idle, ["colour=7", "max_applications=2"])
    assert server.anything == {"colour": "7", "max_applications": 2}


def test_make_server_of_a_dataclass_reads_its_fields() -> None:
    assert make_server(Data, idle, ["port=3"]).port == 3


def test_make_server_of_asgirefs_reads_its_default() -> None:
    assert make_server(AsgirefServer, idle, ["max_applications=3"]).max_applications == 3


@pytest.mark.parametrize(
    ("cls", "options", "text"),
    [
        (Keeps, ["port"], "--option port: write key=value, for example --option "),
        (Keeps, ["=5"], "--option =5: write key=value"),
        (Keeps, ["port=1", "port=2"], "--option port is given twice; a list is separated by"),
        (Keeps, ["application=x"], "--option application: it is --app that names the application."),
        (Keeps, ["prot=1"], "Keeps has no option 'prot'; did you mean port?"),
        (Data, ["colour=1"], "Data has no option 'colour'; it has: port."),
        (Nothing, ["colour=1"], "Nothing has no option 'colour'; it has: none."),
        (Keeps, ["port=abc"], "--option port=abc: Keeps takes a whole number there."),
        (Keeps, ["seconds=x"], "Keeps takes a number there."),
        (Keeps, ["quiet=maybe"], "--option quiet=maybe: Keeps takes true or false there."),
        (Keeps, ["ports=1,b"], "takes a list, separated by commas, each a whole number there."),
        (Passes, [], "Passes also needs --option host=... (text) and --option depth=... (a whole"),
        (Data, [], "Data also needs --option port=... (a whole number)."),
    ],
)
def test_make_server_with_wrong_options_raises_what_is_wrong(
    cls: type, options: list[str], text: str
) -> None:
    with pytest.raises(OptionError, match=re.escape(text)):
        make_server(cls, idle, options)


@pytest.mark.parametrize(
    ("cls", "options", "text"),
    [
        (Unreadable, ["port=1"], "Unreadable cannot be made: RuntimeError: there is no printer"),
        (Passes, ["host=b", "depth=1", "prot=1"], "keyword argument 'prot'"),
        (Alone, [], "Alone takes no application; give its constructor a parameter of that name."),
    ],
)
def test_make_server_that_cannot_be_made_raises_why(
    cls: type, options: list[str], text: str
) -> None:
    with pytest.raises(ServerClassError, match=re.escape(text)):
        make_server(cls, idle, options)


# --- Running it ----------------------------------------------------------------------


@contextlib.contextmanager
def told() -> Iterator[list[tuple[str, Any]]]:
    """Give a list of what the signals of servers tell, and of whom."""
    log: list[tuple[str, Any]] = []

    async def started(sender: Any, address: object, **_kwargs: object) -> None:
        log.append(("started", sender))

    def stopping(sender: Any, address: object, **_kwargs: object) -> None:
        log.append(("stopping", sender))

    server_started.connect(started)
    server_stopping.connect(stopping)
    try:
        yield log
    finally:
        server_started.disconnect(started)
        server_stopping.disconnect(stopping)


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


class Acts(Server):
    """Its `handle` is the given function, which is called with the server."""

    def __init__(self, handle: Callable[[Any], Any], application: Any = idle) -> None:
        super().__init__(application)
        self.act = handle

    async def handle(self) -> None:
        await self.act(self)


class RunsItself(Acts):
    def run(self) -> None:
        super().run()


class RunsWithAsyncio(Acts):
    def run(self) -> None:
        asyncio.run(self.arun())


class RunsInThread(Acts):
    """Its loop is in another thread."""

    def run(self) -> None:
        run_in_thread(lambda: asyncio.run(self.arun()))


async def stop_by(_server: Any, number: int = signal.SIGTERM) -> None:
    """Get a signal, and wait to be ended by it."""
    signal.raise_signal(number)
    await asyncio.wait_for(asyncio.Event().wait(), LIMIT_SECONDS)
    raise AssertionError("nobody ended it")


@pytest.mark.parametrize("cls", [Acts, RunsItself, RunsWithAsyncio])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_server_run_on_a_signal_ends_the_server_and_puts_the_handlers_back(
    cls: type[Acts], number: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "django_asyncbridge")
    before = handlers()
    with told() as log:
        ServerRun(cls(lambda server: stop_by(server, number))).run()
    assert log == [("started", cls), ("stopping", cls)]
    assert handlers() == before
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert f"({name} again ends the process at once)" in caplog.messages[0]


def test_server_run_of_asgirefs_ends_on_a_signal() -> None:
    with told() as log:
        # Before 3.9 it takes the loop that is set.
        with asyncio.Runner() as runner:
            asyncio.set_event_loop(runner.get_loop())
            ServerRun(make_server(AsgirefServer, idle, [])).run()
        asyncio.set_event_loop(None)
    assert log == [("started", AsgirefServer), ("stopping", AsgirefServer)]


def test_server_run_that_ends_by_itself_returns_and_tells() -> None:
    async def handle(_server: Any) -> None:
        log.append(("handle", None))

    with told() as log:
        ServerRun(Acts(handle)).run()
    assert log == [("started", Acts), ("handle", None), ("stopping", Acts)]


def test_server_run_that_fails_raises_that_and_tells() -> None:
    async def handle(_server: Any) -> None:
        raise LookupError("no printer")

    with told() as log, pytest.raises(LookupError, match="no printer"):
        ServerRun(Acts(handle)).run()
    assert log == [("started", Acts), ("stopping", Acts)]


def test_server_run_that_fails_while_it_ends_raises_that() -> None:
    async def handle(server: Any) -> None:
        try:
            await stop_by(server)
        finally:
            raise LookupError("no printer")

    with pytest.raises(LookupError, match="no printer"):
        ServerRun(Acts(handle)).run()


def test_server_run_whose_handle_is_cancelled_by_nobody_ends_cancelled() -> None:
    async def handle(_server: Any) -> None:
        raise asyncio.CancelledError

    with told() as log, pytest.raises(asyncio.CancelledError):
        ServerRun(Acts(handle)).run()
    assert log == [("started", Acts), ("stopping", Acts)]


def test_server_run_that_is_cancelled_cancels_handle_and_waits_for_it() -> None:
    seen: list[object] = []

    async def main() -> None:
        before = asyncio.all_tasks()
        serving = asyncio.ensure_future(server.arun())
        await started.wait()
        serving.cancel()
        await asyncio.wait([serving])
        assert serving.cancelled()
        assert asyncio.all_tasks() == before

    async def handle(_server: Any) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            seen.append("ended")

    started = asyncio.Event()
    server = Acts(handle)
    ServerRun(server)
    asyncio.run(asyncio.wait_for(main(), LIMIT_SECONDS))
    assert seen == ["ended"]


def test_server_run_told_to_stop_before_it_starts_does_not_start() -> None:
    run = ServerRun(Acts(stop_by))
    with told() as log, run.stop_on_signals():
        signal.raise_signal(signal.SIGINT)
        run.run()
    assert log == []


def test_server_run_lets_applications_finish_once_it_has_told_that_it_stops() -> None:
    """They finish because of what a receiver of the signal does: so it comes before their time is over."""
    seen: list[object] = []

    async def application(_scope: Any, receive: Any, _send: Any) -> None:
        await receive()
        busy.set()
        await stopping.wait()
        seen.append("finished")

    async def handle(server: Any) -> None:
        server.get_or_create_application_instance("one", {}).put_nowait("work")
        await busy.wait()
        await stop_by(server)

    def note(**_kwargs: object) -> None:
        stopping.set()

    busy, stopping = asyncio.Event(), asyncio.Event()
    server = Acts(handle, application)
    server.application_drain_seconds = LIMIT_SECONDS
    server_stopping.connect(note)
    try:
        ServerRun(server).run()
    finally:
        server_stopping.disconnect(note)
    assert seen == ["finished"]


class Ended(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("cls", [Acts, RunsItself, RunsWithAsyncio])
def test_server_run_second_signal_of_a_kind_ends_the_process_also_while_it_winds_up(
    cls: type[Acts], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise Ended

    async def drain() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):  # the first of the other kind does nothing
            with contextlib.suppress(Ended):
                signal.raise_signal(number)

    monkeypatch.setattr(os, "_exit", end)
    server = cls(stop_by)
    monkeypatch.setattr(server, "application_drain", drain)
    ServerRun(server).run()
    assert codes == [128 + signal.SIGTERM]


def test_server_run_in_another_thread_takes_no_signals() -> None:
    before = handlers()
    seen: list[object] = []

    async def handle(_server: Any) -> None:
        seen.append(handlers())

    run_in_thread(ServerRun(Acts(handle)).run)
    assert seen == [before]


def test_server_run_whose_loop_is_in_another_thread_is_stopped_by_a_signal() -> None:
    async def handle(_server: Any) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        await asyncio.wait_for(asyncio.Event().wait(), LIMIT_SECONDS)

    ServerRun(RunsInThread(handle)).run()


class TakesSignals(Acts):
    """Its `run` has its own way to end."""

    def run(self) -> None:
        taken = [signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)]
        super().run()
        assert taken[0] == taken[1]

    def note(self, number: int, _frame: object) -> None: ...


def test_server_run_of_a_class_that_takes_the_signals_leaves_them_to_it() -> None:
    seen: list[object] = []

    async def handle(server: Any) -> None:
        seen.append(handlers()[0] == server.note)

    ServerRun(TakesSignals(handle)).run()
    assert seen == [True]


def test_server_run_of_an_http_server_tells_once_and_ends_in_order() -> None:
    def stop(**_kwargs: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    server = HTTPServer(idle, address=Address(port=0))
    with told() as log:
        server_started.connect(stop)
        try:
            ServerRun(server).run()
        finally:
            server_started.disconnect(stop)
    assert log == [("started", HTTPServer), ("stopping", HTTPServer)]


# --- The log -------------------------------------------------------------------------


def test_show_logs_without_configuration_shows_each_line_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with new_loggers():
        log = logging.getLogger("django_asyncbridge.serving.stateless")
        log.disabled = True
        for _ in range(2):
            show_logs()
        log.info("Stopping")
    assert capsys.readouterr().err.splitlines() == ["INFO: Stopping"]


def test_show_logs_with_the_project_s_own_handlers_and_level_changes_nothing() -> None:
    with new_loggers() as loggers:
        loggers[""].addHandler(logging.NullHandler())
        loggers["django_asyncbridge"].setLevel(logging.ERROR)
        show_logs()
        assert loggers["django_asyncbridge"].handlers == []
        assert loggers["django_asyncbridge"].level == logging.ERROR
        assert loggers["django_asyncbridge"].propagate
