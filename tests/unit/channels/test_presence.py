"""Members of a presence channel: users, not connections."""

from __future__ import annotations

import msgspec
import pytest

from cachecast.channels.presence import PresenceRoster
from cachecast.protocol.session import Member


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
