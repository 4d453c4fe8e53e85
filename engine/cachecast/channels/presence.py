"""Who is in a presence channel: users, each with one connection or several.

The first connection of a user adds a member and the last one removes it; what its first
connection said about the user stands until then (protocol.md 2.6 and 9.5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cachecast.protocol.session import Member

__all__ = ["PresenceRoster"]


class PresenceRoster:
    """The members of one channel, in the order they came."""

    __slots__ = ("_connections", "_members")

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._connections: dict[str, int] = {}

    def __len__(self) -> int:
        """Users, not connections."""
        return len(self._members)

    def __contains__(self, key: str) -> bool:
        """Whether a user, by the text of its id, is here."""
        return key in self._members

    @property
    def user_ids(self) -> list[str]:
        """Ids as text, as the HTTP API and webhooks give them."""
        return list(self._members)

    def join(self, member: Member) -> bool:
        """Add a connection; True if it is its user's first."""
        key = member.key
        self._connections[key] = self._connections.get(key, 0) + 1
        if key in self._members:
            return False
        self._members[key] = member
        return True

    def leave(self, member: Member) -> bool:
        """Remove a connection; True if it was its user's last."""
        key = member.key
        self._connections[key] -= 1
        if self._connections[key]:
            return False
        del self._connections[key]
        del self._members[key]
        return True

    def success_data(self) -> dict[str, Any]:
        """``data`` of the success frame; every id is a key of the hash, as .NET needs it.

        A member without ``user_info`` has an empty object there: Swift reads the hash as one of
        dictionaries, and shows nobody if one of them is null (protocol.md 2.5).

        O(members), once for each join; the limit of 100 members is hosted Pusher's reason too.
        """
        return {
            "presence": {
                "ids": [member.user_id for member in self._members.values()],
                "hash": {
                    key: {} if member.user_info is None else member.user_info
                    for key, member in self._members.items()
                },
                "count": len(self._members),
            }
        }
