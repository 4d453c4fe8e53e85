"""Ends that come at odd moments; the conversations are in tests/wire."""

from __future__ import annotations

import msgspec
import pytest
import trio
import trio.testing

from cachecast.config import BrokerConfig
from cachecast.errors import CapacityError
from cachecast.protocol.wire import JSON_WEBSOCKET
from cachecast.testing import TEST_APP, open_memory_network, open_test_broker
from tests.harness.lower import FakeSocket

KEY = TEST_APP.key


def _app(**fields):
    return msgspec.structs.replace(TEST_APP, **fields)


async def test_while_draining_nobody_is(autojump_clock, cachecast_broker):
    cachecast_broker.clients.is_draining = True
    with pytest.raises(CapacityError) as caught:
        cachecast_broker.clients.admit(KEY, "7", None, is_tls=False)

    assert caught.value.close_code == 4100


async def test_a_socket_that_breaks_at_the_first_frame_leaves_no_session(
    autojump_clock, cachecast_broker
):
    """The transport does not know the session yet, so the Broker itself has to end it."""
    broken = FakeSocket()
    broken.error = ConnectionResetError()

    connection = cachecast_broker.clients.open(TEST_APP, JSON_WEBSOCKET, broken)

    assert connection.outbox.is_gone
    assert cachecast_broker.statistics().connections == 0
    assert cachecast_broker.clients.n_sessions == 0
    assert len(cachecast_broker.heartbeat._wheel) == 0


async def test_ending_a_session_twice_or_thrice_is_harmless(autojump_clock, cachecast_broker):
    socket = FakeSocket()
    clients = cachecast_broker.clients
    connection = clients.open(TEST_APP, JSON_WEBSOCKET, socket)

    clients.disconnect(connection, 4009, "first")
    clients.disconnect(connection, 4100, "second")
    clients.disconnect_slow(connection)
    clients.close(connection)

    assert [opcode for opcode, _ in socket.frames] == [1, 1, 8]
    assert b"second" not in socket.taken
    assert clients.n_sessions == 0
    assert cachecast_broker.statistics().apps[0].slow_closes == 0


async def test_socket_ids_look_as_libraries_want_them_and_differ(autojump_clock, cachecast_broker):
    opened = [
        cachecast_broker.clients.open(TEST_APP, JSON_WEBSOCKET, FakeSocket()) for _ in range(500)
    ]

    assert len({one.session.socket_id for one in opened}) == 500
    for connection in opened:
        left, right = connection.session.socket_id.split(".")
        assert left.isdecimal()
        assert right.isdecimal()


async def test_refused_bad_messages_are_counted_as_null(
    autojump_clock, cachecast_broker, cachecast_client
):
    client = await cachecast_client()
    client.send("nonsense")
    client.send({"event": "nonsense"})

    assert cachecast_broker.statistics().apps[0].refusals == {"null": 2}


async def test_drain_closes_at_a_pace_and_waits_for_the_last_frames(autojump_clock):
    """Spread over the given time, so that they do not all come back at once."""
    async with open_test_broker() as broker, open_memory_network(broker) as network:
        clients = [await network.connect() for _ in range(200)]
        slow = clients[-1]
        slow.stop_reading()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(network.server.drain, 10.0)
            await trio.sleep(5)
            closed = sum(client.close_code == 4100 for client in clients)
            assert 90 <= closed <= 110
            await trio.sleep(4.9)
            assert broker.statistics().connections <= 3
        # One that does not read is waited for until the close timeout.
        assert slow.is_closed
        assert trio.current_time() <= 10 + broker.config.close_timeout_s + 2


async def test_who_was_in_a_thousand_channels_leaves_them_a_few_at_a_time(autojump_clock):
    """A hundred such clients that end at once held everybody else up for two seconds."""
    app = _app(sends_subscription_counts=True)
    config = BrokerConfig(apps=(app,))
    async with open_test_broker(config) as broker, open_memory_network(broker) as network:
        client, other = await network.connect(), await network.connect()
        for number in range(1_000):
            await client.subscribe(f"channel-{number}")
        await other.subscribe("channel-999")
        hub = broker.hubs[app.id]
        connection = hub.connections[client.socket_id]

        broker.clients.close(connection)

        assert client.socket_id not in hub.connections
        assert 900 < len(hub.channels) < 1_000
        await trio.testing.wait_all_tasks_blocked()
        assert list(hub.channels) == ["channel-999"]
        assert (await broker.channel(app.id, "channel-999")).subscription_count == 1
        assert not connection.session.subscriptions
