"""Users: sign-in, send to user, terminate, watchlists."""
# ruff: noqa: E501 - a frame is one line

from __future__ import annotations

import json

import pytest
import trio.testing

from cachecast.testing import TEST_APP

KEY = TEST_APP.key


def _events(**events: list[str]) -> str:
    inner = json.dumps(
        {"events": [{"name": name, "user_ids": ids} for name, ids in events.items()]},
        separators=(",", ":"),
    )
    return json.dumps(
        {"event": "pusher_internal:watchlist_events", "data": inner}, separators=(",", ":")
    )


async def test_sign_in_is_confirmed_with_the_bytes_that_were_signed(autojump_clock, stage):
    """As an object: with error and subscription_error the only one that is."""
    await stage.enter("A")

    await stage.play(r"""
        A>> signin {"id":"u1",  "user_info":{"n":1}}
        A<< {"event":"pusher:signin_success","data":{"user_data":"{\"id\":\"u1\",  \"user_info\":{\"n\":1}}"}}
        A>> signin {"id":"u1"}
        A<< {"event":"pusher:signin_success","data":{"user_data":"{\"id\":\"u1\"}"}}
        A>> signin {"id":"u2"}
        A<< {"event":"pusher:error","data":{"code":null,"message":"Connection is already signed in as another user"}}
    """)
    assert stage.broker.statistics().apps[0].users == 1


async def test_a_bad_signature_is_refused_and_nobody_is_signed_in(autojump_clock, stage):
    await stage.enter("A")
    text = r"Invalid signature: Expected HMAC SHA256 hex digest of $A::user::{\"id\":\"u1\"}, but got 00"

    await stage.play(rf"""
        A>> {{"event":"pusher:signin","data":{{"auth":"{KEY}:00","user_data":"{{\"id\":\"u1\"}}"}}}}
        A<< {{"event":"pusher:error","data":{{"code":4009,"message":"{text}"}}}}
    """)
    assert stage.broker.statistics().apps[0].users == 0


@pytest.mark.parametrize("app_fields", [{"allows_sign_in": False}])
async def test_sign_in_may_be_switched_off(autojump_clock, stage):
    await stage.enter("A")

    await stage.play("""
        A>> signin {"id":"u1"}
        A<< {"event":"pusher:error","data":{"code":null,"message":"Sign-in is not enabled for this app"}}
    """)


async def test_the_users_own_channel_is_for_that_user_only(autojump_clock, stage):
    """And hidden from the list of channels."""
    await stage.enter("A", "B")
    for name, user in (("A", "u1"), ("B", "u2")):
        await stage.clients[name].sign_in(user)
        stage.admit(name, stage.clients[name])
    text = "Only the signed-in user may subscribe to its own channel"

    await stage.play(f"""
        A>> {{"event":"pusher:subscribe","data":{{"auth":"","channel":"#server-to-user-u1"}}}}
        A<< ok #server-to-user-u1
        B>> {{"event":"pusher:subscribe","data":{{"auth":"","channel":"#server-to-user-u1"}}}}
        B<< {{"event":"pusher:error","data":{{"code":null,"message":"{text}"}}}}
        B<< {{"event":"pusher:subscription_error","channel":"#server-to-user-u1","data":{{"type":"AuthError","error":"{text}","status":401}}}}
    """)
    await stage.broker.send_to_user(stage.app_id, "u1", "note", {"n": 1})
    await stage.play(r"""
        -- wait 0
        A<< {"event":"note","channel":"#server-to-user-u1","data":"{\"n\":1}"}
    """)
    assert await stage.broker.channels(stage.app_id) == {}


async def test_terminate_ends_all_connections_of_a_signed_in_user(autojump_clock, stage):
    """Presence membership alone does not count."""
    await stage.enter("A", "B", "C")
    for name in "AB":
        await stage.clients[name].sign_in("u1")
    await stage.clients["C"].subscribe("presence-x", user_id="u1")
    for name in "ABC":
        stage.admit(name, stage.clients[name])

    answer = await stage.network.request("POST", "/users/u1/terminate_connections", {})

    assert (answer.status, answer.body) == (200, b"{}")
    await stage.play("-- wait 0" + "".join(
        f"""
        {name}<< {{"event":"pusher:error","data":{{"code":4009,"message":"You got disconnected by the app."}}}}
        {name}<< close 4009 You got disconnected by the app."""
        for name in "AB"
    ) + "\nC>> ping x\nC<< pong x")  # fmt: skip
    assert stage.broker.statistics().apps[0].users == 0
    await stage.enter("D")
    await stage.clients["D"].sign_in("u1")  # they may come back


async def test_watchers_get_the_present_state_and_every_change(autojump_clock, stage):
    """Online is whoever has at least one signed-in connection."""
    await stage.enter("A", "B", "C")
    success = r'A<< {"event":"pusher:signin_success","data":{"user_data":"{\"id\":\"a\",\"watchlist\":[\"b\",\"c\",\"a\"]}"}}'
    signed = r'{"event":"pusher:signin_success","data":{"user_data":"{\"id\":\"b\"}"}}'

    await stage.play(f"""
        A>> signin {{"id":"a","watchlist":["b","c","a"]}}
        {success}
        A<< {_events(online=["a"], offline=["b", "c"])}
        B>> signin {{"id":"b"}}
        B<< {signed}
        A<< {_events(online=["b"])}
        C>> signin {{"id":"b"}}
        C<< {signed}
        -- drop B
        B<< lost
        -- drop C
        C<< lost
        A<< {_events(offline=["b"])}
    """)


@pytest.mark.parametrize("app_fields", [{"max_watchlist_ids": 2}])
async def test_4302_a_watchlist_over_the_limit_is_cut_and_said(autojump_clock, stage):
    await stage.enter("A")

    await stage.play(rf"""
        A>> signin {{"id":"a","watchlist":["b","c","d"]}}
        A<< {{"event":"pusher:signin_success","data":{{"user_data":"{{\"id\":\"a\",\"watchlist\":[\"b\",\"c\",\"d\"]}}"}}}}
        A<< {{"event":"pusher:error","data":{{"code":4302,"message":"Watchlist limit reached: the first 2 ids are used"}}}}
        A<< {_events(offline=["b", "c"])}
    """)


async def test_a_socket_that_breaks_while_it_signs_in_leaves_nobody_online(autojump_clock, stage):
    """Neither a first time nor when the watchlist changes."""
    await stage.enter("A", "B")
    client = stage.clients["A"]
    await stage.clients["B"].sign_in("b", watchlist=["a"])

    await client.sign_in("a", watchlist=["x", "y"])
    client.drop(ConnectionResetError())
    text = '{"id":"a","watchlist":["z"]}'
    client.send({"event": "pusher:signin", "data": {
        "auth": client.sign(f"{client.socket_id}::user::{text}"), "user_data": text}})  # fmt: skip
    other = await stage.network.connect()
    other.drop(ConnectionResetError())
    other.send({"event": "pusher:signin", "data": {
        "auth": other.sign(f"{other.socket_id}::user::{text}"), "user_data": text}})  # fmt: skip

    await trio.testing.wait_all_tasks_blocked()

    users = stage.broker.hubs[stage.app_id].users
    assert [users.is_online("a"), users.is_online("b")] == [False, True]
    assert users.n_watched == 1
    heard = [
        m.json()["events"][0]["name"]
        for m in stage.clients["B"].messages[-5:]
        if "watch" in m.event
    ]
    assert heard == ["offline", "online", "offline", "online", "offline"]


async def test_when_a_proxy_restarts_everyone_goes_at_once_and_nobody_stays(autojump_clock, stage):
    """Each one's end tells watchers that have ended too: thousands, one inside the other."""
    clients = [await stage.network.connect() for _ in range(600)]
    for number, client in enumerate(clients):
        await client.sign_in(str(number), watchlist=[str(number - 1), str(number + 1)])
        await client.subscribe(
            "presence-x" if number < 100 else "x", user_id=str(number) if number < 100 else None
        )
    for client in clients:
        client.socket.send_error = ConnectionResetError()

    clients[0].socket.has_ended = True
    clients[0].drop()
    await trio.testing.wait_all_tasks_blocked()

    statistics = stage.broker.statistics().apps[0]
    assert (statistics.users, statistics.connections, statistics.channels) == (0, 0, 0)
    assert stage.broker.hubs[stage.app_id].users.n_watched == 0
