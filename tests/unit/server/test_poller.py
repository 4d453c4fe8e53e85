"""The one task for all sockets: isolation, budgets, and an end that leaves nothing open."""

from __future__ import annotations

import socket

import pytest
import structlog
import trio

from cachecast.server import poller as module
from cachecast.server.poller import Poller
from tests.server.node import no_new_fds, until


class Echo:
    """A handler that notes what happens to it."""

    def __init__(self, poller, share=None, *, on_read=None):
        self.sock, self.peer = socket.socketpair()
        self.sock.setblocking(False)
        self.poller = poller
        self.share = share or poller.newcomers
        self.on_read = on_read or (lambda: None)
        self.reads = self.writes = self.aborts = 0
        self.got = b""
        poller.add(self.sock.fileno(), self)

    def on_readable(self):
        self.reads += 1
        self.got += self.sock.recv(100)
        self.on_read()

    def on_writable(self):
        self.writes += 1

    def abort(self):
        self.aborts += 1
        if self.sock.fileno() >= 0:
            self.poller.remove(self.sock.fileno())
            self.sock.close()
        self.peer.close()


@pytest.fixture
async def poller(nursery):
    poller = Poller()
    with structlog.testing.capture_logs() as poller.logs, no_new_fds():
        async with trio.open_nursery() as own:
            own.start_soon(poller.run)
            yield poller
            own.cancel_scope.cancel()


async def test_ready_handlers_are_served(poller):
    handlers = [Echo(poller) for _ in range(300)]
    for handler in handlers:
        handler.peer.send(b"x")
    await until(lambda: all(handler.got == b"x" for handler in handlers))
    assert len(poller) == 300
    assert set(poller.handlers()) == set(handlers)


async def test_exception_ends_only_the_handler_that_raised(poller):
    def fail():
        raise ZeroDivisionError

    broken, healthy = Echo(poller, on_read=fail), Echo(poller)
    for handler in (broken, healthy):
        handler.peer.send(b"x")
    await until(lambda: healthy.got and broken.aborts)
    assert (broken.aborts, healthy.aborts, len(poller)) == (1, 0, 1)
    assert [entry["event"] for entry in poller.logs] == ["connection failed"]


async def test_guard_ends_only_the_handler_it_is_for(poller):
    handler = Echo(poller)
    poller.guard(handler, lambda: None)
    assert not handler.aborts
    poller.guard(handler, lambda: 1 // 0)
    assert handler.aborts == 1


async def test_paused_handler_hears_nothing_until_it_is_watched_again(poller):
    handler = Echo(poller)
    fd = handler.sock.fileno()
    poller.watch(fd, handler, reads=False)
    assert len(poller) == 1
    assert list(poller.handlers()) == [handler]
    handler.peer.send(b"x")
    await trio.testing.wait_all_tasks_blocked(0.02)
    assert not handler.reads
    poller.watch(fd, handler)
    await until(lambda: handler.got == b"x")
    assert not handler.writes
    poller.watch(fd, handler, reads=False, writes=True)
    await until(lambda: handler.writes)
    poller.watch(fd, handler)


async def test_successor_takes_over_a_socket(poller):
    """As a WebSocket does of the HTTP connection that it was."""
    first, second = Echo(poller), Echo(poller)
    poller.watch(first.sock.fileno(), second)
    first.peer.send(b"x")
    second.peer.send(b"y")
    await until(lambda: second.got == b"y")
    assert not first.got
    poller.watch(first.sock.fileno(), first)
    await until(lambda: first.got)


async def test_again_is_served_though_the_selector_has_nothing(poller):
    handler = Echo(poller)
    left = [1, 2, 3]

    def more():
        if left:
            left.pop()
            handler.peer.send(b"x")
            poller.again(handler.sock.fileno(), handler)

    handler.on_read = more
    handler.peer.send(b"x")
    await until(lambda: handler.got == b"xxxx")


async def test_removed_handler_is_not_served_again(poller):
    handler, other = Echo(poller), Echo(poller)

    def leave():
        poller.again(handler.sock.fileno(), handler)
        handler.abort()

    handler.on_read = leave
    handler.peer.send(b"x")
    await until(lambda: handler.aborts)
    other.peer.send(b"x")
    await until(lambda: other.got)
    assert handler.reads == 1


async def test_slow_handlers_are_bounded_by_time(poller, monkeypatch):
    monkeypatch.setattr(module, "TURN_S", 0)  # every handler is slow
    n_served = 0

    def count():
        nonlocal n_served
        n_served += 1

    for handler in [Echo(poller, on_read=count) for _ in range(50)]:
        handler.peer.send(b"x")
    while n_served < 50:
        before = n_served
        await trio.lowlevel.checkpoint()
        assert n_served - before <= 2


async def test_cancelling_closes_everything_paused_ones_too():
    with no_new_fds():
        poller = Poller()
        handlers = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poller.run)
            handlers += [Echo(poller) for _ in range(10)]
            poller.watch(handlers[0].sock.fileno(), handlers[0], reads=False)
            nursery.cancel_scope.cancel()
        assert [handler.aborts for handler in handlers] == [1] * 10


async def test_what_is_left_for_the_end_of_a_turn_comes_after_all_handlers_of_it(poller):
    order = []
    handlers = [Echo(poller) for _ in range(3)]
    for handler in handlers:

        def read(handler=handler):
            order.append("read")
            poller.at_end_of_turn(handler, lambda: order.append("end"))

        handler.on_read = read
        handler.peer.send(b"x")
    await until(lambda: len(order) == 6)

    assert order == ["read"] * 3 + ["end"] * 3


async def test_outside_of_a_turn_its_end_is_now(poller):
    done = []
    poller.at_end_of_turn(Echo(poller), lambda: done.append(1))

    assert done == [1]


async def test_failure_at_the_end_of_a_turn_ends_only_the_handler_it_is_for(poller):
    broken, healthy = Echo(poller), Echo(poller)
    done = []
    broken.on_read = lambda: poller.at_end_of_turn(broken, lambda: 1 // 0)
    healthy.on_read = lambda: poller.at_end_of_turn(healthy, lambda: done.append(1))
    for handler in (broken, healthy):
        handler.peer.send(b"x")
    await until(lambda: done and broken.aborts)

    assert (broken.aborts, healthy.aborts) == (1, 0)
