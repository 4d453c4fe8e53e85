"""cache-join: late joiners. How soon does each get the cached value, and is it the newest?"""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from cachecast_load.crowd.client import IDLE
from cachecast_load.crowd.profile import CLEAN, Defaults, Profile
from cachecast_load.net.reactor import now_us
from cachecast_load.plan.features import Feature

if TYPE_CHECKING:
    from cachecast_load.crowd.block import Block
    from cachecast_load.crowd.client import Client
    from cachecast_load.plan.model import Plan

CACHE_CLEAN = (
    *CLEAN,
    "cache.stale == 0",
    "cache.false_misses == 0",
    "cache.expired_served == 0",
    "cache.unanswered == 0",
)


class CacheJoin(Profile):
    """Joiners arrive on a fixed schedule, connect, subscribe, take the value, stay a moment and go.

    `subscribers` is the number of places: an arrival that finds none free is skipped, counted,
    and makes the run invalid. `miss_share` of the joins go to channels that nothing was ever
    published to.
    """

    name = "cache-join"
    summary = "late joiners on cache channels: time to the value, hits, misses, newest or not"
    prefix = "cache-"
    defaults: ClassVar[Defaults] = {
        "load": {"subscribers": 300, "channels": 100, "rate": 50.0},
        "behaviour": {"joins_per_s": 50.0, "hold_s": 2.0, "miss_share": 0.1},
    }
    slos = (*CACHE_CLEAN, "cache.hits > 0")

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]  # passed on as they are
        self._free: list[Client] = []
        self._intended: dict[int, int] = {}
        self._rng: random.Random | None = None

    @classmethod
    @override
    def without(cls, plan: Plan, kind: str, feature: Feature) -> tuple[Plan, str] | None:
        """Values can be joined where misses are not told."""
        if feature is not Feature.CACHE_MISS:
            return super().without(plan, kind, feature)
        behaviour = dataclasses.replace(plan.behaviour, miss_share=0.0)
        return dataclasses.replace(plan, behaviour=behaviour), "nobody joins an empty channel"

    @override
    def primed(self) -> list[int]:
        """Every channel that is published to has a value before the first joiner comes."""
        return self.published()

    def empty_channels(self) -> list[int]:
        """Return the channels that stay empty."""
        count = self.channel_count()
        return [self.base + count + step for step in range(max(1, count // 10))]

    @override
    def expected_ready(self, subscribers: int) -> int:
        """Nobody is there at the beginning."""
        del subscribers
        return 0

    @override
    def added(self, client: Client) -> None:
        """A place that is free."""
        self._free.append(client)

    @override
    def removed(self, client: Client) -> None:
        """The place is gone."""
        if client in self._free:
            self._free.remove(client)

    @override
    def started(self, block: Block) -> None:
        """Let joiners arrive."""
        self._rng = random.Random(f"{self.plan.seed}/joins/{block.index}")
        self._arrivals = block.every(self.plan.behaviour.joins_per_s, self._arrive)

    @override
    def draining(self, block: Block) -> None:
        """Nobody new comes."""
        del block
        self._arrivals.stop()

    def _arrive(self, intended_us: int) -> None:
        if not self._free:
            self.session.recorder.counts["join_skipped"] += 1
            return
        client = self._free.pop()
        self._intended[client.number] = intended_us
        client.memory = self._choose()
        client.connect()

    def _choose(self) -> int:
        assert self._rng is not None
        if self._rng.random() < self.plan.behaviour.miss_share:
            return self._rng.choice(self.empty_channels())
        channels = self.published()
        if self.plan.load.distribution == "zipf":
            return self._rng.choices(channels, self._zipf)[0]
        return self._rng.choice(channels)

    @override
    def welcomed(self, client: Client) -> None:
        """Subscribe to the one channel this joiner came for."""
        self.authorize(client, client.memory, self.channel_data(client))
        timeout_s = self.plan.limits.connect_timeout_s
        client.block.reactor.call_later(timeout_s, self._give_up, client, client.socket_id)

    @override
    def joined(self, client: Client, channel: int, seq: int) -> None:
        """The value (or the miss) is there: note the time since the arrival was due."""
        del channel, seq
        intended_us = self._intended.pop(client.number, None)
        if intended_us is not None:
            client.tally.histograms["join"].record(now_us() - intended_us)
        hold_s = self.plan.behaviour.hold_s
        client.block.reactor.call_later(hold_s, self._go, client, client.socket_id)

    def _go(self, client: Client, socket_id: str) -> None:
        if client.state != IDLE and client.socket_id == socket_id:
            client.leave()
            self._free.append(client)

    def _give_up(self, client: Client, socket_id: str) -> None:
        if client.socket_id == socket_id and client.number in self._intended:
            self._unanswered(client)
            self._go(client, socket_id)

    def _unanswered(self, client: Client) -> None:
        self._intended.pop(client.number, None)
        client.tally.counts["cache_unanswered"] += 1
        name = self.channel_name(client.memory)
        client.tally.error("cache: neither value nor cache_miss", name)

    @override
    def closed(self, client: Client, code: int, *, was_open: bool) -> None:
        """The joiner is gone; its place is free again."""
        del code, was_open
        self._intended.pop(client.number, None)
        if not client.block.is_finished:
            self._free.append(client)

    @override
    def finishing(self, block: Block) -> None:
        """Who still waits for a value will not get one."""
        for client in self.clients(block):
            if client.asks and client.number in self._intended:
                self._unanswered(client)
