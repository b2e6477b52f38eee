"""A server that answers everything with the same bytes: how many requests per second the load generator itself can make.

Started by `serve`, with a port as its one argument.

Which thread may touch what. There is one thread.
"""

import asyncio
import sys
from typing import cast

from benchmarks.load_child import loop_factory
from benchmarks.pages import HELLO

__all__ = ("main",)

_HEAD_END = b"\r\n\r\n"
_ANSWER = (
    f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(HELLO)}\r\n\r\n{HELLO}"
).encode()


class _Connection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        # Every request of ours comes in one piece.
        if data.endswith(_HEAD_END):
            self._transport.write(_ANSWER)


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Connection, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


def main(arguments: list[str]) -> None:
    """Serve on the port until the process is ended."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(int(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
