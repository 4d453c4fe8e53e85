"""Frames as the various servers send them."""

import pytest

from cachecast.client import wire
from cachecast.errors import BadMessageError


@pytest.mark.parametrize(
    ("data", "text"),
    [('"{\\"a\\":1}"', '{"a":1}'), ('{"a":1}', '{"a":1}'), ("7", "7"), ("null", "null"),
     ('"\\u00fc"', "\u00fc")],
)  # fmt: skip
def test_data_comes_as_a_string_or_as_what_clones_send(data, text):
    """Object data of client events (protocol.md 4) is shown as its JSON."""
    assert wire.decode('{"event":"e","data":' + data + "}").text == text


def test_absent_data_is_empty():
    """soketi's cache_miss has none (protocol.md 3.3)."""
    assert wire.decode('{"event":"pusher:cache_miss","channel":"cache-a"}').text == ""


@pytest.mark.parametrize("data", ['{"code":4001,"message":"m"}', '"{\\"code\\":4001}"'])
def test_an_error_may_be_an_object_or_a_string(data):
    """Pusher sends an object, Reverb a string (protocol.md 1.7)."""
    message = wire.decode('{"event":"pusher:error","data":' + data + "}")

    assert message.data_as(wire.ErrorData).code == 4001


def test_bad_data_names_event_and_field():
    message = wire.decode('{"event":"pusher:error","data":{"code":[]}}')
    with pytest.raises(BadMessageError, match=r"pusher:error.*data\.code"):
        message.data_as(wire.ErrorData)


@pytest.mark.parametrize("payload", ["", "x", "[]", "{}", '{"event":null}', b"{}", "[" * 99_999])
def test_what_is_no_message(payload):
    with pytest.raises(BadMessageError):
        wire.decode(payload)


def test_encoding_leaves_an_absent_channel_out():
    assert wire.encode("pusher:ping", {}) == '{"event":"pusher:ping","data":{}}'
    assert wire.encode("client-a", "s", "c") == '{"event":"client-a","data":"s","channel":"c"}'
