"""Members of a presence channel: users, not connections."""

from __future__ import annotations

import msgspec
import pytest

from cachecast.channels.presence import LARGE, PresenceRoster
from cachecast.protocol.messages import Control
from cachecast.protocol.session import Member
from cachecast.protocol.wire import JSON_WEBSOCKET, MSGPACK_WEBSOCKET, Wire


def test_only_a_users_first_connection_adds_and_only_its_last_removes() -> None:
    """Protocol.md 2.6."""
    roster = PresenceRoster()

    assert [roster.join(Member("u")), roster.join(Member("u")), roster.join(Member("v"))] == [
        True,
        False,
        True,
    ]
    assert len(roster) == 2
    assert [roster.leave(Member("u")), "u" in roster] == [False, True]
    assert [roster.leave(Member("u")), "u" in roster] == [True, False]
    assert roster.user_ids == ["v"]


def test_what_the_first_connection_said_stands_until_the_last_has_left() -> None:
    """Then the next one may say something else (protocol.md 9.5)."""
    roster = PresenceRoster()
    first, second = Member("u", msgspec.Raw(b'"first"')), Member("u", msgspec.Raw(b'"second"'))
    roster.join(first)
    roster.join(second)
    roster.leave(first)

    assert roster.success_data()["presence"]["hash"] == {"u": first.user_info}
    roster.leave(second)
    roster.join(second)
    assert roster.success_data()["presence"]["hash"] == {"u": second.user_info}


def test_the_success_frame_has_every_id_as_a_key_of_the_hash() -> None:
    """Numbers stay numbers in ``ids`` and become text as keys; no info is an empty object."""
    roster = PresenceRoster()
    roster.join(Member(10))
    roster.join(Member("a", msgspec.Raw(b'{"n":1}')))

    assert msgspec.json.encode(roster.success_data()) == (
        b'{"presence":{"ids":[10,"a"],"hash":{"10":{},"a":{"n":1}},"count":2}}'
    )
    assert roster.user_ids == ["10", "a"]


def test_a_number_and_its_text_are_one_user() -> None:
    """Clients key by text."""
    roster = PresenceRoster()
    roster.join(Member(1))

    assert not roster.join(Member("1"))


@pytest.mark.parametrize("key", ["__proto__", "constructor", "", " "])
def test_an_id_is_only_an_id(key: str) -> None:
    """Whatever it means elsewhere."""
    roster = PresenceRoster()

    assert key not in roster
    assert roster.join(Member(key))
    assert roster.leave(Member(key))
    assert len(roster) == 0


@pytest.mark.parametrize("wire", [JSON_WEBSOCKET, MSGPACK_WEBSOCKET])
def test_a_large_roster_says_what_a_small_one_says(wire: Wire) -> None:
    """Put together from what is kept of each member, while they come and go."""
    roster = PresenceRoster()
    event, channel = "pusher_internal:subscription_succeeded", 'presence-"x"'

    def check() -> None:
        expected = wire.control(Control(event, roster.success_data(), channel))
        assert roster.success_frame(wire, channel) == expected

    check()
    for n in range(LARGE - 3):
        roster.join(Member(n))
        roster.join(Member(n))
    check()
    infos = [None, b'{"name": "\\"\\u00e9\\\\"}', '"\U0001f600\u2028"'.encode(), b"[1,\n2]"]
    members = [
        Member(f'"{n}\\ \u00e9\n', None if info is None else msgspec.Raw(info))
        for n, info in enumerate(infos)
    ]
    for member in members:
        roster.join(member)
        check()
    for member in [members[1], Member(7), Member(7)]:
        roster.leave(member)
        check()
    roster.join(members[1])
    check()


@pytest.mark.parametrize("n", [2, LARGE])
def test_members_of_other_nodes_are_put_and_discarded_once(n: int) -> None:
    """The engine says who is here; of a large roster the kept pieces follow."""
    roster = PresenceRoster()
    members = [Member(f"u{number}", msgspec.Raw(b'{"a":1}')) for number in range(n)]
    assert all(roster.put(member) for member in members)
    assert not roster.put(members[0])
    roster.success_frame(JSON_WEBSOCKET, "presence-a")
    assert roster.members == members
    assert roster.discard("u1") == members[1]
    assert roster.discard("u1") is None
    roster.put(Member("new"))

    frame = roster.success_frame(JSON_WEBSOCKET, "presence-a")
    assert b'u1\\"' not in frame
    assert b"new" in frame
