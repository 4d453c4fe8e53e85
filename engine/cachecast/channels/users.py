"""Who is signed in, and who wants to know: the users of one app.

A user is online while at least one connection is signed in as it (protocol.md 5.4); presence in a
channel does not count. Those who watch a user are a channel's subscribers like any others: news of
the user reach a hundred thousand of them by the same fan-out, in turns and in order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachecast.channels.channel import Channel
from cachecast.protocol.channel_name import ChannelName, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cachecast.channels.connection import Connection
    from cachecast.metrics import AppCounters
    from cachecast.protocol.session import User

__all__ = ["UserIndex"]


class UserIndex:
    """User id -> its signed-in connections, and user id -> the channel of those who watch it."""

    __slots__ = ("_connections", "_counters", "_watchers")

    def __init__(self, counters: AppCounters) -> None:
        self._counters = counters
        # Dicts as ordered sets: whoever signed in first is told first.
        self._connections: dict[str, dict[Connection, None]] = {}
        self._watchers: dict[str, Channel] = {}

    def __len__(self) -> int:
        """Signed-in users, not connections."""
        return len(self._connections)

    @property
    def n_watched(self) -> int:
        """Ids that somebody watches."""
        return len(self._watchers)

    def is_online(self, user_id: str) -> bool:
        """Whether the user has a signed-in connection."""
        return user_id in self._connections

    def connections_of(self, user_id: str) -> list[Connection]:
        """The user's signed-in connections."""
        return list(self._connections.get(user_id, ()))

    def watchers_of(self, user_id: str) -> Channel | None:
        """The channel of the connections whose watchlist has the user; None if there are none."""
        return self._watchers.get(user_id)

    def export(self, numbers: Mapping[Connection, int]) -> list[tuple[str, list[int]]]:
        """Who is signed in, in that order, by the numbers of their connections."""
        return [
            (user_id, [numbers[connection] for connection in connections])
            for user_id, connections in self._connections.items()
        ]

    def add(self, connection: Connection, user: User) -> bool:
        """Sign a connection in; True if the user comes online with it."""
        connections = self._connections.setdefault(user.id, {})
        is_first = not connections
        connections[connection] = None
        self._watch(connection, user.watchlist)
        return is_first

    def remove(self, connection: Connection, user: User) -> bool:
        """Sign a connection out; True if the user goes offline with it."""
        self._unwatch(connection, user.watchlist)
        connections = self._connections[user.id]
        del connections[connection]
        if connections:
            return False
        del self._connections[user.id]
        return True

    def rewatch(self, connection: Connection, before: User, after: User) -> None:
        """Replace a connection's watchlist, after it signed in again as the same user."""
        self._unwatch(connection, before.watchlist)
        self._watch(connection, after.watchlist)

    def _watch(self, connection: Connection, user_ids: Iterable[str]) -> None:
        for watched in user_ids:
            channel = self._watchers.get(watched)
            if channel is None:
                # No client can subscribe to this name: it is outside the grammar.
                name = ChannelName(f"#watchers-of-{watched}", Kind.SERVER_TO_USER)
                channel = self._watchers[watched] = Channel(name, self._counters)
            channel.add(connection, None)

    def _unwatch(self, connection: Connection, user_ids: Iterable[str]) -> None:
        for watched in user_ids:
            channel = self._watchers[watched]
            channel.remove(connection)
            if not channel.subscriptions:
                del self._watchers[watched]
