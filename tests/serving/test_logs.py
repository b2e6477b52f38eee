"""Log output of a server, with and without a configuration of the project."""

import contextlib
import logging
from collections.abc import Iterator

import pytest

from django_asyncbridge.serving.logs import show_server_logs


@contextlib.contextmanager
def new_loggers() -> Iterator[dict[str, logging.Logger]]:
    """The loggers that a server writes to, as new, with nothing above them (pytest puts something there)."""
    names = ["", "uvicorn", "uvicorn.access", "django_asyncbridge"]
    found = {name: logging.getLogger(name) for name in names}
    before = {log: (log.handlers, log.level, log.propagate) for log in found.values()}
    for log in found.values():
        log.handlers, log.propagate = [], True
        log.setLevel(logging.NOTSET)
    try:
        yield found
    finally:
        for log, (handlers, level, propagate) in before.items():
            log.handlers, log.propagate = handlers, propagate
            log.setLevel(level)


def test_show_server_logs_without_configuration_shows_each_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with new_loggers() as loggers:
        for _ in range(2):
            show_server_logs()
        request = ("127.0.0.1:5", "GET", "/", "1.1", 200)
        loggers["uvicorn.access"].info('%s - "%s %s HTTP/%s" %d', *request)
        logging.getLogger("uvicorn.error").info("Shutting down")
        logging.getLogger("django_asyncbridge.serving").warning("ours")
    out, err = capsys.readouterr()
    assert out.splitlines() == ['INFO:     127.0.0.1:5 - "GET / HTTP/1.1" 200 OK']
    assert err.splitlines() == ["INFO:     Shutting down", "WARNING:  ours"]


def test_show_server_logs_enables_the_server_s_loggers_and_no_others() -> None:
    names = ["uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"]
    names += ["django_asyncbridge", "django_asyncbridge.serving", "uvicorn_of_the_project"]
    with new_loggers():
        found = {name: logging.getLogger(name) for name in names}
        for log in found.values():
            log.disabled = True
        show_server_logs()
        other = found.pop("uvicorn_of_the_project")
        assert other.disabled
        assert not [name for name, log in found.items() if log.disabled]


def test_show_server_logs_with_the_project_s_own_handlers_adds_none() -> None:
    with new_loggers() as loggers:
        loggers[""].addHandler(logging.NullHandler())
        loggers["uvicorn"].setLevel(logging.ERROR)
        show_server_logs()
        assert loggers["uvicorn"].level == logging.ERROR
        assert loggers["uvicorn.access"].level == logging.INFO
        for name in ("uvicorn", "uvicorn.access", "django_asyncbridge"):
            assert loggers[name].handlers == []
            assert loggers[name].propagate
