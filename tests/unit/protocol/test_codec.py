"""Two codecs, one meaning."""

from __future__ import annotations

import datetime as dt
import json
import sys
from typing import Any

import msgpack
import msgspec
import pytest

from cachecast.errors import BadMessageError
from cachecast.protocol import frames
from cachecast.protocol.codec import JSON, MSGPACK, to_json, unpack
from cachecast.protocol.messages import Control, Publication
from cachecast.protocol.wire import JSON_WEBSOCKET, MSGPACK_WEBSOCKET
from tests.harness.lower import message_of

DEEP = 2_000


def _raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())


# --- in


@pytest.mark.parametrize(
    ("text", "event", "channel", "data"),
    [
        ('{"event":"pusher:ping","data":{}}', "pusher:ping", None, b"{}"),
        ('{"event": "pusher:ping"}', "pusher:ping", None, b""),
        ('{"event": "pusher:ping", "data": ""}', "pusher:ping", None, b'""'),
        ('{"event":"pusher:ping","data":"{}"}', "pusher:ping", None, b'"{}"'),
        (
            '{"data": [1.10,  2],"channel":"private-a","event":"client-x","user_id":"forged"}',
            "client-x",
            "private-a",
            b"[1.10,  2]",
        ),
        ('{"event":"client-x","channel":null,"data":null}', "client-x", None, b"null"),
    ],
)
def test_json_messages_are_read_as_real_clients_send_them(
    text: str, event: str, channel: str | None, data: bytes
) -> None:
    """Shapes seen on the wire (protocol.md 1.5); data stays as the bytes it was."""
    message = JSON.decode(text.encode())

    assert (message.event, message.channel, bytes(message.data)) == (event, channel, data)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b" ",
        b"{",
        b"nonsense",
        b"null",
        b"7",
        b'"x"',
        b"[]",
        b"{}",
        b'{"event":7}',
        b'{"event":null}',
        b'{"event":["x"]}',
        b'{"event":"x","channel":7}',
        b'{"event":"x"} {}',
        b'{"event":"x","data":01}',
        rb'{"event":"x","data":"\q"}',
        b'{"event":"x","data":NaN}',
        b'{"event":"x",}',
        b"\xef\xbb\xbf{}",
        b'{"event":"\xff"}',
        b'{"event":"x","data":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        b"[" * 60_000,
        b'{"event":"x","' + b'data":{"' * 5_000,
    ],
)
def test_what_is_not_a_json_message_is_refused(payload: bytes) -> None:
    """The connection stays: the error has no close code."""
    with pytest.raises(BadMessageError) as caught:
        JSON.decode(payload)

    assert caught.value.close_code is None
    assert not caught.value.is_fatal
    assert caught.value.message.startswith("Invalid ")


def test_a_msgpack_message_becomes_the_same_message_as_its_json() -> None:
    """Nothing behind the codec knows which one a client speaks."""
    value = {"event": "client-x", "channel": "private-a", "data": {"n": [1, 2.5, None, True, "ä"]}}

    packed = MSGPACK.decode(msgpack.packb(value))
    plain = JSON.decode(json.dumps(value).encode())

    assert (packed.event, packed.channel) == (plain.event, plain.channel)
    assert json.loads(bytes(packed.data)) == json.loads(bytes(plain.data))


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x91",
        b"\xc0\xc0",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\x7f\xff\xff\xff",
        msgpack.packb(7),
        msgpack.packb([{"event": "x"}]),
        msgpack.packb({}),
        msgpack.packb(None),
        msgpack.packb({"event": 7}),
        msgpack.packb({"event": b"x"}),
        msgpack.packb({b"event": "x"}),
        msgpack.packb({"event": "x", "channel": 7}),
        msgpack.packb({1: 2, "event": "x"}),
        msgpack.packb({"event": "x", "data": b"bin"}),
        msgpack.packb({"event": "x", "data": {"deep": [b"bin"]}}),
        msgpack.packb({"event": "x", "data": {b"bin": 1}}),
        msgpack.packb({"event": "x", "data": {"k": {2: 3}}}),
        msgpack.packb({"event": "x", "data": float("nan")}),
        msgpack.packb({"event": "x", "data": [float("inf")]}),
        msgpack.packb({"event": "x", "data": msgpack.ExtType(5, b"x")}),
        msgpack.packb({"event": "x", "data": msgpack.Timestamp(1, 2)}),
        msgpack.packb({"event": "x", "data": dt.datetime.now(dt.UTC)}, datetime=True),
        b"\x82\xa5event\xa1x\xa4data\xa1\xff",
        b"\x91" * 30_000,
        b"\x81\xa1a" * 10_000,
    ],
)
def test_what_json_cannot_say_is_refused_in_msgpack_too(payload: bytes) -> None:
    """Binary does not silently become base64, nor NaN null, wherever they stand."""
    with pytest.raises(BadMessageError, match="Invalid "):
        MSGPACK.decode(payload)


def test_what_msgpack_can_nest_is_refused_where_json_cannot() -> None:
    """msgpack stops at 1,024 levels; JSON below that in Python 3.11, above it in later ones."""
    payload = b"\x82\xa5event\xa1x\xa4data" + b"\x91" * 1_000 + b"\x01"

    if sys.version_info < (3, 12):
        with pytest.raises(BadMessageError, match="Invalid msgpack: "):
            MSGPACK.decode(payload)
    else:
        assert bytes(MSGPACK.decode(payload).data) == b"[" * 1_000 + b"1" + b"]" * 1_000


def test_the_largest_numbers_of_msgpack_come_through() -> None:
    """Sixty-four bits, both signs."""
    data = [2**64 - 1, -(2**63), 1.5]

    message = MSGPACK.decode(msgpack.packb({"event": "client-x", "data": data}))

    assert json.loads(bytes(message.data)) == data


@pytest.mark.parametrize("value", [b"x", {b"k": 1}, [msgpack.Timestamp(1)], {1, 2}])
def test_to_json_raises_type_error_for_what_has_no_json_form(value: object) -> None:
    """Rather than to make something up."""
    with pytest.raises(TypeError):
        to_json(value)


def test_unpack_reads_exactly_one_value() -> None:
    """Of any type."""
    assert unpack(msgpack.packb([1, "a", None])) == [1, "a", None]
    with pytest.raises(BadMessageError):
        unpack(b"\x01\x02")


@pytest.mark.parametrize("payload", [b"\xc1", b"\x91" * 100_000])
def test_a_refusal_of_msgpack_says_what_is_wrong_also_where_the_library_does_not(
    payload: bytes,
) -> None:
    """Its exceptions for a byte that means nothing, and for too many levels, have no text."""
    with pytest.raises(BadMessageError, match=r"Invalid msgpack: \w+"):
        unpack(payload)


# --- out


@pytest.mark.parametrize(
    ("event", "data", "channel", "is_object", "wire"),
    [
        (
            "pusher:connection_established",
            {"socket_id": "1.2"},
            None,
            False,
            r'{"event":"pusher:connection_established","data":"{\"socket_id\":\"1.2\"}"}',
        ),
        (
            "pusher_internal:subscription_succeeded",
            {},
            "c",
            False,
            '{"event":"pusher_internal:subscription_succeeded","channel":"c","data":"{}"}',
        ),
        (
            "pusher:cache_miss",
            {},
            "cache-c",
            False,
            '{"event":"pusher:cache_miss","channel":"cache-c","data":"{}"}',
        ),
        (
            "pusher:error",
            {"code": None, "message": "no"},
            None,
            True,
            '{"event":"pusher:error","data":{"code":null,"message":"no"}}',
        ),
    ],
)
def test_system_frames_look_exactly_as_clients_expect(
    event: str, data: object, channel: str | None, is_object: bool, wire: str
) -> None:
    """Data is a string of JSON, but an object in the three events that are so (1.7)."""
    frame = JSON_WEBSOCKET.control(Control(event, data, channel, is_object))

    assert frames.split_frames(frame) == [(frames.TEXT, wire.encode())]


def test_a_publication_in_json_is_event_channel_and_the_data_string() -> None:
    """In that order, and nothing else: the excluded socket stays inside."""
    frame = JSON_WEBSOCKET.event(Publication("ev", "c", '{"x":1}', exclude="1.2"))

    assert frames.payload_of(frame) == rb'{"event":"ev","channel":"c","data":"{\"x\":1}"}'


def test_a_client_event_is_relayed_as_it_came_with_the_members_id() -> None:
    """Raw JSON, spaces included; the id is a number where the authorizer signed one."""
    frame = JSON_WEBSOCKET.event(Publication("client-x", "presence-c", _raw('{"a": 1.10}'), 7))

    assert frames.payload_of(frame) == (
        b'{"event":"client-x","channel":"presence-c","data":{"a": 1.10},"user_id":7}'
    )


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ('{"x":1}', {"x": 1}),
        ("[1,2]", [1, 2]),
        ('"text"', "text"),
        ("not json", "not json"),
        ("", ""),
        ("12", 12),
        (str(2**64 - 1), 2**64 - 1),
        (str(2**64), str(2**64)),
        ("1" * 5_000, "1" * 5_000),
        ("[" * DEEP + "]" * DEEP, "[" * DEEP + "]" * DEEP),
        ("[" * 5_000 + "]" * 5_000, "[" * 5_000 + "]" * 5_000),
        (_raw('{"x": 1}'), {"x": 1}),
        (_raw(str(2**70)), str(2**70)),
    ],
)
def test_msgpack_data_is_the_value_where_it_has_one_and_else_the_text(
    data: str | msgspec.Raw, value: object
) -> None:
    """Nothing that JSON subscribers get can fail to reach a msgpack one."""
    frame = MSGPACK_WEBSOCKET.event(Publication("ev", "c", data, "u"))
    ((opcode, _),) = frames.split_frames(frame)

    assert opcode == frames.BINARY
    assert message_of(frame) == {"event": "ev", "channel": "c", "data": value, "user_id": "u"}


@pytest.mark.parametrize("data", ['{"nonce":"a"}', _raw('{"nonce":"a"}')])
def test_ciphertext_is_left_alone(data: str | msgspec.Raw) -> None:
    """On encrypted channels msgpack carries the very text."""
    frame = MSGPACK_WEBSOCKET.event(Publication("ev", "private-encrypted-cache-c", data))

    assert message_of(frame)["data"] == '{"nonce":"a"}'


def test_msgpack_system_frames_are_not_encoded_twice() -> None:
    """Data is a map, whether JSON would send a string or an object."""
    for is_object in (False, True):
        frame = MSGPACK_WEBSOCKET.control(Control("pusher:pong", {"a": 1}, "c", is_object))

        assert message_of(frame) == {"event": "pusher:pong", "channel": "c", "data": {"a": 1}}


@pytest.mark.parametrize("info", [str(2**70), "[" * DEEP + "]" * DEEP], ids=["big", "deep"])
def test_a_roster_that_msgpack_cannot_hold_goes_as_text(info: str) -> None:
    """Somebody else's user_info must not keep a msgpack client out of the channel."""
    data = {"presence": {"ids": ["1"], "hash": {"1": _raw(info)}, "count": 1}}

    message = message_of(
        MSGPACK_WEBSOCKET.control(Control("pusher_internal:subscription_succeeded", data))
    )

    assert message["data"] == '{"presence":{"ids":["1"],"hash":{"1":' + info + '},"count":1}}'


# --- there and back


@pytest.mark.parametrize("data", ['{"x":1}', "plain", "", 'ä\n"\\ \u2028', "x" * 70_000])
def test_a_cached_json_frame_gives_the_publication_back(data: str) -> None:
    """The data string, byte for byte: the HTTP API answers from it."""
    publication = Publication("ev", "cache-c", data)

    assert JSON.read_event(JSON.event(publication)) == publication
