"""Where channels lie: evenly, for good, and without moving more than they must."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cachecast.bus.shards import N_SHARDS, Keys, shard_of, spread

NAMES = st.lists(st.text("abc:/0", min_size=1), min_size=1, max_size=6, unique=True)


@given(names=NAMES, data=st.data())
def test_a_primary_that_is_added_takes_shards_and_moves_no_others(
    names: list[str], data: st.DataObject
) -> None:
    """Rendezvous hashing; the order of the list does not matter either."""
    before = [names[index] for index in spread(names)]
    more = data.draw(st.permutations([*names, "new"]))

    after = [more[index] for index in spread(more)]

    assert all(now in {then, "new"} for then, now in zip(before, after, strict=True))


def test_shards_and_channels_are_spread_evenly() -> None:
    """No shard has twice its part of ten thousand channels; three primaries share the shards."""
    channels = Counter(shard_of("4242", f"cache-{number}") for number in range(10_000))
    shares = Counter(spread(["a:6379/0", "b:6379/0", "c:6379/0"]))

    assert len(channels) == N_SHARDS
    assert max(channels.values()) < 2 * 10_000 / N_SHARDS
    assert set(shares) == {0, 1, 2}
    assert max(shares.values()) < 2 * N_SHARDS / 3


def test_a_channels_shard_never_changes() -> None:
    """What an earlier version stored must be found by the next."""
    assert [shard_of("4242", "cache-a"), shard_of("4242", "ä"), shard_of("7", "cache-a")] == [
        57, 20, 19,
    ]  # fmt: skip


def test_names_begin_with_the_prefix_and_topics_name_the_database() -> None:
    """Pub/sub ignores SELECT, so two databases would hear each other."""
    keys = Keys("p:", 3)
    shard = shard_of("4242", "cache-a")

    assert keys.value("4242", "cache-a") == f"p:cc:{shard}:v:4242/cache-a".encode()
    assert keys.miss("4242", "cache-a") == f"p:cc:{shard}:x:4242/cache-a".encode()
    assert keys.in_shard(7, "o", "4242") == b"p:cc:7:o:4242"
    assert keys.of("state") == b"p:cc:state"
    assert keys.topic("4242", "cache-a") == b"p:cc:3:c:4242/cache-a"
    assert keys.user_topic("4242", "é") == "p:cc:3:u:4242/é".encode()
    assert keys.control == b"p:cc:3:control"
