"""Where to listen: the address a user writes, and the socket it becomes.

Nothing is kept here; any thread may call all of it.
"""

import contextlib
import errno
import os
import re
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django_asyncbridge.serving.errors import AddressError, ListenError

__all__ = ("Address", "inherit", "listen", "listen_unix", "parse_addrport", "remove_unix")

# runserver's forms, and underscores, which container networks allow in host names.
_ADDRPORT = re.compile(
    r"(?:(?:\[(?P<ipv6>[0-9a-fA-F:.]+)\]|(?P<host>[a-zA-Z0-9_-]+(?:\.[a-zA-Z0-9_-]+)*)):)?"
    r"(?P<port>[0-9]{1,5})"
)
_HIGHEST_PORT = 65535
# uvicorn's own default: connections that the system holds for us while we are busy.
_BACKLOG = 2048

_REASONS = {
    errno.EACCES: "you do not have permission to use that port",
    errno.EADDRINUSE: "that port is already in use",
    errno.EADDRNOTAVAIL: "that address is not one of this machine",
}


@dataclass(frozen=True)
class Address:
    """A host (name or IP address, without brackets) and a port; port 0 lets the system choose one."""

    host: str = "127.0.0.1"
    port: int = 8000

    @classmethod
    def of(cls, listener: socket.socket) -> "Address | None":
        """Return the address that `listener` really listens on; None if it has no host and port."""
        if listener.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        return cls(*listener.getsockname()[:2])

    def url(self, port: int, scheme: str = "http") -> str:
        """Return the address for a browser, with the `port` that is really listened on."""
        host = "0.0.0.0" if self.host == "0" else self.host
        return f"{scheme}://[{host}]:{port}/" if ":" in host else f"{scheme}://{host}:{port}/"


def parse_addrport(text: str | None) -> Address:
    """Read what a user wrote after ``runasgi``: nothing, a port, or an address and a port.

    Pure: nothing is looked up, so a host name may still turn out to be unknown in `listen`.

    Args:
        text: ``8000``, ``0.0.0.0:8000``, ``[::1]:8000``, ``localhost:8000``; None or empty for
            127.0.0.1:8000.

    Raises:
        AddressError: `text` has another form, or its port is above 65535.

    Source: Django, ``runserver [addrport]``.
    """
    if not text:
        return Address()
    match = _ADDRPORT.fullmatch(text)
    if match is None or int(match["port"]) > _HIGHEST_PORT:
        raise AddressError(
            f'"{text}" is not a port number or an address:port pair; '
            "write for example 8000, 0.0.0.0:8000 or [::1]:8000."
        )
    host = match["ipv6"] or match["host"] or Address.host
    return Address(host, int(match["port"]))


def listen(address: Address) -> socket.socket:
    """Open a socket that listens on `address`, so that a port in use is known before a server starts.

    From here on the system accepts connections and holds them until a server takes them. A host name
    is looked up, which blocks; the IPv4 address is taken where it has both, as runserver does. The
    caller closes the socket.

    Raises:
        ListenError: the host is unknown, or the system refuses the address or the port.
    """
    family, target = _resolve(address)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        _open(listener, target)
    except OSError as error:
        listener.close()
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise ListenError(f"Cannot listen on {address.url(address.port)}: {reason}.") from error
    return listener


def _resolve(address: Address) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Look up `address`, IPv4 first; return the socket family and what `bind` takes."""
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise ListenError(f'Cannot listen on "{address.host}": no such host is known.') from error
    family, _type, _protocol, _name, target = min(found, key=lambda info: info[0] != socket.AF_INET)
    return family, target


def _open(listener: socket.socket, target: tuple[Any, ...]) -> None:
    if os.name == "posix":
        # A restart must not wait until the old connections time out. On Windows the option means
        # something else: that two servers may take the same port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(target)
    listener.listen(_BACKLOG)
    listener.setblocking(False)


# --- Unix sockets ----------------------------------------------------------------------

# uvicorn's choice: a proxy in front of the server often runs as another user.
_UNIX_MODE = 0o666


def listen_unix(path: str) -> socket.socket:
    """Open a socket that listens at `path` of the file system; whoever may open the directory may connect.

    A socket that is there already, left by a server that was killed, is replaced; one that somebody listens on is not.
    The caller closes the socket, and then calls `remove_unix`.

    Raises:
        ListenError: somebody listens there, something else has that name, or the system refuses the path.
    """
    if not hasattr(socket, "AF_UNIX"):  # pragma: no cover  # Windows
        raise ListenError("This system has no Unix sockets; listen on a port.")
    _make_way(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        Path(path).chmod(_UNIX_MODE)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(f"Cannot listen on {path!r}: {error.strerror or error}.") from error
    listener.setblocking(False)
    return listener


def _make_way(path: str) -> None:
    """Remove the socket of a server that has ended."""
    try:
        mode = Path(path).lstat().st_mode
    except OSError:
        return  # nothing is there, or binding says what is wrong
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"Cannot listen on {path!r}: something that is no socket has that name.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # Somebody listens, even if that one cannot take the connection now.
        if probe.connect_ex(path) != errno.ECONNREFUSED:
            raise ListenError(f"Cannot listen on {path!r}: that socket is already in use.")
    with contextlib.suppress(OSError):
        Path(path).unlink()


def remove_unix(path: str) -> None:
    """Remove the socket at `path`, unless somebody has begun to listen there; nothing there is no error."""
    with contextlib.suppress(OSError):
        _make_way(path)


# --- Inherited sockets -------------------------------------------------------------------


def inherit(fileno: int) -> socket.socket:
    """Return the listening socket that this process was started with, as file descriptor `fileno`.

    A process manager opens it, systemd for one (the first is 3). It becomes the caller's, who closes it.

    Raises:
        ListenError: no such descriptor is open, or it is no socket that listens for streams.
    """
    try:
        listener = socket.socket(fileno=fileno)
    except OSError as error:
        raise ListenError(
            f"File descriptor {fileno} is no socket that this process was started with: {error.strerror}."
        ) from error
    if listener.type != socket.SOCK_STREAM or not _listens(listener):
        listener.detach()
        raise ListenError(
            f"File descriptor {fileno} is a socket that does not listen for connections."
        )
    listener.setblocking(False)
    return listener


def _listens(listener: socket.socket) -> bool:
    try:
        return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except (AttributeError, OSError):  # pragma: no cover  # systems that do not tell
        return True
