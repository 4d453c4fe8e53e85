"""Publishers that open a connection for each publish."""

from __future__ import annotations

import socket
import ssl
import time

import pytest
import trustme

from cachecast_bench.dialects import Endpoint, open_dialect
from cachecast_bench.generator.loop import Loop
from cachecast_bench.generator.publishing import Publishing
from cachecast_bench.generator.stream import Stream
from cachecast_bench.scenarios.publish_connect import _judge_resumed

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
LIMIT_NS = 10_000_000_000


class Door:
    """A server in the generator's own loop that answers one request of each connection."""

    def __init__(self, loop, context=None):
        self.loop = loop
        self.context = context
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.requests = []
        self.n_ends = 0
        self.open = []
        loop.add(self.listener.fileno(), self.accept)

    def accept(self):
        sock, _ = self.listener.accept()
        sock.setblocking(False)
        if self.context is not None:
            sock = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self.open.append(sock)
        self.loop.add(sock.fileno(), lambda: self.read(sock))

    def read(self, sock):
        try:
            data = sock.recv(65536)
        except (ssl.SSLWantReadError, BlockingIOError):
            return
        if data:
            self.requests.append(data)
            sock.send(ANSWER)
        else:
            self.n_ends += 1
            self.loop.remove(sock.fileno())
            sock.close()

    def close(self):
        for sock in [self.listener, *self.open]:
            sock.close()


@pytest.fixture
def visit(request):
    """Return a function that publishes so many times by visitors, and the door they came to."""

    def run(n, *, context=None, **options):
        loop = Loop()
        door = Door(loop, context)
        request.addfinalizer(door.close)
        endpoint = Endpoint(
            "pusher",
            door.port,
            tls=context is not None,
            options={"app_id": "1", "key": "key", "secret": "secret", **options},
        )
        stream = Stream("channel", 0)
        stream.begin(1, 64, is_ordered=False)
        dialect = open_dialect(endpoint.to_json())
        publishing = Publishing(loop, dialect, [stream], [], {}, gate_on_deliveries=False)
        publishing.invite(3, resumes=True)
        publishing.start_flat(0)
        until_ns = time.monotonic_ns() + LIMIT_NS
        assert loop.run_while(lambda: publishing.n_replied < n, until_ns=until_ns)
        publishing.stop()
        assert loop.run_while(
            lambda: (
                door.n_ends < publishing.n_published
                or publishing.n_replied < publishing.n_published
            ),
            until_ns=until_ns,
        )
        return publishing, door

    return run


def test_each_publish_has_a_connection_that_is_ended_in_peace(visit):
    """A reset would spare the server half of what it is to be measured at."""
    publishing, door = visit(20)

    assert len(door.requests) == publishing.n_published == publishing.n_replied
    assert door.n_ends == publishing.n_published
    assert len(publishing.answers_ns) == publishing.n_published
    assert all(request.startswith(b"POST /apps/1/events?") for request in door.requests)
    assert not any(b"Connection:" in request for request in door.requests)


def test_a_visitor_can_leave_the_closing_to_the_server(visit):
    """As libraries do that never keep a connection."""
    _, door = visit(5, says_close=True)

    assert all(b"\r\nConnection: close\r\n" in request for request in door.requests)


def test_visitors_come_back_with_their_tls_session(visit):
    """All but the first visit of each."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)

    publishing, _ = visit(20, context=context)

    assert publishing.n_resumed == publishing.n_published - 3


def test_a_sample_of_resumed_sessions_that_were_not_is_invalid():
    """Else a server without tickets would be measured at something else."""
    (problem,) = _judge_resumed({"n_replied": 1_000, "n_resumed": 800}, "there")

    assert problem.level == "invalid"
    assert "800 of 1,000 visits" in problem.text
    assert not _judge_resumed({"n_replied": 1_000, "n_resumed": 900}, "there")


def test_a_schedule_is_kept_when_all_of_it_was_sent(request):
    """What waits for a connection is part of it: a stall must be measured and not cut off."""
    loop = Loop()
    door = Door(loop)
    request.addfinalizer(door.close)
    options = {"app_id": "1", "key": "key", "secret": "secret"}
    dialect = open_dialect(Endpoint("pusher", door.port, options=options).to_json())
    stream = Stream("channel", 0)
    stream.begin(1, 64, is_ordered=False)
    publishing = Publishing(loop, dialect, [stream], [], {})
    publishing.invite(1, resumes=False)
    start_ns = time.monotonic_ns()
    publishing.start_paced(100_000.0, start_ns, start_ns + 1_000_000)

    until_ns = start_ns + LIMIT_NS
    assert loop.run_while(lambda: publishing.is_behind, until_ns=until_ns)
    publishing.stop()
    assert loop.run_while(lambda: publishing.n_replied < 100, until_ns=until_ns)

    assert publishing.n_published == 100
    assert len(publishing.lateness_ns) < 100
    assert loop.run_while(lambda: door.n_ends < 100, until_ns=until_ns)
