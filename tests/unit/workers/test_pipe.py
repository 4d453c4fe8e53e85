"""Messages between a parent and a worker, neither of which is to be trusted to live."""

from __future__ import annotations

import os
import socket

import msgspec
import pytest
import trio
import trio.testing

from cachecast.workers import pipe as module
from cachecast.workers.messages import FROM_PARENT, FROM_WORKER, Ask, Beat, Failed, Give, Order
from cachecast.workers.pipe import Pipe


@pytest.fixture
async def pair():
    """A parent's end, and a worker's."""
    ours, theirs = socket.socketpair()
    parent, worker = Pipe(ours, FROM_WORKER), Pipe(theirs, FROM_PARENT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parent.run)
        nursery.start_soon(worker.run)
        yield parent, worker
        nursery.cancel_scope.cancel()
    parent.close()
    worker.close()


async def test_messages_arrive_whole_and_in_order(pair):
    parent, worker = pair
    long = Failed("x" * 1_000_000)
    for message in (Beat(is_ready=True), long, Beat(is_ready=False)):
        assert worker.send(message)
    assert [await parent.receive() for _ in range(3)] == [
        Beat(is_ready=True), long, Beat(is_ready=False),
    ]  # fmt: skip
    await worker.wait_sent()
    for number in range(100):
        parent.send(Order(number))
    assert [(await worker.receive()).number for _ in range(100)] == list(range(100))


async def test_an_end_that_does_not_read_costs_a_bounded_number_of_bytes(pair, monkeypatch):
    """A stopped worker: its parent's words are not taken, and nobody waits."""
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 1_000)
    _, worker = pair
    sent = 0
    while worker.send(Failed("x" * 500_000)):
        sent += 1
        await trio.testing.wait_all_tasks_blocked()
        assert sent < 10


async def test_the_end_of_one_side_is_heard_by_the_other(pair):
    parent, worker = pair
    worker.send(Beat(is_ready=True))
    await worker.wait_sent()
    worker.close()
    assert await parent.receive() == Beat(is_ready=True)
    assert await parent.receive() is None
    assert parent.send(Ask())  # goes nowhere, and hurts nobody


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\x01\xc1",
        b"\0\0\0\x08" + msgspec.msgpack.encode(["Order", 15]),
    ],
)
async def test_nonsense_is_the_end(said):
    """What is too long, cannot be read, or is not this side's to say."""
    ours, theirs = socket.socketpair()
    parent = Pipe(ours, FROM_WORKER)
    with theirs:
        theirs.sendall(said)
        assert await parent.receive() is None
    parent.close()


async def test_a_receive_that_is_cancelled_loses_nothing(pair):
    """Not even of a message that has come in part."""
    parent, worker = pair
    long = Failed("x" * 1_000_000)
    worker.send(long)
    for _ in range(3):
        with trio.CancelScope() as scope:
            scope.cancel()
            await parent.receive()
        await trio.testing.wait_all_tasks_blocked()
    assert await parent.receive() == long


async def test_open_files_come_with_their_message(pair):
    parent, worker = pair
    reading, writing = os.pipe()
    parent.send(Ask())
    parent.send(Give(), (writing, reading))
    os.close(writing)
    os.close(reading)
    parent.send(Ask())
    assert [await worker.receive() for _ in range(3)] == [Ask(), Give(), Ask()]
    await parent.wait_sent()
    assert parent.is_sent
    out, into = worker.descriptors.popleft(), worker.descriptors.popleft()
    os.write(out, b"hello")
    assert os.read(into, 5) == b"hello"
    os.close(out)
    os.close(into)


async def test_open_files_that_nobody_has_taken_are_closed_with_it():
    ours, theirs = socket.socketpair()
    pipe = Pipe(ours, FROM_WORKER)
    reading, writing = os.pipe()
    pipe.send(Give(), (writing,))
    os.close(writing)
    pipe.close()
    theirs.close()
    assert os.read(reading, 1) == b""
    os.close(reading)
