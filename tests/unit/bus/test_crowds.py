"""Crowded channels: believed while it is said, and over when nobody says so."""

from __future__ import annotations

import pytest

from cachecast.bus import crowds
from tests.unit.bus.attending import APP, World


def say(world: World, number: int, channel: str, *, is_crowded: bool) -> None:
    desk = world.desks[number]
    desk.attendance.crowds.note(APP, channel, is_crowded=is_crowded)
    world.pump()


def seen(world: World, channel: str) -> list[bool]:
    return [desk.attendance.crowds.is_crowded(APP, channel) for desk in world.desks]


def test_others_wait_at_once_and_are_told_when_it_is_over() -> None:
    """Not the node that said so: it knows."""
    world = World(3)
    say(world, 0, "plain", is_crowded=True)
    assert seen(world, "plain") == [False, True, True]
    assert seen(world, "other") == [False, False, False]
    world.pass_s(10)
    assert seen(world, "plain") == [False, True, True]
    say(world, 1, "plain", is_crowded=True)
    say(world, 0, "plain", is_crowded=False)
    world.pass_s(0.5)
    assert seen(world, "plain") == [True, False, True]
    say(world, 1, "plain", is_crowded=False)
    world.pass_s(0.5)

    assert seen(world, "plain") == [False, False, False]
    assert world.desks[2].crowd.take() == [("eased", "plain")]


def test_one_that_comes_and_goes_is_not_said_each_time() -> None:
    """Its end waits for the tick, so that only what lasts is told."""
    world = World(2)
    say(world, 0, "plain", is_crowded=True)
    for _ in range(9):
        say(world, 0, "plain", is_crowded=False)
        say(world, 0, "plain", is_crowded=True)

    assert seen(world, "plain") == [False, True]
    assert world.desks[1].crowd.take() == []
    say(world, 0, "never", is_crowded=False)
    assert world.desks[1].crowd.take() == []


def test_the_word_of_a_node_that_died_is_over_after_three_seconds() -> None:
    """Or its publishers would wait for ever."""
    world = World(2)
    say(world, 0, "plain", is_crowded=True)
    world.desks[0].die()
    world.pass_s(2)
    assert seen(world, "plain")[1]
    world.pass_s(2)

    assert not seen(world, "plain")[1]
    assert world.desks[1].crowd.take() == [("eased", "plain")]


def test_while_a_node_is_cut_off_nobodys_word_counts() -> None:
    """Its publishers are answered otherwise; afterwards it hears the word again."""
    world = World(2)
    say(world, 0, "plain", is_crowded=True)
    world.desks[1].is_cut = True
    world.desks[1].cut()
    assert world.desks[1].crowd.take() == [("eased", "plain")]
    assert not seen(world, "plain")[1]
    world.desks[1].is_cut = False
    world.pass_s(2.5)

    assert seen(world, "plain")[1]


def test_there_is_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it publishers do not wait, and it is counted."""
    monkeypatch.setattr(crowds, "MAX_CROWDS", 1)
    world = World(3)
    say(world, 0, "one", is_crowded=True)
    say(world, 0, "two", is_crowded=True)
    say(world, 1, "three", is_crowded=True)

    assert seen(world, "two") == [False, False, False]
    assert world.desks[0].attendance.crowds.n_dropped == 1
    assert world.desks[2].attendance.crowds.n_dropped == 1
    world.desks[2].attendance.crowds.hear(b"b- nobody 4242/unknown")
