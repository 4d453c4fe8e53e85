"""Connections that a host's own trio-websocket server accepted.

The host here is stock ``serve_websocket`` in the same ``trio.run``: whatever reaches its nursery
would end the test.
"""

from __future__ import annotations

import json
from base64 import b64encode
from contextlib import asynccontextmanager
from functools import partial

import msgpack
import pytest
import structlog
import trio
from trio_websocket import CloseReason, ConnectionClosed, serve_websocket
from wsproto.events import CloseConnection, TextMessage

import cachecast.tasks.heartbeat
from cachecast import BrokerConfig, bridge, open_broker
from cachecast.server.bridge import _calm, _end
from tests.sockets.node import (
    APP_ID,
    KEY,
    TICK_S,
    Client,
    Clock,
    Wire,
    frame,
    make_app,
    message,
    until,
    upgrade_request,
)

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Host:
    """A service with one path that is bridged."""

    def __init__(self, broker, clock, **serving):
        self.broker = broker
        self.clock = clock
        self.serving = serving
        self.port = 0
        self.n_served = 0
        self.scopes = []
        self.wires = []

    async def on_request(self, request):
        subprotocol = next(iter(request.proposed_subprotocols), None)
        connection = await request.accept(subprotocol=subprotocol)
        with trio.CancelScope() as scope:
            self.scopes.append(scope)
            await bridge(self.broker, connection, request.path.rpartition("/")[2])
        self.n_served += 1

    async def wait(self, seconds):
        """Let time pass, until whatever is due by then has been done."""
        self.clock.advance(seconds)
        await self.broker.heartbeat.step()

    async def run(self, task_status):
        serve = partial(serve_websocket, self.on_request, "127.0.0.1", 0, None, **self.serving)
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve)
            self.port = server.port
            task_status.started()

    async def handshake(self, *headers, key=KEY, receives=None):
        sock = trio.socket.socket()
        if receives:
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receives)
        await sock.connect(("127.0.0.1", self.port))
        wire = Wire(trio.SocketStream(sock))
        self.wires.append(wire)
        await wire.say(upgrade_request(f"/realtime/{key}", b64encode(b"0" * 16), *headers))
        head = await wire.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        return Client(wire, head)

    async def client(self):
        client = await self.handshake()
        established = await client.hear()
        client.socket_id = json.loads(established["data"])["socket_id"]
        return client


def reader_tasks(nursery):
    """Tasks of trio-websocket's that still serve a connection."""
    found, nurseries = [], [nursery]
    while nurseries:
        for task in nurseries.pop().child_tasks:
            nurseries += task.child_nurseries
            if "_reader_task" in task.name:
                found.append(task)
    return found


@asynccontextmanager
async def hosting(*apps, serving=None, **config):
    """A broker, and a host that bridges to it; afterwards nothing is left of any connection.

    The broker's time stands still, as in ``running``.
    """
    settings = BrokerConfig(apps=apps or (make_app(),), **config)
    with structlog.testing.capture_logs() as logs, pytest.MonkeyPatch.context() as patch:
        patch.setattr(cachecast.tasks.heartbeat, "TICK_S", TICK_S)
        clock = Clock()
        async with (
            open_broker(settings, clock=clock) as broker,
            trio.open_nursery() as nursery,
        ):
            host = Host(broker, clock, **(serving or {}))
            await nursery.start(host.run)
            try:
                yield host
                n_clients = len(host.wires)
            finally:
                with trio.CancelScope(shield=True):
                    for wire in host.wires:
                        await wire.aclose()
            await until(lambda: host.n_served == n_clients)
            await until(lambda: not reader_tasks(nursery))
            assert broker.clients.n_sessions == 0
            nursery.cancel_scope.cancel()
    assert not [entry for entry in logs if entry["event"] == "connection failed"], logs


async def say_if_heard(client, data):
    """Send to a server that may have closed already."""
    try:
        await client.wire.say(data)
    except trio.BrokenResourceError:
        pass


async def test_bridged_client_is_a_client_like_any_other():
    async with hosting(make_app(allows_client_events=True)) as host:
        client, other = await host.client(), await host.client()
        await client.subscribe("cache-a")
        assert (await client.hear())["event"] == "pusher:cache_miss"
        for number in range(300):
            host.broker.publish_nowait(APP_ID, "cache-a", "e", str(number))
        while (await client.hear("e"))["data"] != "299":
            pass
        for one in (client, other):
            await one.subscribe_signed("presence-a", json.dumps({"user_id": one.socket_id}))
        assert (await client.hear())["event"] == "pusher_internal:member_added"
        await client.say("client-hi", 1, channel="presence-a")
        assert (await other.hear())["user_id"] == client.socket_id
        await client.send(CLOSE, b"\x03\xe8")
        assert (await other.hear())["event"] == "pusher_internal:member_removed"
        assert (await client.closed())[0] == 1000


async def test_msgpack_is_spoken_where_the_host_accepted_it():
    async with hosting() as host:
        client = await host.handshake("Sec-WebSocket-Protocol: cachecast.v1.msgpack")
        opcode, payload = await client.frame()
        assert opcode == BINARY
        assert msgpack.unpackb(payload)["event"] == "pusher:connection_established"
        await client.send(BINARY, msgpack.packb({"event": "pusher:ping"}))
        assert msgpack.unpackb((await client.frame())[1])["event"] == "pusher:pong"
        await client.send(TEXT, b"{}")
        assert (await client.closed())[0] == 1003


async def test_binary_message_on_a_json_connection_is_1003():
    async with hosting() as host:
        client = await host.client()
        await client.send(BINARY, b"\x80")
        assert (await client.closed())[0] == 1003


async def test_refused_key_is_told_and_closed():
    async with hosting() as host:
        client = await host.handshake(key="unknown")
        assert (await client.hear())["data"]["code"] == 4001
        assert (await client.closed())[0] == 4001
        await client.send(CLOSE, b"\x0f\xa1")
        assert await client.wire.end() == b""


async def test_refused_client_that_never_answers_is_let_go():
    async with hosting(close_timeout_s=0.1) as host:
        client = await host.handshake(key="unknown")
        assert (await client.closed())[0] == 4001
        assert await client.wire.end() == b""
        await until(lambda: host.n_served == 1)


async def test_long_reason_fits_a_close_frame():
    async with hosting() as host:
        client = await host.handshake(key="k" * 100)
        assert (await client.hear())["data"]["code"] == 4001
        code, reason = await client.closed()
        assert code == 4001
        assert len(reason.encode()) <= 123


@pytest.mark.parametrize(
    "late",
    [
        frame(PING, b"x"),
        frame(TEXT, b"x" * 200_000),
        frame(TEXT, b"x" * 200_000) + frame(PING, b"x") * 3,
        frame(TEXT, message("pusher:ping")) * 20,
        frame(TEXT, b"\xff"),
        frame(3, b""),
        frame(PING, b"x") + frame(3, b"") + frame(PING, b"x"),
        frame(CLOSE, b"\x03"),
    ],
)
async def test_nothing_that_comes_after_our_close_reaches_the_host(late):
    """trio-websocket 0.12.2 raises out of its reader task, which ends the host's ``trio.run``."""
    async with hosting(serving={"max_message_size": 100_000}) as host:
        bystander = await host.client()
        client = await host.client()
        connection = next(
            connection for connection in host.broker.hubs[APP_ID].connections.values()
            if connection.session.socket_id == client.socket_id
        )  # fmt: skip
        host.broker.clients.disconnect(connection, 4009, "bye")
        await client.hear("pusher:error")
        assert (await client.closed())[0] == 4009
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say_if_heard, client, late + frame(CLOSE, b"\x0f\xa9"))
            await trio.testing.wait_all_tasks_blocked(0.01)  # as much has been read as will be
            await host.wait(6)  # where the Close went under in the rest
            await client.wire.end()
        await bystander.say("pusher:ping")
        assert (await bystander.hear())["event"] == "pusher:pong"


@pytest.mark.parametrize(
    "bad",
    [
        frame(TEXT, b"x" * 200_000) + frame(PING, b"x") * 3,
        frame(TEXT, b"\xff"),
        frame(TEXT, b"{}", is_masked=False),
        frame(3, b"") + frame(PING, b"x"),
        frame(TEXT, message("pusher:ping"))[:-1],
        b"\x00" * 100,
    ],
)
async def test_bad_bytes_cost_only_their_connection(bad):
    async with hosting(serving={"max_message_size": 100_000}) as host:
        bystander = await host.client()
        for _ in range(3):
            client = await host.client()
            await say_if_heard(client, bad)
            await client.wire.aclose()
        await bystander.say("pusher:ping")
        assert (await bystander.hear())["event"] == "pusher:pong"


async def test_lack_of_memory_is_nobodys_own_fault_and_reaches_the_host():
    """As it ends a node (DESIGN.md): half a service is worse than none."""

    def receive(session, payload):
        raise MemoryError

    async def serve_one():
        async with hosting() as host:
            host.broker.clients.receive = receive
            client = await host.client()
            await client.say("pusher:ping", {})
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        await serve_one()
    ended, rest = caught.value.split(MemoryError)
    assert (ended is not None, rest) == (True, None)


async def test_idle_client_that_answers_pings_is_kept_and_one_that_does_not_is_closed():
    async with hosting(activity_timeout_s=5, pong_timeout_s=20) as host:
        alive, dead = await host.client(), await host.client()
        connection = host.broker.hubs[APP_ID].connections[alive.socket_id]
        await host.wait(5)
        assert (await dead.frame())[0] == PING
        opcode, payload = await alive.frame()
        assert opcode == PING
        await alive.send(PONG, payload)
        await until(lambda: connection.session.active_at == host.clock())
        await host.wait(20)
        assert (await dead.hear())["data"]["code"] == 4201
        assert (await dead.closed())[0] == 4201
        assert host.broker.clients.n_sessions == 1
        assert (await alive.frame())[0] == PING
        await alive.say("pusher:ping")
        assert (await alive.hear())["event"] == "pusher:pong"


async def test_client_that_never_answers_our_close_is_let_go():
    async with hosting(close_timeout_s=5) as host:
        client = await host.client()
        await client.send(BINARY, b"\x80")
        assert (await client.closed())[0] == 1003
        await host.wait(5)
        assert await client.wire.end() == b""
        await until(lambda: host.n_served == 1)


async def test_client_that_never_reads_is_closed_and_bounded():
    app = make_app(max_pending_bytes=100_000, max_event_bytes=50_000)
    async with hosting(app) as host:
        client = await host.handshake(receives=4096)
        await client.hear()
        await client.subscribe("a")
        (connection,) = host.broker.hubs[APP_ID].connections.values()
        counters = host.broker.hubs[APP_ID].counters
        while not counters.slow_closes:
            await host.broker.publish(APP_ID, "a", "e", "x" * 50_000)
            assert connection.outbox.waiting_bytes < 300_000
        # Its task is stuck in the middle of a send; the end must come all the same.
        await host.wait(6)
        await until(lambda: host.n_served == 1)


async def test_slow_client_of_a_cache_channel_catches_up_with_the_present():
    app = make_app(max_event_bytes=50_000)
    async with hosting(app) as host:
        client = await host.handshake(receives=4096)
        await client.hear()
        await client.subscribe("cache-a")
        for number in range(400):
            await host.broker.publish(APP_ID, "cache-a", "e", f"{number}:" + "x" * 49_000)
        seen = []
        while not seen or seen[-1] != 399:
            seen.append(int((await client.hear("e"))["data"].partition(":")[0]))
        assert seen == sorted(set(seen))
        assert len(seen) < 400


async def test_cancelled_bridge_ends_its_connection_by_force():
    async with hosting() as host:
        client = await host.client()
        host.scopes[0].cancel()
        # Nobody answers a Close, and no time passes in which that could be given up.
        assert await client.wire.end() in {b"", b"\x88\x02\x03\xe8"}
        await until(lambda: not host.broker.clients.n_sessions)


@pytest.mark.parametrize("last", [b"", frame(3, b""), frame(TEXT, b"\xff"), frame(PING, b"x")])
async def test_aborted_client_is_forgotten(last):
    async with hosting() as host:
        client = await host.client()
        await client.subscribe("a")
        sock = client.wire.stream.socket
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        # Without a checkpoint between them: whatever is answered finds the stream broken.
        sock._sock.send(last)
        sock.close()
        await until(lambda: not host.broker.hubs[APP_ID].channels)


async def test_client_gets_time_to_answer_our_close():
    async with hosting(close_timeout_s=5) as host:
        client = await host.client()
        await client.send(BINARY, b"\x80")
        assert (await client.closed())[0] == 1003
        await host.wait(4)
        assert host.n_served == 0
        await client.send(CLOSE, b"\x03\xeb")
        assert await client.wire.end() == b""


async def test_client_that_talks_and_never_reads_leaves_no_task_behind():
    """trio-websocket's reader waits to hand over a message that nobody wants any more."""
    app = make_app(max_pending_bytes=100_000, max_event_bytes=50_000)
    async with hosting(app) as host:
        client = await host.handshake(receives=4096)
        await client.hear()
        await client.subscribe("a")

        async def talk():
            while True:
                await say_if_heard(client, frame(TEXT, message("client-x")) * 100)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            while not host.broker.hubs[APP_ID].counters.slow_closes:
                await host.broker.publish(APP_ID, "a", "e", "x" * 50_000)
                if not host.broker.clients.n_sessions:
                    break  # its nonsense was noticed first
            await host.wait(6)
            await until(lambda: host.n_served == 1)
            nursery.cancel_scope.cancel()


async def test_calm_connection_says_no_close_to_a_broken_stream_and_hides_nothing_else():
    class Broken:
        async def _send(self, event):
            await trio.lowlevel.checkpoint()
            raise ConnectionClosed(None)

    connection = Broken()
    _calm(connection)
    await connection._send(CloseConnection(code=1002))
    with pytest.raises(ConnectionClosed):
        await connection._send(TextMessage(data="x"))


async def test_forced_end_frees_a_reader_that_waits_to_hand_over_a_message(nursery):
    """As after an ``aclose`` that was cancelled in its send: the host's own then does nothing."""
    is_over = trio.Event()

    async def on_request(request):
        connection = await request.accept()
        await until(lambda: connection._recv_channel.statistics().tasks_waiting_send)
        connection._close_reason = CloseReason(1000, None)
        await _end(connection)
        is_over.set()

    serve = partial(serve_websocket, on_request, "127.0.0.1", 0, None)
    server = await nursery.start(serve)
    wire = Wire(await trio.open_tcp_stream("127.0.0.1", server.port))
    await wire.say(upgrade_request("/", b64encode(b"0" * 16)))
    await wire.until(b"\r\n\r\n")
    await wire.say(frame(TEXT, b"x") * 1_000)
    await is_over.wait()
    await until(lambda: not reader_tasks(nursery))
    await wire.aclose()
    nursery.cancel_scope.cancel()


async def test_client_that_asks_for_more_than_it_reads_is_paced():
    """As behind our own sockets: all of it comes, and little waits."""
    async with hosting() as host:
        for number in range(200):
            await host.broker.publish(APP_ID, f"cache-{number}", "e", "x" * 10_000)
        client = await host.handshake(receives=4096)
        await client.hear()
        requests = [message("pusher:subscribe", {"channel": f"cache-{i}"}) for i in range(200)]
        seen, most = [], 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.wire.say, b"".join(frame(TEXT, r) for r in requests))
            while len(seen) < 200:
                heard = await client.hear()
                if heard["event"] == "e":
                    seen.append(heard["channel"])
                most = max(most, host.broker.statistics().outbox_bytes)
        assert seen == [f"cache-{number}" for number in range(200)]
        assert most < 200_000
        assert not host.broker.hubs[APP_ID].counters.slow_closes


async def test_client_that_stops_reading_what_it_asked_for_is_closed_in_time():
    async with hosting(make_app(stall_timeout_s=10)) as host:
        for number in range(400):
            await host.broker.publish(APP_ID, f"cache-{number}", "e", "x" * 10_000)
        client = await host.handshake(receives=4096)
        await client.hear()
        requests = [message("pusher:subscribe", {"channel": f"cache-{i}"}) for i in range(400)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(say_if_heard, client, b"".join(frame(TEXT, r) for r in requests))
            await until(lambda: any(outbox.is_pacing for outbox in host.broker.backlog))
            counters = host.broker.hubs[APP_ID].counters
            for _ in range(4):
                await host.wait(11)
            assert counters.slow_closes == 1
            await host.wait(6)
            await until(lambda: host.n_served == 1)
            nursery.cancel_scope.cancel()
