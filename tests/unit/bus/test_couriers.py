"""Couriers: one node has an app's events, in order, at least once, no more than it can carry."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from cachecast.bus import couriers
from cachecast.bus.couriers import Couriers
from tests.unit.bus.attending import APP, Desk, World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Post:
    """Nodes with couriers, and what each was handed."""

    def __init__(self, n_nodes: int) -> None:
        self.world = World(n_nodes)
        self.couriers = [
            Couriers(desk, desk.crowd, desk.contents, [APP], lambda: 0.5)
            for desk in self.world.desks
        ]
        self.scopes = [trio.CancelScope() for _ in self.couriers]

    async def run_world(self) -> None:
        while True:
            await trio.sleep(0.01)
            self.world.now_us += 10_000
            if self.world.now_us % 250_000 < 10_000:
                for desk in self.world.desks:
                    desk.quarter()
            self.world.pump()

    async def run_one(self, number: int) -> None:
        with self.scopes[number]:
            await self.couriers[number].run()

    def handed(self, number: int) -> list[tuple[str, str]]:
        hooks = self.world.desks[number].crowd.hooks
        return [(event.name.partition("_")[2], event.channel) for event, _ in hooks]

    def settle(self, number: int) -> None:
        for _, receipt in self.world.desks[number].crowd.hooks:
            receipt.fulfil(None)

    @property
    def all(self) -> list[int]:
        return list(range(len(self.couriers)))

    def busy(self) -> int:
        """The only node that was handed anything."""
        (number,) = [number for number in self.all if self.handed(number)]
        return number


@asynccontextmanager
async def post(n_nodes: int = 2) -> AsyncIterator[Post]:
    place = Post(n_nodes)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.run_world)
        for number in place.all:
            nursery.start_soon(place.run_one, number)
        yield place
        nursery.cancel_scope.cancel()


def occupy(desk: Desk, *channels: str) -> None:
    for channel in channels:
        desk.enter(channel).leave()


async def test_one_node_gets_all_in_order_and_settles_what_is_done(autojump_clock: Any) -> None:
    """Whichever node it happened on."""
    async with post(3) as place:
        await trio.sleep(5)
        occupy(place.world.desks[0], "a", "b")
        await trio.sleep(0.1)
        occupy(place.world.desks[2], "c")
        await trio.sleep(2)
        number = place.busy()
        assert place.handed(number) == [
            ("occupied", "a"), ("occupied", "b"), ("vacated", "a"), ("vacated", "b"),
            ("occupied", "c"), ("vacated", "c"),
        ]  # fmt: skip
        assert len(place.world.hooks()) == 6
        assert place.couriers[number].n_under_way == 6

        place.settle(number)
        await trio.sleep(2)
        assert place.world.hooks() == []
        assert place.couriers[number].n_under_way == 0
        assert len(place.handed(number)) == 6


@pytest.mark.parametrize("how", ["dies", "is fenced"])
async def test_another_takes_over_what_was_not_settled(autojump_clock: Any, how: str) -> None:
    """At least once; who comes back finds that it is not the courier, and delivers no more."""
    async with post() as place:
        await trio.sleep(5)
        occupy(place.world.desks[0], "a")
        await trio.sleep(2)
        first = place.busy()
        desk = place.world.desks[first]
        desk.is_cut = True
        desk.cut()
        if how == "dies":
            place.scopes[first].cancel()
            desk.die()
        await trio.sleep(12)
        assert place.handed(1 - first) == [("occupied", "a"), ("vacated", "a")]

        desk.is_cut = False
        place.settle(first)
        place.settle(1 - first)
        occupy(place.world.desks[1 - first], "b")
        await trio.sleep(8)
        assert [name for name in place.handed(1 - first) if name[1] == "b"] == [
            ("occupied", "b"),
            ("vacated", "b"),
        ]
        assert len(place.handed(first)) == 2
        place.settle(1 - first)
        await trio.sleep(2)
        assert place.world.hooks() == []


async def test_no_more_is_under_way_than_may_be_and_the_lease_is_kept(
    autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that is down fills the courier, not its memory; nobody else gets the rest."""
    monkeypatch.setattr(couriers, "MAX_UNDER_WAY", 4)
    async with post() as place:
        await trio.sleep(5)
        occupy(place.world.desks[0], "a", "b")
        await trio.sleep(1)
        occupy(place.world.desks[0], "c", "d")
        await trio.sleep(20)
        number = place.busy()
        assert [channel for _, channel in place.handed(number)] == ["a", "b", "a", "b"]
        place.settle(number)
        await trio.sleep(2)
        assert [channel for _, channel in place.handed(number)][4:] == ["c", "d", "c", "d"]


async def test_what_is_under_way_is_not_delivered_again_by_the_same_node(
    autojump_clock: Any,
) -> None:
    """After a new session it asks for everything that is not settled."""
    async with post(1) as place:
        await trio.sleep(2)
        occupy(place.world.desks[0], "a")
        await trio.sleep(2)
        (desk,) = place.world.desks
        place.world.model.functions._sessions[desk.session] = -1
        await trio.sleep(5)
        occupy(place.world.desks[0], "b")
        await trio.sleep(2)
        assert [channel for _, channel in place.handed(0)] == ["a", "a", "b", "b"]
        place.settle(0)
        await trio.sleep(2)
        assert place.world.hooks() == []


async def test_what_is_no_event_is_settled_and_losses_are_counted(autojump_clock: Any) -> None:
    """It would stand in the way for ever."""
    async with post(1) as place:
        await trio.sleep(2)
        functions = place.world.model.functions
        functions._add_hook(APP, b"?")
        functions._lost[APP] = 7
        await trio.sleep(3)
        assert place.handed(0) == []
        assert place.world.hooks() == []
        assert place.couriers[0].n_lost == 7


@pytest.mark.parametrize("set_back_us", [0, 60_000_000])
async def test_after_a_restart_the_engines_new_events_are_delivered(
    autojump_clock: Any, set_back_us: int
) -> None:
    """Those that it had are lost with it; ids of new ones may be smaller."""
    async with post(1) as place:
        await trio.sleep(2)
        occupy(place.world.desks[0], "a")
        await trio.sleep(2)
        place.world.restart()
        place.world.set_back_us = set_back_us
        await trio.sleep(5)
        place.settle(0)
        occupy(place.world.desks[0], "b")
        await trio.sleep(3)
        assert [channel for _, channel in place.handed(0)] == ["a", "a", "b", "b"]
        place.settle(0)
        await trio.sleep(3)
        assert place.couriers[0].n_under_way == 0


async def test_a_node_that_leaves_settles_what_it_has_delivered(autojump_clock: Any) -> None:
    """Or its successor would deliver all of that again, at every deployment."""
    async with post(1) as place:
        await trio.sleep(2)
        occupy(place.world.desks[0], "a")
        await trio.sleep(5)
        place.settle(0)
        place.scopes[0].cancel()
        await place.couriers[0].finish()
        assert place.world.hooks() == []

        place.world.desks[0].cut()
        place.couriers[0]._all[0]._done.append("1-1")
        await place.couriers[0].finish()


async def test_an_app_that_is_carried_no_more_has_settled_what_was_under_way(
    autojump_clock: Any,
) -> None:
    """And takes nothing more meanwhile; another node has what comes then."""
    async with post() as place:
        await trio.sleep(5)
        occupy(place.world.desks[0], "a")
        await trio.sleep(2)
        first = place.busy()
        place.couriers[first].serve([])
        occupy(place.world.desks[0], "b")
        await trio.sleep(10)
        assert place.handed(first) == [("occupied", "a"), ("vacated", "a")]
        assert place.couriers[first].n_under_way == 2
        place.settle(first)
        await trio.sleep(10)
        assert place.couriers[first].n_under_way == 0
        assert place.handed(1 - first) == [("occupied", "b"), ("vacated", "b")]
        assert place.couriers[first].n_lost == 0

        place.couriers[first].serve([APP])
        place.settle(1 - first)
        place.scopes[1 - first].cancel()
        await trio.sleep(20)
        occupy(place.world.desks[0], "c")
        await trio.sleep(10)
        assert ("occupied", "c") in place.handed(first)
