"""The one task for all sockets: isolation, budgets, and an end that leaves nothing open."""

from __future__ import annotations

import errno
import os
import socket
from functools import partial

import pytest
import structlog
import trio

from cachecast.server import poller as module
from cachecast.server import selector
from cachecast.server.poller import Poller
from tests.sockets.node import no_new_fds, until


class Echo:
    """A handler that notes what happens to it."""

    def __init__(self, poller, share=None, *, on_read=None, is_new=False):
        self.sock, self.peer = socket.socketpair()
        self.sock.setblocking(False)
        self.poller = poller
        self.share = share or poller.newcomers
        self.on_read = on_read or (lambda: None)
        self.reads = self.writes = self.aborts = 0
        self.got = b""
        (poller.meet if is_new else poller.add)(self.sock.fileno(), self)

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


@pytest.fixture(params=[selector.open_selector, selector.PortableSelector])
async def poller(nursery, request, monkeypatch):
    monkeypatch.setattr(selector, "open_selector", request.param)
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


async def test_app_that_floods_takes_turns_with_another_that_does_not(poller, monkeypatch):
    """Whoever becomes ready waits for a slice of the flood, and not for all of it."""
    monkeypatch.setattr(module, "TURN_S", 0)  # so that a slice is one handler
    served = []
    healthy = Echo(poller, poller.share_of("2"), on_read=lambda: served.append("healthy"))

    def flood():
        served.append("flood")
        if len(served) == 10:
            healthy.peer.send(b"x")

    for _ in range(300):
        Echo(poller, poller.share_of("1"), on_read=flood).peer.send(b"x")
    await until(lambda: len(served) == 301)

    assert served.index("healthy") <= 12


async def test_busy_apps_take_turns_with_each_other(poller, monkeypatch):
    monkeypatch.setattr(module, "TURN_S", 0)
    served = []
    for n in range(3):
        for _ in range(10):
            handler = Echo(poller, poller.share_of(str(n)), on_read=partial(served.append, n))
            handler.peer.send(b"x")
    await until(lambda: len(served) == 30)
    assert served == [0, 1, 2] * 10


async def test_handler_that_wants_to_be_called_again_takes_turns_with_others(poller, monkeypatch):
    monkeypatch.setattr(module, "TURN_S", 0)
    busy, healthy = Echo(poller, poller.share_of("1")), Echo(poller, poller.share_of("2"))
    busy.on_readable = lambda: poller.again(busy.sock.fileno(), busy)
    poller.again(busy.sock.fileno(), busy)
    healthy.peer.send(b"x")
    await until(lambda: healthy.got)
    busy.abort()


async def test_again_from_outside_of_a_turn_wakes_the_poller(poller):
    handler = Echo(poller)
    handler.on_readable = lambda: setattr(handler, "reads", 1)
    await trio.testing.wait_all_tasks_blocked(0.01)
    poller.again(handler.sock.fileno(), handler)
    await until(lambda: handler.reads)


async def test_again_is_heard_by_one_who_is_not_watched_for_reading(poller):
    """Whoever stopped in the middle does not read on before it has caught up."""
    handler = Echo(poller)
    handler.on_readable = lambda: setattr(handler, "reads", handler.reads + 1)
    fd = handler.sock.fileno()
    handler.peer.send(b"x")
    poller.watch(fd, handler, reads=False)
    poller.again(fd, handler)
    await until(lambda: handler.reads)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert handler.reads == 1


async def test_moved_handler_is_served_in_the_turns_of_its_new_share(poller):
    handler = Echo(poller)
    other = Echo(poller)  # keeps the share that it leaves
    poller.move(handler.sock.fileno(), poller.share_of("1"))
    handler.peer.send(b"x")
    await until(lambda: handler.got)
    poller.watch(handler.sock.fileno(), handler, reads=False)
    poller.move(handler.sock.fileno(), poller.newcomers)
    poller.watch(handler.sock.fileno(), handler)
    handler.peer.send(b"y")
    await until(lambda: handler.got == b"xy")
    assert poller.n_selectors == 2
    other.peer.send(b"x")
    await until(lambda: other.got)


@pytest.mark.parametrize("comes", ["new", "added", "moved"])
async def test_who_would_be_its_shares_first_without_a_descriptor_left_is_ended_alone(
    poller, monkeypatch, comes
):
    """It ended all others with it: the share's selector could not be opened."""
    healthy = Echo(poller)

    def refuse():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(poller, "_open_selector", refuse)
    share = poller.share_of("1")
    if comes == "moved":
        first = Echo(poller)
        poller.again(first.sock.fileno(), first)
        poller.move(first.sock.fileno(), share)
    else:
        first = Echo(poller, share, is_new=comes == "new")
        first.peer.send(b"x")
    await until(lambda: first.aborts)
    healthy.peer.send(b"x")
    await until(lambda: healthy.got)
    assert (len(poller), share.n_sockets) == (1, 0)
    assert [entry["event"] for entry in poller.logs] == ["connection cannot be served"]


async def test_share_without_sockets_costs_no_file_descriptor(poller):
    before = poller.n_selectors
    handlers = [Echo(poller, poller.share_of(str(n))) for n in range(20)]
    assert poller.n_selectors == before + 20
    for handler in handlers:
        handler.peer.send(b"x")
    await until(lambda: all(handler.got for handler in handlers))
    for handler in handlers:
        handler.abort()
    assert poller.n_selectors == before
    again = Echo(poller, handlers[0].share)
    again.peer.send(b"x")
    await until(lambda: again.got)


async def test_what_has_been_read_is_known_by_the_instant():
    """Nobody may be judged for silence whose bytes lie in a socket."""
    now = 100.0
    poller = Poller(lambda: now)
    quiet, handler = Echo(poller), Echo(poller, poller.share_of("1"))
    now = 200.0
    assert (poller.read_until(), poller.wait_s) == (200, 0)
    handler.peer.send(b"x")
    now = 300.0
    assert poller.read_until() == 200
    assert poller.wait_s == 100
    async with trio.open_nursery() as nursery:
        nursery.start_soon(poller.run)
        await until(lambda: handler.got)
        assert poller.read_until() == 300
        assert poller.max_wait_s == 100
        nursery.cancel_scope.cancel()
    assert quiet.aborts


async def test_flood_does_not_hide_what_has_been_read_for_ever(poller, monkeypatch):
    """An app whose clients talk without pause is judged like any other, a round later."""
    monkeypatch.setattr(module, "TURN_S", 0)
    now = 0.0
    poller._clock = lambda: now

    def talk():
        nonlocal now
        now += 1

    for _ in range(10):
        handler = Echo(poller, on_read=talk)
        handler.on_read = lambda handler=handler: (talk(), handler.peer.send(b"x"))
        handler.peer.send(b"x")
    await until(lambda: poller.read_until() > 100)


async def test_hang_up_is_told_to_one_who_only_writes(poller):
    handler = Echo(poller)
    poller.watch(handler.sock.fileno(), handler, reads=False, writes=True)
    handler.peer.close()
    await until(lambda: handler.writes)
    assert not handler.reads
    poller.watch(handler.sock.fileno(), handler, reads=False)


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


async def test_descriptor_that_is_used_again_does_not_inherit_what_was_due_to_another(poller):
    """One who is to be aborted has gone by itself, and a newcomer got its number."""
    share = poller.share_of("1")
    first, going = Echo(poller, share), Echo(poller, share)
    fd = going.sock.fileno()
    newcomers = []

    def replace():
        going.abort()
        newcomers.append(Echo(poller, share))

    first.on_read = replace
    poller.abort_soon(fd, going)
    first.peer.send(b"x")
    await until(lambda: newcomers)
    assert fd in {newcomers[0].sock.fileno(), newcomers[0].peer.fileno()}
    for _ in range(5):
        await trio.lowlevel.checkpoint()

    assert going.aborts == 1
    assert newcomers[0].aborts == 0


async def test_handler_that_is_to_be_aborted_is_at_its_next_turn_and_once(poller):
    handler = Echo(poller, poller.share_of("1"))
    poller.again(handler.sock.fileno(), handler)
    poller.abort_soon(handler.sock.fileno(), handler)
    poller.again(handler.sock.fileno(), handler)
    assert not handler.aborts
    await until(lambda: handler.aborts)
    assert (handler.aborts, handler.reads, len(poller)) == (1, 0, 0)


async def test_what_is_due_moves_with_the_handler(poller):
    handler = Echo(poller)
    handler.on_readable = lambda: setattr(handler, "reads", 1)
    poller.again(handler.sock.fileno(), handler)
    poller.move(handler.sock.fileno(), poller.share_of("1"))
    await until(lambda: handler.reads)


async def test_new_socket_that_leaves_at_its_first_turn_costs_no_selector(poller):
    """As a publisher does that opens a connection for each publish."""
    selectors = []
    handler = Echo(poller, is_new=True)

    def leave():
        selectors.append(poller.n_selectors)
        poller.at_end_of_turn(handler, handler.abort)

    handler.on_read = leave
    handler.peer.send(b"x")
    assert len(poller) == 1
    before = poller.n_selectors
    await until(lambda: handler.aborts)
    assert (handler.got, selectors, poller.n_selectors) == (b"x", [before], before)


async def test_new_socket_is_watched_after_its_first_turn_for_what_is_wanted_by_then(poller):
    handlers = [Echo(poller, is_new=True) for _ in range(3)]
    listening, writing, deaf = handlers
    writing.on_read = lambda: poller.watch(writing.sock.fileno(), writing, writes=True)
    deaf.on_read = lambda: poller.watch(deaf.sock.fileno(), deaf, reads=False)
    for handler in handlers:
        handler.peer.send(b"x")
    await until(lambda: writing.writes)
    writing.on_read = deaf.on_read = lambda: None
    poller.watch(writing.sock.fileno(), writing)
    for handler in handlers:
        handler.peer.send(b"y")
    await until(lambda: listening.got == writing.got == b"xy")
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert deaf.got == b"x"
    poller.watch(deaf.sock.fileno(), deaf)
    await until(lambda: deaf.got == b"xy")


async def test_new_socket_that_says_nothing_is_watched_all_the_same(poller):
    handler = Echo(poller, is_new=True)
    read, handler.on_readable = handler.on_readable, lambda: setattr(handler, "reads", 1)
    await until(lambda: handler.reads)
    handler.on_readable = read
    await trio.testing.wait_all_tasks_blocked(0.01)
    handler.peer.send(b"x")
    await until(lambda: handler.got)


async def test_new_socket_that_turns_out_to_be_an_apps_is_watched_there_alone(poller):
    """Its handshake is read in the turns of newcomers, and all else in those of its app."""
    moved, first = Echo(poller, is_new=True), Echo(poller, is_new=True)
    successor = Echo(poller, poller.share_of("1"))
    successor.sock, other = first.sock, successor.sock
    moved.on_read = lambda: poller.move(moved.sock.fileno(), poller.share_of("1"))
    first.on_read = lambda: poller.watch(first.sock.fileno(), successor)
    for handler in (moved, first):
        handler.peer.send(b"x")
    await until(lambda: moved.got and first.got)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert (poller.newcomers.selector, poller.newcomers.n_sockets) == (None, 0)
    for handler in (moved, first):
        handler.peer.send(b"y")
    await until(lambda: moved.got == b"xy" and successor.got == b"y")
    poller.remove(other.fileno())
    other.close()
    first.peer.close()


async def test_new_sockets_that_a_turn_did_not_get_to_are_read_in_the_next(poller, monkeypatch):
    monkeypatch.setattr(module, "TURN_S", 0)
    handlers = [Echo(poller, is_new=True) for _ in range(20)]
    for handler in handlers:
        handler.peer.send(b"x")
    await until(lambda: all(handler.got for handler in handlers))
    for handler in handlers:
        handler.peer.send(b"y")
    await until(lambda: all(handler.got == b"xy" for handler in handlers))
