"""HTTP sessions that are guessed, doubled, flooded, never polled or half read, and refusals."""

from __future__ import annotations

import json

import msgspec
import pytest
import structlog
import trio
from trio.testing import wait_all_tasks_blocked

from cachecast.server.transports import MAX_NAMELESS
from tests.wire.http_client import PUSHER_MAX_CHARACTERS, Exchange, HttpClient, pass_time

both = pytest.mark.parametrize("kind", ["xhr_streaming", "xhr"])


def last(lines: list[str]) -> tuple[int, str]:
    """Code and reason of the goodbye."""
    assert lines[-1].startswith("c"), lines
    code, reason = json.loads(lines[-1][1:])
    return code, reason


# --- refusals


@both
async def test_who_may_not_connect_hears_it_as_pusher_js_understands_it(
    autojump_clock, stage, kind
):
    stranger = HttpClient(stage.network, base="/pusher/app/nobody/1/s", kind=kind)
    stranger.receive()
    opened, error, goodbye = await stranger.hear()
    assert opened == "o"
    assert json.loads(json.loads(error[1:])[0])["data"]["code"] == 4001
    assert goodbye.startswith("c[4001,")
    old = HttpClient(stage.network, protocol="3", kind=kind)
    old.receive()
    assert last(await old.hear())[0] == 4007
    assert len(stage.network.server.transports) == 0


@pytest.mark.parametrize("app_fields", [{"max_connections": 1}])
async def test_a_session_counts_as_a_connection_does(autojump_clock, stage):
    await HttpClient(stage.network, "1/a", kind="xhr").connect()
    second = HttpClient(stage.network, "1/b")
    second.receive()
    assert last(await second.hear())[0] == 4004


@pytest.mark.parametrize("app_fields", [{"allowed_origins": ("app.example.org",)}])
async def test_pages_of_other_origins_are_refused_and_may_read_why(autojump_clock, stage):
    foreign = HttpClient(stage.network, headers={"Origin": "https://evil.example"})
    foreign.receive()
    assert last(await foreign.hear())[0] == 4009
    assert foreign.receiver.headers["access-control-allow-origin"] == "https://evil.example"
    own = HttpClient(stage.network, headers={"Origin": "https://app.example.org"})
    await own.connect()


@pytest.mark.parametrize("app_fields", [{"allows_http_transports": False}])
async def test_switched_off_it_says_so_in_http_so_that_websockets_are_tried_again(
    autojump_clock, stage
):
    client = HttpClient(stage.network)
    assert client.receive().status == 403
    assert b"allows_http_transports" in client.receiver.body
    sockjs = HttpClient(stage.network, base="/pusher/1/s")
    sockjs.receive()
    sent = sockjs.send({"path": f"/app/{client.app.key}?protocol=7"})
    assert sent.status == 403
    assert sockjs.receiver.is_closed
    assert stage.broker.statistics().apps[0].refusals["http 403"] == 2


async def test_a_reload_switches_it_off_for_newcomers(autojump_clock, stage):
    client = await HttpClient(stage.network).connect()
    config = stage.broker.config
    app = msgspec.structs.replace(config.apps[0], allows_http_transports=False)
    await stage.broker.reload(msgspec.structs.replace(config, apps=(app,)))
    assert HttpClient(stage.network, "1/other").receive().status == 403
    assert len(await client.subscribe("x")) == 1


async def test_browsers_may_ask_first_and_answers_name_their_origin(autojump_clock, stage):
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    for kind in ("xhr", "xhr_streaming", "xhr_send"):
        answer = Exchange(stage.network).request(
            "OPTIONS", f"/pusher/app/test-key/1/s/{kind}", headers=asked
        )
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert answer.headers["access-control-allow-headers"] == "Content-Type"
    client = await HttpClient(stage.network, headers={"Origin": "https://a.example"}).connect()
    assert client.receiver.headers["access-control-allow-credentials"] == "true"
    assert client.receiver.headers["x-accel-buffering"] == "no"
    assert client.send_raw(b"[]").headers["access-control-allow-origin"] == "https://a.example"
    wrong = Exchange(stage.network).request("GET", "/pusher/app/test-key/1/s/xhr")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")


# --- sessions of others


@both
async def test_only_one_request_receives_and_a_second_is_told_so(autojump_clock, stage, kind):
    client = await HttpClient(stage.network, kind=kind).connect()
    await client.subscribe("x")
    for other_kind in ("xhr_streaming", "xhr"):
        thief = HttpClient(stage.network, kind=other_kind)
        thief.receive()
        assert await thief.hear() == ['c[2010,"Another connection still open"]']
    await stage.broker.publish(stage.app_id, "x", "tick", 1)
    assert [m["event"] for m in await client.hear_messages()] == ["tick"]


async def test_a_session_is_reached_by_its_whole_path_only(autojump_clock, stage):
    client = await HttpClient(stage.network, "123/abcdefgh").connect()
    for base in (
        "/pusher/app/other-key/123/abcdefgh",
        f"/pusher/app/{client.app.key}/124/abcdefgh",
        f"/pusher/app/{client.app.key}/123/abcdefgi",
        f"/app/{client.app.key}/123/abcdefgh",
        "/pusher/123/abcdefgh",
    ):
        stranger = HttpClient(stage.network, base=base)
        answer = stranger.send({"event": "pusher:ping", "data": {}})
        assert answer.status == 404
        assert b"held by another node" in answer.body
    assert await client.hear() == []


# --- what a response holds


async def test_a_stream_ends_exactly_where_pusher_js_begins_another(autojump_clock, stage):
    client = await HttpClient(stage.network).connect()
    await client.subscribe("x")
    for number in range(300):
        await stage.broker.publish(stage.app_id, "x", "tick", {"n": number, "t": "ü" * 150})
    heard = await client.hear_messages()
    body = client.receiver.body
    # As HTTPRequest.isBufferTooLong has it: only now, and behind a whole line.
    assert len(body) > PUSHER_MAX_CHARACTERS
    assert body.endswith(b"\n")
    assert len(body[: body[:-1].rindex(b"\n") + 1]) <= PUSHER_MAX_CHARACTERS
    assert client.receiver.is_closed is False
    first = client.receiver
    assert len(heard) < 300
    while len(heard) < 300:
        client.receive()
        more = await client.hear_messages()
        assert client.receiver.lines[0].startswith("a")  # and no "o": that means a new session
        heard += more
    assert [json.loads(m["data"])["n"] for m in heard] == list(range(300))
    await pass_time(6)
    assert first.is_closed


async def test_sockjs_stream_is_ended_and_goes_on_with_the_next(autojump_clock, stage):
    client = HttpClient(stage.network, base="/pusher/1/s")
    client.receive()
    client.send({"path": f"/app/{client.app.key}?protocol=7"})
    client.send({"event": "pusher:subscribe", "data": {"channel": "x"}})
    await client.hear()
    for number in range(30):
        await stage.broker.publish(stage.app_id, "x", "tick", {"n": number, "t": "x" * 9_000})
    heard = await client.hear_messages()
    assert client.receiver.is_closed
    while len(heard) < 30:
        client.receive()
        heard += await client.hear_messages()
    assert [json.loads(m["data"])["n"] for m in heard] == list(range(30))


@both
@pytest.mark.parametrize("app_fields", [{"max_pending_bytes": 20_000, "max_event_bytes": 10_000}])
async def test_who_does_not_read_gets_the_newest_value_or_has_to_go(autojump_clock, stage, kind):
    cached = await HttpClient(stage.network, "1/a", kind=kind).connect()
    plain = await HttpClient(stage.network, "1/b", kind=kind).connect()
    await cached.subscribe("cache-x")
    await plain.subscribe("x")
    for client in (cached, plain):
        client.receiver.read(2_000)
    for number in range(50):
        await stage.broker.publish(
            stage.app_id, ["cache-x", "x"], "tick", f"{number:02}" + "x" * 9_000
        )
        await wait_all_tasks_blocked()
    cached.receiver.read()
    values = [m["data"].strip('"')[:2] for m in await cached.hear_messages()]
    assert values == sorted(values)
    assert values[-1] == "49"
    assert len(values) < 5
    plain.receiver.read()
    assert last(await plain.hear())[0] == 4100
    assert stage.broker.statistics().apps[0].slow_closes == 1


async def test_a_poll_that_is_not_read_at_all_ends_its_session_and_no_other(autojump_clock, stage):
    client = await HttpClient(stage.network, kind="xhr").connect()
    await client.subscribe("x")
    client.receiver.read(10)  # not even the head of an answer
    await stage.broker.publish(stage.app_id, "x", "tick", 1)
    await pass_time(1)
    assert stage.broker.clients.n_sessions == 0
    assert client.receiver.is_closed


# --- floods


async def test_more_messages_than_allowed_end_the_session(autojump_clock, stage):
    client = await HttpClient(stage.network).connect()
    for _ in range(100):
        client.send_raw(json.dumps(['{"event":"pusher:ping","data":{}}'] * 200).encode())
        await wait_all_tasks_blocked()
    code, reason = last(await client.hear())
    assert (code, "Too many messages" in reason) == (4009, True)
    assert client.send_raw(b"[]").status == 404


async def test_empty_requests_are_counted_too(autojump_clock, stage):
    client = await HttpClient(stage.network).connect()
    while not client.receiver.is_closed:
        client.send_raw(b"[]")
    assert last(await client.hear())[0] == 4009


async def test_a_large_message_is_refused_as_in_a_websocket(autojump_clock, stage):
    client = await HttpClient(stage.network).connect()
    sent = client.send("x" * 70_000)
    assert sent.status == 204
    assert last(await client.hear()) == (1009, "Message larger than 65536 bytes")


async def test_a_body_of_many_small_messages_is_not_read(autojump_clock, stage):
    client = await HttpClient(stage.network).connect()
    assert client.send_raw(b'["x' + b'","' * 180_000 + b'"]').status == 413
    await client.subscribe("still-there")
    assert stage.broker.clients.n_sessions == 1


@both
async def test_a_client_that_takes_not_even_the_greeting_has_gone(autojump_clock, stage, kind):
    exchange = Exchange(stage.network)
    exchange.socket.room = 0
    with structlog.testing.capture_logs() as logs:
        exchange.request("POST", f"/pusher/1/s/{kind}")
    assert len(stage.network.server.transports) == 0
    assert exchange.is_closed
    assert logs == []


async def test_ten_bodies_that_cannot_be_read_end_the_session(autojump_clock, stage):
    client = await HttpClient(stage.network).connect()
    answers = [client.send_raw(b"{").status for _ in range(11)]
    assert answers == [400] * 10 + [404]
    assert "Too many invalid messages" in last(await client.hear())[1]


async def test_what_a_client_asks_for_waits_until_it_has_read(autojump_clock, stage):
    names = [f"cache-{n}" for n in range(40)]
    for name in names:
        await stage.broker.publish(stage.app_id, name, "tick", "x" * 9_000)
    client = await HttpClient(stage.network).connect()
    client.receiver.read(1_000)
    sent = client.send(*({"event": "pusher:subscribe", "data": {"channel": n}} for n in names))
    await pass_time(1)
    assert sent.status == 0  # it is answered when its messages have been handled
    assert stage.broker.statistics().outbox_bytes < 100_000
    second = client.sender = Exchange(stage.network)
    client.send({"event": "pusher:subscribe", "data": {"channel": "last"}})
    heard: list[str] = []
    for _ in range(40):
        client.receiver.read(30_000)
        heard += [m["channel"] for m in await client.hear_messages()]
        if client.receiver.received and "last" in heard:
            break
        await trio.sleep(0.1)
        if len(client.receiver.body) > PUSHER_MAX_CHARACTERS:
            client.receive()
    assert heard == [n for name in names for n in (name, name)] + ["last"]
    assert (sent.status, second.status) == (204, 204)


async def test_what_waits_to_be_handled_is_bounded(autojump_clock, stage):
    for name in [f"cache-{n}" for n in range(20)]:
        await stage.broker.publish(stage.app_id, name, "tick", "x" * 9_000)
    client = await HttpClient(stage.network).connect()
    client.receiver.read(1_000)
    subscribe = [
        {"event": "pusher:subscribe", "data": {"channel": f"cache-{n}"}} for n in range(20)
    ]
    client.send(*subscribe)
    for _ in range(5):
        client.sender = Exchange(stage.network)
        client.send("x" * 60_000)
    await pass_time(0)
    client.receiver.read()
    assert last(await client.hear())[0] == 4100
    await pass_time(1)
    assert client.sender.status == 204  # an answer that nobody needs any more
    assert stage.broker.clients.n_sessions == 0


async def test_who_says_no_app_is_closed_after_a_while_and_the_oldest_makes_room(
    autojump_clock, stage
):
    first = HttpClient(stage.network, base="/pusher/1/first").receive()
    for n in range(MAX_NAMELESS):
        HttpClient(stage.network, base=f"/pusher/1/{n}").receive()
    assert first.is_closed
    assert len(stage.network.server.transports) == MAX_NAMELESS
    await pass_time(12)
    assert len(stage.network.server.transports) == 0


async def test_a_first_message_that_names_no_app_is_refused_in_words(autojump_clock, stage):
    client = HttpClient(stage.network, base="/pusher/1/s")
    client.receive()
    assert client.send_raw(b"[]").status == 204
    client.send({"event": "pusher:ping"})
    assert last(await client.hear())[0] == 4005
    client = HttpClient(stage.network, base="/pusher/1/t", kind="xhr")
    assert client.receive().status == 200
    client.send({"path": "/app/nobody?protocol=7"})  # between two polls
    client._n_read = 1
    client.receive()
    assert last(await client.hear())[0] == 4001


async def test_requests_behind_one_that_receives_are_not_answered_by_anybody_else(
    autojump_clock, stage
):
    exchange = Exchange(stage.network)
    path = "/pusher/app/test-key/1/s/xhr"
    request = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
    exchange.say(request + request)
    assert (exchange.received, exchange.is_closed) == (b"", True)
    client = await HttpClient(stage.network).connect()
    client.receiver.say(b"x" * 70_000)
    await pass_time(0)
    assert client.receiver.is_closed


# --- the end of the node


@both
async def test_a_node_that_drains_says_so(autojump_clock, stage, kind):
    client = await HttpClient(stage.network, kind=kind).connect()
    nameless = HttpClient(stage.network, base="/pusher/1/s").receive()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: stage.network.server.drain(0.1, code=4200))
        await trio.sleep(0.2)
        lines = await client.hear()
        assert last(lines) == (4200, "Server is shutting down, reconnect elsewhere")
        client.receiver.end()
    assert nameless.is_closed


@both
async def test_a_client_that_answers_nothing_is_pinged_and_closed(autojump_clock, stage, kind):
    client = await HttpClient(stage.network, kind=kind).connect()
    if kind == "xhr":  # whose polls are signs of life
        for _ in range(10):
            await trio.sleep(26)
            assert await client.hear() == ["h"]
        return
    await trio.sleep(121)
    assert [m["event"] for m in await client.hear_messages()] == ["pusher:ping"]
    await trio.sleep(32)
    assert last(await client.hear()) == (4201, "Pong reply not received")


async def test_a_script_has_one_line_each_and_the_connection_is_used_again(autojump_clock, stage):
    connection = Exchange(stage.network)

    async def poll() -> bytes:
        connection.request("GET", "/pusher/1/s/jsonp?c=_jp.a")
        await wait_all_tasks_blocked()
        return connection.body

    assert await poll() == b'/**/_jp.a("o");\r\n'
    body = b"d=" + json.dumps([json.dumps({"path": "/app/test-key?protocol=7"})]).encode()
    sent = Exchange(stage.network).request("POST", "/pusher/1/s/jsonp_send", body)
    assert (sent.status, sent.body) == (200, b"ok")
    assert b"connection_established" in await poll()
    subscribe = [json.dumps({"event": "pusher:subscribe", "data": {"channel": "cache-x"}})]
    Exchange(stage.network).request(
        "POST", "/pusher/1/s/jsonp_send", json.dumps(subscribe).encode()
    )
    assert b"subscription_succeeded" in await poll()
    connection.read(150)
    assert b"cache_miss" not in await poll()
    connection.read()
    assert b"cache_miss" in connection.body
    thief = Exchange(stage.network)
    assert thief.request("GET", "/pusher/1/s/jsonp").status == 400
    connection.request("GET", "/pusher/1/s/jsonp?c=_jp.a")
    thief.request("GET", "/pusher/1/s/jsonp?c=f")
    assert thief.body == b'/**/f("c[2010,\\"Another connection still open\\"]");\r\n'


@pytest.mark.parametrize("app_fields", [{"cache_ttl_s": 5.0}])
async def test_half_a_script_with_a_value_is_not_completed_past_its_end(autojump_clock, stage):
    await stage.broker.publish(stage.app_id, "cache-x", "tick", "x" * 9_000)
    connection = Exchange(stage.network)
    base = "/pusher/app/test-key/1/s"
    connection.request("GET", f"{base}/jsonp?c=f&protocol=7")
    subscribe = [json.dumps({"event": "pusher:subscribe", "data": {"channel": "cache-x"}})]
    Exchange(stage.network).request("POST", f"{base}/jsonp_send", json.dumps(subscribe).encode())
    for _ in range(2):  # what there was before the subscription, and its confirmation
        connection.request("GET", f"{base}/jsonp?c=f")
        await wait_all_tasks_blocked()
    connection.read(500)
    connection.request("GET", f"{base}/jsonp?c=f")
    await pass_time(6)
    assert b"xxxx" in connection.body
    connection.read()
    await pass_time(1)
    assert connection.is_closed
    assert not connection.body.endswith(b");\r\n")
