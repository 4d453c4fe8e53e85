"""Messages with open files in them, from an end that is not to be trusted."""

from __future__ import annotations

import os
import socket
import struct
from array import array
from pathlib import Path

import pytest
import trio
import trio.testing

from cachecast.control import line as module
from cachecast.control.line import MAX_DESCRIPTORS, Line
from cachecast.errors import ControlError


@pytest.fixture
async def pair():
    """Both ends of a conversation."""
    ours, theirs = trio.socket.socketpair()
    mine, others = Line(ours), Line(theirs)
    yield mine, others
    mine.close()
    others.close()


@pytest.fixture
async def raw():
    """A line, and the socket of somebody who speaks otherwise."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    ours.setblocking(False)
    line = Line(trio.socket.from_stdlib_socket(ours))
    yield line, theirs
    line.close()
    theirs.close()


def n_open() -> int:
    """How many files this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_messages_arrive_whole_and_in_order(pair):
    mine, others = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mine.send, b"x" * 3_000_000)
        nursery.start_soon(others.send, [1, "two"])
        assert (await others.receive(bytes))[0] == b"x" * 3_000_000
        assert await mine.receive(list[int | str]) == ([1, "two"], [])
    for number in range(100):
        await mine.send(number)
    assert [(await others.receive(int))[0] for _ in range(100)] == list(range(100))


async def test_open_files_arrive_with_their_message(pair):
    """Also where several messages, some without files, are read in one go."""
    mine, others = pair
    files = [os.memfd_create(f"file{number}") for number in range(3)]
    for number, descriptor in enumerate(files):
        os.write(descriptor, b"%d" % number)
    await mine.send("none")
    await mine.send("one", files[:1])
    await mine.send("none")
    await mine.send("two", files[1:])
    for descriptor in files:
        os.close(descriptor)
    got = [await others.receive(str) for _ in range(4)]
    assert [(text, len(found)) for text, found in got] == [
        ("none", 0), ("one", 1), ("none", 0), ("two", 2),
    ]  # fmt: skip
    found = [descriptor for _, some in got for descriptor in some]
    assert [os.pread(descriptor, 9, 0) for descriptor in found] == [b"0", b"1", b"2"]
    assert not any(os.get_inheritable(descriptor) for descriptor in found)
    for descriptor in found:
        os.close(descriptor)


async def test_as_many_files_as_one_message_may_have(pair):
    mine, others = pair
    await mine.send("all", [0] * MAX_DESCRIPTORS)
    message, found = await others.receive(str)
    for descriptor in found:
        os.close(descriptor)
    assert (message, len(found)) == ("all", MAX_DESCRIPTORS)


async def test_files_that_nobody_took_are_closed_with_the_line(pair):
    mine, others = pair
    before = n_open()
    await mine.send("never read", [0] * 10)
    await mine.send(7)
    with pytest.raises(ControlError, match="nonsense"):
        await others.receive(int)
    others.close()
    assert n_open() == before - 1


async def test_a_receiver_that_is_cancelled_loses_nothing(pair):
    mine, others = pair
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0):
            await others.receive(bytes)
        nursery.start_soon(mine.send, b"y" * 2_000_000)
        for _ in range(3):
            with trio.CancelScope() as scope:
                scope.cancel()
                await others.receive(bytes)
            await trio.testing.wait_all_tasks_blocked()
        assert (await others.receive(bytes))[0] == b"y" * 2_000_000


async def test_the_end_of_the_other_is_told(pair):
    mine, others = pair
    others.close()
    with pytest.raises(ControlError, match="gone"):
        await mine.receive(int)
    with pytest.raises(ControlError, match="written"):
        await mine.send("hello")


@pytest.mark.parametrize(
    "said",
    [
        struct.pack(">IB", 2**32 - 1, 0),  # a length that nobody has
        struct.pack(">IB", 1, 0) + b"\xc1",  # no msgpack
        struct.pack(">IB", 1, 0) + b"\xc0",  # of another type
        struct.pack(">IB", 1, 3) + b"\x07",  # files that did not come
    ],
)
async def test_nonsense_is_an_error_in_words(raw, said):
    line, other = raw
    other.sendall(said)
    with pytest.raises(ControlError, match=r"large|nonsense|open files"):
        await line.receive(int)


async def test_files_beyond_what_was_said_are_refused(raw):
    """A flood of descriptors without messages stays bounded."""
    line, other = raw
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [0] * 200))]
    for _ in range(2):
        other.sendmsg([b"\x00"], rights)
    other.sendall(b"\x00\x00\x01\x00\x07")
    with pytest.raises(ControlError, match="other open files"):
        await line.receive(int)


async def test_what_is_too_large_is_not_sent(pair, monkeypatch):
    monkeypatch.setattr(module, "MAX_MESSAGE_BYTES", 100)
    with pytest.raises(ControlError, match="too large"):
        await pair[0].send("x" * 200)
