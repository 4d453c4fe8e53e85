"""``cachecast.client`` against the server that ships with it, over real sockets.

Its unit tests play the server, with the manners of all of them; here is whether the two halves of
this project understand each other.
"""

from __future__ import annotations

import json
import socket
import ssl
from base64 import b64encode
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import parse_qs

import pytest
import trio
import trustme

from cachecast import TlsTerms
from cachecast.client import ClientState, connect
from cachecast.errors import AuthError, RefusedError, SubscriptionError
from tests.sockets.node import APP_ID, KEY, SECRET, make_app, running, until

MASTER_KEY = b64encode(bytes(range(32))).decode()

KINDS = [
    "room", "private-room", "private-encrypted-room", "presence-room",
    "cache-room", "private-cache-room", "private-encrypted-cache-room", "presence-cache-room",
]  # fmt: skip


def url(node):
    return f"ws://127.0.0.1:{node.server.port}"


def connected(node, **options):
    by = {"secret": SECRET} if not {"authorizer", "auth_endpoint"} & options.keys() else {}
    return connect(url(node), key=KEY, **{"random": lambda: 0.0} | by | options)


async def publish(node, channel, event, data):
    """As a backend does: what goes to an encrypted channel is encrypted before."""
    if "encrypted" in channel:
        data = node.broker.encrypt(MASTER_KEY, channel, data)
    await node.broker.publish(APP_ID, channel, event, data)


async def subscribed(client, channel):
    user = {"user_id": "ann"} if channel.startswith("presence-") else {}
    return await client.subscribe(channel, **user)


# --- channels


@pytest.mark.parametrize("channel", KINDS)
async def test_every_kind_of_channel_is_heard_and_cached_where_it_is_a_cache_channel(channel):
    async with running() as node:
        await publish(node, channel, "tick", {"eur": 1.07})
        async with connected(node, encryption_master_key=MASTER_KEY) as client:
            heard = await subscribed(client, channel)
            await publish(node, channel, "tick", {"eur": 1.08})
            expected = [{"eur": 1.07}, {"eur": 1.08}] if "cache-" in channel else [{"eur": 1.08}]
            for data in expected:
                event = await anext(heard)
                assert (event.name, event.channel, event.json()) == ("tick", channel, data)


@pytest.mark.parametrize("channel", [name for name in KINDS if "cache-" in name])
async def test_empty_cache_is_a_miss(channel):
    async with running() as node, connected(node, encryption_master_key=MASTER_KEY) as client:
        heard = await subscribed(client, channel)
        assert (await anext(heard)).is_cache_miss
        await publish(node, channel, "tick", 1)
        assert (await anext(heard)).json() == 1


@asynccontextmanager
async def endpoint(node):
    """A backend's auth endpoint, as pusher-js asks it; gives its URL and what it was asked."""
    asked = []

    async def answer(stream):
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some()
        head, _, body = head.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += await stream.receive_some()
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        asked.append((head.splitlines(), form))
        if form.get("channel_name", "").endswith("-secret"):
            status, told = b"403 Forbidden", b"not for you"
        else:
            told = json.dumps({"status": 1, "user": {}} | leave(node, **form)).encode()
            status = b"200 OK"
        await stream.send_all(
            b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
            % (status, len(told), told)
        )
        await stream.aclose()

    (listener,) = await node.nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
    yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}/pusher/auth", asked


def leave(node, socket_id, channel_name=None):
    """What a backend that embeds the broker answers."""
    if channel_name is None:
        return node.broker.authenticate_user(APP_ID, socket_id, {"id": "ann"})
    options = {}
    if channel_name.startswith("presence-"):
        options["user_id"] = "ann"
    if "encrypted" in channel_name:
        options["encryption_master_key"] = MASTER_KEY
    return node.broker.authorize_channel(APP_ID, socket_id, channel_name, **options)


@pytest.mark.parametrize("channel", [name for name in KINDS if "-" in name])
async def test_authorizer_is_asked_for_what_needs_leave(channel):
    async with running() as node:
        asked = []

        async def authorizer(socket_id, name):
            asked.append(name)
            return leave(node, socket_id, name)

        async with connected(node, authorizer=authorizer) as client:
            heard = await client.subscribe(channel)
            if "cache-" in channel:
                assert (await anext(heard)).is_cache_miss
            await publish(node, channel, "tick", 1)
            assert (await anext(heard)).json() == 1
        assert asked == ([] if channel == "cache-room" else [channel])


async def test_endpoint_is_asked_as_pusher_js_asks_and_its_refusal_is_told():
    async with running() as node, endpoint(node) as (address, asked):
        options = {"auth_endpoint": address, "user_auth_endpoint": address}
        async with connected(node, **options, auth_headers={"X-Session": "7"}) as client:
            heard = await client.subscribe("presence-cache-room")
            assert heard.my_id == "ann"
            assert (await anext(heard)).is_cache_miss
            await client.subscribe("private-encrypted-room")
            with pytest.raises(SubscriptionError, match="403: not for you") as caught:
                await client.subscribe("private-secret")
            assert isinstance(caught.value.__cause__, AuthError)
            own = await client.sign_in()
            assert own.name == "#server-to-user-ann"
            await node.broker.send_to_user(APP_ID, "ann", "hello", "you")
            assert (await anext(own)).data == "you"
        head, form = asked[0]
        assert head[0] == b"POST /pusher/auth HTTP/1.1"
        assert b"x-session: 7" in [line.lower() for line in head]
        assert form.keys() == {"socket_id", "channel_name"}


async def test_presence_and_client_events_between_two_clients():
    async with (
        running(make_app(allows_client_events=True, sends_subscription_counts=True)) as node,
        connected(node) as ann,
        connected(node) as bob,
    ):
        hers = await ann.subscribe("presence-room", user_id="ann", user_info={"name": "Ann"})
        assert dict(hers.members) == {"ann": {"name": "Ann"}}
        his = await bob.subscribe("presence-room", user_id="bob")
        assert dict(his.members) == {"ann": {"name": "Ann"}, "bob": None}
        added = await anext(hers)
        assert (added.name, added.json()["user_id"]) == ("pusher:member_added", "bob")

        await his.trigger("client-typing", {"on": True})
        typing = await anext(hers)
        assert (typing.name, typing.user_id, typing.json()) == (
            "client-typing", "bob", {"on": True},
        )  # fmt: skip

        await his.unsubscribe()
        removed = await anext(hers)
        assert (removed.name, removed.json()) == ("pusher:member_removed", {"user_id": "bob"})
        assert "bob" not in hers.members
        await hers.trigger("client-alone", 1)  # nobody else is there, and it is not echoed
        await node.broker.publish(APP_ID, "presence-room", "last", 1)
        assert (await anext(hers)).name == "last"


async def test_client_event_that_the_app_does_not_allow_is_an_error_and_no_end():
    async with running() as node, connected(node) as client:
        channel = await client.subscribe("private-room")
        await channel.trigger("client-a", 1)
        error = await told(client.events, "pusher:error")
        assert "client events" in error["message"].lower()
        assert channel.is_subscribed


async def test_signed_in_user_hears_who_is_watched_and_is_terminated():
    async with running() as node, connected(node) as ann:
        await ann.sign_in({"id": "ann", "watchlist": ["bob"]})
        assert ann.user_id == "ann"
        async with connected(node) as bob:
            await bob.sign_in({"id": "bob"})
            assert await told(ann.events, "pusher:online") == {
                "name": "online",
                "user_ids": ["bob"],
            }
        assert await told(ann.events, "pusher:offline") == {"name": "offline", "user_ids": ["bob"]}
        await node.broker.terminate(APP_ID, "ann")
        with pytest.raises(RefusedError) as caught:
            await told(ann.events, "never")
        assert caught.value.close_code == 4009


async def told(events, name):
    """The data of the next event of that name."""
    async for event in events:
        if event.name == name:
            return event.json()
    return None


async def test_refusals_are_told_to_the_one_who_asked():
    async with running(make_app(max_channels_per_connection=2)) as node:
        async with connect(url(node), key=KEY, secret="wrong") as client:
            with pytest.raises(SubscriptionError, match="Invalid signature") as caught:
                await client.subscribe("private-room")
            assert caught.value.channel == "private-room"
            await client.subscribe("a")
            await client.subscribe("b")
            with pytest.raises(SubscriptionError) as caught:
                await client.subscribe("c")
            assert caught.value.kind == "LimitReached"
        async with connect(url(node), key=KEY) as client:
            with pytest.raises(SubscriptionError, match="needs authorization"):
                await client.subscribe("private-room")


# --- connections


async def states(client, n):
    """The next states that the client is in."""
    found = []
    async for event in client.events:
        if event.name == "pusher:state_change":
            found.append(event.json()["current"])
            if len(found) == n:
                break
    return found


@pytest.mark.parametrize("code", [4100, 4200, 4202])
async def test_close_code_decides_when_the_client_is_back_and_what_it_finds(code):
    """42xx at once, where chance would have it wait for 20 s; 4100 after a second at least."""
    chance = 0.0 if code == 4100 else 20.0
    async with running() as node:
        await node.broker.publish(APP_ID, "cache-room", "tick", "1")
        async with connected(node, random=lambda: chance) as client:
            heard = await client.subscribe("cache-room")
            assert (await anext(heard)).data == "1"
            await states(client, 1)
            (connection,) = node.broker.hubs[APP_ID].connections.values()
            started = trio.current_time()
            node.broker.clients.disconnect(connection, code, "Go away")
            assert await states(client, 2) == ["unavailable", "connected"]
            assert (1 if code == 4100 else 0) <= trio.current_time() - started < 15
            assert (client.last_ending.code, client.last_ending.text) == (code, "Go away")
            assert (await anext(heard)).data == "1"  # once more, for only the cache knows


@pytest.mark.parametrize(("key", "app", "code"), [
    ("nokey", {}, 4001), (KEY, {"is_enabled": False}, 4003), (KEY, {"max_connections": 0}, 4004),
])  # fmt: skip
async def test_client_stops_where_it_is_told_to(key, app, code):
    limited = "max_connections" in app
    async with running(make_app(**(app | ({"max_connections": 1} if limited else {})))) as node:
        if limited:
            await node.client()
        with pytest.raises(RefusedError) as caught:
            async with connect(url(node), key=key) as client:
                await client.wait_connected()
        assert caught.value.close_code == code
        assert client.state is ClientState.FAILED
        assert client.statistics().attempts == 1


async def test_client_of_an_app_that_wants_tls_comes_back_with_tls(tmp_path):
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    app = make_app(is_tls_only=True)
    terms = TlsTerms(tmp_path / "cert", tmp_path / "key")
    async with running(app, tls=terms, trusts=authority) as node:
        address = f"wss://127.0.0.1:{node.server.port}"
        async with connect(address, key=KEY, ssl_context=context) as client:
            assert (await anext(await client.subscribe("cache-room"))).is_cache_miss
    async with (
        running(app) as node,
        connect(url(node), key=KEY, ssl_context=context, random=lambda: 1.0) as client,
    ):
        await until(lambda: client.statistics().attempts == 2 and client.last_ending)
        await until(lambda: "SSL" in client.last_ending.text)  # it came back with TLS


async def test_client_outlives_a_node_that_dies_and_subscribes_to_everything_again():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with connect(
        f"ws://127.0.0.1:{port}", key=KEY, secret=SECRET, encryption_master_key=MASTER_KEY,
        random=lambda: 0.1,
    ) as client:  # fmt: skip
        async with running(port=port):
            heard = [await subscribed(client, channel) for channel in KINDS]
            await client.sign_in({"id": "ann"})
        await until(lambda: client.state is ClientState.UNAVAILABLE)
        assert not any(channel.is_subscribed for channel in heard)
        async with running(port=port) as node:
            await until(lambda: all(channel.is_subscribed for channel in heard))
            await until(lambda: client.user_id == "ann")
            for channel in heard:
                await publish(node, channel.name, "tick", {"on": channel.name})
                assert await told(channel, "tick") == {"on": channel.name}
        assert client.statistics().connections == 2


async def test_cancelled_calls_leave_nothing_behind_on_the_server():
    async with running() as node, connected(node) as client:
        await client.wait_connected()
        for timeout_s in (0, 0.0005, 0.001, 0.002, 0.004):
            with trio.move_on_after(timeout_s):
                await client.subscribe("private-room")
            if "private-room" in {s.name.text for s in client._conversation.subscriptions}:
                continue
            await until(lambda: "private-room" not in node.broker.hubs[APP_ID].channels)
        channel = await client.subscribe("private-room")
        await node.broker.publish(APP_ID, "private-room", "tick", "1")
        assert (await anext(channel)).data == "1"
