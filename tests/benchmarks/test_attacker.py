"""The attacker's connections, and what the benchmark makes of an attack."""

from __future__ import annotations

import socket
import time

import pytest

from cachecast_bench.attacker.attacks import ATTACKS
from cachecast_bench.attacker.clients import Counts, Crowd
from cachecast_bench.dialects import Endpoint
from cachecast_bench.dialects.pusher import PusherDialect
from cachecast_bench.generator.loop import Loop
from cachecast_bench.result import Sample, ScenarioResult
from cachecast_bench.scenarios.hostile import Hostile

LIMIT_NS = 10_000_000_000


class Sink:
    """A server in the attacker's own loop that reads, and can cut its clients off."""

    def __init__(self, loop):
        self.loop = loop
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.socks = []
        self.heard = b""
        loop.add(self.listener.fileno(), self.accept)

    def accept(self):
        sock, _ = self.listener.accept()
        sock.setblocking(False)
        self.socks.append(sock)
        self.loop.add(sock.fileno(), lambda: self.read(sock))

    def read(self, sock):
        try:
            data = sock.recv(65536)
        except OSError:
            data = b""
        self.heard += data
        if not data:
            self.cut_off(sock)

    def cut_off(self, sock):
        self.socks.remove(sock)
        self.loop.remove(sock.fileno())
        sock.close()


@pytest.fixture
def loop():
    return Loop()


@pytest.fixture
def sink(loop):
    made = Sink(loop)
    yield made
    for sock in [made.listener, *made.socks]:
        sock.close()


@pytest.fixture
def turn(loop):
    """Return a function that turns the loop until something holds."""

    def until(condition):
        until_ns = time.monotonic_ns() + LIMIT_NS
        assert loop.run_while(lambda: not condition(), until_ns=until_ns)

    return until


def nothing(_number):
    """A handshake of those who have none."""
    yield from ()
    return b""


@pytest.mark.parametrize("reads", [True, False])
def test_who_is_cut_off_comes_back(loop, sink, turn, reads):
    """An attacker does; also one that does not read must notice."""
    counts = Counts()
    arrived = []
    crowd = Crowd(
        loop,
        counts,
        Endpoint("pusher", sink.port),
        5,
        greet=nothing,
        on_client=lambda client: arrived.append(client.number),
        reads=reads,
    )
    crowd.fill()
    turn(lambda: len(sink.socks) == 5)

    for sock in sink.socks[:2]:
        sink.cut_off(sock)
    turn(lambda: len(arrived) == 7)

    assert sorted(arrived[:5]) == [0, 1, 2, 3, 4]
    assert set(arrived[5:]) <= {0, 1, 2, 3, 4}
    assert (counts.connected, counts.cut_off, counts.refused) == (7, 2, 0)
    crowd.stop()
    turn(lambda: not sink.socks)


def test_a_client_says_all_it_is_given_and_then_nothing(loop, sink, turn):
    """More than one send takes, so that it has to wait for room in between."""
    counts = Counts()
    pieces = [b"%07d" % i * 10_000 for i in range(30)]
    crowd = Crowd(
        loop,
        counts,
        Endpoint("pusher", sink.port),
        1,
        greet=nothing,
        on_client=lambda client: client.say(iter(pieces)),
    )
    crowd.fill()
    turn(lambda: len(sink.heard) == sum(map(len, pieces)))

    assert sink.heard == b"".join(pieces)
    assert counts.sent_bytes == len(sink.heard)
    crowd.stop()


def test_a_crowd_that_cannot_get_in_says_so(loop, monkeypatch):
    """Else an attack that never happened would be a fine result."""
    monkeypatch.setattr("cachecast_bench.attacker.clients._CONNECT_LIMIT_NS", 50_000_000)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = Endpoint("pusher", closed.getsockname()[1])
        crowd = Crowd(loop, Counts(), endpoint, 1, greet=nothing)

        with pytest.raises(ConnectionError, match="0 of the attack's clients"):
            crowd.fill()
        crowd.stop()


@pytest.mark.parametrize("name", ["tls_handshakes", "connection_flood"])
def test_a_wave_needs_no_more_of_each_client_than_its_first_words(loop, sink, turn, name):
    """As an attacker would have it: nothing that costs as much as the answer."""
    options = {"app_id": "1", "key": "key", "secret": "secret"}
    dialect = PusherDialect(Endpoint("pusher", sink.port, options=options))
    attack = ATTACKS[name](loop, dialect, 0.01)
    attack.prepare()

    attack.begin()
    turn(lambda: len(sink.socks) >= 5 and sink.heard)
    attack.end()

    words = attack._opening()
    assert any(sink.heard.startswith(one[:3]) for one in words)
    turn(lambda: not sink.socks)


def test_the_worst_attack_of_each_repeat_is_the_figure():
    """A median over attacks would hide the one that works."""
    result = ScenarioResult("hostile")
    for beside, values in {
        "nothing": [1e3, 2e3],
        "presence_join": [30e3, 10e3],
        "fragment_flood": [20e3, 70e3],
    }.items():
        row = result.row({"beside": beside}, "cachecast")
        row.samples += [Sample({"healthy_p99_us": value}) for value in values]

    Hostile()._conclude(result)

    figures = {figure.name: figure.samples for figure in result.figures}
    assert figures["healthy_p99_ms"] == [30.0, 70.0]
    assert figures["alone_p99_ms"] == [1.0, 2.0]
    assert figures["fragment_flood_p99_ms"] == [20.0, 70.0]
    assert all(Hostile().has_figure(name) for name in figures)
