"""One HTTP/1.1 connection over a real socket: what may be sent, in which pieces, how it ends."""

from __future__ import annotations

import json
import os
import socket

import pytest
import trio

from cachecast.server import http, poller
from cachecast.server.http import MAX_WAITING_BYTES, NEXT, HttpConnection, State
from cachecast.server.http_messages import Later, Response
from cachecast.server.poller import RECV_BYTES
from cachecast.server.streaming import Stream
from cachecast.server.websocket import WebSocket
from tests.sockets.node import (
    HOST,
    Client,
    frame,
    make_app,
    message,
    running,
    until,
    upgrade_request,
)

GET = b"GET /nowhere HTTP/1.1\r\n" + HOST + b"\r\n"

EVENT = {"name": "tick", "channel": "cache-a", "data": "1"}


def http_connections(node):
    """The server's side of every HTTP connection."""
    return [one for one in node.server.poller.handlers() if isinstance(one, HttpConnection)]


def has_begun(node):
    """Whether the server has read a part of a request."""
    return any(connection._parser.has_begun for connection in http_connections(node))


async def refused(node, request):
    """Status and text of the answer that ends the connection."""
    wire = await node.connect()
    await wire.say(request)
    answer = await wire.answer()
    assert answer.headers["connection"] == "close"
    assert await wire.end() == b""
    return answer.status, answer.text


async def test_connection_is_kept_for_the_next_request():
    async with running() as node:
        wire = await node.connect()
        for _ in range(3):
            await wire.say(node.signed("POST", "events", EVENT))
            answer = await wire.answer("POST")
            assert (answer.status, answer.body) == (200, b"{}")
            assert "connection" not in answer.headers


async def test_connection_closes_when_the_client_says_so():
    async with running() as node:
        wire = await node.connect()
        await wire.say(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (await wire.answer()).headers["connection"] == "close"
        assert await wire.end() == b""  # and not after close_timeout_s


CLOSING = b"GET /nowhere HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"


async def test_who_asked_for_the_end_is_not_waited_for():
    """All it had to say was read, and it says no more: RFC 9112 9.6."""
    async with running() as node:
        wire = await node.connect()
        await wire.say(CLOSING)
        assert (await wire.answer()).status == 404
        assert not http_connections(node)
        assert await wire.end() == b""


async def test_who_talks_on_behind_its_last_request_hears_the_answer_all_the_same():
    """Closing over bytes that were not read would reset the connection, and the answer with it."""
    async with running() as node:
        wire = await node.connect()
        await wire.say(CLOSING + GET * 1_000)
        assert (await wire.answer()).status == 404
        assert len(http_connections(node)) == 1
        assert await wire.end() == b""


async def test_who_had_to_wait_for_its_last_answer_may_have_talked_on_meanwhile():
    async with running() as node:
        held = Line(b"late")
        node.server._handle = held.answer
        wire = await node.connect()
        await wire.say(CLOSING)
        await until(lambda: held.attempts)
        await wire.say(GET)
        held.go()
        assert (await wire.answer()).text == "late"
        assert await wire.end() == b""


async def test_last_answer_leaves_whole_also_where_the_kernel_does_not_take_it_at_once():
    async with running() as node:
        node.server._handle = lambda request: Response(200, b"x" * 300_000)
        wire = await node.connect(receives=4096)
        await wire.say(CLOSING)
        await until(lambda: node.broker.backlog)
        assert len((await wire.answer()).body) == 300_000
        assert await wire.end() == b""


async def test_http_1_0_is_answered_and_closed():
    async with running() as node:
        wire = await node.connect()
        await wire.say(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await wire.answer()).status == 404
        assert await wire.end() == b""


async def test_pipelined_requests_in_one_packet_are_answered_in_order():
    async with running() as node:
        wire = await node.connect()
        requests = []
        for number in range(50):
            requests += [
                node.signed("POST", "events", {**EVENT, "data": str(number)}),
                node.signed("GET", "channels/cache-a", params={"info": "cache"}),
            ]
        await wire.say(b"".join(requests))
        for number in range(50):
            assert (await wire.answer("POST")).status == 200
            assert (await wire.answer()).json["cache"]["data"] == str(number)


async def test_requests_split_at_every_byte_mean_the_same():
    async with running() as node:
        body = json.dumps(EVENT).encode()
        chunked = node.signed("POST", "events", body).partition(b"\r\n\r\n")[0]
        chunked = chunked.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked")
        chunked += b"\r\n\r\n%x;ext=1\r\n%b\r\n3\r\n%b\r\n0\r\nTrail: er\r\n\r\n" % (
            len(body) - 3, body[:-3], body[-3:],
        )  # fmt: skip
        requests = node.signed("POST", "events", EVENT) + chunked + GET
        for at in range(1, len(requests), 7):
            wire = await node.connect()
            await wire.say(requests[:at])
            await trio.lowlevel.checkpoint()
            await wire.say(requests[at:])
            answers = [await wire.answer("POST"), await wire.answer("POST"), await wire.answer()]
            assert [answer.status for answer in answers] == [200, 200, 404], at
            await wire.aclose()
        wire = await node.connect()
        for byte in requests:
            await wire.say(bytes([byte]))
        answers = [await wire.answer("POST"), await wire.answer("POST"), await wire.answer()]
        assert [answer.status for answer in answers] == [200, 200, 404]


async def test_expect_continue_is_answered_before_the_body():
    async with running() as node:
        wire = await node.connect()
        request = node.signed("POST", "events", EVENT, headers="Expect: 100-continue\r\n")
        head, _, body = request.partition(b"\r\n\r\n")
        # Behind a request that is answered first.
        await wire.say(GET + head + b"\r\n\r\n")
        assert (await wire.answer()).status == 404
        assert await wire.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await wire.say(body)
        assert (await wire.answer("POST")).status == 200


async def test_expect_continue_is_refused_before_a_body_that_is_too_large():
    async with running() as node:
        status, _ = await refused(
            node,
            b"POST / HTTP/1.1\r\n"
            + HOST
            + b"Expect: 100-continue\r\nContent-Length: 100000000\r\n\r\n",
        )
        assert status == 413


async def test_head_has_no_body():
    async with running(has_admin=True) as node:
        wire = await node.connect(is_admin=True)
        await wire.say(
            b"HEAD /up HTTP/1.1\r\n" + HOST + b"\r\n" + b"GET /up HTTP/1.1\r\n" + HOST + b"\r\n"
        )
        head = await wire.answer("HEAD")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "15")
        assert (await wire.answer()).json == {"health": "OK"}


CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (CHUNKED + b"Content-Length: 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX\x00: 1\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET /\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"1" * 20_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: " + b"1" * 20_000, 431),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
        # More digits than int() takes, and llhttp has no objection.
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"0" * 5_000 + b"1\r\n\r\n", 413),
        (CHUNKED + b"\r\nffffffffffffffffff\r\n", 400),
        (CHUNKED + b"\r\n1\r\naXX", 400),
    ],
)  # fmt: skip
async def test_malformed_request_is_refused_and_costs_only_its_connection(head, status):
    async with running() as node:
        other = await node.connect()
        await other.say(GET)
        await other.answer()

        assert (await refused(node, head))[0] == status
        assert node.broker.statistics().refusals == {f"http {status}": 1}

        await other.say(GET)
        assert (await other.answer()).status == 404


async def test_refusal_reaches_a_client_that_goes_on_sending():
    """Closing at once would reset the connection, and the reset overtake the answer."""
    async with running(make_app(max_event_bytes=500), max_body_bytes=2_000) as node:
        wire = await node.connect()
        await wire.say(b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
        for _ in range(300):
            await wire.say(chunk)
        assert (await wire.answer("POST")).status == 413


async def test_good_requests_before_a_bad_one_are_answered_first():
    async with running() as node:
        wire = await node.connect()
        await wire.say(GET + GET + b"nonsense\r\n\r\n")
        assert [(await wire.answer()).status for _ in range(3)] == [404, 404, 400]
        assert await wire.end() == b""


async def test_nothing_is_answered_behind_the_last_answer():
    async with running() as node:
        wire = await node.connect()
        await wire.say(b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n" + GET)
        assert (await wire.answer()).status == 404
        assert await wire.end() == b""


@pytest.mark.parametrize("tail", [b"Trail: " + b"x" * 200_000, b"Trail: er\r\n" * 20_000])
async def test_trailers_are_bounded(tail):
    """The parser keeps what it has of an unfinished header; nothing of it is body."""
    async with running() as node:
        wire = await node.connect()
        await wire.say(
            b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
        )
        async with trio.open_nursery() as nursery:

            async def flood():
                try:
                    await wire.say(tail)
                except trio.BrokenResourceError:
                    pass

            nursery.start_soon(flood)
            assert (await wire.answer("POST")).status == 431
            nursery.cancel_scope.cancel()


async def test_trailer_cannot_change_what_a_request_means():
    async with running() as node:
        request = node.signed("POST", "events", EVENT, headers="Transfer-Encoding: chunked\r\n")
        head, _, body = request.partition(b"\r\n\r\n")
        head = b"\r\n".join(
            line for line in head.split(b"\r\n") if not line.startswith(b"Content-")
        )
        wire = await node.connect()
        await wire.say(
            head
            + b"\r\n\r\n%x\r\n%b\r\n0\r\nContent-Type: application/msgpack\r\n\r\n"
            % (len(body), body)
        )
        assert (await wire.answer("POST")).status == 200


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTT",
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345",
    ],
)
async def test_request_that_is_never_finished_gets_408(start):
    async with running(request_timeout_s=10) as node:
        wire = await node.connect()
        await wire.say(start)
        await until(lambda: has_begun(node))
        await node.wait(9)
        assert len(node.server.poller) == 2
        await node.wait(1)
        assert (await wire.answer()).status == 408
        assert await wire.end() == b""


async def test_slow_headers_do_not_move_the_time_limit():
    async with running(request_timeout_s=10) as node:
        wire = await node.connect()
        await wire.say(b"GET / HTTP/1.1\r\nX: ")
        await until(lambda: has_begun(node))
        for _ in range(4):
            await wire.say(b"x")
            await node.wait(2.5)
        assert (await wire.answer()).status == 408


async def test_pipelined_requests_let_others_have_their_turn(monkeypatch):
    """Whoever sends many at once is answered in parts, in order, and reads no further meanwhile."""
    monkeypatch.setattr(http, "ANSWER_S", -1)  # one request each time
    monkeypatch.setattr(poller, "TURN_S", 0)
    other = make_app(id="4", key="other", secret="other")
    async with running(make_app(), other) as node:
        wires = [await node.connect() for _ in range(2)]
        asked = [
            node.signed("GET", "channels"),
            node.signed("GET", "channels", app_id="4", key="other", secret="other"),
        ]
        for wire, request in zip(wires, asked, strict=True):  # so that it is known who they are
            await wire.say(request)
            assert (await wire.answer()).status == 200
        order = []
        handle = node.server._handle

        def note(request):
            order.append(request.path.split("/")[2])
            if len(order) == 10:
                plain.send(asked[1])
            return handle(request)

        for connection in http_connections(node):
            connection._handle = note
        with socket.socket(fileno=os.dup(wires[1].stream.socket.fileno())) as plain:
            await wires[0].say(asked[0] * 60)
            for _ in range(60):
                assert (await wires[0].answer()).status == 200
        assert (await wires[1].answer()).status == 200
        assert len(order) == 61
        assert order.index("4") <= 14


async def test_connection_is_served_in_the_turns_of_the_app_that_it_may_speak_for():
    """Its last verified request says which; a key without the secret says nothing."""
    other = make_app(id="4", key="other", secret="other")
    async with running(make_app(), other) as node:
        share_of, newcomers = node.server.poller.share_of, node.server.poller.newcomers
        wire = await node.connect()
        for request, status, share in (
            (node.signed("GET", "channels", secret="wrong"), 401, newcomers),
            (GET, 404, newcomers),
            (node.signed("GET", "channels"), 200, share_of("3")),
            (GET, 404, share_of("3")),
            (node.signed("GET", "channels", app_id="4", key="other"), 401, share_of("3")),
            (node.signed("GET", "channels", app_id="4", key="other", secret="other"), 200,
             share_of("4")),
        ):  # fmt: skip
            await wire.say(request)
            assert (await wire.answer()).status == status
            (connection,) = http_connections(node)
            assert connection.share is share
        assert list(node.server.room._publishers) == [connection]
        client = await node.client()
        (websocket,) = [each for each in node.server.poller.handlers() if type(each) is WebSocket]
        assert websocket.share is share_of("3")
        await client.leave()


async def test_each_pipelined_request_has_a_time_limit_of_its_own():
    """A client that is always in the middle of one but finishes them all is not slow."""
    async with running(request_timeout_s=15) as node:
        wire = await node.connect()
        half = len(GET) // 2
        await wire.say(GET[:half])
        for _ in range(5):
            await wire.say(GET[half:] + GET[:half])
            assert (await wire.answer()).status == 404
            await node.wait(10)


@pytest.mark.parametrize(
    "limits",
    [
        {"request_timeout_s": 5, "idle_timeout_s": 1_000},
        {"request_timeout_s": 1_000, "idle_timeout_s": 5},
    ],
)
async def test_silent_connection_is_closed_without_a_word(limits):
    """A fresh one when a request would be overdue, a used one after the time between two."""
    async with running(**limits) as node:
        wire = await node.connect()
        await until(lambda: len(node.server.poller) == 2)
        if limits["idle_timeout_s"] == 5:
            await wire.say(GET)
            assert (await wire.answer()).status == 404
        await node.wait(4)
        assert len(node.server.poller) == 2
        await node.wait(1)
        assert await wire.end() == b""


async def test_half_closed_client_gets_all_its_answers():
    async with running() as node:
        wire = await node.connect()
        await wire.say(GET * 5)
        await wire.stream.send_eof()
        for _ in range(5):
            assert (await wire.answer()).status == 404
        assert await wire.end() == b""


def answer_largely(request):
    return Response(200, b"x" * 100_000)


@pytest.mark.parametrize(("n", "size"), [(100, 100_000), (1, 300_000)])
async def test_half_closed_client_gets_what_did_not_fit_the_kernel(n, size):
    async with running() as node:
        node.server._handle = lambda request: Response(200, b"x" * size)
        wire = await node.connect(receives=4096)
        await wire.say(GET * n)
        await wire.stream.send_eof()
        await until(lambda: node.broker.backlog)
        for _ in range(n):
            assert len((await wire.answer()).body) == size
        assert await wire.end() == b""


async def test_client_that_never_reads_makes_us_hold_a_bounded_number_of_bytes():
    async with running(idle_timeout_s=30) as node:
        node.server._handle = answer_largely
        wire = await node.connect(receives=4096)

        async def ask():
            try:
                await wire.say(GET * 20_000)
            except trio.BrokenResourceError:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(lambda: node.broker.backlog)
            (outbox,) = node.broker.backlog
            await until(lambda: outbox.waiting_bytes >= MAX_WAITING_BYTES)
            (connection,) = http_connections(node)
            most = n_requests = 0
            while node.broker.backlog:  # and not for ever
                most = max(most, outbox.waiting_bytes)
                n_requests = max(n_requests, len(connection._requests))
                await node.wait(5)

        assert MAX_WAITING_BYTES <= most < MAX_WAITING_BYTES + 200_000
        assert n_requests <= 2 * RECV_BYTES // len(GET)


async def test_reading_is_resumed_when_the_client_reads():
    async with running() as node:
        node.server._handle = answer_largely
        wire = await node.connect(receives=4096)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.say, GET * 300)
            for _ in range(300):
                answer = await wire.answer()
                assert len(answer.body) == 100_000
                if len(wire.buffer) > 1_000_000:
                    await trio.lowlevel.checkpoint()


class Line:
    """Holds requests until they are let go."""

    def __init__(self, body=b'"waited"'):
        self.attempts = []
        self.body = body
        self.is_ready = False

    def answer(self, request):
        return Later(
            lambda: Response(200, self.body) if self.is_ready else None, self.attempts.append
        )

    def go(self):
        self.is_ready = True
        for attempt in self.attempts:
            assert attempt()


class Held(Line):
    """An endpoint that waits until it is let go, among the others."""

    def __init__(self, handle):
        super().__init__()
        self.handle = handle

    def __call__(self, request):
        return self.answer(request) if request.path == "/wait" else self.handle(request)


WAIT = b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n"


async def test_answers_keep_their_order_when_one_has_to_wait():
    async with running() as node:
        held = node.server._handle = Held(node.server._handle)
        wire = await node.connect()
        await wire.say(GET + WAIT + GET + GET)
        assert (await wire.answer()).status == 404
        await until(lambda: held.attempts)
        await wire.say(GET)  # stays in the kernel
        held.go()
        answers = [await wire.answer() for _ in range(4)]
        assert [answer.status for answer in answers] == [200, 404, 404, 404]


async def test_who_waits_is_watched_until_it_talks_on():
    async with running() as node:
        held = node.server._handle = Held(node.server._handle)
        wire = await node.connect()
        await wire.say(WAIT)
        await until(lambda: held.attempts)
        poller = node.server.poller
        assert not poller._watched  # nobody's selector was told anything
        await wire.say(GET)
        await until(lambda: list(poller._watched.values()) == [0])
        held.go()
        assert [(await wire.answer()).status for _ in range(2)] == [200, 404]
        assert not poller._watched


async def test_half_closed_client_gets_the_answer_that_had_to_wait():
    async with running() as node:
        held = node.server._handle = Held(node.server._handle)
        wire = await node.connect()
        await wire.say(WAIT)
        await until(lambda: held.attempts)
        await wire.stream.send_eof()
        await node.wait(0)  # a few rounds of its loop
        held.go()
        assert (await wire.answer()).body == b'"waited"'
        assert await wire.end() == b""


async def test_client_that_left_while_it_waited_is_forgotten():
    async with running() as node:
        held = node.server._handle = Held(node.server._handle)
        wire = await node.connect()
        await wire.say(WAIT)
        await until(lambda: held.attempts)
        await wire.aclose()
        held.go()
        await until(lambda: len(node.server.poller) == 1)  # the listener


async def test_bug_in_a_waiting_request_ends_only_its_connection():
    async with running() as node:
        serve_api = node.server._handle

        def handle(request):
            later = Later(lambda: 1 // 0, node.broker.fanout.when_room)
            return later if request.path == "/wait" else serve_api(request)

        node.server._handle = handle
        wire, other = await node.connect(), await node.connect()
        await wire.say(WAIT)
        assert await wire.end() == b""
        await other.say(GET)
        assert (await other.answer()).status == 404
        (entry,) = [entry for entry in node.logs if entry["event"] == "request failed"]
        node.logs.remove(entry)


async def test_bug_in_a_handler_ends_only_its_connection():
    async with running() as node:
        node.server._handle = lambda request: 1 // 0  # what a bug of ours would be
        wire = await node.connect()
        await wire.say(GET)
        assert await wire.end() == b""
        node.server._handle = answer_largely
        other = await node.connect()
        await other.say(GET)
        assert (await other.answer()).status == 200
        (entry,) = [entry for entry in node.logs if entry["event"] == "connection failed"]
        node.logs.remove(entry)


async def test_publisher_waits_while_too_much_is_undelivered_and_is_answered_in_order():
    async with running(max_undelivered_bytes=1) as node:
        client = await node.client()
        await client.subscribe("a")
        wire = await node.connect()
        events = [
            node.signed("POST", "events", {"name": "n", "channel": "a", "data": str(number)})
            for number in range(200)
        ]
        await wire.say(b"".join(events) + GET)
        for _ in range(200):
            assert (await wire.answer("POST")).status == 200
        assert (await wire.answer()).status == 404
        assert [(await client.hear())["data"] for _ in range(200)] == [str(n) for n in range(200)]


async def test_websocket_may_begin_behind_pipelined_requests():
    async with running() as node:
        wire = await node.connect()
        path = f"/app/{make_app().key}"
        subscribe = frame(1, message("pusher:subscribe", {"channel": "cache-a"}))
        await wire.say(
            node.signed("POST", "events", EVENT)
            + upgrade_request(path, b"dGhlIHNhbXBsZSBub25jZQ==")
            + subscribe
        )
        assert (await wire.answer("POST")).status == 200
        client = Client(wire, await wire.until(b"\r\n\r\n"))
        assert "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in client.head
        assert (await client.hear())["event"] == "pusher:connection_established"
        assert (await client.hear())["event"] == "pusher_internal:subscription_succeeded"
        assert (await client.hear())["event"] == "tick"


@pytest.mark.parametrize("size", [300_000, 10_000_000])
async def test_websocket_begins_only_when_the_answers_before_it_have_left(size):
    async with running() as node:
        api = node.server._handle
        node.server._handle = lambda request: (
            Response(200, b"x" * size) if request.path == "/large" else api(request)
        )
        wire = await node.connect(receives=4096)
        large = GET.replace(b"/nowhere", b"/large")
        await wire.say(
            large + upgrade_request(f"/app/{make_app().key}", b"dGhlIHNhbXBsZSBub25jZQ==")
        )
        await until(lambda: node.broker.backlog)
        assert len((await wire.answer()).body) == size
        client = Client(wire, await wire.until(b"\r\n\r\n"))
        assert (await client.hear())["event"] == "pusher:connection_established"


async def test_upgrade_that_we_do_not_know_is_answered_as_usual():
    """Java's HttpClient offers h2c with every request, POSTs included."""
    async with running() as node:
        offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAE\r\n"
        wire = await node.connect()
        request = node.signed("POST", "events", EVENT, headers=offer)
        await wire.say(request * 3 + request[:-3])
        for _ in range(3):
            assert (await wire.answer("POST")).status == 200
        await wire.say(request[-3:] + GET)
        assert (await wire.answer("POST")).status == 200
        assert (await wire.answer()).status == 404


async def test_connect_is_refused():
    async with running() as node:
        wire = await node.connect()
        await wire.say(b"CONNECT a:443 HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await wire.answer()).status == 404


async def test_admin_address_speaks_no_websocket():
    async with running(has_admin=True) as node:
        wire = await node.connect(is_admin=True)
        await wire.say(upgrade_request(f"/app/{make_app().key}", b"dGhlIHNhbXBsZSBub25jZQ=="))
        assert (await wire.answer()).status == 404


async def test_draining_server_says_that_it_closes():
    async with running() as node:
        held = node.server._handle = Held(node.server._handle)
        wire = await node.connect()
        await wire.say(GET)
        assert "connection" not in (await wire.answer()).headers
        await wire.say(WAIT)
        await until(lambda: held.attempts)
        node.nursery.start_soon(node.server.drain, 0.0)
        await until(lambda: node.server.common.is_draining)
        held.go()
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await wire.end() == b""


async def test_idle_connections_do_not_hold_up_a_drain():
    """Browsers open connections ahead of need and say nothing on them."""
    async with running() as node:
        silent, used = await node.connect(), await node.connect()
        await used.say(GET)
        await used.answer()
        await until(lambda: len(node.server.poller) == 3)
        await node.server.drain(0.0)
        assert await silent.end() == b""
        assert await used.end() == b""


async def test_every_transition_of_the_table_is_taken_and_no_other():
    """What is not in the table fails any test that meets it, see ``running``."""
    wait = WAIT.replace(b"Host", b"Connection: close\r\nHost")
    large = CLOSING.replace(b"/nowhere", b"/large")
    async with running() as node:
        held = Held(node.server._handle)
        sources = []

        def handle(request):
            if request.path == "/large":
                return Response(200, b"x" * 4_000_000)
            if request.path == "/stream":
                sources.append(Quiet())
                return Stream(sources[-1], "text/plain")
            return held(request)

        node.server._handle = handle

        async def after(*requests, answered=0, receives=None):
            wire = await node.connect(receives=receives)
            for request in requests:
                await wire.say(request)
            for _ in range(answered):
                await wire.answer()
            return wire

        async def alone():
            while node.wires:
                await node.wires.pop().aclose()
            await until(lambda: len(node.server.poller) == 1)

        await (await after(GET[:5])).aclose()  # READING -> GONE
        await (await after(b"nonsense\r\n\r\n", answered=1)).end()  # READING -> CLOSING
        await (await after(GET + GET[:9], answered=1)).aclose()  # READING -> IDLE -> READING
        await (await after(GET, answered=1)).aclose()  # IDLE -> GONE
        wire = await after(GET, answered=1)
        await wire.say(b"nonsense\r\n\r\n")  # IDLE -> CLOSING -> LINGERING -> GONE
        await wire.answer()
        await wire.end()
        await (await after(CLOSING, answered=1)).end()  # IDLE -> PARTING -> GONE
        await alone()

        slow = await after(large, receives=4096)  # PARTING -> CLOSING
        await until(lambda: (State.PARTING, State.CLOSING) in node.transitions)
        await slow.aclose()  # CLOSING -> GONE
        await alone()

        wire = await after(wait)
        await until(lambda: held.attempts)
        held.go()  # IDLE -> BUSY -> IDLE
        await wire.answer()
        await alone()
        held.attempts.clear()
        gone = await after(WAIT)
        await until(lambda: held.attempts)
        (connection,) = http_connections(node)
        connection.abort()  # BUSY -> GONE
        await gone.end()

        stream = GET.replace(b"/nowhere", b"/stream")
        for end, request in (
            (True, stream),
            (True, stream.replace(b"1.1", b"1.0")),
            (False, stream),
        ):
            wire = await after(request)
            await until(lambda: sources)
            if end:  # STREAMING -> IDLE, STREAMING -> CLOSING
                sources.pop().body.end()
                await wire.until(b"\r\n\r\n")
            else:
                sources.pop()
            await wire.aclose()  # STREAMING -> GONE
            await alone()

        assert node.transitions == {(before, after) for before in NEXT for after in NEXT[before]}


class Quiet:
    """A source that is asked for nothing."""

    def begin(self, body):
        self.body = body

    def on_gone(self):
        """Its test knows."""


def test_who_has_gone_or_said_all_answers_nothing_any_more():
    for state in State:
        assert (State.IDLE in NEXT[state]) == (
            state in {State.READING, State.BUSY, State.STREAMING}
        )
