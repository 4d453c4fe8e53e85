"""A day in the life of a node, in virtual time: every read is checked against a model."""

from __future__ import annotations

from random import Random

import pytest
import trio
import trio.testing

from cachecast.config import BrokerConfig
from cachecast.testing import TEST_APP, open_memory_network, open_test_broker

TTL_S = 1_800.0
DAY_S = 86_400.0
N_CHANNELS = 2_000
N_CLIENTS = 40
STEP_S = 20.0
PUBLISHES_PER_STEP = 10
JOINS_PER_STEP = 3
READS_PER_STEP = 2


class Model:
    """What is cached, as one would explain it: a value, and the time at which it is gone."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[str, float]] = {}

    def put(self, channel: str, value: str) -> None:
        self.values[channel] = value, trio.current_time() + TTL_S

    def get(self, channel: str) -> str | None:
        value, gone_at = self.values.get(channel, ("", 0.0))
        return value if trio.current_time() < gone_at else None

    def n_alive(self) -> int:
        now = trio.current_time()
        return sum(now < gone_at for _, gone_at in self.values.values())


@pytest.mark.slow
async def test_twenty_four_hours_of_publishes_joins_and_leaves(autojump_clock) -> None:
    """On thousands of channels; at any moment the store holds what the model says is alive."""
    random, model = Random(24), Model()
    kinds = ("cache-", "private-cache-", "presence-cache-", "private-encrypted-cache-")
    channels = [f"{kinds[n % 4]}{n}" for n in range(N_CHANNELS)]
    hits = misses = live = 0
    async with (
        open_test_broker(BrokerConfig(apps=(TEST_APP,))) as broker,
        open_memory_network(broker) as network,
    ):
        clients = [await network.connect(speaks_msgpack=n % 4 == 0) for n in range(N_CLIENTS)]
        joined: dict[str, int] = {}
        n = 0
        while trio.current_time() < DAY_S:
            for _ in range(PUBLISHES_PER_STEP):
                n += 1
                # A few channels are busy, most are not: hits and misses both.
                channel = channels[int(N_CHANNELS * random.random() ** 2)]
                await broker.publish(TEST_APP.id, channel, "tick", f"v{n}")
                model.put(channel, f"v{n}")
                live += channel in joined
            for _ in range(JOINS_PER_STEP):
                channel = random.choice(channels)
                if channel in joined:
                    clients[joined.pop(channel)].unsubscribe(channel)
                    continue
                number = random.randrange(N_CLIENTS)
                client, expected = clients[number], model.get(channel)
                user_id = str(number) if channel.startswith("presence-") else None
                before = len(client.messages)
                client.send(client.subscription(channel, user_id=user_id))
                success, first = client.messages[before:]
                assert success.event == "pusher_internal:subscription_succeeded"
                got = None if first.event == "pusher:cache_miss" else first.data
                assert got == expected, (channel, trio.current_time())
                hits, misses = hits + (got is not None), misses + (got is None)
                joined[channel] = number
            for _ in range(READS_PER_STEP):
                channel = random.choice(channels)
                event = await broker.read_cache(TEST_APP.id, channel)
                assert (event and event.data) == model.get(channel)
            if len(joined) > 300:
                for channel in random.sample(sorted(joined), 200):
                    clients[joined.pop(channel)].unsubscribe(channel)
            if random.random() < 0.05:
                number = random.randrange(N_CLIENTS)
                random.choice([clients[number].close, clients[number].drop])()
                joined = {name: who for name, who in joined.items() if who != number}
                clients[number] = await network.connect(speaks_msgpack=number % 4 == 0)
            await trio.sleep(STEP_S * random.random() * 2)
            if random.random() < 0.01:
                await trio.testing.wait_all_tasks_blocked()
                assert broker.cache.n_entries() == model.n_alive()
            for client in clients:
                client.forget()

        assert min(hits, misses) > 1_000
        assert live > 500
        for client in clients:
            client.close()
        await trio.sleep(TTL_S + 2)
        statistics = broker.statistics().apps[0]
        fields = (statistics.cache_entries, statistics.cache_bytes, statistics.channels)
        assert (*fields, statistics.connections, statistics.undelivered_bytes) == (0, 0, 0, 0, 0)
        assert broker.statistics().max_eviction_lag_s <= 0.02
