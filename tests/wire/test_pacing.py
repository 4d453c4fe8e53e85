"""What a client asked for itself waits for its reading, whatever its size."""

from __future__ import annotations

import msgspec
import pytest
import trio
import trio.testing

from cachecast.channels.outbox import FLUSH_BYTES
from cachecast.channels.waiting import PACE_BYTES
from cachecast.protocol import frames
from cachecast.server import websocket
from cachecast.testing.client import _client_frame

VALUE = "x" * 10_000

#: What one connection may have waiting while it is paced: the mark, the answer that passed it, and
#: what a flush has joined.
MOST = PACE_BYTES + FLUSH_BYTES + 120_000


async def _read_bit_by_bit(stage, client, is_done, *, n_bytes, every_s):
    """Read at a pace, with a look at what the node holds for it."""
    most = 0
    for _ in range(20_000):
        if is_done():
            return most
        most = max(most, stage.broker.statistics().outbox_bytes)
        client.read(n_bytes)
        await trio.sleep(every_s)
        assert client.close_code is None
    raise AssertionError("it never ends")


def _named(client, event):
    return [m for m in client.messages if m.event == event]


@pytest.mark.parametrize("speaks_msgpack", [False, True])
@pytest.mark.parametrize(("n", "n_bytes", "every_s"), [(200, 3_000, 0.1), (1_000, 90_000, 1.0)])
async def test_a_thousand_cached_values_at_once_come_at_the_pace_of_their_reader(
    autojump_clock, stage, n, n_bytes, every_s, speaks_msgpack
):
    """All of them, in the order in which they were asked for, and in bounded memory."""
    for number in range(n):
        await stage.broker.publish(stage.app_id, f"cache-{number}", "tick", f"{number} {VALUE}")
    client = await stage.network.connect(speaks_msgpack=speaks_msgpack)
    client.stop_reading()
    for number in range(n):
        client.send(client.subscription(f"cache-{number}"))

    most = await _read_bit_by_bit(
        stage, client, lambda: len(_named(client, "tick")) == n, n_bytes=n_bytes, every_s=every_s
    )

    assert [m.channel for m in _named(client, "tick")] == [f"cache-{i}" for i in range(n)]
    assert PACE_BYTES < most < MOST
    assert stage.broker.statistics().outbox_bytes == 0


@pytest.mark.parametrize("app_fields", [{"max_presence_member_bytes": 100_000}])
@pytest.mark.parametrize("config_fields", [{"max_message_bytes": 300_000}])
async def test_a_hundred_large_rosters_at_once_do_not_make_a_client_slow(autojump_clock, stage):
    """100 KB each."""
    member = await stage.network.connect()
    for number in range(100):
        await member.subscribe(f"presence-{number}", user_id="m", user_info={"text": "x" * 99_000})
    member.forget()
    client = await stage.network.connect()
    client.stop_reading()
    for number in range(100):
        client.send(client.subscription(f"presence-{number}", user_id="c"))

    most = await _read_bit_by_bit(
        stage,
        client,
        lambda: len(_named(client, "pusher_internal:subscription_succeeded")) == 100,
        n_bytes=70_000,
        every_s=1.0,
    )

    assert most < MOST


@pytest.mark.parametrize(
    "app_fields",
    [
        {
            "max_event_bytes": 1_500_000,
            "max_pending_bytes": 1_600_000,
            "allows_client_events": False,
        }
    ],
)
async def test_several_values_larger_together_than_may_wait_reach_a_late_joiner(
    autojump_clock, stage
):
    for number in range(5):
        await stage.broker.publish(stage.app_id, f"cache-{number}", "tick", "x" * 1_400_000)
    client = await stage.network.connect()
    client.stop_reading()
    for number in range(5):
        client.send(client.subscription(f"cache-{number}"))

    most = await _read_bit_by_bit(
        stage, client, lambda: len(_named(client, "tick")) == 5, n_bytes=50_000, every_s=1.0
    )

    assert most < 1_500_000


async def test_what_is_published_to_a_client_counts_beside_what_it_asked_for(autojump_clock, stage):
    """And ends it at the limit, as it always did."""
    for number in range(20):
        await stage.broker.publish(stage.app_id, f"cache-{number}", "tick", VALUE)
    client = await stage.network.connect()
    await client.subscribe("news")
    client.stop_reading()
    for number in range(20):
        client.send(client.subscription(f"cache-{number}"))

    for _ in range(103):
        await stage.broker.publish(stage.app_id, "news", "tick", VALUE)
    await trio.testing.wait_all_tasks_blocked()
    assert stage.broker.statistics().connections == 1
    for _ in range(10):
        await stage.broker.publish(stage.app_id, "news", "tick", VALUE)
    await trio.testing.wait_all_tasks_blocked()

    assert stage.broker.statistics().apps[0].slow_closes == 1


async def test_a_client_that_really_stops_reading_is_closed_when_nothing_has_moved(
    autojump_clock, stage
):
    """With 4100, and until then it costs little more than the mark."""
    for number in range(200):
        await stage.broker.publish(stage.app_id, f"cache-{number}", "tick", VALUE)
    client = await stage.network.connect()
    client.stop_reading()
    for number in range(200):
        client.send(client.subscription(f"cache-{number}"))

    assert stage.broker.statistics().outbox_bytes < MOST
    await trio.sleep(29)
    assert stage.broker.statistics().connections == 1
    await trio.sleep(4)

    statistics = stage.broker.statistics()
    assert (statistics.connections, statistics.apps[0].slow_closes) == (0, 1)
    assert statistics.outbox_bytes < FLUSH_BYTES + 1_000
    client.start_reading()
    assert client.close_code == 4100
    await trio.sleep(6)
    assert stage.broker.statistics().outbox_bytes == 0


@pytest.mark.parametrize("app_fields", [{"stall_timeout_s": 400.0}])
async def test_a_client_whose_answers_are_not_read_is_not_judged_by_them(autojump_clock, stage):
    """A ping that it cannot be heard to answer says nothing: only that nothing moves does."""
    for number in range(40):
        await stage.broker.publish(stage.app_id, f"cache-{number}", "tick", VALUE)
    client = await stage.network.connect()
    client.stop_reading()
    for number in range(40):
        client.send(client.subscription(f"cache-{number}"))

    for _ in range(12):  # a little in every hundred seconds, for longer than ping and pong take
        await trio.sleep(100)
        client.read(1_000)
    assert stage.broker.statistics().connections == 1
    client.start_reading()
    assert len(_named(client, "tick")) == 40
    assert client.close_code is None
    await trio.sleep(500)
    assert stage.broker.statistics().connections == 1  # and it answers its pings again
    assert client.pings > 0

    client.answers_pings = False
    await trio.sleep(160)
    assert client.close_code == 4201


async def test_a_paced_client_that_stalls_is_told_4100_not_4201(autojump_clock, stage):
    for number in range(40):
        await stage.broker.publish(stage.app_id, f"cache-{number}", "tick", VALUE)
    client = await stage.network.connect()
    client.stop_reading()
    for number in range(40):
        client.send(client.subscription(f"cache-{number}"))
    await trio.sleep(32)
    client.start_reading()

    assert client.close_code == 4100


async def test_requests_that_wait_are_carried_out_in_their_order(autojump_clock, stage):
    """Subscribe, leave and subscribe again while paced: each at its turn, none twice."""
    for number in range(30):
        await stage.broker.publish(stage.app_id, f"cache-{number}", "tick", f"{number} {VALUE}")
    client = await stage.network.connect()
    client.stop_reading()
    for number in range(30):
        client.send(client.subscription(f"cache-{number}"))
    for number in range(0, 30, 2):
        client.unsubscribe(f"cache-{number}")
    client.send(client.subscription("cache-0"))
    client.send({"event": "pusher:ping", "data": {}})

    client.start_reading()
    assert client.messages[-1].event == "pusher:pong"
    assert len(stage.broker.hubs[stage.app_id].channels) == 16
    answered = _named(client, "pusher_internal:subscription_succeeded")
    assert [m.channel for m in answered] == [*(f"cache-{i}" for i in range(30)), "cache-0"]


async def test_values_that_expire_before_their_turn_are_misses(autojump_clock, stage):
    """What waits to be asked for is looked up when it is its turn, and never served dead."""
    for number in range(40):
        await stage.broker.publish(stage.app_id, f"cache-{number}", "tick", VALUE)
    await trio.sleep(1_790)
    client = await stage.network.connect()
    client.stop_reading()
    for number in range(40):
        client.send(client.subscription(f"cache-{number}"))
    client.read(100_000)
    n_alive = len(_named(client, "tick"))
    await trio.sleep(11)
    client.start_reading()

    if client.is_closed:  # one was half on the wire
        assert len(_named(client, "tick")) == n_alive
    else:
        assert len(_named(client, "pusher:cache_miss")) >= 40 - n_alive - 8


async def test_a_newer_value_replaces_one_that_waits_for_its_reader(autojump_clock, stage):
    """Conflation goes on while replies wait: the newest, once, after its confirmation."""
    for number in range(30):
        await stage.broker.publish(stage.app_id, f"cache-{number}", "tick", f"old {VALUE}")
    client = await stage.network.connect()
    client.stop_reading()
    for number in range(30):
        client.send(client.subscription(f"cache-{number}"))
    for number in range(30):
        await stage.broker.publish(stage.app_id, f"cache-{number}", "tick", f"new {VALUE}")
    await trio.testing.wait_all_tasks_blocked()
    client.start_reading()
    await trio.testing.wait_all_tasks_blocked()

    values = _named(client, "tick")
    assert sorted(m.channel for m in values) == sorted(f"cache-{i}" for i in range(30))
    assert {m.data[:3] for m in values} == {"new"}


async def test_a_client_that_leaves_while_it_is_paced_is_forgotten(autojump_clock, stage):
    for number in range(40):
        await stage.broker.publish(stage.app_id, f"cache-{number}", "tick", VALUE)
    client = await stage.network.connect()
    client.stop_reading()
    for number in range(40):
        client.send(client.subscription(f"cache-{number}"))
    client.drop(ConnectionResetError())
    client.read(1)

    statistics = stage.broker.statistics()
    assert (statistics.connections, statistics.outbox_bytes) == (0, 0)


# --- what brings no message is counted too


@pytest.mark.parametrize("payload", [b"", b"x"])
async def test_fragments_that_never_end_are_a_flood(autojump_clock, stage, payload):
    """As pings are: 2,000 in a burst, 200 a second, and 4009 for more."""
    client = await stage.network.connect()
    client.send_frame(frames.TEXT, b"", is_final=False)
    for _ in range(1_998):
        client.send_frame(0, payload, is_final=False)
    assert client.close_code is None
    for _ in range(200):
        await trio.sleep(0.005)
        client.send_frame(0, payload, is_final=False)
    assert client.close_code is None
    for _ in range(10):
        client.send_frame(0, payload, is_final=False)

    assert client.close_code == 4009


async def test_a_message_in_fragments_is_a_message(autojump_clock, stage):
    client = await stage.network.connect()
    text = msgspec.json.encode(client.subscription("cache-x"))
    for at in range(len(text)):
        client.send_frame(0 if at else frames.TEXT, text[at : at + 1], is_final=at == len(text) - 1)

    assert client.messages[-1].event == "pusher:cache_miss"


# --- refusals


async def test_refusals_quote_a_few_hundred_bytes_at_most(autojump_clock, stage):
    """Whatever was sent, and wherever it is quoted."""
    client = await stage.network.connect()
    long = "é" * 8_000
    key = client.app.key
    data = msgspec.json.encode({"user_id": long, "user_info": {long: long}}).decode()
    signature = client.sign(f"{client.socket_id}:presence-x:{data}")
    user = msgspec.json.encode({"id": 1, long: long}).decode()
    signed_user = client.sign(f"{client.socket_id}::user::{user}")
    for message in (
        {"event": long},
        {"event": "pusher:subscribe", "data": {"channel": long}},
        {"event": "pusher:subscribe", "data": {"channel": "private-x", "auth": long}},
        {"event": "pusher:subscribe", "data": {"channel": "private-x", "auth": f"{long}:1"}},
        {"event": "pusher:subscribe", "data": {"channel": "private-x", "auth": f"{key}:{long}"}},
        {"event": "pusher:subscribe",
         "data": {"channel": "presence-x", "channel_data": long, "auth": f"{key}:1"}},
        {"event": "pusher:subscribe",
         "data": {"channel": "presence-x", "channel_data": data, "auth": signature}},
        {"event": "pusher:unsubscribe", "data": {"channel": long}},
        {"event": "client-" + long, "channel": "private-x", "data": 1},
        {"event": "client-x", "channel": long, "data": 1},
        {"event": "pusher:signin", "data": {"auth": f"{key}:1", "user_data": long}},
        {"event": "pusher:signin", "data": {"auth": signed_user, "user_data": user}},
        {"event": {long: long}},
        {"event": "pusher:subscribe", "data": {"channel": {long: 1}}},
    ):  # fmt: skip
        before = sum(map(len, client.chunks))
        client.send(message)
        answers = [
            m for m in client.messages if m.event in {"pusher:error", "pusher:subscription_error"}
        ]
        assert answers
        assert sum(map(len, client.chunks)) - before < 1_800, str(message)[:60]
        assert all(len(m.text.encode()) < 900 for m in answers), str(message)[:60]
        client.messages.clear()


async def test_refusals_over_http_quote_a_few_hundred_bytes_at_most(autojump_clock, stage):
    """A signature that does not fit its request is shown what was signed, and not all of it."""
    long = "é" * 2_000
    app = stage.broker.config.apps[0]
    wrong = msgspec.structs.replace(app, secret="wrong")
    for arguments in (
        {"params": {"info": long}, "app": wrong},
        {"params": {"info": long}},
        {"method": "POST", "path": "/events", "body": {"name": long, "channel": "x", "data": ""}},
        {"method": "POST", "path": "/events", "body": {"name": "x", "channel": long, "data": ""}},
        {"method": "POST", "path": "/events", "body": {"name": {long: long}}},
        {"method": "POST", "path": "/events", "body": {"name": "e", "channel": "x", "data": "",
                                                       "socket_id": long}},
        {"path": f"/channels/{'x' * 5_000}/cache"},
        {"path": f"/{'x' * 5_000}"},
    ):  # fmt: skip
        asked = {"method": "GET", "path": "/channels"} | arguments
        answer = await stage.network.request(**asked)
        assert answer.status >= 400
        assert len(answer.body) < 620, (arguments, answer.body)


# --- turns


async def test_messages_of_one_read_leave_turns_to_others(autojump_clock, stage, monkeypatch):
    """A handler ends when its time is up, with what it has read still to be handled."""
    monkeypatch.setattr(websocket, "HANDLER_S", 0.0)
    clients = [await stage.network.connect() for _ in range(2)]
    for who, client in zip("ab", clients, strict=True):
        for number in range(20):
            asked = client.subscription(f"{who}{number}")
            client.socket.inbound += _client_frame(frames.TEXT, msgspec.json.encode(asked))
        stage.network.poller.touch(client.socket.fileno())

    stage.network.poller.serve_ready()

    assert list(stage.broker.hubs[stage.app_id].channels) == [
        f"{who}{number}" for number in range(20) for who in "ab"
    ]
