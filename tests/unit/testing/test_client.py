"""The client in memory behaves like one on the network, and says what it got."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from cachecast.protocol import frames
from cachecast.testing import TEST_APP, ClientClosedError
from cachecast.testing.client import _client_frame, _frame_size
from tests.harness.lower import client_frame


@pytest.mark.parametrize("size", [0, 1, 3, 4, 125, 126, 127, 65_535, 65_536, 70_001])
def test_its_frames_are_those_of_an_independent_hand(size):
    payload = bytes(range(256)) * 274
    payload = payload[:size]

    assert _client_frame(frames.TEXT, payload) == client_frame(frames.TEXT, payload)
    assert _client_frame(frames.TEXT, payload, is_final=False) == client_frame(
        frames.TEXT, payload, is_final=False
    )


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_it_knows_where_a_server_frame_ends(size):
    frame = frames.server_frame(frames.TEXT, b"x" * size)

    assert _frame_size(frame) == len(frame)
    assert _frame_size(frame[:1]) is None


async def test_a_cached_value_reaches_a_late_joiner_for_thirty_minutes(
    autojump_clock, cachecast_broker, cachecast_client
):
    await cachecast_broker.publish(TEST_APP.id, "cache-prices", "tick", {"eur": 1.08})
    await trio.sleep(29 * 60)
    client = await cachecast_client()
    await client.subscribe("cache-prices")
    assert (await client.receive()).json() == {"eur": 1.08}
    await trio.sleep(2 * 60)
    other = await cachecast_client()
    await other.subscribe("cache-prices")
    assert (await other.receive()).event == "pusher:cache_miss"


async def test_messages_come_once_and_in_order_and_are_all_kept(
    autojump_clock, cachecast_broker, cachecast_client
):
    client = await cachecast_client()
    await client.subscribe("x")
    for n in range(3):
        await cachecast_broker.publish(TEST_APP.id, "x", "tick", n)

    assert [(await client.receive()).json() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(trio.WouldBlock):
        client.receive_nowait()
    assert len(client.messages) == 5
    client.forget()
    assert (client.messages, client.received) == ([], b"")


async def test_what_arrives_while_it_subscribes_is_left_for_receive(
    autojump_clock, cachecast_broker, cachecast_client
):
    """And an old refusal is no answer to a new subscription."""
    client = await cachecast_client()
    await client.subscribe("x")
    await cachecast_broker.publish(TEST_APP.id, "x", "tick", 1)
    with pytest.raises(AssertionError, match="refused"):
        await client.subscribe("bad name")
    with pytest.raises(AssertionError, match="refused"):
        await client.subscribe("bad name")
    await client.subscribe("y")

    left = [client.receive_nowait().event for _ in range(3)]
    assert sorted(left) == ["pusher:error", "pusher:error", "tick"]


async def test_waiting_for_what_does_not_come_ends(autojump_clock, cachecast_client):
    """A virtual clock would run for ever otherwise; what came is in the text."""
    client = await cachecast_client()
    client.patience_s = 100
    with pytest.raises(trio.TooSlowError, match="nothing came within 100 s"):
        await client.receive()
    assert trio.current_time() == pytest.approx(100)


async def test_if_cancelled_none_is_lost(autojump_clock, cachecast_client):
    client = await cachecast_client()
    with trio.CancelScope() as scope:
        client.send({"event": "pusher:ping"})
        scope.cancel()
        await client.receive()

    assert scope.cancelled_caught
    assert (await client.receive()).event == "pusher:pong"


async def test_several_tasks_may_receive(autojump_clock, cachecast_client):
    client, got = await cachecast_client(), []

    async def read():
        got.append(await client.receive())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            client.send({"event": "pusher:ping"})

    assert len(got) == 3


async def test_iteration_ends_with_the_connection_and_receive_says_how(
    autojump_clock, cachecast_broker, cachecast_client
):
    client = await cachecast_client()
    await client.sign_in("u1")
    await cachecast_broker.terminate(TEST_APP.id, "u1")

    assert [message.event async for message in client] == ["pusher:error"]
    with pytest.raises(ClientClosedError) as caught:
        await client.receive()
    with pytest.raises(ClientClosedError):
        client.receive_nowait()
    assert caught.value.code == await client.wait_closed() == 4009
    assert caught.value.reason == "You got disconnected by the app."


async def test_it_answers_pings_unless_told_not_to(autojump_clock, cachecast_client):
    good, mute = await cachecast_client(), await cachecast_client()
    mute.answers_pings = False
    await trio.sleep(31 * 60)

    assert (good.close_code, mute.close_code) == (None, 4201)
    assert good.pings >= 14


async def test_a_slow_client_takes_bytes_as_it_is_told(
    autojump_clock, cachecast_broker, cachecast_client
):
    client = await cachecast_client()
    await client.subscribe("x")
    client.stop_reading(10)
    size = len(client.received)
    await cachecast_broker.publish(TEST_APP.id, "x", "tick", "x" * 100)
    await trio.testing.wait_all_tasks_blocked()
    assert len(client.received) == size + 10
    client.read(10)
    assert len(client.received) == size + 20
    client.start_reading()

    assert (await client.receive()).data == "x" * 100


@pytest.mark.parametrize("error", [None, ConnectionResetError()])
async def test_it_may_vanish(autojump_clock, cachecast_broker, cachecast_client, error):
    client = await cachecast_client()
    await client.subscribe("x")
    client.drop(error)
    if error is not None:
        assert cachecast_broker.statistics().connections == 1
        await cachecast_broker.publish(TEST_APP.id, "x", "tick", "1")
        await trio.testing.wait_all_tasks_blocked()

    assert cachecast_broker.statistics().connections == 0
    assert (client.is_closed, client.close_code) == (True, None)


async def test_encrypted_and_presence_channels_are_signed(autojump_clock, cachecast_client):
    client = await cachecast_client()
    for channel in ("private-encrypted-cache-x", "private-x"):
        await client.subscribe(channel)
    success = await client.subscribe("presence-x", user_id=7, user_info={"name": "Ann"})

    assert success.json()["presence"]["hash"] == {"7": {"name": "Ann"}}
    assert client.socket_id in repr(client)
