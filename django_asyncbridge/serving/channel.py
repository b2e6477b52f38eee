"""`ChannelServer`: runs the project's application for messages of a Django Channels layer, several at a time.

    python manage.py runstateless django_asyncbridge.serving.channel.ChannelServer --option channels=thumbnails,mail

Channels' ``runworker`` has one application instance for each channel, which works on one message after the other. Here a channel has as many
instances as there are messages in work, its lanes; ``ChannelNameRouter`` and consumers work unchanged.

Why lanes, and not an instance for each message. A consumer does not end with its message: it waits for the next one, and for what is sent to
its own channel (`channel_name`), on which answers to it come. To end it then would drop these answers; and with channels_redis it
would break off a wait in Redis for each message, which costs a connection and can cost other consumers their messages.
So an instance that waits again is used again, and one that returns or fails is replaced.

Hard rules. A message is taken from the layer only when an application can start on it at once. What was taken is started, also when the stop comes
at that moment. A failure is that of one message.

The parts: `_channel_sources` (taking a message without losing one), `_channel_intake` (when to take one, outages, the end),
`_channel_lanes` (one instance, its message and its thread). This module joins them to `StatelessServer`.

Which thread may touch what. All of it belongs to the thread of the event loop. A lane changes hands in one step: it is in
`_idle` exactly while it is idle, and each message in work has one place of `_room`, from before it is taken until its lane is idle or has ended.
"""

import asyncio
import functools
import itertools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django_asyncbridge.bridge._ending import to_the_end
from django_asyncbridge.bridge.compatibility import guarantee_single_callable
from django_asyncbridge.bridge.server import StatelessServer
from django_asyncbridge.serving._channel_intake import Intake, Outage, Room
from django_asyncbridge.serving._channel_lanes import Lane, State, type_of
from django_asyncbridge.serving._channel_sources import (
    ChannelLayerError,
    ChannelsNotInstalledError,
    check_channels,
    open_source,
)
from django_asyncbridge.serving.errors import OptionError

__all__ = (
    "ChannelLayerError",
    "ChannelServer",
    "ChannelsNotInstalledError",
    "MessageInWork",
)

logger = logging.getLogger("django_asyncbridge.serving.channel")

# In a line of the log.
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class MessageInWork:
    """One message that an application works on.

    Attributes:
        channel: where it came from.
        type: its "type".
        seconds: how long ago it was taken from the layer.
        thread: the name of the thread that its sync calls run in; None if it has made none yet.
        task: in which the application runs; cancelling that ends the work.
    """

    channel: str
    type: str
    seconds: float
    thread: str | None
    task: "asyncio.Task[Any]"


class ChannelServer(StatelessServer):
    """Receives from channels of a channel layer, and has the application work on the messages.

    The scope is ``{"type": "channel", "channel": name}``, as under Channels' ``runworker``; each event is a message as it was sent. An instance
    gets one message at a time. It is asked no more than that: it may return after each message or wait for more. Sync code of
    consumers runs in a request thread, which is given back after each message.

    At the end, nothing more is taken in, and messages in work have `graceful_seconds`; then they are cancelled, and the
    log names them. A layer that cannot be reached, at the beginning or later, is tried again for ever.

    Args:
        application: an ASGI application for scopes of type "channel".
        max_applications: how many messages may be in work at a time. Each channel has one place of its own. 32 is also the number of
            threads of the default executor; with sync consumers it is that of database connections.
        channels: the names of the channels.
        layer: the alias in ``settings.CHANNEL_LAYERS``.
        graceful_seconds: how long messages in work may take to finish when the server is to stop. The default leaves ten of the
            30 seconds that Kubernetes gives.

    Raises:
        ChannelsNotInstalledError: the extra ``channels`` is missing.
        ChannelLayerError: there is no such layer, it cannot be made, or it cannot receive.
        OptionError: a channel has no valid name or is named twice, or a number makes no sense.
    """

    def __init__(
        self,
        application: Callable[..., Any],
        max_applications: int = 32,
        *,
        channels: list[str],
        layer: str = "default",
        graceful_seconds: float = 20.0,
    ) -> None:
        super().__init__(self._run_lane, max_applications)
        check_channels(channels, max_applications)
        if not 0 <= graceful_seconds < math.inf:
            raise OptionError(
                f"graceful_seconds is {graceful_seconds:g}; give a number of seconds, 0 for none."
            )
        self.channels = tuple(channels)
        self.layer = layer
        self.application_drain_seconds = graceful_seconds
        self._source = open_source(layer)
        self._served = guarantee_single_callable(application)
        self._room = Room(channels, max_applications)
        self._lanes: dict[int, Lane] = {}  # by the identity of their scopes
        self._idle: dict[str, list[Lane]] = {channel: [] for channel in channels}
        self._numbers = itertools.count(1)

    def in_work(self) -> list[MessageInWork]:
        """Return the messages that applications work on, the oldest first. On the event loop's thread."""
        return [
            MessageInWork(
                channel=lane.channel,
                type=type_of(lane.message),
                seconds=time.monotonic() - lane.since,
                thread=lane.thread_name(),
                task=self.application_instances[lane.scope_id]["future"],
            )
            for lane in sorted(self._lanes.values(), key=lambda lane: lane.since)
            if lane.in_work and lane.scope_id in self.application_instances
        ]

    async def handle(self) -> None:
        """Take in messages until this is cancelled; it then takes up to a second longer, for Redis."""
        # The last run has left nothing in work, but maybe a place taken.
        self._room = Room(self.channels, self.max_applications)
        if not self._source.shares_messages:
            logger.warning(
                "The channel layer %r gives each message to every process that receives from the channel; "
                "name channels_redis.core.RedisChannelLayer to have each handled once",
                self.layer,
            )
        intake = Intake(self._source, self.channels, self._room, self._begin, Outage(self.layer))
        try:
            await intake.run()
        finally:
            await to_the_end(self._source.close())

    async def application_send(self, scope: Any, message: Any) -> None:
        """Refuse: whoever sent the message does not wait for an answer.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            f"An application on channel {scope['channel']!r} cannot send {type_of(message)!r}: nobody is connected to it; "
            "send to a channel or a group of the channel layer."
        )

    async def application_exception(
        self, exception: BaseException, application_details: dict[str, Any]
    ) -> None:
        """Log which message an application failed with, and its traceback. Override it to do more."""
        lane: Lane = application_details["lane"]
        logger.error(
            "Exception in the application on channel %s, message %s: %s",
            lane.channel,
            type_of(lane.message),
            exception,
            exc_info=exception,
        )

    async def application_drain(self) -> None:
        """Give messages in work their time, and say which were not done."""
        await super().application_drain()
        left = self.in_work()
        if left:
            texts = [f"{one.channel} {one.type} ({one.seconds:.1f} s)" for one in left[:_SHOWN]]
            more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
            logger.warning(
                "Cancelled, not done within %g s: %s%s",
                self.application_drain_seconds,
                ", ".join(texts),
                more,
            )

    # --- Lanes ---------------------------------------------------------------------

    def _begin(self, channel: str, message: Any) -> None:
        """Start on a message, which has a place."""
        lane = self._take_idle(channel) or self._new_lane(channel)
        queue = self.get_or_create_application_instance(lane.scope_id, lane.scope)
        details = self.application_instances[lane.scope_id]
        if "lane" not in details:
            details["lane"] = lane
            details["future"].add_done_callback(lambda _future: self._lane_ended(lane))
        lane.hand_over(message, queue)

    def _take_idle(self, channel: str) -> Lane | None:
        """Return a lane whose application waits, the one used last: its state is the warmest."""
        while self._idle[channel]:
            lane = self._idle[channel].pop()
            # Else it has ended or was deleted, and its callback has not run yet.
            details = self.application_instances.get(lane.scope_id)
            if details is not None and not details["future"].done():
                return lane
        return None

    def _new_lane(self, channel: str) -> Lane:
        if len(self.application_instances) >= self.max_applications:
            self._delete_an_idle_lane()
        lane = Lane(channel, next(self._numbers), self._lane_idle)
        self._lanes[id(lane.scope)] = lane
        return lane

    def _delete_an_idle_lane(self) -> None:
        """Make room, unless an instance that has ended does: the base class would take the one used least recently, which may be busy."""
        if any(details["future"].done() for details in self.application_instances.values()):
            return
        # There is one: the message to come has a place, so fewer than the maximum are busy.
        lane = min(
            (lane for lanes in self._idle.values() for lane in lanes), key=lambda lane: lane.since
        )
        self._idle[lane.channel].remove(lane)
        self.delete_application_instance(lane.scope_id)

    async def _run_lane(self, scope: Any, receive: Any, send: Any) -> None:
        """Run the application; this is what the base class takes for it."""
        lane = self._lanes[id(scope)]
        async with lane.context:
            await self._served(scope, functools.partial(lane.receive, receive), send)

    def _lane_idle(self, lane: Lane) -> None:
        self._idle[lane.channel].append(lane)
        self._room.give_back(lane.channel)

    def _lane_ended(self, lane: Lane) -> None:
        """Give the lane's place back, or its message to another lane if it ended as that arrived."""
        del self._lanes[id(lane.scope)]
        state, lane.state = lane.state, State.ENDED
        if lane in self._idle[lane.channel]:
            self._idle[lane.channel].remove(lane)
        if state is State.HANDED and lane.messages > 1:
            # One that never looked at its first message would not look at the next either.
            self._begin(lane.channel, lane.message)
        elif state is not State.IDLE:
            self._room.give_back(lane.channel)
