"""A socket in memory says "not now" and "gone" as the kernel's does."""

from __future__ import annotations

import pytest

from cachecast.testing.socket import MemorySocket


@pytest.fixture
def heard():
    return []


@pytest.fixture
def sock(heard):
    return MemorySocket(7, heard.append, lambda: heard.append("end"))


def test_it_takes_what_there_is_room_for(sock, heard):
    sock.room = 3
    assert (sock.send(b"ab"), sock.send(b"cd")) == (2, 1)
    with pytest.raises(BlockingIOError):
        sock.send(b"d")
    assert heard == [b"ab", b"c"]


def test_nothing_to_read_is_not_the_end(sock):
    with pytest.raises(BlockingIOError):
        sock.recv(9)
    sock.inbound += b"abc"
    sock.has_ended = True
    assert (sock.recv(2), sock.recv(2), sock.recv(2)) == (b"ab", b"c", b"")


def test_client_that_is_gone_breaks_the_next_send(sock):
    sock.has_ended = True
    with pytest.raises(BrokenPipeError):
        sock.send(b"x")
    sock.send_error = ConnectionResetError()
    with pytest.raises(ConnectionResetError):
        sock.send(b"x")


def test_its_end_is_told_once(sock, heard):
    sock.close()
    sock.close()
    assert sock.is_closed
    assert heard == ["end"]
