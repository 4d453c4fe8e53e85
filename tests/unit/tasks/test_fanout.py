"""The fan-out: turns, budgets, order, room for publishers."""

from __future__ import annotations

from collections import deque

import pytest
import trio
import trio.testing

from cachecast.channels.hub import Hub
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.tasks.fanout import SENDS_PER_CHANNEL, SENDS_PER_TURN, WOKEN_PER_TURN, Fanout
from tests.harness.lower import Client, framed, make_app


class Node:
    """A hub, the line of its channels, and the task that serves them."""

    def __init__(self):
        self.now = 0.0
        self.line = deque()
        self.hub = Hub(make_app(), self.line, 0.0)
        self.fanout = Fanout(self.line, lambda: self.now)
        self.n = 0

    def fill(self, channel, n, hub=None):
        clients = []
        for _ in range(n):
            self.n += 1
            client = Client(socket_id=f"1.{self.n}")
            (hub or self.hub).subscribe(client.connection, parse_channel_name(channel), None)
            clients.append(client)
        return clients

    def publish(self, channel, frame, hub=None):
        hub = hub or self.hub
        hub.enqueue(hub.channels[channel], framed(frame), now=self.now)
        self.fanout.wake()

    def reached(self, clients):
        return sum(len(client.socket.taken) > 0 for client in clients)


def test_a_turn_makes_a_bounded_number_of_sends():
    """Invariant 10, of subscribers."""
    node = Node()
    clients = node.fill("x", 3 * SENDS_PER_TURN)
    node.publish("x", b"1")
    reached = []
    while not node.fanout.is_idle:
        node.fanout.deliver_turn()
        reached.append(node.reached(clients))

    assert reached[:3] == [SENDS_PER_TURN, 2 * SENDS_PER_TURN, 3 * SENDS_PER_TURN]
    assert node.hub.undelivered_bytes == 0


def test_a_small_channel_waits_for_a_part_of_a_large_ones_turn_not_for_its_sweep():
    node = Node()
    large = node.fill("large", 10 * SENDS_PER_TURN)
    small = node.fill("small", 3)
    node.publish("large", b"1")
    node.fanout.deliver_turn()
    assert node.reached(large) == SENDS_PER_TURN
    node.publish("small", b"1")

    node.fanout.deliver_turn()

    assert node.reached(small) == 3
    assert node.reached(large) == 2 * SENDS_PER_TURN - 3


def test_many_small_channels_do_not_hold_up_a_large_one():
    """It has its part of every round, as they have."""
    node = Node()
    large = node.fill("large", 10 * SENDS_PER_TURN)
    for n in range(100):
        node.fill(f"small-{n}", SENDS_PER_CHANNEL)
    node.publish("large", b"1")
    for n in range(100):
        node.publish(f"small-{n}", b"1")

    node.fanout.deliver_turn()

    assert node.reached(large) == SENDS_PER_CHANNEL


def test_an_app_with_a_thousand_busy_channels_holds_up_another_by_a_part_of_a_turn():
    node = Node()
    other = Hub(make_app(id="2"), node.line, 0.0)
    for n in range(1_000):
        node.fill(f"c{n}", SENDS_PER_CHANNEL)
        node.publish(f"c{n}", b"1")
    (client,) = node.fill("x", 1, other)
    node.fanout.deliver_turn()
    node.publish("x", b"1", other)

    node.fanout.deliver_turn()

    assert bytes(client.socket.taken) == b"1"
    while not node.fanout.is_idle:
        node.fanout.deliver_turn()
    assert (node.hub.is_ready, other.is_ready) == (False, False)


def test_what_is_published_in_the_midst_of_a_turn_puts_an_app_in_line_once():
    """A recipient that breaks off makes others hear of it, in a channel of the same app."""
    node = Node()
    clients = node.fill("x", 3)
    heard = node.fill("y", 1)
    clients[0].socket.error = ConnectionResetError()
    clients[0].socket.on_event = lambda _: node.publish("y", b"gone")
    node.publish("x", b"1")
    node.fanout.deliver_turn()
    while not node.fanout.is_idle:
        node.fanout.deliver_turn()

    assert bytes(heard[0].socket.taken) == b"gone"
    assert node.hub.undelivered_bytes == 0
    assert not node.hub.is_ready


def test_a_turn_is_bounded_in_time_where_sends_take_long():
    """One that finds that somebody has left may be as much work as a hundred others."""
    node = Node()
    clients = [node.fill(f"c{n}", 1)[0] for n in range(SENDS_PER_TURN)]

    def take_time(event):
        node.now += 0.01

    for n, client in enumerate(clients):
        client.socket.error = ConnectionResetError()
        client.socket.on_event = take_time
        node.publish(f"c{n}", b"1")
    node.fanout.deliver_turn()

    assert sum(bool(client.socket.events) for client in clients) == 2


def test_lag_is_from_the_publication_to_the_last_send():
    node = Node()
    node.fill("x", 3 * SENDS_PER_TURN - 1)
    node.now = 10.0
    node.publish("x", b"1")
    node.now = 11.0
    node.fanout.deliver_turn()
    assert node.fanout.lag_s == 0
    node.now = 12.0
    node.fanout.deliver_turn()
    node.now = 13.5
    node.fanout.deliver_turn()
    assert node.fanout.lag_s == 3.5
    node.fill("y", 1)
    node.publish("y", b"1")
    node.fanout.deliver_turn()

    assert (node.fanout.lag_s, node.fanout.max_lag_s) == (0, 3.5)


async def test_a_crowd_that_waits_for_room_is_woken_in_parts_and_to_the_last():
    """Two thousand publishers who are asked at once hold up everybody else."""
    node = Node()
    woken = 0
    node.fill("x", 1)
    node.publish("x", b"1")

    async def wait():
        nonlocal woken
        await node.fanout.wait_room()
        woken += 1

    async with trio.open_nursery() as nursery:
        for _ in range(3 * WOKEN_PER_TURN):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        node.fanout.deliver_turn()
        await trio.testing.wait_all_tasks_blocked()
        assert woken == WOKEN_PER_TURN
        nursery.start_soon(node.fanout.run)
        await trio.testing.wait_all_tasks_blocked()
        assert woken == 3 * WOKEN_PER_TURN
        nursery.cancel_scope.cancel()


def test_a_turn_is_bounded_also_where_nobody_is_left():
    """Announcements to channels that everybody left at once are no sends, but work."""
    node = Node()
    for n in range(3 * SENDS_PER_TURN):
        (client,) = node.fill(f"c{n}", 1)
        channel = node.hub.channels[f"c{n}"]
        node.hub.unsubscribe(client.connection, f"c{n}")
        node.hub.enqueue(channel, framed(b"1"))
    turns = 0
    while not node.fanout.is_idle:
        node.fanout.deliver_turn()
        turns += 1

    assert turns == 3
    assert node.hub.undelivered_bytes == 0


def test_frames_that_wait_leave_joined_and_in_order():
    node = Node()
    (client,) = node.fill("x", 1)
    for n in range(9):
        node.publish("x", str(n).encode())
    node.fanout.deliver_turn()

    assert bytes(client.socket.taken) == b"012345678"


def test_a_broken_or_leaving_recipient_in_the_middle_costs_nobody_else():
    """Also one whose end makes others leave, or publishes to the channel being delivered."""
    node = Node()
    clients = node.fill("x", 20)
    clients[3].socket.error = ConnectionResetError()

    def end(event):
        if event == "on_broken":
            node.hub.unsubscribe(clients[3].connection, "x")
            node.hub.unsubscribe(clients[4].connection, "x")
            node.publish("x", b"2")

    clients[3].socket.on_event = end
    node.publish("x", b"1")
    while not node.fanout.is_idle:
        node.fanout.deliver_turn()

    taken = [bytes(client.socket.taken) for client in clients]
    assert taken == [b"12"] * 3 + [b"", b""] + [b"12"] * 15
    assert node.hub.undelivered_bytes == 0


async def test_it_sleeps_while_idle_and_wakes_for_every_publication():
    """No wake-up is lost, at whatever point of its loop one comes."""
    node = Node()
    (client,) = node.fill("x", 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.fanout.run)
        for n in range(1, 30):
            for _ in range(n % 4):
                await trio.lowlevel.checkpoint()
            node.publish("x", b"1")
            await node.fanout.wait_idle()
            assert len(client.socket.taken) == n
        nursery.cancel_scope.cancel()


async def test_all_who_wait_for_room_are_asked_again_after_each_turn(autojump_clock):
    node = Node()
    node.fill("x", 3 * SENDS_PER_TURN)
    woken = []

    async def wait(name):
        while node.hub.undelivered_bytes:
            await node.fanout.wait_room()
        woken.append(name)

    node.publish("x", b"1")
    async with trio.open_nursery() as nursery:
        for name in "abc":
            nursery.start_soon(wait, name)
        with trio.CancelScope() as scope:
            scope.cancel()
            await node.fanout.wait_room()
        await trio.testing.wait_all_tasks_blocked()
        assert woken == []
        with trio.move_on_after(1):
            await node.fanout.run()

    assert sorted(woken) == ["a", "b", "c"]


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_a_fanout_once_begun_is_finished_whatever_happens_to_the_publisher(turns):
    """Invariant 11: the publisher's task may be cancelled at any point behind the queueing."""
    node = Node()
    clients = node.fill("x", 3 * SENDS_PER_TURN)

    async def publish(task_status):
        node.publish("x", b"1")
        task_status.started()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as publisher:
            await publisher.start(publish)
            for _ in range(turns):
                node.fanout.deliver_turn()
            publisher.cancel_scope.cancel()
        nursery.start_soon(node.fanout.run)
        await node.fanout.wait_idle()
        nursery.cancel_scope.cancel()

    assert node.reached(clients) == len(clients)
