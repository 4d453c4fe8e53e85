"""The rows of the last minutes and of the last hour."""

from __future__ import annotations

import trio

from cachecast.server.figures import COARSE_EVERY, N_COARSE, N_FINE, Figures
from cachecast.testing import open_memory_network, open_test_broker


async def test_rates_are_means_and_state_is_the_newest(autojump_clock):
    async with open_test_broker() as broker, open_memory_network(broker) as network:
        figures = Figures(broker)
        client = await network.connect()
        await client.subscribe("c")
        await figures.sample()
        app_id = next(iter(broker.hubs))
        for _ in range(10):
            await broker.publish(app_id, "c", "e", "x")
        await trio.sleep(2.0)
        row = await figures.sample()
        assert (row.connections, row.subscriptions, row.channels) == (1, 1, 1)
        assert abs(row.publishes_per_s - 5.0) < 0.1
        assert abs(row.deliveries_per_s - 5.0) < 0.1


async def test_what_is_kept_is_bounded(autojump_clock):
    async with open_test_broker() as broker:
        figures = Figures(broker)
        for _ in range(COARSE_EVERY * (N_COARSE + 2)):
            await figures.sample()
        assert (len(figures.fine), len(figures.coarse)) == (N_FINE, N_COARSE)


async def test_the_worst_lag_of_half_a_minute_is_kept(autojump_clock):
    async with open_test_broker() as broker:
        figures = Figures(broker)
        for number in range(COARSE_EVERY + 1):
            broker.heartbeat.lag_s = 0.5 if number == 3 else 0.0
            await figures.sample()
        assert figures.coarse[-1].loop_lag_s == 0.5
        assert figures.fine[-1].loop_lag_s == 0.0
