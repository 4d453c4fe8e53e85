"""The throttle of subscription counts; what is announced stands in tests/wire/test_counts.py."""

from __future__ import annotations

import msgspec

from engine.broker.announcements import COUNT_INTERVAL_S, COUNT_THROTTLE_ABOVE
from engine.config import BrokerConfig
from engine.testing import TEST_APP, open_memory_network, open_test_broker

APP = msgspec.structs.replace(TEST_APP, sends_subscription_counts=True)
CONFIG = BrokerConfig(apps=(APP,))


async def _crowd(network):
    """More subscribers than are counted at once, all in one instant."""
    clients = [await network.connect(APP) for _ in range(COUNT_THROTTLE_ABOVE + 2)]
    for client in clients:
        client.send({"event": "pusher:subscribe", "data": {"channel": "x"}})
    return clients


async def test_a_channel_that_empties_while_its_count_is_held_back_is_forgotten(autojump_clock):
    """Nobody is left to be told, and nothing may keep the channel alive."""
    async with open_test_broker(CONFIG) as broker, open_memory_network(broker) as network:
        clients = await _crowd(network)
        assert len(broker.announcements.stale_counts) == 1

        for client in clients:
            client.send({"event": "pusher:unsubscribe", "data": {"channel": "x"}})

        assert broker.announcements.stale_counts == {}
        assert broker.channels(APP.id) == {}


async def test_what_the_throttle_holds_back_is_due_after_its_interval_and_not_before(
    autojump_clock,
):
    """The task asks every second; the interval decides."""
    async with open_test_broker(CONFIG) as broker, open_memory_network(broker) as network:
        await _crowd(network)
        announcements = broker.announcements
        ((channel, _),) = announcements.stale_counts.items()
        now = broker.clock()

        announcements.announce_due_counts(10)

        assert now < channel.count_due_at <= now + COUNT_INTERVAL_S
        assert announcements.stale_counts
