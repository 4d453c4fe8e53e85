"""Which connections of this node listen to which channel: one Hub for each app.

Apps share nothing, so an app is a Hub and isolation is a matter of structure. A channel exists
here while somebody is subscribed to it; its cached value lives elsewhere and does not care.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import msgspec

from cachecast.channels.channel import Channel, Subscription
from cachecast.channels.users import UserIndex
from cachecast.errors import SubscriptionError
from cachecast.handover.state import ChannelState
from cachecast.metrics import AppCounters
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.identity import Member
from cachecast.protocol.rate_limit import SharedBucket, TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from cachecast.apps import App
    from cachecast.channels.connection import Connection
    from cachecast.channels.presence import PresenceRoster
    from cachecast.protocol.channel_name import ChannelName
    from cachecast.protocol.wire import Encoded

__all__ = ["Hub", "Joined", "Left"]


class Joined(msgspec.Struct, frozen=True, gc=False):
    """What a subscription changed.

    Attributes:
        edge: the new subscription.
        is_occupied: whether the channel became occupied by it.
        is_member_new: whether its user became a member by it.
    """

    edge: Subscription
    is_occupied: bool
    is_member_new: bool


class Left(msgspec.Struct, frozen=True, gc=False):
    """What the end of a subscription changed; the reverse of :class:`Joined`."""

    edge: Subscription
    is_vacated: bool
    is_member_gone: bool


class Hub:
    """The connections, channels and users of one app.

    Attributes:
        connections: socket id -> connection.
        unauthorized: socket id -> connection that still owes a signature, where the app requires
            one.
        channels: name -> occupied channel.
        users: users who are signed in, and who watches them.
        counters: counters of what happened in the app.
        undelivered_bytes: number of bytes of publications that wait for their fan-out.
        ready: the line of channels that have something to deliver.
        is_ready: whether the app stands in the node's line of those that have such channels.
        publish_bucket: token bucket of the app's publish rate, or this node's part of it; None
            where it has no limit.
        is_shared: whether the app is served by other nodes too. Then others keep the rosters, and
            what a subscription changed here is not what it changed.
        sum_connections: function that adds the connections of other nodes to a number of them.
    """

    __slots__ = (
        "_line",
        "app",
        "channels",
        "connections",
        "counters",
        "is_ready",
        "is_shared",
        "publish_bucket",
        "ready",
        "sum_connections",
        "unauthorized",
        "undelivered_bytes",
        "users",
    )

    def __init__(self, app: App, line: deque[Hub], now: float) -> None:
        """Make an empty hub.

        Args:
            app: the app that it holds the state of.
            line: the node's line of hubs that have something to deliver.
            now: the present, in the broker's seconds.
        """
        self.publish_bucket: TokenBucket | SharedBucket | None = _bucket(app, now)
        self.app = app
        self.connections: dict[str, Connection] = {}
        self.unauthorized: set[Connection] = set()
        self.channels: dict[str, Channel] = {}
        self.counters = AppCounters()
        self.users = UserIndex(self.counters)
        self.undelivered_bytes = 0
        self.is_shared = False
        self.sum_connections: Callable[[int], int] = int
        self.ready: deque[Channel] = deque()
        self.is_ready = False
        self._line = line

    def serve(self, app: App, now: float) -> None:
        """Go by other terms of the same app from now on. Never yields.

        Those who are connected have terms of their own, which the caller renews.
        """
        if app.publishes_per_s != self.app.publishes_per_s:
            self.publish_bucket = _bucket(app, now)
        self.app = app

    @property
    def n_channels(self) -> int:
        """Occupied channels, but for users' own; O(channels)."""
        return sum([not channel.name.is_hidden for channel in self.channels.values()])

    @property
    def n_subscriptions(self) -> int:
        """Edges of the channels that :attr:`n_channels` counts; O(channels)."""
        return sum(
            [
                len(channel.subscriptions)
                for channel in self.channels.values()
                if not channel.name.is_hidden
            ]
        )

    def has(self, connection: Connection) -> bool:
        """Whether a connection is here, and not ended."""
        return self.connections.get(connection.session.socket_id) is connection

    def subscribe(
        self,
        connection: Connection,
        name: ChannelName,
        member: Member | None,
        roster: PresenceRoster | None = None,
    ) -> Joined:
        """Add a subscription. Never yields.

        Args:
            connection: connection of the subscriber.
            name: name of the channel.
            member: user whom it brings into a presence channel.
            roster: members on all nodes, where the app is shared.

        Raises:
            SubscriptionError: the presence channel has its full number of members; nothing has
                changed then.
        """
        channel = self.channels.get(name.text)
        is_occupied = channel is None
        if channel is None:
            channel = Channel(name, self.counters, roster)
        is_member_new = False
        if self.is_shared:
            channel.roster = roster
        elif channel.roster is not None and member is not None:
            limit = self.app.max_presence_members
            if member.key not in channel.roster and len(channel.roster) >= limit:
                raise SubscriptionError(
                    f"The presence channel has its maximum of {limit} members",
                    channel=name.text,
                    kind="LimitReached",
                    status=4100,
                )
            is_member_new = channel.roster.join(member)
        self.channels[name.text] = channel
        edge = channel.add(connection, member)
        connection.session.subscriptions[name.text] = edge
        return Joined(edge, is_occupied, is_member_new)

    def unsubscribe(self, connection: Connection, name: str) -> Left:
        """End a subscription. Never yields.

        Raises:
            KeyError: there is none.
        """
        channel = self.channels[name]
        edge = channel.remove(connection)
        del connection.session.subscriptions[name]
        connection.outbox.forget(name)
        is_member_gone = False
        if channel.roster is not None and edge.member is not None and not self.is_shared:
            is_member_gone = channel.roster.leave(edge.member)
        is_vacated = not channel.subscriptions
        if is_vacated:
            del self.channels[name]
        return Left(edge, is_vacated, is_member_gone)

    # --- handing over

    def export(
        self, numbers: Mapping[Connection, int], stale: Container[Channel]
    ) -> list[ChannelState]:
        """Who is in which channel, in plain values; nothing may wait for its fan-out.

        Args:
            numbers: connection -> its number, of all that are here.
            stale: channels whose count is held back.
        """
        return [
            ChannelState(
                name,
                [numbers[connection] for connection in channel.subscriptions],
                [
                    edge.member.export()
                    for edge in channel.subscriptions.values()
                    if edge.member is not None
                ],
                None if channel.roster is None else channel.roster.export(),
                channel.count_due_at,
                channel in stale,
            )
            for name, channel in self.channels.items()
        ]

    def restore(self, state: ChannelState, clients: Sequence[Connection]) -> Channel:
        """Occupy a channel as it was in another process; nobody is told.

        Args:
            state: the channel.
            clients: connections of the app by their numbers, with the names of their channels.
        """
        text = state.name
        # A name that was right once stays, whatever the limit is now.
        name = parse_channel_name(text, max(len(text), self.app.max_channel_name_length))
        channel = self.channels[text] = Channel(name, self.counters)
        channel.count_due_at = state.count_due_at
        roster, standing = channel.roster, state.standing
        if roster is not None:
            roster.restore(state.members or [])
        for place, number in enumerate(state.clients):
            connection, member = clients[number], None
            if roster is not None and standing:
                member = Member.restore(standing[place])
                if not self.is_shared:  # else it is kept up to date by the bus
                    roster.join(member)
            connection.session.subscriptions[text] = channel.add(connection, member)
        return channel

    def enqueue(
        self,
        channel: Channel,
        encoded: Encoded,
        exclude: Connection | None = None,
        deadline: float = float("inf"),
        *,
        now: float = 0.0,
        is_announcement: bool = False,
    ) -> None:
        """Queue something for everyone in the channel now; see :meth:`Channel.enqueue`."""
        before = channel.queued_bytes
        channel.enqueue(encoded, exclude, deadline, now=now, is_announcement=is_announcement)
        self.undelivered_bytes += channel.queued_bytes - before
        if not channel.is_ready:
            channel.is_ready = True
            self.ready.append(channel)
            if not self.is_ready:
                self.is_ready = True
                self._line.append(self)

    def skip(self, channel: Channel) -> int:
        """Forget values that wait in a channel; see :meth:`Channel.skip`."""
        before = channel.queued_bytes
        n_skipped = channel.skip()
        self.undelivered_bytes -= before - channel.queued_bytes
        return n_skipped

    def deliver(self, budget: int) -> tuple[int, float | None]:
        """Give the channel at the front of the line its part of the app's turn. Never yields.

        The caller has taken the hub off the node's line; it goes to the end if it has more.

        Args:
            budget: number of calls of ``send`` at most, see :meth:`Channel.deliver`.

        Returns:
            Part of the budget that was used, and the time when the oldest of what is done with had
            been queued, in the broker's seconds; None if nothing is.
        """
        channel = self.ready.popleft()
        used, done = channel.deliver(budget)
        self.undelivered_bytes -= done
        if channel.has_queued:
            self.ready.append(channel)
        else:
            channel.is_ready = False
        if self.ready:
            self._line.append(self)
        else:
            self.is_ready = False
        return used, channel.delivered_from if done else None


def _bucket(app: App, now: float) -> TokenBucket | None:
    rate = app.publishes_per_s
    return TokenBucket(rate, max(rate, 100.0), now) if rate else None
