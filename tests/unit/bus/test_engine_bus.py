"""The bus of a cluster: joining, finding the primary, leaving; what it keeps is in other files."""

from __future__ import annotations

import pytest
import trio

from cachecast.bus.engine_bus import AppTerms, EngineBus
from cachecast.bus.seal import Seal
from cachecast.bus_config import BusConfig
from cachecast.errors import BusError, ConfigError
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.session import Member
from tests.cluster.simulation import network as network_module
from tests.unit.bus.meeting import APP, Witness, envelope, meeting, up

NAME = parse_channel_name("cache-x")
PLAIN = parse_channel_name("x")


async def test_a_node_joins_and_says_once_that_it_is_up(autojump_clock):
    async with meeting() as place:
        node = await place.join()
        await trio.sleep(2)

        assert node.told == [("went_up",)]
        assert node.bus.is_shared


async def test_an_engine_that_is_not_there_is_refused_at_once(autojump_clock):
    async with meeting() as place:
        place.engine.stop()
        before = trio.current_time()
        node = Witness(place.bus())
        with pytest.raises(BusError, match="refused"):
            await node.bus.start(node, place.nursery)

        assert trio.current_time() - before < 1


async def test_an_engine_that_writes_to_disk_is_refused_in_words(autojump_clock, monkeypatch):
    monkeypatch.setitem(network_module._SETTINGS, b"appendonly", b"yes")
    async with meeting() as place:
        node = Witness(place.bus())
        with pytest.raises(ConfigError, match="CONFIG SET appendonly no"):
            await node.bus.start(node, place.nursery)


async def test_with_sealed_values_it_is_not(autojump_clock, monkeypatch):
    monkeypatch.setitem(network_module._SETTINGS, b"appendonly", b"yes")
    async with meeting() as place:
        node = await place.join(seal=Seal([bytes(range(32))]))

        assert node.told == [("went_up",)]


async def test_one_that_begins_to_later_stops_cached_publishes_and_no_others(
    autojump_clock, monkeypatch
):
    async with meeting() as place:
        node = await place.join()
        monkeypatch.setitem(network_module._SETTINGS, b"save", b"60 1")
        await trio.sleep(61)

        with pytest.raises(BusError, match="CONFIG SET save"):
            await node.publish("cache-x", "1").wait()
        await node.publish("x", "1").wait()

        monkeypatch.setitem(network_module._SETTINGS, b"save", b"")
        await trio.sleep(61)
        await node.publish("cache-x", "1").wait()


async def test_nodes_that_must_not_work_together_say_why(autojump_clock):
    async with meeting() as place:
        await place.join("a")
        other = Witness(place.bus("b", seal=Seal([bytes(range(32))])))
        with pytest.raises(ConfigError, match="seal_key"):
            await other.bus.start(other, place.nursery)


async def test_what_one_publishes_the_other_is_given_sealed_or_not(autojump_clock):
    for seal in (None, Seal([bytes(range(32))])):
        async with meeting() as place:
            a, b = await place.join("a", seal=seal), await place.join("b", seal=seal)
            await b.bus.attach(APP, NAME).wait()
            await a.publish("cache-x", "secret 1").wait()
            await trio.sleep(0.1)

            assert b.delivered == [("cache-x", "secret 1")]
            stored = str(place.engine.model.functions.strings.__dict__)
            assert ("secret 1" in stored) is (seal is None)


async def test_channels_are_spread_over_primaries_and_a_publish_reaches_all_of_them(autojump_clock):
    async with meeting("one", "two") as place:
        a, b = await place.join("a"), await place.join("b")
        names = [parse_channel_name(f"cache-{n}") for n in range(20)]
        for name in names:
            await b.bus.attach(APP, name).wait()
        await a.bus.publish([envelope(name.text, "v") for name in names]).wait()
        await trio.sleep(0.1)

        assert sorted(b.delivered) == sorted((name.text, "v") for name in names)
        assert all(half.values.by_topic for half in b.bus.halves), "both have some"
        assert len(await b.bus.counts(APP, [name.text for name in names]).wait()) == 20


async def test_with_one_primary_away_its_channels_are_refused_and_the_others_work(autojump_clock):
    async with meeting("one", "two") as place:
        node = await place.join("a")
        place.engines["two"].stop()
        await trio.sleep(0.1)

        outcomes = [node.publish(f"cache-{n}", "v") for n in range(20)]
        await trio.sleep(0.1)
        faults = [outcome.fault for outcome in outcomes]
        assert None in faults
        assert any(faults)
        assert [told[0] for told in node.told] == ["went_up", "went_down"]
        # A batch over both is refused whole.
        batch = node.bus.publish([envelope(f"cache-{n}", "w") for n in range(20)])
        with pytest.raises(BusError, match="Nothing was published"):
            await batch.wait()

        place.engines["two"].start()
        await up(node)
        assert [told[0] for told in node.told] == ["went_up", "went_down", "went_up"]


async def test_what_is_read_has_its_age_and_deadline(autojump_clock):
    async with meeting() as place:
        node = await place.join()
        assert await node.bus.read(APP, "cache-x").wait() is None
        published = trio.current_time()
        await node.publish("cache-x", "1").wait()
        await trio.sleep(20)
        found = await node.bus.read(APP, "cache-x").wait()

        assert found.publication.data == "1"
        assert published - 0.1 <= found.published_at <= published + 0.1
        assert published + 59.9 <= found.deadline <= published + 60.01

        await trio.sleep(41)
        assert await node.bus.read(APP, "cache-x").wait() is None


async def test_leaving_takes_back_what_was_held_and_nothing_is_told_afterwards(autojump_clock):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        room = parse_channel_name("presence-r")
        await a.bus.enter(APP, room, Member("ann")).wait()
        await b.bus.enter(APP, room, Member("bob")).wait()
        before = len(a.told)

        await a.bus.aclose()
        await trio.sleep(0.1)

        assert [who[3].key for who in b.said("member_changed")] == ["ann"]
        assert b.said("member_changed")[0][2] == "member_removed"
        await b.publish("presence-r", "1").wait()
        assert len(a.told) == before
        a.bus.leave(APP, room, Member("ann"))
        with pytest.raises(BusError):
            await a.publish("x", "1").wait()


async def test_who_asks_when_an_outage_has_lasted_is_told_at_once(autojump_clock):
    async with meeting() as place:
        node = await place.join()
        place.engine.stop()
        await trio.sleep(1)
        waiting = node.bus.enter(APP, NAME, None)
        before = trio.current_time()
        with pytest.raises(BusError):
            await waiting.wait()
        assert 4.5 <= trio.current_time() - before <= 5.5, "in case it comes back"

        before = trio.current_time()
        for receipt in (
            node.bus.enter(APP, NAME, None),
            node.bus.attach(APP, NAME),
            node.bus.sign_in(APP, "ann"),
        ):
            with pytest.raises(BusError):
                await receipt.wait()
        assert trio.current_time() == before


async def test_a_wrong_ca_file_is_refused_before_anything_starts(autojump_clock):
    config = BusConfig(urls=("valkeys://h",), tls_ca="/nowhere.pem")
    with pytest.raises(ConfigError, match="tls_ca"):
        EngineBus(config, {APP: AppTerms(1, 1)}, now=trio.current_time)
