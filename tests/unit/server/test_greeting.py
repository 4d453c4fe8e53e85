"""Connections that begin with a PROXY header, over real sockets, behind Debian's HAProxy too."""

from __future__ import annotations

import json
import time

import pytest
import trio
import trustme

from cachecast import TlsTerms
from cachecast.server.succession import leave
from tests.loadtest.proxies import free_port, haproxy
from tests.sockets.node import (
    APP_ID,
    HOST,
    KEY,
    Client,
    Wire,
    make_app,
    running,
    signed,
    until,
    upgrade_request,
)
from tests.unit.cli.test_serve import DEMO, serving
from tests.unit.server.test_proxy_protocol import GOOD, V4, addition, binary

GET = b"GET /up HTTP/1.1\r\n" + HOST + b"\r\n"
LINE = GOOD["v1 IPv4"]


@pytest.mark.parametrize("header", GOOD.values(), ids=GOOD.keys())
async def test_what_comes_behind_a_header_is_served(header):
    """In one piece with it, and byte by byte."""
    async with running(proxy_protocol=True) as node:
        wire = await node.connect()
        await wire.say(header + GET)
        assert (await wire.answer()).status == 200
        if len(header) < 60:
            wire = await node.connect()
            for byte in header + GET:
                await wire.say(bytes([byte]))
            assert (await wire.answer()).status == 200
        assert node.server.room.n_websockets == 0


@pytest.mark.parametrize("said", [GET, b"\x16\x03\x01\x02", b"PROXY TCP4 x\r\n", binary(V4[:3])])
async def test_a_connection_without_a_header_is_closed_and_counted(said):
    async with running(proxy_protocol=True, has_admin=True) as node:
        wire = await node.connect()
        await wire.say(said)
        assert await wire.end() == b""
        assert node.broker.clients.refusals["proxy"] == 1
        assert len(node.server.poller) == 2
        admin = await node.connect(is_admin=True)
        await admin.say(GET)
        assert (await admin.answer()).status == 200


async def test_a_header_has_its_time_and_no_more():
    async with running(proxy_protocol=True, request_timeout_s=10) as node:
        wire = await node.connect()
        await wire.say(LINE[:20])
        await until(lambda: len(node.server.poller) == 2)
        await node.wait(9)
        assert len(node.server.poller) == 2
        await node.wait(1)
        assert await wire.end() == b""
        assert node.broker.clients.refusals["proxy"] == 1


async def test_who_looks_whether_somebody_listens_is_no_refusal():
    async with running(proxy_protocol=True) as node:
        wire = await node.connect()
        await wire.stream.send_eof()
        assert await wire.end() == b""
        assert not node.broker.clients.refusals


async def test_a_drain_ends_who_has_not_said_whose_it_is():
    async with running(proxy_protocol=True, request_timeout_s=600) as node:
        wire = await node.connect()
        await wire.say(LINE[:20])
        await until(lambda: len(node.server.poller) == 2)
        await node.server.drain(0.0)
        assert await wire.end() == b""


async def test_who_has_not_said_whose_it_is_is_no_client_of_a_process_that_was_replaced():
    """It would be answered by one that nobody listens to any more."""
    async with running(proxy_protocol=True, request_timeout_s=600) as node:
        wire = await node.connect()
        await wire.say(LINE[:20])
        await until(lambda: len(node.server.poller) == 2)
        leave(node.server, [])
        assert await wire.end() == b""


async def test_tls_begins_behind_the_header(tmp_path):
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    terms = TlsTerms(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with running(tls=terms, trusts=authority, proxy_protocol=True) as node:
        stream = await trio.open_tcp_stream("127.0.0.1", node.server.port)
        await stream.send_all(binary())
        wire = Wire(trio.SSLStream(stream, node.tls, server_hostname="localhost"))
        node.wires.append(wire)
        await wire.say(GET)
        assert (await wire.answer()).status == 200


@pytest.mark.parametrize(("flags", "status"), [(b"\x01", 200), (b"\x00", 403)])
async def test_a_client_that_came_to_the_balancer_by_tls_counts_as_one(flags, status):
    """For apps that take TLS only: requests, and WebSockets likewise."""
    header = binary(V4 + addition(0x20, flags + bytes(4)))
    async with running(make_app(is_tls_only=True), proxy_protocol=True) as node:
        wire = await node.connect()
        await wire.say(header + signed("GET", f"/apps/{APP_ID}/channels", at=node.unix_now()))
        assert (await wire.answer()).status == status
        wire = await node.connect()
        await wire.say(
            header + upgrade_request(f"/app/{KEY}?protocol=7", b"dGhlIHNhbXBsZSBub25jZQ==")
        )
        client = Client(wire, await wire.until(b"\r\n\r\n"))
        heard = (await client.hear())["event"]
        assert heard == ("pusher:connection_established" if status == 200 else "pusher:error")


@pytest.mark.parametrize("how", ["send-proxy", "send-proxy-v2"])
async def test_haproxy_passes_connections_on(how, tmp_path):
    port = free_port()
    config = tmp_path / "c.toml"
    config.write_text(
        "[server]\nproxy_protocol = true\n"
        "[[apps]]\nid = '4242'\nkey = 'app-key'\nsecret = 'app-secret'\n"
    )
    with serving("--config", str(config)) as server:
        section = (
            f"listen front\n  mode tcp\n  bind 127.0.0.1:{port}\n"
            f"  server node 127.0.0.1:{server.port} {how} check inter 200ms\n"
        )
        with haproxy(tmp_path, section, [port]):
            wire = Wire(await trio.open_tcp_stream("127.0.0.1", port))
            await wire.say(upgrade_request("/app/app-key", b"dGhlIHNhbXBsZSBub25jZQ=="))
            client = Client(wire, await wire.until(b"\r\n\r\n"))
            await client.hear("pusher:connection_established")
            await client.subscribe("room")
            caller = Wire(await trio.open_tcp_stream("127.0.0.1", port))
            body = {"name": "tick", "channel": "room", "data": json.dumps("1")}
            await caller.say(signed("POST", "/apps/4242/events", body, at=time.time(), **DEMO))
            assert (await caller.answer("POST")).status == 200
            await client.hear("tick")
            await caller.aclose()
            await client.wire.aclose()
