"""Three nodes, an engine, anything in any order: in the end all agree, nothing was told twice.

Every call and every message is on its way for as long as the test likes; links are lost, the engine
restarts, nodes stand still past their lease and die. The checker knows what clients know: what they
were given when they came, and the news since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachecast.bus.faults import GarbageError
from tests.unit.bus.attending import APP, Client, World

if TYPE_CHECKING:
    from collections.abc import Callable

ROOMS = ("presence-a", "presence-b", "plain")
USERS = ("ann", "bob", "cid")

steps = st.one_of(
    st.tuples(st.just("enter"), st.integers(0, 2), st.sampled_from(ROOMS), st.sampled_from(USERS)),
    st.tuples(st.just("leave"), st.integers(0, 2), st.integers(0, 99)),
    st.tuples(st.just("serve"), st.integers(0, 2), st.integers(1, 4)),
    st.tuples(st.just("hand over"), st.integers(0, 2), st.integers(1, 4)),
    st.tuples(st.just("pump")),
    st.tuples(st.just("wait"), st.sampled_from([0.25, 0.5, 2.0])),
    st.tuples(st.just("cut"), st.integers(0, 2)),
    st.tuples(st.just("stand still"), st.integers(0, 2)),
    st.tuples(st.just("sign in"), st.integers(0, 2), st.sampled_from(USERS)),
    st.tuples(st.just("watch"), st.integers(0, 2), st.sampled_from(USERS)),
    st.tuples(st.just("flush")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("die"), st.integers(0, 2)),
)


class Story:
    """What happens, and who is there because of it."""

    def __init__(self, *, is_valkey: bool = False) -> None:
        self.world = World(3, is_valkey=is_valkey)
        self.clients: list[Client] = []
        self.present: list[tuple[int, str]] = []
        self.watched: list[tuple[int, str]] = []
        self.may_forget = False

    def tell(self, step: tuple[object, ...]) -> None:
        what, *rest = step
        method: Callable[..., None] = getattr(self, str(what).replace(" ", "_"))
        method(*rest)

    def enter(self, number: int, channel: str, user: str) -> None:
        desk = self.world.desks[number]
        if desk.is_alive:
            client = desk.enter(channel, user if channel.startswith("presence") else None)
            self.clients.append(client)

    def leave(self, number: int, at: int) -> None:
        mine = [c for c in self.clients if c.desk is self.world.desks[number]]
        if mine:
            client = mine[at % len(mine)]
            self.clients.remove(client)
            client.leave()

    def serve(self, number: int, n: int) -> None:
        messages = self.world.desks[number].messages
        if messages is not None:
            messages.serve(n)

    def hand_over(self, number: int, n: int) -> None:
        messages = self.world.desks[number].messages
        if messages is not None:
            messages.hand_over(n)

    def pump(self) -> None:
        self.world.pump()

    def wait(self, seconds: float) -> None:
        self.world.pass_s(seconds)

    def cut(self, number: int) -> None:
        if self.world.desks[number].is_alive:
            self.world.desks[number].cut()

    def stand_still(self, number: int) -> None:
        """Longer than its lease."""
        desk = self.world.desks[number]
        if desk.is_alive:
            desk.is_cut = True
            desk.cut()
            self.world.pass_s(5)
            desk.is_cut = False

    def flush(self) -> None:
        self.world.model.flush()
        self.may_forget = True

    def restart(self) -> None:
        self.world.restart()
        self.may_forget = True

    def die(self, number: int) -> None:
        """At most one of them does."""
        if all(desk.is_alive for desk in self.world.desks):
            desk = self.world.desks[number]
            desk.die()
            desk.crowd.rosters.clear()
            desk.crowd.online.clear()
            self.clients = [client for client in self.clients if client.desk is not desk]
            self.present = [(at, user) for at, user in self.present if at != number]
            self.watched = [(at, user) for at, user in self.watched if at != number]

    def sign_in(self, number: int, user: str) -> None:
        desk = self.world.desks[number]
        if not desk.is_alive:
            return
        if (number, user) in self.present:
            self.present.remove((number, user))
            desk.attendance.watching.sign_out(APP, user)
            return
        receipt = desk.attendance.watching.sign_in(APP, user)

        def finish() -> None:
            if receipt.fault is None:
                self.present.append((number, user))

        receipt.when_done(finish)

    def watch(self, number: int, user: str) -> None:
        desk = self.world.desks[number]
        if not desk.is_alive or (number, user) in self.watched:
            return
        receipt = desk.attendance.watching.watch(APP, [user])

        def finish() -> None:
            if receipt.fault is None:
                self.watched.append((number, user))
                desk.crowd.online[user] = user in receipt.value

        receipt.when_done(finish)

    # --- the end

    def end(self) -> None:
        world = self.world
        world.settle_down()
        world.settle_down()
        assert all(desk.is_open for desk in world.desks if desk.is_alive)
        there = [client for client in self.clients if client.is_in]
        for channel in ROOMS:
            here = [client for client in there if client.name.text == channel]
            assert world.total(channel) == len(here)
            users = {client.member.key for client in here if client.member is not None}
            assert world.roster(channel) == users
            for desk in world.desks:
                if any(client.desk is desk for client in here) and users:
                    assert desk.roster(channel) == users
        online = {user for _, user in self.present}
        for number, user in self.watched:
            assert world.desks[number].crowd.online[user] == (user in online)
        self.check_hooks(there)

        for desk in world.desks:
            assert not desk.is_alive or desk.attendance.holdings.n_unsettled == 0

    def check_hooks(self, there: list[Client]) -> None:
        """Of each channel and member they alternate, and the last one is true."""
        is_there: dict[bytes, bool] = {}
        for body in self.world.hooks():
            change, what = body[:1], body[1:]
            assert self.may_forget or is_there.get(what, False) == (change in b"v-"), body
            is_there[what] = change in b"o+"
        if self.may_forget:
            return
        expected = {client.name.text.encode() for client in there}
        expected |= {
            f"{client.name.text}\0{client.member.key}".encode()
            for client in there
            if client.member is not None
        }
        assert {what for what, is_in in is_there.items() if is_in} == expected


@given(st.lists(steps, max_size=25), st.booleans())
@settings(deadline=None)
def test_in_the_end_all_agree_and_each_change_was_told_once(
    story: list[tuple[object, ...]],
    is_valkey: bool,
) -> None:
    """On every node, for members, subscriptions, users and webhooks."""
    told = Story(is_valkey=is_valkey)
    for step in story:
        told.tell(step)
    told.end()


def test_what_is_no_topic_of_ours_is_garbage() -> None:
    """Somebody else writes to our topics: the link's owner says so."""
    world = World()
    world.desks[0].enter("presence-a", "ann")
    world.pump()
    with pytest.raises(GarbageError):
        world.desks[0].attendance.hear("c", APP, "presence-a", b"+\0\1\xff")
