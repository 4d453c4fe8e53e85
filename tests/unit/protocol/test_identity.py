"""Who a client is: the rules of ``channel_data`` and ``user_data``, and their words."""

from __future__ import annotations

import json

import msgspec
import pytest

from cachecast.apps import App
from cachecast.errors import BadMessageError
from cachecast.protocol.channel_name import MAX_LENGTH, parse_channel_name
from cachecast.protocol.identity import Member, read_member, read_user, user_id_fault
from tests.harness.lower import make_app

HASH = "user_info is invalid - if supplied it must be a type of hash (a JSON object)"


@pytest.mark.parametrize("info", ["true", '"x"', "[1]", "0", "1.5", '""', "[]", "false"])
def test_user_info_is_an_object_or_absent(info: str) -> None:
    """In presence and in sign-in alike, with hosted Pusher's rule (protocol.md 9.5)."""
    with pytest.raises(BadMessageError) as presence:
        read_member(f'{{"user_id":"1","user_info":{info}}}')
    with pytest.raises(BadMessageError) as sign_in:
        read_user(f'{{"id":"1","user_info":{info}}}', make_app())

    assert presence.value.message == f"Invalid channel_data: {HASH}"
    assert sign_in.value.message == f"Invalid user_data: {HASH}"


@pytest.mark.parametrize("info", ["", ',"user_info":null', ', "user_info" :  null '])
def test_absent_and_null_say_the_same(info: str) -> None:
    """Libraries send null for what they have not got."""
    assert read_member(f'{{"user_id":"1"{info}}}').user_info is None
    assert read_user(f'{{"id":"1"{info}}}', make_app()).user_info is None


def test_an_object_is_kept_as_it_was_signed() -> None:
    """Blanks and numbers included; an empty one is one."""
    for info in ("{}", '{"n": 1.10 }'):
        member = read_member(f'{{"user_id":"1","user_info": {info} }}')
        assert bytes(member.user_info or b"") == info.encode()


@pytest.mark.parametrize(
    ("user_data", "fault"),
    [
        ("{}", "id must be a non-empty string"),
        ('{"id":5}', "id must be a non-empty string"),
        ('{"id":null}', "id must be a non-empty string"),
        ('{"id":""}', "id must be a non-empty string"),
        ("[]", "it must be an object"),
        ('{"id":"u","watchlist":7}', "watchlist must be a list of user ids, which are strings"),
        ('{"id":"u","watchlist":[7]}', "watchlist must be a list of user ids, which are strings"),
        ('{"x":' * 20_000, "it is nested too deeply"),
    ],
)
def test_faults_are_told_in_plain_words(user_data: str, fault: str) -> None:
    """No decoder's notation: who reads it has written neither the decoder nor the broker."""
    with pytest.raises(BadMessageError) as caught:
        read_user(user_data, make_app())

    assert caught.value.message == f"Invalid user_data: {fault}"


@pytest.mark.parametrize("user_id", ["{}", '{"user_id":null}', '{"user_id":1.5}', '{"user_id":""}',
                                     f'{{"user_id":{2**53 + 1}}}'])  # fmt: skip
def test_a_members_id_has_a_rule_too(user_id: str) -> None:
    """The one for numbers is in it."""
    with pytest.raises(BadMessageError, match="user_id must be a non-empty string, or a whole"):
        read_member(user_id)


@pytest.mark.parametrize(
    "user_id", ["e:2", "a b", "ü", "a/b", "#", "a\n", "\ud83d", "a\u200b", "%"]
)
def test_a_user_whose_channel_cannot_exist_cannot_sign_in(user_id: str) -> None:
    """Nothing could be sent to it; a member of a presence channel may have it (protocol.md 9.5)."""
    with pytest.raises(BadMessageError, match="id has invalid characters; it may contain only"):
        read_user(json.dumps({"id": user_id}), make_app())
    assert read_member(json.dumps({"user_id": user_id})).user_id


@pytest.mark.parametrize(
    ("app", "limit"),
    [
        (make_app(), 128),
        (make_app(max_user_id_length=300), MAX_LENGTH - len("#server-to-user-")),
        (make_app(max_channel_name_length=20), 4),
        (make_app(max_channel_name_length=16), 0),
    ],
)
def test_an_id_is_as_long_as_its_channels_name_leaves_room_for(app: App, limit: int) -> None:
    """The longest that can sign in is the longest that can be named."""
    assert user_id_fault("x" * (limit + 1), app) == f"id is longer than {limit} characters"
    if limit:
        assert user_id_fault("x" * limit, app) is None
        name = parse_channel_name("#server-to-user-" + "x" * limit, app.max_channel_name_length)
        assert name.user_id == "x" * limit


def test_half_an_emoji_in_what_was_signed_is_no_fault() -> None:
    """It is mended after the signature has been verified over the text as it came."""
    member = read_member(r'{"user_id":"\ud83d","user_info":{"n":"\ud83d"}}')
    user = read_user(r'{"id":"u","user_info":{"n":"\ud83d"}}', make_app())

    assert member.user_id == "\ufffd"
    assert json.loads(bytes(member.user_info or b"")) == {"n": "\ufffd"}
    assert json.loads(bytes(user.user_info or b"")) == {"n": "\ufffd"}
    assert user.user_data == r'{"id":"u","user_info":{"n":"\ud83d"}}'


def test_nobody_is_no_user() -> None:
    """Said of an id that a publisher gives, as of one that was signed."""
    assert user_id_fault("", make_app()) == "id must be a non-empty string"


@pytest.mark.parametrize("member", [Member("u"), Member(7, msgspec.Raw(b'{"name":"U"}'))])
def test_a_member_is_known_to_another_process(member: Member) -> None:
    """A number stays a number."""
    assert Member.restore(member.export()) == member
