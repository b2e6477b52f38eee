"""Taking messages in from a `Source`: only with room for them, through outages, and without losing one at the end.

Theory of operation. Each channel has a task. It waits for a place, then for a message, and hands both on; whoever has done the work gives
the place back. So a message is only taken when it can be started at once. Each channel has one place of its own, and the others
are for all: long work on one channel never keeps another from its messages altogether.

At the end a task is cancelled only where that loses nothing: while it waits for a place, for an outage to pass, or in a `receive` that
may be cancelled. Otherwise it is asked to stop, and what its last `receive` brings is still handed on.

Which thread may touch what. Everything is on the thread of the event loop. A place changes hands in one step. `_receiving` changes with no `await` between that and the
call it tells of.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection
from typing import Any

from django_asyncbridge.bridge._ending import ended, to_the_end
from django_asyncbridge.serving._channel_sources import NOTHING_YET, Source
from django_asyncbridge.serving.errors import in_one_line

__all__ = ("Intake", "Outage", "Room")

logger = logging.getLogger("django_asyncbridge.serving.channel")

# Between two attempts to reach a layer: at first a reload of Redis's configuration, later a restart. Not measured.
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
# How long the end may wait for a `receive` that should have ended by itself: longer than redis-py waits for an answer. Not measured.
_STUCK_SECONDS = 10.0


class Room:
    """Places for messages in work: one for each channel, and some for all.

    Args:
        channels: their names.
        places: how many there are altogether, at least one for each channel.
    """

    def __init__(self, channels: Collection[str], places: int) -> None:
        self._used = dict.fromkeys(channels, 0)
        self._free = places - len(channels)  # of those for all
        self._waiting: dict[str, asyncio.Future[None]] = {}  # the longest first

    @property
    def used(self) -> int:
        """How many places are taken."""
        return sum(self._used.values())

    async def take(self, channel: str) -> None:
        """Wait for a place. One task for each channel; cancelling it is the end, and may cost the place."""
        if not self._took(channel):
            self._waiting[channel] = asyncio.get_running_loop().create_future()
            await self._waiting[channel]

    def give_back(self, channel: str) -> None:
        """Make a place free that a message of the channel had."""
        self._used[channel] -= 1
        if self._used[channel]:  # the channel keeps its own
            self._free += 1
        for waiting, future in list(self._waiting.items()):
            if not future.done() and self._took(waiting):
                del self._waiting[waiting]
                future.set_result(None)

    def _took(self, channel: str) -> bool:
        if self._used[channel]:
            if not self._free:
                return False
            self._free -= 1
        self._used[channel] += 1
        return True


class Intake:
    """Takes in the messages of some channels, until `run` is cancelled. It serves once.

    Args:
        source: where the messages come from.
        channels: their names.
        room: the places for messages in work.
        begin: called with channel and message when one was taken; the place that it has is then the callee's, to give back.
        outage: told about failures of the source.
    """

    def __init__(
        self,
        source: Source,
        channels: Collection[str],
        room: "Room",
        begin: Callable[[str, Any], None],
        outage: "Outage",
    ) -> None:
        self._source = source
        self._channels = channels
        self._room = room
        self._begin = begin
        self._outage = outage
        self._stopping = False
        self._receiving: set[str] = set()

    async def run(self) -> None:
        """Take in messages for ever.

        When it is cancelled, it takes as long as the last `receive` may.

        Raises:
            Exception: what `begin` raised.
        """
        tasks = {
            channel: asyncio.create_task(
                self._take_in(channel), name=f"asyncbridge-channel-{channel}"
            )
            for channel in self._channels
        }
        try:
            done, _ = await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
            done.pop().result()  # raises: by itself a task ends in no other way
        finally:
            await to_the_end(self._stop(tasks))

    async def _stop(self, tasks: "dict[str, asyncio.Task[None]]") -> None:
        self._stopping = True
        left = set()
        for channel, task in tasks.items():
            if channel in self._receiving and not self._source.may_be_cancelled:
                left.add(task)
            else:
                task.cancel()
        if left:
            _, stuck = await asyncio.wait(left, timeout=_STUCK_SECONDS)
            for task in stuck:
                logger.warning(
                    "A channel layer has not answered for %g s; a message that it sends now is lost",
                    _STUCK_SECONDS,
                )
                task.cancel()
        await ended(tasks.values(), "channel layer")

    async def _take_in(self, channel: str) -> None:
        while not self._stopping:
            await self._room.take(channel)
            message = await self._next(channel)
            if message is not NOTHING_YET:
                self._begin(channel, message)

    async def _next(self, channel: str) -> Any:
        """Wait for a message through all outages; return `NOTHING_YET` when it is time to stop."""
        pause = _FIRST_PAUSE_SECONDS
        message: Any = NOTHING_YET
        while message is NOTHING_YET and not self._stopping:
            self._receiving.add(channel)
            try:
                message = await self._source.receive(channel)
            except Exception as error:  # noqa: BLE001  # layers raise what their drivers do
                self._receiving.discard(channel)
                self._outage.begins(channel, error)
                if not self._stopping:
                    # Jitter: all processes lose the server in the same moment.
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                self._receiving.discard(channel)
                self._outage.ends(channel)
                pause = _FIRST_PAUSE_SECONDS
        return message


class Outage:
    """What is to be said when a layer cannot be reached: when it begins, and when all channels have an answer again.

    Args:
        layer: the name of the layer, for the log.
    """

    def __init__(self, layer: str) -> None:
        self._layer = layer
        self._channels: set[str] = set()
        self._since = 0.0

    def begins(self, channel: str, error: Exception) -> None:
        """Take note that receiving failed; the first time say so."""
        if not self._channels:
            self._since = time.monotonic()
            logger.warning(
                "The channel layer %r failed, and is tried again until it answers: %s",
                self._layer,
                in_one_line(error),
            )
        self._channels.add(channel)

    def ends(self, channel: str) -> None:
        """Take note that receiving worked; if that is news of the last channel, say so."""
        if channel in self._channels:
            self._channels.discard(channel)
            if not self._channels:
                logger.info(
                    "The channel layer %r answers again, after %.1f s",
                    self._layer,
                    time.monotonic() - self._since,
                )
