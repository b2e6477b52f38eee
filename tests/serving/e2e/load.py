"""Clients that ask without a pause, and count what becomes of each request.

A request was *answered* if its whole response came. It was *refused* if its connection could not be made, or was reset before
anything was said: then no server had taken the connection, and the client may ask again. Everything else was *lost*.

Which thread may touch what. Each client has a thread and a `Count` of its own; others only read the numbers in it.
"""

import contextlib
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.serving.e2e.content import WORK_BODY
from tests.serving.e2e.servers import until
from tests.serving.e2e.wire import LIMIT_SECONDS, Address, Connection, CutError


@dataclass
class Count:
    """What has become of the requests of a client."""

    answered: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)


class _Client(threading.Thread):
    """Asks for one page after the other, until told to stop, or refused.

    Args:
        address: of the server.
        keeps: use a connection until the server says that it closes it; otherwise each request has its own.
    """

    def __init__(self, address: Address, number: int, *, keeps: bool) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self.count = Count()
        self.stopped = threading.Event()
        self._address = address
        self._keeps = keeps

    def run(self) -> None:
        while not (self.stopped.is_set() or self.count.refused):
            try:
                connection = Connection(self._address)
            except ConnectionError:
                self.count.refused += 1
            else:
                with connection:
                    self._ask(connection)

    def _ask(self, connection: Connection) -> None:
        """Ask on that connection until one of the two has enough."""
        number, last = 0, False
        while not (last or self.stopped.is_set()):
            try:
                last = self._ask_once(connection)
            except CutError as error:
                refused = number == 0 and error.reset and not error.received
                self.count.refused += refused
                self.count.lost += [] if refused else [f"request {number}: {error}"]
                last = True
            number += 1

    def _ask_once(self, connection: Connection) -> bool:
        """Ask for a page; tell whether the connection is over."""
        # A server that has reset the connection says so to the reader, too.
        with contextlib.suppress(ConnectionError):
            connection.get("/work/", *([] if self._keeps else ["connection: close"]))
        response = connection.response()
        good = response.status == 200 and response.body == WORK_BODY
        self.count.answered += good
        self.count.lost += [] if good else [f"answered {response}"]
        return response.headers.get(b"connection") == b"close"


class Load:
    """Clients of both kinds, from the start of the block to its end.

    Args:
        address: of the server.
        clients: how many of each kind.
    """

    def __init__(self, address: Address, clients: int = 4) -> None:
        kinds = [False, True] * clients
        self.clients = [_Client(address, number, keeps=kind) for number, kind in enumerate(kinds)]

    def __enter__(self) -> Self:
        for client in self.clients:
            client.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for client in self.clients:
            client.stopped.set()
        self.join()

    def join(self) -> None:
        """Wait until all clients have ended, as they do when they are refused."""
        for client in self.clients:
            client.join(LIMIT_SECONDS)
            assert not client.is_alive()

    @property
    def answered(self) -> int:
        return sum(client.count.answered for client in self.clients)

    @property
    def refused(self) -> int:
        return sum(client.count.refused for client in self.clients)

    @property
    def lost(self) -> list[str]:
        return [text for client in self.clients for text in client.count.lost]

    def go_on(self, requests: int = 20) -> None:
        """Wait until each client that was not refused has been answered so often once more."""
        counts = [client.count for client in self.clients if not client.count.refused]
        goals = [count.answered + requests for count in counts]
        until(
            lambda: all(count.answered >= goal for count, goal in zip(counts, goals, strict=True))
        )
