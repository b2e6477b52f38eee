"""What cancellation does to each chain: who sees it, and what comes of swallowing it."""

import asyncio
import threading
from typing import Any

from tests.differential.chains import Chain, Mode, Walk
from tests.differential.experiments import Experiment, current_error
from tests.differential.library import Library, name_of
from tests.differential.work import LIMIT_SECONDS

__all__ = ("CANCELLATIONS",)


class Cancelled(Walk):
    """Cancels the outermost task when the bottom is reached, and notes which error each level sees.

    The bottom waits for ever if it is async. A sync one cannot be cancelled; it ends some turns of the
    outermost loop after the cancellation, enough for what has to come before that, or when that task is done.
    """

    TURNS = 30

    def __init__(self, library: Library, chain: Chain, mode: Mode, swallows_at: int = -1) -> None:
        super().__init__(library, chain, mode)
        self.swallows_at = swallows_at
        self.reached = threading.Event()
        self.released = threading.Event()
        self.all_left = threading.Event()
        self.notes: dict[str, str] = {}
        self.order: list[str] = []
        self.task: asyncio.Task[Any] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    def enter(self, level: int) -> None:
        if self.task is None and self.chain.is_async(level):
            self.task, self.loop = asyncio.current_task(), asyncio.get_running_loop()

    def leave(self, level: int) -> None:
        self.notes[f"level {level}"] = current_error()
        self.order.append(f"level {level}")
        if len(self.order) == len(self.chain.levels):
            self.all_left.set()

    def bottom(self, level: int) -> None:
        self.reached.set()
        assert self.released.wait(LIMIT_SECONDS)

    async def async_bottom(self, level: int) -> None:
        self.reached.set()
        await asyncio.get_running_loop().create_future()

    def sync_level(self, level: int) -> list[int]:
        try:
            return super().sync_level(level)
        except asyncio.CancelledError:
            return self.swallow(level)

    async def async_level(self, level: int) -> list[int]:
        try:
            return await super().async_level(level)
        except asyncio.CancelledError:
            return self.swallow(level)

    def swallow(self, level: int) -> list[int]:
        """Turn the cancellation into a result at the level that does so."""
        if level == self.swallows_at:
            return [-level]
        raise  # noqa: PLE0704  # called in the except clauses above only

    def cancel(self) -> None:
        """Cancel the outermost task from outside, once the bottom is reached."""
        assert self.reached.wait(LIMIT_SECONDS)
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.cancel_in_loop)

    def cancel_in_loop(self) -> None:
        """Cancel the outermost task, and let the bottom go some turns later."""
        assert self.task is not None
        self.task.add_done_callback(lambda task: self.released.set())
        self.task.cancel()
        self.turn(self.TURNS)

    def turn(self, left: int) -> None:
        """Let the loop turn `left` times more."""
        assert self.loop is not None
        if left:
            self.loop.call_soon(self.turn, left - 1)
        else:
            self.released.set()

    def outcome(self) -> dict[str, str]:
        """Go, and return what each level saw, and what came out."""
        threading.Thread(target=self.cancel).start()
        try:
            self.notes["result"] = str(self.walk())
        except BaseException as error:
            self.notes["outside"] = name_of(error)
        assert self.all_left.wait(LIMIT_SECONDS)
        return dict(sorted(self.notes.items()))


def cancellation(library: Library, chain: Chain, mode: Mode) -> object:
    """Who sees the cancellation of the outermost task."""
    return Cancelled(library, chain, mode).outcome()


def swallowed_cancellation(library: Library, chain: Chain, mode: Mode) -> object:
    """What becomes of it if a level swallows the cancellation."""
    return [Cancelled(library, chain, mode, level).outcome() for level in chain.levels]


CANCELLATIONS: dict[str, Experiment] = {
    function.__name__: function for function in (cancellation, swallowed_cancellation)
}
