"""The model's data."""

from __future__ import annotations

from cachecast.bus.model_data import StreamIds, Strings, difference, flat, order, pack_holders


def test_a_value_lives_as_long_as_it_was_given() -> None:
    """By the clock, in milliseconds."""
    now_us = 0
    strings = Strings(lambda: now_us)
    strings.set(b"a", b"1", 10)
    strings.set(b"b", b"2")

    assert strings.get(b"a") == b"1"
    now_us = 11_000
    assert strings.get(b"a") is None
    assert strings.get(b"b") == b"2"
    strings.drop(b"b")
    assert strings.get(b"b") is None


def test_fields_are_packed_as_in_the_engine() -> None:
    """Holders, a line's end, the info."""
    assert pack_holders({"5-6": 2, "5-7": 1}, b"{}") == b"5-6=2,5-7=1\n{}"
    assert flat([(b"a", ({"s": 1}, b""))]) == [b"a", b"s=1\n"]


def test_ids_grow_though_the_clock_stands_or_goes_back() -> None:
    """Each stream has its own."""
    ids = StreamIds()

    assert [ids.next("a", at) for at in (5_000, 5_999, 4_000, 6_000)] == [
        b"5-0", b"5-1", b"5-2", b"6-0",
    ]  # fmt: skip
    assert ids.next("b", 1_000) == b"1-0"


def test_ids_of_streams_are_compared_by_number() -> None:
    """Not by text."""
    assert order(b"9-10") > order(b"9-9") > order(b"8-99")


def test_nodes_that_differ_are_told_in_what() -> None:
    """The first thing that is wrong."""
    mine = ("a", "1", "1", "p/0", "k1,k2")

    for at, other in ((1, "2"), (2, "2"), (3, "q/0"), (4, "k3")):
        its = (*mine[:at], other, *mine[at + 1 :])
        assert difference(mine, its)
    assert not difference(mine, ("b", "2", *mine[2:]))
    assert not difference(mine, ("b", "2", "1", "p/0", "k2,k1"))
