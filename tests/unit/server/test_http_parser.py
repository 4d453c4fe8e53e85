"""Requests from bytes, however they are cut: against h11, and against garbage."""

from __future__ import annotations

import sys

import h11
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachecast.config import BrokerConfig
from cachecast.server.http_parser import RequestParser

CONFIG = BrokerConfig(max_head_bytes=1_000, max_headers=20, max_body_bytes=500)

TOKEN = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ-_0123456789", min_size=1, max_size=12)
VALUE = st.text("abc XYZ,;=/\"'\u00e9\t0123", max_size=30).map(str.strip)
#: Names that mean something to the parser get values of their own.
MEANINGFUL = {
    "host", "content-length", "transfer-encoding", "upgrade", "connection", "expect", "trailer",
    "sec-websocket-key", "te", "proxy-connection", "keep-alive",
}  # fmt: skip


@st.composite
def requests(draw):
    """A well-formed request, and what is in it."""
    method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD"]))
    target = "/" + draw(st.text("abc/%20?=&.-_~", max_size=40))
    headers = draw(st.lists(st.tuples(TOKEN, VALUE), max_size=8))
    headers = [(name, value) for name, value in headers if name.lower() not in MEANINGFUL]
    body = draw(st.binary(max_size=200)) if method in {"POST", "PUT"} else b""
    lines = [f"{method} {target} HTTP/1.1", "Host: a", *(f"{n}: {v}" for n, v in headers)]
    if body and draw(st.booleans()):
        cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=3)))
        parts = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True) if a < b]
        sent = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        lines.append("Transfer-Encoding: chunked")
    else:
        sent = body
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + sent


def parsed(stream, cuts=()):
    """A parser that was fed the stream in pieces."""
    parser = RequestParser(CONFIG, can_upgrade=True)
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if parser.refusal is None and start < end:
            parser.feed(stream[start:end])
    return parser


def by_h11(stream):
    """The requests as an independent parser reads them."""
    found = []
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(stream)
    while (event := reader.next_event()) is not h11.NEED_DATA:
        if isinstance(event, h11.Request):
            headers = {}
            for name, value in event.headers:
                headers[name] = headers[name] + b", " + value if name in headers else value
            found.append([event.method, event.target, headers, b""])
        elif isinstance(event, h11.Data):
            found[-1][3] += bytes(event.data)
        elif event is h11.PAUSED:
            reader.send(h11.Response(status_code=204, headers=[]))
            reader.send(h11.EndOfMessage())
            reader.start_next_cycle()
    return [tuple(request) for request in found]


def _list(value):
    """Repeated headers make a list, in which white space says nothing (RFC 9110 5.6.1)."""
    return [part.strip() for part in value.split(b",")]


def as_h11(request):
    target = request.path + ("?" + request.query if request.query else "")
    headers = {name: _list(value) for name, value in request.headers.items()}
    return (request.method.encode(), target.encode(), headers, request.body)


@given(st.lists(requests(), min_size=1, max_size=3), st.data())
def test_well_formed_requests_are_read_as_h11_reads_them_however_cut(streams, data):
    stream = b"".join(streams)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    parser = parsed(stream, cuts)
    assert parser.refusal is None
    assert not parser.has_begun
    got = [as_h11(request) for request in parser.requests]
    expected = by_h11(stream)
    for mine, theirs in zip(got, expected, strict=True):
        assert (mine[0], mine[1].rstrip(b"?"), mine[3]) == (
            theirs[0], theirs[1].rstrip(b"?"), theirs[3],
        )  # fmt: skip
        assert mine[2] == {name: _list(value) for name, value in theirs[2].items()}
    parser.close()


@given(st.binary(max_size=600), st.lists(st.integers(0, 600), max_size=4))
def test_garbage_is_refused_or_waited_for_and_never_raises(garbage, cuts):
    for stream in (garbage, b"POST / HTTP/1.1\r\nHost: a\r\n" + garbage):
        parser = parsed(stream, sorted(min(cut, len(stream)) for cut in cuts))
        if parser.refusal is not None:
            assert 400 <= parser.refusal.status < 600
            assert parser.refusal.body.endswith(b"\n")
        parser.close()


@pytest.mark.parametrize(
    "piece",
    [
        b"a", b"X: y\r\n", b"X: ", b"\r\n", b"0;ext=1\r\n", b"1\r\nx\r\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "start",
    [
        b"", b"GET /", b"GET / HTTP/1.1\r\nHost: a\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nX: ",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;e=",
    ],
)  # fmt: skip
def test_nothing_is_taken_in_without_end(start, piece):
    """Whatever is repeated, the parser gives out a request or a refusal before long."""
    parser = RequestParser(CONFIG, can_upgrade=True)
    if start:
        parser.feed(start)
    for _ in range(1_100):
        if parser.refusal is not None or parser.requests:
            break
        parser.feed(piece)
    else:
        # Empty lines in front of a request are skipped, and nothing of them is kept.
        assert (start, piece) == (b"", b"\r\n")
    parser.close()


@pytest.mark.parametrize("size", [500, 501])
def test_body_is_limited_by_what_comes_and_by_what_is_declared(size):
    declared = parsed(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
    chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    came = parsed(chunked + b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"x" * size))
    if size > 500:
        assert declared.refusal.status == came.refusal.status == 413
    else:
        assert declared.refusal is came.refusal is None
        assert came.requests[0].body == b"x" * size


@pytest.mark.parametrize("n", [19, 20])
def test_headers_are_counted(n):
    parser = parsed(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * n + b"\r\n")
    assert (parser.refusal is None) == (n + 1 <= 20)


def test_websocket_is_offered_only_where_it_may_begin():
    stream = (
        b"GET /app/k HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\r\nrest"
    )
    taken = parsed(stream)
    assert taken.requests[0].is_upgrade
    assert taken.rest == b"rest"
    refused = RequestParser(CONFIG, can_upgrade=False)
    refused.feed(stream[:-4])
    assert not refused.requests[0].is_upgrade
    assert refused.requests[0].keeps_alive


# --- examples

POST = (
    b"POST /apps/1/events?a=b HTTP/1.1\r\nHost: x\r\nX-Two: 1\r\nx-two: 2\r\n"
    b"Content-Length: 4\r\n\r\nbody"
)


def _parser(**limits: int) -> RequestParser:
    config = msgspec.structs.replace(BrokerConfig(), **limits)
    return RequestParser(config, can_upgrade=True)


@pytest.mark.parametrize("step", [1, 2, 7, len(POST), 2 * len(POST)])
def test_requests_are_the_same_however_their_bytes_are_cut(step: int) -> None:
    """Two of them, one behind the other."""
    parser = _parser()
    data = POST * 2

    for at in range(0, len(data), step):
        parser.feed(data[at : at + step])

    assert len(parser.requests) == 2
    for request in parser.requests:
        assert (request.method, request.path, request.query) == ("POST", "/apps/1/events", "a=b")
        assert request.headers[b"x-two"] == b"1, 2"
        assert request.body == b"body"
        assert request.keeps_alive
    assert not parser.has_begun
    assert parser.refusal is None


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", None),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 101\r\n\r\n", 413),
        (b"GET /" + b"a" * 300 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 300 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 10 + b"\r\n", 431),
        (b"\x16\x03\x01", 400),
    ],
)
def test_what_is_refused_and_how(data: bytes, status: int | None) -> None:
    """Each limit has its status; nothing of it becomes a request."""
    parser = _parser(max_head_bytes=250, max_headers=5, max_body_bytes=100)

    parser.feed(data)

    assert not parser.requests
    assert parser.refusal is not None
    assert status is None or parser.refusal.status == status


def test_a_request_before_a_fault_is_still_given_out() -> None:
    """What was right must be answered."""
    parser = _parser()

    parser.feed(POST + b"nonsense\r\n\r\n")

    assert len(parser.requests) == 1
    assert parser.refusal is not None


def test_an_upgrade_leaves_what_came_behind_it() -> None:
    """A frame may be glued to the handshake."""
    parser = _parser()

    parser.feed(b"GET /app/k HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
                b"Upgrade: websocket\r\n\r\nframe")  # fmt: skip

    assert parser.requests[0].is_upgrade
    assert parser.rest == b"frame"


@pytest.mark.parametrize(
    ("header", "name", "value"),
    [
        (b"Upgrade: websocket ", b"upgrade", b"websocket"),
        (b"A: \t b c\t \t", b"a", b"b c"),
        (b"A:b ", b"a", b"b"),
        (b"A: \t ", b"a", b""),
        (b"A: b \r\nA:  c\t", b"a", b"b, c"),
        (b"Transfer-Encoding: chunked ", b"transfer-encoding", b"chunked"),
    ],
)
def test_white_space_around_a_value_is_no_part_of_it(header, name, value) -> None:
    """RFC 9110 5.5."""
    parser = _parser()

    parser.feed(b"POST / HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n0\r\n\r\n")

    assert parser.requests[0].headers[name] == value


def test_white_space_hides_neither_a_wish_nor_a_length() -> None:
    """Expect and Content-Length, with blanks in front and behind."""
    parser = _parser()

    parser.feed(b"POST / HTTP/1.1\r\nHost: x\r\nExpect:  100-Continue \r\n"
                b"Content-Length: \t2\t\r\n\r\n")  # fmt: skip

    assert parser.owes_continue
    parser.feed(b"{}")
    assert parser.requests[0].body == b"{}"


@pytest.mark.parametrize(
    "fold", [b"A: b\r\n c", b"A: b\r\n\tc", b"A:\r\n c", b"Transfer-Encoding:\r\n chunked"]
)
def test_a_value_folded_over_lines_is_refused(fold) -> None:
    """RFC 9112 5.2: what one server reads as a value is another's next header."""
    parser = _parser()

    parser.feed(b"POST / HTTP/1.1\r\nHost: x\r\n" + fold + b"\r\n\r\n")

    assert not parser.requests
    assert parser.refusal is not None
    assert parser.refusal.status == 400


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"http://h/apps/1/channels?a=b", "/apps/1/channels", "a=b"),
        (b"HTTPS://h:1/a%2Fb", "/a%2Fb", ""),
        (b"http://u@[::1]:1//a", "//a", ""),
        (b"http://h", "/", ""),
        (b"http://h?a=http://b/c", "/", "a=http://b/c"),
        (b"ws://h/app/k", "/app/k", ""),
        (b"//h/a", "//h/a", ""),
        (b"/a?b=http://c/d", "/a", "b=http://c/d"),
        (b"/http://h/a", "/http://h/a", ""),
    ],
)
def test_the_path_is_the_same_whatever_form_the_target_has(target, path, query) -> None:
    """RFC 9112 3.2.2: a server must take the absolute form too."""
    parser = _parser()

    parser.feed(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")

    assert (parser.requests[0].path, parser.requests[0].query) == (path, query)


def test_a_target_that_is_no_path_stays_as_it_is() -> None:
    """``OPTIONS *`` is about the server and finds nothing here."""
    parser = _parser()

    parser.feed(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")

    assert parser.requests[0].path == "*"


@pytest.mark.parametrize(
    ("upgrade", "connection"),
    [
        (b"websocket ", b"Upgrade"),
        (b"WebSocket", b"keep-alive , Upgrade"),
        (b"websocket", b"Upgrade\t"),
        (b"h2c, websocket", b"upgrade,keep-alive"),
    ],
)
def test_an_offer_of_a_websocket_is_found_among_others(upgrade, connection) -> None:
    """Both headers are lists (RFC 9110 7.6.1 and 7.8)."""
    parser = _parser()

    parser.feed(b"GET /app/k HTTP/1.1\r\nHost: x\r\nConnection: " + connection
                + b"\r\nUpgrade: " + upgrade + b"\r\n\r\nframe")  # fmt: skip

    assert parser.requests[0].is_upgrade
    assert parser.rest == b"frame"


@pytest.mark.parametrize(
    ("version", "upgrade", "connection", "keeps_alive"),
    [
        (b"1.1", b"h2c", b"Upgrade, HTTP2-Settings", True),
        (b"1.1", b"h2c", b"close, Upgrade", False),
        (b"1.0", b"websocket", b"Upgrade", False),
    ],
)
def test_an_offer_that_is_not_taken_changes_nothing_and_can_still_be_seen(
    version, upgrade, connection, keeps_alive
) -> None:
    """Whoever wanted a WebSocket is told what was missing; HTTP/1.0 needs no Host."""
    parser = _parser()
    host = b"" if version == b"1.0" else b"Host: x\r\n"

    parser.feed(
        b"POST /a HTTP/%b\r\n%bUpgrade: %b\r\nConnection: %b\r\nContent-Length: 4\r\n\r\nbo"
        % (version, host, upgrade, connection)
    )
    parser.feed(b"dy")

    (request,) = parser.requests
    assert (request.body, request.is_upgrade) == (b"body", False)
    assert (request.keeps_alive, request.is_1_0) == (keeps_alive, version == b"1.0")
    assert request.headers[b"upgrade"] == upgrade
    assert request.headers[b"connection"] == connection


def test_a_client_that_waits_to_be_asked_for_its_body_is_noticed() -> None:
    """``Expect: 100-continue`` is owed until the body comes, and to HTTP/1.1 only (RFC 9110)."""
    parser = _parser()

    parser.feed(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
    owed = parser.owes_continue
    parser.feed(b"x")

    assert owed
    assert not parser.owes_continue
    assert parser.requests[0].body == b"x"
    older = _parser()
    older.feed(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
    assert not older.owes_continue


def test_a_body_in_tiny_chunks_takes_no_more_room_than_its_bytes():
    parser = _parser(max_body_bytes=100_000)
    parser.feed(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")

    parser.feed(b"2\r\nab\r\n" * 20_000)

    assert sys.getsizeof(parser._body) < 100_000
    parser.feed(b"0\r\n\r\n")
    assert parser.requests.popleft().body == b"ab" * 20_000
