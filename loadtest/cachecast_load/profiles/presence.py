"""presence: everybody joins at once, some leave and return, and all must agree on who is there."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, ClassVar

from cachecast_load.crowd.client import OPEN
from cachecast_load.crowd.profile import CLEAN, Defaults, Profile
from cachecast_load.plan import orders

if TYPE_CHECKING:
    from cachecast_load.crowd.block import Block
    from cachecast_load.crowd.client import Client

AWAY_S = 1.0


class Presence(Profile):
    """A join storm on presence channels, and rosters that are compared at the end.

    A roster is what the success frame said, plus and minus the member events since. `ghosts` are
    member events that contradict it (joined while present, left while absent).
    """

    name = "presence"
    summary = "presence channels: join storm, leaves and returns, roster correctness"
    prefix = "presence-"
    defaults: ClassVar[Defaults] = {
        "load": {"subscribers": 500, "rate": 20.0, "connect_rate": 2000.0},
        "behaviour": {"members_per_channel": 50, "drop_share": 0.2, "drop_at": 0.3},
    }
    slos = (*CLEAN, "presence.wrong == 0", "presence.ghosts == 0", "presence.checked > 0")

    def channel_count(self) -> int:
        """As many as keep each within the members that the protocol allows (100)."""
        members = self.plan.behaviour.members_per_channel
        return max(1, -(-self.plan.greatest_subscribers // members))

    def subscriptions(self, subscriber: int) -> list[int]:
        """All connections of a user are in the same channel."""
        user = subscriber // self.plan.behaviour.connections_per_user
        return [self.base + user % self.channel_count()]

    def subscribed(self, client: Client, channel: int, data: object) -> None:
        """Take the roster from the success frame and check that it is consistent in itself."""
        presence = data.get("presence") if isinstance(data, dict) else None
        members = presence.get("hash") if isinstance(presence, dict) else None
        if not isinstance(presence, dict) or not isinstance(members, dict):
            self._wrong(client, f"no roster on {self.channel_name(channel)}: {str(data)[:80]}")
            client.memory = set()
            return
        client.memory = set(members)
        if set(map(str, presence.get("ids", ()))) != set(members):
            self._wrong(client, "ids and hash of the roster differ")
        if presence.get("count") != len(members):
            self._wrong(client, f"count {presence.get('count')} for {len(members)} members")
        if self.user_of(client.number) not in members:
            self._wrong(client, "the newcomer is missing in its own roster")

    def member_event(
        self, client: Client, channel: int, data: dict[str, Any], *, joined: bool
    ) -> None:
        """Follow who comes and goes."""
        user = str(data.get("user_id"))
        roster = client.memory
        if channel not in client.memberships or not isinstance(roster, set):
            return
        if joined == (user in roster):
            client.tally.counts["presence_ghosts"] += 1
            what = "joined while present" if joined else "left while absent"
            client.tally.error(f"presence: {what}", f"{user}, seen by {client.number}")
        elif joined:
            roster.add(user)
        else:
            roster.discard(user)

    def started(self, block: Block) -> None:
        """Plan the moment at which some leave."""
        behaviour = self.plan.behaviour
        if behaviour.drop_share:
            seconds = behaviour.drop_at * self.plan.load.duration_s
            block.at_measure(seconds, self._send_away, block)

    def _send_away(self, block: Block) -> None:
        share = self.plan.behaviour.drop_share
        for client in self.clients(block):
            chance = random.Random(f"{self.plan.seed}/away/{client.number}").random()
            if client.state == OPEN and chance < share:
                client.leave()
                block.reactor.call_later(AWAY_S, self.reconnect, client)

    def draining(self, block: Block) -> None:
        """Compare all rosters at one moment, when everybody should have come to rest."""
        at_us = block.session.to_local(block.order.at_us)
        at_us += int(self.plan.limits.grace_s * 1e6)
        block.reactor.call_at(at_us, self._compare, block)

    def _compare(self, block: Block) -> None:
        shape = self.plan.shape
        if not block.order.all_present or block.order.phase != orders.DRAIN:
            return
        if shape.kind != "constant" and shape.of == "subscribers":
            return  # a moving number of members has no roster to compare with
        expected: dict[int, set[str]] = {}
        for number in range(block.order.subscribers):
            if self.owns(number):
                channel = self.subscriptions(number)[0]
                expected.setdefault(channel, set()).add(self.user_of(number))
        for client in self.clients(block):
            for channel in client.memberships:
                client.tally.counts["presence_checked"] += 1
                if client.memory != expected[channel]:
                    missing = sorted(expected[channel] - client.memory)[:3]
                    extra = sorted(client.memory - expected[channel])[:3]
                    self._wrong(client, f"missing {missing}, extra {extra}")

    def _wrong(self, client: Client, text: str) -> None:
        client.tally.counts["presence_wrong"] += 1
        client.tally.error("presence: wrong roster", f"subscriber {client.number}: {text}")
