"""The frame parsers, ours and the strict one, against `websockets` and `wsproto` as witnesses."""

import pytest
import wsproto
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from wsproto.frame_protocol import FrameProtocol

from cachecast_load.net.frames import (
    BINARY,
    CLOSE,
    PING,
    TEXT,
    FastWire,
    UpgradeRefusedError,
    WireError,
    encode_frame,
    read_close,
)
from cachecast_load.net.strict import StrictWire

WIRES = [FastWire, StrictWire]
texts = st.text(max_size=300).map(str.encode)
sizes = st.sampled_from([0, 1, 125, 126, 127, 65_535, 65_536, 70_000])


def connected(kind):
    """Return a wire whose upgrade `websockets` answered, and that server."""
    wire, server = kind(), ServerProtocol(max_size=None)
    server.receive_data(wire.request("host:80", "/app/key?protocol=7", [("X-A", "b")]))
    request = next(e for e in server.events_received() if isinstance(e, Request))
    server.send_response(server.accept(request))
    assert request.headers["X-A"] == "b"
    assert request.headers.get_all("Host") == ["host:80"]
    assert request.path == "/app/key?protocol=7"
    assert wire.feed(b"".join(server.data_to_send())) == []
    return wire, server


def fed_in_pieces(wire, data, cuts):
    messages, last = [], 0
    for cut in sorted({min(cut, len(data)) for cut in cuts} | {len(data)}):
        messages += wire.feed(data[last:cut])
        last = cut
    return messages


@pytest.mark.parametrize("kind", WIRES)
def test_a_roster_of_many_thousands_is_no_fault(kind):
    wire, server = connected(kind)
    message = b"x" * (4 * 1024 * 1024)
    server.send_text(message)
    assert fed_in_pieces(wire, b"".join(server.data_to_send()), [1, 70_000]) == [(TEXT, message)]


@pytest.mark.parametrize("kind", WIRES)
@given(messages=st.lists(texts, max_size=8), cuts=st.lists(st.integers(0, 3000), max_size=12))
def test_messages_arrive_however_the_bytes_are_cut(kind, messages, cuts):
    wire, server = connected(kind)
    for message in messages:
        server.send_text(message)
    data = b"".join(server.data_to_send())

    assert fed_in_pieces(wire, data, cuts) == [(TEXT, message) for message in messages]


@pytest.mark.parametrize("kind", WIRES)
@given(parts=st.lists(texts, min_size=2, max_size=5), ping=st.booleans())
def test_fragments_are_joined_and_control_frames_come_between(kind, parts, ping):
    wire, server = connected(kind)
    server.send_text(parts[0], fin=False)
    if ping:
        server.send_ping(b"p")
    for part in parts[1:-1]:
        server.send_continuation(part, fin=False)
    server.send_continuation(parts[-1], fin=True)

    expected = [(PING, b"p")] if ping else []
    expected.append((TEXT, b"".join(parts)))
    assert wire.feed(b"".join(server.data_to_send())) == expected


@pytest.mark.parametrize("kind", WIRES)
@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536, 200_000])
def test_every_length_form_is_understood(kind, size):
    wire, server = connected(kind)
    server.send_text(b"x" * size)
    assert wire.feed(b"".join(server.data_to_send())) == [(TEXT, b"x" * size)]


@given(payload=st.binary(max_size=300), size=sizes)
def test_what_we_send_is_masked_and_understood_by_wsproto(payload, size):
    payload = (payload * (size // max(len(payload), 1) + 1))[:size] if payload else b""
    witness = FrameProtocol(client=False, extensions=[])
    witness.receive_bytes(encode_frame(BINARY, payload))
    frames = list(witness.received_frames())

    assert b"".join(bytes(frame.payload) for frame in frames) == payload
    assert frames[-1].message_finished
    assert frames[0].opcode is wsproto.frame_protocol.Opcode.BINARY


@pytest.mark.parametrize("kind", WIRES)
def test_text_pong_and_close_reach_the_server(kind):
    wire, server = connected(kind)
    server.receive_data(wire.text(b"hello") + wire.pong(b"x") + wire.close(1000))
    events = [(e.opcode, bytes(e.data)) for e in server.events_received() if isinstance(e, Frame)]
    assert events == [
        (Opcode.TEXT, b"hello"),
        (Opcode.PONG, b"x"),
        (Opcode.CLOSE, (1000).to_bytes(2)),
    ]


@pytest.mark.parametrize("kind", WIRES)
@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex("8180") + b"mask",  # masked by the server
        bytes.fromhex("c101") + b"x",  # a reserved bit
        bytes.fromhex("8301") + b"x",  # an unknown opcode
        bytes.fromhex("8001") + b"x",  # a continuation of nothing
        bytes.fromhex("0101") + b"x" + bytes.fromhex("8101") + b"y",  # text inside a message
        bytes.fromhex("0900"),  # a fragmented ping
        bytes.fromhex("897e0100") + b"x" * 256,  # a long ping
    ],
)
def test_what_a_server_must_not_send_is_refused(kind, data):
    wire, _ = connected(kind)
    with pytest.raises(WireError):
        wire.feed(data)


def test_a_frame_beyond_every_reason_is_refused_on_its_head():
    wire, _ = connected(FastWire)
    with pytest.raises(WireError, match="bytes"):
        wire.feed(bytes.fromhex("817f") + (1 << 40).to_bytes(8))


def test_invalid_utf8_is_found_by_the_strict_wire():
    wire, server = connected(StrictWire)
    server.send_text(b"\xff\xfe")
    with pytest.raises(WireError):
        wire.feed(b"".join(server.data_to_send()))


@pytest.mark.parametrize("kind", WIRES)
def test_a_refused_upgrade_says_so_with_its_status(kind):
    wire = kind()
    wire.request("host:80", "/", [])
    with pytest.raises(UpgradeRefusedError, match="403"):
        wire.feed(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("kind", WIRES)
def test_garbage_instead_of_http_is_a_wire_error(kind):
    wire = kind()
    wire.request("host:80", "/", [])
    with pytest.raises(WireError):
        wire.feed(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


def test_a_wrong_accept_is_refused():
    wire = FastWire()
    wire.request("host:80", "/", [])
    with pytest.raises(WireError, match="Accept"):
        wire.feed(
            b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n"
        )


def test_close_payloads():
    assert read_close(b"") == (1005, "")
    assert read_close((4001).to_bytes(2) + b"no app") == (4001, "no app")
    assert CLOSE == 8
