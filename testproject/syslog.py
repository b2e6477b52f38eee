"""A syslog server over UDP, as an example of a `StatelessServer`; it needs no service, only a free port.

    python manage.py runstateless testproject.syslog.SyslogServer --app testproject.syslog.application --option port=5514
    logger --server 127.0.0.1 --port 5514 --udp "The printer is on fire"

UDP has no connections, so the server decides which messages belong together: those of one client address are one
application instance. The server knows the protocol, the application knows what is worth keeping; between them go:

- the scope: ``type`` "syslog", ``client`` (host and port);
- to the application: ``type`` "syslog.message", ``facility`` and ``severity`` (ints), ``text`` (str);
- from the application: ``type`` "syslog.write", ``line`` (str), which is written to standard output.

Which thread may touch what. All of it runs on the event loop.

Source: RFC 5424, section 6.2.1 (facility and severity) and RFC 5426 (one message in each datagram, no answer).
"""

import asyncio
import re
import socket
from typing import Any, NamedTuple

from django.utils import timezone

from django_asyncbridge.bridge.server import StatelessServer
from django_asyncbridge.serving.errors import ListenError

__all__ = ("Message", "SyslogServer", "application", "parse")

SEVERITIES = ("emergency", "alert", "critical", "error", "warning", "notice", "info", "debug")
WARNING = SEVERITIES.index("warning")

# The largest datagram there is.
_LARGEST_BYTES = 65535
# A client that sends faster than its instance works loses messages, as UDP loses them, before the memory is full. Not measured.
_LONGEST_QUEUE = 1000

_PRIORITY = re.compile(rb"<(\d{1,3})>")
# What RFC 3164, section 4.3.3, has a relay write before a message that says nothing: user, notice.
_PRIORITY_OF_OTHERS = 13
_HIGHEST_PRIORITY = 191


class Message(NamedTuple):
    """A syslog message, in the words of RFC 5424."""

    facility: int
    severity: int
    text: str


def parse(datagram: bytes) -> Message:
    """Read a datagram. Nothing is refused: what has no valid priority is text as a whole."""
    priority, text = _PRIORITY_OF_OTHERS, datagram
    match = _PRIORITY.match(datagram)
    if match is not None and int(match[1]) <= _HIGHEST_PRIORITY:
        priority, text = int(match[1]), datagram[match.end() :]
    return Message(*divmod(priority, 8), text.decode("utf-8", "backslashreplace").strip())


class SyslogServer(StatelessServer):
    """Takes in syslog messages over UDP, with one application instance for each client address.

    Args:
        application: see above. It gets up to five seconds to finish when the server ends.
        max_applications: how many clients are known at a time; the one not heard of for longest goes first.
        host: the address of this machine to listen on.
        port: where to listen; 0 takes a free one.
        allow: hosts to take messages from. None: all.
    """

    application_drain_seconds = 5.0

    def __init__(
        self,
        application: Any,
        max_applications: int = 1000,
        *,
        host: str = "127.0.0.1",
        port: int = 5514,
        allow: list[str] | None = None,
    ) -> None:
        super().__init__(application, max_applications)
        self.host = host
        self.port = port
        self.allow = allow

    async def handle(self) -> None:
        """Take in datagrams until the server ends.

        Raises:
            ListenError: the address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        with self.listen() as listener:
            host, port = listener.getsockname()
            print(f"Listening on udp://{host}:{port}/", flush=True)
            while True:
                datagram, client = await loop.sock_recvfrom(listener, _LARGEST_BYTES)
                self.take(datagram, client)

    def listen(self) -> socket.socket:
        """Open the socket."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            listener.bind((self.host, self.port))
        except (OSError, OverflowError, UnicodeError) as error:
            listener.close()
            raise ListenError(f"Cannot listen on {self.host}, port {self.port}: {error}") from error
        listener.setblocking(False)
        return listener

    def take(self, datagram: bytes, client: tuple[str, int]) -> None:
        """Hand a datagram to the instance of its client, unless the client is not wanted or too fast."""
        if self.allow is not None and client[0] not in self.allow:
            return
        queue = self.get_or_create_application_instance(
            client, {"type": "syslog", "client": client}
        )
        if queue.qsize() < _LONGEST_QUEUE:
            queue.put_nowait({"type": "syslog.message", **parse(datagram)._asdict()})

    async def application_send(self, scope: Any, message: Any) -> None:
        """Write what the application keeps, on one line, whatever the client has sent."""
        line = "".join(one if one.isprintable() else repr(one)[1:-1] for one in message["line"])
        print(line, flush=True)


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Keep warnings and worse, with the time in the project's time zone and a number for each client's."""
    host, _port = scope["client"]
    kept = 0
    while True:
        message = await receive()
        if message["severity"] <= WARNING:
            kept += 1
            time = timezone.localtime().isoformat(timespec="seconds")
            line = f"{time} {host} #{kept} {SEVERITIES[message['severity']]}: {message['text']}"
            await send({"type": "syslog.write", "line": line})
