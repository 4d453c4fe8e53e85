"""serve(): addresses, admission when files run out, time limits, and an orderly end."""

from __future__ import annotations

import errno
import os
import socket
from functools import partial

import pytest
import trio

from cachecast import BrokerConfig, ConfigError, Server, open_broker, serve
from cachecast.server.listeners import open_listener
from tests.sockets.node import HOST, KEY, TICK_S, make_app, no_new_fds, running, until

GET = b"GET /nowhere HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
async def test_ipv6_address_is_served():
    try:
        open_listener("[::1]:0").close()
    except ConfigError:
        pytest.skip("no IPv6 loopback")
    async with open_broker(BrokerConfig(apps=(make_app(),))) as broker, trio.open_nursery() as own:
        server = await own.start(serve, broker, "[::1]:0")
        stream = await trio.open_tcp_stream("::1", server.port)
        await stream.send_all(GET)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 404")
        await stream.aclose()
        own.cancel_scope.cancel()


async def test_taken_admin_port_fails_or_falls_back():
    with open_listener("127.0.0.1:0") as taken:
        admin = f"127.0.0.1:{taken.getsockname()[1]}"
        async with open_broker(BrokerConfig(apps=(make_app(),))) as broker:
            with no_new_fds(), pytest.raises(ConfigError, match="cannot listen"):
                await serve(broker, "127.0.0.1:0", admin_address=admin)
            async with trio.open_nursery() as own:

                async def run(task_status):
                    await serve(
                        broker, "127.0.0.1:0", admin_address=admin, falls_back=True,
                        task_status=task_status,
                    )  # fmt: skip

                server = await own.start(run)
                assert server.admin_port not in {None, taken.getsockname()[1]}
                own.cancel_scope.cancel()


async def test_cancelling_closes_every_socket_at_once():
    with no_new_fds():
        async with running(has_admin=True) as node:
            client, wire, fresh = await node.client(), await node.connect(), await node.connect()
            await wire.say(GET[:10])
            await until(lambda: len(node.server.poller) == 5)
            node.nursery.cancel_scope.cancel()
            assert await trio.to_thread.run_sync(lambda: None, abandon_on_cancel=True) is None
            for each in (client.wire, wire, fresh):
                await each.aclose()


class _Exhausted:
    """A listening socket of a process, or system, without file descriptors."""

    def __init__(self, sock, number):
        self.sock = sock
        self.number = number
        self.tries = 0

    def _accept(self):
        self.tries += 1
        if self.number is None:
            return self.sock._accept()
        raise OSError(self.number, "exhausted")

    def fileno(self):
        return self.sock.fileno()

    def close(self):
        self.sock.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_exhausted_system_pauses_accepting_without_spinning(number):
    async with running() as node:
        client = await node.client()
        (listener,) = node.server.listeners
        broken = listener.sock = _Exhausted(listener.sock, number)
        waiting = await node.connect()
        await waiting.say(GET)
        await until(lambda: broken.tries >= 3)  # once a tick
        assert broken.tries < 10
        await client.say("pusher:ping")
        assert (await client.hear())["event"] == "pusher:pong"
        broken.number = None
        assert (await waiting.answer()).status == 404


async def test_pause_is_logged_once_and_not_once_a_second():
    async with running() as node:
        (listener,) = node.server.listeners
        broken = listener.sock = _Exhausted(listener.sock, errno.EMFILE)
        await node.connect()
        await until(lambda: broken.tries >= 5)
        paused = [entry for entry in node.logs if entry["event"] == "accepting paused"]
        assert len(paused) == 1
        broken.number = None
        await until(lambda: any(entry["event"] == "accepting again" for entry in node.logs))


async def test_client_that_left_before_it_was_accepted_stops_nobody():
    async with running() as node:
        (listener,) = node.server.listeners
        broken = listener.sock = _Exhausted(listener.sock, errno.ECONNABORTED)
        waiting = await node.connect()
        await until(lambda: broken.tries)
        broken.number = None
        await waiting.say(GET)
        assert (await waiting.answer()).status == 404


async def test_stopping_to_listen_leaves_open_connections_alone():
    async with running() as node:
        client = await node.client()
        node.server.stop_listening()
        with pytest.raises(OSError, match="refused"):
            await node.connect()
        await client.say("pusher:ping")
        assert (await client.hear())["event"] == "pusher:pong"


async def test_drain_closes_clients_at_an_even_pace_with_4100():
    async with running() as node:
        clients = [await node.client() for _ in range(40)]
        times = []

        async def watch(client):
            error = await client.hear("pusher:error")
            assert error["data"]["code"] == 4100
            assert (await client.closed())[0] == 4100
            times.append(trio.current_time())
            await client.send(8, b"\x10\x04")
            assert await client.wire.end() == b""

        async with trio.open_nursery() as own:
            for client in clients:
                own.start_soon(watch, client)
            started = trio.current_time()
            await node.server.drain(1.0)

        times.sort()
        assert times[-1] - started > 0.7
        assert times[-1] - times[0] > 0.5
        assert times[20] - times[0] > 0.2
        assert node.broker.clients.n_sessions == 0


async def test_drain_may_bring_clients_back_at_once():
    """For a node behind a balancer that has another one ready."""
    async with running() as node:
        client = await node.client()
        async with trio.open_nursery() as own:
            own.start_soon(partial(node.server.drain, 0.0, code=4200))
            assert (await client.hear("pusher:error"))["data"]["code"] == 4200
            assert (await client.closed())[0] == 4200
            await client.send(8, b"\x10\x68")
            assert await client.wire.end() == b""


async def test_draining_server_accepts_nobody_and_refuses_upgrades_with_4100():
    async with running() as node:
        held = await node.connect()  # keeps the drain waiting: a request half sent
        await held.say(GET[:10])
        late = await node.connect()
        upgrade = (
            f"GET /app/{KEY} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
        await late.say(upgrade[:20])
        await until(lambda: len(node.server.poller) == 3)
        node.nursery.start_soon(node.server.drain, 0.0)
        await until(lambda: node.server.common.is_draining)
        with pytest.raises(OSError, match="refused"):
            await node.connect()
        await late.say(upgrade[20:])
        assert b'"code":4100' in await late.end()
        await held.say(GET[10:])
        assert (await held.answer()).headers["connection"] == "close"


async def test_listener_that_is_paused_when_the_drain_begins_is_not_asked_to_go_on(monkeypatch):
    """A full node is told to end: every client hears so, and nothing else happens."""
    async with running() as node:
        clients = [await node.client() for _ in range(3)]
        (listener,) = node.server.listeners
        listener._pause("full")
        async with trio.open_nursery() as own:
            own.start_soon(node.server.drain, 5 * TICK_S)
            for client in clients:
                assert (await client.closed())[0] == 4100
                await client.wire.aclose()
        for _ in range(3):
            await node.wait(1)
        assert node.server.listeners == []


async def test_whoever_ends_a_listener_the_timer_does_not_find_it():
    async with running(has_admin=True) as node:
        for listener in list(node.server.listeners):
            listener._pause("full")
        node.server.listeners[0].abort()
        await node.wait(1)
        node.server.stop_listening()
        node.server.stop_listening()
        await node.wait(1)


async def test_nobody_took_too_long_whose_request_lies_in_the_socket():
    """As after a pause of the process: it is answered, and not with 408."""
    async with running() as node:
        wire = await node.connect()
        await wire.say(GET[:10])
        await until(lambda: any(each._parser.has_begun for each in node.server.room._newcomers))
        sock = wire.stream.socket
        with socket.socket(fileno=os.dup(sock.fileno())) as plain:
            plain.setblocking(False)
            plain.send(GET[10:])
            node.clock.advance(3_600)
            # The timer is woken before the Poller.
            for connection in node.server.common.timeouts.pop_due(
                node.server.poller.read_until(), 10
            ):
                connection.on_timeout()
        assert (await wire.answer()).status == 404


async def test_date_of_responses_moves_on():
    async with running() as node:
        node.server.common.date = "Thu, 01 Jan 1970 00:00:00 GMT"
        await until(lambda: "1970" not in node.server.common.date)
        wire = await node.connect()
        await wire.say(GET)
        assert (await wire.answer()).headers["date"].endswith(" GMT")
        assert isinstance(node.server, Server)
