"""A node is replaced by another one: clients, values and callers go on as if nothing had been."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
import trustme

from cachecast import TlsTerms
from cachecast.server.succession import retire
from tests.sockets.moving import copy, move
from tests.sockets.node import Client, Node, frame, make_app, message, running, sign, until

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
