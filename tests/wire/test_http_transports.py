"""The protocol over HTTP: what pusher-js's xhr_streaming, xhr_polling and sockjs are told."""

from __future__ import annotations

import json

import pytest
import trio

from tests.wire.http_client import Exchange, HttpClient, pass_time

both = pytest.mark.parametrize("kind", ["xhr_streaming", "xhr"])


@both
async def test_channels_replay_presence_and_client_events_beside_websockets(
    autojump_clock, stage, kind
):
    plain = await stage.enter("A")
    await stage.broker.publish(stage.app_id, "cache-x", "tick", {"n": "ä\u2028😀"})
    await plain.subscribe("presence-x", user_id="1", user_info={"name": "ä"})
    client = await HttpClient(stage.network, kind=kind).connect()

    succeeded, value = await client.subscribe("cache-x")
    assert succeeded == {
        "event": "pusher_internal:subscription_succeeded", "channel": "cache-x", "data": "{}",
    }  # fmt: skip
    assert json.loads(value["data"]) == {"n": "ä\u2028😀"}
    _, miss = await client.subscribe("private-cache-y")
    assert miss["event"] == "pusher:cache_miss"
    (roster,) = await client.subscribe("presence-x", user_id="2")
    assert json.loads(roster["data"])["presence"]["ids"] == ["1", "2"]
    assert plain.messages[-1].json() == {"user_id": "2"}

    plain.trigger("presence-x", "client-hi", {"a": 1})
    (event,) = await client.hear_messages()
    assert (event["event"], event["user_id"]) == ("client-hi", "1")
    client.send({"event": "client-ho", "channel": "presence-x", "data": {"b": 1}})
    await client.hear()
    assert plain.messages[-1].event == "client-ho"

    await stage.broker.publish(stage.app_id, ["cache-x", "private-cache-y"], "tick", "now")
    assert [m["channel"] for m in await client.hear_messages()] == ["cache-x", "private-cache-y"]
    client.send({"event": "pusher:unsubscribe", "data": {"channel": "presence-x"}})
    await client.hear()
    assert plain.messages[-1].event == "pusher_internal:member_removed"


@both
async def test_a_client_that_goes_leaves_its_channels_at_once(autojump_clock, stage, kind):
    plain = await stage.enter("A")
    await plain.subscribe("presence-x", user_id="1")
    client = await HttpClient(stage.network, kind=kind).connect()
    await client.subscribe("presence-x", user_id="2")
    client.receiver.end()
    await pass_time(0)
    assert plain.messages[-1].event == "pusher_internal:member_removed"
    assert stage.broker.clients.n_sessions == 1
    assert len(stage.network.server.transports) == 0


async def test_a_client_that_polls_no_more_is_gone_after_ten_seconds(autojump_clock, stage):
    client = await HttpClient(stage.network, kind="xhr").connect()
    await pass_time(20)
    await client.subscribe("x")
    client.send({"event": "pusher:ping", "data": {}})  # which answers the last poll
    await pass_time(8)
    assert stage.broker.clients.n_sessions == 1
    await pass_time(4)
    assert stage.broker.clients.n_sessions == 0
    assert client.send({"event": "pusher:ping", "data": {}}).status == 404


async def test_a_stream_of_an_idle_client_beats(autojump_clock, stage):
    client = await HttpClient(stage.network).connect()
    await pass_time(27)
    assert await client.hear() == ["h"]
    client.send_raw(b"[]")  # pusher-js's answer, by which it also asks
    assert await client.hear() == ["a[]"]
    await pass_time(100)
    assert client.receiver.is_closed is False


@both
async def test_sockjs_says_its_app_in_its_first_message(autojump_clock, stage, kind):
    info = Exchange(stage.network).request("GET", "/pusher/info")
    assert json.loads(info.body)["websocket"] is False
    client = HttpClient(stage.network, kind=kind, base="/pusher/123/abcdefgh")
    client.receive()
    assert await client.hear() == ["o"]
    sent = client.send({"path": f"/app/{client.app.key_pairs[-1].key}?protocol=7&client=js"})
    assert sent.status == 204
    (message,) = await client.hear_messages()
    assert message["event"] == "pusher:connection_established"
    client.send({"event": "pusher:subscribe", "data": {"channel": "x"}})
    assert (await client.hear_messages())[0]["channel"] == "x"
    await pass_time(27)
    assert await client.hear() == ["h"]
    client.send_raw(b"[]")
    assert await client.hear() == []


async def test_sessions_that_wait_have_no_task(autojump_clock, stage):
    first = await HttpClient(stage.network, "1/first").connect()
    before = trio.lowlevel.current_statistics().tasks_living
    for kind in ("xhr_streaming", "xhr"):
        for number in range(50):
            client = await HttpClient(stage.network, f"{kind}/{number}", kind=kind).connect()
            await client.subscribe("x")
    assert trio.lowlevel.current_statistics().tasks_living == before
    assert stage.broker.clients.n_sessions == 101
    assert first.receiver.is_closed is False
