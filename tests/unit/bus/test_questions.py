"""Questions to all primaries: lists in steps, numbers by hundreds."""

from __future__ import annotations

from typing import Any

import pytest

from cachecast.bus.contents import Contents
from cachecast.bus.questions import Questions
from cachecast.bus.shards import N_SHARDS
from cachecast.errors import BusError
from cachecast.events import AppEvent
from tests.unit.bus.attending import APP, Desk, World


class Two:
    """A node with a seat at each of two primaries, and one question at a time."""

    def __init__(self) -> None:
        self.worlds = [World(), World()]
        self.desks: list[Desk] = [world.desks[0] for world in self.worlds]
        spread = [shard % 2 for shard in range(N_SHARDS)]
        self.questions = Questions(self.desks, spread, Contents(None, lambda: 0))

    def pump(self) -> None:
        for _ in range(3):
            for world in self.worlds:
                world.pump()

    def ask(self, receipt: Any) -> Any:
        self.pump()
        return receipt.value

    def enter(self, channel: str, user: str | None = None) -> None:
        seat = self.questions.seat_of(APP, channel)
        assert isinstance(seat, Desk)
        seat.enter(channel, user)


def test_channels_of_all_shards_with_their_numbers() -> None:
    """By a prefix, too."""
    two = Two()
    for number in range(40):
        two.enter(f"c-{number}")
    two.enter("d-1")
    two.enter("d-1")
    two.pump()
    for world in two.worlds:
        world.pass_s(0.5)

    found = two.ask(two.questions.channels(APP, "c-"))
    assert found == {f"c-{number}": 1 for number in range(40)}
    assert two.ask(two.questions.channels(APP, "d-")) == {"d-1": 2}
    assert len(two.ask(two.questions.channels(APP, ""))) == 41
    assert two.ask(two.questions.channels("another", "")) == {}


def test_no_more_than_a_few_steps_are_under_way() -> None:
    """The engine serves others between them."""
    two = Two()
    two.questions.channels(APP, "")
    assert [len(desk.commands.requests) for desk in two.desks if desk.commands] == [4, 4]


def test_members_and_numbers_of_any_channels() -> None:
    """In the order in which they were asked for; unknown ones have none."""
    two = Two()
    for number in range(3):
        two.enter("presence-a", f"u{number}")
    names = [f"c-{number}" for number in range(250)]
    for name in names[::10]:
        two.enter(name)
    two.pump()
    for world in two.worlds:
        world.pass_s(0.5)

    assert sorted(two.ask(two.questions.users(APP, "presence-a"))) == ["u0", "u1", "u2"]
    assert two.ask(two.questions.users(APP, "presence-b")) == []
    members = two.ask(two.questions.members(APP, "presence-a"))
    assert sorted(member.key for member in members) == ["u0", "u1", "u2"]
    asked = ["presence-a", *names, "presence-b", "presence-a"]
    counts = two.ask(two.questions.counts(APP, asked))
    assert counts[0] == counts[-1] == (3, 3)
    assert counts[1:-2] == [(int(number % 10 == 0), 0) for number in range(250)]
    assert counts[-2] == (0, 0)
    assert two.ask(two.questions.counts(APP, [])) == []


def test_a_miss_is_to_be_reported_once() -> None:
    """Whoever is the first to say so."""
    two = Two()
    assert two.ask(two.questions.note_miss(APP, "cache-a")) is True
    assert two.ask(two.questions.note_miss(APP, "cache-a")) is False


def test_a_value_is_read_where_it_lies() -> None:
    """None if there is none."""
    two = Two()
    assert two.ask(two.questions.read(APP, "cache-a")) is None
    seat = two.questions.seat_of(APP, "cache-a")
    event = seat.to.event(APP, "cache-a", b"x", lifetime_ms=1_000)
    seat.command(seat.to.publish(seat.epoch, seat.session, 1, [event]), lambda _: None)
    record = two.ask(two.questions.read(APP, "cache-a"))
    assert record.payload == b"x"


def test_events_for_webhooks_that_do_not_arrive_are_counted() -> None:
    """Nobody waits for them."""
    two = Two()
    event = AppEvent("client_event", "private-a", event="client-x", data="1")
    two.questions.hook(APP, event)
    two.pump()
    seat = two.questions.seat_of(APP, "private-a")
    assert isinstance(seat, Desk)
    assert [body[:1] for body in seat.world.hooks()] == [b"c"]
    seat.cut()
    two.questions.hook(APP, event)
    two.pump()
    assert two.questions.n_hooks_lost == 1


@pytest.mark.parametrize("what", ["channels", "users", "members", "counts", "read", "note_miss"])
def test_without_an_engine_every_question_fails(what: str) -> None:
    """HTTP answers 503."""
    two = Two()
    for desk in two.desks:
        desk.cut()
    argument = ["presence-a"] if what == "counts" else "presence-a"
    receipt = getattr(two.questions, what)(APP, argument)
    two.pump()
    assert isinstance(receipt.fault, BusError)
