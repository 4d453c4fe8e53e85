"""A node's place passes from one process to another, and no other node notices."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio

from cachecast.bus.succession import Follower, Giver
from cachecast.channels.presence import PresenceRoster
from cachecast.errors import UpgradeError
from cachecast.handover.state import BusPlace, BusState
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.session import Member
from tests.unit.bus.meeting import APP, Meeting, Witness, meeting, up

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CACHE, PLAIN, ROOM = map(parse_channel_name, ("cache-x", "x", "presence-room"))
ANN, BOB = Member("ann"), Member("bob")


def through(value: Any, kind: Any) -> Any:
    """As another process gets it."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=kind)


@asynccontextmanager
async def followed(place: Meeting, old: Witness) -> AsyncIterator[tuple[Witness, Giver, Follower]]:
    """Another process that hears what the first one does, and is told nothing more."""
    giver = old.bus.giver()
    new = await place.join("n", place=through(giver.place(), BusPlace))
    follower = new.bus.follower()
    yield new, giver, follower


async def stop_both(giver: Giver, follower: Follower) -> None:
    await giver.wait_idle()
    giver.stop_at_mark()
    await follower.follow(giver.rest())
    await giver.wait_mark()


def take(giver: Giver, follower: Follower, rosters: dict[str, list[Member]]) -> None:
    """The one step in which both agree."""

    def roster_of(_: str, channel: str) -> PresenceRoster | None:
        if channel not in rosters:
            return None
        roster = PresenceRoster()
        roster.restore([member.export() for member in rosters[channel]])
        return roster

    follower.restore(through(giver.export({}), BusState), {APP}, roster_of)
    giver.let_go()
    follower.take_over()


async def test_what_others_know_stays_as_it_is(autojump_clock):
    """No member flaps, no number changes, nobody goes offline: the session is the same."""
    async with meeting() as place:
        old, other = await place.join("n"), await place.join("m")
        for node in (old, other):
            await node.bus.enter(APP, ROOM, ANN if node is old else BOB).wait()
            await node.bus.enter(APP, PLAIN, None).wait()
        await old.bus.sign_in(APP, "ann").wait()
        await other.bus.watch(APP, ["ann"]).wait()
        await trio.sleep(1)
        other.told.clear()

        async with followed(place, old) as (new, giver, follower):
            await stop_both(giver, follower)
            take(giver, follower, {"presence-room": [ANN, BOB]})
            await trio.sleep(10)  # longer than leases, and until the old one would have been reaped

            assert other.told == []
            assert await other.bus.counts(APP, ["x", "presence-room"]).wait() == [(2, 0), (2, 2)]
            await new.bus.leave(APP, ROOM, ANN).wait()
            new.bus.sign_out(APP, "ann")
            await trio.sleep(1)
            assert other.said("member_changed") == [(APP, "presence-room", "member_removed", ANN)]
            assert other.said("user_changed") == [(APP, "ann", "offline")]


async def test_each_message_is_heard_by_exactly_one_of_both(autojump_clock):
    """Whatever is published meanwhile, before the mark and behind it, kept or not."""
    async with meeting() as place:
        old, other = await place.join("n"), await place.join("m")
        for name in (CACHE, PLAIN):
            await old.bus.attach(APP, name).wait()
        sent: list[tuple[str, str]] = []

        async def publish() -> None:
            for number in range(300):
                for name in (CACHE, PLAIN):
                    other.publish(name.text, str(number))
                    sent.append((name.text, str(number)))
                await trio.sleep(0.001)

        place.nursery.start_soon(publish)
        await trio.sleep(0.05)
        async with followed(place, old) as (new, giver, follower):
            await stop_both(giver, follower)
            await trio.sleep(0.02)  # what comes now waits in both
            n_before = len(new.delivered)
            take(giver, follower, {})
            await trio.sleep(1)

            heard = old.delivered + new.delivered[n_before:]
            assert len(old.delivered) > 20
            assert len(new.delivered) - n_before > 20
            for name in (CACHE, PLAIN):
                mine = [one for one in heard if one[0] == name.text]
                assert mine == [one for one in sent if one[0] == name.text]


async def test_the_next_process_has_the_values_and_goes_on_publishing(autojump_clock):
    async with meeting() as place:
        old, other = await place.join("n"), await place.join("m")
        await old.bus.attach(APP, CACHE).wait()
        await old.publish("cache-x", "1").wait()
        await old.publish("cache-y", "nobody here is subscribed").wait()
        async with followed(place, old) as (new, giver, follower):
            assert new.values["cache-x"][0] == "1"
            await stop_both(giver, follower)
            take(giver, follower, {})
            await new.publish("cache-x", "2").wait()

            assert (await other.bus.read(APP, "cache-x").wait()).publication.data == "2"
            assert new.seat.session == old.seat.session
            # What the first one published counts against the app's ceilings.
            assert len(new.bus.ceilings.export(new.seat)[0][1]) == 2
            place.engine.stop()
            place.engine.start()
            await up(new, other)
            # Offered again, as the first one would have.
            for channel, data in (("cache-x", "2"), ("cache-y", "nobody here is subscribed")):
                assert (await other.bus.read(APP, channel).wait()).publication.data == data


async def test_numbers_that_all_nodes_add_are_said_by_one_of_both(autojump_clock):
    async with meeting() as place:
        old, other = await place.join("n"), await place.join("m")
        assert old.bus.total("connections", APP, 5) == 5
        await trio.sleep(1)
        async with followed(place, old) as (new, giver, follower):
            assert new.bus.total("connections", APP, 0) == 0  # it serves nobody yet
            await trio.sleep(1)
            other.bus.total("connections", APP, 1)
            await trio.sleep(1)
            assert other.bus.total("connections", APP, 1) == 6
            await stop_both(giver, follower)
            take(giver, follower, {})
            new.bus.total("connections", APP, 7)
            await trio.sleep(1)
            seen = set()
            for _ in range(40):
                await trio.sleep(0.1)
                seen.add(other.bus.total("connections", APP, 1))
            assert seen == {8}


async def test_one_that_fails_costs_the_first_nothing(autojump_clock):
    """What came behind the mark is heard then, in its order."""
    async with meeting() as place:
        old, other = await place.join("n"), await place.join("m")
        await old.bus.enter(APP, ROOM, ANN).wait()
        await old.bus.attach(APP, PLAIN).wait()
        async with followed(place, old) as (new, giver, follower):
            await stop_both(giver, follower)
            for number in range(5):
                await other.publish("x", str(number)).wait()
            await trio.sleep(0.1)
            assert old.delivered == []
            await new.bus.aclose()
            giver.go_on()

            assert old.delivered == [("x", str(number)) for number in range(5)]
            await other.bus.enter(APP, ROOM, BOB).wait()
            await trio.sleep(5)
            assert await other.bus.users(APP, "presence-room").wait() == ["ann", "bob"]
            assert other.said("member_changed") == []


async def test_what_only_subscribers_within_the_process_need_is_let_go_of(autojump_clock):
    async with meeting() as place:
        old = await place.join("n")
        await old.bus.attach(APP, PLAIN).wait()
        await old.bus.attach(APP, CACHE).wait()
        await old.bus.attach(APP, CACHE).wait()
        async with followed(place, old) as (new, giver, follower):
            await stop_both(giver, follower)
            staying = {(APP, "x"): 1, (APP, "cache-x"): 1}
            state = through(giver.export(staying), BusState)
            follower.restore(state, {APP}, lambda *_: None)
            giver.let_go()
            follower.take_over()
            await trio.sleep(10)
            assert [(one.name.text, one.n) for one in new.kept.by_topic.values()] == [
                ("cache-x", 1)
            ]


async def test_what_is_attached_late_is_followed_too(autojump_clock):
    async with meeting() as place:
        old, other = await place.join("n"), await place.join("m")
        async with followed(place, old) as (new, giver, follower):
            await old.bus.attach(APP, PLAIN).wait()
            await old.bus.watch(APP, ["ann"]).wait()
            await stop_both(giver, follower)
            take(giver, follower, {})
            await other.publish("x", "1").wait()
            await other.bus.sign_in(APP, "ann").wait()
            await trio.sleep(0.1)

            assert new.delivered == [("x", "1")]
            assert new.said("user_changed") == [(APP, "ann", "online")]


async def test_a_link_that_is_lost_in_the_midst_ends_the_try_and_not_the_node(autojump_clock):
    async with meeting() as place:
        old, other = await place.join("n"), await place.join("m")
        await old.bus.attach(APP, PLAIN).wait()
        async with followed(place, old) as (new, giver, follower):
            await stop_both(giver, follower)
            await other.publish("x", "1").wait()
            await trio.sleep(0.1)
            place.engine.break_connections("n", "messages")
            await up(old, other)

            assert not giver.is_stopped
            assert old.delivered == [("x", "1")]
            with pytest.raises(UpgradeError, match="lost meanwhile"):
                take(giver, follower, {})
            await new.bus.aclose()
            await other.publish("x", "2").wait()
            await trio.sleep(0.1)
            assert old.delivered[-1] == ("x", "2")


async def test_while_the_engine_is_away_nothing_is_begun(autojump_clock):
    async with meeting() as place:
        old = await place.join("n")
        place.engine.stop()
        await trio.sleep(3)
        with pytest.raises(UpgradeError, match="cannot be reached"):
            old.bus.giver().place()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocol": 99}, "version 99. Stop all nodes of one version first"),
        ({"primaries": ["elsewhere:1/0"]}, "bus.urls has changed"),
    ],
)
async def test_a_version_that_speaks_otherwise_is_refused_in_words(autojump_clock, change, words):
    async with meeting() as place:
        old = await place.join("n")
        found = msgspec.structs.replace(old.bus.giver().place(), **change)
        with pytest.raises(UpgradeError, match=words):
            await place.join("n", place=found)
        await trio.sleep(5)
        assert old.seat.is_open


async def test_what_an_app_that_is_not_served_any_more_held_is_left(autojump_clock):
    async with meeting() as place:
        old, other = await place.join("n"), await place.join("m")
        await old.bus.enter(APP, ROOM, ANN).wait()
        async with followed(place, old) as (new, giver, follower):
            await stop_both(giver, follower)
            follower.restore(through(giver.export({}), BusState), set(), lambda *_: None)
            giver.let_go()
            follower.take_over()
            await trio.sleep(1)

            assert await other.bus.users(APP, "presence-room").wait() == []
            assert len(new.bus.halves[0].attendance.holdings) == 0
