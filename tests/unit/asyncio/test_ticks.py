"""Trio's ticks in a loop of asyncio: nothing is lost, nothing spins, and the host has its turns."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from contextlib import asynccontextmanager

import pytest
import trio

from cachecast.asyncio import ticks
from cachecast.asyncio.guest import open_guest


def _run(body, monkeypatch=None):
    async def main():
        async with open_guest("f") as guest:
            await body(guest)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_where_trios_selector_is_has_not_changed():
    """Trio does not promise it: without it all works, and each wake-up costs a thread's."""

    async def body(guest):
        assert guest.ticks.is_threadless

    _run(body)


@pytest.mark.parametrize("finds", [True, False])
def test_sockets_deadlines_threads_and_tasks_wake_trio(monkeypatch, finds):
    if not finds:
        monkeypatch.setattr(ticks, "_find_selector", lambda tick: None)

    async def everything():
        left, right = trio.socket.socketpair()
        with left, right:
            for n in range(50):
                await left.send(bytes([n]))
                assert await right.recv(1) == bytes([n])
        await trio.sleep(0.01)
        assert await trio.to_thread.run_sync(lambda: 42) == 42
        with trio.move_on_after(0.005) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(trio.sleep, n * 0.001)

    async def body(guest):
        await guest.run(everything)
        event = trio.Event()
        waiting = asyncio.create_task(guest.run(event.wait))
        await asyncio.sleep(0.005)
        event.set()  # by who runs in asyncio
        await waiting

    _run(body)


def test_bytes_that_come_at_any_moment_are_not_overlooked():
    """An event that a tick finds as the last thing it does must lead to another tick."""

    async def body(guest):
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        asleep = trio.socket.from_stdlib_socket(near)

        async def echo():
            with asleep:
                while data := await asleep.recv(1):
                    await asleep.send(data)

        echoing = asyncio.create_task(guest.run(echo))
        loop = asyncio.get_running_loop()
        for n in range(2_000):
            await loop.sock_sendall(far, bytes([n % 256]))
            assert await asyncio.wait_for(loop.sock_recv(far, 1), 20) == bytes([n % 256])
        far.close()
        await echoing

    _run(body)


def test_nothing_is_done_while_nothing_is_due():
    async def body(guest):
        waiting = asyncio.create_task(guest.run(trio.sleep, 600))
        await asyncio.sleep(0.05)
        before = guest.ticks.n_turns
        await asyncio.sleep(0.1)
        assert guest.ticks.is_settled
        assert guest.ticks.n_turns == before
        waiting.cancel()

    _run(body)


def test_a_deadline_that_comes_nearer_is_kept():
    async def body(guest):
        far = asyncio.create_task(guest.run(trio.sleep, 50))
        await asyncio.sleep(0.01)
        began = time.perf_counter()
        await guest.run(trio.sleep, 0.02)
        assert 0.02 <= time.perf_counter() - began < 40
        far.cancel()

    _run(body)


def test_a_trio_that_is_always_busy_leaves_the_loop_its_turns():
    async def busy():
        while True:
            await trio.lowlevel.checkpoint()

    async def body(guest):
        spinning = asyncio.create_task(guest.run(busy))
        for _ in range(20):  # which would take for ever
            await asyncio.sleep(0.0001)
        spinning.cancel()

    _run(body)


def _closed_in_the_middle(body):
    """Close a loop in which a block is open; gives what keeps the block from being finalized."""
    loop = asyncio.new_event_loop()
    block = open_guest("f")

    async def begin():
        return block, await body(await block.__aenter__())

    kept = loop.run_until_complete(begin())
    loop.close()
    return kept


def test_a_loop_that_is_closed_in_the_middle_leaves_the_thread_usable():
    """Trio's run would have stayed there for ever, and every other one been refused."""
    log = []

    @asynccontextmanager
    async def context():
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.01)
            log.append("closed")

    async def body(guest):
        blocks = [guest.hold(context), guest.hold(context)]
        for block in blocks:
            await block.__aenter__()
        return blocks

    kept = _closed_in_the_middle(body)
    _run(lambda guest: guest.run(trio.sleep, 0))
    del kept
    gc.collect()

    assert log == ["closed", "closed"]


def test_a_function_of_asyncio_whose_loop_is_closed_holds_nothing_up():
    async def body(guest):
        guest.start(guest.call_host, asyncio.sleep, 60)
        await asyncio.sleep(0.01)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task._log_destroy_pending = False

    kept = _closed_in_the_middle(body)
    _run(lambda guest: guest.run(trio.sleep, 0))
    del kept


def test_a_run_that_cannot_be_ended_without_its_loop_is_refused_in_words(monkeypatch):
    monkeypatch.setattr(ticks, "END_LIMIT_S", 0.01)
    stubborn = trio.CancelScope(shield=True)

    async def hang():
        with stubborn:
            await trio.sleep_forever()

    async def body(guest):
        guest.start(hang)
        await asyncio.sleep(0.01)

    kept = _closed_in_the_middle(body)
    with pytest.raises(RuntimeError, match="second loop of this thread"):
        _run(lambda guest: guest.run(trio.sleep, 0))
    monkeypatch.undo()
    stubborn.cancel()
    _run(lambda guest: guest.run(trio.sleep, 0))
    del kept
