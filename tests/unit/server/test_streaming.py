"""Responses in parts: what a client gets, what a source is told, what it costs to wait."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import structlog
import trio

from cachecast.server.http import MAX_WAITING_BYTES
from cachecast.server.http_messages import Response
from cachecast.server.streaming import Stream
from cachecast.testing import open_memory_network, open_test_broker
from cachecast.testing.socket import MemorySocket
from tests.sockets.node import running, until

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Tape:
    """A source that writes what the test says, and notes what it is told."""

    def __init__(self):
        self.body = None
        self.told = []

    def begin(self, body):
        self.body = body
        self.told.append("begin")

    def on_room(self):
        self.told.append("room")

    def on_gone(self):
        self.told.append("gone")


class Talk:
    """A client of a memory network whose every request is answered by a stream."""

    def __init__(self, network, tape, fd):
        self.poller = network.poller
        self.received = b""
        self.is_ended = False
        self.socket = MemorySocket(fd, self._take, self._end)
        network.server._handle = lambda request: (
            Stream(tape, "text/plain") if request.path == "/" else Response(200, b"plain")
        )
        network._accept(self.socket)

    def _take(self, data):
        self.received += data

    def _end(self):
        self.is_ended = True

    def say(self, data=b""):
        self.socket.inbound += data
        self.poller.touch(self.socket.fileno())
        self.poller.serve_ready()

    def leave(self):
        self.socket.has_ended = True
        self.say()

    def take(self):
        head, _, body = self.received.partition(b"\r\n\r\n")
        self.received = b""
        return head, body


@asynccontextmanager
async def talking(n=1):
    async with open_test_broker() as broker, open_memory_network(broker) as network:
        pairs = [(tape := Tape(), Talk(network, tape, 1_000 + k)) for k in range(n)]
        yield (*pairs[0], network) if n == 1 else (pairs, network)


async def test_parts_are_chunks_and_the_connection_is_kept_after_the_end(autojump_clock):
    async with talking() as (tape, talk, _):
        talk.say(REQUEST)
        head, body = talk.take()
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Transfer-Encoding: chunked" in head
        assert body == b""
        tape.body.write(b"hello")
        tape.body.write(b"")  # which as a chunk would be the end
        tape.body.write(b"x" * 20)
        assert talk.received == b"5\r\nhello\r\n14\r\n" + b"x" * 20 + b"\r\n"
        talk.take()
        tape.body.end()
        assert talk.received == b"0\r\n\r\n"
        talk.take()
        tape.body.end()
        tape.body.write(b"late")
        tape.body.abort()
        assert (talk.received, tape.body.is_open) == (b"", False)
        talk.say(REQUEST.replace(b"/ ", b"/x "))
        assert talk.take()[1] == b"plain"
        assert tape.told == ["begin"]


async def test_what_was_asked_for_meanwhile_is_answered_behind_the_end(autojump_clock):
    async with talking() as (tape, talk, _):
        talk.say(REQUEST + REQUEST.replace(b"/ ", b"/x "))
        talk.take()
        talk.say(REQUEST.replace(b"/ ", b"/x "))
        assert talk.received == b""
        tape.body.end()
        talk.poller.serve_ready()
        assert talk.received.count(b"plain") == 2


async def test_nonsense_behind_a_stream_is_refused_behind_its_end(autojump_clock):
    async with talking() as (tape, talk, _):
        talk.say(REQUEST)
        talk.take()
        talk.say(b"nonsense\r\n\r\n")
        talk.say(b"more of it\r\n\r\n")
        assert talk.received == b""
        tape.body.end()
        talk.poller.serve_ready()
        assert b"HTTP/1.1 400" in talk.received


async def test_http_1_0_gets_the_bare_body_and_the_end_of_the_connection(autojump_clock):
    async with talking() as (tape, talk, _):
        talk.say(REQUEST.replace(b"1.1", b"1.0"))
        head, _ = talk.take()
        assert b"Connection: close" in head
        assert b"chunked" not in head
        tape.body.write(b"hello")
        assert not talk.is_ended
        tape.body.end()
        assert (talk.received, talk.is_ended) == (b"hello", True)


async def test_head_gets_the_head_and_its_source_is_never_begun(autojump_clock):
    async with talking() as (tape, talk, _):
        talk.say(REQUEST.replace(b"GET", b"HEAD") + REQUEST.replace(b"/ ", b"/x "))
        head, rest = talk.take()
        assert b"chunked" in head
        assert rest.startswith(b"HTTP/1.1 200")
        talk.say(
            REQUEST.replace(b"GET", b"HEAD").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        )
        assert talk.is_ended
        assert tape.told == []


async def test_a_source_must_wait_for_room_and_is_told_of_it(autojump_clock):
    async with talking() as (tape, talk, _):
        talk.say(REQUEST)
        talk.socket.room = 1_000
        n = 0
        while tape.body.has_room:
            tape.body.write(b"x" * 10_000)
            n += 1
        assert MAX_WAITING_BYTES <= n * 10_000 < MAX_WAITING_BYTES + 20_000
        with pytest.raises(trio.WouldBlock):
            tape.body.write(b"x")
        talk.socket.room = 50_000
        talk.say()
        assert tape.told == ["begin"]
        talk.socket.room = float("inf")
        talk.say()
        assert tape.told == ["begin", "room"]
        assert tape.body.has_room


async def test_a_client_that_leaves_is_told_of_once(autojump_clock):
    async with talking() as (tape, talk, network):
        talk.say(REQUEST)
        talk.leave()
        assert tape.told == ["begin", "gone"]
        assert (tape.body.is_open, tape.body.has_room) == (False, True)
        tape.body.write(b"late")
        tape.body.end()
        assert len(network.poller) == 0
        assert tape.told == ["begin", "gone"]


async def test_a_source_that_gives_up_cuts_the_connection_off_and_is_told_nothing(autojump_clock):
    async with talking() as (tape, talk, _):
        talk.say(REQUEST)
        tape.body.write(b"hello")
        tape.body.abort()
        assert talk.is_ended
        assert not talk.received.endswith(b"0\r\n\r\n")
        assert tape.told == ["begin"]


async def test_a_connection_that_breaks_while_a_part_is_written_is_told_of_once(autojump_clock):
    async with talking() as (tape, talk, _):
        talk.say(REQUEST)
        talk.socket.send_error = ConnectionResetError()
        tape.body.write(b"hello")
        talk.poller.serve_ready()
        tape.body.write(b"late")
        assert tape.told == ["begin", "gone"]


async def test_an_idle_stream_stays_and_one_that_is_not_read_ends(autojump_clock):
    async with talking() as (tape, talk, network):
        idle_s = network.broker.config.idle_timeout_s
        talk.say(REQUEST)
        await trio.sleep(10 * idle_s)
        assert tape.told == ["begin"]
        talk.socket.room = 0
        tape.body.write(b"x" * 100)
        for _ in range(3):  # it takes some from time to time
            await trio.sleep(idle_s * 0.7)
            talk.socket.room = 10
            talk.say()
        assert tape.told == ["begin"]
        talk.socket.room = float("inf")
        talk.say()
        assert tape.told == ["begin", "room"]
        await trio.sleep(10 * idle_s)
        talk.socket.room = 0
        tape.body.write(b"x")
        await trio.sleep(idle_s + 2)
        assert tape.told == ["begin", "room", "gone"]


async def test_streams_that_wait_have_no_tasks(autojump_clock):
    async with talking(20) as (pairs, _):
        before = trio.lowlevel.current_statistics().tasks_living
        for _, talk in pairs:
            talk.say(REQUEST)
        await trio.sleep(100)
        assert trio.lowlevel.current_statistics().tasks_living == before
        assert all(b"chunked" in talk.received for _, talk in pairs)


async def test_a_draining_server_ends_the_connection_with_the_stream(autojump_clock):
    async with talking() as (tape, talk, network):
        talk.say(REQUEST)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(network.server.drain, 0)
            await trio.sleep(1)
            assert not talk.is_ended
            tape.body.end()
            assert talk.received.endswith(b"0\r\n\r\n")
            assert talk.is_ended


@pytest.mark.parametrize("name", ["begin", "on_room", "on_gone"])
async def test_a_bug_in_a_source_ends_its_connection_only(autojump_clock, name):
    async with talking() as (other_tape, other, network):
        tape = Tape()
        setattr(tape, name, lambda *_: 1 // 0)
        talk = Talk(network, tape, 8)
        other.say(REQUEST)
        with structlog.testing.capture_logs() as logs:
            talk.socket.room = 200
            talk.say(REQUEST)
            if name != "begin":
                tape.body.write(b"x" * 1_000)
                talk.socket.room = float("inf")
                talk.say()
                talk.leave()
        assert [log["event"] for log in logs].count("connection failed") == 1
        assert talk.is_ended
        other_tape.body.write(b"hello")
        assert b"hello" in other.received


async def test_a_stream_over_a_real_socket_keeps_the_pace_of_its_reader():
    """Each part asked for only when there is room; then the client leaves in the midst of one."""

    class Counting(Tape):
        def __init__(self, n):
            super().__init__()
            self.left = n

        def begin(self, body):
            super().begin(body)
            self.on_room()

        def on_room(self):
            while self.left and self.body.has_room:
                self.left -= 1
                self.body.write(b"%0100000d" % self.left)
            if not self.left:
                self.body.end()

    async with running() as node:
        tape = Counting(100)
        node.server._handle = lambda request: Stream(tape, "text/plain")
        wire = await node.connect(receives=4096)
        await wire.say(REQUEST)
        await until(lambda: node.broker.backlog)
        assert node.broker.statistics().outbox_bytes < MAX_WAITING_BYTES + 200_000
        assert tape.left > 50
        answer = await wire.answer()
        assert len(answer.body) == 10_000_000
        assert answer.headers["transfer-encoding"] == "chunked"
        tape = Counting(10**9)
        await wire.say(REQUEST)
        await wire.more()
        await wire.aclose()
        await until(lambda: "gone" in tape.told)
        assert tape.told.count("gone") == 1
