"""The server in memory: the production one, over sockets that are none."""

from __future__ import annotations

import msgspec
import pytest
import structlog
import trio
import trio.testing

from cachecast.config import BrokerConfig
from cachecast.testing import TEST_APP, ClientClosedError, open_memory_network, open_test_broker


async def test_connect_raises_with_the_code_where_the_server_refuses(autojump_clock):
    app = msgspec.structs.replace(TEST_APP, is_enabled=False)
    async with (
        open_test_broker(BrokerConfig(apps=(app,))) as broker,
        open_memory_network(broker) as network,
    ):
        with pytest.raises(ClientClosedError) as caught:
            await network.connect()

    assert caught.value.code == 4003


async def test_a_handshake_that_is_none_gets_an_http_answer(autojump_clock, cachecast_network):
    client = cachecast_network.open(headers={"Sec-WebSocket-Version": "8"})

    assert client.status == 426
    assert client.messages == []


async def test_requests_are_signed_and_answered(autojump_clock, cachecast_network):
    published = await cachecast_network.request(
        "POST", "/events", {"name": "tick", "channel": "cache-x", "data": "1"}
    )
    read = await cachecast_network.request("GET", "/channels/cache-x", params={"info": "cache"})
    raw = await cachecast_network.request("POST", "/events", b"nonsense")

    assert (published.status, published.json()) == (200, {})
    assert read.json() == {"occupied": False, "cache": {"data": "1", "ttl": 1800}}
    assert (raw.status, raw.headers["content-type"]) == (400, "text/plain; charset=utf-8")


async def test_wall_time_passes_with_the_virtual_clock(autojump_clock, cachecast_network):
    """So that a signature made an hour ago has expired."""
    broker = cachecast_network.broker
    before = broker.unix_now()
    await trio.sleep(3_600)

    assert broker.unix_now() - before == pytest.approx(3_600)
    assert (await cachecast_network.request("GET", "/channels")).status == 200


async def test_connections_and_requests_leave_nothing_behind(autojump_clock, cachecast_network):
    for _ in range(5):
        client = await cachecast_network.connect()
        client.close()
        await cachecast_network.request("GET", "/channels")
    await trio.sleep(10)

    assert len(cachecast_network.poller) == 0
    assert cachecast_network.poller.sockets == {}


async def test_its_end_drops_all_connections(autojump_clock):
    async with open_test_broker() as broker:
        async with open_memory_network(broker) as network:
            client = await network.connect()
        assert (client.is_closed, client.close_code) == (True, None)
        assert broker.statistics().connections == 0


async def test_a_fault_of_ours_costs_the_connection_that_met_it(autojump_clock, cachecast_network):
    """Invariant 12 holds in memory as on the network: the poller's guard is the same."""
    bad, good = await cachecast_network.connect(), await cachecast_network.connect()
    connection = cachecast_network.broker.hubs[TEST_APP.id].connections[bad.socket_id]
    connection.wire = None

    with structlog.testing.capture_logs() as logs:
        bad.send(bad.subscription("x"))
    await good.subscribe("x")

    assert good.messages[-1].event.endswith("succeeded")
    assert [log["event"] for log in logs] == ["connection failed", "connection ended"]
    assert bad.is_closed


async def test_an_odd_key_and_id_are_encoded_as_clients_do(autojump_clock):
    app = msgspec.structs.replace(TEST_APP, id="i d", key="a+b=c é")
    config = BrokerConfig(apps=(app,))
    async with open_test_broker(config) as broker, open_memory_network(broker) as network:
        await network.connect()
        for method in ("GET", "HEAD"):
            assert (await network.request(method, "/channels")).status == 200
