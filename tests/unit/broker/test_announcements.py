"""What is held back, and how it is said later; the events themselves stand in tests/wire."""

from __future__ import annotations

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cachecast.broker import announcements as module
from cachecast.broker.announcements import COUNT_INTERVAL_S, COUNT_THROTTLE_ABOVE
from cachecast.config import BrokerConfig
from cachecast.testing import TEST_APP, open_memory_network, open_test_broker

APP = msgspec.structs.replace(TEST_APP, sends_subscription_counts=True)
CONFIG = BrokerConfig(apps=(APP,))


@pytest.fixture
def few(monkeypatch):
    """So few bytes that a hundred events fill a queue."""
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 8_000)
    return 8_000


async def _crowd(network):
    """More subscribers than are counted at once, all in one instant."""
    clients = [await network.connect(APP) for _ in range(COUNT_THROTTLE_ABOVE + 2)]
    for client in clients:
        client.send({"event": "pusher:subscribe", "data": {"channel": "x"}})
    return clients


async def test_a_channel_that_empties_while_its_count_is_held_back_is_forgotten(autojump_clock):
    """Nobody is left to be told, and nothing may keep the channel alive."""
    async with open_test_broker(CONFIG) as broker, open_memory_network(broker) as network:
        clients = await _crowd(network)
        assert len(broker.announcements.stale_counts) == 1

        for client in clients:
            client.send({"event": "pusher:unsubscribe", "data": {"channel": "x"}})

        assert broker.announcements.stale_counts == {}
        assert await broker.channels(APP.id) == {}


async def test_what_the_throttle_holds_back_is_due_after_its_interval_and_not_before(
    autojump_clock,
):
    """The task asks every second; the interval decides."""
    async with open_test_broker(CONFIG) as broker, open_memory_network(broker) as network:
        await _crowd(network)
        announcements = broker.announcements
        ((channel, _),) = announcements.stale_counts.items()
        now = broker.clock()

        assert not announcements.announce_due(10)

        assert now < channel.count_due_at <= now + COUNT_INTERVAL_S
        assert announcements.stale_counts


def _flap(client, channel, n, user_id=None):
    """Come and go; all in one instant, so that nothing of it is delivered in between."""
    for _ in range(n):
        client.send(client.subscription(channel, user_id=user_id))
        client.unsubscribe(channel)


def _members(client, *, may_be_told_again=False):
    """Who is there, as a library that believes every event has it."""
    members = set()
    for message in client.messages:
        data = message.json() if message.event.startswith("pusher_internal:") else None
        if message.event == "pusher_internal:subscription_succeeded":
            members = set(data["presence"]["hash"])
        elif message.event == "pusher_internal:member_added":
            assert may_be_told_again or data["user_id"] not in members
            members.add(data["user_id"])
        elif message.event == "pusher_internal:member_removed":
            assert may_be_told_again or data["user_id"] in members
            members.discard(data["user_id"])
    return members


@pytest.mark.parametrize("stays", [True, False])
async def test_members_who_come_and_go_fill_no_queue_and_everybody_hears_the_outcome(
    autojump_clock, few, stays
):
    """Nobody makes a client wait as a publisher is made to; what cancels out is not said."""
    async with open_test_broker(CONFIG) as broker, open_memory_network(broker) as network:
        listener, other, restless = [await network.connect(APP) for _ in range(3)]
        await listener.subscribe("presence-x", user_id="a")
        await other.subscribe("presence-x", user_id="b")
        await wait_all_tasks_blocked()
        channel = broker.hub(APP.id).channels["presence-x"]

        _flap(restless, "presence-x", 500, "c")
        other.unsubscribe("presence-x")
        if stays:
            restless.send(restless.subscription("presence-x", user_id="c"))

        assert few <= channel.announcement_bytes < few + 1_000
        (held,) = broker.announcements.held.values()
        assert sum(map(len, held.news.values())) <= 3
        await trio.sleep(2)
        assert _members(listener) == ({"a", "c"} if stays else {"a"})
        assert (channel.announcement_bytes, broker.announcements.held) == (0, {})
        _flap(restless, "presence-x", 1, "c")
        assert 0 < channel.announcement_bytes < 1_000


async def test_of_counts_beyond_a_full_queue_the_last_one_is_announced(autojump_clock, few):
    async with open_test_broker(CONFIG) as broker, open_memory_network(broker) as network:
        listener, restless = await network.connect(APP), await network.connect(APP)
        await listener.subscribe("x")
        await wait_all_tasks_blocked()
        before = len(listener.messages)
        channel = broker.hub(APP.id).channels["x"]

        _flap(restless, "x", 500)
        restless.send(restless.subscription("x"))

        assert few <= channel.announcement_bytes < few + 1_000
        await trio.sleep(2)
        counts = [message.json() for message in listener.messages[before:]]
        assert len(counts) < 200
        assert counts[-1] == {"subscription_count": 2}


async def test_many_channels_together_fill_no_more_than_their_app_may(autojump_clock):
    """A hundred clients that flapped in a thousand channels had 290 MB of counts waiting."""
    app = msgspec.structs.replace(APP, max_undelivered_bytes=10_000)
    config = BrokerConfig(apps=(app,))
    async with open_test_broker(config) as broker, open_memory_network(broker) as network:
        listener, restless = await network.connect(app), await network.connect(app)
        names = [f"x{n}" for n in range(50)] + [f"presence-x{n}" for n in range(50)]
        for name in names:
            await listener.subscribe(name, user_id="a" if "presence" in name else None)
        await wait_all_tasks_blocked()
        before = len(listener.messages)
        hub = broker.hub(app.id)

        for name in names:
            _flap(restless, name, 8, "b" if "presence" in name else None)
            restless.send(restless.subscription(name, user_id="b" if "presence" in name else None))

        assert hub.undelivered_bytes < 2 * app.max_undelivered_bytes + 1_000
        await trio.sleep(3)
        last = {m.channel: m.json() for m in listener.messages[before:]}
        assert last == {
            name: {"user_id": "b"} if "presence" in name else {"subscription_count": 2}
            for name in names
        }


@pytest.mark.parametrize("n", [500, 501])
async def test_a_watched_user_who_comes_and_goes_fills_no_queue(autojump_clock, few, n):
    async with open_test_broker(CONFIG) as broker, open_memory_network(broker) as network:
        watcher = await network.connect(APP)
        await watcher.sign_in("w", watchlist=["u"])
        hub = broker.hub(APP.id)
        channel = hub.users.watchers_of("u")
        await wait_all_tasks_blocked()

        for number in range(n):
            change = "offline" if number % 2 else "online"
            broker.announcements.tell_watchers(hub, "u", change)

        assert few <= channel.announcement_bytes < few + 1_000
        await trio.sleep(2)
        last = [m for m in watcher.messages if m.event.endswith(":watchlist_events")][-1]
        assert last.json()["events"] == [{"name": change, "user_ids": ["u"]}]


async def test_what_is_held_goes_in_steps_once_its_turn_has_come(autojump_clock, few):
    """A channel of many members, all of whom come at once."""
    app = msgspec.structs.replace(APP, max_presence_members=1_000)
    async with (
        open_test_broker(BrokerConfig(apps=(app,))) as broker,
        open_memory_network(broker) as network,
    ):
        listener = await network.connect(app)
        await listener.subscribe("presence-x", user_id="a")
        crowd = [await network.connect(app) for _ in range(200)]
        for number, client in enumerate(crowd):
            client.send(client.subscription("presence-x", user_id=f"u{number}"))
        await wait_all_tasks_blocked()
        channel = broker.hub(app.id).channels["presence-x"]

        assert broker.announcements.announce_due(100)
        assert channel.announcement_bytes > few
        assert not broker.announcements.announce_due(100)
        await wait_all_tasks_blocked()
        assert len(_members(listener)) == 201
        listener.unsubscribe("presence-x")
        for client in crowd:
            client.unsubscribe("presence-x")
        assert broker.announcements.held == {}


async def test_who_arrives_while_news_is_held_hears_of_the_departure_of_those_it_found(
    autojump_clock, few
):
    """The others have not heard that they came; it has them in its roster."""
    async with open_test_broker(CONFIG) as broker, open_memory_network(broker) as network:
        listener, restless, brief, newcomer = [await network.connect(APP) for _ in range(4)]
        await listener.subscribe("presence-x", user_id="a")
        _flap(restless, "presence-x", 100, "r")
        assert broker.announcements.held

        brief.send(brief.subscription("presence-x", user_id="b"))
        newcomer.send(newcomer.subscription("presence-x", user_id="n"))
        brief.unsubscribe("presence-x")
        await trio.sleep(2)

        (roster,) = [
            message.json()["presence"]["ids"]
            for message in newcomer.messages
            if message.event == "pusher_internal:subscription_succeeded"
        ]
        assert sorted(roster) == ["a", "b", "n"]
        assert _members(newcomer, may_be_told_again=True) == {"a", "n"}
        assert _members(listener, may_be_told_again=True) == {"a", "n"}


async def test_a_hundred_members_who_arrive_at_once_are_told_at_once(autojump_clock):
    async with open_test_broker(CONFIG) as broker, open_memory_network(broker) as network:
        crowd = [await network.connect(APP) for _ in range(100)]
        for number, client in enumerate(crowd):
            client.send(client.subscription("presence-x", user_id=f"u{number}"))

        assert broker.announcements.held == {}
        await wait_all_tasks_blocked()
        assert all(len(_members(client)) == 100 for client in crowd)


async def test_news_of_more_users_than_may_be_held_is_dropped_and_counted(
    autojump_clock, few, monkeypatch
):
    monkeypatch.setattr(module, "MAX_HELD_USERS", 3)
    app = msgspec.structs.replace(APP, max_presence_members=1_000)
    config = BrokerConfig(apps=(app,))
    async with open_test_broker(config) as broker, open_memory_network(broker) as network:
        listener, restless = await network.connect(app), await network.connect(app)
        await listener.subscribe("presence-x", user_id="a")
        _flap(restless, "presence-x", 100, "r")

        (held,) = broker.announcements.held.values()
        n_before = len(held.news)

        for number in range(5):
            client = await network.connect(app)
            client.send(client.subscription("presence-x", user_id=f"u{number}"))

        assert list(held.news) == ["u2", "u3", "u4"]
        assert broker.statistics().apps[0].announcements_dropped == n_before + 2
