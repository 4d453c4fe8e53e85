"""What every Bus promises, and what the Broker makes of one that is slow."""

from __future__ import annotations

from math import inf

import msgspec
import pytest
import trio
import trio.testing
from cachecast.bus.base import Envelope

from cachecast.bus.local import LocalBus
from cachecast.channels.waiting import PACE_BYTES
from cachecast.config import BrokerConfig
from cachecast.errors import BusError
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.messages import Publication
from cachecast.testing import TEST_APP, open_memory_network, open_test_broker
from tests.unit.bus.slow_bus import SlowBus


def _envelope(n: int, channel: str = "cache-x", *, origin: str = "here") -> Envelope:
    return Envelope(
        TEST_APP.id,
        parse_channel_name(channel),
        Publication("tick", channel, str(n)),
        True,
        origin,
        n,
    )


# --- the conformance suite


@pytest.fixture(params=[LocalBus, SlowBus])
def bus(request):
    return request.param()


async def test_what_is_published_is_delivered_to_this_node_too_in_order(autojump_clock, bus):
    got = []
    await bus.start(got.append)
    await bus.attach(TEST_APP.id, "cache-x")

    for n in range(5):
        bus.publish(_envelope(n))
    await trio.testing.wait_all_tasks_blocked()

    assert [envelope.version for envelope in got] == list(range(5))


async def test_an_attached_channel_stays_so_and_attaching_again_is_harmless(autojump_clock, bus):
    await bus.start(lambda _: None)
    for _ in range(2):
        await bus.attach(TEST_APP.id, "cache-x")
        assert bus.is_attached(TEST_APP.id, "cache-x")


async def test_attaching_may_be_cancelled_and_repeated(autojump_clock, bus):
    await bus.start(lambda _: None)
    with trio.CancelScope() as scope:
        scope.cancel()
        await bus.attach(TEST_APP.id, "cache-x")
    await bus.attach(TEST_APP.id, "cache-x")

    assert bus.is_attached(TEST_APP.id, "cache-x")


async def test_nothing_is_delivered_before_the_start_or_after_the_close(autojump_clock, bus):
    got = []
    bus.publish(_envelope(1))
    await bus.start(got.append)
    await bus.aclose()
    bus.publish(_envelope(2))

    assert got == []


# --- a Broker on a slow one


@pytest.fixture
def slow():
    return SlowBus()


@pytest.fixture
async def network(slow):
    async with open_test_broker(bus=slow) as broker, open_memory_network(broker) as network:
        yield network


async def test_a_subscription_is_answered_when_the_channel_is_attached(
    autojump_clock, slow, network
):
    """With the last value from upstream, which has come before it."""
    slow.upstream[TEST_APP.id, "cache-x"] = _envelope(7, origin="elsewhere")
    client = await network.connect()
    client.send(client.subscription("cache-x"))
    await trio.sleep(0.5)
    assert len(client.messages) == 1

    await trio.sleep(1)

    assert [m.event for m in client.messages[1:]] == [
        "pusher_internal:subscription_succeeded",
        "tick",
    ]
    second = await network.connect()
    second.send(second.subscription("cache-x"))
    assert second.messages[-1].data == "7", "attached already, so at once"


@pytest.mark.parametrize("error", [BusError("down"), None])
async def test_a_channel_that_cannot_be_attached_is_refused_with_both_frames(
    autojump_clock, slow, network, error
):
    slow.error = error
    slow.attach_s = 1.0 if error else inf
    client = await network.connect()
    client.send(client.subscription("cache-x"))
    await trio.sleep(6)

    text = "The other nodes cannot be reached, try again"
    assert [m.json() for m in client.messages[1:]] == [
        {"code": None, "message": text},
        {"type": "AuthError", "error": text, "status": 503},
    ]
    assert network.broker.channels(TEST_APP.id) == {}
    assert slow.attaching == []
    slow.error, slow.attach_s = None, 0.1
    await client.subscribe("cache-x")


@pytest.mark.parametrize("how", ["close", "drop", "terminate"])
async def test_a_client_that_left_meanwhile_leaves_nothing_behind(
    autojump_clock, slow, network, how
):
    client = await network.connect()
    await client.sign_in("u1")
    client.send(client.subscription("presence-x", user_id="1"))
    await trio.sleep(0.5)
    if how == "terminate":
        network.broker.terminate(TEST_APP.id, "u1")
    else:
        getattr(client, how)()
    await trio.sleep(2)

    app = network.broker.statistics().apps[0]
    assert (app.connections, app.subscriptions, app.channels) == (0, 0, 0)
    assert network.broker.users(TEST_APP.id, "presence-x") == []


@pytest.mark.parametrize(
    ("channels", "n_succeeded", "refusals"),
    [
        (("a", "a"), 1, ["Existing subscription to channel a"]),
        (("a", "b", "c"), 2, ["Too many subscriptions: this connection may have 2 channels"]),
    ],
)
async def test_what_was_checked_before_the_wait_is_checked_again_after_it(
    autojump_clock, slow, channels, n_succeeded, refusals
):
    """Trio wakes those who waited in an order of its own, so any of them may be the last."""
    app = msgspec.structs.replace(TEST_APP, max_channels_per_connection=2)
    async with (
        open_test_broker(BrokerConfig(apps=(app,)), bus=slow) as broker,
        open_memory_network(broker) as network,
    ):
        client = await network.connect()
        for channel in channels:
            client.send(client.subscription(channel))
        await trio.sleep(2)

        succeeded = [m.channel for m in client.messages if m.event.endswith("succeeded")]
        assert len(succeeded) == n_succeeded
        assert len({*succeeded}) == n_succeeded
        assert broker.statistics().apps[0].subscriptions == n_succeeded
        errors = [m.json()["message"] for m in client.messages if m.event == "pusher:error"]
        assert errors == refusals


async def test_values_published_while_a_channel_is_attached_are_seen_once_and_in_order(
    autojump_clock, slow, network
):
    client = await network.connect()
    client.send(client.subscription("cache-x"))
    for n in range(20):
        await network.broker.publish(TEST_APP.id, "cache-x", "tick", str(n))
        await trio.sleep(0.1)

    seen = [int(m.data) for m in client.messages if m.event == "tick"]
    assert seen == list(range(seen[0], 20))
    assert 8 <= seen[0] <= 11


async def test_an_in_process_subscription_attaches_its_channel_too(autojump_clock, slow):
    slow.upstream[TEST_APP.id, "cache-x"] = _envelope(7, origin="elsewhere")
    async with (
        open_test_broker(bus=slow) as broker,
        broker.subscribe(TEST_APP.id, "cache-x") as events,
    ):
        assert (await anext(events)).data == "7"

    assert slow.is_closed


async def test_the_end_of_the_broker_ends_those_who_wait(autojump_clock, slow):
    slow.attach_s = inf
    async with open_test_broker(bus=slow) as broker, open_memory_network(broker) as network:
        client = await network.connect()
        client.send(client.subscription("cache-x"))
        await trio.sleep(1)
        assert slow.attaching == ["cache-x"]

    assert slow.attaching == []
    assert client.is_closed


async def test_a_client_whose_channels_are_attached_all_at_once_is_paced_all_the_same(
    autojump_clock,
):
    """Its transport reads on while the bus works; the answers wait for its reading."""
    async with (
        open_test_broker(BrokerConfig(apps=(TEST_APP,)), bus=SlowBus()) as broker,
        open_memory_network(broker) as network,
    ):
        for number in range(100):
            await broker.publish(TEST_APP.id, f"cache-{number}", "tick", "x" * 10_000)
        client = await network.connect()
        client.stop_reading()
        for number in range(100):
            client.send(client.subscription(f"cache-{number}"))
        await trio.sleep(5)
        assert PACE_BYTES < broker.statistics().outbox_bytes < 2 * PACE_BYTES
        for _ in range(100):
            client.read(20_000)
            await trio.sleep(1)

        assert len([m for m in client.messages if m.event == "tick"]) == 100
        client.drop()
