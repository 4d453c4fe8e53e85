"""cache-expiry: just before the deadline everybody gets the value, just after it a miss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from cachecast_load.crowd.client import OPEN
from cachecast_load.crowd.profile import Defaults, Profile
from cachecast_load.plan.model import Plan, PlanError, validate
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
        "load": {"subscribers": 200, "duration_s": 0.0},
        "behaviour": {"edge_s": 0.5},
    }
    slos = (*CACHE_CLEAN, "cache.hits > 0", "cache.misses > 0")

    unused: ClassVar[Mapping[str, str]] = {
        "rate": "each value is published once",
        "channels": "each pair of subscribers has one of its own",
        "channels_per_subscriber": "each subscriber waits for one value",
    }

    @classmethod
    @override
    def fit(cls, plan: Plan) -> Plan:
        """Measure for as long as the TTL takes; refuse what says otherwise, or takes too long."""
        behaviour = plan.behaviour
        if plan.shape.kind != "constant":
            raise PlanError(
                f"cache-expiry has no shape ({plan.shape.kind}): each value is published once, and"
                " the deadline says when subscribers come"
            )
        if not behaviour.ttl_s:
            return plan  # the target has not been asked yet
        if behaviour.ttl_s <= behaviour.edge_s:
            raise PlanError("behaviour.edge_s must be shorter than the TTL")
        needed_s = behaviour.ttl_s + behaviour.edge_s + _SPREAD_S + _AFTER_S
        given_s = plan.load.duration_s
        if 0 < given_s < needed_s:
            raise PlanError(
                f"a duration of {given_s:g} s ends before the deadline: a value lives for"
                f" {behaviour.ttl_s:g} s there, so cache-expiry measures for {needed_s:g} s; leave"
                " --duration (load.duration_s) out, or give the target a shorter lifetime"
            )
        fitted = dataclasses.replace(
            plan, load=dataclasses.replace(plan.load, duration_s=max(needed_s, given_s))
        )
        validate(fitted)
        return fitted

    @classmethod
    @override
    def explain(cls, plan: Plan) -> list[str]:
        """Say how long it takes, where nobody has."""
        ttl_s, duration_s = plan.behaviour.ttl_s, plan.load.duration_s
        return [f"measures for {duration_s:g} s, for a value lives for {ttl_s:g} s there"]

    @override
    def channel_count(self) -> int:
        """One channel for each pair."""
        return max(1, self.plan.load.subscribers // 2)

    @override
    def published(self) -> list[int]:
        """Nothing on schedule: each channel is published once, by the script."""
        return []

    @override
    def script(self) -> list[tuple[float, int]]:
        """Publish each channel once."""
        return [(self._at_s(k), self.base + k) for k in range(self.channel_count())]

    def _at_s(self, k: int) -> float:
        return 0.2 + _SPREAD_S * k / self.channel_count()

    @override
    def is_ready(self, client: Client) -> bool:
        """Connected is enough."""
        return client.state == OPEN

    @override
    def welcomed(self, client: Client) -> None:
        """Wait: the time to subscribe comes later."""

    @override
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

    @override
    def finishing(self, block: Block) -> None:
        """Who still waits for an answer will not get one."""
        for client in self.clients(block):
            for channel in client.asks:
                client.tally.counts["cache_unanswered"] += 1
                name = self.channel_name(channel)
                client.tally.error("cache: neither value nor cache_miss", name)
