"""What only nodes read: members, events for webhooks, publications; sealed and not."""

from __future__ import annotations

import msgspec
import pytest

from cachecast.bus.contents import Contents
from cachecast.bus.seal import Seal
from cachecast.events import AppEvent
from cachecast.protocol.session import Member

NOW_MS = 1_790_000_000_000
KEY = bytes(range(32))

MEMBERS = [
    Member("ann"),
    Member(42),
    Member("42", msgspec.Raw(b'{"name":"A"}')),
    Member(-7, msgspec.Raw(b"{}")),
    Member("cid\n=,/"),
]


def contents(*, is_sealed: bool) -> Contents:
    return Contents(Seal([KEY]) if is_sealed else None, lambda: NOW_MS)


@pytest.mark.parametrize("is_sealed", [False, True])
@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_is_what_it_was(member: Member, is_sealed: bool) -> None:
    """Also whether its id was signed as a number, which clients are sent back."""
    text = contents(is_sealed=is_sealed).pack_member("7", "presence-a", member)
    found = contents(is_sealed=is_sealed).read_member("7", "presence-a", member.key, text)
    assert found == member
    assert type(found.user_id) is type(member.user_id)


def test_what_cannot_be_read_is_a_member_without_info() -> None:
    """It is there all the same; and it is counted."""
    sealed, plain = contents(is_sealed=True), contents(is_sealed=False)
    assert sealed.read_member("7", "presence-a", "ann", b"s{}") == Member("ann")
    text = sealed.pack_member("7", "presence-a", MEMBERS[2])
    assert b"name" not in text
    assert sealed.read_member("7", "presence-b", "42", text) == Member("42")
    assert sealed.n_broken == 2
    assert plain.read_member("7", "presence-a", "ann", b"n{}") == Member("ann")
    assert plain.read_member("7", "presence-a", "9" * 30, b"n{}") == Member("9" * 30)
    assert plain.n_broken == 2


@pytest.mark.parametrize(
    ("body", "event"),
    [
        (b"oplain", AppEvent("channel_occupied", "plain")),
        (b"vplain", AppEvent("channel_vacated", "plain")),
        (b"xcache-a", AppEvent("cache_miss", "cache-a")),
        (b"+presence-a\0ann", AppEvent("member_added", "presence-a", user_id="ann")),
        (b"-presence-a\0ann", AppEvent("member_removed", "presence-a", user_id="ann")),
    ],
)
def test_the_engines_own_events_are_read(body: bytes, event: AppEvent) -> None:
    """They name channels and users, which are not sealed."""
    for is_sealed in (False, True):
        assert contents(is_sealed=is_sealed).read_event("7", f"{NOW_MS}-0", body) == event


@pytest.mark.parametrize("is_sealed", [False, True])
def test_an_event_of_a_node_is_what_it_was(is_sealed: bool) -> None:
    """What a client said is not to be read in the engine of a cluster with a key."""
    event = AppEvent(
        "client_event", "presence-a", user_id="1", event="client-x", data="secret", socket_id="1.2"
    )
    packed = contents(is_sealed=is_sealed).pack_event("7", event)
    assert (b"secret" in packed) != is_sealed
    assert contents(is_sealed=is_sealed).read_event("7", f"{NOW_MS}-3", b"c" + packed) == event


@pytest.mark.parametrize(
    "body", [b"", b"?x", b"o\xff", b"c{", b"c{}", b'c{"name":1}', b"+presence-a\0\xff"]
)
def test_what_is_no_event_is_left_out_and_counted(body: bytes) -> None:
    """Somebody else writes to our keys."""
    reader = contents(is_sealed=False)
    assert reader.read_event("7", f"{NOW_MS}-0", body) is None
    assert reader.n_broken == 1


def test_an_old_event_that_is_brought_back_does_not_open() -> None:
    """The engine says when it was added."""
    sealed = contents(is_sealed=True)
    packed = sealed.pack_event("7", AppEvent("client_event", "a", data="x"))
    assert sealed.read_event("7", f"{NOW_MS + 60_000}-0", b"c" + packed) is None
