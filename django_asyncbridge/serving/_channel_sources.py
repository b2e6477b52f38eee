"""Where a `ChannelServer` gets its messages: a channel layer, asked in such a way that no message gets lost by asking.

Two kinds. A `LayerSource` waits in the layer's own `receive`, and ends that by cancelling it. This is safe where taking a message and
handing it over are one step of the event loop, as in Channels' in-memory layer.

A `RedisSource` is for ``channels_redis.core.RedisChannelLayer``, where it is not: Redis has given the message away before this process has read
it, so whoever cancels loses it. So nobody cancels: each wait is short, and ends by itself. The layer also keeps what it takes in a list of
messages in flight, one list for all processes, from which every `receive` of every process puts everything back. With two
processes on a channel a quarter of 2,000 messages came twice. Channels' specification forbids that ("at most once"), so here
there is no such list: a message is taken with one command, by one process. What it costs is that a message which was on its way
when the process was killed is lost.

Hard rules. A source has one waiting `receive` for each channel (the in-memory layer loses sight of a second one). The layer that the
project's own code uses is not changed: a `RedisSource` has a layer of its own, made from the same settings.

Which thread may touch what. A source is made in any thread, and then belongs to the thread of the event loop.

Source: Channels, "Channel Layer Specification"; channels_redis issues 163 and 299.
"""

import importlib
from collections.abc import Sequence
from typing import Any, Final, Protocol

from django_asyncbridge.serving.errors import OptionError, ServingError, in_one_line

__all__ = (
    "NOTHING_YET",
    "ChannelLayerError",
    "ChannelsNotInstalledError",
    "LayerSource",
    "RedisSource",
    "Source",
    "check_channels",
    "open_source",
)

# What `receive` returns when it has waited for a while; nobody can send it.
NOTHING_YET: Final = object()

# How long Redis is asked to wait. Shorter than the five seconds after which redis-py takes a connection that says nothing for broken, and
# short enough to stop within. Not measured.
_POLL_SECONDS = 1


class ChannelLayerError(ServingError, RuntimeError):
    """There is no such channel layer, or messages cannot be received from it."""


class ChannelsNotInstalledError(ServingError, ImportError):
    """Channels, which the extra ``channels`` installs, is not there."""


class Source(Protocol):
    """What messages are taken from.

    Attributes:
        may_be_cancelled: whether cancelling a waiting `receive` loses no message.
        shares_messages: whether each message goes to one process only, as it should.
    """

    may_be_cancelled: bool
    shares_messages: bool

    async def receive(self, channel: str) -> Any:
        """Wait for a message of a channel, and take it.

        Returns:
            The message, or `NOTHING_YET` if none came for a while.

        Raises:
            Exception: whatever the layer raises when it cannot be reached.
        """

    async def close(self) -> None:
        """Close what was opened, after the last `receive` has ended."""


class LayerSource:
    """Any channel layer, through nothing but its public methods."""

    may_be_cancelled = True

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        # Everybody who listens gets everything (channels_redis issue 299).
        self.shares_messages = not type(layer).__module__.startswith("channels_redis.pubsub")

    async def receive(self, channel: str) -> Any:
        """Wait for a message of a channel, for any time."""
        return await self._layer.receive(channel)

    async def close(self) -> None:
        """Leave the layer open: it is also the project's."""


class _TimedOutError(Exception):
    """Nothing came; raised through the layer, which else would ask on and on."""


class RedisSource:
    """A layer of channels_redis that takes each message once and never waits for long.

    Args:
        layer: used for nothing else; two of its private methods are replaced, on this object only.
    """

    may_be_cancelled = False
    shares_messages = True
    REPLACED: Final = ("_brpop_with_clean", "_clean_receive_backup")

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        layer._brpop_with_clean = self._take
        layer._clean_receive_backup = self._clean_nothing

    async def receive(self, channel: str) -> Any:
        """Wait a second for a message of a channel. Not to be cancelled: the message may be on its way."""
        try:
            return await self._layer.receive(channel)
        except _TimedOutError:
            # The next call asks the next of the layer's hosts, where it has several.
            return NOTHING_YET

    async def close(self) -> None:
        """Close the connections."""
        await self._layer.close_pools()

    async def _take(self, index: int, channel: str, timeout: float) -> Any:  # noqa: ASYNC109 - the layer's
        taken = await self._layer.connection(index).bzpopmin(
            channel, timeout=min(timeout, _POLL_SECONDS)
        )
        if taken is None:
            raise _TimedOutError
        _key, message, _sent_at = taken
        return message

    async def _clean_nothing(self, index: int, channel: str) -> None:
        """Stand in for the end of a message in flight: there is no list of them."""


def open_source(alias: str) -> Source:
    """Return the source for the channel layer with that alias.

    Nothing is connected yet: a Redis that is down is not noticed here.

    Raises:
        ChannelsNotInstalledError: the extra is missing.
        ChannelLayerError: there is no such layer, it cannot be made, or it cannot receive.
    """
    manager = _import_channels("channels.layers").channel_layers
    # Those of tests may be there without a setting.
    if alias not in manager.backends and alias not in manager.configs:
        raise ChannelLayerError(_no_layer(alias, list(manager.configs)))
    try:
        layer = manager[alias]
    except Exception as error:
        raise ChannelLayerError(
            f"The channel layer {alias!r} cannot be made: {in_one_line(error)}"
        ) from error
    if not callable(getattr(layer, "receive", None)):
        raise ChannelLayerError(
            f"The channel layer {alias!r} is a {type(layer).__name__}, which has no receive(); name another BACKEND."
        )
    if _is_redis(layer):
        return RedisSource(manager.make_backend(alias))
    return LayerSource(layer)


def _no_layer(alias: str, known: Sequence[str]) -> str:
    if not known:
        return (
            "settings.CHANNEL_LAYERS has no channel layer; add one, for example "
            '{"default": {"BACKEND": "channels_redis.core.RedisChannelLayer"}}.'
        )
    return f"There is no channel layer {alias!r} in settings.CHANNEL_LAYERS, which has: {', '.join(known)}."


def _is_redis(layer: Any) -> bool:
    # By name: whoever uses another layer need not have channels_redis.
    return any(
        f"{cls.__module__}.{cls.__qualname__}" == "channels_redis.core.RedisChannelLayer"
        for cls in type(layer).__mro__
    ) and all(hasattr(layer, name) for name in RedisSource.REPLACED)


def check_channels(channels: Sequence[str], max_applications: int) -> None:
    """Refuse names that no layer takes, and a maximum with which some channel could never be received from.

    Raises:
        ChannelsNotInstalledError: the extra is missing.
        OptionError: with what to give instead.
    """
    if not channels:
        raise OptionError(
            "There are no channels to receive from; name some: --option channels=mail,thumbnails."
        )
    layer = _import_channels("channels.layers").BaseChannelLayer()
    for channel in channels:
        try:
            layer.require_valid_channel_name(channel)
        except TypeError as error:
            raise OptionError(f"The channel {channel!r} cannot be: {error}") from error
        if "!" in channel:
            raise OptionError(
                f"The channel {channel!r} belongs to one consumer (it has a '!'); name one that any process can receive from."
            )
    if len(set(channels)) < len(channels):
        raise OptionError(f"A channel is named twice in {', '.join(channels)}; name each once.")
    if max_applications < len(channels):
        raise OptionError(
            f"max_applications is {max_applications}, with {len(channels)} channels; give at least one for each channel."
        )


def _import_channels(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ChannelsNotInstalledError(
            'A ChannelServer needs Channels: pip install "django-asyncbridge[channels]"'
        ) from error
