"""Lanes: application instances of a channel, each of which works on one message at a time.

A lane is handed a message only when its application waits for one. The message is done when the application asks for the next, returns, or
fails; only that can be seen from outside, and it is what Channels' consumers do. Its states:

=========== ==================================================================== =======================
state       what it means                                                        left when
=========== ==================================================================== =======================
IDLE        the application waits for a message, or has not got to waiting yet   a message is handed over
HANDED      there is a message in its queue                                      the application takes it
TAKEN       the application works on it                                          it asks for the next one
ENDED       the instance has ended                                               never
=========== ==================================================================== =======================

Threads. The lane is one `ThreadSensitiveContext`, whose thread comes with the first sync call and is given back after every message, as after a
request: then the connections are looked after. So an idle lane holds no
thread, but for a consumer that has made sync calls for what came on its own channel: these end with its next message.

Which thread may touch what. A lane belongs to the thread of the event loop.
"""

import asyncio
import enum
import time
from collections.abc import Callable
from typing import Any

from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge._leases import Lease
from django_asyncbridge.bridge.sync import ThreadSensitiveContext

__all__ = ("Lane", "State", "type_of")


class State(enum.Enum):
    """What the application of a lane is doing."""

    IDLE = enum.auto()
    HANDED = enum.auto()
    TAKEN = enum.auto()
    ENDED = enum.auto()


class Lane:
    """One application instance and the message that it has.

    Attributes:
        channel: the name of the channel.
        scope_id: the lane's key among the instances of the server.
        scope: what the application is called with, as Channels' ``runworker`` has it.
        state: see above.
        message: what was handed over last; None before that, and after it is done.
        messages: how many were handed over.
        since: when the last was, in seconds of `time.monotonic`.
        context: in which the application runs.

    Args:
        channel: the name of the channel.
        number: tells lanes of a channel apart.
        on_idle: called when the lane has done a message and waits for another.
    """

    def __init__(self, channel: str, number: int, on_idle: "Callable[[Lane], None]") -> None:
        self.channel = channel
        self.scope_id = (channel, number)
        self.scope = {"type": "channel", "channel": channel}
        self.state = State.IDLE
        self.message: Any = None
        self.messages = 0
        self.since = 0.0
        self.context = ThreadSensitiveContext()
        self.context.holder = self.holder
        self._on_idle = on_idle

    @property
    def holder(self) -> str:
        """Who has a thread, in messages about threads that are in use."""
        return f"channel {self.channel}"

    @property
    def in_work(self) -> bool:
        """Whether there is a message that is not done."""
        return self.state in (State.HANDED, State.TAKEN)

    def hand_over(self, message: Any, queue: "asyncio.Queue[Any]") -> None:
        """Put a message into the queue of the application, which waits for one."""
        self.state = State.HANDED
        self.message = message
        self.messages += 1
        self.since = time.monotonic()
        queue.put_nowait(message)

    async def receive(self, get: Callable[[], Any]) -> Any:
        """Finish the last message, and wait for the next; the application's `receive`.

        It may be cancelled and called again, as `asyncio.wait_for` does.
        """
        if self.state is State.TAKEN:
            await self._give_thread_back()
            self.state = State.IDLE
            self.message = None
            self._on_idle(self)
        message = await get()
        self.state = State.TAKEN
        return message

    async def _give_thread_back(self) -> None:
        """End the lease of the last message, once its calls have ended, and make one for the next.

        Called again after a cancellation it finds a lease that nobody has used.
        """
        with _state.registry_lock:
            lease = _state.context_to_thread_executor.get(self.context)
            if not isinstance(lease, Lease):  # an executor of the test's or the caller's own
                return
            _state.context_to_thread_executor[self.context] = Lease(
                _state.request_workers, self.holder
            )
        calls = lease.give_back()
        if calls is not None:
            await asyncio.wrap_future(calls)

    def thread_name(self) -> str | None:
        """Return the name of the thread that the lane has at this moment; None if it has none."""
        lease = _state.context_to_thread_executor.get(self.context)
        return lease.thread_name() if isinstance(lease, Lease) else None


def type_of(message: Any) -> str:
    """Return the type of a message for a log, whatever the message is."""
    if message is None:
        return "none"
    found = message.get("type") if isinstance(message, dict) else None
    return found if isinstance(found, str) else "without a type"
