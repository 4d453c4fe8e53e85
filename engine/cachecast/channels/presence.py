"""Who is in a presence channel: users, each with one connection or several.

The first connection of a user adds a member and the last one removes it; what its first
connection said about the user stands until then (protocol.md 2.6 and 9.5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cachecast.protocol.codec import JSON
from cachecast.protocol.identity import Member
from cachecast.protocol.messages import Control

if TYPE_CHECKING:
    from cachecast.handover.state import MemberState
    from cachecast.protocol.wire import Wire

__all__ = ["PresenceRoster"]

#: Number of members from which on what is said of each is kept as it is sent: some 250 bytes a
#: member, where saying it anew takes longer than the ``send``: 1.3 ms for ten thousand, each time
#: one joins.
LARGE: Final = 256

_EVENT: Final = "pusher_internal:subscription_succeeded"


class PresenceRoster:
    """The members of one channel, in the order they came."""

    __slots__ = ("_connections", "_hash", "_ids", "_members")

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        # Of a large roster: pieces of the frame that a newcomer gets, by user.
        self._ids: dict[str, bytes] = {}
        self._hash: dict[str, bytes] = {}
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

    @property
    def members(self) -> list[Member]:
        """The members, in the order they came."""
        return list(self._members.values())

    def put(self, member: Member) -> bool:
        """Add a member of the cluster, whichever node it is on; True if it was not here.

        A roster that a bus keeps up to date knows this and :meth:`discard`, and neither
        :meth:`join` nor :meth:`leave`.
        """
        if member.key in self._members:
            return False
        self._members[member.key] = member
        if self._ids:
            self._encode(member)
        return True

    def discard(self, key: str) -> Member | None:
        """Remove a member of the cluster; gives it, or None if it was not here."""
        self._ids.pop(key, None)
        self._hash.pop(key, None)
        return self._members.pop(key, None)

    def join(self, member: Member) -> bool:
        """Add a connection; True if it is its user's first."""
        key = member.key
        self._connections[key] = self._connections.get(key, 0) + 1
        return self.put(member)

    def leave(self, member: Member) -> bool:
        """Remove a connection; True if it was its user's last."""
        key = member.key
        self._connections[key] -= 1
        if self._connections[key]:
            return False
        del self._connections[key]
        self.discard(key)
        return True

    def export(self) -> list[MemberState]:
        """The members in their order, in plain values."""
        return [member.export() for member in self._members.values()]

    def restore(self, members: list[MemberState]) -> None:
        """Have members whose connections :meth:`join` next, in an order of their own."""
        for state in members:
            self.put(Member.restore(state))

    def _encode(self, member: Member) -> None:
        key = member.key
        self._ids[key] = JSON.escape(member.user_id)
        info = {} if member.user_info is None else member.user_info
        self._hash[key] = b"%b:%b" % (JSON.escape(key), JSON.escape(info))

    def success_frame(self, wire: Wire, channel: str) -> bytes:
        """The frame that confirms a subscription, with all who are there; O(members).

        Every JSON client of a large roster gets the pieces that are kept; for others, who are few,
        it is encoded each time.
        """
        if len(self._members) < LARGE or wire.codec is not JSON:
            return wire.control(Control(_EVENT, self.success_data(), channel))
        if not self._ids:
            for member in self._members.values():
                self._encode(member)
        data = b'{\\"presence\\":{\\"ids\\":[%b],\\"hash\\":{%b},\\"count\\":%d}}' % (
            b",".join(self._ids.values()),
            b",".join(self._hash.values()),
            len(self._members),
        )
        return wire.frame(JSON.control_of(_EVENT, data, channel))

    def success_data(self) -> dict[str, Any]:
        """``data`` of the success frame; every id is a key of the hash, as .NET needs it.

        A member without ``user_info`` has an empty object there: Swift reads the hash as one of
        dictionaries, and shows nobody if one of them is null (protocol.md 2.5).

        O(members); see :meth:`success_frame`. Hosted Pusher has a limit of 100 members.
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
