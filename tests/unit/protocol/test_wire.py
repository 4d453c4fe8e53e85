"""How messages travel: framing, refusals, who gets which wire, and what is encoded when."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgpack
import pytest

from cachecast.errors import CapacityError, RefusedError, RemoteProtocolError
from cachecast.protocol import frames
from cachecast.protocol.codec import JSON, MSGPACK
from cachecast.protocol.deflate import inflate
from cachecast.protocol.messages import ClientMessage, Control, Publication
from cachecast.protocol.wire import (
    JSON_WEBSOCKET,
    MSGPACK_SUBPROTOCOL,
    MSGPACK_WEBSOCKET,
    WIRES,
    DeflateWire,
    Encoded,
    WebSocketWire,
    Wire,
    compressing,
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


# --- compression

LARGE = Publication("tick", "a", '{"price":12.5}' * 40)
SMALL = Publication("tick", "a", "x" * 100)


@pytest.mark.parametrize("wire", [WIRES[name] for name in WIRES if "deflate" in name])
def test_a_compressing_wire_marks_its_frame_and_says_the_same(wire: DeflateWire) -> None:
    """In fewer bytes."""
    plain = wire.plain.event(LARGE)

    ((opcode, data),) = frames.split_frames(wire.event(LARGE))

    assert opcode == frames.split_frames(plain)[0][0] | frames.RSV1
    assert inflate(data, 10_000) == frames.payload_of(plain)
    assert len(data) < len(plain) / 2


@pytest.mark.parametrize(
    "said", [SMALL, Publication("tick", "a", random.Random(1).randbytes(150).hex()[:200])]
)
def test_what_is_not_worth_compressing_is_the_plain_frame(said: Publication) -> None:
    """Small ones, whatever is in them; the very same object, so nothing is held twice."""
    frame = JSON_WEBSOCKET.event(said)

    assert compressing(JSON_WEBSOCKET, 12).pack(frame) is frame


def test_what_does_not_become_smaller_is_the_plain_frame() -> None:
    """An encrypted event does, its base64 by a quarter; noise does not."""
    noise = frames.server_frame(frames.BINARY, random.Random(1).randbytes(1_000))

    assert compressing(MSGPACK_WEBSOCKET, 12).pack(noise) is noise


def test_answers_to_one_client_are_never_compressed() -> None:
    """That would cost each of them; and goodbyes and pings are what they always are."""
    wire = compressing(JSON_WEBSOCKET, 12)
    answer = Control("pusher_internal:subscription_succeeded", {"a": "x" * 1_000}, "a")

    assert wire.control(answer) == JSON_WEBSOCKET.control(answer)
    assert wire.ping == JSON_WEBSOCKET.ping
    assert wire.goodbye(4009, "no") == JSON_WEBSOCKET.goodbye(4009, "no")
    assert wire.read(b'{"event":"pusher:ping"}') == ClientMessage("pusher:ping")


def test_every_wire_has_a_name() -> None:
    """By which another process knows it."""
    assert list(WIRES) == [
        "json", "msgpack", "sockjs", "json deflate 12", "json deflate 9",
        "msgpack deflate 12", "msgpack deflate 9",
    ]  # fmt: skip
    assert all(WIRES[wire.name] is wire for wire in WIRES.values())
    assert WIRES["json deflate 9"] is compressing(JSON_WEBSOCKET, 9)
    assert isinstance(WIRES["json deflate 9"].parser(100), frames.InflatingParser)
    assert not isinstance(WIRES["json"].parser(100), frames.InflatingParser)


class CountingDeflate(DeflateWire):
    """A wire that counts what it compresses."""

    n = 0

    def pack(self, frame: bytes) -> bytes:
        self.n += 1
        return super().pack(frame)


@pytest.mark.parametrize("order", [[0, 1, 2, 0, 1, 2], [1, 2, 0, 1], [2, 1, 0, 2, 1, 0]])
@pytest.mark.parametrize("said", [LARGE, Control("pusher:x", {"a": "x" * 500}, "a")])
def test_a_publication_is_encoded_once_and_compressed_once_for_each_window(
    said: Publication | Control, order: list[int]
) -> None:
    """In whatever order the wires ask: all are made of one plain frame."""
    plain = Counting(JSON)
    plain.n = 0
    wires = [plain, CountingDeflate(plain, 12), CountingDeflate(plain, 9)]
    encoded = Encoded(said)

    made = [encoded.on(wires[number]) for number in order]

    assert [wire.n for wire in wires] == [1, 1, int(2 in order)]
    for number, frame in zip(order, made, strict=True):
        assert encoded.on(wires[number]) is frame
    said_plainly = frames.payload_of(encoded.on(plain))
    assert {
        inflate(data, 10_000) if opcode & frames.RSV1 else data
        for frame in made
        for opcode, data in frames.split_frames(frame)
    } == {said_plainly}
