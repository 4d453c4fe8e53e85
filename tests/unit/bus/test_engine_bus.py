"""The bus of a cluster: joining, finding the primary, leaving; what it keeps is in other files."""

from __future__ import annotations

import pytest
import trio

from cachecast.bus.engine_bus import AppTerms, EngineBus
from cachecast.bus.publishing import UnknownOutcomeError
from cachecast.bus.seal import Seal
from cachecast.bus.seam import Envelope
from cachecast.bus_config import BusConfig
from cachecast.errors import BusError, ConfigError, SubscriptionError
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.messages import Publication
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


async def test_another_engine_process_is_checked_before_any_value_is_brought_to_it(
    autojump_clock, monkeypatch
):
    async with meeting() as place:
        node = await place.join()
        await node.publish("cache-x", "1").wait()
        place.engine.stop()
        monkeypatch.setitem(network_module._SETTINGS, b"appendonly", b"yes")
        place.engine.start()
        await up(node)

        assert await node.bus.read(APP, "cache-x").wait() is None
        with pytest.raises(BusError, match="CONFIG SET appendonly no"):
            await node.publish("cache-x", "2").wait()
        await node.publish("x", "1").wait()


async def test_a_replica_that_does_not_answer_counts_as_one_that_writes_to_disk(
    autojump_clock, monkeypatch
):
    execute = network_module.Engine.execute

    def with_replica(self, wire, arguments):
        reply = execute(self, wire, arguments)
        if arguments[0] == b"INFO" and self is not silent:
            text = b"role:master\r\nrun_id:a1\r\nslave0:ip=two,port=6379,state=online\r\n"
            reply = b"$%d\r\n%b\r\n" % (len(text), text)
        return reply

    monkeypatch.setattr(network_module.Engine, "execute", with_replica)
    async with meeting("one", "two") as place:
        silent = place.engines.pop("two")
        with network_module.dialled_to({**place.engines, "two": silent}):
            node = await place.join()
            silent.pause()
            await trio.sleep(70)

            with pytest.raises(BusError, match=r"a replica is .two:6379"):
                await node.publish("cache-x", "1").wait()
            assert node.seat.is_open


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


async def test_a_publish_that_one_of_two_primaries_refuses_says_that_some_may_be_out(
    autojump_clock, monkeypatch
):
    async with meeting("one", "two") as place:
        node = await place.join()
        model = place.engines["two"].model
        execute = model.execute

        def refuse(arguments):
            if any(b"_publish" in bytes(part) for part in arguments[1:2]):
                return network_module._Refusal("OOM command not allowed.")
            return execute(arguments)

        monkeypatch.setattr(model, "execute", refuse)
        receipt = node.bus.publish([envelope(f"cache-{n}", "1") for n in range(20)])
        with pytest.raises(UnknownOutcomeError, match=r"may have been\..* memory is full"):
            await receipt.wait()


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


async def test_leaving_that_is_cut_short_leaves_nobody_waiting(autojump_clock):
    async with meeting() as place:
        node = await place.join()
        place.engine.pause()
        asked = node.publish("x", "1"), node.bus.attach(APP, NAME)
        with trio.move_on_after(0.1):
            await node.bus.aclose()

        assert all(isinstance(receipt.fault, BusError) for receipt in asked)


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


async def test_a_watchlist_over_several_primaries_is_watched_whole_or_not_at_all(autojump_clock):
    async with meeting("one", "two") as place:
        node = await place.join()
        users = [f"u{number}" for number in range(8)]
        await node.bus.sign_in(APP, "u3").wait()
        assert await node.bus.watch(APP, users).wait() == {"u3"}
        watched = [half.attendance.watching for half in node.bus.halves]
        assert min(map(len, watched)) > 0
        node.bus.unwatch(APP, users)
        assert [len(found) for found in watched] == [0, 0]

        place.engines["two"].pause()
        with pytest.raises(BusError):
            await node.bus.watch(APP, users).wait()
        assert [len(found) for found in watched] == [0, 0]


async def test_misses_that_no_courier_acknowledges_are_not_remembered_for_long(autojump_clock):
    """Whoever may subscribe makes up names, and each would stay for half an hour."""
    async with meeting() as place:
        node = await place.join(terms=AppTerms(60.0, 100))
        assert await node.bus.note_miss(APP, "cache-x").wait()
        await trio.sleep(9)
        assert not await node.bus.note_miss(APP, "cache-x").wait()
        await trio.sleep(2)
        assert await node.bus.note_miss(APP, "cache-x").wait()


async def test_those_that_one_will_are(autojump_clock):
    async with meeting() as place:
        node = await place.join(terms=AppTerms(60.0, 100, has_webhooks=True))
        assert await node.bus.note_miss(APP, "cache-x").wait()
        await trio.sleep(60)
        assert not await node.bus.note_miss(APP, "cache-x").wait()


async def test_apps_are_served_that_came_later(autojump_clock):
    """Values, lifetimes, ceilings and members; what the gone one has under way goes on."""
    async with meeting() as place:
        one, two = await place.join(), await place.join()
        await trio.sleep(2)
        both = {APP: AppTerms(60.0, 100), "new": AppTerms(30.0, 1, max_entries=1)}
        for node in (one, two):
            node.bus.serve_apps(both)
        for node in (one, two):
            await node.bus.attach("new", NAME).wait()
        publication = Publication("tick", "cache-x", "later")
        await one.bus.publish([Envelope("new", NAME, publication, is_server_side=True)]).wait()
        await trio.sleep(1)
        value, published_at, deadline = two.values["cache-x"]
        assert value == "later"
        assert deadline - published_at == pytest.approx(30.0, abs=0.01)
        room = parse_channel_name("presence-x")
        await one.bus.enter("new", room, Member("7")).wait()
        with pytest.raises(SubscriptionError):
            await one.bus.enter("new", room, Member("8")).wait()

        one.bus.serve_apps({APP: AppTerms(60.0, 100)})
        await one.bus.publish([Envelope("new", NAME, publication, is_server_side=True)]).wait()
        await trio.sleep(100)
        assert (await two.bus.read("new", "cache-x").wait()) is None


async def test_webhooks_that_came_later_are_told_what_happens_from_then_on(autojump_clock):
    """The engine keeps events of apps that it has been told of: it is, without a new session."""
    async with meeting() as place:
        node = await place.join(terms=AppTerms(60.0, 100))
        await trio.sleep(2)
        session, channel = node.seat.session, parse_channel_name("room")
        node.bus.serve_apps({APP: AppTerms(60.0, 100, has_webhooks=True)})
        await trio.sleep(1)
        assert node.seat.session == session
        (await node.bus.enter(APP, channel, None).wait())
        await trio.sleep(3)
        hooks = [event for _, event, _ in node.said("take_hook")]
        assert [(event.name, event.channel) for event in hooks] == [("channel_occupied", "room")]
        assert (await node.bus.note_miss(APP, "cache-z").wait()) is True


async def test_a_node_that_is_away_says_it_when_it_is_back(autojump_clock):
    async with meeting() as place:
        node = await place.join(terms=AppTerms(60.0, 100))
        await trio.sleep(2)
        place.engine.stop()
        await trio.sleep(1)
        node.bus.serve_apps({APP: AppTerms(60.0, 100, has_webhooks=True)})
        place.engine.start()
        await trio.sleep(20)
        (await node.bus.enter(APP, parse_channel_name("room"), None).wait())
        await trio.sleep(3)
        assert node.said("take_hook")
