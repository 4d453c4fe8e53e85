"""presence: everybody joins at once, some leave and return, and all must agree on who is there."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from cachecast_load.crowd.client import OPEN
from cachecast_load.crowd.profile import CLEAN, Defaults, Profile
from cachecast_load.plan import orders
from cachecast_load.plan.features import Feature

if TYPE_CHECKING:
    from cachecast_load.crowd.block import Block
    from cachecast_load.crowd.client import Client
    from cachecast_load.plan.model import Plan

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
    unused: ClassVar[Mapping[str, str]] = {
        "channels": "members_per_channel says how many there are",
        "channels_per_subscriber": "all connections of a user are in one channel",
        "distribution": "each channel has the same number of members",
    }
    slos = (*CLEAN, "presence.wrong == 0", "presence.ghosts == 0", "presence.checked > 0")

    @classmethod
    @override
    def without(cls, plan: Plan, kind: str, feature: Feature) -> tuple[Plan, str] | None:
        """Rosters are what it is about."""
        return None if feature is Feature.ROSTERS else super().without(plan, kind, feature)

    @override
    def channel_count(self) -> int:
        """As many as keep each within the members that the protocol allows (100)."""
        members = self.plan.behaviour.members_per_channel
        return max(1, -(-self.plan.greatest_subscribers // members))

    @override
    def subscriptions(self, subscriber: int) -> list[int]:
        """All connections of a user are in the same channel."""
        user = subscriber // self.plan.behaviour.connections_per_user
        return [self.base + user % self.channel_count()]

    @override
    def subscribed(self, client: Client, channel: int, data: object) -> None:
        """Take the roster from the success frame and check that it is consistent in itself."""
        presence = data.get("presence") if isinstance(data, dict) else None
        members = presence.get("hash") if isinstance(presence, dict) else None
        if not isinstance(presence, dict) or not isinstance(members, dict):
            self._wrong(client, f"no roster on {self.channel_name(channel)}: {str(data)[:80]}")
            client.memory = set()
            return
        client.memory = set(members)
        ids = presence.get("ids", [])
        if not isinstance(ids, list) or sorted(map(str, ids)) != sorted(members):
            self._wrong(client, "ids and hash of the roster differ")
        if presence.get("count") != len(members):
            self._wrong(client, f"count {presence.get('count')} for {len(members)} members")
        if self.user_of(client.number) not in members:
            self._wrong(client, "the newcomer is missing in its own roster")

    @override
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

    @override
    def started(self, block: Block) -> None:
        """Plan the moment at which some leave."""
        behaviour = self.plan.behaviour
        if behaviour.drop_share:
            seconds = behaviour.drop_at * self.plan.measured_s
            block.at_measure(seconds, self._send_away, block)

    def _send_away(self, block: Block) -> None:
        share = self.plan.behaviour.drop_share
        for client in self.clients(block):
            chance = random.Random(f"{self.plan.seed}/away/{client.number}").random()
            if client.state == OPEN and chance < share:
                client.leave()
                block.reactor.call_later(AWAY_S, self.reconnect, client)

    @override
    def draining(self, block: Block) -> None:
        """Compare all rosters at one moment, when everybody should have come to rest."""
        at_us = block.session.to_local(block.order.at_us)
        at_us += int(self.plan.limits.grace_s * 1e6)
        block.reactor.call_at(at_us, self._compare, block)

    def _compare(self, block: Block) -> None:
        shape = self.plan.shape
        if not block.order.all_present or block.order.phase != orders.DRAIN:
            return
        if shape.kind != "constant" and shape.of != "rate":
            return  # a moving number of members has no roster to compare with
        expected: defaultdict[int, set[str]] = defaultdict(set)
        strangers: Counter[int] = Counter()
        for number in range(block.order.subscribers):
            if self.owns(number):
                channel = self.subscriptions(number)[0]
                if self._knows(number):
                    expected[channel].add(self.user_of(number))
                else:
                    strangers[channel] += 1
        for client in self.clients(block):
            for channel in client.memberships:
                client.tally.counts["presence_checked"] += 1
                missing = sorted(expected[channel] - client.memory)
                extra = sorted(client.memory - expected[channel])
                if missing or len(extra) > strangers[channel]:
                    self._wrong(client, f"missing {missing[:3]}, extra {extra[:3]}")

    def _knows(self, subscriber: int) -> bool:
        """Whether this process can tell who a subscriber is.

        Not where an auth endpoint chooses the ids and another process asked it: of such subscribers
        a roster may hold one user each, whoever it is.
        """
        return self.session.auth is None or subscriber in self.session.users

    def _wrong(self, client: Client, text: str) -> None:
        client.tally.counts["presence_wrong"] += 1
        client.tally.error("presence: wrong roster", f"subscriber {client.number}: {text}")
