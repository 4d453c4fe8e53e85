"""HTTP responses, however they are cut, with h11 as the one who writes them."""

import socket

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachecast_load.net.frames import WireError
from cachecast_load.net.http11 import MAX_RESPONSE, HttpPool, ResponseReader, make_request
from cachecast_load.net.reactor import Reactor
from cachecast_load.net.transport import Address


def written_by_h11(bodies, *, chunked):
    """Return the bytes of each of several responses on one connection."""
    server, out = h11.Connection(h11.SERVER), []
    for body in bodies:
        server.receive_data(make_request("POST", "/x", "h", [("A", "b")], b"{}"))
        while not isinstance(server.next_event(), h11.EndOfMessage):
            pass
        length = ("transfer-encoding", "chunked") if chunked else ("content-length", str(len(body)))
        events = [h11.Response(status_code=200, headers=[length]), h11.Data(data=body)]
        out.append(b"".join(server.send(event) for event in [*events, h11.EndOfMessage()]))
        server.start_next_cycle()
    return out


@given(
    st.lists(st.binary(max_size=200), min_size=1, max_size=4),
    st.booleans(),
    st.lists(st.integers(0, 300), max_size=10),
)
def test_responses_are_read_however_they_are_cut(bodies, chunked, cuts):
    reader, found = ResponseReader(), []
    for data in written_by_h11(bodies, chunked=chunked):
        last = 0
        for cut in sorted({min(cut, len(data)) for cut in cuts} | {len(data)}):
            response = reader.feed(data[last:cut])
            assert (response is None) == (cut < len(data))
            last = cut
        found.append(response)
    assert found == [(200, body) for body in bodies]
    assert reader.keeps_alive


def test_an_interim_answer_is_skipped():
    data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\nno"
    assert ResponseReader().feed(data) == (401, b"no")


def test_a_crowd_of_interim_answers_is_skipped():
    data = b"HTTP/1.1 102 Processing\r\n\r\n" * 5_000
    data += b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    assert ResponseReader().feed(data) == (200, b"")


def test_a_response_may_end_with_its_connection():
    """As PHP's built-in server answers, which many auth endpoints run on."""
    reader = ResponseReader()
    assert reader.feed(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}") is None
    assert reader.end() == (200, b"{}")
    without_a_word = ResponseReader()
    assert without_a_word.feed(b"HTTP/1.1 200 OK\r\n\r\n[") is None
    assert without_a_word.feed(b"]") is None
    assert without_a_word.end() == (200, b"[]")
    cut = ResponseReader()
    cut.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}")
    assert cut.end() is None


@pytest.mark.parametrize(
    "rest",
    [
        b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 40",
        b"nonsense",
    ],
)
def test_what_follows_an_answer_is_not_taken_for_the_next(rest):
    reader = ResponseReader()
    assert reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + rest) == (200, b"ok")
    assert not reader.keeps_alive


class Site:
    """A server that a test plays by hand, and a pool of connections to it."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(30)
        self.reactor = Reactor()
        address = Address(socket.AF_INET, self.listener.getsockname(), "localhost")
        self.pool = HttpPool(self.reactor, address, limit=1, timeout_s=30)
        self.answers = []

    def ask(self, path):
        request = make_request("GET", path, "h", [], b"")
        self.pool.send(lambda: request, lambda *answer: self.answers.append(answer))

    def wait(self, done):
        assert self.reactor.run_until(done, 30)

    def accept(self):
        connection, _ = self.listener.accept()
        connection.setblocking(False)
        return connection

    def read(self, connection):
        """Return what has come; b"" at the end."""
        got = []

        def look():
            try:
                got.append(connection.recv(9999))
            except BlockingIOError:
                pass
            return bool(got)

        self.wait(look)
        return got[0]


@pytest.fixture
def site():
    site = Site()
    yield site
    site.pool.close()
    site.reactor.close()
    site.listener.close()


@pytest.mark.parametrize("ends", [True, False])
def test_a_goodbye_between_two_requests_costs_neither_of_them(site, ends):
    """As HAProxy says 408 to whoever has been quiet for long."""
    site.ask("/first")
    with site.accept() as first:
        assert site.read(first).startswith(b"GET /first")
        first.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
        site.wait(lambda: site.answers)
        first.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        if ends:
            first.shutdown(socket.SHUT_WR)
        assert site.read(first) == b""
    assert site.pool.is_quiet
    site.ask("/second")
    with site.accept() as second:
        assert site.read(second).startswith(b"GET /second")
        second.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2")
        site.wait(lambda: len(site.answers) == 2)
    assert site.answers == [(200, b"1", ""), (200, b"2", "")]


def test_an_answer_without_end_is_not_kept(site):
    site.ask("/")
    with site.accept() as connection:
        site.read(connection)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")

        def go_on():
            try:
                connection.send(b"x" * 65_536)
            except OSError:
                pass
            return bool(site.answers)

        site.wait(go_on)
    ((status, body, reason),) = site.answers
    assert (status, body) == (0, b"")
    assert "more than 4194304 bytes" in reason


def test_connection_close_is_noticed():
    reader = ResponseReader()
    reader.feed(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    assert not reader.keeps_alive


@pytest.mark.parametrize(
    "data",
    [
        b"SMTP ready\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-6\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * MAX_RESPONSE,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * MAX_RESPONSE,
        b"HTTP/1.1 102 Processing\r\n\r\n" * (MAX_RESPONSE // 27 + 1),
    ],
)
def test_what_is_no_response_is_an_error(data):
    with pytest.raises(WireError):
        ResponseReader().feed(data)
