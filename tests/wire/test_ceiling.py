"""What all slow connections of a node cost together."""

from __future__ import annotations

import pytest
import structlog.testing
import trio
import trio.testing

from cachecast.channels.outbox import FLUSH_BYTES

CEILING = 8 * 1024 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("config_fields", [{"max_outbox_bytes": CEILING}])
async def test_fifteen_hundred_clients_that_never_read_cost_what_the_ceiling_says(
    autojump_clock, stage
):
    """Of a plain channel, cached values, a roster and their own subscriptions, all at once."""
    for number in range(50):
        await stage.broker.publish(stage.app_id, f"cache-{number}", "tick", "x" * 10_000)
    healthy = await stage.network.connect()
    await healthy.subscribe("news")
    clients = [await stage.network.connect() for _ in range(1_500)]
    with structlog.testing.capture_logs() as logs:
        for number, client in enumerate(clients):
            client.stop_reading()
            client.send(client.subscription("news"))
            client.send(client.subscription(f"presence-{number % 15}", user_id=str(number)))
            for channel in range(10):
                client.send(client.subscription(f"cache-{(number + channel) % 50}"))
            assert stage.broker.backlog.n_bytes <= CEILING
        await trio.testing.wait_all_tasks_blocked()
        for number in range(30):
            await stage.broker.publish(stage.app_id, "news", "tick", f"{number} " + "x" * 9_000)
            await stage.broker.publish(stage.app_id, "cache-1", "tick", f"{number} " + "x" * 9_000)
            await trio.testing.wait_all_tasks_blocked()
            assert stage.broker.backlog.n_bytes <= CEILING
            assert stage.broker.statistics().outbox_bytes <= CEILING

    statistics = stage.broker.statistics()
    assert statistics.outbox_ceiling_closes > 1_000
    assert statistics.apps[0].slow_closes == statistics.outbox_ceiling_closes
    assert [m.data.split()[0] for m in healthy.messages if m.event == "tick"] == [
        str(number) for number in range(30)
    ]
    full = [entry for entry in logs if entry["event"].startswith("slowest connections closed")]
    assert len(full) == 1
    await trio.sleep(60)
    assert stage.broker.statistics().connections == 1
    assert (stage.broker.backlog.n_bytes, len(stage.broker.backlog)) == (0, 0)


@pytest.mark.parametrize("config_fields", [{"max_outbox_bytes": 1_200_000}])
async def test_the_slowest_goes_first_and_hears_4100(autojump_clock, stage):
    """Not the one that happens to need the room, nor one that reads a little."""
    clients = [await stage.network.connect() for _ in range(3)]
    for client in clients:
        await client.subscribe("news")
        client.stop_reading()
    for _ in range(30):
        await stage.broker.publish(stage.app_id, "news", "tick", "x" * 10_000)
    await trio.testing.wait_all_tasks_blocked()
    clients[0].read(FLUSH_BYTES)
    clients[2].read(FLUSH_BYTES)
    for _ in range(20):
        await stage.broker.publish(stage.app_id, "news", "tick", "x" * 10_000)
    await trio.testing.wait_all_tasks_blocked()

    assert stage.broker.statistics().connections == 2
    for client in clients:
        client.start_reading()
    assert [client.close_code for client in clients] == [None, 4100, None]
