"""Requests that are passed on between workers: real sockets, in one process."""

from __future__ import annotations

import json
import os
import socket
from contextlib import asynccontextmanager

import pytest
import trio
import trustme

from cachecast import TlsTerms
from cachecast.server import crossing as module
from cachecast.server.crossing import Crossing, Ways
from cachecast.server.http_messages import Request
from cachecast.server.poller import Poller
from tests.sockets.node import APP_ID, KEY, Wire, no_new_fds, running, until


@asynccontextmanager
async def opened_ways(n):
    """Ways between n workers, each with descriptors of its own."""
    pairs = [socket.socketpair(type=socket.SOCK_SEQPACKET) for _ in range(n)]
    made = [
        Ways(
            b"k" * 16,
            number,
            os.dup(pairs[number][0].fileno()),
            tuple(os.dup(out.fileno()) for _, out in pairs),
        )
        for number in range(n)
    ]
    try:
        yield made
    finally:
        for pair in pairs:
            for sock in pair:
                sock.close()


@asynccontextmanager
async def two_workers(**options):
    """Two servers, as workers of a node are joined; their broker's are not."""
    async with (
        opened_ways(2) as ways,
        running(**options) as one,
        running(**options) as two,
        trio.open_nursery() as nursery,
    ):
        for node, mine in ((one, ways[0]), (two, ways[1])):
            nursery.start_soon(node.server.transports.join(mine).run)
        yield one, two
        nursery.cancel_scope.cancel()


def request(path: str, body: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def talk(wire: Wire, base: str, sender: Wire | None = None) -> None:
    """A poll, messages some of which are large, and the next poll."""
    sender = sender or wire
    await wire.say(request(f"{base}/xhr?protocol=7"))
    assert b"connection_established" in (await wire.answer()).body
    subscribe = json.dumps({"event": "pusher:subscribe", "data": {"channel": "x"}})
    large = json.dumps({"event": "pusher:pong", "data": "x" * 50_000})
    await sender.say(request(f"{base}/xhr_send", json.dumps([large, large, subscribe]).encode()))
    assert (await sender.answer()).status == 204
    await wire.say(request(f"{base}/xhr?protocol=7"))
    assert b"subscription_succeeded" in (await wire.answer()).body


async def test_a_session_is_held_by_the_worker_that_its_name_says_whoever_accepts():
    with no_new_fds():
        async with two_workers() as (one, two):
            for number in range(8):
                wire = await (one, two)[number % 2].connect()
                sender = await (one, two)[number % 2].connect()
                await talk(wire, f"/pusher/app/{KEY}/1/s{number}", sender)
            moving = [len(node.server.transports.can_move()) for node in (one, two)]
            assert sum(moving) == 8
            held = [len(node.server.transports) for node in (one, two)]
            assert sum(held) == 8
            for node, number in ((one, 0), (two, 1)):
                other = node.server.transports.crossing
                assert held[number] == sum(
                    other.find_other(f"/pusher/app/{KEY}/1/s{n}") is None for n in range(8)
                )
            wire = await one.connect()  # whose requests are for both, one after the other
            for number in range(4):
                await wire.say(request(f"/pusher/app/{KEY}/1/u{number}/xhr?protocol=7"))
                assert (await wire.answer()).status == 200


async def test_tls_is_passed_on_by_copying(tmp_path):
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    tls = TlsTerms(tmp_path / "cert.pem", tmp_path / "key.pem")
    with no_new_fds():
        async with two_workers(tls=tls, trusts=authority) as (one, two):
            bases = [f"/pusher/app/{KEY}/1/s{number}" for number in range(6)]
            crossing = one.server.transports.crossing
            assert len({crossing.find_other(base) for base in bases}) == 2
            for base in bases:
                stream = await trio.open_tcp_stream("127.0.0.1", one.server.port)
                wire = Wire(trio.SSLStream(stream, one.tls, server_hostname="localhost"))
                one.wires.append(wire)
                await talk(wire, base)
            before = len(two.server.transports)
            assert before > 0
            # A stream with more than the pair takes at once, and its end by the client.
            base = next(base for base in bases if crossing.find_other(base) == 1)
            for number in range(20):
                await two.broker.publish(APP_ID, "x", "tick", f"{number:02}" + "x" * 9_000)
            stream = await trio.open_tcp_stream("127.0.0.1", one.server.port)
            wire = Wire(trio.SSLStream(stream, one.tls, server_hostname="localhost"))
            one.wires.append(wire)
            await wire.say(request(f"{base}/xhr_streaming?protocol=7"))
            await wire.until(b"\r\n\r\n")
            await wire.until(b"19xxx")
            await stream.aclose()
            await until(lambda: len(two.server.transports) == before - 1)


async def test_requests_wait_for_a_worker_that_is_behind_and_are_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING", 5)
    poller = Poller()
    async with opened_ways(2) as (mine, theirs):
        taken: list[Request] = []

        def take(sock: socket.socket, passed: Request, *, is_tls: bool) -> None:
            assert is_tls
            sock.close()
            taken.append(passed)

        crossing, other = Crossing(mine, poller, take), Crossing(theirs, poller, take)
        other_ends = []

        def pass_one(n: int) -> None:
            ours, client = socket.socketpair()
            other_ends.append(client)
            poller.add(ours.fileno(), type("H", (), {"share": poller.newcomers})())
            crossing.pass_on(
                1, Request("POST", f"/{n}", "", {}, b"x" * 40_000, True, False), ours, is_tls=True
            )

        n = 0
        while crossing.has_room(1):  # until the kernel takes no more, and five wait here
            pass_one(n)
            n += 1
        assert taken == []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crossing.run)
            nursery.start_soon(other.run)
            await until(lambda: len(taken) == n)
            nursery.cancel_scope.cancel()
        assert [passed.path for passed in taken] == [f"/{i}" for i in range(n)]
        for client in other_ends:
            assert client.recv(1) == b""
            client.close()


async def test_a_socket_that_no_file_is_left_for_ends(monkeypatch):
    """What came without its descriptor is nothing that could be answered."""
    async with opened_ways(1) as (mine,):
        crossing = Crossing(mine, Poller(), lambda *_, **__: pytest.fail("there is no socket"))
        crossing._receive(b"x", [])
        crossing._inbound.close()
        crossing._outbound[0].close()
