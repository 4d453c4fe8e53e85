"""Both codecs mean the same, whatever is said in them."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachecast.apps import App
from cachecast.errors import BadMessageError, BadRequestError, LimitError
from cachecast.protocol.auth import Query
from cachecast.protocol.codec import JSON, MSGPACK
from cachecast.protocol.http_api import EventRequest, read_batch, read_event
from cachecast.protocol.messages import Publication
from cachecast.protocol.wire import JSON_WEBSOCKET, MSGPACK_WEBSOCKET
from tests.harness.lower import make_app, message_of

pytestmark = pytest.mark.slow

APP = make_app()
_plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20)
_json_values: st.SearchStrategy[Any] = st.recursive(
    _plain | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=20,
)
_msgpack_values: st.SearchStrategy[Any] = st.recursive(
    _json_values | st.binary(max_size=5) | st.just(float("nan")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=3) | st.binary(max_size=3) | st.integers(0, 3), inner, max_size=3
        )
    ),
    max_leaves=10,
)
_texts = st.text(max_size=50)


@given(_texts, _texts, _json_values)
def test_a_message_is_the_same_in_both_codecs(event: str, channel: str, data: Any) -> None:
    """Event, channel, and the meaning of data."""
    message = {"event": event, "channel": channel, "data": data}
    plain = JSON.decode(json.dumps(message).encode())
    packed = MSGPACK.decode(msgpack.packb(message))

    assert (plain.event, plain.channel) == (packed.event, packed.channel) == (event, channel)
    assert json.loads(bytes(plain.data)) == json.loads(bytes(packed.data)) == data


@given(_texts, _texts, _texts | _json_values.map(json.dumps))
def test_a_publication_is_the_same_in_both_codecs(event: str, channel: str, data: str) -> None:
    """JSON has the string; msgpack its value where it has one."""
    publication = Publication(event, channel, data)
    plain = message_of(JSON_WEBSOCKET.event(publication))
    packed = message_of(MSGPACK_WEBSOCKET.event(publication))

    assert plain == {"event": event, "channel": channel, "data": data}
    assert packed["data"] in (data, _value(data))
    assert JSON.read_event(JSON.event(publication)) == publication


def _value(data: str) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data


@given(_json_values)
def test_a_client_event_is_relayed_with_the_meaning_it_had(data: Any) -> None:
    """From either codec to either codec."""
    for decode, dump in ((JSON.decode, _dump_json), (MSGPACK.decode, msgpack.packb)):
        message = decode(dump({"event": "client-x", "data": data}))
        publication = Publication("client-x", "private-a", message.data)

        for wire in (JSON_WEBSOCKET, MSGPACK_WEBSOCKET):
            assert message_of(wire.event(publication))["data"] == data


def _dump_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@given(st.binary(max_size=100))
def test_noise_is_refused_and_nothing_else(payload: bytes) -> None:
    """By both."""
    for codec in (JSON, MSGPACK):
        try:
            message = codec.decode(payload)
        except BadMessageError:
            continue
        assert isinstance(message.event, str)


@given(st.dictionaries(st.text(max_size=3) | st.sampled_from(["event", "data"]), _msgpack_values))
def test_a_msgpack_message_never_gains_meaning(message: dict[str, Any]) -> None:
    """What is let in is exactly what was sent; binary and NaN never are."""
    try:
        read = MSGPACK.decode(msgpack.packb(message))
    except BadMessageError:
        return

    assert read.event == message["event"]
    assert msgspec.json.decode(bytes(read.data) or b"null") == message.get("data")


_event_fields = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["ev", "pusher:x", ""]) | _msgpack_values,
        "data": st.just("d") | _msgpack_values,
        "channel": st.sampled_from(["a", "cache-a", "a b"]) | _msgpack_values,
        "channels": st.lists(st.sampled_from(["a", "b"])) | _msgpack_values,
        "socket_id": st.sampled_from(["1.2", "x"]) | _msgpack_values,
        "info": st.sampled_from(["user_count", "x"]) | _msgpack_values,
    },
)


def _read_one(body: bytes, app: App, *, is_msgpack: bool) -> list[EventRequest]:
    return [read_event(body, Query.of([]), app, is_msgpack=is_msgpack)]


@given(_event_fields, st.lists(_event_fields, max_size=3) | _msgpack_values, st.binary(max_size=60))
def test_http_bodies_are_read_or_refused_and_nothing_else(
    event: dict[str, Any], batch: Any, noise: bytes
) -> None:
    """400 or 413: wrong types in every field, in both content types."""
    texts = []
    for body, is_msgpack in (
        (msgpack.packb(event), True),
        (msgpack.packb({"batch": batch}), True),
        (json.dumps(event, default=repr, skipkeys=True).encode(), False),
        (noise, True),
        (noise, False),
    ):
        for read in (_read_one, read_batch):
            try:
                requests = read(body, APP, is_msgpack=is_msgpack)
            except (BadRequestError, LimitError) as error:
                texts.append(str(error))
                continue
            for request in requests:
                assert request.channels
                assert isinstance(request.data, str)
                assert len(request.data.encode()) <= APP.max_event_bytes
    assert all(text.endswith("\n") for text in texts)
