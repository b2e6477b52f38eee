"""What ties a worker process to the supervisor that started it: inherited sockets, and a line between the two.

The supervisor passes one environment variable, the listening sockets, and one end of a socket pair, the line. The worker says on it
that it is ready; that the line breaks tells each side that the other is gone.

Which thread may touch what. The main thread makes the link, before it starts others, since the environment is the process's. `ready`
may be called by any thread. The thread of `watch` only reads the line, and ends when the line does: by the supervisor's end or by
`close`, which says so first. Sockets can be read and written by two threads at once, so no lock is needed.

Only the standard library and `errors` are imported: a worker makes its link before anything else.
"""

import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterable, MutableMapping

from django_asyncbridge.serving.errors import ServingError

__all__ = ("READY", "WorkerLink", "environment_of")

# What a worker says on the line; everything it ever says.
READY = b"r"

_VARIABLE = "ASYNCBRIDGE_WORKER"
_FORM = re.compile(r"number=([0-9]+) link=([0-9]+) listeners=((?:[0-9]+(?:,[0-9]+)*)?)")


def environment_of(number: int, link: int, listeners: Iterable[int]) -> dict[str, str]:
    """Return the environment variables that make a process a worker, for `WorkerLink.from_environ` to read.

    Args:
        number: the worker's.
        link: the file descriptor of the worker's end of the line.
        listeners: those of the listening sockets. All of them have to be open in the new process.
    """
    fds = ",".join(str(fd) for fd in listeners)
    return {_VARIABLE: f"number={number} link={link} listeners={fds}"}


class WorkerLink:
    """A worker's side of the line to its supervisor; `from_environ` makes it.

    Attributes:
        number: the worker's, from 1. A worker that takes the place of another has its number.
        listeners: file descriptors of the inherited sockets that listen, for `django_asyncbridge.serving.address.inherit`; often
            one, none for a server that does not listen. They are the caller's.
    """

    def __init__(self, number: int, line: socket.socket, listeners: tuple[int, ...]) -> None:
        self.number = number
        self.listeners = listeners
        self._line = line
        self._watching: threading.Thread | None = None
        self._closed = False

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> "WorkerLink | None":
        """Return the link of this process, or None if no supervisor has started it. Main thread, before others start.

        Processes that a worker starts are no workers: the variable is taken out of `environ`, and they do not inherit the sockets.

        Args:
            environ: ``os.environ``.

        Raises:
            ServingError: the variable was set by somebody else.
        """
        text = environ.pop(_VARIABLE, None)
        if text is None:
            return None
        match = _FORM.fullmatch(text)
        try:
            if match is None:
                raise ValueError("it has another form")
            listeners = tuple(int(fd) for fd in match[3].split(",") if fd)
            for fd in listeners:
                os.set_inheritable(fd, False)
            line = _line_of(int(match[2]))
        except (OSError, OverflowError, ValueError) as error:
            raise ServingError(
                f"The environment variable {_VARIABLE} is {text!r}, which no supervisor of this process has set ({error}); "
                "remove it, it is not for you to set."
            ) from error
        return cls(int(match[1]), line, listeners)

    def ready(self) -> None:
        """Tell the supervisor that connections are taken. Any thread; again changes nothing."""
        # A supervisor that is gone is the matter of `watch`.
        with contextlib.suppress(OSError):
            self._line.send(READY)

    def watch(self, stop: Callable[[], object]) -> None:
        """From now on, have `stop` called once the supervisor is gone, so that a worker never outlives it. Main thread, once.

        A daemon thread waits for that, and calls `stop` in that thread; at once if the supervisor is gone already.

        SIGHUP is the supervisor's from here on: a worker that gets it too, as when it is sent to all processes of a name, would die
        of it in the middle of its requests.
        """
        # A function, not SIG_IGN: processes that the worker starts would inherit that.
        signal.signal(signal.SIGHUP, lambda _number, _frame: None)
        self._watching = threading.Thread(
            target=self._watch, args=(stop,), name="asyncbridge-link-1", daemon=True
        )
        self._watching.start()

    def _watch(self, stop: Callable[[], object]) -> None:
        with contextlib.suppress(OSError):  # a broken line is over as well
            while self._line.recv(16):
                pass  # a supervisor says nothing; one of another version might
        if not self._closed:
            stop()

    def close(self) -> None:
        """End `watch` without calling its `stop`, and close the line. Main thread; again changes nothing.

        A process that ends need not call it.
        """
        self._closed = True
        # Closing alone does not wake a thread that reads.
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        if self._watching is not None:
            self._watching.join()
        self._line.close()


def _line_of(fd: int) -> socket.socket:
    """Return the line that is open as `fd`, not to be inherited any further."""
    os.set_inheritable(fd, False)
    line = socket.socket(fileno=fd)
    if line.family != socket.AF_UNIX:
        line.detach()  # it is somebody's, and not ours to close
        raise ValueError(f"file descriptor {fd} is no line to a supervisor")
    return line
