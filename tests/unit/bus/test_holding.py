"""A field that this node holds: what is wanted, what the engine has, and answers that got lost."""

from __future__ import annotations

import pytest

from cachecast.bus.faults import BacklogError, CrowdedError, FullError, LinkError
from tests.unit.bus.attending import APP, Desk, World

ROOM = "presence-room"


def total_after_a_second(world: World, channel: str = "plain") -> int:
    world.pass_s(1)
    return world.total(channel)


def test_a_number_whose_answer_was_lost_is_said_again() -> None:
    """The engine may have it or not; what was wanted before is wanted again meanwhile."""
    world = World()
    (desk,) = world.desks
    desk.enter("plain")
    world.pass_s(1)
    second = desk.enter("plain")
    desk.attendance.tick()
    assert desk.messages is not None
    desk.messages.serve()
    desk.cut()
    assert world.total("plain") == 2
    second.leave()

    assert total_after_a_second(world) == 1


def test_a_departure_whose_answer_was_lost_does_not_count_who_returned() -> None:
    """It was done: so the field has to be entered again."""
    world = World()
    (desk,) = world.desks
    first = desk.enter("plain")
    world.pass_s(1)
    first.leave()
    assert desk.messages is not None
    desk.messages.serve()
    desk.cut()
    assert world.total("plain") == 0
    back = desk.enter("plain")

    assert total_after_a_second(world) == 1
    assert back.is_in


def test_a_departure_that_was_not_done_is_done_later() -> None:
    """It is asked again until the engine has heard of it."""
    world = World()
    (desk,) = world.desks
    first = desk.enter("plain")
    world.pass_s(1)
    desk.cut()
    first.leave()
    assert world.total("plain") == 1

    assert total_after_a_second(world) == 0
    assert first.exit is not None
    assert first.exit.value is not None
    assert first.exit.value.is_vacated


def late_answer(world: World, desk: Desk) -> None:
    """The session ends; the engine's answer to a call of before comes after the new hello."""
    assert desk.messages is not None
    desk.messages.serve()
    world.model.functions._sessions[desk.session] = -1
    for other in world.desks:
        if other is not desk:
            other.quarter()
            assert other.commands is not None
            other.commands.pump()
    desk.greet()
    assert desk.commands is not None
    desk.commands.pump()
    world.pump()


def test_an_answer_of_an_earlier_session_says_nothing_of_the_present_one() -> None:
    """It was entered under a name that nobody holds any more."""
    world = World(2)
    desk = world.desks[0]
    client = desk.enter("plain")
    session = desk.session
    late_answer(world, desk)
    world.settle_down()

    assert desk.session != session
    assert client.is_in
    assert world.total("plain") == 1


def test_a_departure_from_an_earlier_session_does_not_hide_that_somebody_is_there() -> None:
    """Left, entered again, and the session ended between."""
    world = World(2)
    desk = world.desks[0]
    client = desk.enter("plain")
    world.pass_s(1)
    client.leave()
    back = desk.enter("plain")
    late_answer(world, desk)
    world.settle_down()

    assert back.is_in
    assert world.total("plain") == 1


def test_who_has_left_is_a_newcomer_when_it_returns() -> None:
    """The limit holds for it as for others."""
    world = World(2, limit=1)
    here, there = world.desks
    client = here.enter(ROOM, "ann")
    world.pass_s(1)
    client.leave()
    world.pump()
    there.enter(ROOM, "bob")
    world.pump()
    back = here.enter(ROOM, "ann")
    world.pass_s(1)

    assert back.fault is not None
    assert here.attendance.holdings.n_unsettled == 0


def test_the_engine_is_not_told_how_often_a_member_is_here() -> None:
    """Nobody asks."""
    world = World()
    (desk,) = world.desks
    desk.enter(ROOM, "ann")
    world.pass_s(1)
    desk.enter(ROOM, "ann")
    desk.attendance.tick()
    assert desk.messages is not None

    assert len(desk.messages.requests) == 1  # the channel's number


@pytest.mark.parametrize("fault", [FullError("full"), BacklogError(1, "calls"), LinkError("?")])
def test_what_the_engine_does_not_take_is_a_fault_for_those_who_wait(fault: LinkError) -> None:
    """Not for those who are in: for them it is tried again."""
    world = World()
    (desk,) = world.desks
    ask = desk._send
    faults: list[LinkError] = [fault]

    def fails(connection: object, call: object, on_done: object) -> None:
        if faults:
            world.soon.append(lambda: on_done(faults.pop()))  # type: ignore[operator]
        else:
            ask(connection, call, on_done)  # type: ignore[arg-type]

    desk._send = fails  # type: ignore[method-assign]
    refused = desk.enter("plain")
    world.pump()
    assert refused.fault is fault

    inside = desk.enter("plain")
    world.pump()
    desk.enter("plain")
    faults.append(fault)
    desk.attendance.tick()
    world.pump()
    assert not faults
    assert total_after_a_second(world) == 2
    assert inside.is_in
    assert desk.attendance.holdings.n_unsettled == 0


def test_of_those_who_wait_together_one_is_told_that_it_was_the_first() -> None:
    """For hooks of the node where it happened."""
    world = World()
    (desk,) = world.desks
    clients = [desk.enter("plain") for _ in range(3)]
    world.pump()

    assert [client.entry and client.entry.is_occupied for client in clients] == [True, False, False]


def test_a_refusal_is_for_all_who_wait_and_the_next_one_is_asked_anew() -> None:
    """Somebody else may have left meanwhile."""
    world = World(2, limit=1)
    here, there = world.desks
    first = here.enter(ROOM, "ann")
    world.pump()
    holding = there.attendance.holdings.require("m", APP, "bob", name=ROOM, limit=1)
    one, two = holding.add(), holding.add()
    world.pump()
    assert isinstance(one.fault, CrowdedError)
    assert isinstance(two.fault, CrowdedError)
    first.leave()
    world.pump()
    bob = there.enter(ROOM, "bob")
    world.pump()

    assert bob.is_in
