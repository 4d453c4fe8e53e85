"""What each message means, and what is shown of it."""

import pytest
import trio

from cachecast.errors import RefusedError


async def test_state_changes_and_errors_come_as_events(autojump_clock, pusher):
    async with pusher.connect() as client:
        peer = await pusher.accept()
        await peer.error(4301, "Client event rejected due to rate limit")
        events = client.events
        first, second = await anext(events), await anext(events)
        await peer.close(4200)
        third = await anext(events)

    assert first.name == "pusher:state_change"
    assert first.json() == {"previous": "connecting", "current": "connected"}
    assert second.name == "pusher:error"
    assert second.json()["code"] == 4301
    assert third.json() == {"previous": "connected", "current": "unavailable"}


async def test_own_events_nobody_reads_are_bounded(autojump_clock, pusher):
    async with pusher.connect() as client:
        peer = await pusher.accept()
        for i in range(300):
            await peer.error(None, f"error {i}")
        await peer.send("pusher:ping")
        await peer.receive()
        statistics = client.statistics()
        events = client.events
        first = await anext(events)

    assert statistics.queued_events == 256
    assert statistics.lost_events == 300 + 1 - 256
    assert first.json()["message"] == "error 44"


async def test_unknown_messages_of_later_protocols_do_no_harm(autojump_clock, pusher):
    async with pusher.connect() as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "a")
        await peer.send("pusher_internal:novelty", "{}", "a", more=[1])
        await peer.send("pusher:novelty", {"x": 1})
        await peer.send("tick", "1", "elsewhere")

        event = await anext(channel)
        assert event.name == "pusher:novelty"
        assert event.is_protocol


async def test_messages_that_are_none_are_counted_and_reported(autojump_clock, pusher):
    """The connection stays, as with pusher-js (1.6)."""
    async with pusher.connect() as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "a")
        rubbish = [
            "", "no JSON", "[]", '"text"', "{}", '{"event":1}', b"\x00binary", "[" * 50_000,
            '{"event":"e","channel":7}', '{"event":"pusher:error","data":"no object"}',
            '{"event":"pusher_internal:subscription_count","channel":"a","data":"{}"}',
        ]  # fmt: skip
        for message in rubbish:
            await peer.socket.send_message(message)
        await peer.send("tick", "1", "a")

        event = await anext(channel)
        assert event.name == "tick"
        assert client.statistics().bad_messages == len(rubbish)
        assert client.statistics().connections == 1


async def test_the_watchlist_comes_as_events(autojump_clock, pusher):
    """One frame may hold several (protocol.md 5.4)."""
    data = '{"events":[{"name":"online","user_ids":["1","2"]},{"name":"offline","user_ids":["3"]}]}'
    async with pusher.connect() as client:
        peer = await pusher.accept()
        await client.wait_connected()
        await peer.send("pusher_internal:watchlist_events", data)
        events = client.events
        await anext(events)
        online, offline = await anext(events), await anext(events)

    assert (online.name, online.json()["user_ids"]) == ("pusher:online", ["1", "2"])
    assert (offline.name, offline.json()["user_ids"]) == ("pusher:offline", ["3"])


async def test_events_without_a_channel_are_the_connections(autojump_clock, pusher):
    async with pusher.connect() as client:
        peer = await pusher.accept()
        await client.wait_connected()
        await peer.send("news", {"a": 1})
        await anext(client.events)
        event = await anext(client.events)

    assert (event.name, event.channel, event.json()) == ("news", None, {"a": 1})


async def test_own_events_end_with_the_client(autojump_clock, pusher):
    async with pusher.connect() as client:
        peer = await pusher.accept()
        await client.wait_connected()
        events = client.events
    assert [event.json()["current"] async for event in events] == ["connected", "closed"]

    async with pusher.connect() as client:
        peer = await pusher.accept()
        await peer.close(4001)
        seen = []
        with pytest.raises(RefusedError):
            seen.extend([event.json()["current"] async for event in client.events])


async def test_a_failure_that_was_told_is_not_raised_again_on_leaving(autojump_clock, pusher):
    """Whoever has handled it may leave in peace."""
    async with pusher.connect() as client:
        peer = await pusher.accept()
        await peer.close(4001)
        await trio.sleep(1)
        with pytest.raises(RefusedError):
            await client.wait_connected()


async def test_half_an_emoji_is_read_with_a_replacement(autojump_clock, pusher):
    """Whoever sent it: JavaScript cuts strings there, and RFC 8259 allows it."""
    async with pusher.connect() as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "a")
        await peer.socket.send_message('{"event":"e\\ud83d","channel":"a","data":{"t":"\\ud83d"}}')
        await peer.send("e", '{"t":"\\ud83d"}', "a")

        first, second = await anext(channel), await anext(channel)
        assert (first.name, first.json()) == ("e\ufffd", {"t": "\ufffd"})
        assert (second.data, second.json()) == ('{"t":"\\ud83d"}', {"t": "\ufffd"})
        assert client.statistics().bad_messages == 0
