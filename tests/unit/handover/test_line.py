"""The line between two processes: whole messages, their descriptors, and no waiting without end."""

from __future__ import annotations

import os
import resource
import socket
import time

import pytest
import trio

from cachecast.handover.line import DESCRIPTORS_PER_MESSAGE, Line, LineError
from cachecast.handover.state import Failed, Seats, Taken, Values
from tests.sockets.node import count_fds


@pytest.fixture
def lines():
    ours, theirs = socket.socketpair()
    pair = Line(ours), Line(theirs)
    yield pair
    for line in pair:
        line.close()


async def test_descriptors_come_with_their_message(lines):
    ours, theirs = lines
    read, write = os.pipe()
    await ours.send(Seats([("clients", "a")]), [write])
    await ours.send(Taken(1), [read, write])
    os.close(read)
    seats, (first,) = await theirs.receive()
    word, descriptors = await theirs.receive()
    assert (seats, word) == (Seats([("clients", "a")]), Taken(1))
    os.write(first, b"x")
    assert os.read(descriptors[0], 10) == b"x"
    for fd in (write, first, *descriptors):
        os.close(fd)


async def test_much_more_than_the_kernel_holds_arrives_whole(lines):
    ours, theirs = lines
    values = [(f"cache-{number}", bytes(100_000), 0.0, 1.0) for number in range(300)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.send, Values("3", values))
        message, _ = await theirs.receive()
    assert message.values == values


def test_who_does_not_read_is_not_waited_for(lines):
    ours, theirs = lines
    much = Values("3", [("a", bytes(50_000_000), 0.0, 1.0)])
    with pytest.raises(LineError, match="does not answer in time"):
        ours.send_now(much, deadline=time.monotonic() + 0.05)
    with pytest.raises(LineError, match="does not answer in time"):
        ours.receive_now(deadline=time.monotonic())
    theirs.close()
    with pytest.raises(LineError, match="has ended"):
        ours.send_now(Taken(1), deadline=time.monotonic() + 1)


def test_why_the_other_side_gave_up_is_heard_although_it_has_gone(lines):
    """Also by who is in the midst of sending."""
    ours, theirs = lines
    ours.send_now(Taken(1), deadline=time.monotonic() + 1)
    theirs.send_now(Failed("No room."), deadline=time.monotonic() + 1)
    theirs.close()
    with pytest.raises(LineError, match="No room") as caught:
        ours.send_now(Taken(1), deadline=time.monotonic() + 1)
    assert caught.value.is_said


def test_descriptors_that_do_not_fit_are_an_error_and_none_is_kept(lines):
    ours, theirs = lines
    read, write = os.pipe()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = count_fds()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + 5, limit[1]))
        ours.send_now(Taken(1), [write] * DESCRIPTORS_PER_MESSAGE, deadline=time.monotonic() + 1)
        with pytest.raises(LineError, match="open files of the new process"):
            theirs.receive_now(deadline=time.monotonic() + 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    theirs.close()
    assert count_fds() <= before
    os.close(read)
    os.close(write)
