"""HTTP responses, however they are cut, with h11 as the one who writes them."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachecast_load.net.frames import WireError
from cachecast_load.net.http11 import ResponseReader, make_request


def written_by_h11(bodies, *, chunked):
    """Return the bytes of several responses on one connection."""
    server, out = h11.Connection(h11.SERVER), b""
    for body in bodies:
        server.receive_data(make_request("POST", "/x", "h", [("A", "b")], b"{}"))
        while not isinstance(server.next_event(), h11.EndOfMessage):
            pass
        length = ("transfer-encoding", "chunked") if chunked else ("content-length", str(len(body)))
        out += server.send(h11.Response(status_code=200, headers=[length]))
        out += server.send(h11.Data(data=body)) + server.send(h11.EndOfMessage())
        server.start_next_cycle()
    return out


@given(
    st.lists(st.binary(max_size=200), min_size=1, max_size=4),
    st.booleans(),
    st.lists(st.integers(0, 900), max_size=10),
)
def test_responses_are_read_however_they_are_cut(bodies, chunked, cuts):
    data = written_by_h11(bodies, chunked=chunked)
    reader, found, last = ResponseReader(), [], 0
    for cut in sorted({min(cut, len(data)) for cut in cuts} | {len(data)}):
        response = reader.feed(data[last:cut])
        while response is not None:
            found.append(response)
            response = reader.feed(b"")
        last = cut
    assert found == [(200, body) for body in bodies]


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
    cut = ResponseReader()
    cut.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}")
    assert cut.end() is None


def test_connection_close_is_noticed():
    reader = ResponseReader()
    reader.feed(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    assert not reader.keeps_alive


@pytest.mark.parametrize(
    "data",
    [
        b"SMTP ready\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-6\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_no_response_is_an_error(data):
    with pytest.raises(WireError):
        ResponseReader().feed(data)
