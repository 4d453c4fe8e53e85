"""The last publication of each cache channel, until its deadline and not one instant longer.

The rule of this file: *expired* is a fact that every read checks for itself; *evicted* is an act
that follows when the evictor gets to it. So a late evictor, or a machine that slept, can hold
memory a little longer but can never make anyone see a dead value.

An app's values all live equally long, so write order is expiry order and the oldest is always the
next to go: no heap, no timers. What is kept is the very frame that went to the subscribers. Only
values that other nodes bring may be old when they come; those that expire before what is here
already stand in a heap of their own, which a node that is alone never has.

An app's entries lie on 64 shelves, for two reasons that were measured (2026-11, one core): growing
a dict of a million entries stops the loop for 96 ms, growing sixty-four of 16,000 for under 1 ms
each; and a plain dict costs 54 us for each eviction at 100,000 entries, an OrderedDict 1.1 us.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush, merge
from itertools import takewhile
from math import inf
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import msgspec

from cachecast.protocol.codec import JSON
from cachecast.protocol.deflate import WINDOWS
from cachecast.protocol.frames import payload_of
from cachecast.protocol.wire import JSON_WEBSOCKET, compressing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachecast.handover.state import ValueState
    from cachecast.metrics import AppCounters
    from cachecast.protocol.messages import Publication
    from cachecast.protocol.wire import Wire

__all__ = ["CACHED_WIRE", "ENTRY_OVERHEAD_BYTES", "PACKED_WIRE", "CacheEntry", "CacheStore"]

#: Wire whose frames are kept. Nearly everybody is on it; for others a value is encoded again when
#: they join, since a second copy would double what the memory of all values costs.
CACHED_WIRE: Final = JSON_WEBSOCKET

#: Wire whose frames are kept beside it, once somebody who is on it has joined: browsers compress.
PACKED_WIRE: Final = compressing(JSON_WEBSOCKET, next(iter(WINDOWS)))

N_SHELVES: Final = 64

#: Bytes that an entry costs besides its frame and its name: entry object, floats, dict and list
#: nodes. Counted so that a ceiling in bytes means memory also where values are small.
ENTRY_OVERHEAD_BYTES: Final = 320

#: Seconds by which a value may expire before older ones and stand behind them all the same: the
#: clocks of those who publish differ by as much. It is freed so much later; nobody is served it.
SLACK_S: Final = 0.25

_by_entries = attrgetter("n_entries")
_by_bytes = attrgetter("n_bytes")


class CacheEntry(msgspec.Struct, gc=False):
    """One cached value; not tracked by the garbage collector, which would walk a million of them.

    Only the store changes it.

    Attributes:
        frame: the frame on ``CACHED_WIRE``, the same object that live subscribers got.
        published_at: time when it was published, in the broker's seconds.
        deadline: time from which on it does not exist, in the broker's seconds.
        size: number of bytes booked for it.
        serial: number that grows with every put of the store; ``published_at`` may be equal for
            many.
        packed: the frame on ``PACKED_WIRE``; empty where nobody has asked for it.
    """

    frame: bytes
    published_at: float
    deadline: float
    size: int
    serial: int = 0
    packed: bytes = b""

    @property
    def message(self) -> bytes:
        """The JSON of the message, without what frames it."""
        return payload_of(self.frame)

    @property
    def publication(self) -> Publication:
        """What was published."""
        return JSON.read_event(self.message)

    def on(self, wire: Wire) -> bytes:
        """Its frame on a wire."""
        if wire.plain is CACHED_WIRE:
            return wire.pack(self.frame)
        return wire.event(self.publication)


class _Totals:
    """What all apps hold together."""

    __slots__ = ("n_bytes", "n_entries")

    def __init__(self) -> None:
        self.n_entries = 0
        self.n_bytes = 0


class _AppCache:
    """The values of one app.

    Which shelf has the oldest is remembered, by its serial: whatever happens elsewhere is younger.
    So asking an app for its next deadline looks at 64 shelves only after its oldest value has gone,
    and a thousand apps can be asked at every turn of the evictor.

    Attributes:
        early: heap of (deadline, serial, channel) of values that expire out of turn. Those that
            have been replaced stand in it until their deadline, or until they are half of it.
        latest: the latest deadline so far, in the broker's seconds.
    """

    __slots__ = (
        "_oldest_index",
        "_oldest_serial",
        "counters",
        "early",
        "latest",
        "max_bytes",
        "max_entries",
        "n_bytes",
        "n_entries",
        "shelves",
        "totals",
        "ttl_s",
    )

    def __init__(
        self,
        ttl_s: float,
        max_entries: int,
        max_bytes: int,
        counters: AppCounters,
        totals: _Totals,
    ) -> None:
        self.totals = totals
        self.ttl_s = ttl_s
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.counters = counters
        self.n_entries = 0
        self.n_bytes = 0
        self.shelves: list[OrderedDict[str, CacheEntry] | None] = [None] * N_SHELVES
        self._oldest_index = 0
        self._oldest_serial = -1
        self.early: list[tuple[float, int, str]] = []
        self.latest = -inf

    def oldest(self) -> CacheEntry | None:
        """The next entry to expire."""
        if not self.n_entries:
            return None
        entry = self._oldest_in_turn()
        early = self.first_early() if self.early else None
        return early if early is not None and early.deadline < entry.deadline else entry

    def first_early(self) -> CacheEntry | None:
        """The next to expire of those that do so out of turn."""
        while self.early:
            _, serial, channel = self.early[0]
            entry = self.find(channel)
            if entry is not None and entry.serial == serial:
                return entry
            heappop(self.early)
        return None

    def find(self, channel: str) -> CacheEntry | None:
        shelf = self.shelves[hash(channel) % N_SHELVES]
        return shelf.get(channel) if shelf else None

    def _oldest_in_turn(self) -> CacheEntry:
        shelf = self.shelves[self._oldest_index]
        if shelf:
            entry = next(iter(shelf.values()))
            if entry.serial == self._oldest_serial:
                return entry
        entry, index = min(
            (
                (next(iter(shelf.values())), index)
                for index, shelf in enumerate(self.shelves)
                if shelf
            ),
            key=lambda head: head[0].serial,
        )
        self._oldest_serial, self._oldest_index = entry.serial, index
        return entry

    def put(self, channel: str, entry: CacheEntry) -> None:
        self.drop(channel)
        index = hash(channel) % N_SHELVES
        shelf = self.shelves[index]
        if shelf is None:
            shelf = self.shelves[index] = OrderedDict()
        shelf[channel] = entry
        self.n_entries += 1
        self.n_bytes += entry.size
        self.totals.n_entries += 1
        self.totals.n_bytes += entry.size
        if entry.deadline >= self.latest:
            self.latest = entry.deadline
        elif entry.deadline < self.latest - SLACK_S:
            self._put_early(channel, entry)

    def _put_early(self, channel: str, entry: CacheEntry) -> None:
        heappush(self.early, (entry.deadline, entry.serial, channel))
        if len(self.early) > 2 * self.n_entries + N_SHELVES:
            self.early = [
                item
                for item in self.early
                if (found := self.find(item[2])) is not None and found.serial == item[1]
            ]
            heapify(self.early)

    def drop_first(self, shelf: OrderedDict[str, CacheEntry]) -> None:
        """Drop the oldest entry of a shelf."""
        _, entry = shelf.popitem(last=False)
        self._unbook(entry)

    def drop_oldest(self) -> None:
        """Drop the next entry to expire; there must be one."""
        entry = self.oldest()
        if self.early and entry is not None and entry.serial == self.early[0][1]:
            self.drop(self.early[0][2])
            return
        shelf = self.shelves[self._oldest_index]
        assert shelf is not None
        self.drop_first(shelf)

    def drop(self, channel: str) -> None:
        index = hash(channel) % N_SHELVES
        shelf = self.shelves[index]
        entry = shelf.pop(channel, None) if shelf else None
        if entry is not None:
            self._unbook(entry)

    def _unbook(self, entry: CacheEntry) -> None:
        self.n_entries -= 1
        self.n_bytes -= entry.size
        self.totals.n_entries -= 1
        self.totals.n_bytes -= entry.size
        if not self.n_entries:
            # A dict never shrinks by deleting; new ones give the tables back.
            self.shelves = [None] * N_SHELVES
            self.early = []


class CacheStore:
    """All cached values of a node, accounted to the byte.

    Only ``Broker`` writes to it, and only with what the server side published. It outlives every
    subscriber: it is no part of a channel.
    """

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._apps: dict[str, _AppCache] = {}
        self._totals = _Totals()
        self._serial = 0
        #: Time before which nothing has expired, in the broker's seconds.
        self._due = inf
        self._max_entries = max_entries
        self._max_bytes = max_bytes

    def add_app(
        self, app_id: str, ttl_s: float, max_entries: int, max_bytes: int, counters: AppCounters
    ) -> None:
        """Make room for an app that has none."""
        self._apps[app_id] = _AppCache(ttl_s, max_entries, max_bytes, counters, self._totals)

    def limit_app(
        self, app_id: str, ttl_s: float, max_entries: int, max_bytes: int, now: float, steps: int
    ) -> bool:
        """Go by other terms for an app; values that are here keep the life that they have.

        Never yields: what is above a lower ceiling is freed ``steps`` values at a time, and the
        ceilings hold once that is done. A publish in between frees no more than its own.

        Returns:
            Whether they hold; if not, the caller lets others run and asks again.
        """
        app = self._apps[app_id]
        app.ttl_s = ttl_s
        for _ in range(steps):
            if app.n_entries <= max_entries and app.n_bytes <= max_bytes:
                app.max_entries, app.max_bytes = max_entries, max_bytes
                return True
            _drop_oldest(app, now)
        return False

    def limit(self, max_entries: int, max_bytes: int, now: float, steps: int) -> bool:
        """Go by other ceilings of all apps together; see :meth:`limit_app`."""
        totals = self._totals
        for _ in range(steps):
            by = _by_entries if totals.n_entries > max_entries else _by_bytes
            if totals.n_entries <= max_entries and totals.n_bytes <= max_bytes:
                self._max_entries, self._max_bytes = max_entries, max_bytes
                return True
            _drop_oldest(self._find_expired(now) or max(self._apps.values(), key=by), now)
        return False

    def remove_app(self, app_id: str, steps: int) -> bool:
        """Free an app's values, ``steps`` of them at a time, and then the app. Never yields.

        Returns:
            Whether some are left; the caller lets others run and asks again.
        """
        app = self._apps[app_id]
        for _ in range(steps):
            if not app.n_entries:
                del self._apps[app_id]
                return False
            app.drop_oldest()
        return True

    def ttl_s(self, app_id: str) -> float:
        """How long the app's values live."""
        return self._apps[app_id].ttl_s

    def n_entries(self, app_id: str | None = None) -> int:
        """Entries held, expired ones not yet evicted included; of all apps if None."""
        return (self._totals if app_id is None else self._apps[app_id]).n_entries

    def n_bytes(self, app_id: str | None = None) -> int:
        """Bytes booked; of all apps if None."""
        return (self._totals if app_id is None else self._apps[app_id]).n_bytes

    @property
    def capacity_evictions(self) -> int:
        """Values that a ceiling ended before their time, since start."""
        return sum(app.counters.cache_capacity_evictions for app in self._apps.values())

    def put(
        self,
        app_id: str,
        channel: str,
        frame: bytes,
        now: float,
        published_at: float | None = None,
        deadline: float = inf,
    ) -> CacheEntry:
        """Store a value in place of the last one; its deadline starts anew.

        A value that has expired already takes the last one's place too, and is not kept.

        At a ceiling expired values go first, then the oldest of the app; at one of the node the
        oldest of the app that holds most. Most is always more than an equal share of what there
        is, so an app within its share loses nothing to another's flood. What is lost before its
        deadline is counted for the app that loses it.

        Never yields. O(1), at a ceiling of the node O(apps): 75 us for a thousand.

        Args:
            app_id: id of the app.
            channel: name of the channel whose value it is.
            frame: the value's frame on ``CACHED_WIRE``.
            now: the present, in the broker's seconds.
            published_at: time when it was published, in the broker's seconds; None: now.
            deadline: time from which on it does not exist, in the broker's seconds, even if the
                app's values live longer.
        """
        app = self._apps[app_id]
        size = len(frame) + len(channel) + ENTRY_OVERHEAD_BYTES
        self._serial += 1
        if published_at is None:
            published_at = now
        dies_at = published_at + app.ttl_s
        if dies_at < deadline:  # noqa: PLR1730 - min() takes as long as the rest of these lines
            deadline = dies_at
        entry = CacheEntry(frame, published_at, deadline, size, self._serial)
        if deadline <= now:
            app.drop(channel)
            return entry
        if deadline < self._due:  # noqa: PLR1730
            self._due = deadline
        app.put(channel, entry)
        while app.n_entries > app.max_entries or app.n_bytes > app.max_bytes:
            _drop_oldest(app, now)
        totals = self._totals
        while totals.n_entries > self._max_entries:
            _drop_oldest(self._find_expired(now) or max(self._apps.values(), key=_by_entries), now)
        while totals.n_bytes > self._max_bytes:
            _drop_oldest(self._find_expired(now) or max(self._apps.values(), key=_by_bytes), now)
        return entry

    def _find_expired(self, now: float) -> _AppCache | None:
        """An app whose oldest value has expired; asked at a ceiling, where mostly none has."""
        if now < self._due:
            return None
        heads = ((entry, app) for app in self._apps.values() if (entry := app.oldest()) is not None)
        entry, app = min(heads, key=lambda head: (head[0].deadline, head[0].serial))
        self._due = entry.deadline
        return app if entry.deadline <= now else None

    def get(self, app_id: str, channel: str, now: float) -> CacheEntry | None:
        """The channel's value, or None if there is none or its deadline has come."""
        app = self._apps[app_id]
        shelf = app.shelves[hash(channel) % N_SHELVES]
        entry = shelf.get(channel) if shelf else None
        if entry is None or now >= entry.deadline:
            return None
        return entry

    def packed(self, app_id: str, entry: CacheEntry) -> bytes:
        """An app's value on ``PACKED_WIRE``; kept for those who join next, if there is room for it.

        It goes with the value. Never yields.
        """
        if entry.packed:
            return entry.packed
        packed, app, totals = PACKED_WIRE.pack(entry.frame), self._apps[app_id], self._totals
        size = len(packed) if packed is not entry.frame else 0
        if app.n_bytes + size <= app.max_bytes and totals.n_bytes + size <= self._max_bytes:
            entry.packed = packed
            entry.size += size
            app.n_bytes += size
            totals.n_bytes += size
        return packed

    def forget(self, app_id: str, channel: str) -> None:
        """Drop the channel's value, if it has one. Never yields."""
        self._apps[app_id].drop(channel)

    def shelves(self, app_id: str) -> Iterator[list[tuple[str, CacheEntry]]]:
        """The app's values in parts, each as it is when it is asked for; expired ones are among it.

        For a million of them a part has 16,000, which takes a millisecond.
        """
        for index in range(N_SHELVES):
            app = self._apps.get(app_id)
            shelf = None if app is None else app.shelves[index]
            yield list(shelf.items()) if shelf else []

    @property
    def serial(self) -> int:
        """Number of the last value that was put."""
        return self._serial

    def export(self, app_id: str, after: int = 0) -> Iterator[ValueState]:
        """The app's values in the order in which they were put, for a successor to put again.

        What is put while this is gone through is left out: see :attr:`serial`, and ask again. Its
        beginning takes O(values), 20 ms for a million.

        Args:
            app_id: id of the app.
            after: number of the last value that the successor has; only newer ones are given.
        """
        shelves: list[list[tuple[int, str, CacheEntry]]] = []
        for shelf in filter(None, self._apps[app_id].shelves):
            newer = takewhile(lambda item: item[1].serial > after, reversed(shelf.items()))
            shelves.append([(entry.serial, name, entry) for name, entry in newer][::-1])
        for _, name, entry in merge(*shelves):
            yield name, entry.frame, entry.published_at, entry.deadline

    def next_deadline(self) -> float:
        """When the next entry expires; infinity if there is none. O(apps)."""
        heads = (app.oldest() for app in self._apps.values())
        return min((oldest.deadline for oldest in heads if oldest is not None), default=inf)

    def evict(self, now: float, limit: int) -> tuple[int, float]:
        """Free entries whose deadline has come.

        Args:
            now: the present, in the broker's seconds.
            limit: number of entries at most, so that the caller can let others run in between.

        Returns:
            Number of entries that were freed, and seconds by which the latest of them was past its
            deadline.
        """
        freed, lag_s = 0, 0.0
        for app in self._apps.values():
            oldest = app.oldest()
            if oldest is None or oldest.deadline > now:
                continue
            for shelf in app.shelves:
                while shelf and freed < limit:
                    deadline = next(iter(shelf.values())).deadline
                    if deadline > now:
                        break
                    app.drop_first(shelf)
                    app.counters.cache_evictions += 1
                    lag_s = max(lag_s, now - deadline)
                    freed += 1
            while freed < limit and (early := app.first_early()) and early.deadline <= now:
                app.drop(app.early[0][2])
                app.counters.cache_evictions += 1
                lag_s = max(lag_s, now - early.deadline)
                freed += 1
        return freed, lag_s


def _drop_oldest(app: _AppCache, now: float) -> None:
    entry = app.oldest()
    assert entry is not None
    app.drop_oldest()
    if entry.deadline > now:
        app.counters.cache_capacity_evictions += 1
    else:
        app.counters.cache_evictions += 1
