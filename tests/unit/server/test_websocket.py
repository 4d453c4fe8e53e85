"""One WebSocket over a real socket: frames good and bad, and what each costs.

Every test of bad bytes keeps a bystander on the same server, who must go on receiving.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager

import msgpack
import pytest
import trio

from tests.sockets.node import (
    APP_ID,
    KEY,
    frame,
    make_app,
    message,
    running,
    until,
    upgrade_request,
)

TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 1, 2, 8, 9, 10, 0


@asynccontextmanager
async def beside_a_bystander(*apps, **config):
    """A server with one honest client, who is still served when the test is over."""
    async with running(*apps, **config) as node:
        bystander = await node.client()
        await bystander.subscribe("news")
        yield node
        await node.broker.publish(APP_ID, "news", "tick", "still here")
        assert (await bystander.hear("tick"))["data"] == "still here"


async def test_client_subscribes_publishes_and_leaves():
    async with running(make_app(allows_client_events=True)) as node:
        client, other = await node.client(), await node.client()
        for one in (client, other):
            await one.subscribe_signed("private-a")
        await client.say("client-hi", {"a": 1}, channel="private-a")
        assert await other.hear() == {
            "event": "client-hi", "channel": "private-a", "data": {"a": 1},
        }  # fmt: skip
        await client.leave()
        await until(lambda: node.broker.clients.n_sessions == 1)


async def test_bytes_glued_to_the_handshake_are_heard():
    async with running() as node:
        glued = frame(TEXT, message("pusher:subscribe", {"channel": "a"})) + frame(PING, b"x")
        client = await node.handshake(glued=glued)
        assert (await client.hear())["event"] == "pusher:connection_established"
        assert (await client.hear())["event"] == "pusher_internal:subscription_succeeded"
        assert await client.frame() == (PONG, b"x")


async def test_messages_split_at_every_byte_mean_the_same():
    async with running() as node:
        client = await node.client()
        stream = (
            frame(TEXT, message("pusher:subscribe", {"channel": "a"}))
            + frame(PING, b"!")
            + frame(TEXT, message("pusher:ping"), first=0x01)
            + frame(CONTINUATION, b" ")
        )
        for byte in stream:
            await client.wire.say(bytes([byte]))
        assert (await client.hear())["event"] == "pusher_internal:subscription_succeeded"
        assert await client.frame() == (PONG, b"!")
        assert (await client.hear())["event"] == "pusher:pong"


async def test_fragments_are_joined_and_control_frames_come_between():
    async with running() as node:
        client = await node.client()
        body = message("pusher:subscribe", {"channel": "a"})
        await client.wire.say(
            frame(TEXT, body[:10], first=0x01)
            + frame(PING, b"between")
            + frame(CONTINUATION, body[10:20], first=0x00)
            + frame(CONTINUATION, body[20:])
        )
        assert await client.frame() == (PONG, b"between")
        assert (await client.hear())["event"] == "pusher_internal:subscription_succeeded"


async def test_close_is_answered_with_its_code_and_the_connection_ended():
    async with running() as node:
        for payload, answer in (
            (b"", b""),
            (b"\x03\xe8", b"\x03\xe8"),
            (b"\x0f\xa0bye", b"\x0f\xa0"),
        ):
            client = await node.client()
            await client.send(CLOSE, payload)
            assert await client.frame() == (CLOSE, answer)
            assert await client.wire.end() == b""  # and not after close_timeout_s
        await until(lambda: not node.broker.clients.n_sessions)


async def test_nothing_is_heard_behind_a_close():
    async with running() as node:
        client = await node.client()
        await client.wire.say(
            frame(CLOSE) + frame(TEXT, message("pusher:subscribe", {"channel": "a"}))
        )
        assert await client.frame() == (CLOSE, b"")
        assert await client.wire.end() == b""


async def test_server_waits_for_the_clients_close_and_not_for_ever():
    async with running(close_timeout_s=5) as node:
        polite, silent = await node.client(), await node.client()
        for client in (polite, silent):
            await client.send(BINARY, b"\x80")
        assert (await polite.closed())[0] == 1003
        assert (await silent.closed())[0] == 1003
        await polite.send(CLOSE, b"\x03\xeb")
        assert await polite.wire.end() == b""
        await node.wait(4.5)
        assert len(node.server.poller) == 2
        await node.wait(0.5)
        assert await silent.wire.end() == b""


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (frame(TEXT, b"{}", is_masked=False), 1002),
        (frame(TEXT, b"{}", first=0xC1), 1002),
        (frame(3, b""), 1002),
        (frame(11, b""), 1002),
        (frame(CONTINUATION, b"x"), 1002),
        (frame(TEXT, b"x", first=0x01) + frame(TEXT, b"y"), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(PING, b"x", first=0x09), 1002),
        (frame(CLOSE, b"\x03"), 1002),
        (frame(CLOSE, b"\x03\xed"), 1002),
        (b"\x81\xfe\x00\x01" + b"\0\0\0\0x", 1002),
        (b"\x81\xff" + b"\xff" * 8, 1002),
        (frame(CLOSE, b"\x03\xe8\xff"), 1007),
        (frame(TEXT, b"\xff\xfe"), 1007),
        (frame(TEXT, b"\xe2\x82", first=0x01) + frame(CONTINUATION, b"\xff"), 1007),
        (frame(BINARY, b"\x80"), 1003),
        (frame(TEXT, b"", size=65_537), 1009),
        (frame(TEXT, b"", size=1 << 40), 1009),
        (frame(TEXT, b"x" * 40_000, first=0x01) + frame(CONTINUATION, b"x" * 40_000), 1009),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1002),
        (os.urandom(8).join([b"\xff", b"\xff"]), 1002),
    ],
)
async def test_broken_frame_gets_its_close_code(stream, code):
    async with beside_a_bystander() as node:
        client = await node.client()
        await client.wire.say(stream)
        assert (await client.closed())[0] == code
        # It may not have noticed yet: what it says now is not heard, and resets nothing.
        await client.wire.say(frame(TEXT, message("pusher:ping")) * 100)
        await client.wire.aclose()
        await until(lambda: node.broker.clients.n_sessions == 1)


@pytest.mark.parametrize(
    "start", [b"\x81", b"\x81\xfe\x10", frame(TEXT, b"x" * 10)[:-1], frame(TEXT, b"x", first=0x01)]
)
async def test_half_sent_frame_costs_only_its_own_connection(start):
    async with beside_a_bystander() as node:
        client, other = await node.client(), await node.client()
        await client.wire.say(start)
        await client.wire.aclose()
        await other.wire.say(start)
        await until(lambda: node.broker.clients.n_sessions == 2)


async def test_never_finished_frame_does_not_count_as_a_sign_of_life():
    async with running(activity_timeout_s=5, pong_timeout_s=20) as node:
        client = await node.client()
        await client.wire.say(frame(TEXT, b"", size=60_000))
        for _ in range(10):
            assert node.broker.clients.n_sessions == 1
            await client.wire.say(b"x")
            await node.wait(2.5)
        assert await client.frame() == (PING, b"")
        error = await client.hear("pusher:error")
        assert error["data"]["code"] == 4201
        assert (await client.closed())[0] == 4201


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"{", b"[]", b"1", b"null", b'"x"', b"{}", b'{"event":1}', b'{"event":null}',
        b'{"event":"pusher:subscribe"}', b'{"event":"pusher:subscribe","data":1}',
        b'{"event":"pusher:subscribe","data":{"channel":1}}',
        b'{"event":"pusher:subscribe","data":{"channel":{"__proto__":1}}}',
        b'{"event":"client-x"}', b'{"event":"client-x","channel":1,"data":1}',
        b'{"event":"pusher:signin","data":{"auth":1}}',
        b'{"event":"' + b"x" * 60_000 + b'"}',
        b'{"event":"\\ud800"}',
        b'{"event":"pusher:subscribe","data":{"channel":"\\udfff"}}',
        b"[" * 60_000,
        b'{"event":' + b'{"a":' * 10_000,
        b'{"event":"pusher:subscribe","data":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"event":"pusher_internal:member_added","channel":"presence-a","data":"{}"}',
        b'{"event":"__proto__"}',
        b"\x00" * 1_000,
    ],
)  # fmt: skip
async def test_bad_message_is_answered_and_the_connection_stays(payload):
    async with beside_a_bystander() as node:
        client = await node.client()
        await client.send(TEXT, payload)
        assert (await client.hear())["event"] == "pusher:error"
        await client.say("pusher:ping")
        assert (await client.hear("pusher:pong"))["event"] == "pusher:pong"


async def test_tenth_bad_message_in_ten_seconds_ends_the_connection():
    async with beside_a_bystander() as node:
        client = await node.client()
        await client.wire.say(frame(TEXT, b"{") * 30)
        for _ in range(9):
            assert (await client.hear())["data"]["code"] is None
        assert (await client.hear())["data"]["code"] == 4009
        assert (await client.closed())[0] == 4009


@pytest.mark.parametrize("name", ["__proto__", "constructor", "cache-__proto__", "toString", "-"])
async def test_names_that_are_special_elsewhere_are_names_here(name):
    async with beside_a_bystander() as node:
        client = await node.client()
        await client.subscribe(name)
        answer = await node.ask("POST", "events", {"name": name, "channel": name, "data": "1"})
        assert answer.status == 200
        assert (await client.hear(name))["channel"] == name
        assert (await node.ask("GET", f"channels/{name}")).json["occupied"] is True


async def test_user_ids_that_are_special_elsewhere_are_ids_here():
    async with running() as node:
        client = await node.client()
        await client.subscribe_signed("presence-a", '{"user_id":"__proto__","user_info":{"x":1}}')
        answer = await node.ask("GET", "channels/presence-a/users")
        assert answer.json == {"users": [{"id": "__proto__"}]}


async def test_subscribe_flood_meets_its_limits_and_nothing_else():
    async with beside_a_bystander(make_app(max_channels_per_connection=50)) as node:
        client = await node.client()
        await client.wire.say(
            b"".join(
                frame(TEXT, message("pusher:subscribe", {"channel": f"flood-{number}"}))
                for number in range(1_000)
            )
        )
        await client.say("pusher:ping")
        await until(lambda: len(node.broker.hubs[APP_ID].channels) == 51)
        events = [(await client.hear())["event"] for _ in range(60)]
        assert events[:50] == ["pusher_internal:subscription_succeeded"] * 50
        assert "pusher:error" in events[50:]
        await client.wire.aclose()
        await until(lambda: len(node.broker.hubs[APP_ID].channels) == 1)


async def test_aborted_connection_is_forgotten():
    async with beside_a_bystander() as node:
        client = await node.client()
        await client.subscribe_signed("presence-a", '{"user_id":"1"}')
        sock = client.wire.stream.socket
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await client.wire.aclose()  # a reset
        await until(lambda: node.broker.clients.n_sessions == 1)
        assert list(node.broker.hubs[APP_ID].channels) == ["news"]


async def test_half_closed_connection_is_ended():
    async with beside_a_bystander() as node:
        client = await node.client()
        await client.wire.stream.send_eof()
        assert await client.wire.end() == b""


async def test_server_pings_and_closes_whom_it_hears_nothing_from():
    async with running(activity_timeout_s=5, pong_timeout_s=20) as node:
        alive, dead = await node.client(), await node.client()
        connection = node.broker.hubs[APP_ID].connections[alive.socket_id]
        await node.wait(5)
        for client in (alive, dead):
            assert await client.frame() == (PING, b"")
        await alive.send(PONG)
        await until(lambda: connection.session.active_at == node.clock())
        await node.wait(19)
        assert node.broker.clients.n_sessions == 2
        await node.wait(1)
        error = (await dead.hear())["data"]
        assert error == {"code": 4201, "message": "Pong reply not received"}
        assert (await dead.closed())[0] == 4201
        assert node.broker.clients.n_sessions == 1
        assert await alive.frame() == (PING, b"")
        await alive.say("pusher:ping")
        assert (await alive.hear())["event"] == "pusher:pong"


async def test_msgpack_connection_speaks_binary_and_only_that():
    async with running() as node:
        client = await node.handshake(
            f"/app/{KEY}", "Sec-WebSocket-Protocol: a, cachecast.v1.msgpack"
        )
        assert "Sec-WebSocket-Protocol: cachecast.v1.msgpack\r\n" in client.head
        opcode, payload = await client.frame()
        assert opcode == BINARY
        assert msgpack.unpackb(payload)["event"] == "pusher:connection_established"
        subscribe = {"event": "pusher:subscribe", "data": {"channel": "cache-a"}}
        await client.send(BINARY, msgpack.packb(subscribe))
        events = [msgpack.unpackb((await client.frame())[1])["event"] for _ in range(2)]
        assert events == ["pusher_internal:subscription_succeeded", "pusher:cache_miss"]
        plain = await node.client()
        await plain.subscribe("cache-a")
        await node.ask("POST", "events", {"name": "e", "channel": "cache-a", "data": "[1]"})
        assert msgpack.unpackb((await client.frame())[1])["data"] is not None
        assert (await plain.hear("e"))["data"] == "[1]"
        await client.send(TEXT, b"{}")
        assert (await client.closed())[0] == 1003


async def test_ping_flood_of_a_client_that_never_reads_is_bounded():
    app = make_app(max_pending_bytes=100_000)
    async with beside_a_bystander(app, activity_timeout_s=1_000) as node:
        client = await node.handshake(receives=4096)

        async def flood():
            try:
                while True:
                    await client.wire.say(frame(PING, b"x" * 125) * 500)
            except trio.BrokenResourceError:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await until(lambda: any(outbox.is_pacing for outbox in node.broker.backlog))
            for _ in range(20):
                await trio.sleep(0.01)
                assert all(outbox.waiting_bytes < 100_000 for outbox in node.broker.backlog)
            for _ in range(3):  # its kernel may have taken some more, which is progress
                await node.wait(31)
            assert node.broker.hubs[APP_ID].counters.slow_closes == 1
            nursery.cancel_scope.cancel()


async def test_established_frame_comes_in_the_same_packet_as_the_101():
    """A client that sees the upgrade without it would have to wait for another packet."""
    async with running() as node:
        wire = await node.connect()
        await wire.say(upgrade_request(f"/app/{KEY}", b"dGhlIHNhbXBsZSBub25jZQ=="))
        await wire.more()
        assert wire.buffer.startswith(b"HTTP/1.1 101")
        assert b"connection_established" in wire.buffer


async def test_nothing_said_after_our_close_has_an_effect():
    async with running(make_app(allows_client_events=True)) as node:
        client, listener = await node.client(), await node.client()
        for one in (client, listener):
            await one.subscribe_signed("private-a")
        connection = node.broker.hubs[APP_ID].connections[client.socket_id]
        node.broker.clients.disconnect(connection, 4009, "bye")
        await client.hear("pusher:error")
        assert (await client.closed())[0] == 4009
        await client.say("pusher:subscribe", {"channel": "b"})
        await client.say("client-x", "late", channel="private-a")
        await client.send(PING, b"late")
        await client.send(CLOSE, b"\x0f\xa9")
        assert await client.wire.end() == b""
        assert list(node.broker.hubs[APP_ID].channels) == ["private-a"]
        await node.broker.publish(APP_ID, "private-a", "e", "next")
        assert (await listener.hear())["data"] == "next"


async def test_a_flood_does_not_go_on_being_read_after_its_close():
    """The client's close is waited for, but not through everything else it may have to say."""
    async with beside_a_bystander(close_timeout_s=1_000, max_message_bytes=3_000) as node:
        client = await node.client()

        async def flood():
            while True:
                await client.wire.say(frame(PING) * 10_000)

        with trio.fail_after(30), pytest.raises(trio.BrokenResourceError):
            await flood()
        await until(lambda: len(node.broker.hubs[APP_ID].connections) == 1)
        assert node.broker.statistics().apps[0].refusals == {"4009": 1}
