"""Calls: the library's name and text, and how much fits into one."""

from __future__ import annotations

import re

import pytest

from cachecast.bus.calls import MAX_KEYS, PROTOCOL, Call, Facts, library, library_name, portions
from cachecast.bus.faults import GarbageError
from cachecast.errors import ConfigError


def test_the_library_is_named_after_protocol_and_text() -> None:
    """Two versions of nodes bring two libraries, whose functions do not meet."""
    name = library_name()

    assert re.fullmatch(rf"cachecast_{PROTOCOL}_[0-9a-f]{{8}}", name)
    assert library().startswith(f"#!lua name={name}\n")
    registered = re.findall(r"(\w+)_(?:publish|note_miss|hello)'", library())
    assert registered == [name] * 3
    assert "VERSION" not in library()


def test_the_library_calls_nothing_that_stops_the_engine_for_long() -> None:
    """No KEYS, no whole roster, no whole stream; a hash is read whole where it is one a node."""
    commands = set(re.findall(r"p?call\('([A-Z]+)'", library()))

    assert commands & {"KEYS", "SCAN", "FLUSHALL", "FLUSHDB", "SORT", "SMEMBERS", "EVAL"} == set()
    whole = re.findall(r"call\('(?:HGETALL|HVALS)', (\w+)", library())
    assert whole == ["nodes", "gauge"]


def test_items_are_cut_into_parts_that_fit() -> None:
    """In order, none forgotten."""
    items = list(range(2 * MAX_KEYS + 1))

    parts = [list(part) for part in portions(items)]

    assert [len(part) for part in parts] == [MAX_KEYS, MAX_KEYS, 1]
    assert [item for part in parts for item in part] == items
    assert list(portions([])) == []


@pytest.mark.parametrize("reply", [None, [], "x", {}])
def test_an_answer_that_cannot_be_is_garbage(reply: object) -> None:
    """Whatever reading it ends with: a node must not end by it."""
    with pytest.raises(GarbageError, match="no answer"):
        Call(("LOOK",), lambda reply: int(reply[0])).read(reply)


def test_a_call_is_data() -> None:
    """What to send, and how to read the answer."""
    call = Call(("EXISTS", b"a"), int)

    assert (call.arguments, call.read("3")) == (("EXISTS", b"a"), 3)


@pytest.mark.parametrize("node", ["", "a\nb", "x" * 65])
def test_a_nodes_id_is_one_short_line(node: str) -> None:
    """It stands between line ends in the engine, and in refusals."""
    with pytest.raises(ConfigError, match=r"bus\.node"):
        Facts(node=node, nonce="1", primaries=("a/0",))
