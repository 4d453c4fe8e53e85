"""Users: who is online in the whole cluster, told once to those who watch."""

from __future__ import annotations

from cachecast.errors import BusError
from tests.unit.bus.attending import APP, Desk, World


def watch(desk: Desk, *users: str) -> frozenset[str]:
    receipt = desk.attendance.watching.watch(APP, users)
    desk.world.pump()
    found: frozenset[str] = receipt.value
    desk.crowd.online.update({user: user in found for user in users})
    return found


def test_whoever_is_online_anywhere_is_online() -> None:
    """And changes are told once, wherever and on however many connections."""
    world = World(2)
    here, there = world.desks
    there.attendance.watching.sign_in(APP, "ann")
    world.pump()
    assert watch(here, "ann", "bob") == {"ann"}

    there.attendance.watching.sign_in(APP, "bob")
    here.attendance.watching.sign_in(APP, "bob")
    world.pump()
    assert here.crowd.take() == [("online", "bob")]
    there.attendance.watching.sign_out(APP, "bob")
    world.pump()
    assert here.crowd.take() == []
    here.attendance.watching.sign_out(APP, "bob")
    world.pump()
    assert here.crowd.take() == [("offline", "bob")]


def test_who_is_not_watched_any_more_is_not_told_of() -> None:
    """While one list has it, it is."""
    world = World(2)
    here, there = world.desks
    watch(here, "ann")
    watch(here, "ann", "bob")
    here.attendance.watching.unwatch(APP, ["ann"])
    there.attendance.watching.sign_in(APP, "ann")
    world.pump()
    assert here.crowd.take() == [("online", "ann")]
    here.attendance.watching.unwatch(APP, ["ann", "bob"])
    there.attendance.watching.sign_out(APP, "ann")
    world.pump()

    assert here.crowd.take() == []
    assert len(here.attendance.watching) == 0


def test_news_from_before_the_look_are_older_than_its_answer() -> None:
    """They are no change of what nobody had been told."""
    world = World(2)
    here, there = world.desks
    receipt = here.attendance.watching.watch(APP, ["ann"])
    assert here.messages is not None
    assert there.messages is not None
    here.messages.serve(1)  # subscribed
    there.attendance.watching.sign_in(APP, "ann")
    there.messages.pump()
    there.attendance.watching.sign_out(APP, "ann")
    there.messages.pump()
    world.pump()

    assert receipt.value == frozenset()
    assert here.crowd.take() == []


def test_what_was_missed_is_told_behind_the_gap() -> None:
    """Once, and only what has changed."""
    world = World(2)
    here, there = world.desks
    there.attendance.watching.sign_in(APP, "ann")
    there.attendance.watching.sign_in(APP, "bob")
    world.pump()
    watch(here, "ann", "bob", "cid")
    here.is_cut = True
    here.cut()
    there.attendance.watching.sign_out(APP, "ann")
    there.attendance.watching.sign_in(APP, "cid")
    world.pump()
    here.is_cut = False
    world.pass_s(1)

    assert sorted(here.crowd.take()) == [("offline", "ann"), ("online", "cid")]


def test_a_restarted_engine_makes_nobody_go_offline() -> None:
    """Everybody signs in again within the grace."""
    world = World(2)
    here, there = world.desks
    there.attendance.watching.sign_in(APP, "ann")
    world.pump()
    watch(here, "ann")
    world.restart()
    world.settle_down()
    assert here.crowd.take() == []
    there.attendance.watching.sign_out(APP, "ann")
    world.pump()
    assert here.crowd.take() == [("offline", "ann")]


def test_a_watchlist_that_comes_while_the_engine_is_away_waits() -> None:
    """It is answered when the seat opens, or late."""
    world = World(2)
    here, there = world.desks
    there.attendance.watching.sign_in(APP, "ann")
    world.pump()
    here.cut()
    waits = here.attendance.watching.watch(APP, ["ann"])
    world.pass_s(1)
    assert waits.value == {"ann"}

    asked = here.attendance.watching.watch(APP, ["ann", "bob"])
    here.cut()
    world.pass_s(1)
    assert asked.value == {"ann"}

    here.is_cut = True
    here.cut()
    late = here.attendance.watching.watch(APP, ["cid"])
    signs_in = here.attendance.watching.sign_in(APP, "cid")
    world.pass_s(6)
    assert isinstance(late.fault, BusError)
    assert isinstance(signs_in.fault, BusError)
    here.is_cut = False
    world.settle_down()
    assert len(here.attendance.watching) == 2
    assert here.attendance.holdings.find("u", APP, "cid") is None


def test_when_too_many_wait_the_next_one_is_refused_at_once(monkeypatch: object) -> None:
    """Nobody waits for what cannot come."""
    world = World()
    (desk,) = world.desks
    desk.attendance.stop()
    for receipt in (
        desk.attendance.watching.watch(APP, ["ann"]),
        desk.attendance.watching.sign_in(APP, "ann"),
        desk.attendance.rosters.enter(APP, desk.enter("plain").name, None),
    ):
        assert isinstance(receipt.fault, BusError)
