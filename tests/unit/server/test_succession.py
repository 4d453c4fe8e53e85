"""A node is replaced by another one: clients, values and callers go on as if nothing had been."""

from __future__ import annotations

import json
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trustme

from cachecast import TlsTerms, Webhook
from cachecast.errors import UpgradeError
from cachecast.handover.line import Line
from cachecast.handover.state import STATE_VERSION, Failed, Hello, Taken
from cachecast.server import succession
from cachecast.server.streaming import Stream
from cachecast.server.succession import give, retire
from tests.sockets.moving import copy, move
from tests.sockets.node import APP_ID, Client, Node, frame, make_app, message, running, sign, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def two_nodes(*apps: Any, **options: Any) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes with one configuration and clocks that agree."""
    async with running(*apps, **options) as old, running(*apps, **options) as new:
        yield old, new


async def say_and_wait(node: Node, client: Client) -> None:
    """Have all that the client has said so far handled."""
    await client.say("pusher:ping")
    await client.hear("pusher:pong")
    del node


async def test_a_client_moves_and_hears_what_is_published_there():
    async with two_nodes() as (old, new):
        client = await old.client()
        await client.subscribe("news")
        move(old.server, new.server)
        await new.broker.publish("3", "news", "tick", 1)
        assert (await client.hear())["event"] == "tick"
        assert old.broker.clients.n_sessions == 0
        assert new.broker.clients.n_sessions == 1
        await client.say("pusher:ping")
        assert (await client.hear())["event"] == "pusher:pong"
        await client.leave()
        await until(lambda: new.broker.clients.n_sessions == 0)


async def test_a_value_is_there_until_the_deadline_that_it_had():
    async with two_nodes(cache_ttl_s=100.0) as (old, new):
        await old.broker.publish("3", "cache-a", "tick", 1)
        await old.wait(60.0)
        await new.wait(60.0)
        move(old.server, new.server)
        await new.wait(39.0)
        assert (await new.broker.read_cache("3", "cache-a")) is not None
        await new.wait(1.0)
        assert (await new.broker.read_cache("3", "cache-a")) is None


async def test_half_a_frame_and_half_a_message_are_completed_over_there():
    async with two_nodes(make_app(allows_client_events=True)) as (old, new):
        teller, hearer = await old.client(), await old.client()
        for client in (teller, hearer):
            await client.subscribe_signed("private-a")
        event = message("client-x", "y" * 200, channel="private-a")
        rest = frame(0, event[150:], first=0x80)
        await teller.wire.say(frame(1, event[:150], first=0x01) + rest[:3])
        await until(lambda: _held(old) >= 150 + 3)
        move(old.server, new.server)
        await teller.wire.say(rest[3:])
        assert json.loads(json.dumps((await hearer.hear("client-x"))["data"])) == "y" * 200


def _held(node: Node) -> int:
    return max(
        (
            handler._parser.held_bytes
            for handler in node.server.poller.handlers()
            if hasattr(handler, "_parser") and hasattr(handler._parser, "held_bytes")
        ),
        default=0,
    )


async def test_what_waits_for_a_slow_client_leaves_from_over_there_in_order():
    async with two_nodes(make_app(max_pending_bytes=8_000_000)) as (old, new):
        client = await old.client(receives=4_096)
        await client.subscribe("news")
        await client.subscribe("cache-news")
        await client.hear("pusher:cache_miss")
        for number in range(40):
            await old.broker.publish("3", "news", "tick", f"{number:05}" + "x" * 9_000)
            await old.broker.publish("3", "cache-news", "tock", f"{number}")
        await old.broker.fanout.wait_idle()
        assert len(old.broker.backlog) == 1
        before = old.broker.backlog.n_bytes
        move(old.server, new.server)
        assert new.broker.backlog.n_bytes == before
        assert old.broker.backlog.n_bytes == 0
        await new.broker.publish("3", "news", "end", 1)
        heard, tocks = [], []
        while (said := await client.hear())["event"] != "end":
            (tocks if said["event"] == "tock" else heard).append(said["data"])
        assert [text[:5] for text in heard] == [f"{number:05}" for number in range(40)]
        assert tocks[-1] == "39"
        assert sorted(tocks, key=int) == tocks


async def test_members_stay_members_and_nobody_is_told():
    async with two_nodes() as (old, new):
        ann, bob = await old.client(), await old.client()
        for client, user in ((ann, "ann"), (bob, "bob")):
            await client.subscribe_signed("presence-a", json.dumps({"user_id": user}))
        assert (await ann.hear())["event"] == "pusher_internal:member_added"
        move(old.server, new.server)
        assert await new.broker.users("3", "presence-a") == ["ann", "bob"]
        await bob.leave()
        said = await ann.hear()
        assert said["event"] == "pusher_internal:member_removed"


async def test_a_user_who_is_signed_in_stays_so():
    async with two_nodes(make_app(allows_sign_in=True)) as (old, new):
        client = await old.client()
        user = json.dumps({"id": "ann"})
        auth = sign(f"{client.socket_id}::user::{user}")
        await client.say("pusher:signin", {"auth": auth, "user_data": user})
        await client.hear("pusher:signin_success")
        await client.subscribe("#server-to-user-ann")
        move(old.server, new.server)
        await new.broker.send_to_user("3", "ann", "hello", 1)
        assert (await client.hear())["event"] == "hello"
        await new.broker.terminate("3", "ann")
        assert (await client.closed())[0] == 4009


async def test_an_http_connection_moves_between_two_requests():
    async with two_nodes() as (old, new):
        caller = await old.connect()
        body = {"name": "tick", "channel": "cache-a", "data": "1"}
        await caller.say(old.signed("POST", "events", body))
        assert (await caller.answer("POST")).status == 200
        await until(lambda: any(c.can_move for c in old.server.room.guests()))
        move(old.server, new.server)
        await caller.say(new.signed("POST", "events", body | {"data": "2"}))
        assert (await caller.answer("POST")).status == 200
        assert (await new.broker.read_cache("3", "cache-a")).data == "2"
        assert (await old.broker.read_cache("3", "cache-a")).data == "1"


async def test_a_request_that_stayed_behind_is_told_to_come_again():
    async with two_nodes() as (old, new):
        caller = await old.connect()
        request = old.signed("POST", "events", {"name": "a", "channel": "b", "data": "c"})
        await caller.say(request[:-5])
        await until(lambda: any(c.is_asked for c in old.server.room.guests()))
        move(old.server, new.server)
        await caller.say(request[-5:])
        answer = await caller.answer("POST")
        assert answer.status == 503
        assert answer.headers["retry-after"] == "0"
        assert new.broker.hubs["3"].counters.publishes == 0


async def test_a_successor_that_fails_leaves_everything_as_it_was():
    async with two_nodes() as (old, new):
        ann, bob = await old.client(), await old.client()
        for client in (ann, bob):
            await client.subscribe_signed("presence-a", json.dumps({"user_id": client.socket_id}))
        await ann.hear("pusher_internal:member_added")
        await old.broker.publish("3", "presence-a", "one", 1)
        await old.broker.fanout.wait_idle()
        taking, state, _ = copy(old.server, new.server)
        taking.finish(state)
        taking.let_go()
        await trio.testing.wait_all_tasks_blocked()
        assert new.broker.clients.n_sessions == 0
        await old.broker.publish("3", "presence-a", "two", 2)
        for client in (ann, bob):
            assert (await client.hear())["event"] == "one"
            assert (await client.hear())["event"] == "two"
        await bob.leave()
        assert (await ann.hear())["event"] == "pusher_internal:member_removed"


async def test_tls_stays_behind_and_its_place_is_kept_for_a_moment(tmp_path):
    app, authority = make_app(), trustme.CA()
    cert = authority.issue_cert("localhost")
    cert.private_key_pem.write_to_path(tmp_path / "key.pem")
    for pem in cert.cert_chain_pems:
        pem.write_to_path(tmp_path / "cert.pem", append=True)
    tls = TlsTerms(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with (
        running(app, tls=tls, trusts=authority) as old,
        running(app, tls=tls, trusts=authority) as new,
    ):
        ann = await old.client()
        await ann.subscribe_signed("presence-a", json.dumps({"user_id": "ann"}))
        taking = move(old.server, new.server)
        assert await new.broker.users("3", "presence-a") == ["ann"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(retire, old.server, len(taking.absent))
            assert (await ann.closed())[0] == 4200
            await ann.wire.aclose()
        assert await new.broker.users("3", "presence-a") == ["ann"]
        await taking.end_absence(0.0)
        assert await new.broker.users("3", "presence-a") == []


async def test_what_a_paced_client_has_asked_for_is_answered_over_there():
    """Its requests lie in the parser and the kernel until it reads, here or there."""
    async with two_nodes(make_app(max_pending_bytes=8_000_000)) as (old, new):
        client = await old.client(receives=4_096)
        n_channels = 400
        for number in range(n_channels):
            await old.broker.publish("3", f"cache-{number}", "tick", "x" * 2_000)
            await client.say("pusher:subscribe", {"channel": f"cache-{number}"})
        await until(lambda: any(outbox.is_pacing for outbox in old.broker.backlog))
        move(old.server, new.server)
        answered = [(await client.hear("tick"))["channel"] for _ in range(n_channels)]
        assert answered == [f"cache-{number}" for number in range(n_channels)]
        assert new.broker.hubs["3"].n_subscriptions == n_channels


async def test_a_ping_that_was_not_answered_is_still_waited_for():
    """For what is left of its time, and an answer that comes there counts."""
    async with two_nodes(activity_timeout_s=10.0, pong_timeout_s=20.0) as (old, new):
        silent, alive = await old.client(), await old.client()
        await old.wait(10.0)
        await new.wait(10.0)
        for client in (silent, alive):
            assert (await client.frame())[0] == 9
        move(old.server, new.server)
        await alive.send(10)
        await alive.say("pusher:ping")
        await alive.hear("pusher:pong")
        await new.wait(10.0)
        assert (await alive.frame())[0] == 9
        await new.wait(9.0)
        assert new.broker.clients.n_sessions == 2
        await new.wait(2.0)
        assert (await silent.closed())[0] == 4201
        assert new.broker.clients.n_sessions == 1


async def test_a_signature_that_is_owed_is_owed_over_there():
    app = make_app(requires_authorization=True, authorization_timeout_s=30.0)
    async with two_nodes(app) as (old, new):
        client = await old.client()
        await old.wait(20.0)
        await new.wait(20.0)
        move(old.server, new.server)
        await new.wait(9.0)
        assert new.broker.clients.n_sessions == 1
        await new.wait(2.0)
        assert (await client.closed())[0] == 4009


async def test_a_count_that_is_held_back_is_told_over_there():
    app = make_app(sends_subscription_counts=True)
    async with two_nodes(app) as (old, new):
        clients = [await old.client() for _ in range(103)]
        for client in clients:
            await client.subscribe("news")
        assert old.broker.announcements.stale_counts
        move(old.server, new.server)
        assert not old.broker.announcements.stale_counts
        await new.wait(6.0)
        while True:
            said = await clients[0].hear("pusher_internal:subscription_count")
            if json.loads(said["data"])["subscription_count"] == 103:
                break


async def test_a_miss_that_was_reported_is_not_reported_again():
    """Webhooks that wait are told, once, by whoever is the node then."""
    hook = Webhook(url="http://127.0.0.1:9/")
    async with two_nodes(make_app(webhooks=(hook,))) as (old, new):
        client = await old.client()
        await client.subscribe("cache-a")
        await until(lambda: old.broker.webhooks.queued_events("3") == 2)
        move(old.server, new.server)
        assert new.broker.webhooks.queued_events("3") == 2
        await until(lambda: old.broker.webhooks.queued_events("3") == 0)
        late = await new.client()
        await late.subscribe("cache-a")
        await late.hear("pusher:cache_miss")
        assert new.broker.webhooks.queued_events("3") == 2


async def test_counters_go_on_and_slow_clients_keep_their_place_in_the_line():
    async with two_nodes(make_app(max_pending_bytes=8_000_000)) as (old, new):
        slow = [await old.client(receives=4_096) for _ in range(3)]
        for client in slow:
            await client.subscribe("news")
        for _ in range(100):
            await old.broker.publish("3", "news", "tick", "x" * 9_000)
        await old.broker.fanout.wait_idle()
        order = [_number_of(old, outbox) for outbox in old.broker.backlog]
        publishes = old.broker.hubs["3"].counters.publishes
        move(old.server, new.server)
        assert [_number_of(new, outbox) for outbox in new.broker.backlog] == order
        assert new.broker.hubs["3"].counters.publishes == publishes


def _number_of(node: Node, outbox: Any) -> int:
    connections = list(node.broker.hubs["3"].connections.values())
    return next(number for number, one in enumerate(connections) if one.outbox is outbox)


# --- what is said between the two


@pytest.fixture
def lines():
    ours, theirs = socket.socketpair()
    pair = Line(ours), Line(theirs)
    yield pair
    for line in pair:
        line.close()


def hello(**fields: Any) -> Hello:
    said = {"reads": [STATE_VERSION], "release": "9", "now": 1_000.0, "apps": ["3"]}
    return Hello(**(said | fields))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "the other process has ended"),
        ([Taken(1)], "it did not say hello"),
        ([hello(reads=[7])], "does not understand the state of this one"),
        ([hello(now=5.0)], "another clock"),
        ([hello(), Failed("The port is taken.")], "The port is taken."),
        ([hello(), hello()], "what was not asked for"),
        ([b"\x00\x00\x00\x01\xc1"], "what cannot be read"),
    ],
)
async def test_the_node_goes_on_whatever_the_new_process_says(lines, words, text):
    ours, theirs = lines
    ended: list[str] = []
    async with running() as node:
        client = await node.client()
        await client.subscribe("news")
        for word in words:
            if isinstance(word, bytes):
                theirs._sock.sendall(word)
            else:
                await theirs.send(word)
        if not words:
            theirs.close()
        with pytest.raises(UpgradeError, match=text):
            await give(node.server, ours, [], end_other=lambda: ended.append("dead"))
        assert ended
        await node.broker.publish("3", "news", "tick", 1)
        assert (await client.hear())["event"] == "tick"


async def test_a_word_that_was_said_before_the_death_counts(lines):
    """The new process may have spoken to clients: there is no way back."""
    ours, theirs = lines
    async with running() as node:
        await node.client()
        await theirs.send(hello())

        def say_and_die() -> None:
            theirs.send_now(Taken(7), deadline=time.monotonic() + 10)
            theirs.close()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(succession, "STILL_LIMIT_S", 0.2)
            assert await give(node.server, ours, [], end_other=say_and_die) == 0
        assert node.broker.clients.n_sessions == 0


async def test_what_is_lost_with_an_app_that_the_new_process_does_not_serve_is_said(lines):
    ours, theirs = lines
    hook = Webhook(url="http://127.0.0.1:9/")
    gone = make_app(id="4", key="key-4", webhooks=(hook,))
    async with running(make_app(), gone) as node:
        client = await node.client("/app/key-4")
        await client.subscribe("room")
        await until(lambda: node.broker.webhooks.queued_events("4") == 1)
        await theirs.send(hello())
        theirs.send_now(Taken(7), deadline=time.monotonic() + 10)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(succession, "QUIET_LIMIT_S", 0.1)
            await give(node.server, ours, [], end_other=lambda: None)
        (said,) = [entry for entry in node.logs if entry["event"].startswith("app dropped")]
        assert (said["app"], said["connections"], said["webhook_events"]) == ("4", 1, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(retire, node.server, 0)
            assert (await client.closed())[0] == 4200
            await client.wire.aclose()


async def test_a_new_process_that_does_not_take_the_values_is_given_up(lines):
    ours, theirs = lines
    async with running() as node:
        for number in range(60):
            await node.broker.publish("3", f"cache-{number}", "tick", "x" * 9_000)
        await theirs.send(hello())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(succession, "VALUES_LIMIT_S", 0.1)
            for sock in (ours._sock, theirs._sock):
                for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                    sock.setsockopt(socket.SOL_SOCKET, option, 4_096)
            with pytest.raises(UpgradeError, match=r"did not take the values within 0\.1 s"):
                await give(node.server, ours, [], end_other=lambda: None)


async def test_a_node_that_ends_hands_nothing_over(lines):
    ours, theirs = lines
    async with running() as node:
        await theirs.send(hello())
        node.broker.clients.is_draining = True
        with pytest.raises(UpgradeError, match="told to end meanwhile"):
            await give(node.server, ours, [], end_other=lambda: None)
        node.broker.clients.is_draining = False


async def test_a_new_process_that_never_says_hello_is_given_up(lines, autojump_clock):
    ours, _ = lines
    async with running() as node:
        with pytest.raises(UpgradeError, match="did not say hello within 30 s"):
            await give(node.server, ours, [], end_other=lambda: None)


async def test_who_follows_a_value_is_sent_away_in_order_before_the_move(lines):
    """So that no reader sees a broken answer; who comes back finds whoever is there then."""
    ours, theirs = lines
    async with running() as node:
        stream, waiting = await node.connect(), await node.connect()
        path = "channels/cache-a/cache"
        await stream.say(node.signed("GET", path, headers="Accept: text/event-stream\r\n"))
        await waiting.say(node.signed("GET", path, params={"wait": "60"}))
        await until(lambda: node.broker.follows.n_readers("3") == 2)
        await theirs.send(hello())

        async def hand_over() -> None:
            with pytest.raises(UpgradeError):
                await give(node.server, ours, [], end_other=lambda: None)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hand_over)
            assert b"pusher:cache_miss" in (await stream.answer()).body
            assert (await waiting.answer()).status == 404
            theirs.close()
        assert node.broker.follows.n_readers("3") == 0


async def test_an_answer_in_parts_is_cut_and_its_source_is_told():
    """Whoever reads it asks again, and finds the new process."""
    told = []

    class Source:
        def begin(self, body):
            body.write(b"first")

        def on_room(self):
            """Nothing is waited for."""

        def on_gone(self):
            told.append("gone")

    async with two_nodes() as (old, new):
        old.server._handle = lambda _request: Stream(Source(), "text/plain")
        reader = await old.connect()
        await reader.say(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await reader.until(b"first")
        move(old.server, new.server)
        await reader.end()
        assert told == ["gone"]


async def test_since_when_a_client_is_there_is_known_over_there():
    async with two_nodes() as (old, new):
        await old.client()
        [before] = old.broker.hub(APP_ID).connections.values()
        await old.wait(20.0)
        await new.wait(20.0)
        move(old.server, new.server)
        [after] = new.broker.hub(APP_ID).connections.values()
        assert after.opened_at == before.opened_at == 1_000


def _post(node: Node, what: str, body: bytes = b"", session: str = "1/s") -> bytes:
    key = node.broker.config.apps[0].key
    head = f"POST /pusher/app/{key}/{session}/{what} HTTP/1.1\r\nHost: a\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


SUBSCRIBE = json.dumps([json.dumps({"event": "pusher:subscribe", "data": {"channel": "news"}})])


async def test_a_stream_over_http_moves_and_goes_on_where_it_was():
    async with two_nodes() as (old, new):
        stream, sender = await old.connect(), await old.connect()
        await stream.say(_post(old, "xhr_streaming?protocol=7"))
        await stream.until(b"connection_established")
        await sender.say(_post(old, "xhr_send", SUBSCRIBE.encode()))
        assert (await sender.answer()).status == 204
        await stream.until(b"subscription_succeeded")
        move(old.server, new.server)
        assert (old.broker.clients.n_sessions, len(old.server.transports)) == (0, 0)
        await new.broker.publish("3", "news", "tick", 1)
        await stream.until(b"tick")
        await sender.say(_post(old, "xhr_send", b"[]"))
        assert (await sender.answer()).status == 204
        await stream.until(b"a[]\n")
        await stream.aclose()
        await until(lambda: new.broker.clients.n_sessions == 0)


async def test_a_session_that_is_polled_moves_with_its_poll_and_between_two():
    async with two_nodes() as (old, new):
        waiting, between = await old.connect(), await old.connect()
        for wire, session in ((waiting, "1/a"), (between, "1/b")):
            await wire.say(_post(old, "xhr?protocol=7", session=session))
            await wire.answer()
            await wire.say(_post(old, "xhr_send", SUBSCRIBE.encode(), session))
            await wire.answer()
            await wire.say(_post(old, "xhr?protocol=7", session=session))
            assert b"subscription_succeeded" in (await wire.answer()).body
        await waiting.say(_post(old, "xhr?protocol=7", session="1/a"))
        await until(lambda: sum(s.is_receiving for s in _sessions(old)) == 1)
        await old.broker.publish("3", "news", "tick", "x" * 9_000)
        assert b"tick" in (await waiting.answer()).body
        await waiting.say(_post(old, "xhr?protocol=7", session="1/a"))
        await until(lambda: sum(s.is_receiving for s in _sessions(old)) == 1)
        move(old.server, new.server)
        await between.say(_post(old, "xhr?protocol=7", session="1/b"))
        assert b"tick" in (await between.answer()).body
        await new.broker.publish("3", "news", "tock", 1)
        assert b"tock" in (await waiting.answer()).body
        await waiting.say(_post(old, "xhr?protocol=7", session="1/a"))  # the same connection
        await new.broker.publish("3", "news", "tuck", 1)
        assert b"tuck" in (await waiting.answer()).body


def _sessions(node: Node) -> list[Any]:
    return list(node.server.transports._sessions.values())


async def test_a_session_in_the_midst_of_something_stays_behind_and_is_closed():
    """As one does over TLS: nobody is told, and its client comes back at once."""
    async with two_nodes() as (old, new):
        stream = await old.connect()
        await stream.say(_post(old, "xhr_streaming?protocol=7"))
        await stream.until(b"connection_established")
        (session,) = _sessions(old)
        session._inbox = [b"{}"]  # a message that has not been handled
        taking = move(old.server, new.server)
        assert (len(taking.absent), old.broker.clients.n_sessions) == (1, 1)
        assert new.broker.clients.n_sessions == 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(retire, old.server, 1)
            await stream.until(b"c[4200")
            await stream.aclose()
        await taking.end_absence(0.0)
        assert new.broker.clients.n_sessions == 0
