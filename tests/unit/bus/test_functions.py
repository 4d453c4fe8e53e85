"""The functions' calls: names, keys and arguments. What the engine does with them is tested in
``tests/cluster``, on real ones."""

from __future__ import annotations

import re
from typing import Any

import pytest

from cachecast.bus.calls import Facts, library, library_name
from cachecast.bus.functions import Functions
from cachecast.bus.record import Record
from cachecast.bus.shards import Keys, shard_of

TO = Functions(Keys("p:"))
FACTS = Facts(node="n", nonce="x", primaries=("a/0", "b/0"), apps_with_webhooks=("7",))
COPY = Record(1, 2, 3, 4, "", b"x")

CALLS = {
    "hello": TO.hello(FACTS, seen_epoch=1, session="", lease_ms=3, grace_ms=4),
    "beat": TO.beat(1, "s", 3, [("7", 1)]),
    "reap": TO.reap(1),
    "retire": TO.retire(1, "s"),
    "publish": TO.publish(1, "s", 1, [TO.event("7", "cache-x", b"x", lifetime_ms=5)]),
    "read": TO.read(1, [b"v"]),
    "offer": TO.offer(1, [(b"v", COPY, 4)]),
    "forget": TO.forget(1, [(b"v", (1, 2))]),
    "note_miss": TO.note_miss(1, "7", "cache-x"),
    "enter": TO.enter(1, "s", "m", "7", "ann", name="presence-x"),
    "leave": TO.leave(1, "s", "m", "7", "ann", name="presence-x"),
    "page": TO.page(1, "m", "7", "presence-x"),
    "look": TO.look(1, "o", "7", ["c"]),
    "sizes": TO.sizes(1, "7", ["presence-x"]),
    "terminate": TO.terminate(1, "7", "ann"),
    "ended": TO.ended(1),
    "hook": TO.hook(1, "7", b"{}"),
    "collect": TO.collect(1, "s", "7", 3),
    "settle": TO.settle(1, "s", "7", ["1-0"]),
}


def test_every_function_of_the_library_has_its_call() -> None:
    """And the other way round."""
    registered = re.findall(rf"'{library_name()}_(\w+)'", library())

    assert sorted(registered) == sorted(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_names_its_function_and_its_keys(name: str) -> None:
    """All keys are ours, and the first one is the state."""
    command, function, n_keys, *rest = CALLS[name].arguments
    keys: list[Any] = rest[: int(n_keys)]

    assert command == b"FCALL"
    assert function == f"{library_name()}_{name}".encode()
    assert keys[0] == b"p:cc:state"
    assert all(key.startswith(b"p:cc:") or key == b"v" for key in keys)


def test_plain_commands_are_calls_too() -> None:
    """Freeing what expired, and signals between nodes."""
    assert TO.free([b"a", b"b"]).arguments == (b"EXISTS", b"a", b"b")
    assert TO.signal(b"x").arguments == (b"PUBLISH", b"p:cc:0:control", b"bx")
    assert TO.is_loaded().read([]) is False
    assert TO.load().arguments[:2] == (b"FUNCTION", b"LOAD")
    assert TO.ghost(7) == "7-0"


def test_a_roster_lies_where_its_channel_or_user_lies() -> None:
    """So that whatever concerns one channel is on one primary."""
    channel, user = shard_of("7", "presence-x"), shard_of("7", "#server-to-user-ann")

    assert TO.enter(1, "s", "m", "7", "ann", name="presence-x").arguments[4] == (
        f"p:cc:{channel}:m:7/presence-x".encode()
    )
    assert TO.enter(1, "s", "o", "7", "presence-x").arguments[4] == f"p:cc:{channel}:o:7".encode()
    assert TO.enter(1, "s", "u", "7", "ann").arguments[4] == f"p:cc:{user}:u:7".encode()
    assert TO.page(1, "o", "7", 3).arguments[4] == b"p:cc:3:o:7"
