"""A channel as its consumer sees it: every kind, iteration, client events, leaving."""

import json

import pytest
import trio

from cachecast.errors import LimitError, LocalProtocolError, SubscriptionError
from cachecast.protocol.auth import sign, subscription_text
from cachecast.protocol.encryption import channel_key, encrypt

MASTER_KEY = bytes(range(32))
ROSTER = json.dumps(
    {"presence": {"ids": ["1", "2"], "hash": {"1": {"name": "A"}, "2": None}, "count": 2}}
)


@pytest.mark.parametrize(
    "name",
    ["a", "cache-a", "private-a", "private-cache-a", "private-encrypted-a",
     "private-encrypted-cache-a", "presence-a", "presence-cache-a"],
)  # fmt: skip
async def test_every_kind_is_subscribed_to_with_what_it_needs(autojump_clock, pusher, name):
    """With a secret the client signs for itself (protocol.md 2.1, 2.3, 2.4)."""
    async with pusher.connect(secret="app-secret", encryption_master_key=MASTER_KEY) as client:
        peer = await pusher.accept()
        is_presence = name.startswith("presence-")
        options = {"user_id": "1", "user_info": {"name": "A"}} if is_presence else {}
        call = pusher.begin(client.subscribe, name, **options)
        asked = await peer.subscribe(name, ROSTER if is_presence else "{}")
        channel = await call.result()
        secret = "hello"
        if "encrypted" in name:
            secret = encrypt(channel_key(MASTER_KEY, name), secret)
        await peer.send("tick", secret, name)
        event = await anext(channel)

    channel_data = '{"user_id":"1","user_info":{"name":"A"}}' if is_presence else None
    assert asked.get("channel_data") == channel_data
    if name in {"a", "cache-a"}:
        assert asked["auth"] == ""
    else:
        text = subscription_text(peer.socket_id, name, channel_data)
        assert asked["auth"] == "app-key:" + sign(b"app-secret", text.encode())
    assert (event.name, event.data, event.channel) == ("tick", "hello", name)
    assert channel.name == name


async def test_presence_keeps_the_roster_and_shows_its_changes(autojump_clock, pusher):
    """The roster has changed already when the event is read (protocol.md 2.5, 2.6)."""
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "presence-a", ROSTER, user_id="1")
        assert dict(channel.members) == {"1": {"name": "A"}, "2": None}
        assert channel.my_id == "1"

        added = '{"user_id":3,"user_info":{"name":"C"}}'
        await peer.send("pusher_internal:member_added", added, "presence-a")
        event = await anext(channel)
        assert event.name == "pusher:member_added"
        assert event.json() == {"user_id": 3, "user_info": {"name": "C"}}
        assert channel.members["3"] == {"name": "C"}

        await peer.send("pusher_internal:member_removed", '{"user_id":"2"}', "presence-a")
        event = await anext(channel)
        assert event.name == "pusher:member_removed"
        assert sorted(channel.members) == ["1", "3"]

        await peer.send("client-hi", {"a": 1}, "presence-a", user_id="3")
        event = await anext(channel)
        assert (event.user_id, event.json()) == ("3", {"a": 1})
        with pytest.raises(TypeError):
            channel.members["4"] = None


async def test_the_cached_value_comes_first_and_a_miss_says_so(autojump_clock, pusher):
    async with pusher.connect() as client:
        peer = await pusher.accept()
        hit = await pusher.subscribed(client, peer, "cache-hit")
        miss = await pusher.subscribed(client, peer, "cache-miss")
        await peer.send("tick", "cached", "cache-hit")
        await peer.send("pusher:cache_miss", None, "cache-miss")  # soketi leaves data out
        await peer.send("tick", "live", "cache-hit")
        await peer.send("tick", "live", "cache-miss")
        first, second = await anext(hit), await anext(hit)
        missed, after = await anext(miss), await anext(miss)

    assert (first.data, first.is_cache_miss, second.data) == ("cached", False, "live")
    assert (missed.name, missed.is_cache_miss, after.data) == ("pusher:cache_miss", True, "live")


@pytest.mark.parametrize("data", ["{}", "null", ""])
async def test_a_miss_on_an_encrypted_channel_is_not_decrypted(autojump_clock, pusher, data):
    """Names of the protocol are in clear (protocol.md 3.3)."""
    name = "private-encrypted-cache-a"
    async with pusher.connect(secret="s", encryption_master_key=MASTER_KEY) as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, name)
        await peer.send("pusher:cache_miss", data, name)

        assert (await anext(channel)).is_cache_miss


async def test_subscription_counts_come_without_an_event(autojump_clock, pusher):
    """They stand before the cached value where an app announces them; readers want the value."""
    async with pusher.connect() as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "a")
        assert channel.subscription_count is None
        data = '{"subscription_count":5}'
        await peer.send("pusher_internal:subscription_count", data, "a")
        await peer.send("tick", "1", "a")
        event = await anext(channel)

    assert event.name == "tick"
    assert channel.subscription_count == 5


async def test_a_slow_consumer_of_a_channel_is_told_its_loss(autojump_clock, pusher):
    async with pusher.connect(max_queued=10) as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "a")
        for n in range(25):
            await peer.send("tick", str(n), "a")
        await peer.send("pusher:ping")
        await peer.receive()
        statistics = client.statistics()
        got = [(await anext(channel)).data for _ in range(10)]
        with pytest.raises(LimitError) as caught:
            await anext(channel)
        await peer.send("tick", "again", "a")
        again = await anext(channel)

    assert got == [str(n) for n in range(10)]
    assert caught.value.actual - caught.value.limit == 15
    assert again.data == "again"
    assert (statistics.lost_events, statistics.conflated_events) == (15, 0)
    assert client.statistics().lost_events == 15


async def test_a_slow_consumer_of_a_cache_channel_gets_the_newest(autojump_clock, pusher):
    async with pusher.connect() as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "cache-a", max_queued=1)
        for n in range(25):
            await peer.send("tick", str(n), "cache-a")
        await peer.send("pusher:ping")
        await peer.receive()
        event = await anext(channel)

    assert event.data == "24"
    assert client.statistics().conflated_events == 24
    assert client.statistics().lost_events == 0


async def test_client_events_go_out_as_they_are(autojump_clock, pusher):
    """A string stays a string, an object an object (protocol.md 4)."""
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "private-a")
        await channel.trigger("client-x", {"a": 1})
        await channel.trigger("client-x", "s")

        expected = {"event": "client-x", "channel": "private-a"}
        assert await peer.receive() == {**expected, "data": {"a": 1}}
        assert await peer.receive() == {**expected, "data": "s"}


@pytest.mark.parametrize(
    ("name", "event"),
    [("private-a", "x"), ("a", "client-x"), ("cache-a", "client-x"),
     ("private-encrypted-a", "client-x"), ("private-a", "pusher:subscribe")],
)  # fmt: skip
async def test_client_events_that_no_server_would_take_are_not_sent(
    autojump_clock, pusher, name, event
):
    async with pusher.connect(secret="s", encryption_master_key=MASTER_KEY) as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, name)
        with pytest.raises(LocalProtocolError):
            await channel.trigger(event, 1)


async def test_triggering_waits_for_the_next_connection(autojump_clock, pusher):
    """What is triggered between two connections is sent on the second, after its subscription."""
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "private-a")
        await peer.hang_up()
        await trio.sleep(0.1)
        assert not channel.is_subscribed
        call = pusher.begin(channel.trigger, "client-x", 1)
        peer = await pusher.accept()
        await peer.subscribe("private-a")
        await call.result()

        assert await peer.take("client-x") == 1


async def test_triggering_waits_for_a_server_that_does_not_read(autojump_clock, pusher):
    """The queue to the writer is bounded; a cancelled trigger sends nothing."""
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "private-a")
        link = client._conversation.link
        link._stream.send_all = _never  # a peer whose receive window is full
        with trio.move_on_after(1) as scope:
            for n in range(1000):
                await channel.trigger("client-x", n)

    assert scope.cancelled_caught
    assert n < 100


async def _never(data):
    await trio.sleep_forever()


async def test_unsubscribing_ends_iteration_and_tells_the_server(autojump_clock, pusher):
    async with pusher.connect() as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "a")
        await peer.send("tick", "1", "a")
        await peer.send("pusher:ping")
        await peer.receive()
        await channel.unsubscribe()

        assert await peer.take("pusher:unsubscribe") == {"channel": "a"}
        assert [event async for event in channel] == []
        assert client.statistics().subscriptions == 0
        with pytest.raises(trio.ClosedResourceError):
            await channel._conversation.trigger(channel._subscription, "client-x", 1)
        await channel.unsubscribe()  # again, which does nothing
        again = await pusher.subscribed(client, peer, "a")
        await peer.send("tick", "2", "a")
        assert (await anext(again)).data == "2"


async def test_a_refused_renewal_reaches_the_reader(autojump_clock, pusher):
    """After what was delivered before; the other channels go on."""
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "private-a")
        other = await pusher.subscribed(client, peer, "b")
        await peer.send("tick", "1", "private-a")
        await peer.close(4200)
        peer = await pusher.accept()
        asked = {(await peer.take("pusher:subscribe"))["channel"] for _ in range(2)}
        assert asked == {"private-a", "b"}
        data = {"type": "AuthError", "error": "not any more", "status": 403}
        await peer.send("pusher:subscription_error", data, "private-a")
        await peer.send("pusher_internal:subscription_succeeded", "{}", "b")
        await peer.send("tick", "2", "b")

        assert (await anext(channel)).data == "1"
        with pytest.raises(SubscriptionError, match="not any more") as caught:
            await anext(channel)
        assert (caught.value.channel, caught.value.status) == ("private-a", 403)
        assert (await anext(other)).data == "2"
        assert "over" in repr(channel)
