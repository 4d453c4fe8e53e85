"""Values: attached before anybody is answered, newest first and last, read again after a gap."""

from __future__ import annotations

import pytest
import trio
from msgspec import structs

from cachecast.bus import lateness as lateness_module
from cachecast.bus import values as values_module
from cachecast.bus.record import Record
from cachecast.bus.seal import Seal
from cachecast.bus.seam import Envelope
from cachecast.errors import BusError
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.messages import Publication
from tests.cluster.simulation import network as network_module
from tests.unit.bus.meeting import APP, meeting, up

NAME = parse_channel_name("cache-x")
PLAIN = parse_channel_name("x")


async def test_the_value_is_here_in_the_step_in_which_a_channel_is_attached(autojump_clock):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        await a.publish("cache-x", "1").wait()
        found = []
        receipt = b.bus.attach(APP, NAME)
        receipt.when_done(lambda: found.append(b.values["cache-x"][0]))
        assert not receipt.is_done

        await receipt.wait()
        assert found == ["1"]


async def test_a_further_subscriber_waits_until_what_was_published_before_has_been_heard(
    autojump_clock,
):
    async with meeting() as place:
        place.network.lag_s = {"messages": 0.05, "commands": 0.001}
        a, b = await place.join("a"), await place.join("b")
        await b.bus.attach(APP, NAME).wait()
        for n in range(50):
            await a.publish("cache-x", str(n)).wait()
            found = []
            receipt = b.bus.attach(APP, NAME)
            receipt.when_done(lambda found=found: found.append(b.values["cache-x"][0]))
            await receipt.wait()
            assert found == [str(n)]
            b.bus.detach(APP, NAME)
        assert b.kept.n_barriers == 50


async def test_one_question_serves_all_who_wait_and_none_who_came_behind_it(autojump_clock):
    async with meeting() as place:
        node = await place.join()
        await node.bus.attach(APP, NAME).wait()
        first = [node.bus.attach(APP, NAME) for _ in range(10)]
        await trio.sleep(0.1)

        assert all(receipt.is_done for receipt in first)
        assert node.kept.n_barriers == 2, "the first asked at once, the others together"


async def test_on_a_plain_channel_nobody_waits_for_what_was_published_before(autojump_clock):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        receipt = b.bus.attach(APP, PLAIN)
        assert not receipt.is_done
        await receipt.wait()
        assert b.bus.attach(APP, PLAIN).is_done

        await a.publish("x", "1", "2", "3").wait()
        await trio.sleep(0.1)
        assert b.delivered == [("x", "1"), ("x", "2"), ("x", "3")]
        assert b.values == {}


async def test_a_client_event_is_delivered_and_leaves_the_value_alone(autojump_clock):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        name = parse_channel_name("private-cache-x")
        await b.bus.attach(APP, name).wait()
        await a.publish("private-cache-x", "kept").wait()
        event = Publication("client-e", "private-cache-x", "told", 7, "1.2")
        await a.bus.publish([Envelope(APP, name, event, is_server_side=False)]).wait()
        await trio.sleep(0.1)

        assert [data for _, data in b.delivered] == ["kept", "told"]
        assert b.values["private-cache-x"][0] == "kept"


async def test_copies_stay_for_whoever_comes_back_and_are_let_go_of(autojump_clock):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        await b.bus.attach(APP, NAME).wait()
        b.bus.detach(APP, NAME)
        await a.publish("cache-x", "1").wait()
        await trio.sleep(4)
        assert b.values["cache-x"][0] == "1"
        await b.bus.attach(APP, NAME).wait()
        await trio.sleep(10)
        assert "cache-x" in b.values, "somebody is there again"
        b.bus.detach(APP, NAME)
        await trio.sleep(6)

        assert b.values == {}
        assert b.kept.by_topic == {}
        assert [len(wire.topics) for wire in place.engine.wires if wire.node == "b"].count(1) == 1


async def test_of_channels_that_nobody_is_in_only_so_many_stay(autojump_clock, monkeypatch):
    monkeypatch.setattr(values_module, "MAX_IDLE", 3)
    async with meeting() as place:
        node = await place.join()
        for n in range(10):
            name = parse_channel_name(f"cache-{n}")
            await node.bus.attach(APP, name).wait()
            node.bus.detach(APP, name)

        assert [found.name.text for found in node.kept.by_topic.values()] == [
            "cache-7",
            "cache-8",
            "cache-9",
        ]


@pytest.mark.parametrize("kind", ["messages", ""])
async def test_after_a_lost_link_the_newest_value_is_delivered_once(autojump_clock, kind):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        await b.bus.attach(APP, NAME).wait()
        await a.publish("cache-x", "1").wait()
        await trio.sleep(0.1)
        place.engine.break_connections("b", kind)
        for value in ("2", "3"):
            await a.publish("cache-x", value).wait()
        await up(b)
        await trio.sleep(0.1)

        assert b.delivered == [("cache-x", "1"), ("cache-x", "3")]
        assert b.kept.n_resyncs >= 1
        assert [told[0] for told in b.told] == ["went_up", "went_down", "went_up"]


async def test_without_its_link_for_commands_a_node_hears_on_and_nothing_comes_twice(
    autojump_clock,
):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        await b.bus.attach(APP, NAME).wait()
        await a.publish("cache-x", "1").wait()
        place.engine.break_connections("b", "commands")
        for value in ("2", "3"):
            await a.publish("cache-x", value).wait()
        await up(b)

        assert b.delivered == [("cache-x", "1"), ("cache-x", "2"), ("cache-x", "3")]
        assert [told[0] for told in b.told] == ["went_up", "went_down", "went_up"]


async def test_who_waits_while_the_link_is_lost_is_answered_when_it_is_back(autojump_clock):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        await b.bus.attach(APP, NAME).wait()
        place.network.shut.add("b")
        waiting = [b.bus.attach(APP, NAME)]
        place.engine.break_connections("b")
        waiting.append(b.bus.attach(APP, NAME))
        await trio.sleep(0.2)
        waiting.append(b.bus.attach(APP, parse_channel_name("cache-new")))
        waiting.append(b.bus.attach(APP, PLAIN))
        await a.publish("cache-x", "2").wait()
        assert not any(receipt.is_done for receipt in waiting)
        place.network.shut.clear()

        for receipt in waiting:
            await receipt.wait()
        assert b.values["cache-x"][0] == "2"


async def test_who_waits_for_too_long_is_told_and_holds_nothing(autojump_clock):
    async with meeting() as place:
        node = await place.join()
        place.engine.stop()
        await trio.sleep(0.01)
        waiting = node.bus.attach(APP, NAME)
        with pytest.raises(BusError):
            await waiting.wait()
        place.engine.start()
        await up(node)
        await trio.sleep(6)

        assert node.kept.by_topic == {}


async def test_an_engine_that_has_forgotten_gets_back_what_is_kept_or_was_published_here(
    autojump_clock,
):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        await b.bus.attach(APP, NAME).wait()
        await a.publish("cache-x", "attached").wait()
        await trio.sleep(20)
        await a.publish("cache-y", "just now").wait()
        await trio.sleep(0.1)
        deadline = b.values["cache-x"][2]
        place.engine.stop()
        await trio.sleep(0.5)
        place.engine.start()
        await up(a, b)

        found = await a.bus.read(APP, "cache-x").wait()
        assert found.publication.data == "attached"
        assert deadline - 0.1 <= found.deadline <= deadline + 0.001, "and no longer"
        assert (await b.bus.read(APP, "cache-y").wait()).publication.data == "just now"
        assert b.delivered == [("cache-x", "attached")], "nobody is told twice"


async def test_a_value_that_the_engine_has_let_go_of_is_forgotten_when_it_is_read_again(
    autojump_clock,
):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        await b.bus.attach(APP, NAME).wait()
        await a.publish("cache-x", "1").wait()
        await trio.sleep(0.1)
        seat, record = a.seat, b.kept.by_topic[a.seat.to.keys.topic(APP, "cache-x")].record
        key = seat.to.keys.value(APP, "cache-x")
        seat.command(seat.to.forget(seat.epoch, [(key, record.order)]), lambda _: None)
        await trio.sleep(0.1)
        assert "cache-x" in b.values
        place.engine.break_connections("b")
        await up(b)

        assert b.values == {}


async def test_no_value_is_delivered_past_its_time(autojump_clock):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        place.network.lag_s = {"messages": 0.0, "commands": 0.0}
        await b.bus.attach(APP, NAME).wait()
        place.network.held.add("b")
        await a.publish("cache-x", "1").wait()
        place.engine.step_us += 61_000_000  # as if it had lain somewhere for as long
        for wire in tuple(place.engine.wires):
            wire.release()
        place.network.held.clear()
        await trio.sleep(2)

        assert b.delivered in ([], [("cache-x", "1")])
        if b.values:
            assert b.values["cache-x"][2] <= trio.current_time() + 60


async def test_garbage_on_a_topic_is_counted_and_hurts_nobody(autojump_clock):
    async with meeting() as place:
        node = await place.join()
        await node.bus.attach(APP, NAME).wait()
        topic = node.seat.to.keys.topic(APP, "cache-x")
        record = Record(0, 0, 0, 0, "", b"\x94\xa1\xff\xa1d\xc2\xc0").pack()
        for payload in (
            b"", b"V", b"Vshort", b"E", b"E" + b"x" * 40, b"+", b"-\xff", b"#x", b"?",
            b"E" + record, b"V\xff\xff" + bytes(14) + record, b"#" + b"9" * 30, b"#-1",
            b"t1-1 0-0 nobody",
        ):  # fmt: skip
            place.engine.model.execute((b"PUBLISH", topic, payload))
            place.engine.model.execute((b"PUBLISH", node.seat.to.keys.control, payload))
        await node.publish("cache-x", "fine").wait()
        await trio.sleep(0.1)

        assert node.delivered == [("cache-x", "fine")]
        assert node.kept.n_broken > 0
        assert not node.said("count_changed")
        assert not node.said("end_user")


async def test_excluded_sockets_are_named_after_a_gap_too(autojump_clock):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        heard = []
        b.deliver = lambda envelope: heard.append(envelope.publication.exclude)  # type: ignore[method-assign]
        await b.bus.attach(APP, NAME).wait()
        place.network.shut.add("b")
        place.engine.break_connections("b")
        await a.publish("cache-x", "1", exclude="1.2").wait()
        place.network.shut.clear()
        await up(b)

        assert heard == ["1.2"]


async def test_who_comes_while_it_is_read_for_another_is_not_told_what_was_before(autojump_clock):
    async with meeting() as place:
        place.network.lag_s = {"messages": 0.05, "commands": 0.001}
        a, b = await place.join("a"), await place.join("b")
        for n in range(20):
            name = parse_channel_name(f"cache-{n}")
            first = b.bus.attach(APP, name)
            await trio.sleep(0.025)  # it may have been read already
            await a.publish(name.text, "1").wait()
            found = []
            second = b.bus.attach(APP, name)
            second.when_done(lambda name=name, found=found: found.append(b.values[name.text][0]))
            await first.wait()
            await second.wait()
            assert found == ["1"]


async def test_a_channel_that_the_engine_does_not_let_be_heard_is_not_attached(
    autojump_clock, monkeypatch
):
    execute = network_module.Engine.execute

    def refuse(self, wire, arguments):
        if arguments[0] == b"SUBSCRIBE" and arguments[1].endswith(b"cache-x"):
            return b"-NOPERM No permissions to access a channel used by the command\r\n"
        return execute(self, wire, arguments)

    monkeypatch.setattr(network_module.Engine, "execute", refuse)
    async with meeting() as place:
        node = await place.join()
        with trio.fail_after(1), pytest.raises(BusError):
            await node.bus.attach(APP, NAME).wait()
        assert not node.kept.by_topic

        await node.bus.attach(APP, parse_channel_name("cache-y")).wait()


async def test_who_cannot_be_read_is_told_at_once_and_the_next_one_reads_again(
    autojump_clock, monkeypatch
):
    async with meeting() as place:
        node = await place.join()
        await node.publish("cache-x", "1").wait()
        execute = place.engine.model.execute

        def refuse(arguments):
            if any(b"_read" in bytes(part) for part in arguments[1:2]):
                return network_module._Refusal("BUSY Redis is busy running a script.")
            return execute(arguments)

        monkeypatch.setattr(place.engine.model, "execute", refuse)
        first, second = node.bus.attach(APP, NAME), node.bus.attach(APP, NAME)
        with trio.fail_after(1), pytest.raises(BusError, match="script"):
            await first.wait()
        monkeypatch.setattr(place.engine.model, "execute", execute)
        with trio.fail_after(1):
            await second.wait()
            await node.bus.attach(APP, NAME).wait()

        assert node.values["cache-x"][0] == "1"


async def test_a_value_that_cannot_be_read_takes_the_older_one_away(autojump_clock):
    async with meeting() as place:
        a = await place.join("a", seal=Seal([bytes(range(32))]))
        await a.bus.attach(APP, NAME).wait()
        await a.publish("cache-x", "1").wait()
        await trio.sleep(0.1)
        assert a.values["cache-x"][0] == "1"
        key = a.seat.to.keys.topic(APP, "cache-x")
        newest = a.kept.by_topic[key].record
        broken = structs.replace(newest, version=newest.version + 1, payload=b"what is this")
        a.bus.halves[0].hear(key, b"V" + bytes(16) + broken.pack())

        assert a.kept.n_broken == 1
        assert "cache-x" not in a.values


async def test_only_so_many_wait_for_an_engine_that_is_away(autojump_clock, monkeypatch):
    monkeypatch.setattr(lateness_module, "MAX_WAITING", 3)
    async with meeting() as place:
        node = await place.join()
        place.engine.stop()
        await trio.sleep(0.05)
        receipts = [node.bus.attach(APP, parse_channel_name(f"cache-{n}")) for n in range(4)]

        assert [receipt.is_done for receipt in receipts] == [False, False, False, True]
        assert len(node.kept.by_topic) == 3
        assert node.bus.halves[0].lateness.n_refused == 1
