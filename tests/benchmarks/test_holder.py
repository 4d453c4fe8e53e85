"""Clients that are held: what a holder counts, and what `held` makes of it."""

from __future__ import annotations

import socket
import time

import pytest

from cachecast_bench import ceilings
from cachecast_bench.bench import Bench
from cachecast_bench.dialects import Endpoint
from cachecast_bench.dialects.base import OPCODE_PING, server_frame
from cachecast_bench.dialects.pusher import PusherDialect
from cachecast_bench.generator.stream import payload_of
from cachecast_bench.holder.holding import Holder
from cachecast_bench.machine import Cores
from cachecast_bench.result import Sample, ScenarioResult
from cachecast_bench.scenarios.held import Held, on_paper, share_out

LIMIT_S = 5.0
KEYS = {"app_id": "1", "key": "key", "secret": "secret"}


class Server:
    """A server in the holder's own loop that takes everybody in."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        endpoint = Endpoint("pusher", self.listener.getsockname()[1], options=KEYS)
        self.holder = Holder(PusherDialect(endpoint))
        self.holder.loop.add(self.listener.fileno(), self.accept)
        self.socks = {}
        self.heard = []

    def accept(self):
        sock, (address, _) = self.listener.accept()
        sock.setblocking(False)
        self.socks[sock] = address
        self.holder.loop.add(sock.fileno(), lambda: self.read(sock))

    def read(self, sock):
        data = sock.recv(65536)
        if data.startswith(b"GET "):
            established = b'{"event":"pusher:connection_established","data":"{}"}'
            sock.send(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + server_frame(established))
        elif not self.heard:
            sock.send(server_frame(b'{"event":"pusher_internal:subscription_succeeded"}'))
        if data and self.heard:
            self.heard.append(data)

    def hold(self, count, sources=("127.0.0.1",)):
        about = {"count": count, "channel": "c", "sources": sources, "reached": -1}
        return self.holder.execute({"verb": "connect", **about})

    def publish(self, number, socks=None):
        frame = server_frame(payload_of(0, 0, number, 64))
        for sock in self.socks if socks is None else socks:
            sock.send(frame)

    def collect(self, number, limit_s=LIMIT_S):
        about = {"number": number, "since_ns": time.monotonic_ns() - 1_000_000}
        return self.holder.execute({"verb": "collect", "limit_s": limit_s, **about})

    def count(self):
        return self.holder.execute({"verb": "count"})

    def close(self, sock):
        self.holder.loop.remove(sock.fileno())
        sock.close()
        del self.socks[sock]


@pytest.fixture
def server():
    made = Server()
    yield made
    made.holder.execute({"verb": "disconnect", "crew": "all"})
    for sock in [made.listener, *made.socks]:
        sock.close()


def failures(report):
    """What is not zero in a holder's ledger."""
    return {name: n for name, n in report["ledger"].items() if n}


def test_all_clients_are_held_and_come_from_the_addresses_they_were_given(server):
    """Each address has ports of its own, or a machine could hold no more than one's."""
    report = server.hold(4, sources=ceilings.sources_of(0)[:2])

    assert (report["n_connected"], report["n_failed"]) == (4, 0)
    assert sorted(server.socks.values()) == ["127.0.2.1", "127.0.2.1", "127.0.2.2", "127.0.2.2"]
    assert server.count()["n_clients"] == 4


def test_a_publish_is_collected_when_the_last_client_has_read_it(server):
    """Each delay from the publish on, and nothing wrong."""
    server.hold(5)

    for number in range(3):
        server.publish(number)
        report = server.collect(number)

        assert report["n_reached"] == 5
        assert report["delays"]["least"] >= 1_000
        assert failures(report) == {}


def test_a_message_in_pieces_is_one(server):
    """A frame may end anywhere."""
    server.hold(1)
    (sock,) = server.socks
    frame = server_frame(payload_of(0, 0, 0, 64))

    for piece in (frame[:1], frame[1:40], frame[40:]):
        sock.send(piece)
        report = server.collect(0, limit_s=0.05)

    assert report["n_reached"] == 1


def test_whoever_missed_a_publish_is_counted_as_lost(server):
    """And the wait has an end."""
    server.hold(3)
    server.publish(0, list(server.socks)[:2])

    report = server.collect(0, limit_s=0.05)

    assert report["n_reached"] == 2
    assert failures(report) == {"lost": 1}


def test_what_comes_twice_or_late_is_named(server):
    """It is no delivery, so it must not stand in for one that is missing."""
    server.hold(2)
    for number in (0, 1):
        server.publish(number)
        server.collect(number)
    first, second = server.socks
    server.publish(1, [first])
    server.publish(0, [second])
    server.publish(2)

    report = server.collect(2)

    assert report["n_reached"] == 2
    assert failures(report) == {"doubled": 1, "stale": 1}


def test_a_client_that_is_closed_is_counted_and_no_longer_waited_for(server):
    """A server that throws clients out holds fewer than it says."""
    server.hold(3)
    server.close(next(iter(server.socks)))
    server.publish(0)

    report = server.collect(0)

    assert report["n_reached"] == 2
    assert failures(report) == {"closed": 1}


def test_a_ping_is_answered(server):
    """Or the server would close whom it takes for gone."""
    server.hold(1)
    (sock,) = server.socks
    server.heard.append(b"")
    sock.send(server_frame(b"", OPCODE_PING))
    until_ns = time.monotonic_ns() + int(LIMIT_S * 1e9)

    assert server.holder.loop.run_while(lambda: len(server.heard) < 2, until_ns=until_ns)

    assert server.count()["n_pings"] == 1
    assert server.heard[1][0] == 0x8A


@pytest.mark.parametrize("n_parts", [1, 3, 4])
def test_clients_are_shared_out_evenly_and_no_share_ever_shrinks(n_parts):
    """Each step connects what is missing at each holder."""
    before = [0] * n_parts
    for n in (1, 2, 400, 401, 70_000):
        shares = share_out(n, n_parts)

        assert sum(shares) == n
        assert max(shares) - min(shares) <= 1
        assert all(old <= new for old, new in zip(before, shares, strict=True))
        before = shares


def test_a_run_ends_where_the_system_does_and_says_which_limit_that_is(monkeypatch):
    """With its value, so that it can be raised."""
    monkeypatch.setattr(ceilings, "_open_files", lambda: 5_000)
    result = ScenarioResult("held")

    steps = Held()._steps(Bench(Cores(target=1, generator=0)), result)

    assert steps == [10_000, 16_699]
    (note,) = result.notes
    assert "70,000" in note
    assert "16,699: 5,000 open files a process, of 4 workers (ulimit -n)" in note


def test_steps_that_the_system_allows_are_taken_as_they_are(monkeypatch):
    """And nothing is said."""
    monkeypatch.setattr(ceilings, "_open_files", lambda: 1 << 20)
    result = ScenarioResult("held")
    bench = Bench(Cores(target=1, generator=0), subscribers=[100, 200])

    assert Held()._steps(bench, result) == [100, 200]
    assert result.notes == []


def test_memory_of_a_connection_is_the_slope_and_not_the_whole():
    """What four processes take before anybody comes is no connection's."""
    result = ScenarioResult("held")
    for n in (1_000, 2_000):
        row = result.row({"connections": n}, "workers")
        once = {"rss_bytes": 1e8 + n * 2_048, "slab_bytes": 1e7 + n * 8_192, "cpu_at_rest": 0.02}
        sweep = {"sweep_us": n * 10.0, "cpu_ms": n * 0.008, "cpu_us_per_delivery": 8.0}
        row.samples += [Sample({**once, "imbalance": 1.02, **sweep}), Sample(sweep)]

    Held()._conclude(result, {"rss_bytes": 1e8, "slab_bytes": 1e7})

    values = {figure.name: figure.value for figure in result.figures}
    assert values == pytest.approx(
        {
            "held": 2_000,
            "kib_per_connection": 2.0,
            "cpu_percent_at_rest": 2.0,
            "sweep_ms": 20.0,
            "cpu_us_per_delivery": 8.0,
            "imbalance": 1.02,
        }
    )
    assert set(values) == set(Held.figures)


def test_a_million_on_paper_is_arithmetic():
    """By the lines, each with its unit."""
    words = on_paper({"rss_bytes": 3_072.0, "slab_bytes": 16_384.0, "cpu_ms": 0.010})

    assert "3.00 KiB a connection are 2.9 GiB in the workers" in words
    assert "sockets 7.6 GiB in the kernel" in words
    assert "10.0 us a delivery are 10.0 s of CPU for one publish to all: 10 cores" in words
    assert "of 1 machine with 16" in words
