"""A subscriber in asyncio: order, the newest value, sharing, slowness, cancellation."""

from __future__ import annotations

import asyncio

import pytest

from cachecast import App, BrokerConfig
from cachecast.asyncio import open_broker
from cachecast.errors import LimitError
from cachecast.protocol.http_api import make_event

CONFIG = BrokerConfig(apps=(App(id="1", key="k", secret="s" * 20),))


def _with(channel, body):
    async def main():
        async with open_broker(CONFIG) as broker, broker.subscribe("1", channel) as events:
            await body(broker, events)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_of_a_cache_channel_only_the_newest_value_waits():
    async def body(broker, events):
        for n in range(3):
            await broker.publish("1", "cache-a", "tick", str(n))
        assert (await anext(events)).data == "2"
        assert events.conflated == 2

    _with("cache-a", body)


def test_a_cancelled_wait_loses_no_event():
    async def body(broker, events):
        for n in range(100):
            waiting = asyncio.create_task(anext(events))
            await asyncio.sleep(0)
            waiting.cancel()
            broker.publish_nowait("1", "plain", "tick", str(n))
            await asyncio.wait({waiting})
            assert waiting.cancelled()
            assert (await anext(events)).data == str(n)

    _with("plain", body)


def test_several_tasks_share_one_and_each_event_goes_to_one_of_them():
    async def body(broker, events):
        received = []

        async def take():
            async for event in events:
                received.append(event.data)

        tasks = [asyncio.create_task(take()) for _ in range(3)]
        for n in range(30):
            await broker.publish("1", "plain", "tick", str(n))
            await asyncio.sleep(0)
        for _ in range(30):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        assert sorted(map(int, received)) == list(range(30))

    _with("plain", body)


def test_one_that_is_too_slow_is_told_so_behind_what_it_has():
    async def body(broker, events):
        inner = broker._broker
        hub = inner.hub("1")
        for n in range(1_010):  # as if other nodes had published them, which wait for nobody
            inner.delivery._send(hub, [make_event(hub.app, "plain", "tick", str(n))])
        received = 0
        with pytest.raises(LimitError, match="too slow"):
            async for _ in events:
                received += 1
        assert received == 1_000

    _with("plain", body)


def test_one_that_does_nothing_else_lets_others_have_their_turn():
    async def body(broker, events):
        for n in range(500):
            broker.publish_nowait("1", "plain", "tick", str(n))
        turns = 0

        async def other():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        for _ in range(500):
            await anext(events)
        task.cancel()
        assert turns >= 500 // 64

    _with("plain", body)


def test_it_cannot_be_read_in_another_loop():
    async def body(broker, events):
        async def take():
            await anext(events)

        with pytest.raises(RuntimeError, match=r"broker\.sync\.subscribe"):
            await asyncio.to_thread(asyncio.run, take())

    _with("plain", body)
