"""A seat: it closes at once, opens by one way, beats, and says hello again whenever it has to."""

from __future__ import annotations

import pytest
import trio
from structlog.testing import capture_logs

from cachecast.bus.primary import RESYNC_LIMIT_S
from cachecast.errors import BusError
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.session import Member
from tests.cluster.simulation.network import _Refusal
from tests.unit.bus.meeting import APP, meeting, up

NAME = parse_channel_name("cache-x")


async def test_a_seat_beats_and_knows_the_engines_clock_and_the_other_nodes(autojump_clock):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        await trio.sleep(10)

        assert a.seat.n_opened == b.seat.n_opened == 1
        assert a.seat.clock.is_known
        assert 0 < a.seat.latency_s < 0.01
        assert a.seat.n_sessions >= 2
        assert a.seat.about.version in {"9.1.2", "7.0.15"}
        assert abs(a.seat.engine_ms() - place.engine.now_us() / 1000) < 10


@pytest.mark.parametrize("what", ["flush", "functions", "clock"])
async def test_an_engine_that_is_not_the_one_it_was_is_greeted_again(autojump_clock, what):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        await b.bus.attach(APP, NAME).wait()
        await a.publish("cache-x", "1").wait()
        await trio.sleep(1)
        if what == "flush":
            place.engine.model.flush()
        elif what == "functions":
            place.engine.model.libraries.clear()
        else:
            place.engine.step_us -= 5_000_000
        await trio.sleep(3)
        await up(a, b)

        assert a.seat.n_opened == 2
        assert (await a.bus.read(APP, "cache-x").wait()).publication.data == "1"
        await a.publish("cache-x", "2").wait()
        await trio.sleep(0.1)
        assert [data for _, data in b.delivered] == ["1", "2"]


async def test_a_clock_that_was_set_forwards_makes_values_go_early_and_never_late(autojump_clock):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        await b.bus.attach(APP, NAME).wait()
        await a.publish("cache-x", "1").wait()
        await trio.sleep(1)
        place.engine.step_us += 10_000_000
        await trio.sleep(2)
        await up(a, b)

        assert a.seat.clock.n_steps == 1
        await a.publish("cache-x", "2").wait()


async def test_a_node_that_stood_still_longer_than_its_lease_comes_back_as_a_new_one(
    autojump_clock,
):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        room = parse_channel_name("presence-r")
        await a.bus.enter(APP, room, Member("ann")).wait()
        await b.bus.enter(APP, room, Member("bob")).wait()
        session = a.seat.session
        place.network.held.add("a")
        await trio.sleep(8)
        removed = [told[2:] for told in b.said("member_changed")]
        assert [(change, member.key) for change, member in removed] == [("member_removed", "ann")]
        place.network.held.clear()
        for wire in tuple(place.engine.wires):
            wire.release()
        await up(a, b)
        await trio.sleep(1)

        assert a.seat.session != session
        changes = [(change, member.key) for _, _, change, member in b.said("member_changed")]
        assert changes == [("member_removed", "ann"), ("member_added", "ann")]
        assert sorted(await b.bus.users(APP, "presence-r").wait()) == ["ann", "bob"]


async def test_a_node_that_dies_is_taken_back_by_the_others(autojump_clock):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        room = parse_channel_name("presence-r")
        await a.bus.enter(APP, room, Member("ann")).wait()
        await b.bus.enter(APP, room, Member("bob")).wait()
        a.bus._life.cancel()
        await trio.sleep(6)

        assert await b.bus.users(APP, "presence-r").wait() == ["bob"]
        assert [(c, m.key) for _, _, c, m in b.said("member_changed")] == [
            ("member_removed", "ann")
        ]


async def test_who_takes_back_what_a_large_node_held_goes_on_beating(autojump_clock):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        for n in range(3_000):
            a.bus.enter(APP, parse_channel_name(f"r{n}"), None)
        await trio.sleep(2)
        session = b.seat.session
        place.network.lag_s["commands"] = 0.2
        a.bus._life.cancel()
        await trio.sleep(30)

        assert b.seat.n_sessions == 1
        assert b.seat.session == session
        assert b.seat.n_opened == 1
        assert not await b.bus.channels(APP, "").wait()


async def test_numbers_of_all_nodes_are_added_up(autojump_clock):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        assert a.bus.total("connections", APP, 3) == 3
        assert b.bus.total("connections", APP, 4) == 4
        await trio.sleep(2)
        assert a.bus.total("connections", APP, 3) == 7
        assert a.bus.total("connections", APP, 5) == 9, "its own part is exact"
        assert b.bus.total("connections", APP, 0) in {3, 5}


@pytest.mark.parametrize("function", [b"ended", b"look", b"read"])
async def test_what_cannot_be_read_again_is_tried_again(autojump_clock, monkeypatch, function):
    """The links live and the beat goes on, so nothing else would ever end the wait."""
    async with meeting() as place:
        node = await place.join()
        await node.bus.attach(APP, NAME).wait()
        await node.bus.watch(APP, ["ann"]).wait()
        execute, refused = place.engine.model.execute, []

        def refuse(arguments):
            if arguments[0] == b"FCALL" and arguments[1].endswith(b"_" + function):
                refused.append(arguments)
                return _Refusal("ERR not now")
            return execute(arguments)

        with monkeypatch.context() as patch:
            patch.setattr(place.engine.model, "execute", refuse)
            place.engine.model.flush()
            await trio.sleep(10)
            assert refused
            assert not node.seat.is_open
        await trio.sleep(RESYNC_LIMIT_S + 5)

        assert node.seat.is_open


async def test_an_engine_that_refuses_calls_is_said_in_the_log_and_not_for_each(
    autojump_clock, monkeypatch
):
    """Its links are up and the node is ready: nothing else would tell an operator."""
    async with meeting() as place:
        node = await place.join()
        execute = place.engine.model.execute
        monkeypatch.setattr(
            place.engine.model,
            "execute",
            lambda arguments: (
                _Refusal("OOM command not allowed when used memory > 'maxmemory'.")
                if arguments[0] == b"FCALL" and arguments[1].endswith(b"_publish")
                else execute(arguments)
            ),
        )
        with capture_logs() as logs:
            for _ in range(65):
                with pytest.raises(BusError, match="maxmemory"):
                    await node.publish("cache-x", "1").wait()
                await trio.sleep(1)

        assert [(line["event"], line["log_level"]) for line in logs] == [
            ("engine refuses calls", "warning")
        ] * 2
        assert "maxmemory" in logs[0]["reason"]
        assert node.seat.is_open


async def test_a_node_that_leaves_in_order_has_lost_nothing(autojump_clock):
    async with meeting() as place:
        node = await place.join()
        with capture_logs() as logs:
            await node.bus.aclose()

        assert not [line for line in logs if line["log_level"] == "warning"]
