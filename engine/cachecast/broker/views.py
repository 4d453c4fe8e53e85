"""What a Broker tells of itself: a channel, a cached value, an app in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from cachecast.channels.cache import CACHED_WIRE, CacheEntry
from cachecast.metrics import AppStatistics
from cachecast.protocol.wire import Encoded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cachecast.bus.seam import Envelope
    from cachecast.channels.cache import CacheStore
    from cachecast.channels.channel import Channel
    from cachecast.channels.hub import Hub

__all__ = [
    "CachedEvent",
    "ChannelState",
    "app_statistics",
    "channel_state",
    "describe_entry",
    "describe_envelope",
    "occupied_channels",
]


class CachedEvent(msgspec.Struct, frozen=True):
    """The value of a cache channel, read without subscribing.

    Attributes:
        name: the event's name.
        channel: the channel that it was published to.
        data: the text as published.
        age_s: seconds since it was published.
        ttl_s: seconds until it is gone; greater than 0.
        message: the JSON of the message that subscribers got.
    """

    name: str
    channel: str
    data: str
    age_s: float
    ttl_s: float
    message: bytes


class ChannelState(msgspec.Struct, frozen=True):
    """What the HTTP API tells of a channel.

    Attributes:
        occupied: whether anybody is subscribed.
        subscription_count: number of subscribed connections.
        user_count: number of distinct members; None unless it is a presence channel.
    """

    occupied: bool
    subscription_count: int
    user_count: int | None


def describe_entry(entry: CacheEntry, channel: str, now: float, ttl_s: float) -> CachedEvent:
    """A cached value as it is read.

    Args:
        entry: entry of the cache, alive.
        channel: name of the entry's channel.
        now: the present, in the broker's seconds.
        ttl_s: seconds that the app's values live.
    """
    publication = entry.publication
    return CachedEvent(
        publication.event,
        channel,
        str(publication.data),
        now - entry.published_at,
        min(entry.deadline - now, ttl_s),  # the sum may be rounded up
        entry.message,
    )


def describe_envelope(envelope: Envelope, now: float, ttl_s: float) -> CachedEvent | None:
    """The same of a value that the bus has read; None if its life is over on this node."""
    published_at = now if envelope.published_at is None else envelope.published_at
    deadline = min(published_at + ttl_s, envelope.deadline)
    if now >= deadline:
        return None
    frame = Encoded(envelope.publication).on(CACHED_WIRE)
    entry = CacheEntry(frame, published_at, deadline, len(frame))
    return describe_entry(entry, envelope.name.text, now, ttl_s)


def occupied_channels(
    channels: Iterable[tuple[str, Channel]], prefix: str
) -> dict[str, ChannelState]:
    """Those whose name starts with ``prefix`` and in which there is still somebody.

    Users' own channels are the protocol's business, not the application's.
    """
    return {
        name: channel_state(channel)
        for name, channel in channels
        if name.startswith(prefix) and not channel.name.is_hidden and channel.subscriptions
    }


def channel_state(channel: Channel) -> ChannelState:
    """An occupied channel as it is now."""
    return ChannelState(
        occupied=True,
        subscription_count=len(channel.subscriptions),
        user_count=len(channel.roster) if channel.roster is not None else None,
    )


def app_statistics(
    hub: Hub, cache: CacheStore, n_webhook_events: int, n_cache_readers: int = 0
) -> AppStatistics:
    """One app in numbers: gauges read from the state, counters copied. O(channels)."""
    counters = hub.counters
    app_id = hub.app.id
    copied: dict[str, Any] = {name: getattr(counters, name) for name in type(counters).__slots__}
    copied["refusals"] = dict(counters.refusals)
    copied["webhooks"] = dict(counters.webhooks)
    return AppStatistics(
        app_id=app_id,
        connections=len(hub.connections),
        subscriptions=hub.n_subscriptions,
        channels=hub.n_channels,
        users=len(hub.users),
        cache_entries=cache.n_entries(app_id),
        cache_bytes=cache.n_bytes(app_id),
        cache_readers=n_cache_readers,
        undelivered_bytes=hub.undelivered_bytes,
        webhook_queue_events=n_webhook_events,
        **copied,
    )
