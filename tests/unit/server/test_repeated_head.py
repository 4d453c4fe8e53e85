"""Requests cut out without httptools mean what httptools would have made of them."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cachecast.apps import App
from cachecast.config import BrokerConfig
from cachecast.server.http_messages import Request
from cachecast.server.http_parser import RequestParser
from cachecast.server.repeated_head import RepeatedHead

CONFIG = BrokerConfig(
    apps=(App(id="1", key="k", secret="s"),), max_head_bytes=300, max_body_bytes=64
)
LINES = b"Host: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


class Never(RepeatedHead):
    """Recognizes nothing: every request is parsed."""

    def take(self, data, requests):
        return 0


def request(body=b"{}", line=b"POST /apps/1/events?a=b HTTP/1.1\r\n", lines=LINES):
    return line + lines % len(body) + body


def learned(data):
    """A memory that has seen the one request in ``data``, which comes twice to be worth it."""
    parser = RequestParser(CONFIG, can_upgrade=True)
    for _ in range(2):
        parser.feed(data)
        assert parser.refusal is None
    return parser._repeated or RepeatedHead(CONFIG.max_head_bytes, CONFIG.max_body_bytes)


def taken(memory, data):
    requests = deque()
    done = memory.take(data, requests)
    return list(requests), done


def test_repeated_lines_are_cut_out_with_their_body():
    first = request(b'{"n":1}')
    second = request(b'{"number":22}', line=b"GET /other?x HTTP/1.1\r\n")
    requests, done = taken(learned(first), second + b"POST ")

    assert done == len(second)
    assert requests == [
        Request(
            "GET", "/other", "x",
            {b"host": b"a", b"content-type": b"application/json"},
            b'{"number":22}', True, False,
        )
    ]  # fmt: skip


def test_the_first_request_of_a_connection_is_not_remembered():
    """Many come with one and leave; remembering costs a twentieth of their stay."""
    parser = RequestParser(CONFIG, can_upgrade=True)

    parser.feed(request())

    assert parser._repeated is None or taken(parser._repeated, request()) == ([], 0)


def test_lines_without_a_length_have_no_body():
    lines = b"Host: a\r\nAccept: */*\r\n\r\n"
    get = b"GET /apps/1/channels HTTP/1.1\r\n" + lines
    requests, done = taken(learned(get), get * 3)

    assert done == 3 * len(get)
    assert [one.body for one in requests] == [b""] * 3


@pytest.mark.parametrize(
    "other",
    [
        request(lines=LINES.replace(b"Host: a", b"Host: b")),
        request(lines=LINES.replace(b"\r\n\r\n", b"\r\nX: y\r\n\r\n")),
        request(line=b"PUT /apps/1/events HTTP/1.1\r\n"),
        request(line=b"POST /apps/1/events HTTP/1.0\r\n"),
        request(line=b"POST  /apps/1/events HTTP/1.1\r\n"),
        request(line=b"POST /a b HTTP/1.1\r\n"),
        request(line=b"POST /a\x80 HTTP/1.1\r\n"),
        request(line=b"POST apps HTTP/1.1\r\n"),
        request(line=b"POST /a HTTP/1.1\n"),
        request(lines=LINES.replace(b"%d", b"+%d")),
        request(lines=LINES.replace(b"%d", b" %d")),
        request(lines=LINES.replace(b"%d", b"%d ")),
        request(lines=LINES.replace(b"%d", b"%d\r\nContent-Length: 0")),
        request(lines=LINES.replace(b" %d", b"%.0d")),
    ],
)
def test_what_is_not_byte_for_byte_the_same_is_left_to_httptools(other):
    assert taken(learned(request()), other) == ([], 0)


@pytest.mark.parametrize("n", range(1, len(request())))
def test_part_of_a_request_is_left_to_httptools(n):
    assert taken(learned(request()), request()[:-n]) == ([], 0)


def test_what_exceeds_a_limit_is_left_to_httptools_which_is_made_to_refuse_it():
    memory = learned(request())

    assert taken(memory, request(b"x" * 65)) == ([], 0)
    assert taken(memory, request(line=b"GET /%b HTTP/1.1\r\n" % (b"x" * 300))) == ([], 0)


@pytest.mark.parametrize(
    "extra",
    [
        b"Transfer-Encoding: chunked", b"Expect: x", b"Connection: close",
        b"Connection: Upgrade\r\nUpgrade: websocket",
    ],
)  # fmt: skip
def test_lines_that_mean_more_than_a_body_of_a_length_are_not_remembered(extra):
    lines = b"Host: a\r\n" + extra + b"\r\n\r\n"
    parser = RequestParser(CONFIG, can_upgrade=True)
    data = b"POST / HTTP/1.1\r\n" + lines + (b"0\r\n\r\n" if b"chunked" in extra else b"")
    parser.feed(data)

    assert len(parser.requests) == 1
    assert parser._repeated is None or taken(parser._repeated, data) == ([], 0)


@pytest.mark.parametrize(
    "extra",
    [b"Connection: keep-alive", b"Connection: keep-alive , x \t", b"Connection: Upgrade",
     b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c"],
)  # fmt: skip
def test_words_about_the_connection_that_change_nothing_are_remembered(extra):
    """Python's requests says keep-alive and Java's HttpClient offers h2c, each with every one."""
    data = request(lines=LINES.replace(b"Host: a", b"Host: a\r\n" + extra))
    requests, done = taken(learned(data), data)

    assert done == len(data)
    assert requests[0].body == b"{}"
    assert requests[0].headers[b"connection"] == extra[12:].partition(b"\r\n")[0].strip()


@pytest.mark.parametrize("length", [b"%d ", b"%d\t", b"\t%d \t", b"%010d", b"%d  "])
def test_body_is_never_taken_for_a_request_however_its_length_is_written(length):
    """It would be somebody else's words that are carried out."""
    parser = RequestParser(CONFIG, can_upgrade=True)
    body = b"GET /apps/1/stolen HTTP/1.1\r\nHost: a\r\n\r\n"
    lines = b"Host: a\r\nContent-Length: " + length % len(body) + b"\r\n\r\n"
    for _ in range(3):
        parser.feed(b"POST /a HTTP/1.1\r\n" + lines + body)

    assert parser.refusal is None
    assert [(one.path, one.body) for one in parser.requests] == [("/a", body)] * 3


def test_request_line_hidden_behind_an_empty_line_is_not_taken_for_a_header():
    """Else "GET /b" with "POST /a" for a header line would pass, which httptools refuses."""
    data = b"\r\n" + request()
    assert taken(learned(data), b"GET /b HTTP/1.1\r\n" + data[2:]) == ([], 0)


bodies = st.binary(max_size=8)
lines = st.sampled_from(
    [
        LINES,
        LINES.replace(b"Content-Length", b"content-LENGTH"),
        LINES.replace(b": a", b": a\r\nX: Content-Length: 3"),
        LINES.replace(b": a", b": a\r\nX-Content-Length: 3"),
        LINES.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"),
        LINES.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        LINES.replace(b"%d", b"%d\r\nContent-Length: 1"),
        LINES.replace(b"%d", b"0%d"),
        LINES.replace(b"%d", b"%d \t"),
        LINES.replace(b"%d", b"000000000%d"),
        LINES.replace(b"\r\n\r\n", b" \r\nConnection: keep-alive\t\r\n\r\n"),
        LINES.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"),
    ]
)
targets = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7F), max_size=6)
pieces = st.one_of(
    st.builds(
        lambda method, target, lines, body: (
            b"%b /%b HTTP/1.1\r\n" % (method, target.encode()) + lines % len(body) + body
        ),
        st.sampled_from([b"GET", b"POST", b"PUT"]), targets, lines, bodies,
    ),
    st.just(request()),
    st.just(b"\r\n"),
    st.just(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
)  # fmt: skip


@given(st.lists(pieces, max_size=6), st.lists(st.integers(0, 400), max_size=5))
@example([request(), request(b"[1]"), request(b"")], [])
def test_any_stream_means_the_same_with_and_without_the_memory(pieces, cuts):
    data = b"".join(pieces)
    cuts = sorted({0, *(cut % (len(data) + 1) for cut in cuts), len(data)})
    results = []
    for memory in (RepeatedHead, Never):
        parser = RequestParser(CONFIG, can_upgrade=True)
        parser._repeated = memory(CONFIG.max_head_bytes, CONFIG.max_body_bytes)
        for start, end in pairwise(cuts):
            if parser.refusal is None and not parser.rest:
                parser.feed(data[start:end])
        for one in parser.requests:
            one.headers.pop(b"content-length", None)
        refusal = parser.refusal and parser.refusal.status
        results.append((list(parser.requests), refusal, parser.owes_continue))

    assert results[0] == results[1]
