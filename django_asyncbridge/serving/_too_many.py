"""The answer to requests that are too many at a time; it needs neither the application nor a thread.

Which thread may touch what. A `TooMany` belongs to the loop's thread of its server.
"""

import logging
import time
from typing import Any

__all__ = ("TooMany",)

logger = logging.getLogger("django_asyncbridge.serving")

_TEXT = b"The server is busy; try again in a moment.\n"
_START = {
    "type": "http.response.start",
    "status": 503,
    "headers": [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(_TEXT)),
        # Not measured: when a request has ended, there is room.
        (b"retry-after", b"1"),
    ],
}
# "Try again later", in the registry of close codes; a client that is refused before the handshake sees a 403.
_TRY_AGAIN_LATER = 1013
# Not measured: often enough to see that it goes on, and no line for each request of a flood.
_LOG_SECONDS = 10.0


class TooMany:
    """Refuses requests and WebSockets, and says so in the log now and then.

    Args:
        limit: how many there may be, for the log.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._refused = 0
        self._next_log = 0.0

    async def refuse(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer 503 with ``Retry-After``, or refuse the WebSocket."""
        self._count()
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER})
            return
        await send(_START)
        await send({"type": "http.response.body", "body": _TEXT})

    def _count(self) -> None:
        self._refused += 1
        now = time.monotonic()
        if now >= self._next_log:
            self._next_log = now + _LOG_SECONDS
            logger.warning(
                "%d refused with 503: there are %d requests already, the limit",
                self._refused,
                self._limit,
            )
            self._refused = 0
