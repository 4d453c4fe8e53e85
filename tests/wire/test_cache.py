"""Cache channels: what a late joiner gets, and for how long; sections 2 and 3 of the issue."""
# ruff: noqa: E501 - a frame is one line

from __future__ import annotations

import itertools
from random import Random

import msgspec
import pytest
import trio
import trio.testing

CACHE_KINDS = ["cache-x", "private-cache-x", "private-encrypted-cache-x", "presence-cache-x"]
TTL_S = 1_800.0


def _tick(n: int, channel: str = "cache-x") -> str:
    return f'{{"event":"tick","channel":"{channel}","data":"{n}"}}'


# --- 1799.999 and 1800.000, on every path, with an evictor that has not run


async def _by_subscribing(stage) -> str | None:
    client = await stage.network.connect()
    await client.subscribe("cache-x")
    message = client.receive_nowait()
    return None if message.event == "pusher:cache_miss" else message.data


async def _by_subscribing_in_msgpack(stage) -> str | None:
    client = await stage.network.connect(speaks_msgpack=True)
    await client.subscribe("cache-x")
    message = client.receive_nowait()
    return None if message.event == "pusher:cache_miss" else str(message.data)


async def _by_http_info(stage) -> str | None:
    answer = await stage.network.request("GET", "/channels/cache-x", params={"info": "cache"})
    cache = answer.json()["cache"]
    assert cache is None or cache["ttl"] == 1
    return cache and cache["data"]


async def _by_http_cache(stage) -> str | None:
    answer = await stage.network.request("GET", "/channels/cache-x/cache")
    if answer.status == 404:
        return None
    assert answer.headers["cache-control"] == "max-age=0"
    assert answer.headers["age"] == "1799"
    return answer.json()["data"]


async def _by_read_cache(stage) -> str | None:
    event = await stage.broker.read_cache(stage.app_id, "cache-x")
    assert event is None or 0 < event.ttl_s < 0.01
    return event and event.data


async def _in_process(stage) -> str | None:
    async with stage.broker.subscribe(stage.app_id, "cache-x") as events:
        with trio.move_on_after(0.0001):
            return (await anext(events)).data
    return None


PATHS = [_by_subscribing, _by_subscribing_in_msgpack, _by_http_info, _by_http_cache,
         _by_read_cache, _in_process]  # fmt: skip


@pytest.mark.parametrize("read", PATHS)
async def test_no_reader_sees_an_entry_at_its_deadline_even_if_the_evictor_is_late(
    autojump_clock, sleepy, read
):
    """Invariant 4, on every path: 1799.999 s is a hit and 1800.000 s is not."""
    start = sleepy.machine.now()
    await sleepy.broker.publish(sleepy.app_id, "cache-x", "tick", "7")

    sleepy.machine.sleep_until(start + TTL_S - 0.001)
    assert await read(sleepy) == "7"
    sleepy.machine.sleep_until(start + TTL_S)
    assert await read(sleepy) is None

    assert sleepy.broker.cache.n_entries() == 1, "the evictor was meant to be late"


@pytest.mark.parametrize("read", PATHS)
@pytest.mark.parametrize("asleep_s", [TTL_S, TTL_S + 0.001, 3_600.0, 1e6])
async def test_a_machine_that_slept_serves_nothing_dead_and_frees_it_when_it_wakes(
    autojump_clock, sleepy, read, asleep_s
):
    start = sleepy.machine.now()
    await sleepy.broker.publish(sleepy.app_id, "cache-x", "tick", "7")

    sleepy.machine.sleep_until(start + asleep_s)

    assert await read(sleepy) is None
    await trio.sleep(1)
    await trio.testing.wait_all_tasks_blocked()
    statistics = sleepy.broker.statistics().apps[0]
    assert (statistics.cache_entries, statistics.cache_bytes) == (0, 0)


@pytest.mark.parametrize("app_fields", [{"stall_timeout_s": 1e9}])
@pytest.mark.parametrize("config_fields", [{"pong_timeout_s": 1e6}])
async def test_an_expired_entry_is_released_at_its_deadline_wherever_it_waits(
    autojump_clock, stage
):
    """Invariant 5: in the cache, in a slow client's outbox, and in a slow subscriber in process."""
    slow = await stage.network.connect()
    await slow.subscribe("cache-x")
    slow.stop_reading()
    async with stage.broker.subscribe(stage.app_id, "cache-x") as busy:
        start = trio.current_time()
        await stage.broker.publish(stage.app_id, "cache-x", "tick", "1")
        await trio.sleep_until(start + TTL_S - 0.001)
        message = (await stage.broker.read_cache(stage.app_id, "cache-x")).message
        # Pings wait beside it: a client that reads nothing has not answered any, and must for
        # this test not be closed for that.
        assert stage.broker.statistics().outbox_bytes >= len(message)
        assert busy._waiting

        await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked()

        assert stage.broker.cache.n_entries() == 0
        assert stage.broker.statistics().outbox_bytes < len(message)
        assert not busy._waiting


@pytest.mark.parametrize("app_fields", [{"stall_timeout_s": 1e6, "cache_ttl_s": 60.0}])
async def test_a_dead_value_never_leaves_a_slow_outbox(autojump_clock, stage):
    """The live event beside it does; a value half on the wire takes its connection with it."""
    a, b = await stage.enter("A"), await stage.enter("B")
    for client in (a, b):
        client.answers_pings = True
        await client.subscribe("x")
        await client.subscribe("cache-x")
    await trio.testing.wait_all_tasks_blocked()
    stage.admit("A", a)
    stage.admit("B", b)
    a.stop_reading()
    b.stop_reading(10)

    await stage.play("""
        -- publish cache-x tick 1
        -- publish x live 1
        -- wait 59.9
    """)
    held = stage.broker.statistics()
    assert held.backlogged_connections == 2
    await stage.play("-- wait 0.2\nB<< lost")
    a.start_reading()
    await stage.play(r"""
        -- wait 0
        A<< {"event":"live","channel":"x","data":"1"}
    """)
    assert stage.broker.statistics().outbox_bytes == 0


@pytest.mark.parametrize("app_fields", [{"stall_timeout_s": 1e9}])
async def test_a_dead_value_does_not_leave_when_the_socket_is_faster_than_the_evictor(
    autojump_clock, sleepy
):
    """The machine slept, wakes, and the slow client reads before any task has run."""
    client = await sleepy.enter("A")
    await client.subscribe("cache-x")
    await client.subscribe("x")
    sleepy.admit("A", client)
    client.stop_reading()
    await sleepy.play("-- publish cache-x tick 1\n-- publish x live 1")

    sleepy.machine.sleep_until(sleepy.machine.now() + TTL_S)
    client.start_reading()

    assert [m.event for m in client.messages if m.event in {"tick", "live"}] == ["live"]


# --- storing


@pytest.mark.parametrize("channel", CACHE_KINDS)
async def test_the_cache_outlives_its_subscribers_and_stores_when_nobody_listens(
    autojump_clock, stage, channel
):
    """Invariant 6."""
    member = ' "1"' if channel.startswith("presence") else ""
    await stage.broker.publish(stage.app_id, channel, "tick", "1")
    first = await stage.network.connect()
    await first.subscribe(channel, user_id="1" if member else None)
    assert (await first.receive()).data == "1"
    first.close()
    await trio.sleep(60)
    assert await stage.broker.channels(stage.app_id) == {}

    second = await stage.network.connect()
    await second.subscribe(channel, user_id="1" if member else None)
    assert (await second.receive()).data == "1"


@pytest.mark.parametrize("channel", CACHE_KINDS)
async def test_only_server_side_publications_write_the_cache(autojump_clock, stage, channel):
    """Invariant 7: no client event, member event or count ever does."""
    is_presence = channel.startswith("presence")
    clients = [await stage.network.connect() for _ in range(2)]
    for number, client in enumerate(clients):
        await client.subscribe(channel, user_id=str(number) if is_presence else None)
        client.trigger(channel, "client-x", "c")
        client.unsubscribe(channel)
        await client.subscribe(channel, user_id=str(number) if is_presence else None)
    await trio.sleep(1)

    assert stage.broker.cache.n_entries() == 0
    misses = [
        m.event for client in clients for m in client.messages if m.event == "pusher:cache_miss"
    ]
    assert len(misses) == 4


async def test_only_cache_channels_store(autojump_clock, stage):
    for channel in ("x", "private-x", "presence-x", "private-encrypted-x", "my-cache-x", "private-x-cache-y",
                    "#server-to-user-cache-1"):  # fmt: skip
        await stage.broker.publish(stage.app_id, channel, "tick", "1")

    assert stage.broker.cache.n_entries() == 0


async def test_the_replay_is_the_same_bytes_as_the_live_frame(autojump_clock, stage):
    """One object, in fact: encoded once, kept, and sent to everybody."""
    live, late = await stage.enter("A"), await stage.enter("B")
    await live.subscribe("cache-x")
    await stage.broker.publish(stage.app_id, "cache-x", "tick", {"a": ["é", 1.5, None]})
    await trio.testing.wait_all_tasks_blocked()
    await late.subscribe("cache-x")

    # The late joiner gets it in one call with the confirmation.
    assert late.chunks[-1].endswith(live.chunks[-1])


async def test_a_publication_is_encoded_once_per_wire(autojump_clock, stage):
    """Invariant 1: every subscriber on a wire, and the cache, got the very same object."""
    clients = []
    for number in range(6):
        client = await stage.network.connect(speaks_msgpack=number % 2 == 1)
        await client.subscribe("cache-x")
        clients.append(client)
    await trio.testing.wait_all_tasks_blocked()

    await stage.broker.publish(stage.app_id, "cache-x", "tick", "1")
    await trio.testing.wait_all_tasks_blocked()

    assert len({id(client.chunks[-1]) for client in clients[0::2]}) == 1
    assert len({id(client.chunks[-1]) for client in clients[1::2]}) == 1
    assert stage.broker.cache.get(stage.app_id, "cache-x", 0.0).frame is clients[0].chunks[-1]
    assert clients[1].messages[-1].data == 1


# --- a sweep under way


async def _crowd(stage, n: int, channel: str) -> list:
    clients = [stage.network.open() for _ in range(n)]
    for client in clients:
        client.send(client.subscription(channel))
    await trio.testing.wait_all_tasks_blocked()
    return clients


async def test_unsubscribing_and_coming_back_in_the_middle_of_a_sweep(autojump_clock, stage):
    """Neither twice nor never: the old subscription gets no more, the new one starts at the cache."""
    clients = await _crowd(stage, 600, "cache-x")
    last = clients[-1]
    stage.admit("Z", last)

    stage.broker.publish_nowait(stage.app_id, "cache-x", "tick", "1")
    stage.broker.fanout.deliver_turn()
    assert clients[0].messages[-1].data == "1"
    assert last.messages[-1].event == "pusher:cache_miss", "the sweep was meant to be under way"
    stage.broker.publish_nowait(stage.app_id, "cache-x", "tick", "2")

    await stage.play(f"""
        Z>> unsubscribe cache-x
        Z>> subscribe cache-x
        Z<< ok cache-x
        Z<< {_tick(2)}
        -- publish cache-x tick 3
        Z<< {_tick(3)}
    """)


async def test_subscribe_and_replay_are_one_step(autojump_clock, stage):
    """Invariant 3: at every moment around a publish, a newcomer sees k, k+1, ... from where it is."""
    crowd = await _crowd(stage, 300, "cache-x")
    newcomers = []
    for n in range(1, 6):
        newcomers.append((n - 1, stage.network.open()))
        newcomers[-1][1].send(newcomers[-1][1].subscription("cache-x"))
        stage.broker.publish_nowait(stage.app_id, "cache-x", "tick", str(n))
        newcomers.append((n, stage.network.open()))
        newcomers[-1][1].send(newcomers[-1][1].subscription("cache-x"))
        if n % 2:
            stage.broker.fanout.deliver_turn()
    await trio.testing.wait_all_tasks_blocked()

    for first, client in newcomers:
        values = [int(m.data) for m in client.messages if m.event == "tick"]
        assert values == list(range(max(first, 1), 6))
        missed = any(m.event == "pusher:cache_miss" for m in client.messages)
        assert missed == (first == 0)
    for client in crowd:
        assert [m.data for m in client.messages if m.event == "tick"] == list("12345")


async def test_the_order_within_a_channel_is_the_same_for_all(autojump_clock, stage):
    """Invariant 9: also where some are excluded, some speak msgpack and batches are joined."""
    clients = [await stage.network.connect(speaks_msgpack=n % 3 == 0) for n in range(30)]
    for client in clients:
        await client.subscribe("x")
    for n in range(50):
        stage.broker.publish_nowait(
            stage.app_id, "x", "tick", str(n),
            socket_id=clients[n % 30].socket_id if n % 5 == 0 else None,
        )  # fmt: skip
    await trio.testing.wait_all_tasks_blocked()

    for number, client in enumerate(clients):
        seen = [int(m.data) for m in client.messages if m.event == "tick"]
        assert seen == [n for n in range(50) if n % 5 or n % 30 != number]


# --- cache_miss, told once


async def _misses(stage) -> list[tuple[float, str]]:
    told: list[tuple[float, str]] = []

    async def hook(app_id, event):
        told.append((trio.current_time(), event.channel))

    stage.broker.on("cache_miss", hook)
    return told


@pytest.mark.parametrize("app_fields", [{"cache_ttl_s": 1.0}])
async def test_a_miss_is_told_once_for_each_empty_period(autojump_clock, stage):
    """Armed again when a value was cached, however short its life was."""
    told = await _misses(stage)
    client = await stage.enter("A")

    async def look():
        await client.subscribe("cache-x")
        client.unsubscribe("cache-x")
        await trio.testing.wait_all_tasks_blocked()

    for _ in range(5):
        await look()
    assert len(told) == 1
    await stage.broker.publish(stage.app_id, "cache-x", "tick", "1")
    await look()
    assert len(told) == 1
    await trio.sleep(1)
    await look()
    await look()

    assert [channel for _, channel in told] == ["cache-x"] * 2


async def test_a_miss_is_armed_again_ten_seconds_after_it_was_acknowledged(autojump_clock, stage):
    """A lost webhook must not silence the channel while subscribers keep missing."""
    told = await _misses(stage)
    client = await stage.enter("A")
    for _ in range(250):
        await client.subscribe("cache-x")
        client.unsubscribe("cache-x")
        await trio.sleep(0.1)

    times = [at for at, _ in told]
    assert len(times) == 3
    assert all(10.0 <= b - a <= 10.2 for a, b in itertools.pairwise(times))


async def test_every_channel_has_its_own_miss_and_subscribers_in_process_miss_too(
    autojump_clock, stage
):
    told = await _misses(stage)
    client = await stage.enter("A")

    await client.subscribe("cache-x")
    async with stage.broker.subscribe(stage.app_id, "cache-y"):
        await client.subscribe("cache-y")
    await stage.broker.read_cache(stage.app_id, "cache-z")
    await trio.testing.wait_all_tasks_blocked()

    assert [channel for _, channel in told] == ["cache-x", "cache-y"]
    assert stage.broker.statistics().apps[0].cache_misses == 4


# --- reading it over HTTP


async def test_the_cache_endpoint_gives_etag_age_and_max_age(autojump_clock, stage):
    await stage.broker.publish(stage.app_id, "cache-x", "tick", {"n": 1})
    await trio.sleep(100.5)

    answer = await stage.network.request("GET", "/channels/cache-x/cache")
    again = await stage.network.request(
        "GET", "/channels/cache-x/cache", headers={"If-None-Match": answer.headers["etag"]}
    )
    empty = await stage.network.request("GET", "/channels/cache-y/cache")
    wrong = await stage.network.request("GET", "/channels/x/cache")

    assert answer.json() == {"event": "tick", "channel": "cache-x", "data": '{"n":1}'}
    assert (answer.headers["age"], answer.headers["cache-control"]) == ("100", "max-age=1699")
    assert (again.status, again.body) == (304, b"")
    assert (empty.status, wrong.status) == (404, 400)


async def test_the_same_value_published_again_is_young_again_and_has_its_old_tag(
    autojump_clock, stage
):
    """Whoever holds the bytes need not read them again, and learns how much longer they live."""

    async def read(**headers):
        return await stage.network.request("GET", "/channels/cache-x/cache", headers=headers)

    await stage.broker.publish(stage.app_id, "cache-x", "tick", "1")
    tag = (await read()).headers["etag"]
    await trio.sleep(1_000)
    await stage.broker.publish(stage.app_id, "cache-x", "tick", "1")
    await trio.sleep(1_000)

    again = await read(**{"If-None-Match": tag})
    assert (again.status, again.body) == (304, b"")
    assert (again.headers["age"], again.headers["cache-control"]) == ("1000", "max-age=800")
    await stage.broker.publish(stage.app_id, "cache-x", "tick", "2")
    other = await read(**{"If-None-Match": tag})
    assert (other.status, other.headers["age"]) == (200, "0")


# --- bounds and accounts


@pytest.mark.parametrize("app_fields", [{"max_cache_entries": 10}])
async def test_at_a_ceiling_the_oldest_goes_first_and_is_counted(autojump_clock, stage):
    for n in range(25):
        await stage.broker.publish(stage.app_id, f"cache-{n}", "tick", str(n))

    statistics = stage.broker.statistics().apps[0]
    assert (statistics.cache_entries, statistics.cache_capacity_evictions) == (10, 15)
    assert await stage.broker.read_cache(stage.app_id, "cache-14") is None
    assert (await stage.broker.read_cache(stage.app_id, "cache-15")).data == "15"


@pytest.mark.parametrize(
    "app_fields", [{"sends_subscription_counts": True, "max_cache_entries": 40}]
)
async def test_every_account_returns_to_zero_after_churn(autojump_clock, stage):
    """Entries, bytes, outboxes, undelivered bytes, channels, rosters, users, wheels."""
    random = Random(7)
    channels = ["x", "cache-x", "presence-x", "presence-cache-x", "private-cache-x"] + [
        f"cache-{n}" for n in range(60)
    ]
    clients = []
    for step in range(1_500):
        what = random.random()
        if what < 0.2 or not clients:
            client = stage.network.open(speaks_msgpack=random.random() < 0.3)
            clients.append(client)
            if random.random() < 0.3:
                await client.sign_in(f"u{random.randrange(5)}", watchlist=["u1", "u2"])
        elif what < 0.6:
            client = random.choice(clients)
            channel = random.choice(channels)
            user_id = f"u{random.randrange(6)}" if channel.startswith("presence") else None
            client.send(client.subscription(channel, user_id=user_id))
        elif what < 0.65:
            random.choice(clients).unsubscribe(random.choice(channels))
        elif what < 0.9:
            stage.broker.publish_nowait(
                stage.app_id, random.choice(channels), "tick", "x" * random.randrange(300)
            )
        elif what < 0.93:
            random.choice(clients).stop_reading(random.randrange(50))
        elif what < 0.95:
            random.choice(clients).read(random.randrange(500))
        elif what < 0.97:
            await stage.broker.terminate(stage.app_id, f"u{random.randrange(5)}")
        else:
            client = clients.pop(random.randrange(len(clients)))
            random.choice(
                [client.close, client.drop, lambda c=client: c.drop(ConnectionResetError())]
            )()
        if step % 10 == 0:
            await trio.sleep(random.random())
    for client in clients:
        random.choice([client.close, client.drop])()
    await trio.sleep(TTL_S + 5)

    statistics = stage.broker.statistics()
    app = statistics.apps[0]
    fields = (
        "connections",
        "subscriptions",
        "channels",
        "users",
        "cache_entries",
        "cache_bytes",
        "undelivered_bytes",
    )
    assert {field: getattr(app, field) for field in fields} == dict.fromkeys(fields, 0)
    assert (statistics.outbox_bytes, statistics.backlogged_connections) == (0, 0)
    assert app.deliveries > 0
    broker, hub = stage.broker, stage.broker.hubs[stage.app_id]
    assert broker.clients.n_sessions == len(hub.users) == hub.users.n_watched == 0
    assert (
        len(broker.heartbeat._wheel)
        == len(broker.heartbeat._pinged_at)
        == len(broker.heartbeat._closing)
        == 0
    )
    assert len(broker.announcements.stale_counts) == len(broker.delivery._subscribers) == 0
    assert broker.announcements.held == {}
    assert broker.fanout.is_idle
    assert msgspec.json.encode(statistics)
