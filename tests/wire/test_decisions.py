"""What nobody documents, and what we decided: protocol.md 9.5, one test for each row."""
# ruff: noqa: E501 - a frame is one line

from __future__ import annotations

import msgspec
import pytest
import structlog
import trio
import trio.testing

from cachecast.errors import BadRequestError
from cachecast.protocol import frames

TTL_S = 1_800.0


def _error(text: str, code: str = "null", channel: str = "") -> str:
    where = f'"channel":"{channel}",' if channel else ""
    return f'{{"event":"pusher:error",{where}"data":{{"code":{code},"message":"{text}"}}}}'


def _refused(channel: str, text: str, kind: str = "AuthError", status: int = 401) -> str:
    return (
        f'{{"event":"pusher:subscription_error","channel":"{channel}","data":'
        f'{{"type":"{kind}","error":"{text}","status":{status}}}}}'
    )


def _tick(data: str, channel: str = "cache-x") -> str:
    return f'{{"event":"tick","channel":"{channel}","data":"{data}"}}'


async def test_raw_cache_miss_frame(autojump_clock, stage):
    await stage.enter("A")

    await stage.play(r"""
        A>> subscribe cache-x
        A<< ok cache-x
        A<< {"event":"pusher:cache_miss","channel":"cache-x","data":"{}"}
    """)


async def test_a_republish_restarts_the_thirty_minutes(autojump_clock, stage):
    for _ in range(3):
        await stage.broker.publish(stage.app_id, "cache-x", "tick", "1")
        await trio.sleep(TTL_S - 1)
        assert (await stage.broker.read_cache(stage.app_id, "cache-x")).ttl_s == pytest.approx(1)
    await trio.sleep(1)

    assert await stage.broker.read_cache(stage.app_id, "cache-x") is None


@pytest.mark.parametrize("app_fields", [{"max_cache_bytes": 5_000, "max_event_bytes": 2_000}])
async def test_the_cached_event_is_evicted_early_only_by_a_ceiling_counted_and_logged(
    autojump_clock, stage
):
    """Oldest first; the log says so once a minute, whatever the number."""
    with structlog.testing.capture_logs() as logs:
        for n in range(100):
            await stage.broker.publish(stage.app_id, f"cache-{n:02}", "tick", "x" * 100)
        await trio.sleep(30)
        await stage.broker.publish(stage.app_id, "cache-xx", "tick", "x" * 100)
        await trio.sleep(20)
        assert len(logs) == 1
        await trio.sleep(20)

    app = stage.broker.statistics().apps[0]
    assert app.cache_bytes <= 5_000
    assert app.cache_capacity_evictions == 101 - app.cache_entries
    assert await stage.broker.read_cache(stage.app_id, "cache-00") is None
    assert await stage.broker.read_cache(stage.app_id, "cache-99") is not None
    assert [log["count"] for log in logs] == [100 - app.cache_entries, 1]


async def test_an_event_published_with_socket_id_exclusion_is_cached(autojump_clock, stage):
    await stage.enter("A", "B")

    await stage.play(f"""
        A>> subscribe cache-x
        A<< ok cache-x
        A<< miss cache-x
        -- publish cache-x tick except A 1
        B>> subscribe cache-x
        B<< ok cache-x
        B<< {_tick("1")}
        A>> unsubscribe cache-x
        A>> subscribe cache-x
        A<< ok cache-x
        A<< {_tick("1")}
    """)


async def test_an_event_published_to_an_unoccupied_cache_channel_is_cached(autojump_clock, stage):
    await stage.enter("A")

    await stage.play(f"""
        -- publish cache-x tick 1
        A>> subscribe cache-x
        A<< ok cache-x
        A<< {_tick("1")}
    """)


@pytest.mark.parametrize("app_fields", [{"sends_subscription_counts": True}])
async def test_client_events_member_events_and_counts_are_never_cached(autojump_clock, stage):
    a, b = await stage.enter("A"), await stage.enter("B")
    for channel in ("private-cache-x", "presence-cache-x"):
        for client, user_id in ((a, "1"), (b, "2")):
            await client.subscribe(channel, user_id=user_id if "presence" in channel else None)
        a.trigger(channel, "client-x", 1)
        b.unsubscribe(channel)

    assert stage.broker.cache.n_entries() == 0


async def test_ttl_of_info_cache_is_rounded_up_and_null_when_empty(autojump_clock, stage):
    async def info():
        answer = await stage.network.request("GET", "/channels/cache-x", params={"info": "cache"})
        return answer.json()

    assert await info() == {"occupied": False, "cache": None}
    start = trio.current_time()
    await stage.broker.publish(stage.app_id, "cache-x", "tick", {"n": 1})
    assert await info() == {"occupied": False, "cache": {"data": '{"n":1}', "ttl": 1_800}}
    await trio.sleep_until(start + 0.5)
    assert (await info())["cache"]["ttl"] == 1_800
    await trio.sleep_until(start + 1_799.5)
    assert (await info())["cache"]["ttl"] == 1
    await trio.sleep_until(start + 1_800)
    assert (await info())["cache"] is None


async def test_a_second_subscribe_is_refused_and_the_cached_event_not_sent_again(
    autojump_clock, stage
):
    await stage.enter("A")

    await stage.play(f"""
        -- publish cache-x tick 1
        A>> subscribe cache-x
        A<< ok cache-x
        A<< {_tick("1")}
        A>> subscribe cache-x
        A<< {_error("Existing subscription to channel cache-x")}
        -- publish cache-x tick 2
        A<< {_tick("2")}
    """)


async def test_a_refused_subscription_gets_both_frames(autojump_clock, stage):
    await stage.enter("A")
    text = "Invalid format: auth must have the format key:signature"

    await stage.play(f"""
        A>> {{"event":"pusher:subscribe","data":{{"channel":"private-x"}}}}
        A<< {_error(text)}
        A<< {_refused("private-x", text)}
    """)


@pytest.mark.parametrize("app_fields", [{"max_presence_members": 1}])
async def test_presence_limits(autojump_clock, stage):
    """Too many members 4100; user id or object too large 4301; each with a pusher:error of null."""
    await stage.enter("A", "B")
    full = "The presence channel has its maximum of 1 members"
    long_id, large = "user_id is longer than 128 characters", "user_info is larger than 1024 bytes"
    await stage.clients["A"].subscribe("presence-x", user_id="1")
    stage.admit("A", stage.clients["A"])

    await stage.play(f"""
        B>> subscribe presence-x "2"
        B<< {_error(full)}
        B<< {_refused("presence-x", full, "LimitReached", 4100)}
        B>> subscribe presence-y "{"i" * 129}"
        B<< {_error(long_id)}
        B<< {_refused("presence-y", long_id, "LimitReached", 4301)}
        B>> subscribe presence-y "2" {{"n":"{"i" * 1_017}"}}
        B<< {_error(large)}
        B<< {_refused("presence-y", large, "LimitReached", 4301)}
        B>> subscribe presence-y "{"i" * 128}" {{"n":"{"i" * 1_016}"}}
        B<< $success
    """, success=_roster("presence-y", "i" * 128, {"n": "i" * 1_016}))  # fmt: skip


def _roster(channel: str, user_id: str, info: object) -> str:
    data = {"presence": {"ids": [user_id], "hash": {user_id: info}, "count": 1}}
    return msgspec.json.encode({
        "event": "pusher_internal:subscription_succeeded", "channel": channel,
        "data": msgspec.json.encode(data).decode(),
    }).decode()  # fmt: skip


async def test_numeric_user_ids_are_passed_on_as_signed_and_strings_over_http(
    autojump_clock, stage
):
    told = []

    async def hook(app_id, event):
        told.append(event.user_id)

    stage.broker.on("member_added", hook)
    await stage.enter("A", "B")

    await stage.play(r"""
        A>> subscribe presence-x 10
        A<< {"event":"pusher_internal:subscription_succeeded","channel":"presence-x","data":"{\"presence\":{\"ids\":[10],\"hash\":{\"10\":{}},\"count\":1}}"}
        B>> subscribe presence-x 11
        B<< {"event":"pusher_internal:subscription_succeeded","channel":"presence-x","data":"{\"presence\":{\"ids\":[10,11],\"hash\":{\"10\":{},\"11\":{}},\"count\":2}}"}
        A<< {"event":"pusher_internal:member_added","channel":"presence-x","data":"{\"user_id\":11}"}
        B>> {"event":"client-x","channel":"presence-x","data":1}
        A<< {"event":"client-x","channel":"presence-x","data":1,"user_id":11}
    """)
    users = await stage.network.request("GET", "/channels/presence-x/users")
    assert users.json() == {"users": [{"id": "10"}, {"id": "11"}]}
    assert told == ["10", "11"]


async def test_the_first_connections_user_info_stands_until_the_users_last_leaves(
    autojump_clock, stage
):
    a, b, c = [await stage.network.connect() for _ in range(3)]
    await a.subscribe("presence-x", user_id="1", user_info={"v": "first"})
    await b.subscribe("presence-x", user_id="1", user_info={"v": "second"})
    a.unsubscribe("presence-x")
    success = await c.subscribe("presence-x", user_id="2")
    assert success.json()["presence"]["hash"]["1"] == {"v": "first"}
    b.unsubscribe("presence-x")
    await b.subscribe("presence-x", user_id="1", user_info={"v": "third"})

    added = [m for m in c.messages if m.event == "pusher_internal:member_added"]
    await trio.testing.wait_all_tasks_blocked()
    added = [m for m in c.messages if m.event == "pusher_internal:member_added"]
    assert [m.json()["user_info"] for m in added] == [{"v": "third"}]


async def test_a_binary_frame_on_a_json_connection_closes_with_1003(autojump_clock, stage):
    client = await stage.enter("A")

    client.send_frame(frames.BINARY, b"\x80")

    await stage.play("-- wait 0\nA<< close 1003 This connection speaks another codec")


@pytest.mark.parametrize(
    "message", ["{", "[]", "{}", '{"event":7}', '{"event":"pusher:subscribe","data":3}']
)
async def test_ten_bad_messages_in_ten_seconds_close_with_4009(autojump_clock, stage, message):
    """Each is answered with code null and a text that names the fault; the connection stays till then."""
    client = await stage.enter("A")
    for _ in range(9):
        client.send(message)
    assert {m.json()["code"] for m in client.messages[1:]} == {None}
    assert client.close_code is None
    await trio.sleep(10.001)
    for _ in range(9):
        client.send(message)
    assert client.close_code is None
    client.send(message)

    assert client.close_code == 4009
    assert client.close_reason == "Too many invalid messages: 10 within 10 seconds"
    assert len(client.messages) == 1 + 9 + 9 + 1


async def test_a_client_frame_larger_than_the_limit_closes_with_1009(autojump_clock, stage):
    """64 KiB by default; exactly that much is allowed."""
    client = await stage.enter("A")
    client.send('{"event":"pusher:ping"}' + " " * (64 * 1024 - 23))
    assert client.messages[-1].event == "pusher:pong"

    client.send('{"event":"pusher:ping"}' + " " * (64 * 1024 - 22))

    assert client.close_code == 1009


@pytest.mark.parametrize("name", ["pusher:x", "pusher_internal:member_added"])
async def test_reserved_event_names_are_refused_on_publish(autojump_clock, stage, name):
    answer = await stage.network.request(
        "POST", "/events", {"name": name, "channel": "x", "data": ""}
    )
    with pytest.raises(BadRequestError):
        await stage.broker.publish(stage.app_id, "x", name, "")

    assert answer.status == 400


async def test_client_event_rate_is_a_token_bucket_of_ten(autojump_clock, stage):
    client = await stage.enter("A")
    await client.subscribe("private-x")
    await trio.sleep(5)  # no more than the burst is saved up
    for _ in range(11):
        client.trigger("private-x", "client-x", 1)

    stage.admit("A", client)
    errors = [m for m in client.messages if m.event == "pusher:error"]
    assert [(m.channel, m.json()["code"]) for m in errors] == [("private-x", 4301)]
    await trio.sleep(0.5)
    for _ in range(6):
        client.trigger("private-x", "client-x", 1)
    assert len([m for m in client.messages if m.event == "pusher:error"]) == 2
    assert not client.is_closed


async def test_terminate_connections(autojump_clock, stage):
    client = await stage.enter("A")
    await client.sign_in("u1")
    stage.admit("A", client)

    assert await stage.broker.terminate(stage.app_id, "u1") == 1

    await stage.play(f"""
        -- wait 0
        A<< {_error("You got disconnected by the app.", "4009")}
        A<< close 4009 You got disconnected by the app.
    """)


@pytest.mark.parametrize("app_fields", [{"requires_authorization": True}])
async def test_authorized_connection_timeout_is_thirty_seconds(autojump_clock, stage):
    await stage.enter("A")

    await stage.play(f"""
        -- wait 29.9
        -- wait 1.2
        A<< {_error("Connection not authorized within timeout", "4009")}
        A<< close 4009 Connection not authorized within timeout
    """)


@pytest.mark.parametrize("app_fields", [{"max_connections": 1}])
@pytest.mark.parametrize(("config_fields", "code"), [({}, 4004), ({"max_connections": 2}, 4004),
                                                     ({"max_connections": 1}, 4004)])  # fmt: skip
async def test_too_many_connections_for_the_app_4004(autojump_clock, stage, code):
    await stage.enter("A")

    client = stage.network.open()

    assert client.messages[0].json()["code"] == client.close_code == code


@pytest.mark.parametrize("config_fields", [{"max_connections": 1}])
async def test_the_node_itself_is_full_4100(autojump_clock, stage):
    await stage.enter("A")

    client = stage.network.open()

    assert client.messages[0].json()["code"] == client.close_code == 4100


async def test_unknown_path_on_an_upgrade_is_accepted_and_closed_with_4005(autojump_clock, stage):
    client = stage.network.open(path="/nowhere", protocol=None)

    assert client.status == 101
    assert client.messages[0].json() == {"code": 4005, "message": "Path not found"}
    assert client.close_code == 4005


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", "/nowhere", b""), ("POST", "/events", {"name": "e"}), ("GET", "/channels/x/users", b""),
     ("GET", "/channels/x", b""), ("DELETE", "/events", b""), ("GET", "/channels/cache-x/cache", b"")],
)  # fmt: skip
async def test_http_error_bodies_are_plain_text_ending_in_a_newline(
    autojump_clock, stage, method, path, body
):
    answer = await stage.network.request(method, path, body, params={"info": "nonsense"})

    assert answer.status >= 400
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.body.endswith(b"\n")
    assert not answer.body.startswith(b"{")


@pytest.mark.parametrize("app_fields", [{}, {"max_channel_name_length": 164}])
async def test_channel_names_have_200_characters_unless_configured(
    autojump_clock, stage, app_fields
):
    client = await stage.enter("A")
    limit = app_fields.get("max_channel_name_length", 200)

    await client.subscribe("x" * limit)
    client.send(client.subscription("x" * (limit + 1)))

    assert [m.event for m in client.messages[-2:]] == ["pusher:error", "pusher:subscription_error"]


async def test_a_channels_cache_miss_webhook_is_sent_once_per_empty_period(autojump_clock, stage):
    """Armed again by a value, or 10 s after the last was acknowledged; see test_cache.py."""
    told = []

    async def hook(app_id, event):
        told.append(event.channel)

    stage.broker.on("cache_miss", hook)
    clients = [await stage.network.connect() for _ in range(20)]
    for client in clients:
        await client.subscribe("cache-x")

    assert told == ["cache-x"]


@pytest.mark.parametrize(
    ("protocol", "code"),
    [(None, None), ("4", None), ("5", None), ("6", None), ("7", None), ("3", 4007), ("8", 4007), ("x", 4006)],
)  # fmt: skip
async def test_protocol_numbers(autojump_clock, stage, protocol, code):
    client = stage.network.open(protocol=protocol)

    assert client.close_code == code


async def test_an_id_that_no_channel_can_name_cannot_sign_in_but_may_be_present(
    autojump_clock, stage
):
    await stage.enter("A")
    text = "Invalid user_data: id has invalid characters; it may contain only A-Z a-z 0-9 _ - = @ , . ;"

    await stage.play(f"""
        A>> signin {{"id":"e:2"}}
        A<< {_error(text)}
        A>> signin {{"id":5}}
        A<< {_error("Invalid user_data: id must be a non-empty string")}
        A>> signin {{"id":"{"x" * 129}"}}
        A<< {_error("Invalid user_data: id is longer than 128 characters")}
        A>> subscribe presence-x "e:2"
        A<< {_roster("presence-x", "e:2", {})}
    """)
    assert stage.broker.statistics().apps[0].users == 0


@pytest.mark.parametrize("info", ["true", '"x"', "[1]", "0"])
async def test_user_info_that_is_no_object_is_refused(autojump_clock, stage, info):
    """In hosted words; what Laravel's `return true` makes used to pass in silence."""
    await stage.enter("A")
    rule = "user_info is invalid - if supplied it must be a type of hash (a JSON object)"
    text = f"Invalid channel_data: {rule}"

    await stage.play(f"""
        A>> subscribe presence-x "1" {info}
        A<< {_error(text)}
        A<< {_refused("presence-x", text)}
        A>> signin {{"id":"u","user_info":{info}}}
        A<< {_error(f"Invalid user_data: {rule}")}
    """)


@pytest.mark.parametrize("info", ["", ',"user_info":null'])
async def test_absent_user_info_is_absent_everywhere(autojump_clock, stage, info):
    """Never null: an empty object where a key is needed (2.5), and no key elsewhere."""
    a, b = await stage.enter("A"), await stage.enter("B")
    for client in (a, b):
        text = f'{{"id":"{client.socket_id}"{info}}}'
        stage._say(client, f"signin {text}")
        client.send(client.subscription("presence-x"))
    await trio.testing.wait_all_tasks_blocked()

    roster = b.messages[-1].json()["presence"]
    assert roster["hash"] == {a.socket_id: {}, b.socket_id: {}}
    assert a.messages[-1].event == "pusher_internal:member_added"
    assert a.messages[-1].json() == {"user_id": b.socket_id}


@pytest.mark.parametrize("app_fields", [{"sends_subscription_counts": True}])
async def test_a_users_own_channel_is_hidden_everywhere(autojump_clock, stage):
    told = []

    async def hook(app_id, event):
        told.append((event.name, event.channel))

    for name in ("channel_occupied", "channel_vacated", "subscription_count"):
        stage.broker.on(name, hook)
    await stage.enter("A")
    own, path = "#server-to-user-u1", "/channels/%23server-to-user-u1"

    await stage.play(f"""
        A>> signin {{"id":"u1"}}
        A<< {{"event":"pusher:signin_success","data":{{"user_data":"{{\\"id\\":\\"u1\\"}}"}}}}
        A>> {{"event":"pusher:subscribe","data":{{"channel":"{own}"}}}}
        A<< ok {own}
        -- wait 10
    """)
    count = {"info": "subscription_count"}
    listed = await stage.network.request("GET", "/channels", params=count)
    channel = await stage.network.request("GET", path, params=count)
    stats = await stage.network.request("GET", f"{path}/stats")
    published = await stage.network.request(
        "POST", "/events", {"name": "e", "channel": own, "data": "", "info": "subscription_count"}
    )

    assert listed.json() == {"channels": {}}
    assert channel.json() == {"occupied": False, "subscription_count": 0}
    assert stats.json() == {"occupied": False, "connection_count": 0}
    assert published.json() == {"channels": {own: {"subscription_count": 0}}}
    assert await stage.broker.channels(stage.app_id) == {}
    assert not (await stage.broker.channel(stage.app_id, own)).occupied
    app = stage.broker.statistics().apps[0]
    assert (app.channels, app.subscriptions, app.users) == (0, 0, 1)
    await stage.play(
        f'-- wait 0\nA<< {{"event":"e","channel":"{own}","data":""}}\nA>> unsubscribe {own}\n-- wait 10'
    )
    assert told == []


@pytest.mark.parametrize(
    "channel", ["bad name", "#internal", "x" * 201, "private-ü", "#server-to-user-"]
)
async def test_an_invalid_channel_name_is_refused_as_every_subscription_is(
    autojump_clock, stage, channel
):
    client = await stage.enter("A")

    client.send({"event": "pusher:subscribe", "data": {"channel": channel}})

    refused = client.messages[-1]
    assert (refused.event, refused.channel) == ("pusher:subscription_error", channel[:200])
    assert (refused.json()["type"], refused.json()["status"]) == ("AuthError", 401)


@pytest.mark.parametrize("config_fields", [{}])
async def test_silence_is_broken_before_a_proxys_sixty_seconds_are_over(autojump_clock, stage):
    """nginx's default `proxy_read_timeout`; the client's own ping, by the figure it is told, too."""
    client = await stage.enter("A")
    assert client.messages[0].json()["activity_timeout"] <= 45

    await trio.sleep(50)

    assert client.pings == 1
