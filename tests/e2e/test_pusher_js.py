"""pusher-js, unmodified, in Node and in Chromium: everything that it can do with a channel."""

from __future__ import annotations

import re

import pytest

from tests.e2e.world import CACHE_KINDS, KINDS, fresh

ONE = {"eur": 1.08, "text": "ü €", "list": [1, None, True]}
TWO = {"eur": 1.09}


def test_connection_is_established_with_a_socket_id_that_libraries_accept(open_client):
    """The first message is connection_established; its socket id is digits.digits (1.4)."""
    client = open_client()

    first = client.messages()[0] if client.messages() else None
    assert re.fullmatch(r"\d+\.\d+", client.socket_id)
    assert first is None or first["event"] == "pusher:connection_established"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.prefix or "public")
def test_every_kind_of_channel_delivers_what_the_backend_publishes(kind, open_client, backend):
    """Subscribe, then receive; a cache channel says first that it holds nothing (3.2)."""
    channel = fresh(kind.prefix)
    client = open_client(user_id="ann", encryption=kind.is_encrypted)
    client.subscribe(channel)
    backend.trigger(channel, "tick", ONE)

    assert client.wait_event(channel, "tick") == ONE
    names = [event for event, _ in client.seen_on(channel)]
    miss = ["pusher:cache_miss"] if kind.is_cache else []
    assert names == ["pusher:subscription_succeeded", *miss, "tick"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.prefix or "public")
def test_late_joiner_gets_the_cached_value_of_cache_channels_and_of_no_others(
    kind, open_client, backend
):
    """The newest value comes right behind the success, the same as it came live (3.2)."""
    channel = fresh(kind.prefix)
    backend.trigger(channel, "tick", ONE)
    backend.trigger(channel, "tock", TWO)

    client = open_client(user_id="ann", encryption=kind.is_encrypted)
    client.subscribe(channel)
    backend.trigger(channel, "last", "fence")
    client.wait_event(channel, "last")

    seen = client.seen_on(channel)
    replayed = [("tock", TWO)] if kind.is_cache else []
    assert seen[0][0] == "pusher:subscription_succeeded"
    assert seen[1:] == [*replayed, ("last", "fence")]


def test_two_hundred_cached_values_at_once_reach_their_subscriber(open_client, backend):
    """What it asked for in one breath comes at the pace of its reading, on one connection."""
    channels = [fresh("cache-") for _ in range(200)]
    for channel in channels:
        backend.trigger(channel, "tick", "x" * 10_000)
    client = open_client()

    client.call("subscribe_all", channels=channels)

    for channel in channels:
        assert client.wait_event(channel, "tick") == "x" * 10_000
    assert [e["state"] for e in client.events if e["on"] == "state"].count("connected") == 1
    assert not [e for e in client.events if e["on"] == "error"]


@pytest.mark.parametrize("kind", CACHE_KINDS, ids=lambda kind: kind.prefix)
def test_value_outlives_the_last_subscriber(kind, open_client, backend):
    """Whoever comes after everybody left still gets it."""
    channel = fresh(kind.prefix)
    first = open_client(user_id="ann", encryption=kind.is_encrypted)
    first.subscribe(channel)
    backend.trigger(channel, "tick", ONE)
    first.wait_event(channel, "tick")
    first.unsubscribe(channel)
    first.close()

    second = open_client(user_id="bob", encryption=kind.is_encrypted)
    second.subscribe(channel)

    assert second.wait_event(channel, "tick") == ONE


def test_presence_with_three_tabs_of_two_users(open_client):
    """Users are counted, not tabs: joining and leaving is told at the first and the last (2.6)."""
    channel = fresh("presence-")
    ann = open_client(user_id="ann", user_info={"name": "Ann"})
    ann.subscribe(channel)
    bob = open_client(user_id="bob", user_info={"name": "Bob"})
    bob.subscribe(channel)
    assert ann.wait_event(channel, "pusher:member_added") == {"id": "bob", "info": {"name": "Bob"}}
    bob_again = open_client(user_id="bob", user_info={"name": "Bob"})
    bob_again.subscribe(channel)

    members = bob_again.members(channel)
    assert members["count"] == 2
    assert members["members"] == {"ann": {"name": "Ann"}, "bob": {"name": "Bob"}}
    assert members["my_id"] == "bob"

    bob.close()
    bob_again.trigger(channel, "client-fence", {})
    ann.wait_event(channel, "client-fence")
    assert "pusher:member_removed" not in [event for event, _ in ann.seen_on(channel)]

    bob_again.close()
    removed = ann.wait_event(channel, "pusher:member_removed")
    assert removed == {"id": "bob", "info": {"name": "Bob"}}
    names = [event for event, _ in ann.seen_on(channel)]
    assert names.count("pusher:member_added") == 1
    assert names.count("pusher:member_removed") == 1
    assert ann.members(channel)["count"] == 1


def test_client_events_reach_the_others_with_the_senders_user_id(open_client):
    """Never echoed; on presence channels they carry who sent them (section 4)."""
    channel = fresh("presence-")
    ann, bob = open_client(user_id="ann"), open_client(user_id="bob")
    for client in (ann, bob):
        client.subscribe(channel)
        client.call("bind", channel=channel, event="client-move")
    ann.trigger(channel, "client-move", {"x": 1})
    bound = bob.wait(lambda e: e["on"] == "bound")
    bob.trigger(channel, "client-move", {"x": 2})
    answer = ann.wait(lambda e: e["on"] == "bound")

    assert (bound["data"], bound["metadata"]) == ({"x": 1}, {"user_id": "ann"})
    assert (answer["data"], answer["metadata"]) == ({"x": 2}, {"user_id": "bob"})


def test_client_event_does_not_become_the_cached_value(open_client, backend):
    """Only what the server side published is cached (3.1)."""
    channel = fresh("private-cache-")
    backend.trigger(channel, "tick", ONE)
    ann, bob = open_client(), open_client()
    ann.subscribe(channel)
    bob.subscribe(channel)
    ann.trigger(channel, "client-move", {"x": 1})
    assert bob.wait_event(channel, "client-move") == {"x": 1}

    late = open_client()
    late.subscribe(channel)

    assert late.wait_event(channel, "tick") == ONE


def test_excluded_socket_does_not_get_the_event_but_the_cache_does(open_client, backend):
    """`socket_id` keeps an event from its own sender, not from late joiners (3.2)."""
    channel = fresh("cache-")
    sender, other = open_client(), open_client()
    sender.subscribe(channel)
    other.subscribe(channel)
    backend.trigger(channel, "tick", ONE, socket_id=sender.socket_id)
    backend.trigger(fresh("cache-"), "elsewhere", {})
    other.wait_event(channel, "tick")

    late = open_client()
    late.subscribe(channel)
    late.wait_event(channel, "tick")
    backend.trigger(channel, "last", "fence")
    sender.wait_event(channel, "last")
    assert "tick" not in [event for event, _ in sender.seen_on(channel)]


def test_unsubscribed_client_gets_nothing_more(open_client, backend):
    """After unsubscribe the channel is quiet, and can be joined again (2.8)."""
    channel, fence = fresh("cache-"), fresh()
    client = open_client()
    client.subscribe(channel)
    client.unsubscribe(channel)
    client.subscribe(fence)  # confirmed, so the server has read what came before it
    backend.trigger([channel], "tick", ONE)
    backend.trigger(fence, "fence", {})
    client.wait_event(fence, "fence")
    # pusher-js drops what comes for a channel it has left, so look at what came over the wire.
    quiet = [m for m in client.messages() if m.get("channel") == channel and m["event"] == "tick"]
    client.subscribe(channel, waits=False)

    assert client.wait_event(channel, "tick") == ONE
    assert quiet == []


def test_refused_authorization_is_told_on_the_channel(open_client, backend):
    """A wrong signature leaves the connection open; the channel hears why (2.9)."""
    channel = fresh("private-")
    client = open_client()
    other = backend.__class__(backend.program, backend.server, backend.app._replace(secret="wrong"))
    stranger = open_client(backend=other)
    stranger.subscribe(channel, waits=False)

    error = stranger.wait_event(channel, "pusher:subscription_error")
    assert (error["type"], error["status"]) == ("AuthError", 401)
    assert stranger.wait_error(None)
    client.subscribe(channel)
    stranger.subscribe(fresh())


def test_signed_in_user_gets_what_is_sent_to_it_on_every_connection(open_client, backend):
    """Sign-in joins #server-to-user-ID; sendToUser reaches each of the user's tabs (5.2)."""
    user = fresh("user-")
    tabs = [open_client(user_id=user), open_client(user_id=user)]
    stranger = open_client(user_id=fresh("user-"))
    for client in (*tabs, stranger):
        client.sign_in()
        client.wait(
            lambda e: (
                e["on"] == "message"
                and e["event"] == "pusher_internal:subscription_succeeded"
                and e["channel"].startswith("#server-to-user-")
            )
        )
    backend.send_to_user(user, "hello", ONE)

    for client in tabs:
        told = client.wait(lambda e: e["on"] == "user" and e["event"] == "hello")
        assert told["data"] == ONE
    assert not [e for e in stranger.events if e["on"] == "user" and e["event"] == "hello"]


def test_terminated_user_is_disconnected_and_stays_away(open_client, backend):
    """4009 on every connection of the user; pusher-js does not come back by itself (5.3)."""
    user = fresh("user-")
    tabs = [open_client(user_id=user), open_client(user_id=user)]
    other = open_client(user_id=fresh("user-"))
    for client in (*tabs, other):
        client.sign_in()

    assert backend.terminate(user) == {}

    for client in tabs:
        client.wait_state("disconnected")
    other.subscribe(fresh())


def test_watchlist_tells_who_comes_online_and_goes_offline(open_client):
    """First the present state, then each change (5.4)."""
    friend, watcher_id, absent = fresh("user-"), fresh("user-"), fresh("user-")
    first_tab = open_client(user_id=friend)
    first_tab.sign_in()
    watcher = open_client(user_id=watcher_id, watchlist=[friend, absent])
    watcher.sign_in()

    def told(event: str, user_id: str, nth: int = 1) -> None:
        watcher.wait(
            lambda e: (
                e["on"] == "watchlist" and e["event"] == event and user_id in e["data"]["user_ids"]
            ),
            nth=nth,
        )

    told("online", friend)
    told("offline", absent)
    first_tab.close()
    told("offline", friend)
    second_tab = open_client(user_id=friend)
    second_tab.sign_in()
    told("online", friend, nth=2)


def test_subscription_count_follows_who_is_there(open_client):
    """An event of the channel, renamed by pusher-js, which keeps the number (2.10)."""
    channel = fresh()
    one, two = open_client(), open_client()
    one.subscribe(channel)
    two.subscribe(channel)

    def counted(count: int, nth: int = 1) -> None:
        one.wait(
            lambda e: (
                e["on"] == "event"
                and e["event"] == "pusher:subscription_count"
                and e["data"] == {"subscription_count": count}
            ),
            nth=nth,
        )

    counted(1)
    counted(2)
    two.close()
    counted(1, nth=2)
    assert one.call("subscription_count", channel=channel) == 1


def test_client_events_over_the_rate_are_refused_and_the_connection_stays(open_client):
    """More than 10 a second: 4301 as an event, not as a close (section 4)."""
    channel = fresh("private-")
    client, other = open_client(), open_client()
    client.subscribe(channel)
    other.subscribe(channel)
    for number in range(30):
        client.trigger(channel, "client-flood", {"number": number})
    client.wait_error(4301)

    client.subscribe(fresh())
    assert [e["state"] for e in client.events if e["on"] == "state"][-1] == "connected"
    assert other.wait_event(channel, "client-flood", nth=10)["number"] == 9
