"""What a Broker tells of itself."""

from __future__ import annotations

import msgspec

from cachecast.broker.views import app_statistics
from cachecast.metrics import AppCounters, AppStatistics
from cachecast.testing import TEST_APP


async def test_every_counter_of_an_app_is_in_its_statistics(
    autojump_clock, cachecast_broker, cachecast_client
):
    """A counter that nobody can read counts for nobody."""
    client = await cachecast_client()
    await client.subscribe("cache-x")
    hub = cachecast_broker.hub(TEST_APP.id)

    statistics = app_statistics(hub, cachecast_broker.cache, 3)

    fields = {field.name for field in msgspec.structs.fields(AppStatistics)}
    assert set(AppCounters.__slots__) <= fields
    assert statistics.connections == statistics.subscriptions == statistics.channels == 1
    assert statistics.cache_misses == 1
    assert statistics.webhook_queue_events == 3


async def test_statistics_are_a_copy(autojump_clock, cachecast_broker):
    """What was read does not change behind the reader's back."""
    hub = cachecast_broker.hub(TEST_APP.id)
    before = app_statistics(hub, cachecast_broker.cache, 0)

    hub.counters.refusals["4009"] += 1

    assert before.refusals == {}
