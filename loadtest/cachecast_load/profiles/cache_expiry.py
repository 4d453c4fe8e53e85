"""cache-expiry: just before the deadline everybody gets the value, just after it a miss."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from cachecast_load.crowd.client import OPEN
from cachecast_load.crowd.profile import Defaults, Profile
from cachecast_load.plan.model import Plan, PlanError
from cachecast_load.profiles.cache_join import CACHE_CLEAN

if TYPE_CHECKING:
    from cachecast_load.crowd.block import Block
    from cachecast_load.crowd.client import Client

_SPREAD_S = 1.0
_AFTER_S = 1.0


class CacheExpiry(Profile):
    """Pairs of clients on channels of their own, one for each side of the deadline.

    Channel k is published once, `k / channels` of a second after measuring began. Its pair is
    connected long before and subscribes at that time plus the TTL, less and plus a distance that
    grows from almost nothing to `edge_s` over the channels. The ledger judges by the times that
    were measured: a miss counts as false only if the publish cannot have been older than the TTL,
    a value as expired only if it must have been.
    """

    name = "cache-expiry"
    summary = "subscribe shortly before and after the cache deadline (needs a short TTL, or time)"
    prefix = "cache-"
    defaults: ClassVar[Defaults] = {
        "load": {"subscribers": 200, "rate": 1.0},
        "behaviour": {"edge_s": 0.5},
    }
    slos = (*CACHE_CLEAN, "cache.hits > 0", "cache.misses > 0")

    @classmethod
    def fit(cls, plan: Plan) -> Plan:
        """Measure for as long as the TTL takes, and refuse one that is beyond the time ceiling."""
        behaviour = plan.behaviour
        if not behaviour.ttl_s:
            return plan  # the target has not been asked yet
        needed_s = behaviour.ttl_s + behaviour.edge_s + _SPREAD_S + _AFTER_S
        if needed_s > plan.limits.max_duration_s:
            raise PlanError(f"a TTL of {behaviour.ttl_s:g} s is beyond max_duration_s")
        if behaviour.ttl_s <= behaviour.edge_s:
            raise PlanError("behaviour.edge_s must be shorter than the TTL")
        return dataclasses.replace(plan, load=dataclasses.replace(plan.load, duration_s=needed_s))

    def channel_count(self) -> int:
        """One channel for each pair."""
        return max(1, self.plan.load.subscribers // 2)

    def published(self) -> list[int]:
        """Nothing on schedule: each channel is published once, by the script."""
        return []

    def script(self) -> list[tuple[float, int]]:
        """Publish each channel once."""
        return [(self._at_s(k), self.base + k) for k in range(self.channel_count())]

    def _at_s(self, k: int) -> float:
        return 0.2 + _SPREAD_S * k / self.channel_count()

    def is_ready(self, client: Client) -> bool:
        """Connected is enough."""
        return client.state == OPEN

    def welcomed(self, client: Client) -> None:
        """Wait: the time to subscribe comes later."""

    def started(self, block: Block) -> None:
        """Plan every subscription."""
        behaviour, count = self.plan.behaviour, self.channel_count()
        for client in self.clients(block):
            k, is_late = divmod(client.number, 2)
            if k >= count:
                continue
            distance_s = behaviour.edge_s * (k + 1) / count
            at_s = self._at_s(k) + behaviour.ttl_s + (distance_s if is_late else -distance_s)
            block.at_measure(at_s, self._subscribe, client, self.base + k)

    def _subscribe(self, client: Client, channel: int) -> None:
        if client.state == OPEN:
            self.authorize(client, channel, self.channel_data(client))

    def finishing(self, block: Block) -> None:
        """Who still waits for an answer will not get one."""
        for client in self.clients(block):
            for channel in client.asks:
                client.tally.counts["cache_unanswered"] += 1
                name = self.channel_name(channel)
                client.tally.error("cache: neither value nor cache_miss", name)
