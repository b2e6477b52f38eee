"""Tests of `django_asyncbridge.serving._worker_link`: both ends of the line in one process."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from django_asyncbridge.serving._worker_link import READY, WorkerLink, environment_of
from django_asyncbridge.serving.errors import ServingError

LIMIT_SECONDS = 30


@pytest.fixture
def line() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return the supervisor's end and the worker's; SIGHUP is as before in the end."""
    ours, its = socket.socketpair()
    ours.settimeout(LIMIT_SECONDS)
    handler = signal.getsignal(signal.SIGHUP)
    yield ours, its
    signal.signal(signal.SIGHUP, handler)
    ours.close()
    its.close()


def link_of(its: socket.socket, *listeners: int) -> WorkerLink:
    link = WorkerLink.from_environ(environment_of(2, its.detach(), listeners))
    assert link is not None
    return link


def test_from_environ_without_the_variable_is_no_worker() -> None:
    assert WorkerLink.from_environ({"PATH": "/bin"}) is None


def test_from_environ_reads_and_removes_the_variable(
    line: tuple[socket.socket, socket.socket],
) -> None:
    with socket.socket() as one, socket.socket() as other:
        fds = (one.fileno(), other.fileno())
        environ = {"PATH": "/bin", **environment_of(2, line[1].fileno(), fds)}
        for fd in (*fds, line[1].fileno()):
            os.set_inheritable(fd, True)

        link = WorkerLink.from_environ(environ)

        assert environ == {"PATH": "/bin"}
        assert link is not None
        assert (link.number, link.listeners) == (2, fds)
        assert not any(os.get_inheritable(fd) for fd in (*fds, line[1].fileno()))
        line[1].detach()
        link.close()


def test_from_environ_without_listeners_has_none(
    line: tuple[socket.socket, socket.socket],
) -> None:
    link = link_of(line[1])

    assert link.listeners == ()
    link.close()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("yes", "another form"),
        ("number=1 link=99999 listeners=", "Bad file descriptor"),
        ("number=1 link=3 listeners=99999", "Bad file descriptor"),
        (f"number=1 link={2**70} listeners=", "too large"),
    ],
)
def test_from_environ_with_a_value_of_somebody_else_says_so_in_one_line(
    text: str, problem: str
) -> None:
    environ = {"ASYNCBRIDGE_WORKER": text}

    with pytest.raises(ServingError, match=problem) as caught:
        WorkerLink.from_environ(environ)

    assert "ASYNCBRIDGE_WORKER" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_from_environ_with_a_socket_of_somebody_else_leaves_it_open() -> None:
    with socket.socket(socket.AF_INET) as other:
        with pytest.raises(ServingError, match="no line to a supervisor"):
            WorkerLink.from_environ(environment_of(1, other.fileno(), ()))
        os.fstat(other.fileno())


def test_ready_tells_the_supervisor(line: tuple[socket.socket, socket.socket]) -> None:
    link = link_of(line[1])

    link.ready()

    assert line[0].recv(16) == READY
    link.close()


def test_ready_after_the_supervisor_has_gone_is_no_error(
    line: tuple[socket.socket, socket.socket],
) -> None:
    link = link_of(line[1])
    line[0].close()

    link.ready()

    link.close()


def test_watch_stops_when_the_supervisor_has_gone(
    line: tuple[socket.socket, socket.socket],
) -> None:
    link, stopped = link_of(line[1]), threading.Event()
    link.watch(stopped.set)
    line[0].send(b"something of another version")
    assert not stopped.is_set()

    line[0].close()

    assert stopped.wait(LIMIT_SECONDS)
    link.close()


def test_watch_of_a_line_that_breaks_stops(line: tuple[socket.socket, socket.socket]) -> None:
    link, stopped = link_of(line[1]), threading.Event()
    # Closing with something unread resets the line.
    link.ready()
    line[0].close()

    link.watch(stopped.set)

    assert stopped.wait(LIMIT_SECONDS)
    link.close()


def test_watch_keeps_the_worker_from_dying_of_sighup(
    line: tuple[socket.socket, socket.socket],
) -> None:
    link = link_of(line[1])
    link.watch(lambda: None)

    os.kill(os.getpid(), signal.SIGHUP)

    # A program that it starts does not ignore the signal.
    source = "import signal; print(signal.getsignal(signal.SIGHUP).name)"
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    assert done.stdout == "SIG_DFL\n"
    link.close()


def test_close_ends_the_watch_without_stopping(
    line: tuple[socket.socket, socket.socket],
) -> None:
    link, stopped = link_of(line[1]), threading.Event()
    link.watch(stopped.set)

    link.close()
    link.close()

    assert not stopped.is_set()
    assert not [one for one in threading.enumerate() if one.name == "asyncbridge-link-1"]
