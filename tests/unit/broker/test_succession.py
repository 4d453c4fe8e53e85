"""A broker's state passes to another one: what is under way ends first, and nobody is told."""

from __future__ import annotations

import msgspec
import pytest

from cachecast.broker import open_broker
from cachecast.broker.succession import channel_numbers, export_app, let_go, restore_app, settle
from cachecast.config import BrokerConfig
from cachecast.testing import TEST_APP, open_memory_network, open_test_broker


async def test_settling_delivers_what_is_queued_and_has_the_gone_leave(autojump_clock):
    async with open_test_broker() as broker, open_memory_network(broker) as network:
        client, gone = await network.connect(), await network.connect()
        await client.subscribe("a")
        for number in range(100):
            await gone.subscribe(f"b-{number}")
        broker.publish_nowait("1", "a", "tick", 1)
        gone.drop()
        network.poller.serve_ready()
        assert broker.fanout._line
        assert len(broker.hubs["1"].channels) > 1
        assert settle(broker, 10.0)
        assert client.messages[-1].event == "tick"
        assert list(broker.hubs["1"].channels) == ["a"]


async def test_settling_does_what_there_is_time_for(autojump_clock):
    async with open_test_broker() as broker, open_memory_network(broker) as network:
        client = await network.connect()
        await client.subscribe("a")
        broker.publish_nowait("1", "a", "tick", 1)
        assert not settle(broker, -1.0)
        assert settle(broker, 10.0)


async def test_letting_go_tells_nobody(autojump_clock):
    """Neither hooks nor those who stay: they are another process's by then."""
    told = []

    async def hook(_app_id, event):
        told.append(event.name)

    async with open_test_broker() as broker, open_memory_network(broker) as network:
        ann, bob = await network.connect(), await network.connect()
        for client in (ann, bob):
            await client.subscribe("presence-a", user_id=client.socket_id)
        for name in ("member_removed", "channel_vacated"):
            broker.on(name, hook)
        assert settle(broker, 10.0)
        hub = broker.hubs["1"]
        numbers = {connection: n for n, connection in enumerate(hub.connections.values())}
        assert channel_numbers(hub) == {"presence-a": 0}
        state = export_app(broker, hub, numbers)
        let_go(broker)
        ann.forget()
        bob.drop()
        network.poller.serve_ready()
        await broker.fanout.wait_idle()
        assert (told, ann.messages) == ([], [])
        assert [member[0] for member in state.channels[0].members] == [
            ann.socket_id, bob.socket_id
        ]  # fmt: skip


@pytest.mark.parametrize("rate", [None, 5.0])
async def test_what_a_rate_has_left_passes_on_where_it_still_is_one(rate, autojump_clock):
    limited = BrokerConfig(apps=(_app(5.0),))
    async with open_broker(limited, clock=lambda: 1.0) as old:
        await old.publish("1", "a", "tick", 1)
        state = export_app(old, old.hubs["1"], {})
        async with open_broker(BrokerConfig(apps=(_app(rate),)), clock=lambda: 1.0) as new:
            restore_app(new, state, [])
            bucket = new.hubs["1"].publish_bucket
            assert rate is None or bucket.export() == old.hubs["1"].publish_bucket.export()


def _app(rate):
    return msgspec.structs.replace(TEST_APP, publishes_per_s=rate)
