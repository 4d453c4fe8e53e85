"""The Broker's verbs, as an embedder uses them."""

from __future__ import annotations

import inspect
import time
from base64 import b64encode
from contextlib import suppress

import msgspec
import pytest
import trio
import trio.testing

from cachecast.broker import open_broker
from cachecast.config import BrokerConfig
from cachecast.errors import (
    BadRequestError,
    BrokerClosedError,
    BusError,
    ConfigError,
    LimitError,
)
from cachecast.protocol.encryption import decrypt, parse_key
from cachecast.protocol.wire import JSON_WEBSOCKET
from cachecast.testing import TEST_APP, open_memory_network, open_test_broker
from tests.harness.lower import FakeSocket
from tests.unit.bus.shared_bus import Mesh, SharedBus

APP = TEST_APP.id


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("nobody", "x", "e", ""), 404),
        ((APP, [], "e", ""), 400),
        ((APP, ["x"] * 101, "e", ""), 400),
        ((APP, "bad name", "e", ""), 400),
        ((APP, "x", "e" * 201, ""), 400),
        ((APP, "x", "pusher:x", ""), 400),
        ((APP, ["cache-x", "bad name"], "e", ""), 400),
    ],
)
async def test_what_is_wrong_with_a_publish_is_said_and_nothing_published(
    autojump_clock, cachecast_broker, arguments, status
):
    with pytest.raises(BadRequestError) as caught:
        await cachecast_broker.publish(*arguments)

    assert caught.value.http_status == status
    assert cachecast_broker.cache.n_entries() == 0


async def test_data_is_text_or_json_and_limited(autojump_clock, cachecast_broker):
    for data, text in (("as it is", "as it is"), ({"a": 1}, '{"a":1}'), (None, "null"), (7, "7")):
        await cachecast_broker.publish(APP, "cache-x", "e", data)
        assert (await cachecast_broker.read_cache(APP, "cache-x")).data == text
    with pytest.raises(LimitError):
        await cachecast_broker.publish(APP, "cache-x", "e", "é" * 5_121)
    for data in (object(), b"binary"):
        with pytest.raises(TypeError):
            await cachecast_broker.publish(APP, "cache-x", "e", data)
    with pytest.raises(BadRequestError, match="socket id"):
        await cachecast_broker.publish(APP, "cache-x", "e", "", socket_id="1")

    assert (await cachecast_broker.read_cache(APP, "cache-x")).data == "7"


async def test_a_batch_is_all_or_none_and_in_order(autojump_clock, cachecast_broker):
    async with cachecast_broker.subscribe(APP, "x") as events:
        with pytest.raises(BadRequestError):
            await cachecast_broker.publish_batch(APP, [("x", "a", 1), ("bad name", "b", 2)])
        await cachecast_broker.publish_batch(APP, [("x", "a", 1), ("y", "b", 2), ("x", "c", 3)])
        got = [await anext(events), await anext(events)]

    assert [(event.name, event.json()) for event in got] == [("a", 1), ("c", 3)]


async def test_an_app_of_another_cluster_is_unknown_here_and_stores_nothing():
    """Not over the wire and not from inside: what is published to it never leaves its region."""
    app = msgspec.structs.replace(TEST_APP, cluster="eu")
    async with open_broker(BrokerConfig(apps=(app,), cluster="us")) as broker:
        with pytest.raises(BadRequestError, match="Unknown app"):
            await broker.publish(APP, "cache-x", "e", "1")
        with pytest.raises(BadRequestError, match="Unknown app"):
            await broker.channels(APP)
        assert broker.cache.n_entries() == 0
    async with open_broker(BrokerConfig(apps=(app,), cluster="eu")) as broker:
        await broker.publish(APP, "cache-x", "e", "1")


async def test_reading_the_cache(autojump_clock, cachecast_broker):
    await cachecast_broker.publish(APP, "cache-x", "tick", {"a": 1})
    await trio.sleep(600)

    event = await cachecast_broker.read_cache(APP, "cache-x")

    assert (event.name, event.channel, event.data) == ("tick", "cache-x", '{"a":1}')
    assert (event.age_s, event.ttl_s) == (pytest.approx(600), pytest.approx(1_200))
    assert await cachecast_broker.read_cache(APP, "cache-y") is None
    with pytest.raises(BadRequestError):
        await cachecast_broker.read_cache(APP, "x")
    statistics = cachecast_broker.statistics().apps[0]
    assert (statistics.cache_hits, statistics.cache_misses) == (1, 1)


async def test_the_lifetime_that_is_left_is_never_zero(cachecast_config):
    """Value and remainder are of one instant: a clock that goes on between two looks at it."""
    now = 0.0

    def clock():
        nonlocal now
        now += 0.4
        return now

    async with open_broker(BrokerConfig(apps=(TEST_APP,), cache_ttl_s=2.0), clock=clock) as broker:
        broker.publish_nowait(APP, "cache-x", "e", "1")
        while (event := await broker.read_cache(APP, "cache-x")) is not None:
            assert event.ttl_s > 0


async def test_the_lifetime_that_is_left_is_never_more_than_the_lifetime(cachecast_config):
    """``(now + ttl) - now`` may be a hair more than ``ttl``, which rounded up is 1801 seconds."""
    now = 0.0
    async with open_broker(BrokerConfig(apps=(TEST_APP,)), clock=lambda: now) as broker:
        for step in range(1_000):
            now += step * 0.1
            broker.publish_nowait(APP, "cache-x", "e", "1")
            event = await broker.read_cache(APP, "cache-x")
            assert event is not None
            assert event.ttl_s <= 1_800


async def test_in_process_subscribers_get_the_cached_value_first_and_do_not_count(
    autojump_clock, cachecast_broker, cachecast_client
):
    """No presence, no channel_occupied; client events come to them too."""
    client = await cachecast_client()
    await cachecast_broker.publish(APP, "presence-cache-x", "tick", "1")
    async with cachecast_broker.subscribe(APP, "presence-cache-x") as events:
        assert await cachecast_broker.channels(APP) == {}
        assert (await anext(events)).data == "1"
        await client.subscribe("presence-cache-x", user_id=7)
        client.trigger("presence-cache-x", "client-hi", {"a": 1})
        event = await anext(events)
        assert (event.name, event.user_id, event.json()) == ("client-hi", 7, {"a": 1})
        await cachecast_broker.publish(APP, "presence-cache-x", "tick", "2")
        assert (await anext(events)).data == "2"

    with pytest.raises(StopAsyncIteration):
        await anext(events)
    assert cachecast_broker.delivery._subscribers == {}


async def test_a_subscription_in_process_may_be_cancelled_anywhere(
    autojump_clock, cachecast_broker
):
    for after in range(4):
        async with trio.open_nursery() as nursery:

            async def read():
                async with cachecast_broker.subscribe(APP, "cache-x") as events:
                    async for _ in events:
                        pass

            nursery.start_soon(read)
            for _ in range(after):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert cachecast_broker.delivery._subscribers == {}


async def test_the_end_of_the_broker_ends_iterations_outside_of_it(autojump_clock):
    """Whoever reads in a task that outlives the broker is told, instead of waiting for ever."""
    ended = []

    async def read(broker, task_status):
        async with broker.subscribe(APP, "x") as events:
            task_status.started()
            ended.append([event.data async for event in events])

    async with trio.open_nursery() as nursery, open_test_broker() as broker:
        await nursery.start(read, broker)
        await broker.publish(APP, "x", "e", "1")
        await trio.sleep(1)

    assert ended == [["1"]]


@pytest.mark.parametrize("fault", [None, ValueError])
async def test_the_end_of_the_broker_leaves_nothing(autojump_clock, fault):
    """No task, no open connection, no open bus, however its block ends."""
    bus = Mesh().join()
    tasks = trio.lowlevel.current_statistics().tasks_living
    clients = []
    with (
        pytest.RaisesGroup(fault, allow_unwrapped=True, flatten_subgroups=True)
        if fault
        else trio.CancelScope()
    ):
        async with open_test_broker(bus=bus) as broker, open_memory_network(broker) as network:
            for number in range(5):
                clients.append(await network.connect())
                await clients[-1].subscribe("presence-cache-x", user_id=number)
                await clients[-1].sign_in(f"u{number}")
            for client in clients[::2]:
                client.stop_reading()
            await broker.publish(APP, "presence-cache-x", "tick", "1")
            if fault is not None:
                raise fault

    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert all(client.is_closed for client in clients)
    assert bus.is_closed
    statistics = broker.statistics()
    assert (statistics.connections, statistics.backlogged_connections) == (0, 0)
    assert statistics.apps[0].channels == statistics.apps[0].users == 0


async def test_what_cannot_work_is_said_before_anything_starts(autojump_clock):
    class Unreachable(SharedBus):
        async def start(self, node, nursery):
            raise BusError("nobody there")

    with pytest.raises(ConfigError):
        async with open_broker(BrokerConfig()):
            raise AssertionError
    with pytest.RaisesGroup(BusError, allow_unwrapped=True, flatten_subgroups=True):
        async with open_broker(BrokerConfig(apps=(TEST_APP,)), bus=Unreachable(Mesh())):
            raise AssertionError


async def test_gauges_are_derived_from_the_state(
    autojump_clock, cachecast_broker, cachecast_network
):
    """Invariant 13: counted again here, from the hub and the outboxes themselves."""
    clients = [await cachecast_network.connect() for _ in range(7)]
    for number, client in enumerate(clients):
        for n in range(number):
            await client.subscribe(f"presence-{n}", user_id=number)
        await client.sign_in(f"u{number % 3}")
    clients[6].stop_reading(3)
    await cachecast_broker.publish(APP, ["presence-0", "presence-1", "cache-x"], "tick", "1")
    await trio.testing.wait_all_tasks_blocked()
    clients[5].drop()

    hub, statistics = cachecast_broker.hubs[APP], cachecast_broker.statistics()
    app = statistics.apps[0]
    sessions = [connection.session for connection in hub.connections.values()]
    assert app.connections == len(hub.connections) == statistics.connections == 6
    assert app.subscriptions == sum(len(s.subscriptions) for s in sessions) == 16
    assert app.channels == len({name for s in sessions for name in s.subscriptions}) == 6
    assert app.users == len({s.user.id for s in sessions}) == 3
    assert (
        statistics.outbox_bytes == sum(c.outbox.waiting_bytes for c in hub.connections.values()) > 0
    )
    assert (app.cache_entries, statistics.backlogged_connections) == (1, 1)
    assert cachecast_broker.clients.n_sessions == 6


async def test_channels_users_and_one_channel(autojump_clock, cachecast_broker, cachecast_client):
    client = await cachecast_client()
    for channel in ("x", "presence-x", "presence-y"):
        await client.subscribe(channel, user_id="1")

    assert set(await cachecast_broker.channels(APP)) == {"x", "presence-x", "presence-y"}
    assert set(await cachecast_broker.channels(APP, "presence-")) == {"presence-x", "presence-y"}
    assert (await cachecast_broker.channel(APP, "presence-x")).user_count == 1
    assert (await cachecast_broker.channel(APP, "presence-none")).user_count == 0
    assert (await cachecast_broker.channel(APP, "x")).user_count is None
    assert not (await cachecast_broker.channel(APP, "none")).occupied
    assert await cachecast_broker.users(APP, "presence-x") == ["1"]
    with pytest.raises(BadRequestError):
        await cachecast_broker.users(APP, "x")


async def test_what_an_authorization_endpoint_answers_is_accepted(
    autojump_clock, cachecast_broker, cachecast_client
):
    """For every kind that needs it; the master key is used and not kept."""
    client = await cachecast_client()
    master = b64encode(bytes(32)).decode()
    for channel in ("private-x", "presence-x", "private-encrypted-x"):
        granted = cachecast_broker.authorize_channel(
            APP, client.socket_id, channel, user_id="1", user_info={"n": 1},
            encryption_master_key=master,
        )  # fmt: skip
        secret = granted.pop("shared_secret", None)
        client.send({"event": "pusher:subscribe", "data": {"channel": channel, **granted}})
        assert client.messages[-1].event.endswith("succeeded"), client.messages[-1]
        if secret is not None:
            data = cachecast_broker.encrypt(master, channel, {"a": 1})
            assert decrypt(parse_key(secret), data) == '{"a":1}'
            data = cachecast_broker.encrypt(master, channel, "1.08")  # as publish takes it
            assert decrypt(parse_key(secret), data) == "1.08"
            with pytest.raises(ConfigError, match="base64"):
                cachecast_broker.encrypt("nonsense", channel, 1)
    user = cachecast_broker.authenticate_user(APP, client.socket_id, {"id": "u1"})
    client.send({"event": "pusher:signin", "data": user})

    assert client.messages[-1].event == "pusher:signin_success"
    with pytest.raises(BadRequestError):
        cachecast_broker.authorize_channel(APP, "nonsense", "private-x")
    with pytest.raises(BadRequestError):
        cachecast_broker.authorize_channel(APP, client.socket_id, "presence-x")
    with pytest.raises(BadRequestError):
        cachecast_broker.authorize_channel(APP, client.socket_id, "private-encrypted-x")
    with pytest.raises(ConfigError):
        cachecast_broker.authorize_channel(
            APP, client.socket_id, "private-encrypted-x", encryption_master_key="nonsense"
        )
    with pytest.raises(BadRequestError):
        cachecast_broker.authenticate_user(APP, client.socket_id, {"id": 1})


async def test_apps_share_nothing(autojump_clock):
    other = msgspec.structs.replace(TEST_APP, id="2", key="other", secret="other")
    async with (
        open_test_broker(BrokerConfig(apps=(TEST_APP, other))) as broker,
        open_memory_network(broker) as network,
    ):
        a, b = await network.connect(TEST_APP), await network.connect(other)
        for client in (a, b):
            await client.subscribe("presence-cache-x", user_id="1")
            await client.sign_in("u1")
        await broker.publish("2", "presence-cache-x", "tick", "1")
        a.trigger("presence-cache-x", "client-x", 1)
        assert await broker.terminate("2", "u1") == 1
        await trio.testing.wait_all_tasks_blocked()

        assert [m.event for m in a.messages[1:]] == [
            "pusher_internal:subscription_succeeded", "pusher:cache_miss", "pusher:signin_success"
        ]  # fmt: skip
        assert not [m for m in b.messages if m.event == "client-x"]
        assert await broker.read_cache(APP, "presence-cache-x") is None


def test_the_broker_counts_the_time_that_the_machine_sleeps():
    """Else a value would outlive its half hour by every suspend."""
    clock = inspect.signature(open_broker).parameters["clock"].default

    assert clock.args == (getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC),)
    assert clock() <= clock()


async def test_a_user_that_cannot_sign_in_cannot_be_sent_to(autojump_clock, cachecast_broker):
    """The rule is in the text, where publishing would only have named a channel."""
    with pytest.raises(BadRequestError, match="Invalid user id 'e:2': id has invalid characters"):
        await cachecast_broker.send_to_user(TEST_APP.id, "e:2", "e", 1)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a"),
        KeyboardInterrupt(),
        SystemExit(3),
        BaseExceptionGroup("", [KeyboardInterrupt()]),
        ExceptionGroup("", [KeyError("b")]),
    ],
)
async def test_what_the_body_raises_comes_out_as_it_is(autojump_clock, error):
    """No nursery of ours wraps it: ``except`` around the broker works as around any other code."""
    with pytest.raises(type(error)) as caught:
        async with open_test_broker():
            raise error

    assert caught.value is error


async def test_a_cancelled_body_is_cancelled_and_waits_for_nothing(autojump_clock):
    with trio.move_on_after(1) as scope:
        async with open_test_broker(), trio.open_nursery():
            await trio.sleep_forever()

    assert scope.cancelled_caught
    assert trio.current_time() == scope.deadline


# --- subscribers in this process


def _fill(broker, channel):
    """Publish until no more fits."""
    with suppress(trio.WouldBlock):
        while True:
            broker.publish_nowait(APP, channel, "t", "x" * 10_000)


@pytest.mark.parametrize("n_publishers", [1, 2, 20])
async def test_a_subscriber_that_does_nothing_else_misses_nothing(
    autojump_clock, cachecast_broker, n_publishers
):
    """However many tasks publish as fast as they can: they wait for it."""
    seen = []

    async def publish():
        for n in range(6_000 // n_publishers):
            await cachecast_broker.publish(APP, "plain", "t", n)

    async with (
        cachecast_broker.subscribe(APP, "plain") as events,
        trio.open_nursery() as nursery,
    ):
        for _ in range(n_publishers):
            nursery.start_soon(publish)
        async for event in events:
            seen.append(event.json())
            if len(seen) == 6_000:
                break

    assert sorted(seen) == sorted(list(range(6_000 // n_publishers)) * n_publishers)


async def test_publishers_wait_for_a_busy_subscriber_and_not_for_one_that_has_stopped(
    autojump_clock, cachecast_broker
):
    """For thirty seconds in which it takes nothing; then it hears of its gap, and others go on."""
    started = trio.current_time()
    async with (
        cachecast_broker.subscribe(APP, "plain") as stopped,
        cachecast_broker.subscribe(APP, "plain") as slow,
    ):
        taken = []

        async def take_slowly():
            async for event in slow:
                taken.append(event.json())
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_slowly)
            for n in range(500):
                cachecast_broker.publish_nowait(APP, "plain", "t", n)
            with pytest.raises(trio.WouldBlock):
                cachecast_broker.publish_nowait(APP, "plain", "t", 500)
            await cachecast_broker.publish(APP, "other", "t", "nobody is in the way here")
            assert trio.current_time() == started
            for n in range(500, 2_000):
                await cachecast_broker.publish(APP, "plain", "t", n)
            assert 30 <= trio.current_time() - started < 60
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
        assert taken == list(range(2_000))
        assert [(await anext(stopped)).json() for _ in range(500)] == list(range(500))
        with pytest.raises(LimitError):
            await anext(stopped)


async def test_a_subscriber_of_a_cache_channel_keeps_nobody_waiting(
    autojump_clock, cachecast_broker
):
    """The newest value is all that waits."""
    async with cachecast_broker.subscribe(APP, "cache-x") as events:
        for n in range(5_000):
            cachecast_broker.publish_nowait(APP, "cache-x", "t", n)
        assert (await anext(events)).json() == 4_999


# --- the end


async def test_whatever_is_asked_of_a_broker_that_has_ended_says_so(autojump_clock):
    """Nothing is taken as if it would be delivered."""
    async with open_test_broker() as broker:
        pass

    async def hook(app_id, event):
        raise AssertionError

    for ask in (
        lambda: broker.publish(APP, "cache-x", "t", 1),
        lambda: broker.publish_batch(APP, [("x", "t", 1)]),
        lambda: broker.send_to_user(APP, "u", "t", 1),
        lambda: broker.subscribe(APP, "x").__aenter__(),
        lambda: broker.terminate(APP, "u"),
        lambda: broker.channels(APP),
        lambda: broker.channel(APP, "x"),
        lambda: broker.users(APP, "presence-x"),
        lambda: broker.read_cache(APP, "cache-x"),
    ):
        with pytest.raises(BrokerClosedError, match="has ended"):
            await ask()
    for ask in (
        lambda: broker.publish_nowait(APP, "x", "t", 1),
        lambda: broker.authorize_channel(APP, "1.1", "private-x"),
        lambda: broker.authenticate_user(APP, "1.1", {"id": "u"}),
        lambda: broker.on("cache_miss", hook),
    ):
        with pytest.raises(BrokerClosedError, match="has ended"):
            ask()
    assert broker.statistics().is_draining


async def test_those_who_wait_for_room_when_the_broker_ends_are_told(autojump_clock):
    """Whatever they wait for: the fan-out or a subscriber."""
    ended = []

    async def publish(broker, channel):
        with pytest.raises(BrokerClosedError):
            await broker.publish(APP, channel, "t", "late")
        ended.append(channel)

    async def subscribe(broker, task_status=trio.TASK_STATUS_IGNORED):
        async with broker.subscribe(APP, "plain"):
            task_status.started()
            await trio.sleep_forever()

    config = BrokerConfig(apps=(TEST_APP,), max_undelivered_bytes=100_000)
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with open_test_broker(config) as broker:
                # Neither leaves before the broker ends, which would make room.
                await nursery.start(subscribe, broker)
                for _ in range(300):
                    listener = broker.clients.open(TEST_APP, JSON_WEBSOCKET, FakeSocket())
                    broker.clients.receive(
                        listener, b'{"event":"pusher:subscribe","data":{"channel":"busy"}}'
                    )
                for channel in ("plain", "busy"):
                    _fill(broker, channel)
                    nursery.start_soon(publish, broker, channel)
                await trio.lowlevel.checkpoint()
                assert ended == []
                scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert sorted(ended) == ["busy", "plain"]


async def test_an_attach_that_outlives_its_broker_gives_no_subscriber(autojump_clock):
    async with trio.open_nursery() as nursery:

        async def subscribe(broker):
            with pytest.raises(BrokerClosedError):
                async with broker.subscribe(APP, "x"):
                    raise AssertionError

        async with open_test_broker(bus=Mesh(delay_s=5.0).join()) as broker:
            nursery.start_soon(subscribe, broker)
            await trio.sleep(1)
