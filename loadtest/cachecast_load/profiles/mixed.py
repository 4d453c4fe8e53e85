"""mixed: several profiles in one run, each with a share of the subscribers."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from cachecast_load.crowd.profile import CLEAN, Defaults, Profile
from cachecast_load.plan.features import Feature
from cachecast_load.plan.model import Plan, PlanError
from cachecast_load.profiles.cache_join import CACHE_CLEAN, CacheJoin
from cachecast_load.profiles.churn import Churn
from cachecast_load.profiles.encrypted import Encrypted
from cachecast_load.profiles.fanout import Fanout
from cachecast_load.profiles.many_channels import ManyChannels
from cachecast_load.profiles.presence import Presence
from cachecast_load.profiles.private import Private
from cachecast_load.profiles.reconnect_storm import ReconnectStorm
from cachecast_load.profiles.slow_readers import SlowReaders

if TYPE_CHECKING:
    from cachecast_load.crowd.block import Block
    from cachecast_load.crowd.client import Client
    from cachecast_load.crowd.session import Session
    from cachecast_load.plan.orders import Order

_CHANNELS_EACH = 1 << 16
PARTS: dict[str, type[Profile]] = {
    part.name: part
    for part in (
        Fanout,
        ManyChannels,
        CacheJoin,
        Presence,
        Private,
        Encrypted,
        Churn,
        ReconnectStorm,
        SlowReaders,
    )
}


class Mixed(Profile):
    """A subscriber belongs to one part for good; each part numbers channels from its own base."""

    name = "mixed"
    summary = (
        "several profiles at once, by shares: [behaviour] mix = {fanout = 0.5, presence = 0.5}"
    )
    defaults: ClassVar[Defaults] = {
        "load": {"subscribers": 600, "channels": 20, "rate": 100.0},
        "behaviour": {
            "mix": (("fanout", 0.4), ("cache-join", 0.2), ("presence", 0.2), ("churn", 0.2)),
            "joins_per_s": 20.0,
            "churn_per_s": 20.0,
        },
    }
    slos = tuple(dict.fromkeys((*CLEAN, *CACHE_CLEAN, "presence.wrong == 0")))

    @classmethod
    @override
    def fit(cls, plan: Plan) -> Plan:
        """Refuse a mix that cannot be run."""
        if not plan.behaviour.mix:
            raise PlanError("behaviour.mix names no profile")
        for name, share in plan.behaviour.mix:
            if name not in PARTS:
                raise PlanError(f"behaviour.mix: {name!r} is not one of {', '.join(PARTS)}")
            if share <= 0:
                raise PlanError(f"behaviour.mix: the share of {name} must be above 0")
        if plan.load.channels > _CHANNELS_EACH // 2:
            raise PlanError(f"mixed allows at most {_CHANNELS_EACH // 2} channels for each part")
        return super().fit(plan)

    @classmethod
    @override
    def features(cls, plan: Plan) -> dict[str, set[Feature]]:
        """What all parts meet."""
        found: dict[str, set[Feature]] = {}
        for name, _ in plan.behaviour.mix:
            for kind, features in PARTS[name].features(plan).items():
                found[kind] = found.get(kind, set()) | features
        return found

    @classmethod
    @override
    def without(cls, plan: Plan, kind: str, feature: Feature) -> tuple[Plan, str] | None:
        """Leave out the parts that have no point then; the others share the subscribers."""
        stay, said, gone = [], [], []
        for name, share in plan.behaviour.mix:
            fitted: tuple[Plan, str] | None = (plan, "")
            if feature in PARTS[name].features(plan).get(kind, ()):
                fitted = PARTS[name].without(plan, kind, feature)
            if fitted is None:
                gone.append(name)
                continue
            stay.append((name, share))
            plan, consequence = fitted
            said += [consequence] if consequence else []
        if not stay:
            return None
        said += [f"left out: {', '.join(gone)}"] if gone else []
        behaviour = dataclasses.replace(plan.behaviour, mix=tuple(stay))
        return dataclasses.replace(plan, behaviour=behaviour), "; ".join(said)

    def __init__(self, plan: Plan, session: Session, base: int = 0) -> None:
        super().__init__(plan, session, base)
        self.parts: list[Profile] = []
        self._shares = [share for _, share in plan.behaviour.mix]
        for index, (name, _) in enumerate(plan.behaviour.mix):
            part = PARTS[name](plan, session, index * _CHANNELS_EACH)
            part.owns = self._owner_test(index)
            self.parts.append(part)
        self._part_index = lru_cache(maxsize=None)(self._choose_part)

    def _owner_test(self, index: int) -> Callable[[int], bool]:
        return lambda subscriber: self._part_index(subscriber) == index

    def _choose_part(self, subscriber: int) -> int:
        rng = random.Random(f"{self.plan.seed}/mix/{subscriber}")
        return rng.choices(range(len(self.parts)), self._shares)[0]

    def part_of(self, channel: int) -> Profile:
        """Return the part a channel belongs to."""
        return self.parts[channel // _CHANNELS_EACH]

    @override
    def channel_name(self, channel: int) -> str:
        """Return a channel's name; its part knows the kind."""
        return self.part_of(channel).channel_name(channel)

    @override
    def channel_prefix(self, channel: int) -> str:
        """Return the kind of a channel."""
        return self.part_of(channel).channel_prefix(channel)

    @override
    def published(self) -> list[int]:
        """All parts' channels."""
        return [channel for part in self.parts for channel in part.published()]

    @override
    def primed(self) -> list[int]:
        """All parts' primed channels."""
        return [channel for part in self.parts for channel in part.primed()]

    @override
    def encode(self, channel: int, payload: bytes) -> str:
        """Encode as the channel's part does."""
        return self.part_of(channel).encode(channel, payload)

    @override
    def expected_ready(self, subscribers: int) -> int:
        """Sum over the parts."""
        owned = [0] * len(self.parts)
        for number in range(subscribers):
            owned[self._part_index(number)] += 1
        return sum(
            part.expected_ready(count) for part, count in zip(self.parts, owned, strict=True)
        )

    @override
    def is_slow(self, subscriber: int) -> bool:
        """Only members of a slow part are slow."""
        return self.parts[self._part_index(subscriber)].is_slow(subscriber)

    @override
    def added(self, client: Client) -> None:
        """Hand the client to its part for good."""
        client.profile = self.parts[self._part_index(client.number)]
        client.profile.added(client)

    @override
    def removed(self, client: Client) -> None:
        """Tell its part."""
        client.profile.removed(client)

    @override
    def ordered(self, block: Block, order: Order) -> None:
        """Tell every part."""
        for part in self.parts:
            part.ordered(block, order)

    @override
    def started(self, block: Block) -> None:
        """Tell every part."""
        for part in self.parts:
            part.started(block)

    @override
    def draining(self, block: Block) -> None:
        """Tell every part."""
        for part in self.parts:
            part.draining(block)

    @override
    def finishing(self, block: Block) -> None:
        """Tell every part."""
        for part in self.parts:
            part.finishing(block)
