"""From a publication to its recipients: waiting, cancelling, being told of misses."""

from __future__ import annotations

import msgspec
import pytest
import trio
import trio.testing

from cachecast.broker import delivery as module
from cachecast.channels.cache import PACKED_WIRE
from cachecast.config import BrokerConfig
from cachecast.errors import BrokerClosedError, BusError, LimitError
from cachecast.testing import TEST_APP, open_memory_network, open_test_broker
from tests.harness.cluster import open_cluster
from tests.unit.bus.told import envelope

APP = TEST_APP.id


@pytest.fixture
def cachecast_config():
    """Five thousand bytes may wait on a channel."""
    return BrokerConfig(apps=(TEST_APP,), max_undelivered_bytes=5_000)


async def _crowd(network, n, channel):
    clients = [network.open() for _ in range(n)]
    for client in clients:
        client.send(client.subscription(channel))
    await trio.testing.wait_all_tasks_blocked()
    return clients


def _data(clients):
    return {tuple(m.data for m in client.messages if m.event == "tick") for client in clients}


async def _fill(broker, channel):
    """Publish until no more fits."""
    n = 0
    while True:
        try:
            broker.publish_nowait(APP, channel, "tick", f"{n} " + "x" * 1_000)
        except trio.WouldBlock:
            return n
        n += 1


@pytest.mark.parametrize("after", range(6))
async def test_a_publisher_cancelled_at_any_await_has_published_everything_or_nothing(
    autojump_clock, cachecast_broker, cachecast_network, after
):
    """To both channels or neither, in the cache as on the wire, whether it had to wait or not."""
    clients = await _crowd(cachecast_network, 600, "cache-x")
    others = await _crowd(cachecast_network, 2, "cache-y")
    n = await _fill(cachecast_broker, "cache-x")
    is_done = []

    async def publish():
        await cachecast_broker.publish(APP, ["cache-x", "cache-y"], "tick", "last")
        is_done.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        for _ in range(after):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    await trio.testing.wait_all_tasks_blocked()

    value = await cachecast_broker.read_cache(APP, "cache-y")
    (seen,) = _data(clients)
    assert (seen[-1] == "last") == (value is not None) == (_data(others) == {("last",)})
    assert len(seen) == n + (value is not None)
    assert bool(is_done) == (value is not None), "cancelled, and yet published, or the reverse"
    assert cachecast_broker.statistics().apps[0].undelivered_bytes == 0


async def test_cancelled_before_it_began_it_publishes_nothing(autojump_clock, cachecast_broker):
    with trio.CancelScope() as scope:
        scope.cancel()
        await cachecast_broker.publish(APP, "cache-x", "tick", "1")

    assert scope.cancelled_caught
    assert await cachecast_broker.read_cache(APP, "cache-x") is None


async def test_publishers_wait_while_too_much_is_undelivered_and_all_get_through(
    autojump_clock, cachecast_broker, cachecast_network
):
    """Bounded, and nobody is forgotten."""
    clients = await _crowd(cachecast_network, 300, "x")
    most = 0

    async def publish(name):
        nonlocal most
        for n in range(5):
            await cachecast_broker.publish(APP, "x", "tick", f"{name}.{n} " + "x" * 1_000)
            most = max(most, cachecast_broker.statistics().apps[0].undelivered_bytes)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for name in range(20):
                nursery.start_soon(publish, name)
    await cachecast_broker.fanout.wait_idle()

    assert most <= 5_000 + 1_100
    (seen,) = _data(clients)
    assert sorted(seen) == sorted(f"{a}.{b} " + "x" * 1_000 for a in range(20) for b in range(5))
    for name in range(20):  # each publisher's own order is kept
        mine = [data.split(" ")[0] for data in seen if data.startswith(f"{name}.")]
        assert mine == [f"{name}.{n}" for n in range(5)]


async def test_http_publishers_are_answered_late_not_wrongly(
    autojump_clock, cachecast_broker, cachecast_network
):
    clients = await _crowd(cachecast_network, 600, "x")
    await _fill(cachecast_broker, "x")

    answer = await cachecast_network.request(
        "POST", "/events", {"name": "tick", "channel": "x", "data": "last"}
    )
    await cachecast_broker.fanout.wait_idle()

    assert answer.status == 200
    assert {data[-1] for data in _data(clients)} == {"last"}


async def test_an_app_has_a_bound_for_all_its_channels_together(autojump_clock):
    app = msgspec.structs.replace(TEST_APP, max_undelivered_bytes=3_000)
    async with (
        open_test_broker(BrokerConfig(apps=(app,))) as broker,
        open_memory_network(broker) as network,
    ):
        for channel in "abcdef":
            await _crowd(network, 1, channel)
        for channel in "abc":
            broker.publish_nowait(APP, channel, "tick", "x" * 1_000)
        with pytest.raises(trio.WouldBlock):
            broker.publish_nowait(APP, "nobody", "tick", "1")
        await broker.publish(APP, "nobody", "tick", "1")


async def test_the_publish_rate_refuses_and_publishes_none_of_a_batch(autojump_clock):
    app = msgspec.structs.replace(TEST_APP, publishes_per_s=1.0)
    async with open_test_broker(BrokerConfig(apps=(app,))) as broker:
        for _ in range(9):
            await broker.publish_batch(APP, [("cache-x", "tick", "1")] * 11)
        with pytest.raises(LimitError) as caught:
            await broker.publish_batch(APP, [("cache-y", "tick", "1")] * 2)
        assert (caught.value.http_status, caught.value.limit) == (429, 1.0)
        assert await broker.read_cache(APP, "cache-y") is None
        await trio.sleep(1)
        await broker.publish_batch(APP, [("cache-y", "tick", "1")] * 2)


async def test_the_cache_write_and_the_choice_of_recipients_are_one_step(
    autojump_clock, cachecast_broker, cachecast_network
):
    """Invariant 2: whoever runs next sees both or neither, and a publisher sees both on return."""
    clients = await _crowd(cachecast_network, 2, "cache-x")

    cachecast_broker.publish_nowait(APP, "cache-x", "tick", "1")
    entry = cachecast_broker.cache.get(APP, "cache-x", trio.current_time())
    assert entry.publication.data == "1"
    clients[0].unsubscribe("cache-x")
    late = cachecast_network.open()
    late.send(late.subscription("cache-x"))
    await trio.testing.wait_all_tasks_blocked()

    assert [_data([client]) for client in (*clients, late)] == [{()}, {("1",)}, {("1",)}]
    assert len([m for m in late.messages if m.event == "tick"]) == 1


async def test_remembered_misses_are_bounded(
    autojump_clock, cachecast_broker, cachecast_client, monkeypatch
):
    """The oldest is forgotten and may report once more."""
    monkeypatch.setattr(module, "MAX_REMEMBERED_MISSES", 3)
    told = []

    async def hook(app_id, event):
        await trio.sleep_forever()

    cachecast_broker.on("cache_miss", hook)
    client = await cachecast_client()
    for n in [0, 1, 2, 3, 3, 1, 0]:
        await client.subscribe(f"cache-{n}")
        client.unsubscribe(f"cache-{n}")
        told.append(len(cachecast_broker.hooks._queue))

    assert len(cachecast_broker.delivery._misses) == 3
    assert told[-1] == 5 - 1  # one is with the hook that never returns


async def test_without_anybody_who_wants_to_know_no_miss_is_remembered(
    autojump_clock, cachecast_broker, cachecast_client
):
    client = await cachecast_client()
    await client.subscribe("cache-x")

    assert cachecast_broker.delivery._misses == {}


# --- with other nodes


@pytest.fixture
async def cluster():
    app = msgspec.structs.replace(TEST_APP, max_undelivered_bytes=200_000)
    async with open_cluster(app=app, max_undelivered_bytes=100_000) as cluster:
        yield cluster


def _burst(cluster, number, channel, n, size=5_000):
    """What comes from other nodes within one step, in which nothing is delivered."""
    for k in range(n):
        data = f"{k} " + "x" * size
        cluster.brokers[number].upcalls.deliver(envelope(data, channel))


def _numbers(client):
    return [int(m.data.split()[0]) for m in client.messages if m.event == "tick"]


async def test_at_twice_the_bound_plain_events_from_other_nodes_drop_and_are_counted(
    autojump_clock, cluster
):
    client = await cluster.networks[1].connect()
    await client.subscribe("x")
    _burst(cluster, 1, "x", 100)
    app = cluster.brokers[1].statistics().apps[0]
    assert 200_000 <= app.undelivered_bytes < 210_000
    await trio.sleep(1)

    assert _numbers(client) == list(range(100 - app.overflow_drops))
    assert app.overflow_drops > 50


async def test_at_twice_the_bound_a_cache_channel_skips_to_its_newest_value(
    autojump_clock, cluster
):
    client = await cluster.networks[1].connect()
    await client.subscribe("cache-x")
    _burst(cluster, 1, "cache-x", 100)
    app = cluster.brokers[1].statistics().apps[0]
    assert app.undelivered_bytes < 210_000
    await trio.sleep(1)

    seen = _numbers(client)
    assert seen[-1] == 99
    assert seen == sorted(seen)
    assert len(seen) == 100 - app.overflow_skips
    assert app.overflow_skips > 50
    app = cluster.brokers[1].statistics().apps[0]
    assert (app.undelivered_bytes, app.overflow_drops) == (0, 0)


async def test_nobody_else_loses_by_the_flood_of_one_channel_below_the_apps_bound(
    autojump_clock, cluster
):
    client = await cluster.networks[1].connect()
    for channel in ("x", "cache-y"):
        await client.subscribe(channel)
    _burst(cluster, 1, "x", 100)
    _burst(cluster, 1, "cache-y", 3)
    await trio.sleep(1)

    values = [m.data for m in client.messages if m.channel == "cache-y" and m.event == "tick"]
    assert len(values) == 3


async def test_a_value_that_comes_too_late_takes_the_old_ones_place_and_is_not_served(
    autojump_clock, cluster
):
    broker = cluster.brokers[1]
    client = await cluster.networks[1].connect()
    await client.subscribe("cache-x")
    broker.upcalls.deliver(envelope("0 old", "cache-x"))
    dead = msgspec.structs.replace(
        envelope("1 dead", "cache-x"), published_at=-9.0, deadline=trio.current_time()
    )
    broker.upcalls.deliver(dead)
    await trio.sleep(1)

    assert _numbers(client) == [0]
    assert broker.cache.get(APP, "cache-x", trio.current_time()) is None


@pytest.mark.parametrize("how", ["process", "http"])
async def test_publishers_wait_for_whoever_is_behind_on_another_node(autojump_clock, cluster, how):
    """A program that reads slowly there holds them, as it does on its own node; nothing is lost."""
    broker, network = cluster.brokers[0], cluster.networks[0]
    n_published = 0

    async def publish():
        nonlocal n_published
        for n in range(700):
            if how == "process":
                await broker.publish(APP, "x", "tick", str(n))
            else:
                event = {"name": "tick", "channel": "x", "data": str(n)}
                assert (await network.request("POST", "/events", event)).status == 200
            n_published += 1

    async with (
        cluster.brokers[1].subscribe(APP, "x") as events,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(publish)
        await trio.sleep(20)
        assert 500 <= n_published < 510
        await trio.sleep(5)
        assert n_published < 510
        got = [int((await anext(events)).data) for _ in range(700)]

    assert got == list(range(700))
    await trio.sleep(1)
    assert not cluster.buses[0]._crowded
    assert not cluster.brokers[1].delivery._crowded
    assert not broker.delivery._waiting_elsewhere


async def test_who_waits_for_another_node_hears_when_that_is_out_of_reach(autojump_clock, cluster):
    cluster.buses[1].note_crowded(APP, "x", is_crowded=True)
    await trio.sleep(1)
    with pytest.raises(trio.WouldBlock):
        cluster.brokers[0].publish_nowait(APP, "x", "tick", "1")
    await cluster.brokers[0].publish(APP, "y", "tick", "1")

    async def publish():
        with pytest.raises(BusError):
            await cluster.brokers[0].publish(APP, "x", "tick", "1")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        await trio.sleep(1)
        cluster.buses[0].cut()


async def test_the_end_of_the_broker_ends_the_wait_for_another_node(autojump_clock):
    async with open_cluster() as cluster:
        cluster.buses[1].note_crowded(APP, "x", is_crowded=True)
        await trio.sleep(1)

        async def publish():
            with pytest.raises(BrokerClosedError):
                await cluster.brokers[0].publish(APP, "x", "tick", "1")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            await trio.sleep(1)
            cluster.brokers[0]._close()


@pytest.mark.parametrize("over", ["mesh", "engine"])
async def test_of_several_nodes_too_a_miss_is_reported_again_while_subscribers_keep_missing(
    autojump_clock, over
):
    """Ten seconds after the last was taken, on whatever node: or a lost refill is never made up."""
    told = []

    async def hook(app_id, event):
        told.append(event.channel)

    async with open_cluster(over=over) as cluster:
        for broker in cluster.brokers:
            broker.on("cache_miss", hook)
        for at_s in (0, 5, 12):
            for network in cluster.networks:
                client = await network.connect()
                await client.subscribe("cache-x")
            await trio.sleep(1)
            assert told == ["cache-x"] * (1 if at_s < 10 else 2)
            await trio.sleep(5)


async def test_a_storm_of_joiners_costs_one_compression(autojump_clock, monkeypatch):
    """And the publication that they find there one of its own, however many heard it."""
    n, data = [], "x" * 2_000
    pack = PACKED_WIRE.pack

    def count(frame):
        n.append(frame)
        return pack(frame)

    monkeypatch.setattr(PACKED_WIRE, "pack", count)
    app = msgspec.structs.replace(TEST_APP, compresses=True)
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
    async with (
        open_test_broker(BrokerConfig(apps=(app,))) as broker,
        open_memory_network(broker) as network,
    ):
        clients = [network.open(headers=offer) for _ in range(20)]
        plain = network.open()
        for client in (*clients, plain):
            client.send(client.subscription("cache-x"))
        await trio.testing.wait_all_tasks_blocked()
        await broker.publish(APP, "cache-x", "tick", data)
        await trio.testing.wait_all_tasks_blocked()
        assert len(n) == 1
        for _ in range(20):
            client = network.open(headers=offer)
            client.send(client.subscription("cache-x"))
            clients.append(client)
        await trio.testing.wait_all_tasks_blocked()
        assert len(n) == 2
        assert _data([*clients, plain]) == {(data,)}
        assert sum(map(len, clients[-1].chunks)) < len(data) < sum(map(len, plain.chunks))
