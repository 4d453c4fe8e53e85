"""Terminations: every node hears of each, whatever it missed."""

from __future__ import annotations

from typing import Any

import pytest

from cachecast.bus import model_functions
from cachecast.errors import BusError
from tests.unit.bus.attending import APP, Desk, World


def ended(desk: Desk) -> list[str]:
    return [told[1] for told in desk.crowd.take() if told[0] == "ended"]


def terminate(desk: Desk, user: str) -> Any:
    return desk.attendance.endings.terminate(APP, user)


def test_all_nodes_hear_of_it_and_the_caller_how_many_there_were() -> None:
    """The caller's own node by the same message."""
    world = World(3)
    here, there, _ = world.desks
    here.attendance.watching.sign_in(APP, "ann")
    there.attendance.watching.sign_in(APP, "ann")
    there.attendance.watching.sign_in(APP, "ann")
    world.pass_s(1)
    receipt = terminate(here, "ann")
    nobody = terminate(there, "bob")
    world.pump()

    assert (receipt.value, nobody.value) == (3, 0)
    assert [ended(desk) for desk in world.desks] == [["ann", "bob"]] * 3


def test_what_was_missed_is_read_behind_the_gap_and_only_that() -> None:
    """However many there were."""
    world = World(2)
    here, there = world.desks
    terminate(here, "before")
    world.pump()
    assert ended(there) == ["before"]
    there.is_cut = True
    there.cut()
    for number in range(250):
        terminate(here, f"u{number}")
    world.pump()
    there.is_cut = False
    world.pass_s(1)

    assert ended(there) == [f"u{number}" for number in range(250)]
    assert there.attendance.endings.n_holes == 0


def test_a_message_that_was_missed_is_seen_by_the_next_one() -> None:
    """It names the one before it."""
    world = World(2)
    here, there = world.desks
    assert there.messages is not None
    there.messages.topics.discard(there.to.keys.control)
    terminate(here, "missed")
    world.pump()
    there.messages.topics.add(there.to.keys.control)
    terminate(here, "heard")
    terminate(here, "heard too")
    world.pump()

    assert ended(there) == ["missed", "heard", "heard too"]


def test_if_the_engine_has_lost_some_nobody_here_is_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """All who are signed in are ended: one of them may have been meant."""
    monkeypatch.setattr(model_functions, "_MAX_ENDED", 3)
    world = World(2)
    here, there = world.desks
    there.attendance.watching.sign_in(APP, "ann")
    terminate(here, "before")
    world.pump()
    ended(there)
    there.is_cut = True
    there.cut()
    for number in range(4):
        terminate(here, f"u{number}")
    world.pump()
    there.is_cut = False
    world.pass_s(1)

    assert ended(there) == ["ann", "u1", "u2", "u3"]
    assert there.attendance.endings.n_holes == 1


@pytest.mark.parametrize("is_clock_set_back", [False, True])
def test_a_new_epoch_ends_nobody_but_those_who_were_ended_lately(is_clock_set_back: bool) -> None:
    """Who ended them says so again, and later ones are heard of as ever."""
    world = World(2)
    here, there = world.desks
    there.attendance.watching.sign_in(APP, "ann")
    terminate(here, "long ago")
    world.pass_s(40)
    terminate(here, "missed")
    assert here.messages is not None
    here.messages.pump()
    world.restart()
    if is_clock_set_back:
        world.set_back_us = 60_000_000
    for desk in world.desks:
        ended(desk)
    world.settle_down()
    world.settle_down()
    assert ended(there) == ["missed"]

    terminate(there, "later")
    world.pump()
    assert [ended(desk)[-1] for desk in world.desks] == ["later", "later"]


def test_without_an_engine_nobody_is_ended() -> None:
    """The caller is told."""
    world = World()
    (desk,) = world.desks
    desk.cut()
    receipt = terminate(desk, "ann")
    world.pump()

    assert isinstance(receipt.fault, BusError)


def test_a_reading_that_is_lost_is_done_again() -> None:
    """On the next link."""
    world = World(2)
    here, there = world.desks
    terminate(here, "before")
    world.pump()
    there.cut()
    terminate(here, "missed")
    assert here.messages is not None
    here.messages.pump()
    there.quarter()
    assert there.commands is not None
    there.commands.pump()
    assert there.messages is not None
    there.messages.serve()
    there.cut()
    world.pass_s(1)

    assert ended(there) == ["before", "missed"]
