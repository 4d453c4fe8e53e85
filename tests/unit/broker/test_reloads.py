"""Another configuration for a broker that runs, and who notices."""

from __future__ import annotations

import msgspec
import pytest
import trio
import trio.testing

from cachecast.apps import App, KeyPair, Webhook
from cachecast.broker import open_broker, reloads
from cachecast.config import BrokerConfig, BusConfig
from cachecast.errors import (
    BadRequestError,
    BrokerClosedError,
    ConfigError,
    LimitError,
    RefusedError,
)
from cachecast.testing import (
    TEST_APP,
    ClientClosedError,
    open_memory_network,
    open_test_broker,
)
from tests.harness.cluster import open_cluster

APP = TEST_APP.id
OTHER = App(id="2", key="other-key", secret="other-secret")


def changed(app: App = TEST_APP, **fields: object) -> App:
    return msgspec.structs.replace(app, **fields)


def serving(*apps: App, **fields: object) -> BrokerConfig:
    return BrokerConfig(apps=apps, **fields)  # type: ignore[arg-type]


async def closed_with(client) -> int | None:
    with trio.fail_after(30):
        return await client.wait_closed()


async def refused_with(network, app: App = TEST_APP) -> int | None:
    """Code with which a newcomer is closed."""
    with pytest.raises(ClientClosedError) as caught:
        await network.connect(app)
    return caught.value.code


async def test_an_app_that_is_added_is_served_at_once(
    autojump_clock, cachecast_broker, cachecast_network
):
    changes = await cachecast_broker.reload(serving(TEST_APP, OTHER))

    assert changes.made == ("app 2: added",)
    client = await cachecast_network.connect(OTHER)
    await client.subscribe("cache-x")
    await cachecast_broker.publish("2", "cache-x", "e", "1")
    while (message := await client.receive()).event != "e":
        pass
    assert message.data == "1"
    assert {app.app_id for app in cachecast_broker.statistics().apps} == {"1", "2"}


async def test_what_an_app_has_that_stays_stays(
    autojump_clock, cachecast_broker, cachecast_network
):
    """Connections, subscriptions, members, users, values; while another app comes and goes."""
    await cachecast_broker.publish(APP, "cache-x", "e", "kept")
    client = await cachecast_network.connect()
    await client.sign_in("7")
    await client.subscribe("presence-room")
    await client.subscribe("cache-x")
    hub = cachecast_broker.hub(APP)
    for config in (
        serving(TEST_APP, OTHER),
        serving(changed(max_event_bytes=2_000), OTHER),
        serving(TEST_APP),
        serving(TEST_APP, max_connections=1, activity_timeout_s=20.0),
    ):
        await cachecast_broker.reload(config)
        assert cachecast_broker.hub(APP) is hub
        assert (await cachecast_broker.read_cache(APP, "cache-x")).data == "kept"
        assert await cachecast_broker.users(APP, "presence-room") == ["7"]
        assert await cachecast_broker.terminate(APP, "8") == 0
    await cachecast_broker.publish(APP, "cache-x", "e", "next")
    while (message := await client.receive()).data != "next":
        assert not message.event.startswith("pusher:error")
    with pytest.raises(BadRequestError):
        await cachecast_broker.publish("2", "x", "e", "")


async def test_clients_of_an_app_that_is_removed_are_closed_with_4001(
    autojump_clock, cachecast_broker, cachecast_network
):
    """Also many of them, in many channels; what is held of the app is free then."""
    await cachecast_broker.reload(serving(TEST_APP, OTHER))
    mine, others = await cachecast_network.connect(), []
    for _ in range(120):
        client = await cachecast_network.connect(OTHER)
        others.append(client)
    for number in range(70):
        await others[0].subscribe(f"room-{number}")
        await cachecast_broker.publish("2", f"cache-{number}", "e", "1")
    async with cachecast_broker.subscribe("2", "cache-1") as events:
        await anext(events)
        changes = await cachecast_broker.reload(serving(TEST_APP))
        with pytest.raises(StopAsyncIteration):
            await anext(events)

    assert changes.made == ("app 2: removed, its clients are closed with 4001",)
    assert {await closed_with(client) for client in others} == {4001}
    assert cachecast_broker.cache.n_entries() == 0
    assert cachecast_broker.clients.n_sessions == 1
    assert cachecast_broker.directory.known.keys() == cachecast_broker.directory.hubs.keys()
    with pytest.raises(BadRequestError, match="Unknown app"):
        await cachecast_broker.publish("2", "x", "e", "")
    response = await cachecast_network.request("GET", "/apps/2/channels", app=OTHER)
    assert response.status == 404
    assert await refused_with(cachecast_network, OTHER) == 4001
    await mine.subscribe("x")


async def test_an_app_that_comes_back_begins_anew(
    autojump_clock, cachecast_broker, cachecast_network
):
    """Its old values and the memory of its misses are gone."""
    told = []

    async def note(app_id, event):
        told.append((app_id, event.channel))

    cachecast_broker.on("cache_miss", note)
    for _ in range(2):
        await cachecast_broker.reload(serving(TEST_APP, OTHER))
        client = await cachecast_network.connect(OTHER)
        await client.subscribe("cache-x")
        assert (await client.receive()).event == "pusher:cache_miss"
        await cachecast_broker.publish("2", "cache-y", "e", "1")
        await cachecast_broker.reload(serving(TEST_APP))
        await closed_with(client)
    await trio.testing.wait_all_tasks_blocked()
    assert told == [("2", "cache-x")] * 2


async def test_clients_of_an_app_that_is_disabled_are_closed_with_4003(
    autojump_clock, cachecast_broker, cachecast_network
):
    """And let in again once it is enabled, with the values that were there."""
    client = await cachecast_network.connect()
    await cachecast_broker.publish(APP, "cache-x", "e", "1")
    changes = await cachecast_broker.reload(serving(changed(is_enabled=False)))

    assert "app 1: its clients are closed with 4003" in changes.made
    assert await closed_with(client) == 4003
    assert await refused_with(cachecast_network) == 4003
    response = await cachecast_network.request("GET", "/apps/1/channels")
    assert response.status == 403
    await cachecast_broker.reload(serving(TEST_APP))
    client = await cachecast_network.connect()
    await client.subscribe("cache-x")
    assert (await client.receive()).data == "1"


async def test_clients_of_an_app_that_moves_to_another_cluster_are_closed_with_4001(
    autojump_clock, cachecast_broker, cachecast_network
):
    client = await cachecast_network.connect()
    await cachecast_broker.reload(serving(changed(cluster="eu")))
    assert await closed_with(client) == 4001

    await cachecast_broker.reload(serving(changed(cluster="eu"), cluster="eu"))
    client = await cachecast_network.connect()
    await cachecast_broker.reload(serving(changed(cluster="eu"), cluster="us"))
    assert await closed_with(client) == 4001


async def test_a_key_is_rotated_without_a_client_noticing(
    autojump_clock, cachecast_broker, cachecast_network
):
    """The new one beside the old one, then instead of it."""
    client = await cachecast_network.connect()
    new = KeyPair(key="new-key", secret="new-secret")
    both = changed(keys=(new,))
    only = changed(key="", secret="", keys=(new,))
    by_new = App(id="1", key=new.key, secret=new.secret)

    assert (await cachecast_broker.reload(serving(both))).made == ("app 1: key new-key added",)
    for app in (TEST_APP, by_new):
        assert (await cachecast_network.request("GET", "/apps/1/channels", app=app)).status == 200
    changes = await cachecast_broker.reload(serving(only))
    assert changes.made == ("app 1: key test-key removed",)
    response = await cachecast_network.request("GET", "/apps/1/channels", app=TEST_APP)
    assert response.status == 400  # an unknown key
    assert await refused_with(cachecast_network, TEST_APP) == 4001
    await cachecast_network.connect(by_new)
    # Who is connected stays; what it signs anew it signs with a key that there is.
    await client.subscribe("plain")
    with pytest.raises(Exception, match="private-x"):
        await client.subscribe("private-x")


async def test_those_who_are_connected_go_by_new_limits(
    autojump_clock, cachecast_broker, cachecast_network
):
    client = await cachecast_network.connect()
    await client.subscribe("one")
    await cachecast_broker.reload(serving(changed(max_channels_per_connection=2)))
    await client.subscribe("two")
    with pytest.raises(Exception, match="2 channels"):
        await client.subscribe("three")
    await cachecast_broker.reload(
        serving(changed(messages_per_s=1.0, max_channels_per_connection=1))
    )
    for _ in range(3_000):
        client.send({"event": "pusher:ping", "data": {}})
    assert await closed_with(client) == 4009


async def test_a_publish_rate_changes(autojump_clock, cachecast_broker):
    await cachecast_broker.reload(serving(changed(publishes_per_s=1.0)))
    for _ in range(100):
        await cachecast_broker.publish(APP, "x", "e", "")
    with pytest.raises(LimitError):
        await cachecast_broker.publish(APP, "x", "e", "")
    # What does not concern it leaves the bucket as empty as it is.
    await cachecast_broker.reload(serving(changed(publishes_per_s=1.0, max_event_bytes=100)))
    with pytest.raises(LimitError):
        await cachecast_broker.publish(APP, "x", "e", "")
    await cachecast_broker.reload(serving(TEST_APP))
    for _ in range(200):
        await cachecast_broker.publish(APP, "x", "e", "")


async def test_a_client_that_owed_a_signature_owes_none_any_more(
    autojump_clock, cachecast_broker, cachecast_network
):
    strict = changed(requires_authorization=True, authorization_timeout_s=10.0)
    before = await cachecast_network.connect()
    await cachecast_broker.reload(serving(strict))
    after = await cachecast_network.connect()
    late = await cachecast_network.connect()
    await trio.sleep(5)
    await cachecast_broker.reload(serving(TEST_APP))
    await trio.sleep(20)
    await cachecast_broker.reload(serving(strict))
    for client in (before, after, late):  # all were let in without, and stay
        await client.subscribe("x")


async def test_a_lower_ceiling_frees_the_oldest_in_steps(
    autojump_clock, cachecast_broker, monkeypatch
):
    """And no publish in between has to free more than its own."""
    monkeypatch.setattr(reloads, "VALUES_PER_STEP", 10)
    await cachecast_broker.reload(serving(TEST_APP, OTHER))
    for number in range(100):
        await cachecast_broker.publish(APP, f"cache-{number}", "e", "1")
        await cachecast_broker.publish("2", f"cache-{number}", "e", "1")
    await cachecast_broker.reload(serving(changed(max_cache_entries=40), OTHER))
    cache = cachecast_broker.cache
    assert (cache.n_entries(APP), cache.n_entries("2")) == (40, 100)
    assert await cachecast_broker.read_cache(APP, "cache-59") is None
    assert await cachecast_broker.read_cache(APP, "cache-60") is not None
    await cachecast_broker.reload(
        serving(changed(max_cache_entries=40), OTHER, max_cache_entries=60)
    )
    assert (cache.n_entries(APP), cache.n_entries("2")) == (30, 30)
    await cachecast_broker.publish("2", "cache-new", "e", "1")
    assert cache.n_entries() == 60


async def test_values_keep_the_life_with_which_they_were_published(
    autojump_clock, cachecast_broker
):
    await cachecast_broker.publish(APP, "cache-old", "e", "1")
    await cachecast_broker.reload(serving(changed(cache_ttl_s=60.0)))
    await cachecast_broker.publish(APP, "cache-new", "e", "1")
    await trio.sleep(61)
    assert await cachecast_broker.read_cache(APP, "cache-new") is None
    assert await cachecast_broker.read_cache(APP, "cache-old") is not None
    assert cachecast_broker.cache.n_entries() == 1
    await trio.sleep(1_740)
    assert cachecast_broker.cache.n_entries() == 0


async def test_a_faulty_configuration_changes_nothing(
    autojump_clock, cachecast_broker, cachecast_network
):
    client = await cachecast_network.connect()
    before = cachecast_broker.config
    for config in (
        serving(),
        serving(TEST_APP, TEST_APP),
        serving(TEST_APP, OTHER, cache_ttl_s=3_600.0),
        serving(OTHER, changed(key="", secret="")),
    ):
        with pytest.raises(ConfigError):
            await cachecast_broker.reload(config)
        assert cachecast_broker.config is before
    await client.subscribe("x")


async def test_the_same_configuration_changes_nothing_and_says_so(
    autojump_clock, cachecast_broker, cachecast_network
):
    client = await cachecast_network.connect()
    changes = await cachecast_broker.reload(serving(TEST_APP))
    assert (changes.made, changes.fixed) == ((), ())
    await client.subscribe("x")


async def test_what_cannot_change_is_named_and_stays(autojump_clock, cachecast_broker):
    bus = BusConfig(urls=("valkey://:password@engine",))
    changes = await cachecast_broker.reload(serving(TEST_APP, bus=bus, max_connections=5))
    assert changes.made == ("max_connections: none -> 5",)
    assert changes.fixed == ("bus.urls: changed",)
    assert cachecast_broker.config.bus == BusConfig()


async def test_two_at_once_happen_one_after_the_other(autojump_clock, cachecast_broker):
    async with trio.open_nursery() as nursery:
        for app in (OTHER, changed(OTHER, id="3", key="third")):
            nursery.start_soon(cachecast_broker.reload, serving(TEST_APP, app))
    assert set(cachecast_broker.hubs) == {app.id for app in cachecast_broker.config.apps}
    assert cachecast_broker.directory.known.keys() == cachecast_broker.directory.hubs.keys()


async def test_a_caller_who_goes_leaves_nothing_half_done(
    autojump_clock, cachecast_broker, cachecast_network
):
    await cachecast_broker.reload(serving(TEST_APP, OTHER))
    clients = [await cachecast_network.connect(OTHER) for _ in range(200)]
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cachecast_broker.reload, serving(TEST_APP))
            while "2" in cachecast_broker.hubs:
                await trio.lowlevel.checkpoint()
            scope.cancel()
    await trio.sleep(1)
    assert {await closed_with(client) for client in clients} == {4001}
    assert set(cachecast_broker.hubs) == {"1"}
    assert cachecast_broker.directory.known.keys() == cachecast_broker.directory.hubs.keys()
    await cachecast_broker.reload(serving(TEST_APP, OTHER))


async def test_a_broker_that_has_ended_takes_none():
    async with open_broker(serving(TEST_APP)) as broker:
        pass
    with pytest.raises(BrokerClosedError):
        await broker.reload(serving(TEST_APP, OTHER))


async def test_nobody_is_closed_and_nothing_lost_under_load(autojump_clock):
    """Publishes go on through twenty reloads, and each of the subscribers gets all of them."""
    async with (
        open_test_broker(serving(TEST_APP, OTHER)) as broker,
        open_memory_network(broker) as network,
    ):
        clients = [await network.connect() for _ in range(20)]
        for client in clients:
            await client.subscribe("room")
            await client.subscribe("cache-room")

        async def publish() -> None:
            for number in range(1_000):
                await broker.publish(APP, ["room", "cache-room"], "e", str(number))
                if not number % 10:
                    await trio.sleep(0.001)

        async def reload() -> None:
            for number in range(20):
                apps = (changed(max_event_bytes=5_000 + number),) + (OTHER,) * (number % 2)
                await broker.reload(serving(*apps))
                await trio.sleep(0.005)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            nursery.start_soon(reload)
        await broker.fanout.wait_idle()
        for client in clients:
            got = []
            while len(got) < 1_000:
                message = await client.receive()
                if message.channel == "room" and message.event == "e":
                    got.append(int(message.data))
            assert got == list(range(1_000))


async def test_what_waits_for_room_when_its_app_goes_is_let_go(autojump_clock):
    """A publisher waits at a slow subscriber in this process; the app is removed meanwhile."""
    async with (
        open_test_broker(serving(TEST_APP, OTHER)) as broker,
        broker.subscribe("2", "x"),
        trio.open_nursery() as nursery,
    ):
        for _ in range(500):
            broker.publish_nowait("2", "x", "e", "")
        nursery.start_soon(broker.publish, "2", "x", "e", "")
        await trio.testing.wait_all_tasks_blocked()
        await broker.reload(serving(TEST_APP))


async def test_with_other_nodes_each_is_told_for_itself(autojump_clock):
    """Clients here are gone from the members that other nodes see; the bus knows the new apps."""
    async with open_cluster(2) as cluster:
        one, two = cluster.networks
        both = serving(TEST_APP, OTHER)
        for network in (one, two):
            await network.broker.reload(both)
        assert set(cluster.buses[0].terms) == {"1", "2"}
        here, there = await one.connect(OTHER), await two.connect(OTHER)
        await here.subscribe("presence-room", user_id="7")
        await there.subscribe("presence-room", user_id="8")
        await here.sign_in("7")
        with trio.fail_after(60):
            await one.broker.reload(serving(TEST_APP))
        assert await closed_with(here) == 4001
        while (await there.receive()).event != "pusher_internal:member_removed":
            pass
        assert await two.broker.users("2", "presence-room") == ["8"]
        await two.broker.publish("2", "presence-room", "e", "still")
        assert (await there.receive()).event == "e"


async def test_an_app_is_removed_while_others_do_not_answer(autojump_clock):
    """Who is about to join is let go, and what was asked for it is taken back."""
    async with open_cluster(2, delay_s=3.0) as cluster:
        network = cluster.networks[0]
        await network.broker.reload(serving(TEST_APP, OTHER))
        client = await network.connect(OTHER)
        client.send({"event": "pusher:subscribe", "data": {"channel": "room"}})
        await trio.testing.wait_all_tasks_blocked()
        await network.broker.reload(serving(TEST_APP))
        assert await closed_with(client) == 4001
        await trio.sleep(30)
        assert not cluster.buses[0].held


async def test_newcomers_are_judged_by_the_whole_of_it(
    autojump_clock, cachecast_broker, cachecast_network
):
    """Between switch and settling there is nobody who is neither: it is one step."""
    clients = cachecast_broker.clients
    await cachecast_broker.reload(serving(changed(max_connections=1), requires_protocol=True))
    with pytest.raises(RefusedError) as caught:
        clients.admit(TEST_APP.key, None, None, is_tls=False)
    assert caught.value.close_code == 4008
    await cachecast_network.connect()
    with pytest.raises(RefusedError) as caught:
        clients.admit(TEST_APP.key, "7", None, is_tls=False)
    assert caught.value.close_code == 4004


async def test_webhooks_change_with_the_app(autojump_clock, cachecast_broker):
    """Nothing is opened before there is any; those of a removed app are known no more."""
    hook = Webhook(url="http://127.0.0.1:9/")
    await cachecast_broker.reload(serving(changed(webhooks=(hook,))))
    assert cachecast_broker.webhooks.wants(APP, "cache_miss")
    await cachecast_broker.reload(serving(changed(webhooks=(hook,)), OTHER))
    await cachecast_broker.reload(serving(OTHER))
    assert not cachecast_broker.webhooks.wants(APP, "cache_miss")


async def test_a_broker_that_ends_meanwhile_leaves_nobody_waiting(autojump_clock):
    """Clients of a removed app hang on at other nodes, and the block ends before they are out."""
    async with open_cluster(2, delay_s=3.0) as cluster, trio.open_nursery() as nursery:
        mesh = cluster.mesh
        done = []

        async def reload(broker):
            with pytest.raises(BrokerClosedError):
                await broker.reload(serving(TEST_APP))
            done.append(True)

        config = serving(TEST_APP, OTHER)
        async with (
            open_test_broker(config, bus=mesh.join()) as broker,
            open_memory_network(broker) as network,
        ):
            client = await network.connect(OTHER)
            client.send({"event": "pusher:subscribe", "data": {"channel": "room"}})
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(reload, broker)
            await trio.testing.wait_all_tasks_blocked()
            assert not done
    assert done


async def test_webhooks_of_a_removed_app_hear_of_its_last_departures(autojump_clock):
    """Which the cluster tells its courier, this node, only after they have left."""
    hook = Webhook(url="http://127.0.0.1:9/", events=("channel_vacated",))
    async with open_cluster(1, delay_s=0.2) as cluster:
        network, broker = cluster.networks[0], cluster.brokers[0]
        told = []
        notify = broker.webhooks.notify

        def note(app_id, event, on_done=None):
            told.append((app_id, event.name, broker.webhooks.wants(app_id, event.name)))
            notify(app_id, event, on_done)

        broker.upcalls._webhooks.notify = note
        cluster.mesh.courier = cluster.buses[0]
        await broker.reload(serving(TEST_APP, changed(OTHER, webhooks=(hook,))))
        client = await network.connect(OTHER)
        await client.subscribe("room")
        await broker.reload(serving(TEST_APP))
        assert ("2", "channel_vacated", True) in told
        assert not broker.webhooks.wants("2", "channel_vacated")


async def test_connections_that_begin_from_then_on_have_the_nodes_limits(
    autojump_clock, cachecast_broker, cachecast_network
):
    await cachecast_broker.reload(serving(TEST_APP, max_headers=3))
    headers = {f"X-{number}": "1" for number in range(5)}
    response = await cachecast_network.request("GET", "/apps/1/channels", headers=headers)
    assert response.status == 431


async def test_couriers_bring_what_the_last_departures_of_a_removed_app_tell(autojump_clock):
    """They ask the engine now and then, so they are asked to go on for a moment."""
    hook = Webhook(url="http://127.0.0.1:9/", events=("channel_vacated",))
    async with open_cluster(1, over="engine") as cluster:
        network, broker = cluster.networks[0], cluster.brokers[0]
        told = []

        def note(app_id, event, on_done):
            told.append((app_id, event.name, broker.webhooks.wants(app_id, "channel_vacated")))
            on_done()

        broker.upcalls._webhooks.notify = note
        await broker.reload(serving(TEST_APP, changed(OTHER, webhooks=(hook,))))
        await trio.sleep(2)
        client = await network.connect(OTHER)
        await client.subscribe("room")
        await trio.sleep(1)
        await broker.reload(serving(TEST_APP))
        assert told[-1] == ("2", "channel_vacated", True)


async def test_the_nodes_limits_reach_each_part_that_holds_one(autojump_clock):
    """Silence, what waits for slow clients, what waits for the fan-out, the slow client itself."""
    async with (
        open_test_broker(serving(TEST_APP)) as broker,
        open_memory_network(broker) as network,
    ):
        client, slow = await network.connect(), await network.connect()
        small = changed(max_pending_bytes=20_000, max_event_bytes=1_000)
        await broker.reload(
            serving(
                small, activity_timeout_s=5.0, pong_timeout_s=5.0, max_outbox_bytes=250_000,
                max_undelivered_bytes=3_000,
            )
        )  # fmt: skip
        await slow.subscribe("room")
        slow.stop_reading()
        for _ in range(4):
            broker.publish_nowait(APP, "room", "e", "x" * 900)
        with pytest.raises(trio.WouldBlock):
            broker.publish_nowait(APP, "room", "e", "x" * 900)
        for _ in range(200):
            await broker.publish(APP, "room", "e", "x" * 900)
        slow.start_reading()
        assert await closed_with(slow) == 4100
        assert broker.backlog.max_bytes == 250_000
        client.answers_pings = False
        await trio.sleep(60)  # it would have been 75 seconds before
        assert await closed_with(client) == 4201
