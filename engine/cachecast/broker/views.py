"""What a Broker tells of itself: a channel, a cached value, an app in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from cachecast.metrics import AppStatistics

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cachecast.channels.cache import CacheStore
    from cachecast.channels.channel import Channel
    from cachecast.channels.hub import Hub

__all__ = ["CachedEvent", "ChannelState", "app_statistics", "channel_state", "occupied_channels"]


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


def app_statistics(hub: Hub, cache: CacheStore, n_webhook_events: int) -> AppStatistics:
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
        undelivered_bytes=hub.undelivered_bytes,
        webhook_queue_events=n_webhook_events,
        **copied,
    )
