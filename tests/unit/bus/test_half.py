"""What a node has of one primary: messages find their part, and copies go back in bounded calls."""

from __future__ import annotations

import trio

from cachecast.bus.calls import MAX_BYTES, MAX_KEYS
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.session import Member
from tests.unit.bus.meeting import APP, meeting


async def test_copies_are_offered_in_calls_of_bounded_number_and_size(autojump_clock):
    """And each of them once, whether it is attached or was published here just now."""
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        for n in range(MAX_KEYS + 5):
            name = parse_channel_name(f"cache-{n}")
            await b.bus.attach(APP, name).wait()
            await a.publish(name.text, "v" * (4_000 if n < 70 else 10)).wait()
        await trio.sleep(0.1)

        calls = list(b.bus.halves[0]._offers())
        sizes = [
            sum(len(part) for part in call.arguments if isinstance(part, bytes)) for call in calls
        ]
        keys = [call.arguments[2] - 1 for call in calls]

        assert sum(keys) == MAX_KEYS + 5
        assert max(keys) <= MAX_KEYS
        assert max(sizes) <= MAX_BYTES + 16 * 1024
        assert len(calls) >= 2


async def test_who_leaves_hears_nothing_any_more(autojump_clock):
    async with meeting() as place:
        a, b = await place.join("a"), await place.join("b")
        room = parse_channel_name("presence-r")
        await a.bus.enter(APP, room, Member("ann")).wait()
        half = a.bus.halves[0]
        half.is_deaf = True
        told = len(a.told)
        await b.bus.enter(APP, room, Member("bob")).wait()
        await b.publish("presence-r", "1").wait()
        await trio.sleep(0.1)

        assert (len(a.told), a.delivered) == (told, [])


async def test_numbers_of_a_half_are_those_of_its_parts(autojump_clock):
    async with meeting() as place:
        node = await place.join()
        await node.bus.attach(APP, parse_channel_name("cache-x")).wait()
        await node.bus.attach(APP, parse_channel_name("cache-x")).wait()
        await trio.sleep(1)
        (told,) = node.bus.statistics()

        assert told.is_up
        assert told.nodes >= 1
        assert (told.attached_channels, told.barriers, told.downs) == (1, 1, 0)
        assert told.latency_s > 0
