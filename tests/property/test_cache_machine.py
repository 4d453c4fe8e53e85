"""The cache against a model that forgets nothing: publishers, readers, and time that passes."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import pytest
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cachecast.channels.cache import ENTRY_OVERHEAD_BYTES, CacheStore
from cachecast.metrics import AppCounters

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = pytest.mark.slow

APPS = ("1", "2", "3")
CHANNELS = tuple(f"cache-{name}" for name in "abcdefgh")


@dataclass
class Published:
    """What the model knows of one value."""

    frame: bytes
    deadline: float
    serial: int
    size: int


class CacheMachine(RuleBasedStateMachine):
    """Publish, replace, read, wait, evict late or early, and run into ceilings."""

    @initialize(
        ttls=st.tuples(*[st.sampled_from([0.5, 1.0, 30.0, 1800.0])] * 3),
        app_entries=st.integers(1, 6),
        node_entries=st.integers(1, 12),
        app_bytes=st.sampled_from([400, 1_200, 10**6]),
        node_bytes=st.sampled_from([700, 2_500, 4_000, 10**6]),
    )
    def start(
        self,
        ttls: tuple[float, float, float],
        app_entries: int,
        node_entries: int,
        app_bytes: int,
        node_bytes: int,
    ) -> None:
        self.now = 0.0
        self.serial = 0
        self.ttls = dict(zip(APPS, ttls, strict=True))
        self.limits = (app_entries, app_bytes, node_entries, node_bytes)
        self.counters = {app: AppCounters() for app in APPS}
        self.lost = dict.fromkeys(APPS, 0)
        self.freed = dict.fromkeys(APPS, 0)
        self.store = CacheStore(node_entries, node_bytes)
        for app in APPS:
            self.store.add_app(app, self.ttls[app], app_entries, app_bytes, self.counters[app])
        #: What the store holds, dead or alive.
        self.model: dict[tuple[str, str], Published] = {}

    # --- what publishers and readers do

    @rule(
        app=st.sampled_from(APPS), channel=st.sampled_from(CHANNELS), data=st.binary(max_size=500)
    )
    def publisher_publishes(self, app: str, channel: str, data: bytes) -> None:
        self.serial += 1
        size = len(data) + len(channel) + ENTRY_OVERHEAD_BYTES
        self.model[app, channel] = Published(data, self.now + self.ttls[app], self.serial, size)
        app_entries, app_bytes, node_entries, node_bytes = self.limits
        while self._n([app]) > app_entries or self._bytes([app]) > app_bytes:
            self._lose_oldest([app])
        while self._n(APPS) > node_entries:
            self._lose_at_the_nodes_ceiling(self._n, node_entries)
        while self._bytes(APPS) > node_bytes:
            self._lose_at_the_nodes_ceiling(self._bytes, node_bytes)

        entry = self.store.put(app, channel, data, self.now)

        assert entry.deadline == self.now + self.ttls[app]

    def _of(self, apps: Sequence[str]) -> dict[tuple[str, str], Published]:
        return {key: value for key, value in self.model.items() if key[0] in apps}

    def _n(self, apps: Sequence[str]) -> int:
        return len(self._of(apps))

    def _bytes(self, apps: Sequence[str]) -> int:
        return sum(value.size for value in self._of(apps).values())

    def _lose_at_the_nodes_ceiling(
        self, held: Callable[[Sequence[str]], int], ceiling: int
    ) -> None:
        """What has expired, then the oldest of who holds most."""
        if any(value.deadline <= self.now for value in self.model.values()):
            self._lose_oldest(APPS)
            return
        loser = max(APPS, key=lambda app: held([app]))
        holders = len({app for app, _ in self.model})
        assert held([loser]) > ceiling / holders, "an app within its share loses nothing"
        self._lose_oldest([loser])

    def _lose_oldest(self, apps: Sequence[str]) -> None:
        key, value = min(
            self._of(apps).items(),
            key=lambda item: (item[1].deadline, item[1].serial),
        )
        del self.model[key]
        if value.deadline > self.now:
            self.lost[key[0]] += 1
            event("lost at a ceiling")
        else:
            self.freed[key[0]] += 1
            event("dead at a ceiling")

    @rule(app=st.sampled_from(APPS), channel=st.sampled_from(CHANNELS))
    def late_joiner_reads(self, app: str, channel: str) -> None:
        self._check_read(app, channel, self.now)

    @rule(seconds=st.floats(0.001, 2_000.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: bool(self.model))
    @rule(data=st.data())
    def a_deadline_comes_to_the_instant(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.model)))
        deadline = self.model[key].deadline
        if deadline > self.now:
            self.now = deadline
            assert self.store.get(*key, self.now) is None

    # --- what the evictor does, whenever it gets to it

    @rule(limit=st.integers(0, 10))
    def evictor_runs(self, limit: int) -> None:
        dead = {key: value for key, value in self.model.items() if value.deadline <= self.now}

        freed, lag_s = self.store.evict(self.now, limit)

        assert freed == min(len(dead), limit)
        for app, channel in dead:
            if not self._holds(app, channel):
                self.freed[app] += 1
                del self.model[app, channel]
        assert lag_s <= max((self.now - value.deadline for value in dead.values()), default=0.0)

    def _holds(self, app: str, channel: str) -> bool:
        """Whether the entry is still there, looked at before its own deadline."""
        return self.store.get(app, channel, -inf) is not None

    @rule()
    def everything_dies_and_is_freed(self) -> None:
        self.now += 1_800.0
        self.store.evict(self.now, 10**6)
        for app, _ in self.model:
            self.freed[app] += 1
        self.model.clear()

        assert (self.store.n_entries(), self.store.n_bytes()) == (0, 0)
        assert self.store.next_deadline() == inf

    # --- what is always true

    def _check_read(self, app: str, channel: str, now: float) -> None:
        entry, expected = self.store.get(app, channel, now), self.model.get((app, channel))
        if expected is None or now >= expected.deadline:
            assert entry is None
        else:
            assert entry is not None
            assert (entry.frame, entry.deadline) == (expected.frame, expected.deadline)

    @invariant()
    def every_read_is_right_now_and_at_every_edge(self) -> None:
        if hasattr(self, "model"):
            for app in APPS:
                for channel in CHANNELS:
                    self._check_read(app, channel, self.now)

    @invariant()
    def accounting_is_exact(self) -> None:
        if not hasattr(self, "model"):
            return
        for apps in (*APPS, APPS):
            held = self._of(apps).values()
            app = None if apps is APPS else apps
            assert self.store.n_entries(app) == len(held)
            assert self.store.n_bytes(app) == sum(value.size for value in held)
        for app in APPS:
            assert self.counters[app].cache_capacity_evictions == self.lost[app]
            assert self.counters[app].cache_evictions == self.freed[app]

    @invariant()
    def the_evictor_is_told_when_to_wake(self) -> None:
        if hasattr(self, "model"):
            first = min((value.deadline for value in self.model.values()), default=inf)
            assert self.store.next_deadline() == first


TestCache = CacheMachine.TestCase
