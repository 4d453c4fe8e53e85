"""Publishing: once, in order, or said to be unknown; nobody waits for ever."""

from __future__ import annotations

import pytest
import trio

from cachecast.bus import publishing as publishing_module
from cachecast.bus.publishing import UnknownOutcomeError
from cachecast.errors import BusError
from cachecast.protocol.channel_name import parse_channel_name
from tests.unit.bus.meeting import APP, meeting, up

NAME = parse_channel_name("cache-x")


async def _pair(place):
    a, b = await place.join("a"), await place.join("b")
    await b.bus.attach(APP, parse_channel_name("x")).wait()
    return a, b


async def test_many_at_once_arrive_in_their_order(autojump_clock):
    async with meeting() as place:
        a, b = await _pair(place)
        receipts = [a.publish("x", str(n)) for n in range(500)]
        await receipts[-1].wait()
        await trio.sleep(0.1)

        assert [data for _, data in b.delivered] == [str(n) for n in range(500)]
        assert all(receipt.fault is None for receipt in receipts)


async def test_one_whose_answer_was_lost_is_asked_again_and_done_once(autojump_clock):
    async with meeting() as place:
        a, b = await _pair(place)
        place.network.lag_s["commands"] = 0.1
        receipts = [a.publish("x", str(n)) for n in range(5)]
        await trio.sleep(0.101)  # they have arrived, and no answer has
        place.engine.break_connections("a", "commands")
        for receipt in receipts:
            await receipt.wait()
        await trio.sleep(0.2)

        assert [data for _, data in b.delivered] == ["0", "1", "2", "3", "4"]
        assert a.bus.halves[0].publishing.n_repeated > 0


async def test_what_comes_while_the_node_says_hello_again_waits_and_keeps_its_order(
    autojump_clock,
):
    async with meeting() as place:
        a, b = await _pair(place)
        await a.publish("x", "0").wait()
        place.engine.model.flush()  # the links stay, the epoch is another
        receipts = [a.publish("x", str(n)) for n in range(1, 6)]
        await trio.sleep(0.05)
        receipts += [a.publish("x", str(n)) for n in range(6, 9)]
        assert not any(receipt.is_done for receipt in receipts)
        for receipt in receipts:
            await receipt.wait()
        await trio.sleep(0.1)

        # What was published in the grace, before b heard its topic again, is not missed: its link
        # was never lost.
        assert [data for _, data in b.delivered] == [str(n) for n in range(9)]


async def test_while_the_engine_is_away_a_publisher_is_told_at_once(autojump_clock):
    async with meeting() as place:
        a, _ = await _pair(place)
        place.engine.stop()
        await trio.sleep(0.05)
        receipt = a.publish("x", "1")

        assert isinstance(receipt.fault, BusError)
        assert "not published" in str(receipt.fault)
        place.engine.start()
        await up(a)
        await a.publish("x", "2").wait()


async def test_whether_it_was_done_is_unknown_when_the_engine_is_another_one(autojump_clock):
    async with meeting() as place:
        a, _ = await _pair(place)
        place.network.lag_s["commands"] = 0.1
        receipt = a.publish("cache-x", "1")
        await trio.sleep(0.101)
        place.engine.stop()
        await trio.sleep(0.1)
        place.engine.start()
        with pytest.raises(UnknownOutcomeError, match="may have been"):
            await receipt.wait()


async def test_nobody_waits_longer_than_the_limit(autojump_clock):
    async with meeting() as place:
        a, _ = await _pair(place)
        place.engine.pause()
        before = trio.current_time()
        with pytest.raises(BusError):
            await a.publish("x", "1").wait()
        assert trio.current_time() - before <= 5.5


async def test_a_full_engine_is_said_in_its_words(autojump_clock, monkeypatch):
    async with meeting() as place:
        a, _ = await _pair(place)
        execute = place.engine.model.execute

        def refuse(arguments):
            if b"_publish" in bytes(arguments[1]):
                from tests.cluster.simulation.network import _Refusal  # noqa: PLC0415

                return _Refusal("OOM command not allowed when used memory > 'maxmemory'.")
            return execute(arguments)

        monkeypatch.setattr(place.engine.model, "execute", refuse)
        with pytest.raises(BusError, match="memory is full"):
            await a.publish("cache-x", "1").wait()
        assert a.bus.halves[0].publishing.n_refused == 1
        assert a.bus.halves[0].publishing.n_unanswered == 0


async def test_more_than_the_engine_remembers_wait_here_and_more_than_that_are_refused(
    autojump_clock, monkeypatch
):
    monkeypatch.setattr(publishing_module, "MAX_REMEMBERED", 10)
    monkeypatch.setattr(publishing_module, "MAX_WAITING", 5)
    async with meeting() as place:
        a, b = await _pair(place)
        receipts = [a.publish("x", str(n)) for n in range(20)]
        assert [receipt.is_done for receipt in receipts] == [False] * 15 + [True] * 5
        await receipts[14].wait()
        await trio.sleep(0.1)

        assert [data for _, data in b.delivered] == [str(n) for n in range(15)]
        assert "behind" in str(receipts[-1].fault)


async def test_only_what_was_published_just_now_is_remembered_for_an_engine_that_forgets(
    autojump_clock, monkeypatch
):
    monkeypatch.setattr(publishing_module, "MAX_RECENT", 3)
    async with meeting() as place:
        a = await place.join("a")
        for n in range(5):
            await a.publish(f"cache-{n}", "v").wait()
        await a.publish("x", "v").wait()
        recent = [key for key, _, _ in a.bus.halves[0].publishing.recent()]
        assert len(recent) == 3
        await trio.sleep(6)

        assert list(a.bus.halves[0].publishing.recent()) == []


@pytest.mark.parametrize("away_s", [0.0, 6.0])
async def test_what_was_published_just_before_an_outage_is_brought_back_after_it(
    autojump_clock, away_s
):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        await a.publish("cache-x", "1").wait()
        place.engine.stop()
        await trio.sleep(away_s)
        place.engine.start()
        await up(a, b)
        await b.bus.attach(APP, NAME).wait()

        assert b.values["cache-x"][0] == "1"


async def test_what_grows_too_old_while_it_is_brought_back_hurts_nobody(
    autojump_clock, monkeypatch
):
    monkeypatch.setattr(publishing_module, "MAX_RECENT", 300)
    async with meeting() as place:
        (a,) = [await place.join("a")]
        for n in range(300):
            a.publish(f"cache-{n}", "1")
        await trio.sleep(0.1)
        offers = a.bus.halves[0].publishing.recent()
        next(offers)
        await a.publish("cache-300", "1").wait()  # for which the oldest makes room

        assert len(list(offers)) == 299
