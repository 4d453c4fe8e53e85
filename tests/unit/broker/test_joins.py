"""Subscriptions that other nodes have to agree on first, and whatever happens meanwhile."""

from __future__ import annotations

from math import inf

import msgspec
import pytest
import trio

from cachecast.broker.joins import MAX_OPEN
from cachecast.channels.waiting import PACE_BYTES
from cachecast.testing import TEST_APP, open_memory_network, open_test_broker
from tests.harness.cluster import open_cluster
from tests.unit.bus.shared_bus import Mesh

APP = TEST_APP.id


@pytest.fixture
async def cluster():
    """Two nodes, half a second from what they agree on."""
    async with open_cluster(delay_s=0.5) as cluster:
        yield cluster


@pytest.fixture
def mesh(cluster):
    return cluster.mesh


@pytest.fixture
def network(cluster):
    return cluster.networks[0]


def _events(client):
    return [m.event for m in client.messages[1:]]


def _is_empty(cluster):
    """Nothing is left behind, on any node and in what they agree on."""
    for broker in cluster.brokers:
        app = broker.statistics().apps[0]
        assert (app.subscriptions, app.channels) == (0, 0)
        assert len(broker.clients.joins) == 0
    assert not any(held.total() for held in cluster.mesh.held.values())
    return all(not nodes for nodes in cluster.mesh.attached.values())


async def test_a_subscription_is_answered_when_all_nodes_know_with_the_newest_value(
    autojump_clock, cluster, network
):
    await cluster.brokers[1].publish(APP, "cache-x", "tick", "1")
    client = await network.connect()
    client.send(client.subscription("cache-x"))
    await trio.sleep(0.9)
    assert _events(client) == []
    await trio.sleep(0.2)

    assert _events(client) == ["pusher_internal:subscription_succeeded", "tick"]
    assert client.messages[-1].data == "1"


async def test_no_value_is_missed_or_seen_twice_while_a_subscription_is_under_way(
    autojump_clock, cluster, network
):
    client = await network.connect()
    client.send(client.subscription("cache-x"))
    for n in range(30):
        cluster.brokers[n % 2].publish_nowait(APP, "cache-x", "tick", str(n))
        await trio.sleep(0.1)
    await trio.sleep(2)

    seen = [int(m.data) for m in client.messages if m.event == "tick"]
    assert seen == list(range(seen[0], 30))
    assert seen[0] <= 6


@pytest.mark.parametrize("how", ["unsubscribe", "close", "drop", "terminate"])
async def test_who_is_gone_before_the_answer_leaves_nothing_behind(
    autojump_clock, cluster, network, how
):
    client = await network.connect()
    await client.sign_in("u1")
    client.send(client.subscription("presence-cache-x", user_id="1"))
    await trio.sleep(0.2)
    if how == "terminate":
        await cluster.brokers[1].terminate(APP, "u1")
    elif how == "unsubscribe":
        client.unsubscribe("presence-cache-x")
    else:
        getattr(client, how)()
    await trio.sleep(5)

    assert _is_empty(cluster)
    if how != "terminate":  # whose word took as long
        assert "pusher_internal:subscription_succeeded" not in _events(client)
    assert [event.name for _, event in cluster.mesh.events][-2:] == [
        "member_removed",
        "channel_vacated",
    ]


async def test_hooks_hear_of_one_that_was_taken_back_what_the_cluster_saw(
    autojump_clock, cluster, network
):
    heard = []

    async def hook(app_id, event):
        heard.append(event.name)

    for name in ("channel_occupied", "member_added", "member_removed", "channel_vacated"):
        for broker in cluster.brokers:
            broker.on(name, hook)
    client = await network.connect()
    client.send(client.subscription("presence-x", user_id="1"))
    client.unsubscribe("presence-x")
    await trio.sleep(5)

    assert heard == ["channel_occupied", "member_added", "member_removed", "channel_vacated"]


async def test_a_second_one_is_a_second_one_and_nothing_can_be_sent_by_it_yet(
    autojump_clock, cluster, network
):
    client = await network.connect()
    for _ in range(2):
        client.send(client.subscription("private-x"))
    client.trigger("private-x", "client-hello", 1)
    await trio.sleep(2)

    errors = [m.json()["message"] for m in client.messages if m.event == "pusher:error"]
    assert errors == [
        "Existing subscription to channel private-x",
        "Cannot broadcast client event (connection not subscribed to channel private-x)",
    ]
    assert _events(client).count("pusher_internal:subscription_succeeded") == 1
    assert cluster.mesh.count((APP, "private-x")) == 1


async def test_one_that_was_taken_back_can_be_asked_for_again_at_once(
    autojump_clock, cluster, network
):
    client = await network.connect()
    for _ in range(3):
        client.send(client.subscription("cache-x"))
        client.unsubscribe("cache-x")
    client.send(client.subscription("cache-x"))
    await cluster.brokers[1].publish(APP, "cache-x", "tick", "1")
    await trio.sleep(5)

    assert _events(client).count("pusher_internal:subscription_succeeded") == 1
    assert _events(client).count("tick") == 1
    assert cluster.mesh.count((APP, "cache-x")) == 1
    client.unsubscribe("cache-x")
    await trio.sleep(5)
    assert _is_empty(cluster)


async def test_those_under_way_count_against_the_limit_of_channels(autojump_clock):
    app = msgspec.structs.replace(TEST_APP, max_channels_per_connection=2)
    async with open_cluster(app=app, delay_s=0.5) as cluster:
        client = await cluster.networks[0].connect()
        for channel in ("a", "b", "c"):
            client.send(client.subscription(channel))
        await trio.sleep(3)

        errors = [m.json()["message"] for m in client.messages if m.event == "pusher:error"]
        assert errors == ["Too many subscriptions: this connection may have 2 channels"]
        assert await cluster.brokers[1].channels(APP) == await cluster.brokers[0].channels(APP)
        assert set(await cluster.brokers[1].channels(APP)) == {"a", "b"}


async def test_a_client_asks_about_a_few_at_once_and_gets_all_in_its_order(
    autojump_clock, cluster, network
):
    client = await network.connect()
    names = [f"cache-{n:03}" for n in range(3 * MAX_OPEN)]
    for name in names:
        client.send(client.subscription(name))
    assert cluster.mesh.calls.count("enter") == MAX_OPEN
    client.unsubscribe(names[-1])
    await trio.sleep(10)

    succeeded = [m.channel for m in client.messages if m.event.endswith("succeeded")]
    assert succeeded == names[:-1]
    assert cluster.mesh.calls.count("enter") == len(names) - 1


async def test_a_client_that_does_not_read_is_asked_for_no_more_until_it_has(autojump_clock):
    """Its transport reads on while the bus works; the answers wait for its reading."""
    async with open_cluster(n=1) as cluster:
        broker, network = cluster.brokers[0], cluster.networks[0]
        for number in range(100):
            await broker.publish(APP, f"cache-{number}", "tick", "x" * 10_000)
        client = await network.connect()
        client.stop_reading()
        for number in range(100):
            client.send(client.subscription(f"cache-{number}"))
        await trio.sleep(5)
        most = PACE_BYTES + MAX_OPEN * 11_000
        assert PACE_BYTES < broker.statistics().outbox_bytes < most
        for _ in range(100):
            client.read(20_000)
            await trio.sleep(1)

        assert len([m for m in client.messages if m.event == "tick"]) == 100
        client.drop()


async def test_one_that_waits_to_read_and_goes_leaves_nothing(autojump_clock):
    async with open_cluster(n=1) as cluster:
        broker, network = cluster.brokers[0], cluster.networks[0]
        for number in range(50):
            await broker.publish(APP, f"cache-{number}", "tick", "x" * 10_000)
        client = await network.connect()
        client.stop_reading()
        for number in range(50):
            client.send(client.subscription(f"cache-{number}"))
        await trio.sleep(5)
        client.drop()
        await trio.sleep(60)

        assert _is_empty(cluster)


async def test_what_cannot_be_answered_brings_the_client_back(autojump_clock, cluster, network):
    client, other = await network.connect(), await network.connect()
    client.send(client.subscription("x"))
    cluster.buses[0].cut()
    assert await client.wait_closed() == 4100
    assert not [m for m in client.messages if m.event == "pusher:subscription_error"]
    other.send(other.subscription("x"))
    assert await other.wait_closed() == 4100
    cluster.buses[0].heal()
    await trio.sleep(5)

    assert _is_empty(cluster)


async def test_a_full_room_is_said_as_on_one_node(autojump_clock):
    app = msgspec.structs.replace(TEST_APP, max_presence_members=1)
    async with open_cluster(app=app) as cluster:
        ann, bob = [await network.connect() for network in cluster.networks]
        await ann.subscribe("presence-x", user_id="ann")
        with pytest.raises(
            AssertionError, match=r"LimitReached.*maximum of 1|maximum of 1.*LimitReached"
        ):
            await bob.subscribe("presence-x", user_id="bob")

        assert not bob.is_closed
        assert await cluster.brokers[1].users(APP, "presence-x") == ["ann"]


async def test_two_nodes_enter_and_leave_the_same_member_at_once(autojump_clock, cluster):
    """Whatever the order, it is added once and removed once."""
    watcher = await cluster.networks[0].connect()
    await watcher.subscribe("presence-x", user_id="watcher")
    for _ in range(3):
        clients = [await network.connect() for network in cluster.networks]
        for client in clients:
            client.send(client.subscription("presence-x", user_id="ann"))
        await trio.sleep(3)
        for client in clients:
            client.unsubscribe("presence-x")
        await trio.sleep(3)

    news = [m.event.partition(":")[2] for m in watcher.messages if "member_" in m.event]
    assert news == ["member_added", "member_removed"] * 3


async def test_the_end_of_the_broker_ends_those_under_way(autojump_clock):
    mesh = Mesh(delay_s=100.0)
    async with open_test_broker(bus=mesh.join()) as broker, open_memory_network(broker) as network:
        client = await network.connect()
        client.send(client.subscription("cache-x"))
        await trio.sleep(1)

    assert client.is_closed
    assert mesh.delay_s < inf


async def test_counts_are_kept_for_subscriptions_under_way_and_no_longer(autojump_clock):
    """Channels come and go by the ten thousand, and on a busy node something always joins."""
    app = msgspec.structs.replace(TEST_APP, sends_subscription_counts=True)
    async with open_cluster(app=app, delay_s=0.5) as cluster:
        clients = cluster.brokers[0].clients
        client = await cluster.networks[0].connect()
        client.send(client.subscription("wanted"))
        client.send(client.subscription("left"))
        await trio.sleep(0.1)
        client.send('{"event":"pusher:unsubscribe","data":{"channel":"left"}}')
        await trio.sleep(0.1)
        for channel in ("wanted", "left", *(f"gone-{n}" for n in range(100))):
            clients.count_changed(APP, channel, 7)

        assert set(clients._early_counts) == {(APP, "wanted"), (APP, "left")}
        await trio.sleep(2)
        assert not clients._early_counts
