"""All fields of a node: entered again a few hundred at a time, said no oftener than they may."""

from __future__ import annotations

import pytest

from cachecast.bus import holdings
from tests.unit.bus.attending import World


def test_after_a_restart_a_few_are_entered_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The link's bounds and the engine's other clients are left alone."""
    monkeypatch.setattr(holdings, "WINDOW", 3)
    world = World()
    (desk,) = world.desks
    for number in range(10):
        desk.enter(f"c{number}")
    world.pass_s(1)
    world.restart()
    desk.quarter()
    assert desk.commands is not None
    desk.commands.pump()
    assert desk.messages is not None

    assert len([1 for request in desk.messages.requests]) <= 3 + 1  # and the control topic
    assert desk.attendance.holdings.n_again == 7
    desk.messages.pump()
    assert desk.attendance.holdings.n_again == 0
    assert desk.attendance.holdings.n_unsettled == 0


def test_a_link_that_is_lost_while_entering_again_goes_on_where_it_was() -> None:
    """Within the grace: nothing is announced that did not change."""
    world = World()
    (desk,) = world.desks
    for number in range(5):
        desk.enter(f"c{number}")
    world.pass_s(1)
    world.restart()
    desk.quarter()
    assert desk.commands is not None
    desk.commands.pump()
    assert desk.messages is not None
    desk.messages.serve(3)
    desk.cut()
    desk.quarter()
    world.pump()

    assert not desk.is_open
    assert desk.attendance.holdings.n_unsettled == 0
    world.settle_down()
    assert world.hooks() == []


def test_of_many_numbers_that_change_some_wait_for_the_next_tick(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And come first then."""
    world = World()
    (desk,) = world.desks
    for number in range(6):
        desk.enter(f"c{number}")
    world.pass_s(1)
    for number in range(6):
        desk.enter(f"c{number}")
    desk.attendance.holdings.level(4)
    world.pump()
    assert sum(world.total(f"c{number}") for number in range(6)) == 10
    desk.attendance.holdings.level(4)
    world.pump()

    assert sum(world.total(f"c{number}") for number in range(6)) == 12


def test_fields_of_a_kind_are_those_that_are_wanted() -> None:
    """Whom a node cannot be sure of, for example."""
    world = World()
    (desk,) = world.desks
    desk.attendance.watching.sign_in("4242", "ann")
    desk.enter("plain")
    assert [held.field for held in desk.attendance.holdings.of_kind("u")] == ["ann"]
    assert len(desk.attendance.holdings) == 2


def test_own_members_do_not_seem_to_have_gone_while_they_are_entered_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a fencing there is no grace: rosters are paged behind the last of them."""
    monkeypatch.setattr(holdings, "WINDOW", 1)
    world = World(2)
    desk = world.desks[0]
    for number in range(5):
        desk.enter("presence-room", f"u{number}")
    world.pass_s(1)
    desk.crowd.take()
    desk.is_cut = True
    desk.cut()
    world.settle_down()
    assert world.roster("presence-room") == set()
    desk.is_cut = False
    world.settle_down()

    assert [told for told in desk.crowd.take() if told[0] != "count"] == []
    assert len(world.roster("presence-room")) == 5
