"""What a bus tells a broker, and all that several nodes do as if they were one."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
import trio
import trio.lowlevel

from cachecast.apps import Webhook
from cachecast.bus.local import LocalBus
from cachecast.bus.receipt import Receipt
from cachecast.errors import LimitError, RefusedError
from cachecast.events import AppEvent
from cachecast.protocol.identity import Member
from cachecast.testing import TEST_APP, open_test_broker
from tests.harness.cluster import open_cluster
from tests.unit.bus.told import envelope

APP = TEST_APP.id


@pytest.fixture(params=["mesh", "engine"])
async def cluster(request):
    """Three nodes, over what is simple and over what is real."""
    async with open_cluster(n=3, over=request.param) as cluster:
        yield cluster


async def _connect(cluster, *numbers):
    return [await cluster.networks[number].connect() for number in numbers]


def _ticks(client):
    return [m.data for m in client.messages if m.event == "tick"]


async def test_all_nodes_see_one_order_of_each_channel(autojump_clock, cluster):
    clients = await _connect(cluster, 0, 1, 2)
    for client in clients:
        await client.subscribe("x")
    for n in range(60):
        cluster.brokers[n % 3].publish_nowait(APP, "x", "tick", str(n))
    await trio.sleep(1)

    assert len(_ticks(clients[0])) == 60
    assert _ticks(clients[0]) == _ticks(clients[1]) == _ticks(clients[2])


@pytest.mark.parametrize("over", ["mesh", "engine"])
async def test_a_value_is_replayed_on_every_node_and_expires_there_by_its_own_age(
    autojump_clock, over
):
    async with open_cluster(over=over, cache_ttl_s=30.0) as cluster:
        await cluster.brokers[0].publish(APP, "cache-x", "tick", "1")
        await trio.sleep(29)
        (client,) = await _connect(cluster, 1)
        await client.subscribe("cache-x")
        await trio.sleep(0.1)
        assert _ticks(client) == ["1"]
        await trio.sleep(1)

        for late in await _connect(cluster, 0, 1):
            await late.subscribe("cache-x")
            await trio.sleep(0.1)
            assert _ticks(late) == []
            assert late.messages[-1].event == "pusher:cache_miss"
        await trio.sleep(2)
        assert cluster.brokers[1].cache.n_entries() == 0


async def test_who_was_answered_is_seen_by_whoever_subscribes_next_on_any_node(
    autojump_clock, cluster
):
    for n in range(30):
        await cluster.brokers[n % 3].publish(APP, "cache-x", "tick", str(n))
        (client,) = await _connect(cluster, (n + 1) % 3)
        await client.subscribe("cache-x")
        await trio.lowlevel.checkpoint()
        assert _ticks(client) == [str(n)]


async def test_the_sender_of_an_event_does_not_get_it_wherever_it_is_published(
    autojump_clock, cluster
):
    clients = await _connect(cluster, 0, 1)
    for client in clients:
        await client.subscribe("x")
    await cluster.brokers[2].publish(APP, "x", "tick", "1", socket_id=clients[0].socket_id)
    await trio.sleep(1)

    assert [_ticks(client) for client in clients] == [[], ["1"]]


async def test_client_events_reach_the_others_on_all_nodes_and_are_not_cached(
    autojump_clock, cluster
):
    clients = await _connect(cluster, 0, 0, 1)
    for number, client in enumerate(clients):
        await client.subscribe("presence-cache-x", user_id=number)
    clients[0].trigger("presence-cache-x", "client-hello", 1)
    await trio.sleep(1)

    got = [[m.user_id for m in c.messages if m.event == "client-hello"] for c in clients]
    assert got == [[], ["0"], ["0"]] or got == [[], [0], [0]]
    assert await cluster.brokers[1].read_cache(APP, "presence-cache-x") is None


async def test_members_of_all_nodes_are_in_the_roster_and_each_change_is_told_once(
    autojump_clock, cluster
):
    ann, bob, bob2, eve = await _connect(cluster, 0, 1, 2, 2)
    await ann.subscribe("presence-x", user_id="ann", user_info={"n": 1})
    await bob.subscribe("presence-x", user_id="bob")
    await bob2.subscribe("presence-x", user_id="bob")
    answer = await eve.subscribe("presence-x", user_id="eve")
    roster = answer.json()["presence"]
    assert (sorted(roster["ids"]), roster["count"]) == (["ann", "bob", "eve"], 3)
    assert roster["hash"]["ann"] == {"n": 1}
    bob.close()
    await trio.sleep(1)
    bob2.close()
    await trio.sleep(1)

    news = [
        (m.event.rpartition("_")[2], m.json()["user_id"])
        for m in ann.messages
        if "member_" in m.event
    ]
    assert news == [("added", "bob"), ("added", "eve"), ("removed", "bob")]
    assert not [m for m in eve.messages if m.event.endswith("member_added")]


@pytest.mark.parametrize("cluster", ["mesh"], indirect=True)
async def test_webhooks_hear_of_each_transition_once_and_in_order(autojump_clock, cluster):
    for _ in range(2):
        clients = await _connect(cluster, 0, 1)
        for client in clients:
            await client.subscribe("presence-cache-x", user_id="ann")
        for client in clients:
            client.close()
        await trio.sleep(1)

    names = [event.name for _, event in cluster.mesh.events]
    assert names == [
        "channel_occupied",
        "member_added",
        "cache_miss",
        "member_removed",
        "channel_vacated",
        "channel_occupied",
        "member_added",
        "member_removed",
        "channel_vacated",
    ]


async def test_hooks_hear_on_the_node_where_it_happened_and_nowhere_else(autojump_clock, cluster):
    heard = []
    names = (
        "channel_occupied", "channel_vacated", "member_added", "member_removed", "client_event",
        "cache_miss",
    )  # fmt: skip
    for number, broker in enumerate(cluster.brokers):

        async def hook(app_id, event, number=number):
            heard.append((number, event.name))

        for name in names:
            broker.on(name, hook)
    ann, bob = await _connect(cluster, 0, 1)
    await ann.subscribe("presence-cache-x", user_id="ann")
    await bob.subscribe("presence-cache-x", user_id="bob")
    bob.trigger("presence-cache-x", "client-x", 1)
    await trio.sleep(1)
    ann.close()
    await trio.sleep(1)
    bob.close()
    await trio.sleep(1)

    by_node = [[name for node, name in heard if node == number] for number in range(3)]
    assert by_node == [
        ["channel_occupied", "member_added", "cache_miss", "member_removed"],
        ["member_added", "client_event", "member_removed", "channel_vacated"],
        [],
    ]


async def test_counts_are_of_all_nodes_and_newcomers_hear_them_too(autojump_clock):
    app = msgspec.structs.replace(TEST_APP, sends_subscription_counts=True)
    async with open_cluster(app=app) as cluster:
        first, second, third = await _connect(cluster, 0, 1, 1)
        for client in (first, second, third):
            await client.subscribe("x")
            await trio.sleep(1)
        third.close()
        await trio.sleep(1)

        def counts(client):
            event = "pusher_internal:subscription_count"
            return [m.json()["subscription_count"] for m in client.messages if m.event == event]

        assert counts(first) == [1, 2, 3, 2]
        assert counts(second) == [2, 3, 2]
        assert counts(third) == [3]
        first.close()
        second.close()
        await trio.sleep(1)
        told = [
            e.subscription_count for _, e in cluster.mesh.events if e.name == "subscription_count"
        ]
        assert (told[-1], max(told)) == (0, 3)
        assert not cluster.brokers[0].announcements.counts
        assert not cluster.brokers[1].announcements._stirred


async def test_the_apps_limit_of_connections_counts_all_nodes(autojump_clock):
    app = msgspec.structs.replace(TEST_APP, max_connections=3)
    async with open_cluster(app=app) as cluster:
        clients = await _connect(cluster, 0, 1, 1)
        with pytest.raises(RefusedError, match="3 connections"):
            cluster.brokers[0].clients.admit(app.key, "7", None, is_tls=False)
        clients[2].close()
        await trio.sleep(1)
        await cluster.networks[0].connect()


async def test_the_apps_publish_rate_is_that_of_all_nodes(autojump_clock):
    app = msgspec.structs.replace(TEST_APP, publishes_per_s=100.0)
    passed = []
    async with open_cluster(app=app) as cluster:
        for _ in range(5):
            n = 0
            for _ in range(50):
                for broker in cluster.brokers[:2]:
                    for _ in range(4):
                        with suppress(LimitError):
                            broker.publish_nowait(APP, "plain", "tick", "1")
                            n += 1
                await trio.sleep(0.02)
            passed.append(n)

    assert passed[0] > 200
    assert passed[-1] == pytest.approx(100, abs=12)


async def test_a_subscriber_in_this_process_gets_what_is_published_anywhere(
    autojump_clock, cluster
):
    await cluster.brokers[0].publish(APP, "cache-x", "tick", "1")
    async with cluster.brokers[1].subscribe(APP, "cache-x") as events:
        assert (await anext(events)).data == "1"
        await cluster.brokers[2].publish(APP, "cache-x", "tick", "2")
        assert (await anext(events)).data == "2"
    await trio.sleep(10)
    assert cluster.brokers[1].cache.n_entries() == 0


@pytest.mark.parametrize("cluster", ["mesh"], indirect=True)
async def test_one_that_gave_up_waiting_leaves_nothing_attached(autojump_clock, cluster):
    with trio.move_on_after(0.015):
        async with cluster.brokers[1].subscribe(APP, "cache-x"):
            raise AssertionError
    await trio.sleep(1)

    assert not any(nodes for nodes in cluster.mesh.attached.values())
    assert cluster.brokers[1].delivery._subscribers == {}


async def test_publish_nowait_queues_and_its_receipt_says_when_all_have_it(autojump_clock, cluster):
    receipt = cluster.brokers[0].publish_nowait(APP, "cache-x", "tick", "1")
    assert not receipt.is_done
    await receipt.wait()
    assert (await cluster.brokers[1].read_cache(APP, "cache-x")).data == "1"


async def test_an_event_of_the_cluster_goes_to_webhooks_and_is_done_with_when_they_say(
    autojump_clock,
):
    app = msgspec.structs.replace(
        TEST_APP, webhooks=(Webhook(url="http://127.0.0.1:9/", events=("cache_miss",)),)
    )
    async with open_cluster(app=app) as cluster:
        upcalls = cluster.brokers[0].upcalls
        receipt, unwanted = Receipt(), Receipt()
        upcalls.take_hook(APP, AppEvent("cache_miss", "cache-x"), receipt)
        upcalls.take_hook(APP, AppEvent("client_event", "x"), unwanted)

        assert unwanted.is_done
        assert not receipt.is_done
        assert cluster.brokers[0].statistics().apps[0].webhook_queue_events == 1


async def test_what_is_told_of_an_app_that_is_not_here_is_passed_over(autojump_clock, cluster):
    """Nodes are configured one after the other."""
    upcalls = cluster.brokers[0].upcalls
    upcalls.deliver(msgspec.structs.replace(envelope(1), app_id="9"))
    upcalls.forget("9", "cache-x")
    upcalls.member_changed("9", "presence-x", "member_added", Member("ann"))
    upcalls.user_changed("9", "u", "online")
    upcalls.count_changed("9", "x", 1)
    upcalls.end_user("9", "u")
    upcalls.crowd_eased("9", "x")


async def test_a_node_that_is_alone_is_told_only_what_is_published(autojump_clock):
    bus = LocalBus()
    async with open_test_broker(bus=bus) as broker:
        assert broker.upcalls.deliver == broker.delivery.deliver
        await broker.publish(APP, "cache-x", "tick", "1")
        assert (await broker.read_cache(APP, "cache-x")).data == "1"
