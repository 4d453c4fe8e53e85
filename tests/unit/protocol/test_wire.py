"""How messages travel: framing, refusals, who gets which wire, and what is encoded when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack
import pytest

from cachecast.errors import CapacityError, RefusedError, RemoteProtocolError
from cachecast.protocol import frames
from cachecast.protocol.codec import JSON, MSGPACK
from cachecast.protocol.messages import ClientMessage, Control, Publication
from cachecast.protocol.wire import (
    JSON_WEBSOCKET,
    MSGPACK_SUBPROTOCOL,
    MSGPACK_WEBSOCKET,
    Encoded,
    WebSocketWire,
    Wire,
    find_wire,
)

if TYPE_CHECKING:
    from collections.abc import Callable

PUBLICATION = Publication("tick", "a", '{"x":1}')


class Counting(WebSocketWire):
    """A wire that counts what it encodes."""

    n = 0

    def event(self, publication: Publication) -> bytes:
        self.n += 1
        return super().event(publication)

    def control(self, message: Control) -> bytes:
        self.n += 1
        return super().control(message)


class Lines(Wire):
    """The least that a wire has to say."""

    def frame(self, payload: bytes) -> bytes:
        return payload + b"\n"

    def goodbye(self, code: int | None, reason: str = "") -> bytes:
        return f"{code} {reason}\n".encode()


@pytest.mark.parametrize(
    ("wire", "opcode", "payload"),
    [
        (JSON_WEBSOCKET, frames.TEXT, JSON.event(PUBLICATION)),
        (MSGPACK_WEBSOCKET, frames.BINARY, MSGPACK.event(PUBLICATION)),
    ],
)
def test_a_websocket_wire_puts_a_message_into_one_frame(
    wire: WebSocketWire, opcode: int, payload: bytes
) -> None:
    """Text or binary, pings and closes as RFC 6455 has them."""
    assert frames.split_frames(wire.event(PUBLICATION)) == [(opcode, payload)]
    assert wire.ping == b"\x89\x00"
    assert wire.goodbye(4009, "no") == b"\x88\x04\x0f\xa9no"
    assert wire.goodbye(None) == b"\x88\x00"


@pytest.mark.parametrize(
    ("wire", "write"), [(JSON_WEBSOCKET, None), (MSGPACK_WEBSOCKET, msgpack.packb)]
)
def test_what_a_client_says_is_read_by_its_wire(
    wire: WebSocketWire, write: Callable[[object], bytes] | None
) -> None:
    """Into the same message, whatever it was written in."""
    message = b'{"event":"pusher:ping"}' if write is None else write({"event": "pusher:ping"})

    assert wire.read(message) == ClientMessage("pusher:ping")


@pytest.mark.parametrize("error", [RefusedError("no", close_code=4001), CapacityError("full")])
def test_a_refusal_is_an_error_and_a_goodbye(error: RemoteProtocolError) -> None:
    """Each kind of client understands another of them (1.7)."""
    code = error.close_code
    said = b'{"event":"pusher:error","data":{"code":%d,"message":"%b"}}' % (
        code or 0,
        error.message.encode(),
    )

    assert frames.split_frames(JSON_WEBSOCKET.refusal(error)) == [
        (frames.TEXT, said),
        (frames.CLOSE, (code or 0).to_bytes(2, "big") + error.message.encode()),
    ]


@pytest.mark.parametrize(
    ("offered", "chosen", "wire"),
    [
        (None, None, JSON_WEBSOCKET),
        ("", None, JSON_WEBSOCKET),
        ("chat, soap", None, JSON_WEBSOCKET),
        ("pusher-channels-protocol-7", "pusher-channels-protocol-7", JSON_WEBSOCKET),
        (MSGPACK_SUBPROTOCOL, MSGPACK_SUBPROTOCOL, MSGPACK_WEBSOCKET),
        (
            "pusher-channels-protocol-7,cachecast.v1.msgpack ,chat",
            MSGPACK_SUBPROTOCOL,
            MSGPACK_WEBSOCKET,
        ),
    ],
)
def test_what_a_client_offers_chooses_its_wire(
    offered: str | None, chosen: str | None, wire: WebSocketWire
) -> None:
    """And is confirmed only if it was one of ours."""
    assert find_wire(offered) == (chosen, wire)


def test_a_wire_without_pings_of_its_own_says_pusher_ping() -> None:
    """Which every client answers with ``pusher:pong``."""
    assert Lines(JSON).ping == b'{"event":"pusher:ping","data":"{}"}\n'


@pytest.mark.parametrize("said", [PUBLICATION, Control("pusher:pong", {}, "a")])
def test_what_is_said_is_encoded_once_for_each_wire_that_asks(said: Publication | Control) -> None:
    """And not at all if none does."""
    one, other = Counting(JSON), Counting(MSGPACK)
    one.n = other.n = 0  # the ping's
    encoded = Encoded(said)
    assert (one.n, other.n) == (0, 0)

    first = encoded.on(one)

    assert encoded.on(one) is first
    assert (one.n, other.n) == (1, 0)
    assert encoded.on(other) != first
    assert (one.n, other.n) == (1, 1)
    assert encoded.said is said
