"""A sync function whose running scenarios can watch and hold."""

import asyncio
import threading
from typing import Any

from tests.differential.library import async_error_of

__all__ = ("LIMIT_SECONDS", "LOOK_SECONDS", "Work", "wait_for_event")

# How long a wait may last that ends only if something goes wrong.
LIMIT_SECONDS = 60
# How long to look whether something ends that should, or should not, end by itself.
LOOK_SECONDS = 0.2


class Work:
    """A sync function that notes its steps, and runs until it is released."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.started = threading.Event()
        self.released = threading.Event()
        self.ended = threading.Event()

    def __call__(self) -> str:
        self.started.set()
        assert self.released.wait(LIMIT_SECONDS)
        self.notes.append("work ended")
        self.ended.set()
        return "done"

    async def start(self, call: Any) -> asyncio.Task[Any]:
        """Run a call that comes to this work in a new task, and wait until it does."""
        task = asyncio.create_task(call)
        await wait_for_event(self.started)
        return task

    async def cancel(self, task: asyncio.Task[Any]) -> str:
        """Cancel a task that waits for this work, look whether it ends, let the work go, and await both."""
        task.cancel()
        await asyncio.wait({task}, timeout=LOOK_SECONDS)
        self.notes.append("task ended" if task.done() else "task waits")
        self.released.set()
        error = await async_error_of(task)
        await wait_for_event(self.ended)
        return error


async def wait_for_event(event: threading.Event) -> None:
    """Wait for another thread without the help of the library, and without holding the loop."""
    assert await asyncio.to_thread(event.wait, LIMIT_SECONDS)
