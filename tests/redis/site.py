"""The consumer of the tests: it writes down which numbers it has begun and ended, in a file for each process."""

import asyncio
import os
from pathlib import Path
from typing import Any

from channels.consumer import AsyncConsumer
from channels.routing import ChannelNameRouter

DIRECTORY = Path(os.environ["TEST_DIRECTORY"])
file = os.open(DIRECTORY / f"{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def note(word: str, message: dict[str, Any]) -> None:
    # Unbuffered: what has been written stays, also when the process is killed.
    os.write(file, f"{word} {message['number']}\n".encode())


class Numbers(AsyncConsumer):  # type: ignore[misc]
    """Work on a number ends at once, or if it is held, when there is a file with that number."""

    async def number(self, message: dict[str, Any]) -> None:
        note("begun", message)
        if message["held"]:
            while not (DIRECTORY / str(message["number"])).exists():
                await asyncio.sleep(0.01)
        note("ended", message)


application = ChannelNameRouter({"numbers": Numbers.as_asgi()})
