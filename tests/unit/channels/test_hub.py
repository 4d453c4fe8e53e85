"""Which connections listen to which channel: what a change of membership changes."""

from __future__ import annotations

from collections import deque
from math import inf

import pytest
from msgspec import Raw

from cachecast.channels.channel import POINTER_BYTES, Channel
from cachecast.channels.hub import Hub
from cachecast.channels.presence import PresenceRoster
from cachecast.errors import SubscriptionError
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.messages import Publication
from cachecast.protocol.session import Member
from cachecast.protocol.wire import Encoded
from tests.harness.lower import Client, framed, make_app

NAME = parse_channel_name("presence-a")
PLAIN = parse_channel_name("a")


def _hub(**fields: int) -> tuple[Hub, deque[tuple[Hub, Channel]]]:
    ready: deque[tuple[Hub, Channel]] = deque()
    return Hub(make_app(**fields), ready, 0.0), ready


def test_the_first_subscription_occupies_and_the_last_vacates() -> None:
    """And nothing is left of the channel then."""
    hub, _ = _hub()
    one, two = Client().connection, Client().connection

    assert hub.subscribe(one, PLAIN, None).is_occupied
    assert not hub.subscribe(two, PLAIN, None).is_occupied
    assert hub.n_subscriptions == 2
    assert not hub.unsubscribe(one, "a").is_vacated
    assert hub.unsubscribe(two, "a").is_vacated
    assert (hub.channels, hub.n_subscriptions) == ({}, 0)
    assert one.session.subscriptions == two.session.subscriptions == {}


def test_a_session_holds_the_edge_that_the_hub_made() -> None:
    """From it, the session knows who it is in that channel."""
    hub, _ = _hub()
    connection, member = Client().connection, Member("u")

    joined = hub.subscribe(connection, NAME, member)

    assert connection.session.subscriptions["presence-a"] is joined.edge
    assert (joined.edge.member, joined.edge.name) == (member, NAME)
    assert joined.edge.channel is hub.channels["presence-a"]


def test_members_come_with_their_first_and_go_with_their_last_connection() -> None:
    """Of the same user; an observer without a member changes nothing."""
    hub, _ = _hub()
    one, two, observer = Client().connection, Client().connection, Client().connection

    assert hub.subscribe(one, NAME, Member("u")).is_member_new
    assert not hub.subscribe(two, NAME, Member("u")).is_member_new
    assert not hub.subscribe(observer, NAME, None).is_member_new
    assert not hub.unsubscribe(one, "presence-a").is_member_gone
    assert hub.unsubscribe(two, "presence-a").is_member_gone
    assert not hub.unsubscribe(observer, "presence-a").is_member_gone


def test_a_full_presence_channel_takes_no_other_user() -> None:
    """But another connection of one that is in; nothing has changed after a refusal."""
    hub, _ = _hub(max_presence_members=1)
    first, second, third = Client().connection, Client().connection, Client().connection
    hub.subscribe(first, NAME, Member("u"))

    assert hub.subscribe(second, NAME, Member("u"))
    with pytest.raises(SubscriptionError) as caught:
        hub.subscribe(third, NAME, Member("v"))

    assert (caught.value.kind, caught.value.status) == ("LimitReached", 4100)
    assert third.session.subscriptions == {}
    assert hub.n_subscriptions == 2
    assert len(hub.channels["presence-a"].roster or ()) == 1


def test_a_refusal_does_not_leave_an_empty_channel_behind() -> None:
    """A limit of no members at all."""
    hub, _ = _hub(max_presence_members=0)

    with pytest.raises(SubscriptionError):
        hub.subscribe(Client().connection, NAME, Member("u"))

    assert hub.channels == {}


def test_leaving_what_one_is_not_in_is_a_key_error() -> None:
    """The session checks it; this would be our own bug."""
    hub, _ = _hub()

    with pytest.raises(KeyError):
        hub.unsubscribe(Client().connection, "a")


def test_leaving_forgets_the_value_that_waits() -> None:
    """A slow client that has left a cache channel does not hear of it any more."""
    hub, _ = _hub()
    client = Client(room=0)
    hub.subscribe(client.connection, parse_channel_name("cache-a"), None)
    client.outbox.put(b"\x81\x01x", "cache-a", 10.0)

    hub.unsubscribe(client.connection, "cache-a")

    assert client.outbox.waiting_bytes == 0


def test_a_channel_stands_in_line_once() -> None:
    """However much it has to say; what waits is summed for the app."""
    hub, ready = _hub()
    hub.subscribe(Client().connection, PLAIN, None)
    channel = hub.channels["a"]

    hub.enqueue(channel, framed(b"12345"))
    hub.enqueue(channel, framed(b"12345"))

    assert list(ready) == [hub]
    assert list(hub.ready) == [channel]
    assert channel.is_ready
    assert hub.undelivered_bytes == channel.queued_bytes == 10 + POINTER_BYTES


def test_an_app_stays_in_line_until_everything_is_delivered() -> None:
    """A part of its turn at a time, which it gives to its channels one after the other."""
    hub, ready = _hub()
    clients = [Client(), Client()]
    for client in clients:
        hub.subscribe(client.connection, PLAIN, None)
    hub.enqueue(hub.channels["a"], framed(b"1"), now=5.0)

    assert ready.popleft().deliver(1) == (1, None)
    assert (list(ready), hub.is_ready) == ([hub], True)
    assert ready.popleft().deliver(1) == (1, 5.0)

    assert (list(ready), hub.is_ready) == ([], False)
    assert [bytes(client.socket.taken) for client in clients] == [b"1", b"1"]


def test_a_vacated_channel_may_come_back_while_the_old_one_still_waits() -> None:
    """The newcomer gets nothing of what was published before it came."""
    hub, ready = _hub()
    client = Client()
    hub.subscribe(client.connection, PLAIN, None)
    hub.enqueue(hub.channels["a"], framed(b"\x81\x03old"))
    hub.unsubscribe(client.connection, "a")
    hub.subscribe(client.connection, PLAIN, None)
    hub.enqueue(hub.channels["a"], framed(b"\x81\x03new"))

    while ready:
        ready.popleft().deliver(10)

    assert bytes(client.socket.taken) == b"\x81\x03new"


def test_an_app_may_have_a_rate_of_publishing() -> None:
    """None by default; a small one still lets a batch through."""
    assert _hub()[0].publish_bucket is None
    bucket = _hub(publishes_per_s=1)[0].publish_bucket
    assert bucket is not None
    assert bucket.take(0.0, 100.0)
    assert not bucket.take(0.0)


def test_users_own_channels_are_not_counted() -> None:
    """They are the protocol's business (protocol.md 9.5)."""
    hub, _ = _hub()
    connection = Client().connection
    hub.subscribe(connection, parse_channel_name("#server-to-user-u"), None)
    hub.subscribe(connection, PLAIN, None)

    assert (hub.n_channels, hub.n_subscriptions, len(hub.channels)) == (1, 1, 2)


# --- of an app that other nodes serve too


def _shared_hub() -> Hub:
    hub, _ = _hub(max_presence_members=1)
    hub.is_shared = True
    return hub


def test_others_keep_the_roster_and_count_its_members() -> None:
    """A subscription neither joins it nor is refused by it; the newest one is the channel's."""
    hub, roster = _shared_hub(), PresenceRoster()
    for key in ("ann", "bob"):
        roster.put(Member(key))
    one, two = Client(socket_id="1.1").connection, Client(socket_id="1.2").connection

    joined = hub.subscribe(one, NAME, Member("ann"), roster)
    assert (joined.is_occupied, joined.is_member_new) == (True, False)
    assert joined.edge.channel.roster is roster
    newer = PresenceRoster()
    assert hub.subscribe(two, NAME, Member("bob"), newer).edge.channel.roster is newer
    assert not hub.unsubscribe(two, NAME.text).is_member_gone
    left = hub.unsubscribe(one, NAME.text)
    assert (left.is_vacated, left.is_member_gone) == (True, False)
    assert roster.user_ids == ["ann", "bob"]


def test_a_hub_has_a_connection_until_it_has_ended() -> None:
    hub, client = _shared_hub(), Client()
    assert not hub.has(client.connection)
    hub.connections[client.session.socket_id] = client.connection
    assert hub.has(client.connection)
    assert not hub.has(Client(socket_id=client.session.socket_id).connection)


def test_values_that_are_skipped_wait_no_more_and_are_charged_to_nobody() -> None:
    """Those behind all else; a plain event before them keeps its place."""
    hub = _shared_hub()
    client = Client()
    channel = hub.subscribe(client.connection, PLAIN, None).edge.channel
    for text, deadline in (("value", 9.0), ("plain", inf), ("old", 9.0), ("older", 9.0)):
        hub.enqueue(channel, Encoded(Publication(text, "a", text)), None, deadline)

    assert hub.skip(channel) == 2
    assert hub.skip(channel) == 0
    hub.enqueue(channel, Encoded(Publication("new", "a", "new")), None, 9.0)
    while hub.ready:
        hub.deliver(10)
    assert [message["event"] for message in client.heard] == ["value", "plain", "new"]
    assert (hub.undelivered_bytes, channel.queued_bytes) == (0, 0)


def test_other_terms_leave_all_that_is_there() -> None:
    """A rate that stays has what is left of it; another begins anew, or ends."""
    hub, _ = _hub(publishes_per_s=1)
    hub.subscribe(Client().connection, PLAIN, None)
    bucket = hub.publish_bucket

    hub.serve(make_app(publishes_per_s=1, max_event_bytes=7), 0.0)
    assert hub.publish_bucket is bucket
    assert (hub.app.max_event_bytes, hub.n_subscriptions) == (7, 1)
    hub.serve(make_app(publishes_per_s=2), 0.0)
    assert hub.publish_bucket is not bucket
    hub.serve(make_app(), 0.0)
    assert hub.publish_bucket is None


def test_channels_are_occupied_in_another_process_as_they_were_here() -> None:
    """Members in their order, with what their first connection said of them; nobody is told."""
    hub, _ = _hub()
    clients = [Client().connection for _ in range(4)]
    first, again = Member("u", Raw(b'{"a":1}')), Member("u", Raw(b'{"a":2}'))
    for connection, name, member in (
        (clients[1], NAME, Member("v")),
        (clients[0], NAME, first),
        (clients[2], NAME, again),
        (clients[3], PLAIN, None),
        (clients[0], PLAIN, None),
    ):
        hub.subscribe(connection, name, member)
    hub.unsubscribe(clients[0], "presence-a")
    hub.channels["a"].count_due_at = 7.0
    states = hub.export(
        {connection: number for number, connection in enumerate(clients)}, {hub.channels["a"]}
    )
    assert [state.is_count_stale for state in states] == [False, True]

    other, ready = _hub()
    others = [Client().connection for _ in clients]
    for state in states:
        other.restore(state, others)

    assert list(other.channels) == ["presence-a", "a"]
    assert list(other.channels["a"].subscriptions) == [others[3], others[0]]
    assert other.channels["a"].count_due_at == 7.0
    roster = other.channels["presence-a"].roster
    assert roster is not None
    assert roster.members == [Member("v"), first]
    assert others[2].session.subscriptions["presence-a"].member == again
    assert not ready
    left = other.unsubscribe(others[2], "presence-a")
    assert (left.is_member_gone, left.is_vacated) == (True, False)


def test_a_name_that_was_right_once_stays() -> None:
    """Whatever the limit is in the next process."""
    hub, other = _hub()[0], _hub(max_channel_name_length=3)[0]
    connection = Client().connection
    hub.subscribe(connection, parse_channel_name("a-long-name"), None)
    (state,) = hub.export({connection: 0}, ())
    assert other.restore(state, [Client().connection]).name.text == "a-long-name"


def test_observers_of_members_stay_observers() -> None:
    """Where nobody in a presence channel stands for a user there are none."""
    hub, other = _hub()[0], _hub()[0]
    connection = Client().connection
    hub.subscribe(connection, NAME, None)
    (state,) = hub.export({connection: 0}, ())
    channel = other.restore(state, [Client().connection])
    assert channel.roster is not None
    assert (len(channel.roster), len(channel.subscriptions)) == (0, 1)


def test_members_on_other_nodes_are_in_the_roster_of_the_next_process_too() -> None:
    """As it was told; a connection here does not make its user a member, for the cluster does."""
    hub, other = _shared_hub(), _shared_hub()
    roster = PresenceRoster()
    for key in ("cid", "bob"):
        roster.put(Member(key))
    connection = Client().connection
    hub.subscribe(connection, NAME, Member("ann"), roster)
    (state,) = hub.export({connection: 0}, ())
    channel = other.restore(state, [Client().connection])
    assert channel.roster is not None
    assert channel.roster.user_ids == ["cid", "bob"]
    assert [edge.member for edge in channel.subscriptions.values()] == [Member("ann")]
