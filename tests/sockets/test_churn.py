"""Hundreds of connections of all kinds come and go; nothing of them stays."""

from __future__ import annotations

import gc
import random

import pytest
import trio
import trustme

from cachecast import TlsTerms
from cachecast.broker.clients import Clients
from cachecast.channels.outbox import Outbox
from cachecast.protocol.session import Session
from cachecast.server.http import HttpConnection
from cachecast.server.websocket import WebSocket
from tests.sockets.node import (
    APP_ID,
    HOST,
    KEY,
    frame,
    make_app,
    message,
    no_new_fds,
    running,
    until,
    upgrade_request,
)

KINDS = (HttpConnection, WebSocket, Session, Outbox)
GET = b"GET /nowhere HTTP/1.1\r\n" + HOST + b"\r\n"


def alive():
    """How many objects of a connection there are, cycles that wait for the collector included."""
    return sum(type(one) in KINDS for one in gc.get_objects())


async def http_kept(node):
    wire = await node.connect()
    for _ in range(3):
        await wire.say(GET)
        await wire.answer()
    return wire


async def http_broken(node):
    wire = await node.connect()
    await wire.say(b"nonsense\r\n\r\n")
    await wire.answer()
    return wire


async def http_half(node):
    wire = await node.connect()
    await wire.say(GET[:9])
    return wire


async def http_publish(node):
    wire = await node.connect()
    await wire.say(node.signed("POST", "events", {"name": "e", "channel": "cache-a", "data": "1"}))
    await wire.answer("POST")
    return wire


async def silent(node):
    return await node.connect()


async def subscriber(node):
    client = await node.client()
    await client.subscribe("cache-a")
    await client.subscribe_signed("presence-a", '{"user_id":"1"}')
    return client.wire


async def refused(node):
    client = await node.handshake("/app/unknown")
    await client.refused()
    return client.wire


async def violator(node):
    client = await node.client()
    await client.wire.say(frame(3))
    await client.closed()
    return client.wire


async def chatterer(node):
    client = await node.client()
    await client.wire.say(frame(1, message("pusher:ping")) * 50 + frame(9, b"x") * 50)
    await client.hear()
    return client.wire


async def half_upgraded(node):
    wire = await node.connect()
    await wire.say(upgrade_request(f"/app/{KEY}", b"dGhlIHNhbXBsZSBub25jZQ==")[:-2])
    return wire


CLIENTS = (
    http_kept, http_broken, http_half, http_publish, silent, subscriber, refused, violator,
    chatterer, half_upgraded,
)  # fmt: skip


def reset(wire):
    stream = getattr(wire.stream, "transport_stream", wire.stream)
    if stream.socket.fileno() < 0:
        return
    linger = b"\1\0\0\0\0\0\0\0"
    stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, linger)


@pytest.mark.parametrize("is_tls", [False, True])
async def test_nothing_stays_of_connections_that_ended(is_tls, tmp_path):
    authority, tls = trustme.CA(), None
    if is_tls:
        pair = authority.issue_cert("localhost")
        pair.private_key_pem.write_to_path(str(tmp_path / "key"))
        pair.cert_chain_pems[0].write_to_path(str(tmp_path / "cert"))
        tls = TlsTerms(tmp_path / "cert", tmp_path / "key")
    dice = random.Random(7)
    n_rounds = 6 if is_tls else 30
    async with running(make_app(), tls=tls, trusts=authority) as node:
        before = alive()
        gc.disable()
        try:
            with no_new_fds():
                for _ in range(n_rounds):
                    wires = []
                    async with trio.open_nursery() as nursery:

                        async def begin(kind, wires=wires):
                            wires.append(await kind(node))

                        for kind in CLIENTS:
                            nursery.start_soon(begin, kind)
                    for wire in wires:
                        if dice.random() < 0.5:
                            reset(wire)
                        await wire.aclose()
                    node.wires.clear()
                    wires.clear()
                await until(lambda: len(node.server.poller) == 1)
                await until(lambda: not node.broker.hubs[APP_ID].connections)
            assert not node.broker.hubs[APP_ID].channels
            assert not node.broker.backlog
            assert not node.broker.backlog
            assert len(node.server.common.timeouts) == 0
            # Without the collector's help: reference counts free a connection that has ended,
            # but for those that the heartbeat still counts as closing.
            await node.broker.heartbeat.step()
            assert alive() - before <= 1
        finally:
            gc.enable()
        assert isinstance(node.broker.clients, Clients)
