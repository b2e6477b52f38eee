"""`LoopHost`: whoever runs an event loop in a thread that is home for work, until that work comes.

Which thread may touch what. `move` belongs to the thread that runs the loop, which is the home thread; any other may call
`move_soon`. `_moving` and `_stuck` are the home thread's.
"""

import asyncio
import contextlib
from abc import abstractmethod

from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor, _hosted

__all__ = ("LoopHost",)


class LoopHost:
    """A wait whose event loop runs in the waiting thread, and goes to another one when something needs that thread.

    Attributes:
        executor: takes the work, for the waiting thread.
    """

    __slots__ = ("_moving", "_stuck", "executor")

    executor: CurrentThreadExecutor
    # Whether the loop is to go to another thread, or is there.
    _moving: bool
    # Why it could not.
    _stuck: RuntimeError | None

    @abstractmethod
    def _hosted_loop(self) -> asyncio.AbstractEventLoop | None:
        """Return the loop, if it is still there."""

    @abstractmethod
    def _stop_hosted_loop(self) -> None:
        """Have the loop stop; in the thread that runs it."""

    def move(self) -> None:
        """Have another thread run the loop, so that this one can serve the executor; in this thread.

        Raises:
            RuntimeError: when that was tried, and no thread could be started.
        """
        if self._stuck is not None:
            raise RuntimeError(
                f"no thread could be started for the event loop ({self._stuck}), and the call needs the thread "
                "that runs it"
            )
        # Once: uvloop would keep a second stop for the next time it runs.
        if not self._moving:
            self._moving = True
            self._stop_hosted_loop()

    def move_soon(self) -> None:
        """Have `move` called in the thread that runs the loop; in any other thread."""
        loop = self._hosted_loop()
        # RuntimeError: the loop is closed, and what ran on it has ended.
        with contextlib.suppress(RuntimeError):
            if loop is not None:
                loop.call_soon_threadsafe(self._move_for_others)

    def _move_for_others(self) -> None:
        if _hosted.host is not self:
            return
        try:
            self.move()
        except RuntimeError as error:
            self.executor._refuse(error)
