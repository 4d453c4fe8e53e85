"""``serve --uds``: clients on a Unix socket, beside a port or instead, one process or several."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time

import pytest
import trio

from cachecast import BrokerConfig, open_broker, serve
from cachecast.errors import ConfigError
from tests.loadtest.proxies import free_port, nginx
from tests.sockets.node import Client, Wire, make_app, signed, until, upgrade_request
from tests.unit.cli.test_serve import DEMO, refused_process, serving
from tests.unit.cli.test_upgrade import processes_of, upgrade
from tests.unit.cli.test_workers import workers_of


@pytest.fixture
def path(tmp_path):
    return tmp_path / "clients.sock"


async def client_at(stream):
    wire = Wire(stream)
    await wire.say(upgrade_request("/app/app-key", b"dGhlIHNhbXBsZSBub25jZQ=="))
    client = Client(wire, await wire.until(b"\r\n\r\n"))
    await client.hear("pusher:connection_established")
    return client


async def publish(stream, channel):
    """One event by HTTP; the connection is gone afterwards."""
    wire = Wire(stream)
    body = {"name": "tick", "channel": channel, "data": "1"}
    await wire.say(signed("POST", "/apps/4242/events", body, at=time.time(), **DEMO))
    assert (await wire.answer("POST")).status == 200
    await wire.aclose()


async def test_clients_of_a_path_and_of_a_port_are_served_alike(path):
    with serving("--uds", str(path)) as server:
        assert f" and unix:{path} (" in server.said[-1]
        assert stat.S_IMODE(path.lstat().st_mode) == 0o660
        one, two = await client_at(await trio.open_unix_socket(path)), await server.client()
        for client in (one, two):
            await client.subscribe("room")
        await publish(await trio.open_unix_socket(path), "room")
        for client in (one, two):
            assert (await client.hear("tick"))["data"] == "1"
            await client.wire.aclose()
        assert await trio.to_thread.run_sync(server.end) == 0
        assert not path.exists()


async def test_a_path_may_be_all_there_is_and_is_taken_over_from_the_dead(path):
    with serving("--uds", str(path), "--uds-only") as server:
        assert server.port == 0
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    assert path.exists()
    with serving("--uds", str(path), "--uds-only") as server:
        client = await client_at(await trio.open_unix_socket(path))
        await client.wire.aclose()
        said = refused_process("--port", "0", "--uds", str(path))
        assert "another node listens at" in said
        assert "--uds" in said
        await publish(await trio.open_unix_socket(path), "room")
        assert await trio.to_thread.run_sync(server.end) == 0


async def test_a_successor_goes_on_at_the_path_and_takes_it_away_at_the_end(path, tmp_path):
    control = tmp_path / "control"
    with serving("--uds", str(path), "--uds-only", "--control", str(control)) as server:
        client = await client_at(await trio.open_unix_socket(path))
        await client.subscribe("room")
        await upgrade(control)
        assert processes_of(server.process.pid)
        await publish(await trio.open_unix_socket(path), "room")
        assert (await client.hear("tick"))["data"] == "1"
        await client.wire.aclose()
        assert await trio.to_thread.run_sync(server.end) == 0
        assert not path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("only", [(), ("--uds-only",)])
async def test_workers_accept_on_one_socket(path, only):
    """Also one that was started again; the path goes with the parent."""
    with serving("--uds", str(path), "--workers", "2", *only) as server:
        clients = [await client_at(await trio.open_unix_socket(path)) for _ in range(20)]
        for client in clients:
            await client.subscribe("room")
        before = workers_of(server.process.pid)
        os.kill(next(iter(before)), signal.SIGKILL)
        await until(lambda: len(workers_of(server.process.pid).keys() - before.keys()) == 1)
        server.wait_logged("worker is ready again")
        for client in clients:
            await client.wire.aclose()
        clients = [await client_at(await trio.open_unix_socket(path)) for _ in range(20)]
        for client in clients:
            await client.wire.aclose()
        assert await trio.to_thread.run_sync(server.end) == 0
        assert not path.exists()


async def test_nginx_passes_websockets_and_publishes_on_to_a_path(path, tmp_path):
    port = free_port()
    block = f"""
    upstream cachecast {{ server unix:{path}; keepalive 8; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://cachecast;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $http_connection;
        }}
    }}"""
    with serving("--uds", str(path), "--uds-only"), nginx(tmp_path, block, [port]):
        client = await client_at(await trio.open_tcp_stream("127.0.0.1", port))
        await client.subscribe("room")
        await publish(await trio.open_tcp_stream("127.0.0.1", port), "room")
        assert (await client.hear("tick"))["data"] == "1"
        await client.wire.aclose()


async def test_what_was_opened_is_undone_where_another_address_cannot_be_had(path):
    """No path stays behind, and the other's stays."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with open_broker(BrokerConfig(apps=(make_app(),))) as broker:
            with pytest.raises(ConfigError, match="already in use"):
                await serve(broker, [f"unix:{path}", f"127.0.0.1:{port}"])
    assert not path.exists()


async def test_an_end_leaves_the_path_alone_that_is_another_nodes_by_then(path):
    async with (
        open_broker(BrokerConfig(apps=(make_app(),))) as broker,
        trio.open_nursery() as nursery,
    ):
        server = await nursery.start(serve, broker, f"unix:{path}")
        assert server.port == 0
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
        nursery.cancel_scope.cancel()
    assert path.exists()
