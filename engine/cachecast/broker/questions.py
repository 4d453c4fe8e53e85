"""What may be asked about an app: its channels, their members, their values.

A node that is alone answers from its hub and its cache, at once. Where there are others, all of
them are counted, and the bus is asked. Either way the answer is a receipt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cachecast.broker.views import (
    CachedEvent,
    ChannelState,
    channel_state,
    describe_entry,
    describe_envelope,
    occupied_channels,
)
from cachecast.bus.receipt import Receipt
from cachecast.errors import BadRequestError
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.http_api import read_channel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cachecast.broker.delivery import Delivery
    from cachecast.bus.seam import Bus, Envelope
    from cachecast.channels.cache import CacheStore
    from cachecast.channels.hub import Hub
    from cachecast.channels.presence import PresenceRoster
    from cachecast.metrics import EngineStatistics
    from cachecast.protocol.channel_name import ChannelName
    from cachecast.protocol.identity import Member

__all__ = ["Questions"]

#: What names of channels with members begin with.
ROOM: Final = "presence-"


class Questions:
    """The reading half of a Broker."""

    def __init__(
        self, bus: Bus, delivery: Delivery, cache: CacheStore, clock: Callable[[], float]
    ) -> None:
        """Wire it up.

        Args:
            bus: bus that is asked where it is shared.
            delivery: counter of hits and misses.
            cache: store that has the values and their lifetimes.
            clock: function that gives the broker's seconds.
        """
        self._bus = bus
        self._delivery = delivery
        self._cache = cache
        self._clock = clock

    def engines(self) -> tuple[EngineStatistics, ...]:
        """Primaries of the engine, as this node knows them; empty where it is alone."""
        return self._bus.statistics()

    def channel(self, hub: Hub, name: str) -> Receipt[ChannelState]:
        """One channel, occupied or not; a user's own counts as unoccupied.

        Raises:
            BadRequestError: the name is wrong.
        """
        return self.states(hub, [read_channel(name, hub.app)]).then(lambda states: states[0])

    def states(self, hub: Hub, names: Sequence[ChannelName]) -> Receipt[list[ChannelState]]:
        """The same of several, in their order."""
        if not hub.is_shared:
            return Receipt.of([_state_here(hub, name) for name in names])
        asked = [name.text for name in names if not name.is_hidden]
        if not asked:
            return Receipt.of([_state(name, 0, 0) for name in names])

        def read(counts: Sequence[tuple[int, int]]) -> list[ChannelState]:
            known = dict(zip(asked, counts, strict=True))
            return [_state(name, *known.get(name.text, (0, 0))) for name in names]

        return self._bus.counts(hub.app.id, asked).then(read)

    def channels(self, hub: Hub, prefix: str) -> Receipt[dict[str, ChannelState]]:
        """The occupied channels whose name starts with a prefix; O(occupied channels)."""
        if not hub.is_shared:
            return Receipt.of(occupied_channels(hub.channels.items(), prefix))

        def describe(
            counts: Mapping[str, int],
        ) -> dict[str, ChannelState] | Receipt[dict[str, ChannelState]]:
            found = {
                name: ChannelState(occupied=True, subscription_count=count, user_count=None)
                for name, count in counts.items()
            }
            # Not by this node's limits: the others may have been given longer ones.
            rooms = [
                parse_channel_name(name, len(name)) for name in counts if name.startswith(ROOM)
            ]
            if not rooms:
                return found

            def count_members(states: list[ChannelState]) -> dict[str, ChannelState]:
                for room, state in zip(rooms, states, strict=True):
                    if state.occupied:
                        found[room.text] = state
                    else:  # vacated meanwhile
                        del found[room.text]
                return found

            return self.states(hub, rooms).then(count_members)

        return self._bus.channels(hub.app.id, prefix).then(describe)

    def users(self, hub: Hub, channel: str) -> Receipt[Sequence[str]]:
        """Ids of the distinct members of a presence channel.

        Raises:
            BadRequestError: it is no presence channel.
        """
        _require_room(hub, channel)
        if hub.is_shared:
            return self._bus.users(hub.app.id, channel)
        roster = _roster_here(hub, channel)
        return Receipt.of([] if roster is None else roster.user_ids)

    def members(self, hub: Hub, channel: str) -> Receipt[Sequence[Member]]:
        """The distinct members of a presence channel, with what their first connection said.

        Raises:
            BadRequestError: it is no presence channel.
        """
        _require_room(hub, channel)
        if hub.is_shared:
            return self._bus.members(hub.app.id, channel)
        roster = _roster_here(hub, channel)
        return Receipt.of([] if roster is None else roster.members)

    def cached(self, hub: Hub, channel: str) -> Receipt[CachedEvent | None]:
        """The value of a cache channel, or None; counted as a hit or a miss.

        Raises:
            BadRequestError: it is no cache channel.
        """
        if not read_channel(channel, hub.app).is_cache:
            raise BadRequestError("The cache can only be read for cache channels\n")
        ttl_s = self._cache.ttl_s(hub.app.id)
        if not hub.is_shared:
            now = self._clock()
            entry = self._delivery.cached(hub, channel, now)
            found = None if entry is None else describe_entry(entry, channel, now, ttl_s)
            return Receipt.of(found)

        def read(envelope: Envelope | None) -> CachedEvent | None:
            found = None
            if envelope is not None:
                found = describe_envelope(envelope, self._clock(), ttl_s)
            self._delivery.count_read(hub, is_hit=found is not None)
            return found

        return self._bus.read(hub.app.id, channel).then(read)


def _state(name: ChannelName, n_subscriptions: int, n_members: int) -> ChannelState:
    return ChannelState(
        occupied=n_subscriptions > 0,
        subscription_count=n_subscriptions,
        user_count=n_members if name.is_presence else None,
    )


def _require_room(hub: Hub, channel: str) -> None:
    if not read_channel(channel, hub.app).is_presence:
        raise BadRequestError("Users can only be retrieved for presence channels\n")


def _roster_here(hub: Hub, channel: str) -> PresenceRoster | None:
    found = hub.channels.get(channel)
    return None if found is None else found.roster


def _state_here(hub: Hub, name: ChannelName) -> ChannelState:
    channel = hub.channels.get(name.text)
    return _state(name, 0, 0) if channel is None or name.is_hidden else channel_state(channel)
