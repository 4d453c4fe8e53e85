"""Responses that a session writes to: where they are cut, and what becomes of half of one."""

from __future__ import annotations

import msgspec
import pytest

from cachecast.handover.state import ReceiverState
from cachecast.protocol.sockjs import OPEN
from cachecast.server.receiver import Poll, ScriptPoll, Streaming
from cachecast.testing import open_memory_network, open_test_broker
from cachecast.testing.socket import MemorySocket

HEAD = b"HEAD\r\n"
TERMS = ReceiverState("xhr", (), True, "", False)


class Session:
    """The owner of a response, which notes what it is told."""

    def __init__(self):
        self.told = []

    def on_writable(self):
        self.told.append("writable")

    def on_complete(self):
        self.told.append("complete")

    def on_lost(self):
        self.told.append("lost")


class Reader:
    """What a socket belongs to before and after: it does nothing with it."""

    def __init__(self, share):
        self.share = share

    def abort(self):
        """There is nothing to forget."""


class Ground:
    """A socket in a memory network, and what has been received from it."""

    def __init__(self, network):
        self.common = network.server.common
        self.poller = network.poller
        self.received = b""
        self.is_ended = False
        self.session = Session()
        self.resumed = []
        self.socket = MemorySocket(99, self._on_bytes, self._on_end)
        self.poller.sockets[99] = self.socket
        # As after a request: the Poller has it, for a connection that reads.
        self.connection = Reader(self.poller.newcomers)
        self.poller.add(99, self.connection)

    def _on_bytes(self, data):
        self.received += data

    def _on_end(self):
        self.is_ended = True

    def _resume(self, sock):
        self.resumed.append(sock)
        self.poller.watch(99, self.connection)

    def serve(self):
        self.poller.touch(99)
        self.poller.serve_ready()

    def streaming(self, *, max_bytes, ends=False, prelude=b""):
        made = Streaming(
            self.socket, self.common, self.poller.newcomers, TERMS,
            preface=HEAD + prelude, room=max_bytes + 1 - len(prelude), ends=ends,
        )  # fmt: skip
        made.begin(self.session)
        return made

    def poll(self, *, callback=""):
        kind = ScriptPoll if callback else Poll
        terms = msgspec.structs.replace(TERMS, callback=callback)
        made = kind(
            self.socket, self.common, self.poller.newcomers, terms,
            encode_head=lambda: HEAD, resume=self._resume,
        )  # fmt: skip
        made.begin(self.session)
        return made


@pytest.fixture
async def ground(autojump_clock):
    async with open_test_broker() as broker, open_memory_network(broker) as network:
        yield Ground(network)


async def test_a_stream_is_full_behind_the_first_line_past_its_limit(ground):
    stream = ground.streaming(max_bytes=10, prelude=b"hh\n")
    assert stream.send(b"12345\n") == 6  # nine of the body
    assert ground.session.told == []
    assert stream.send(b"7\n9\n") == 2
    assert ground.received == HEAD + b"hh\n12345\n7\n"
    assert (ground.session.told, ground.is_ended) == (["complete"], False)


async def test_exactly_as_many_bytes_as_the_limit_leave_it_open(ground):
    stream = ground.streaming(max_bytes=4)
    assert stream.send(b"123\n") == 4
    assert ground.session.told == []
    assert stream.send(b"5\n7\n") == 2
    assert ground.session.told == ["complete"]


async def test_a_line_that_passes_the_limit_is_sent_whole_in_parts(ground):
    stream = ground.streaming(max_bytes=4)
    ground.socket.room = 6
    assert stream.send(b"12345678\nx\n") == 6
    with pytest.raises(BlockingIOError):
        stream.send(b"78\nx\n")
    ground.socket.room = 100
    assert stream.send(b"78\nx\n") == 3
    assert ground.received == HEAD + b"12345678\n"
    assert ground.session.told == ["complete"]


async def test_a_head_that_does_not_leave_at_once_leaves_before_all_else(ground):
    ground.socket.room = 2
    stream = ground.streaming(max_bytes=100)
    with pytest.raises(BlockingIOError):
        stream.send(OPEN)
    ground.socket.room = 100
    assert stream.send(OPEN) == 2
    assert ground.received == HEAD + OPEN


async def test_a_stream_whose_client_must_begin_another_is_closed_if_it_does_not(ground):
    ground.streaming(max_bytes=1).send(b"12\n")
    ground.socket.has_ended = True
    ground.serve()
    assert ground.socket.is_closed
    assert ground.session.told == ["complete"]


async def test_a_client_that_goes_is_told_of_once(ground):
    stream = ground.streaming(max_bytes=10)
    ground.socket.has_ended = True
    ground.serve()
    stream.abort()
    assert ground.session.told == ["lost"]
    assert ground.socket.is_closed


async def test_a_socket_that_breaks_at_its_head_is_gone(ground):
    ground.socket.send_error = ConnectionResetError()
    ground.streaming(max_bytes=10)
    assert ground.session.told == ["lost"]


async def test_a_poll_is_answered_by_what_is_offered_first_and_gives_its_socket_back(ground):
    poll = ground.poll()
    assert poll.send(b"ab\n") == 3
    assert ground.received == HEAD + b"Content-Length: 3\r\n\r\nab\n"
    assert (ground.session.told, ground.resumed) == (["complete"], [ground.socket])


async def test_the_rest_of_an_answer_is_as_long_as_was_said(ground):
    poll = ground.poll()
    ground.socket.room = len(HEAD) + len("Content-Length: 5\r\n\r\n") + 2
    assert poll.send(b"abcd\n") == 2
    ground.socket.room = 100
    assert poll.send(b"cd\nmore\n") == 3
    assert ground.received.endswith(b"\r\n\r\nabcd\n")
    assert ground.session.told == ["complete"]


async def test_a_socket_that_takes_no_more_than_a_head_is_broken(ground):
    poll = ground.poll()
    ground.socket.room = 10
    with pytest.raises(ConnectionAbortedError):
        poll.send(b"ab\n")


async def test_who_has_said_something_behind_a_poll_is_not_read_again(ground):
    poll = ground.poll()
    ground.socket.inbound += b"GET /"
    ground.serve()
    poll.send(b"ab\n")
    assert (ground.resumed, ground.is_ended) == ([], True)
    ground.socket.has_ended = True
    ground.serve()
    assert ground.socket.is_closed


async def test_a_script_takes_a_line_and_its_end_when_all_of_it_has_left(ground):
    poll = ground.poll(callback="f")
    ground.socket.room = 0
    with pytest.raises(BlockingIOError):
        poll.send(b"ab\ncd\n")
    assert poll.can_move
    ground.socket.room = 20
    assert poll.send(b"ab\ncd\n") == 2
    assert not poll.can_move
    for room in (0, 5):
        ground.socket.room = room
        with pytest.raises(BlockingIOError):
            poll.send(b"\ncd\n")
    assert ground.session.told == []
    ground.socket.room = 1_000
    assert poll.send(b"\ncd\n") == 1
    assert ground.received.endswith(b'/**/f("ab");\r\n')
    assert ground.session.told == ["complete"]


async def test_a_script_that_waits_tells_its_session_of_room(ground):
    poll = ground.poll(callback="f")
    poll.on_writable()
    assert ground.session.told == ["writable"]
