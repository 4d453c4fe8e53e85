"""A subscription in this process: attached, registered, and ended at any moment."""

from __future__ import annotations

import trio.testing

from cachecast.testing import TEST_APP, open_test_broker
from tests.unit.bus.shared_bus import Mesh

APP = TEST_APP.id


async def test_it_is_registered_at_once_on_a_node_that_is_alone(autojump_clock, cachecast_broker):
    await cachecast_broker.publish(APP, "cache-a", "tick", "1")
    listening = cachecast_broker.listen(APP, "cache-a")

    assert listening.receipt.is_done
    assert listening.subscriber.take().data == "1"
    cachecast_broker.publish_nowait(APP, "cache-a", "tick", "2")
    assert listening.subscriber.take().data == "2"
    listening.end()
    assert not cachecast_broker.delivery._subscribers


async def test_whoever_is_to_take_again_is_told_once(autojump_clock, cachecast_broker):
    listening = cachecast_broker.listen(APP, "plain")
    told = []
    assert listening.subscriber.take() is None
    listening.subscriber.when_ready(lambda: told.append("event"))
    cachecast_broker.publish_nowait(APP, "plain", "tick", "1")
    cachecast_broker.publish_nowait(APP, "plain", "tick", "2")
    assert told == ["event"]
    listening.subscriber.when_ready(lambda: told.append("end"))
    listening.end()

    assert told == ["event", "end"]


async def test_one_that_ends_before_it_is_attached_is_detached_when_it_is(autojump_clock):
    mesh = Mesh(delay_s=1)
    async with open_test_broker(bus=mesh.join()) as broker:
        listening = broker.listen(APP, "cache-a")
        assert not listening.receipt.is_done
        listening.end()
        await trio.sleep(5)

        assert listening.receipt.is_done
        assert not broker.delivery._subscribers
        assert not any(mesh.attached.values())
