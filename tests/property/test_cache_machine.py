"""The cache against a model that forgets nothing: publishers, readers, and time that passes."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import pytest
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cachecast.channels.cache import ENTRY_OVERHEAD_BYTES, CacheStore
from cachecast.metrics import AppCounters

pytestmark = pytest.mark.slow

APPS = ("1", "2")
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
        ttls=st.tuples(st.sampled_from([1.0, 30.0, 1800.0]), st.sampled_from([0.5, 1800.0])),
        app_entries=st.integers(1, 6),
        node_entries=st.integers(1, 8),
        app_bytes=st.sampled_from([400, 1_200, 10**6]),
        node_bytes=st.sampled_from([700, 2_500, 10**6]),
    )
    def start(
        self,
        ttls: tuple[float, float],
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
        while self._is_over([app], app_entries, app_bytes):
            self._lose_oldest([app])
        while self._is_over(list(APPS), node_entries, node_bytes):
            self._lose_oldest(list(APPS))

        entry = self.store.put(app, channel, data, self.now)

        assert entry.deadline == self.now + self.ttls[app]

    def _of(self, apps: list[str]) -> dict[tuple[str, str], Published]:
        return {key: value for key, value in self.model.items() if key[0] in apps}

    def _is_over(self, apps: list[str], max_entries: int, max_bytes: int) -> bool:
        held = self._of(apps).values()
        return len(held) > max_entries or sum(value.size for value in held) > max_bytes

    def _lose_oldest(self, apps: list[str]) -> None:
        key, value = min(
            self._of(apps).items(), key=lambda item: (item[1].deadline > self.now, item[1].serial)
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
        for apps in ([APPS[0]], [APPS[1]], list(APPS)):
            held = self._of(apps).values()
            app = None if len(apps) == 2 else apps[0]
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
