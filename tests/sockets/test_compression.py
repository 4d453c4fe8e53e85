"""permessage-deflate on real sockets: what Autobahn's suite asks of a server, and `websockets`.

`websockets` is a client of another make, without its own I/O: its handshake and its extension judge
ours. Raw frames stand where it would not send what a test needs.
"""

from __future__ import annotations

import json
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Opcode
from websockets.uri import parse_uri

from cachecast import BrokerConfig
from tests.sockets.moving import move
from tests.sockets.node import KEY, Client, Node, frame, make_app, message, running, sign, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
APP = make_app(
    compresses=True, allows_client_events=True, client_events_per_s=1_000.0, max_event_bytes=40_000
)
ANSWER = (
    "\r\nSec-WebSocket-Extensions: "
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n"
)


def packed(text: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    return (packer.compress(text) + packer.flush(zlib.Z_SYNC_FLUSH))[:-4]


def compressed(text: bytes, opcode: int = 1) -> bytes:
    """One client frame with the mark of compression."""
    return frame(opcode, packed(text), first=0xC0 | opcode)


async def compressing(node: Node, *channels: str, offer: str = DEFLATE) -> Client:
    client = await node.client(f"/app/{KEY}?protocol=7", offer)
    assert ANSWER in client.head
    for channel in channels:
        await client.subscribe(channel)
    return client


# --- agreed on, or not


@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; nonsense",
        'permessage-deflate; x="',
        "permessage-deflate" + "; client_max_window_bits" * 50,
        "x-webkit-deflate-frame",
        "\xff\xfe",
        ";;;=,,,",
    ],
)
async def test_what_cannot_be_agreed_on_is_a_connection_without_it(offer):
    async with running(APP) as node:
        client = await node.client(f"/app/{KEY}?protocol=7", f"Sec-WebSocket-Extensions: {offer}")
        assert "Extensions" not in client.head
        await client.subscribe("news")
        await node.broker.publish("3", "news", "tick", "x" * 1_000)
        assert (await client.hear("tick"))["data"] == "x" * 1_000
        await client.wire.say(compressed(message("pusher:ping")))
        assert (await client.closed())[0] == 1002


async def test_an_app_that_does_not_compress_agrees_on_nothing():
    async with running(make_app()) as node:
        client = await node.client(f"/app/{KEY}?protocol=7", DEFLATE)
        assert "Extensions" not in client.head


async def test_offers_in_several_header_lines_are_one_list():
    async with running(APP) as node:
        await compressing(node, offer="Sec-WebSocket-Extensions: other\r\n" + DEFLATE)


async def test_a_refusal_has_no_extension():
    async with running(make_app(compresses=True, is_enabled=False)) as node:
        client = await node.handshake(f"/app/{KEY}?protocol=7", DEFLATE)
        assert "Extensions" not in client.head
        assert await client.refused() == (4003, 4003)


async def test_a_reload_concerns_those_who_come_after_it():
    plain = make_app(allows_client_events=True)
    async with running(plain) as node:
        before = await node.client(f"/app/{KEY}?protocol=7", DEFLATE)
        assert "Extensions" not in before.head
        await before.subscribe("news")
        await node.broker.reload(BrokerConfig(apps=(make_app(compresses=True),)))
        after = await compressing(node, "news")
        await node.broker.reload(BrokerConfig(apps=(plain,)))
        last = await node.client(f"/app/{KEY}?protocol=7", DEFLATE)
        assert "Extensions" not in last.head
        await last.subscribe("news")
        await node.broker.publish("3", "news", "tick", "x" * 1_000)
        for client in (before, after, last):
            assert (await client.hear("tick"))["data"] == "x" * 1_000
        assert [client.sizes[-1] > 0 for client in (before, after, last)] == [True, False, True]
        await after.wire.say(compressed(message("pusher:ping")))
        await after.hear("pusher:pong")


# --- what the server says


@pytest.mark.parametrize("window", [15, 12, 10, 9])
async def test_events_come_compressed_with_no_larger_window_than_was_asked_for(window):
    data = "".join(f"{number:x}" for number in range(4_000))
    async with running(APP) as node:
        client = await node.client(
            f"/app/{KEY}?protocol=7",
            f"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits={window}",
        )
        agreed = 12 if window >= 12 else 9
        assert f"; server_max_window_bits={agreed}\r\n" in client.head
        await client.subscribe("news")
        await node.broker.publish("3", "news", "tick", data)
        assert (await client.hear("tick"))["data"] == data
        assert -len(data) < client.sizes[-1] < 0


async def test_small_events_and_answers_are_not_compressed():
    async with running(APP) as node:
        client = await compressing(node, "news")
        await node.broker.publish("3", "news", "tick", "x" * 100)
        await client.hear("tick")
        await client.say("pusher:ping")
        await client.hear("pusher:pong")
        assert min(client.sizes) > 0


async def test_a_joiner_gets_the_cached_value_compressed():
    async with running(APP) as node:
        await node.broker.publish("3", "cache-news", "tick", "x" * 1_000)
        plain = await node.client()
        client = await compressing(node)
        for one in (plain, client):
            await one.subscribe("cache-news")
            assert (await one.hear())["data"] == "x" * 1_000
        assert client.sizes[-1] < 0 < plain.sizes[-1]


async def test_msgpack_is_compressed_too():
    async with running(APP) as node:
        client = await node.handshake(
            f"/app/{KEY}?protocol=7", DEFLATE, "Sec-WebSocket-Protocol: cachecast.v1.msgpack"
        )
        assert ANSWER in client.head
        assert (await client.frame())[0] == 2
        await client.wire.say(compressed(b"\x81\xa5event\xabpusher:ping", 2))
        assert (await client.frame())[0] == 2
        await client.wire.say(compressed(message("pusher:ping")))
        assert (await client.closed())[0] == 1003


async def test_a_slow_subscriber_gets_whole_frames_in_order():
    async with running(make_app(compresses=True, max_pending_bytes=8_000_000)) as node:
        wire = await node.connect(receives=4_096)
        await wire.aclose()
        client = await node.handshake(f"/app/{KEY}?protocol=7", DEFLATE, receives=4_096)
        await client.subscribe("news")
        noise = "".join(f"{number * 7919 % 65_536:04x}" for number in range(2_000))
        for number in range(200):
            await node.broker.publish("3", "news", "tick", f"{number} {noise}")
        await until(lambda: node.broker.backlog.n_bytes)
        for number in range(200):
            assert (await client.hear("tick"))["data"] == f"{number} {noise}"


# --- what a client says


async def test_client_events_come_compressed_and_go_on_as_each_can_read_them():
    async with running(APP) as node:
        teller, packer, plain = (
            await compressing(node), await compressing(node), await node.client()
        )  # fmt: skip
        for client in (teller, packer, plain):
            await client.subscribe_signed("private-a")
        for size in (10, 1_000, 30_000):
            event = message("client-x", "y" * size, channel="private-a")
            await teller.wire.say(compressed(event))
            for client in (packer, plain):
                assert (await client.hear("client-x"))["data"] == "y" * size
        assert packer.sizes[-1] < 0 < plain.sizes[-1]


@pytest.mark.parametrize("cut", [0, 1, 20, -1])
async def test_a_compressed_message_comes_in_fragments_with_pings_between(cut):
    async with running(APP) as node:
        client = await compressing(node)
        data = packed(message("pusher:subscribe", {"channel": "cache-" + "a" * 100}))
        await client.wire.say(
            frame(1, data[:cut], first=0x41)
            + frame(9, b"1")
            + frame(0, b"", first=0)
            + frame(9, b"2")
            + frame(0, data[cut:], first=0x80)
        )
        assert [await client.frame() for _ in range(2)] == [(10, b"1"), (10, b"2")]
        said = await client.hear()
        assert said["event"] == "pusher_internal:subscription_succeeded"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(9, b"p", first=0xC9), 1002),
        (frame(8, b"\x03\xe8", first=0xC8), 1002),
        (frame(0, b"", first=0xC0), 1002),
        (frame(1, b"", first=0x41) + frame(0, b"", first=0xC0), 1002),
        (frame(1, b"", first=0xE1), 1002),
        (frame(1, b"", first=0x91), 1002),
        (compressed(b"\xff\xfe"), 1007),
        (compressed('{"event":"é'.encode()[:-1]), 1007),
        (frame(1, b"\x07", first=0xC1), 1007),
        (compressed(b" " * 70_000), 1009),
        (compressed(b" " * 50_000_000), 1009),
        (frame(1, packed(b" " * 50_000_000), first=0x41) + frame(0, b""), 1009),
        (frame(1, size=90_000, first=0xC1), 1009),
    ],
)
async def test_what_breaks_a_rule_ends_the_connection_and_no_other(data, code):
    async with running(APP) as node:
        other = await compressing(node, "news")
        client = await compressing(node, "news")
        await client.wire.say(data)
        assert (await client.closed())[0] == code
        await node.broker.publish("3", "news", "tick", "x" * 1_000)
        assert (await other.hear("tick"))["data"] == "x" * 1_000


async def test_what_was_said_before_a_bomb_is_done():
    async with running(APP) as node:
        client = await compressing(node)
        ping = compressed(message("pusher:ping"))
        await client.wire.say(ping * 3 + compressed(b" " * 10**6) + ping)
        for _ in range(3):
            assert (await client.hear())["event"] == "pusher:pong"
        assert (await client.closed())[0] == 1009


async def test_inflated_messages_are_charged_as_messages():
    async with running(
        make_app(compresses=True, messages_per_s=5.0, max_channels_per_connection=1)
    ) as node:
        client = await compressing(node)
        ping = compressed(message("pusher:ping", " " * 5_000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.wire.say, ping * 2_100)
            assert await client.closed() == (4009, "Too many messages: more than 5 per second")
            nursery.cancel_scope.cancel()


# --- in another process


async def test_a_connection_that_compresses_moves_with_half_a_message():
    async with running(APP) as old, running(APP) as new:
        client = await compressing(old, "news")
        plain = await old.client()
        await plain.subscribe("news")
        data = packed(message("pusher:subscribe", {"channel": "cache-" + "a" * 100}))
        await client.wire.say(frame(1, data[:30], first=0x41) + frame(9, b"1"))
        assert await client.frame() == (10, b"1")
        move(old.server, new.server)
        await client.wire.say(frame(0, data[30:], first=0x80))
        assert (await client.hear())["event"] == "pusher_internal:subscription_succeeded"
        await new.broker.publish("3", "news", "tick", "x" * 1_000)
        for one in (client, plain):
            assert (await one.hear("tick"))["data"] == "x" * 1_000
        assert client.sizes[-1] < 0 < plain.sizes[-1]


# --- a client of another make


class Websockets:
    """`websockets` over a stream of ours."""

    def __init__(self, stream: trio.abc.Stream, **offer: Any) -> None:
        self.protocol = ClientProtocol(
            parse_uri(f"ws://localhost/app/{KEY}?protocol=7"),
            extensions=[ClientPerMessageDeflateFactory(**offer)],
            max_size=None,
        )
        self._stream = stream
        self._parts: list[bytes] = []

    async def open(self) -> None:
        self.protocol.send_request(self.protocol.connect())
        await self._flush()
        while self.protocol.state.name == "CONNECTING":
            assert self.protocol.handshake_exc is None
            await self._read()
        (self.extension,) = self.protocol.extensions

    async def say(self, text: str, n_fragments: int = 1) -> None:
        data = text.encode()
        size = len(data) // n_fragments + 1
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            if number:
                self.protocol.send_continuation(part, fin=is_last)
            else:
                self.protocol.send_text(part, fin=is_last)
        await self._flush()

    async def hear(self, name: str) -> dict[str, Any]:
        while True:
            for event in self.protocol.events_received():
                if getattr(event, "opcode", None) is Opcode.TEXT:
                    self._parts.append(bytes(event.data))
            while self._parts:
                said: dict[str, Any] = json.loads(self._parts.pop(0))
                if said["event"] == name:
                    return said
            await self._read()

    async def _flush(self) -> None:
        for data in self.protocol.data_to_send():
            await self._stream.send_all(data)

    async def _read(self) -> None:
        self.protocol.receive_data(await self._stream.receive_some(65_536))
        assert self.protocol.parser_exc is None
        await self._flush()


@asynccontextmanager
async def websockets(node: Node, **offer: Any) -> AsyncIterator[Websockets]:
    wire = await node.connect()
    client = Websockets(wire.stream, **offer)
    await client.open()
    yield client
    await wire.aclose()


@pytest.mark.parametrize(
    "offer",
    [
        {},
        {"client_max_window_bits": True},
        {"client_max_window_bits": 9},
        {"server_max_window_bits": 9, "client_max_window_bits": 9},
        {"server_max_window_bits": 15, "client_max_window_bits": 15},
        {"server_no_context_takeover": True, "client_no_context_takeover": True},
    ],
)
async def test_websockets_speaks_with_us_compressed(offer):
    """Messages of all sizes, whole and in fragments, both ways, one behind the other."""
    async with running(APP) as node, websockets(node, **offer) as client:
        established = await client.hear("pusher:connection_established")
        socket_id = json.loads(established["data"])["socket_id"]
        auth = sign(f"{socket_id}:private-a")
        other = await node.client()
        await other.subscribe_signed("private-a")
        await client.say(
            message("pusher:subscribe", {"channel": "private-a", "auth": auth}).decode()
        )
        await client.hear("pusher_internal:subscription_succeeded")
        assert client.extension.local_no_context_takeover
        for size in (1, 200, 1_000, 10_000, 30_000):
            data = "".join(chr(0xE0 + number * number % 97) for number in range(size // 2))
            for n_fragments in (1, 3, 64):
                event = {"event": "client-x", "channel": "private-a", "data": data}
                await client.say(json.dumps(event, ensure_ascii=False), n_fragments)
                assert (await other.hear("client-x"))["data"] == data
            await node.broker.publish("3", "private-a", "tick", data)
            assert (await client.hear("tick"))["data"] == data
