"""The cache: exact in time, exact in bytes."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachecast.channels.cache import (
    CACHED_WIRE,
    ENTRY_OVERHEAD_BYTES,
    N_SHELVES,
    PACKED_WIRE,
    SLACK_S,
    CacheStore,
)
from cachecast.metrics import AppCounters
from cachecast.protocol.messages import Publication
from cachecast.protocol.wire import JSON_WEBSOCKET, MSGPACK_WEBSOCKET, compressing

TTL_S = 1800.0


def _store(
    node_entries: int = 100_000, node_bytes: int = 10**9, **app: Any
) -> tuple[CacheStore, AppCounters]:
    store, counters = CacheStore(node_entries, node_bytes), AppCounters()
    limits = {"ttl_s": TTL_S, "max_entries": 1_000, "max_bytes": 1_000_000} | app
    store.add_app("1", counters=counters, **limits)
    return store, counters


def _size(frame: bytes, channel: str) -> int:
    return len(frame) + len(channel) + ENTRY_OVERHEAD_BYTES


@pytest.mark.parametrize("start", [0.0, 0.1, 12_345.678, 3e7])
def test_a_value_lives_for_thirty_minutes_and_not_an_instant_longer(start: float) -> None:
    """1799.999 s is a hit, 1800.000 s a miss, with no evictor anywhere."""
    store, _ = _store()
    store.put("1", "cache-a", b"frame", start)

    assert store.get("1", "cache-a", start + 1799.999) is not None
    assert store.get("1", "cache-a", start + TTL_S) is None
    assert store.n_entries() == 1


def test_a_value_is_the_very_frame_that_subscribers_got() -> None:
    """The same object: it costs no second copy."""
    store, _ = _store()
    frame = bytes(1_000)

    entry = store.put("1", "cache-a", frame, 5.0)

    assert store.get("1", "cache-a", 5.0) is entry
    assert entry.frame is frame
    assert (entry.published_at, entry.deadline) == (5.0, 5.0 + TTL_S)


def test_a_value_can_be_had_on_every_wire() -> None:
    """One frame is kept; the others, and what it says, are made from it."""
    store, _ = _store()
    publication = Publication("tick", "cache-a", '{"x":1}')
    frame = CACHED_WIRE.event(publication)

    entry = store.put("1", "cache-a", frame, 5.0)

    assert entry.on(CACHED_WIRE) is frame
    assert entry.on(MSGPACK_WEBSOCKET) == MSGPACK_WEBSOCKET.event(publication)
    assert entry.publication == publication
    assert entry.message == rb'{"event":"tick","channel":"cache-a","data":"{\"x\":1}"}'


def test_a_new_value_replaces_the_old_one_and_lives_for_thirty_minutes_again() -> None:
    """The deadline is always publish time plus the lifetime."""
    store, _ = _store()
    store.put("1", "cache-a", b"old", 0.0)
    store.put("1", "cache-a", b"newer", 1_000.0)

    entry = store.get("1", "cache-a", 2_799.0)

    assert entry is not None
    assert entry.frame == b"newer"
    assert store.get("1", "cache-a", 2_800.0) is None
    assert store.n_entries() == 1
    assert store.n_bytes() == _size(b"newer", "cache-a")


def test_apps_do_not_see_each_other() -> None:
    """The same channel name in two apps is two channels."""
    store, _ = _store()
    store.add_app("2", 10.0, 10, 10_000, AppCounters())
    store.put("1", "cache-a", b"one", 0.0)

    assert store.get("2", "cache-a", 0.0) is None
    assert (store.n_entries("1"), store.n_entries("2"), store.n_entries()) == (1, 0, 1)
    assert (store.ttl_s("1"), store.ttl_s("2")) == (TTL_S, 10.0)
    assert store.evict(TTL_S, 10) == (1, 0.0)


def test_an_unknown_channel_is_a_miss() -> None:
    """On a shelf that is empty and on one that is not."""
    store, _ = _store()
    assert store.get("1", "cache-a", 0.0) is None
    for number in range(1_000):
        store.put("1", f"cache-{number}", b"", 0.0)

    assert store.get("1", "cache-none", 0.0) is None


def test_the_evictor_frees_what_is_dead_and_nothing_else() -> None:
    """In bounded steps, and says how late it was."""
    store, counters = _store()
    for number in range(200):
        store.put("1", f"cache-{number}", b"frame", number * 0.125)

    assert store.evict(1_799.0, 1_000) == (0, 0.0)
    assert store.evict(1_805.0, 1_000) == (41, 5.0)
    assert store.get("1", "cache-40", 1_700.0) is None
    assert store.get("1", "cache-41", 1_805.0) is not None
    first, lag_s = store.evict(1_825.0, 109)
    assert (first, store.n_entries()) == (109, 50)
    assert 0.125 < lag_s <= 25 - 41 * 0.125
    assert store.evict(1_825.0, 1_000)[0] == 50
    assert (store.n_entries(), store.n_bytes(), store.n_bytes("1")) == (0, 0, 0)
    assert (counters.cache_evictions, counters.cache_capacity_evictions) == (200, 0)


def test_the_next_deadline_is_that_of_the_oldest() -> None:
    """Over all shelves and apps; infinity when there is nothing."""
    store, _ = _store()
    store.add_app("2", 10.0, 10, 10_000, AppCounters())
    assert store.next_deadline() == inf
    store.put("1", "cache-a", b"", 0.0)
    assert store.next_deadline() == TTL_S
    store.put("2", "cache-a", b"", 100.0)
    assert store.next_deadline() == 110.0
    store.put("2", "cache-a", b"", 105.0)

    assert store.next_deadline() == 115.0


@pytest.mark.parametrize("limits", [{"max_entries": 3}, {"max_bytes": 3 * _size(b"xx", "cache-0")}])
@pytest.mark.parametrize("is_node", [False, True], ids=["of the app", "of the node"])
def test_at_a_ceiling_the_oldest_value_goes_and_is_counted(
    limits: dict[str, int], is_node: bool
) -> None:
    """Entries or bytes, of the app or of the node (protocol.md 9.5)."""
    store, counters = _store(
        **{key.replace("max", "node"): value for key, value in limits.items()}
        if is_node
        else limits
    )
    for number in range(3):
        store.put("1", f"cache-{number}", b"xx", float(number))
    assert counters.cache_capacity_evictions == 0

    store.put("1", "cache-3", b"xx", 3.0)

    assert [store.get("1", f"cache-{number}", 3.0) is None for number in range(4)] == [
        True,
        False,
        False,
        False,
    ]
    assert (counters.cache_capacity_evictions, counters.cache_evictions) == (1, 0)
    assert store.capacity_evictions == 1


def test_values_of_one_instant_go_in_the_order_of_their_publishing() -> None:
    """A batch is published at one reading of the clock: its last value must stay."""
    store, _ = _store(node_entries=1)

    for number in range(200):
        store.put("1", f"cache-{number}", b"", 7.0)

        assert store.get("1", f"cache-{number}", 7.0) is not None


def test_a_republished_value_is_young_again() -> None:
    """It is not the first to go any more."""
    store, _ = _store(node_entries=2)
    for now, channel in enumerate(["cache-a", "cache-b", "cache-a", "cache-c"]):
        store.put("1", channel, b"", float(now))

    assert store.get("1", "cache-a", 3.0) is not None
    assert store.get("1", "cache-b", 3.0) is None


def test_a_dead_value_goes_before_a_living_one_and_is_no_loss() -> None:
    """With two lifetimes on a node, the oldest need not be the first to die."""
    store, lasting = _store(node_entries=2)
    brief = AppCounters()
    store.add_app("2", 1.0, 10, 10_000, brief)
    store.put("1", "cache-a", b"", 0.0)
    store.put("2", "cache-a", b"", 1.0)

    store.put("1", "cache-b", b"", 2.0)

    assert store.get("1", "cache-a", 2.0) is not None
    assert (brief.cache_evictions, brief.cache_capacity_evictions) == (1, 0)
    assert (lasting.cache_evictions, lasting.cache_capacity_evictions) == (0, 0)


def test_a_value_larger_than_the_ceiling_is_not_kept() -> None:
    """And takes everything with it, since all of it is older."""
    store, counters = _store(max_bytes=1_000)
    store.put("1", "cache-a", b"small", 0.0)

    store.put("1", "cache-b", bytes(2_000), 1.0)

    assert (store.n_entries(), store.n_bytes()) == (0, 0)
    assert counters.cache_capacity_evictions == 2


def test_at_the_nodes_ceiling_who_holds_most_loses_its_oldest() -> None:
    """One app's flood costs another nothing, however old its values are."""
    store, first = _store(node_entries=4)
    second = AppCounters()
    store.add_app("2", TTL_S, 10, 10_000, second)
    for channel in ("cache-a", "cache-b"):
        store.put("1", channel, b"", 0.0)

    for number in range(20):
        store.put("2", f"cache-{number}", b"", 1.0)

    assert store.n_entries("1") == 2
    assert (first.cache_capacity_evictions, second.cache_capacity_evictions) == (0, 18)
    assert store.get("2", "cache-19", 1.0) is not None
    assert store.get("2", "cache-17", 1.0) is None


def test_who_held_all_there_is_makes_room_for_who_comes_later() -> None:
    """In bytes as in entries; until both have an equal share."""
    store, first = _store(node_bytes=10 * (ENTRY_OVERHEAD_BYTES + 100))
    second = AppCounters()
    store.add_app("2", TTL_S, 100, 10**6, second)
    for number in range(10):
        store.put("1", f"cache-{number}", bytes(93), 0.0)
    for number in range(10):
        store.put("2", f"cache-{number}", bytes(93), 1.0)

    assert (store.n_entries("1"), store.n_entries("2")) == (5, 5)
    assert (first.cache_capacity_evictions, second.cache_capacity_evictions) == (5, 5)


def test_at_the_nodes_ceiling_the_expired_goes_first_whoever_holds_it() -> None:
    store, first = _store(node_entries=3)
    second = AppCounters()
    store.add_app("2", TTL_S, 10, 10_000, second)
    store.put("1", "cache-a", b"", 0.0)
    for number in range(3):
        store.put("2", f"cache-{number}", b"", TTL_S)

    assert store.n_entries("1") == 0
    assert (first.cache_evictions, first.cache_capacity_evictions) == (1, 0)
    assert second.cache_capacity_evictions == 0


def test_an_empty_app_gives_its_tables_back() -> None:
    """A dict never shrinks by deleting."""
    store, _ = _store(max_entries=100_000, max_bytes=10**9)
    for number in range(N_SHELVES * 4):
        store.put("1", f"cache-{number}", b"", 0.0)

    store.evict(TTL_S, 10_000)

    assert store._apps["1"].shelves == [None] * N_SHELVES


# --- values that other nodes bring


def _short_store(max_entries: int = 1_000) -> tuple[CacheStore, AppCounters]:
    return _store(node_entries=max_entries, ttl_s=100.0)


def test_a_value_lives_from_its_publication_on_and_until_the_lower_deadline() -> None:
    store, _ = _short_store()
    assert store.put("1", "a", b"x", 50.0, 10.0).deadline == 110.0
    assert store.put("1", "a", b"x", 50.0, 10.0, 60.0).deadline == 60.0
    assert store.put("1", "a", b"x", 50.0, None, 60.0).published_at == 50.0
    assert store.get("1", "a", 59.9) is not None
    assert store.get("1", "a", 60.0) is None


def test_one_that_is_dead_already_leaves_nothing_in_its_place() -> None:
    store, _ = _short_store()
    store.put("1", "a", b"x", 0.0)
    assert store.put("1", "a", b"y", 50.0, 10.0, 50.0).deadline == 50.0
    assert (store.n_entries(), store.n_bytes()) == (0, 0)


def test_a_value_that_is_forgotten_is_gone_and_so_is_its_memory() -> None:
    store, _ = _short_store()
    store.put("1", "a", b"x", 0.0)
    for _ in range(2):
        store.forget("1", "a")
    assert store.get("1", "a", 1.0) is None
    assert (store.n_entries("1"), store.n_bytes()) == (0, 0)


def test_old_values_among_new_ones_are_freed_at_their_own_deadlines() -> None:
    store, counters = _short_store()
    for n in range(100):
        store.put("1", f"new-{n}", b"x", float(n) / 100)
        store.put("1", f"old-{n}", b"x", 1.0, -90.0 + n / 10)
    assert store.next_deadline() == pytest.approx(10.0)
    assert store.evict(10.05, 500) == (1, pytest.approx(0.05))
    assert store.next_deadline() == pytest.approx(10.1)
    freed, lag_s = store.evict(15.0, 20)
    assert (freed, lag_s > 4) == (20, True)
    assert store.evict(90.0, 500)[0] == 79
    assert store.n_entries() == 100
    assert store.evict(100.995, 500)[0] == 100
    assert counters.cache_evictions == 200
    assert counters.cache_capacity_evictions == 0


def test_what_has_been_replaced_is_not_freed_by_its_predecessors_deadline() -> None:
    store, _ = _short_store()
    store.put("1", "b", b"x", 0.0)
    store.put("1", "a", b"x", 1.0, -50.0)
    store.put("1", "a", b"y", 2.0)
    assert store.evict(60.0, 500) == (0, 0.0)
    entry = store.get("1", "a", 60.0)
    assert entry is not None
    assert entry.frame == b"y"
    assert store.next_deadline() == 100.0


def test_replaced_ones_do_not_pile_up_until_their_deadline() -> None:
    store, _ = _short_store()
    store.put("1", "b", b"x", 0.0)
    for n in range(10_000):
        store.put("1", "a", b"x", 1.0, -50.0 + n / 1_000)
    assert len(store._apps["1"].early) < 200


def test_at_a_ceiling_whoever_expires_first_goes_first() -> None:
    store, counters = _short_store(max_entries=3)
    for n in range(3):
        store.put("1", f"new-{n}", b"x", float(n))
    store.put("1", "old", b"x", 3.0, -50.0)
    store.put("1", "newest", b"x", 4.0)

    assert store.get("1", "old", 4.0) is None
    assert store.get("1", "newest", 4.0) is not None
    assert store.n_entries() == 3
    assert counters.cache_capacity_evictions == 2


@given(st.data())
def test_in_any_order_nothing_dead_is_kept_and_nothing_alive_is_lost(data: st.DataObject) -> None:
    """Beside a dict that is searched whole."""
    store, _ = _short_store()
    alive: dict[str, float] = {}
    now = 0.0
    for _ in range(data.draw(st.integers(1, 60))):
        now += data.draw(st.sampled_from([0.0, 0.5, 10.0, 70.0]))
        channel = data.draw(st.sampled_from("abcdefgh"))
        match data.draw(st.sampled_from(["put", "old", "forget", "evict"])):
            case "put":
                alive[channel] = store.put("1", channel, b"x", now).deadline
            case "old":
                at = now - data.draw(st.floats(0, 120))
                alive[channel] = store.put("1", channel, b"x", now, at).deadline
            case "forget":
                store.forget("1", channel)
                alive.pop(channel, None)
            case "evict":
                store.evict(now, 500)
        alive = {name: deadline for name, deadline in alive.items() if deadline > now}
        for name in "abcdefgh":
            assert (store.get("1", name, now) is not None) == (name in alive)
    store.evict(now + SLACK_S, 500)
    assert store.n_entries() <= len(alive)
    store.evict(now + 1_000, 500)
    assert (store.n_entries(), store.n_bytes(), store.next_deadline()) == (0, 0, inf)


def test_clocks_that_differ_a_little_cost_nothing() -> None:
    """Such a value stands in the order of writing, and is freed a moment late at most."""
    store, _ = _short_store()
    store.put("1", "a", b"x", 1.0)
    store.put("1", "b", b"x", 1.0, 1.0 - SLACK_S)

    assert store._apps["1"].early == []
    assert store.get("1", "b", 101.0 - SLACK_S) is None
    assert store.evict(101.0, 500)[0] == 2


# --- other terms, while values are there


def test_under_a_lower_ceiling_the_oldest_go_a_few_at_a_time() -> None:
    """The ceiling holds once they have gone; until then a publish frees only its own."""
    store, counters = _store(max_entries=100)
    for number in range(100):
        store.put("1", f"cache-{number}", b"frame", float(number))

    assert not store.limit_app("1", TTL_S, 10, 1_000_000, 100.0, 60)
    assert store.n_entries() == 40
    store.put("1", "cache-new", b"frame", 100.0)
    assert store.n_entries() == 41
    assert store.limit_app("1", TTL_S, 10, 1_000_000, 100.0, 60)
    assert (store.n_entries(), counters.cache_capacity_evictions) == (10, 91)
    store.put("1", "cache-newer", b"frame", 100.0)
    assert store.n_entries() == 10
    assert store.get("1", "cache-91", 100.0) is None
    assert store.get("1", "cache-92", 100.0) is not None


def test_a_ceiling_in_bytes_can_be_lowered_and_raised() -> None:
    store, _ = _store()
    for number in range(10):
        store.put("1", f"cache-{number}", b"frame", 0.0)
    size = _size(b"frame", "cache-0")

    assert store.limit_app("1", TTL_S, 1_000, 5 * size, 0.0, 100)
    assert store.n_bytes() == 5 * size
    assert store.limit_app("1", TTL_S, 1_000, 8 * size, 0.0, 100)
    for number in range(10):
        store.put("1", f"cache-{number}", b"frame", 0.0)
    assert store.n_bytes() == 8 * size


def test_under_another_lifetime_values_that_are_there_keep_theirs() -> None:
    """Shorter and longer; each is freed at its own deadline."""
    store, _ = _store()
    store.put("1", "cache-old", b"frame", 0.0)
    assert store.limit_app("1", 60.0, 1_000, 1_000_000, 1.0, 100)
    store.put("1", "cache-short", b"frame", 1.0)
    assert store.ttl_s("1") == 60.0

    assert store.evict(61.0, 100)[0] == 1
    assert store.get("1", "cache-old", 1_799.0) is not None
    assert store.limit_app("1", 1_000.0, 1_000, 1_000_000, 61.0, 100)
    store.put("1", "cache-long", b"frame", 61.0)
    assert store.next_deadline() == 1_061.0
    assert store.evict(1_061.0, 100)[0] == 1
    assert store.evict(1_800.0, 100)[0] == 1
    assert store.n_entries() == 0


@pytest.mark.parametrize("in_bytes", [False, True])
def test_under_a_lower_ceiling_of_the_node_who_holds_most_loses_its_oldest(in_bytes: bool) -> None:
    store, counters = _store()
    store.add_app("2", TTL_S, 1_000, 1_000_000, AppCounters())
    for number in range(30):
        store.put("1", f"cache-{number}", b"frame", float(number))
    for number in range(10):
        store.put("2", f"cache-{number}", b"frame", 0.0)
    size = _size(b"frame", "cache-10")
    limits = (100_000, 20 * size) if in_bytes else (20, 10**9)

    assert not store.limit(*limits, 30.0, 5)
    assert store.n_entries() == 35
    assert store.limit(*limits, 30.0, 100)
    assert (store.n_entries("1"), store.n_entries("2")) == (10, 10)
    assert counters.cache_capacity_evictions == 20
    # What has expired goes first, whoever holds it.
    assert store.limit(15, 10**9, TTL_S, 100)
    assert (store.n_entries("1"), store.n_entries("2")) == (10, 5)


def test_an_app_is_freed_a_few_values_at_a_time_and_then_it_is_gone() -> None:
    store, counters = _store()
    store.add_app("2", TTL_S, 1_000, 1_000_000, AppCounters())
    for number in range(25):
        store.put("1", f"cache-{number}", b"frame", 0.0)
    store.put("2", "cache-0", b"frame", 0.0)

    assert store.remove_app("1", 10)
    assert store.remove_app("1", 10)
    assert store.n_entries() == 6
    assert not store.remove_app("1", 10)
    assert (store.n_entries(), store.n_bytes()) == (1, _size(b"frame", "cache-0"))
    assert counters.cache_capacity_evictions == 0  # no ceiling ended them
    with pytest.raises(KeyError):
        store.get("1", "cache-0", 0.0)
    _, fresh = store, AppCounters()
    store.add_app("1", TTL_S, 1_000, 1_000_000, fresh)
    assert store.get("1", "cache-0", 0.0) is None


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 100), st.booleans()), max_size=60))
def test_values_that_are_put_again_elsewhere_are_the_same(steps: Any) -> None:
    """In the order in which they were written, with what is left of their lives."""
    before, _ = _store(max_entries=20)
    after, _ = _store(max_entries=20)
    now, mark = 0.0, 0
    for number, pause_s, is_copied in steps:
        now += pause_s
        before.put("1", f"cache-{number}", f"{now}".encode(), now)
        if is_copied:
            for name, frame, published_at, deadline in before.export("1", mark):
                after.put("1", name, frame, now, published_at, deadline)
            mark = before.serial
    for name, frame, published_at, deadline in before.export("1", mark):
        after.put("1", name, frame, now, published_at, deadline)
    assert list(after.export("1")) == list(before.export("1"))
    assert after.next_deadline() == before.next_deadline()
    assert (after.n_entries(), after.n_bytes()) == (before.n_entries(), before.n_bytes())


def test_all_values_of_an_app_are_shown_in_bounded_parts() -> None:
    """Each value once, whatever is freed meanwhile; nothing once the app is gone."""
    store, _ = _store()
    for number in range(100):
        store.put("1", f"cache-{number}", b"frame", 0.0)

    parts = list(store.shelves("1"))
    assert len(parts) == N_SHELVES
    assert {name for part in parts for name, _ in part} == {f"cache-{n}" for n in range(100)}
    later = store.shelves("1")
    next(later)
    assert not store.remove_app("1", 1_000)
    assert not any(later)


# --- compressed values

VALUE = Publication("tick", "cache-a", "x" * 2_000)


def test_a_value_is_compressed_once_for_all_who_join() -> None:
    """It is booked with the value, and goes with it."""
    store, _ = _store()
    frame = CACHED_WIRE.event(VALUE)
    entry = store.put("1", "cache-a", frame, 0.0)
    assert store.n_bytes() == _size(frame, "cache-a")

    packed = store.packed("1", entry)

    assert store.packed("1", entry) is packed
    assert packed == PACKED_WIRE.event(VALUE)
    assert store.n_bytes() == store.n_bytes("1") == _size(frame, "cache-a") + len(packed)
    assert list(store.export("1")) == [("cache-a", frame, 0.0, TTL_S)]
    store.evict(TTL_S, 10)
    assert (store.n_bytes(), store.n_entries()) == (0, 0)


def test_a_value_that_is_not_worth_compressing_costs_nothing_more() -> None:
    """What is sent is the very frame."""
    store, _ = _store()
    entry = store.put("1", "cache-a", b"small", 0.0)

    assert store.packed("1", entry) is entry.frame
    assert store.packed("1", entry) is entry.frame
    assert store.n_bytes() == _size(b"small", "cache-a")


@pytest.mark.parametrize("whose", ["app", "node"])
def test_where_there_is_no_room_for_it_a_value_is_compressed_each_time(whose: str) -> None:
    """A value that somebody published does not go for the sake of a copy."""
    frame = CACHED_WIRE.event(VALUE)
    most = _size(frame, "cache-a") + 10
    store, _ = _store(**({"max_bytes": most} if whose == "app" else {"node_bytes": most}))
    entry = store.put("1", "cache-a", frame, 0.0)

    first, second = store.packed("1", entry), store.packed("1", entry)

    assert first == second == PACKED_WIRE.event(VALUE)
    assert first is not second
    assert store.n_bytes() == _size(frame, "cache-a")


def test_a_value_can_be_had_compressed_for_every_window() -> None:
    """For those of another window, and of msgpack, each time anew."""
    store, _ = _store()
    entry = store.put("1", "cache-a", CACHED_WIRE.event(VALUE), 0.0)

    for plain in (JSON_WEBSOCKET, MSGPACK_WEBSOCKET):
        for bits in (9, 12):
            wire = compressing(plain, bits)
            assert entry.on(wire) == wire.event(VALUE)
