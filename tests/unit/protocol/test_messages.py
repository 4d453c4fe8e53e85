"""Messages as typed values."""

from __future__ import annotations

import msgspec
import pytest

from cachecast.errors import BadMessageError
from cachecast.protocol.messages import (
    RULES,
    ChannelData,
    ClientMessage,
    SignInData,
    SubscribeData,
    UnsubscribeData,
    UserData,
    as_text,
    has_reserved_prefix,
    too_large_text,
)


def _message(data: bytes) -> ClientMessage:
    return ClientMessage("pusher:subscribe", None, msgspec.Raw(data))


@pytest.mark.parametrize(
    ("event", "is_reserved"),
    [
        ("pusher:ping", True),
        ("pusher_internal:x", True),
        ("pusher:", True),
        ("pusher", False),
        ("Pusher:x", False),
        ("client-x", False),
        ("x pusher:", False),
        (r"App\Events\Ordered", False),
    ],
)
def test_the_protocols_own_names_are_reserved(event: str, is_reserved: bool) -> None:
    """By their prefix, colon included."""
    assert has_reserved_prefix(event) is is_reserved


@pytest.mark.parametrize(
    "data",
    [b'{"channel":"a","auth":""}', rb'"{\"channel\":\"a\",\"auth\":\"\"}"'],
    ids=["an object", "a string that holds the object"],
)
def test_data_may_come_as_an_object_or_as_a_string_of_it(data: bytes) -> None:
    """Some clients encode it twice (protocol.md 2.3)."""
    assert _message(data).data_as(SubscribeData) == SubscribeData("a", "")


def test_unknown_keys_in_data_are_ignored() -> None:
    """Other servers' extensions must not break a client (protocol.md 9.1)."""
    assert _message(b'{"channel":"a","filter":{}}').data_as(SubscribeData) == SubscribeData("a")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"7",
        b"[]",
        b"{}",
        b'{"channel":7}',
        b'{"channel":null}',
        b'""',
        b'"x"',
        rb'"{\"channel\":7}"',
        rb'"\"{}\""',
        b'{"channel":"a","auth":{}}',
        b"\xff",
        b'"\xff"',
        b"[" * 5_000,
        b'"' + b"[" * 5_000 + b'"',
    ],
)
def test_data_of_another_shape_is_refused_by_name(data: bytes) -> None:
    """The text names the event; nothing else escapes."""
    with pytest.raises(BadMessageError, match=r"Invalid data in pusher:subscribe: ."):
        _message(data).data_as(SubscribeData)


def test_a_refusal_names_the_field_as_the_client_knows_it() -> None:
    """And its rule, in no decoder's notation."""
    with pytest.raises(BadMessageError, match=r"channel must be a string$"):
        _message(b'{"channel":7}').data_as(SubscribeData)


def test_every_field_that_a_client_sends_has_a_rule_in_words() -> None:
    """But those that are never looked into: whatever they hold, they cannot be at fault."""
    kinds = (ClientMessage, SubscribeData, UnsubscribeData, SignInData, ChannelData, UserData)
    fields = {field.name for kind in kinds for field in msgspec.structs.fields(kind)}

    assert fields - {"data"} == RULES.keys()


def test_user_info_of_a_sign_in_stays_as_it_was_written() -> None:
    """Numbers and spaces included: it is passed on, not understood."""
    user = msgspec.json.decode(b'{"id":"1","user_info":{"n": 1.10}}', type=UserData)

    assert bytes(user.user_info) == b'{"n": 1.10}'
    assert bytes(UserData("1").user_info) == b""


def test_too_large_is_said_in_hosted_words() -> None:
    """People search the web for them."""
    assert too_large_text(10_240) == (
        "The data content of this event exceeds the allowed maximum (10240 bytes). See "
        "https://pusher.com/docs/channels/server_api/http-api#publishing-events for more info"
    )


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("as published", "as published"),
        (msgspec.Raw(b'"a \\u00e9 string"'), "a \u00e9 string"),
        (msgspec.Raw(b'{"n": 1.10}'), '{"n": 1.10}'),
    ],
)
def test_data_of_any_kind_is_a_string_for_webhooks(data: str | msgspec.Raw, text: str) -> None:
    """A JSON string is read, whatever else it is stays as it was written."""
    assert as_text(data) == text
