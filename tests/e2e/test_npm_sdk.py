"""npm `pusher`, unmodified: what an application's backend in Node asks of the HTTP API."""

from __future__ import annotations

import json

import pytest

from tests.e2e.program import SdkError
from tests.e2e.witness import Witness
from tests.e2e.world import CACHE_KINDS, MAIN, NEW_KEY, OLD_KEY, fresh


def test_trigger_answers_an_empty_object(backend):
    """Exactly that, for one channel and for several (6.3)."""
    assert backend.trigger(fresh(), "tick", {"eur": 1}) == {}
    assert backend.trigger([fresh(), fresh("cache-")], "tick", "text") == {}


def test_trigger_brings_the_info_that_was_asked_for(server, backend):
    """Attributes that do not apply are left out (6.3)."""
    room, wall = fresh("presence-"), fresh()
    with Witness(server) as ann, Witness(server) as bob:
        ann.subscribe(room, {"user_id": "ann"})
        bob.subscribe(room, {"user_id": "ann"})
        bob.subscribe(wall)

        server.agree(
            lambda: backend.trigger([room, wall], "tick", {}, info="user_count,subscription_count"),
            {
                "channels": {
                    room: {"user_count": 1, "subscription_count": 2},
                    wall: {"subscription_count": 1},
                }
            },
        )


def test_batch_with_info_answers_each_item(server, backend):
    """Index-aligned; empty where nothing was asked for (6.4)."""
    channel, cached = fresh(), fresh("cache-")
    with Witness(server) as client:
        client.subscribe(channel)
        told = backend.trigger_batch(
            {"channel": channel, "name": "a", "data": {"n": 1}, "info": "subscription_count"},
            {"channel": cached, "name": "b", "data": "text"},
            {"channel": channel, "name": "c", "data": {"n": 2}},
        )
        client.wait("c", channel)

    assert told == {"batch": [{"subscription_count": 1}, {}, {}]}
    assert client.events_on(channel)[-2:] == ["a", "c"]
    assert backend.get(f"/channels/{cached}", info="cache")["cache"]["data"] == "text"


def test_channels_and_users_are_reported(server, backend):
    """Occupied channels, filtered, with counts; users as strings (6.5 to 6.7)."""
    room = fresh("presence-")
    with Witness(server) as ann, Witness(server) as ann_again, Witness(server) as number:
        ann.subscribe(room, {"user_id": "ann"})
        ann_again.subscribe(room, {"user_id": "ann"})
        number.subscribe(room, {"user_id": 7})

        listed = backend.get("/channels", filter_by_prefix="presence-", info="user_count")
        assert listed["channels"][room] == {"user_count": 2}
        server.agree(
            lambda: backend.get(f"/channels/{room}", info="user_count,subscription_count"),
            {"occupied": True, "user_count": 2, "subscription_count": 3},
        )
        users = backend.get(f"/channels/{room}/users")["users"]
        assert sorted(user["id"] for user in users) == ["7", "ann"]


@pytest.mark.parametrize("kind", CACHE_KINDS, ids=lambda kind: kind.prefix)
def test_cache_is_read_over_http(backend, kind):
    """Null when empty; data and remaining seconds when not (3.4)."""
    channel = fresh(kind.prefix)

    empty = backend.get(f"/channels/{channel}", info="cache")
    assert empty == {"occupied": False, "cache": None}
    backend.trigger(channel, "tick", {"eur": 1.08})
    cache = backend.get(f"/channels/{channel}", info="cache")["cache"]
    assert 1795 <= cache["ttl"] <= 1800
    data = json.loads(cache["data"])
    assert set(data) == {"nonce", "ciphertext"} if kind.is_encrypted else data == {"eur": 1.08}


@pytest.mark.parametrize(
    ("path", "params", "text"),
    [
        ("/channels", {"info": "user_count"}, "user_count may only be requested for presence"),
        ("/channels/wall", {"info": "user_count"}, "Cannot retrieve the user count unless"),
        ("/channels/wall/users", {}, "Users can only be retrieved for presence channels"),
    ],
)
def test_what_cannot_be_told_is_a_bad_request(backend, path, params, text):
    """400 in the hosted service's words (6.5 to 6.7)."""
    with pytest.raises(SdkError, match=text):
        backend.get(path, **params)


def test_wrong_secret_and_unknown_app_are_refused(open_backend, server):
    """The library raises what it was told (6.2)."""
    with pytest.raises(SdkError, match="Invalid signature"):
        open_backend(server, MAIN._replace(secret="wrong")).trigger(fresh(), "tick", {})
    with pytest.raises(SdkError, match=r"[Aa]uth_key|app"):
        open_backend(server, MAIN._replace(id="999")).trigger(fresh(), "tick", {})


def test_too_much_data_is_refused(backend):
    """413 over 10240 bytes (6.3)."""
    with pytest.raises(SdkError, match="content of this event exceeds"):
        backend.trigger(fresh(), "tick", "x" * 10_241)


def test_event_is_sent_to_a_user_and_the_user_terminated(server, backend, python_sdk):
    """With the long path that this library takes (5.2, 5.3)."""
    user = fresh("user-")
    channel = f"#server-to-user-{user}"
    with Witness(server) as client:
        client.send("pusher:signin", python_sdk.authenticate_user(client.socket_id, {"id": user}))
        client.wait("pusher:signin_success")
        client.subscribe(channel)

        assert backend.send_to_user(user, "hello", {"a": 1}) == {}
        assert json.loads(client.wait("hello", channel)["data"]) == {"a": 1}
        assert backend.terminate(user) == {}
        assert client.wait_closed() == 4009


def test_either_key_pair_publishes_while_a_key_is_rotated(open_backend, server):
    """And what one wrote, the other reads."""
    channel = fresh("cache-")
    old, new = open_backend(server, OLD_KEY), open_backend(server, NEW_KEY)
    old.trigger(channel, "tick", 1)
    assert new.get(f"/channels/{channel}", info="cache")["cache"]["data"] == "1"
    new.trigger(channel, "tick", 2)
    assert old.get(f"/channels/{channel}", info="cache")["cache"]["data"] == "2"
