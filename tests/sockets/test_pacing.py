"""Who asks for more than it reads, over real sockets: paced, and not cut off."""

from __future__ import annotations

import json

import msgpack
import pytest
import trio
import trustme

from cachecast import BrokerConfig, TlsTerms, open_broker, serve
from cachecast.channels.waiting import PACE_BYTES
from tests.sockets.node import APP_ID, KEY, frame, make_app, message, running, signed, until

TEXT, BINARY = 1, 2


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def terms(authority, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    cert = authority.issue_cert("localhost", "127.0.0.1")
    cert.private_key_pem.write_to_path(folder / "key.pem")
    for number, part in enumerate(cert.cert_chain_pems):
        part.write_to_path(folder / "cert.pem", append=number > 0)
    return TlsTerms(folder / "cert.pem", folder / "key.pem")


@pytest.mark.parametrize("speaks_msgpack", [False, True])
@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize(("n", "size"), [(200, 10_000), (5, 1_400_000)])
async def test_values_asked_for_at_once_come_at_the_pace_of_a_slow_reader(
    terms, authority, n, size, is_tls, speaks_msgpack
):
    """On one connection, in order, with little more than the mark and one value waiting."""
    app = make_app(max_event_bytes=1_500_000, max_pending_bytes=1_600_000)
    tls = {"tls": terms, "trusts": authority} if is_tls else {}
    async with running(app, **tls) as node:
        for number in range(n):
            await node.broker.publish(APP_ID, f"cache-{number}", "e", "x" * size)
        protocol = ["Sec-WebSocket-Protocol: cachecast.v1.msgpack"] if speaks_msgpack else []
        client = await node.handshake(f"/app/{KEY}", *protocol, receives=4096)
        await client.frame()
        requests = [message("pusher:subscribe", {"channel": f"cache-{i}"}) for i in range(n)]
        if speaks_msgpack:
            requests = [msgpack.packb(json.loads(request)) for request in requests]
        opcode = BINARY if speaks_msgpack else TEXT
        seen, most = [], 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.wire.say, b"".join(frame(opcode, r) for r in requests))
            while len(seen) < n:
                _, payload = await client.frame()
                heard = msgpack.unpackb(payload) if speaks_msgpack else json.loads(payload)
                if heard["event"] == "e":
                    assert len(heard["data"]) == size
                    seen.append(heard["channel"])
                most = max(most, node.broker.statistics().outbox_bytes)

        assert seen == [f"cache-{number}" for number in range(n)]
        assert most < 2 * PACE_BYTES + 2 * size
        assert not node.broker.hubs[APP_ID].counters.slow_closes


async def test_a_publisher_that_pipelines_waits_for_a_subscriber_in_this_process():
    """Thirty-two requests on one connection, again and again; each is answered, and heard."""
    async with running() as node, node.broker.subscribe(APP_ID, "plain") as events:
        publisher = await node.connect()
        heard = []

        async def publish():
            for at in range(0, 3_200, 32):
                await publisher.say(
                    b"".join(
                        node.signed(
                            "POST", "events", {"name": "t", "channel": "plain", "data": str(n)}
                        )
                        for n in range(at, at + 32)
                    )
                )
                for _ in range(32):
                    assert (await publisher.answer("POST")).status == 200

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            async for event in events:
                heard.append(event.json())
                if len(heard) == 3_200:
                    break
        assert heard == list(range(3_200))


async def test_publishers_over_http_are_answered_late_while_a_subscriber_is_busy():
    async with running() as node, node.broker.subscribe(APP_ID, "plain") as events:
        for number in range(500):
            node.broker.publish_nowait(APP_ID, "plain", "t", number)
        publisher = await node.connect()
        await publisher.say(
            node.signed("POST", "events", {"name": "t", "channel": "plain", "data": "500"})
        )
        with trio.move_on_after(0.1) as scope:
            await publisher.more()
        assert scope.cancelled_caught
        assert [(await anext(events)).json() for _ in range(500)] == list(range(500))
        assert (await publisher.answer("POST")).status == 200
        assert (await anext(events)).json() == 500


async def waiting_publisher(node, events):
    """A publisher over HTTP that waits for a subscriber here, which has taken nothing yet."""
    for number in range(500):
        node.broker.publish_nowait(APP_ID, "plain", "t", number)
    wire = await node.connect()
    event = {"name": "t", "channel": "plain", "data": "500"}
    await wire.say(node.signed("POST", "events", event))
    await until(lambda: events._waiting_for_room)
    return wire


async def test_what_a_publisher_waits_to_publish_is_published_though_it_has_left():
    async with running() as node, node.broker.subscribe(APP_ID, "plain") as events:
        wire = await waiting_publisher(node, events)
        await wire.aclose()
        assert [(await anext(events)).json() for _ in range(501)] == list(range(501))


async def test_what_waits_when_the_server_ends_is_neither_published_nor_answered():
    """Though the broker goes on."""
    async with (
        open_broker(BrokerConfig(apps=(make_app(),))) as broker,
        broker.subscribe(APP_ID, "plain") as events,
        trio.open_nursery() as nursery,
    ):
        server = await nursery.start(serve, broker, "127.0.0.1:0")
        for number in range(500):
            broker.publish_nowait(APP_ID, "plain", "t", number)
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        event = {"name": "t", "channel": "plain", "data": "500"}
        await stream.send_all(signed("POST", "events", event, at=broker.unix_now()))
        await until(lambda: events._waiting_for_room)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await until(lambda: not len(server.poller))
            for number in range(500):
                assert (await anext(events)).json() == number
            await until(lambda: not broker.fanout._waiting_for_room)
            assert not events._waiting
            assert await stream.receive_some() == b""
            await stream.aclose()


async def test_a_subscriber_that_has_stalled_holds_no_publisher_over_http():
    async with running() as node, node.broker.subscribe(APP_ID, "plain") as events:
        wire = await waiting_publisher(node, events)
        await node.wait(29)
        assert events._waiting_for_room
        await node.wait(2)
        assert (await wire.answer("POST")).status == 200


async def test_very_many_publishers_that_wait_are_answered_in_the_order_they_came():
    async with running() as node, node.broker.subscribe(APP_ID, "plain") as events:
        wires = []
        for number in range(100):
            if not number:
                wires.append(await waiting_publisher(node, events))
                continue
            wires.append(await node.connect())
            event = {"name": "t", "channel": "plain", "data": str(500 + number)}
            await wires[-1].say(node.signed("POST", "events", event))
            await until(lambda number=number: len(events._waiting_for_room) == number + 1)
        assert [(await anext(events)).json() for _ in range(600)] == list(range(600))
        for wire in wires:
            assert (await wire.answer("POST")).status == 200


async def test_answers_that_http_clients_do_not_read_count_for_the_ceiling_too():
    """Past it the one that took nothing for the longest is cut off, and others are served."""
    app = make_app(max_event_bytes=1_000_000)
    async with running(app, max_outbox_bytes=3_000_000) as node:
        for number in range(2):
            await node.broker.publish(APP_ID, f"cache-{number}", "e", "x" * 1_000_000)
        lazy = []
        for _ in range(40):
            wire = await node.connect(receives=4096)
            for number in range(2):
                await wire.say(node.signed("GET", f"channels/cache-{number}/cache"))
            lazy.append(wire)
        await until(lambda: node.broker.backlog.n_closed)
        assert node.broker.statistics().outbox_bytes <= 3_000_000
        assert (await node.ask("GET", "channels")).status == 200
