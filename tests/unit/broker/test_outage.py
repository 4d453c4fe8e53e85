"""While the other nodes cannot be reached: who stays, who is sent away, and what is said."""

from __future__ import annotations

import pytest
import trio

from cachecast.broker.outage import SPREAD_S
from cachecast.errors import BusError, CapacityError
from cachecast.server.admin import handle_admin
from cachecast.server.calls import UNREACHABLE
from cachecast.server.http_messages import Request
from cachecast.testing import TEST_APP
from tests.harness.cluster import open_cluster

APP = TEST_APP.id
READY = Request("GET", "/ready", "", {}, b"", True, False)


@pytest.fixture
async def cluster():
    async with open_cluster() as cluster:
        yield cluster


async def _crowd(network, n):
    clients = [await network.connect() for _ in range(n)]
    for client in clients:
        await client.subscribe("cache-x")
    return clients


async def test_a_short_outage_costs_no_connection_and_clients_get_the_newest_value_once(
    autojump_clock, cluster
):
    clients = await _crowd(cluster.networks[0], 3)
    await cluster.brokers[1].publish(APP, "cache-x", "tick", "1")
    await trio.sleep(1)
    cluster.buses[0].cut()
    for n in (2, 3):
        await cluster.brokers[1].publish(APP, "cache-x", "tick", str(n))
    await trio.sleep(29)
    cluster.buses[0].heal()
    await trio.sleep(60)

    for client in clients:
        assert not client.is_closed
        assert [m.data for m in client.messages if m.event == "tick"] == ["1", "3"]


async def test_a_long_one_sends_clients_away_evenly_with_4100(autojump_clock, cluster):
    clients = await _crowd(cluster.networks[0], 200)
    elsewhere = await _crowd(cluster.networks[1], 1)
    cluster.buses[0].cut()
    await trio.sleep(29.9)
    assert not any(client.is_closed for client in clients)
    left = []
    for _ in range(10):
        await trio.sleep(SPREAD_S / 10)
        left.append(sum(not client.is_closed for client in clients))
    await trio.sleep(1)

    assert {client.close_code for client in clients} == {4100}
    drops = [a - b for a, b in zip([200, *left], [*left, 0], strict=True)]
    assert max(drops) <= 30
    assert not elsewhere[0].is_closed
    with pytest.raises(CapacityError):
        cluster.brokers[0].clients.admit(TEST_APP.key, "7", None, is_tls=False)
    cluster.buses[0].heal()
    client = await cluster.networks[0].connect()
    await client.subscribe("cache-x")


async def test_one_that_ends_in_the_midst_of_it_spares_the_rest(autojump_clock, cluster):
    clients = await _crowd(cluster.networks[0], 100)
    cluster.buses[0].cut()
    await trio.sleep(30 + SPREAD_S / 2)
    cluster.buses[0].heal()
    await trio.sleep(60)
    spared = sum(not client.is_closed for client in clients)
    assert 20 < spared < 80

    cluster.buses[0].cut()
    await trio.sleep(29)
    assert sum(not client.is_closed for client in clients) == spared, "the next one begins anew"


async def test_ready_says_no_while_it_lasts_and_why(autojump_clock, cluster):
    broker = cluster.brokers[0]
    assert handle_admin(broker, READY).status == 200
    cluster.buses[0].cut("valkey at 10.0.0.5 is silent")
    answer = handle_admin(broker, READY)

    assert answer.status == 503
    assert answer.body == b'{"ready":false,"reason":"other nodes: valkey at 10.0.0.5 is silent"}'
    cluster.buses[0].heal()
    assert handle_admin(broker, READY).status == 200


async def test_meanwhile_publishes_and_reads_fail_at_once_and_in_words(autojump_clock, cluster):
    broker, network = cluster.brokers[0], cluster.networks[0]
    cluster.buses[0].cut()
    receipt = broker.publish_nowait(APP, "cache-x", "tick", "1")
    assert receipt.is_done
    assert isinstance(receipt.fault, BusError)
    for ask in (
        lambda: broker.publish(APP, "cache-x", "tick", "1"),
        lambda: broker.read_cache(APP, "cache-x"),
        lambda: broker.channels(APP),
        lambda: broker.channel(APP, "cache-x"),
        lambda: broker.users(APP, "presence-x"),
        lambda: broker.terminate(APP, "u"),
        lambda: broker.subscribe(APP, "cache-x").__aenter__(),
    ):
        with pytest.raises(BusError, match="cannot be reached"):
            await ask()
    event = {"name": "tick", "channel": "cache-x", "data": "1"}
    for method, path, body in (
        ("POST", "/events", event),
        ("POST", "/events", event | {"info": "subscription_count"}),
        ("POST", "/batch_events", {"batch": [event]}),
        ("GET", "/channels", b""),
        ("GET", "/channels/cache-x", b""),
        ("GET", "/channels/cache-x/cache", b""),
        ("GET", "/channels/presence-x/users", b""),
        ("POST", "/users/u/terminate_connections", {}),
    ):
        response = await network.request(method, path, body)
        assert (response.status, response.headers["retry-after"]) == (503, "1"), path
        assert response.body == UNREACHABLE.encode()


async def test_an_answer_that_never_came_says_that_it_may_have_been_published(
    autojump_clock, cluster
):
    network = cluster.networks[0]
    found = []

    async def publish():
        event = {"name": "tick", "channel": "cache-x", "data": "1"}
        found.append(await network.request("POST", "/events", event))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        await trio.sleep(0.015)
        cluster.buses[0].cut()

    assert found[0].status == 503
    assert b"may have been published" in found[0].body
    assert (await cluster.brokers[1].read_cache(APP, "cache-x")).data == "1"


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("/events", {"channels": ["cache-x", "y"]}, {"channels": {"cache-x": {}, "y": {}}}),
        ("/batch_events", {"batch": [{"channel": "cache-x"}]}, {"batch": [{}]}),
    ],
)
async def test_what_was_published_is_not_denied_because_nobody_can_be_counted(
    autojump_clock, cluster, path, body, answer
):
    """Who hears 503 publishes once more."""
    network = cluster.networks[0]
    found = []
    event = {"name": "tick", "data": "1", "info": "subscription_count"}
    body = {"batch": [event | part for part in body["batch"]]} if "batch" in body else event | body

    async def publish():
        found.append(await network.request("POST", path, body))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        await trio.sleep(0.03)
        cluster.buses[0].cut()

    assert (await cluster.brokers[1].read_cache(APP, "cache-x")).data == "1"
    assert (found[0].status, found[0].json()) == (200, answer)


async def test_a_client_event_that_nobody_gets_is_refused_and_its_sender_stays(
    autojump_clock, cluster
):
    client = await cluster.networks[0].connect()
    await client.subscribe("private-x")
    cluster.buses[0].cut()
    client.trigger("private-x", "client-hello", 1)
    await trio.sleep(1)

    assert client.messages[-1].json()["message"].startswith("Client event rejected: The other")
    assert not client.is_closed
