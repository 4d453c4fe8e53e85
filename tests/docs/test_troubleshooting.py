"""Every entry of docs/troubleshooting.md, and every close code, as it happens to people."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from cachecast import App, BrokerConfig, Webhook
from cachecast.testing import TEST_APP, MemoryNetwork, open_memory_network, open_test_broker
from tests.docs.pages import DOCS, parse
from tests.e2e.server import ServerProcess
from tests.loadtest.proxies import free_port, nginx
from tests.sockets.node import running, signed, until

#: Heading of an entry -> configuration and what happens then.
STORIES: dict[str, tuple[BrokerConfig, Any]] = {}
TICK = {"name": "tick", "channel": "cache-prices", "data": "1"}


def entry(title: str, *, node: dict[str, Any] | None = None, **app: Any) -> Any:
    """Enter a function under the heading of what it reproduces.

    Args:
        title: text of the heading.
        node: fields of the node's configuration.
        app: fields of the app.
    """
    config = BrokerConfig(apps=(msgspec.structs.replace(TEST_APP, **app),), **(node or {}))

    def enter(story: Any) -> Any:
        assert title not in STORIES
        STORIES[title] = (config, story)
        return story

    return enter


def headings(page: str, tag: str) -> list[str]:
    tokens = parse(DOCS / page)
    return [
        following.content.replace("`", "")
        for token, following in pairwise(tokens)
        if token.type == "heading_open" and token.tag == tag
    ]


@pytest.mark.parametrize("title", headings("troubleshooting.md", "h3"))
async def test_it_happens_as_the_entry_says(autojump_clock: object, title: str) -> None:
    """No entry without a story; those that need the world outside are below."""
    if title in OUTSIDE:
        assert OUTSIDE[title] in globals()
        return
    config, story = STORIES[title]
    async with open_test_broker(config) as broker, open_memory_network(broker) as network:
        await story(network)


async def refused(network: MemoryNetwork, code: int, **options: Any) -> str:
    """A connection that the node closes; returns why."""
    client = network.open(**options)
    assert await client.wait_closed() == code
    return client.close_reason


async def error_of(client: Any, message: dict[str, Any]) -> dict[str, Any]:
    """The ``pusher:error`` that a message is answered with."""
    client.send(message)
    answer = await client.receive()
    assert answer.event == "pusher:error"
    return dict(answer.json())


def subscribe(channel: str, **data: Any) -> dict[str, Any]:
    return {"event": "pusher:subscribe", "data": {"channel": channel, **data}}


# --- connecting


@entry("426 or 404 for the WebSocket")
async def _(network: MemoryNetwork) -> None:
    for lost in ("Upgrade", "Connection"):
        client = network.open(headers={lost: ""})
        assert client.status == 426
        assert lost.encode() in client.received
    assert (await network.request("GET", "/nothing")).status == 404


@entry("4001 although the key is right", node={"cluster": "us"}, cluster="eu")
async def _(network: MemoryNetwork) -> None:
    assert "not in this cluster" in await refused(network, 4001)
    assert "not in this cluster" in await refused(network, 4001, path=f"/app/{TEST_APP.id}")


@entry("4000, again and again", is_tls_only=True)
async def _(network: MemoryNetwork) -> None:
    await refused(network, 4000)
    await network.connect(headers={"X-Forwarded-Proto": "https"})


@entry('4009 "Origin not allowed"', allowed_origins=("*.example.org", "null"))
async def _(network: MemoryNetwork) -> None:
    assert await refused(network, 4009, origin="https://example.org") == "Origin not allowed"
    await network.connect(origin="https://shop.example.org:8443")
    await network.connect(origin="null")


@entry("4009 after thirty seconds", requires_authorization=True)
async def _(network: MemoryNetwork) -> None:
    public, private = await network.connect(), await network.connect()
    await public.subscribe("prices")
    await private.subscribe("private-prices")
    await trio.sleep(29)
    assert not public.is_closed
    assert await public.wait_closed() == 4009
    await trio.sleep(60)
    assert not private.is_closed


@entry("4100, and it is always the same client")
async def _(network: MemoryNetwork) -> None:
    slow, other = await network.connect(), await network.connect()
    for client in (slow, other):
        await client.subscribe("prices")
    slow.stop_reading()
    for _ in range(150):
        await network.broker.publish(TEST_APP.id, "prices", "tick", "x" * 10_000)
    await trio.sleep(1)
    slow.start_reading()
    assert await slow.wait_closed() == 4100
    assert not other.is_closed

    behind = await network.connect()
    await behind.subscribe("cache-prices")
    await behind.receive()
    behind.stop_reading()
    for n in range(150):
        await network.broker.publish(TEST_APP.id, "cache-prices", "tick", f"{n}" + "x" * 10_000)
    behind.start_reading()
    assert not behind.is_closed


@entry("4201 on phones")
async def _(network: MemoryNetwork) -> None:
    phone = await network.connect()
    phone.answers_pings = False
    phone.patience_s = 400
    assert await phone.wait_closed() == 4201

    again = await network.connect()
    await network.broker.publish(TEST_APP.id, "cache-prices", "tick", "1")
    await again.subscribe("cache-prices")
    assert (await again.receive()).data == "1"


# --- subscribing


@entry('"Invalid signature" on a private channel')
async def _(network: MemoryNetwork) -> None:
    client = await network.connect()
    key = TEST_APP.key
    earlier = client.sign("1.1:private-x")
    error = await error_of(client, subscribe("private-x", auth=f"{key}:{earlier}"))
    assert f"{client.socket_id}:private-x" in error["message"]
    assert (await client.receive()).event == "pusher:subscription_error"

    data = '{"user_id":"ann"}'
    signed = client.sign(f"{client.socket_id}:presence-x:{data}")
    changed = subscribe("presence-x", auth=f"{key}:{signed}", channel_data='{"user_id": "ann"}')
    assert "Invalid signature" in (await error_of(client, changed))["message"]


@entry('"Existing subscription to channel"')
async def _(network: MemoryNetwork) -> None:
    client = await network.connect()
    await client.subscribe("prices")
    error = await error_of(client, subscribe("prices"))
    assert error["message"].startswith("Existing subscription to channel")
    await network.broker.publish(TEST_APP.id, "prices", "tick", "1")
    assert (await client.receive()).event == "tick"


@entry('"Invalid channel_data", or members without names')
async def _(network: MemoryNetwork) -> None:
    client = await network.connect()
    data = '{"user_id":"ann","user_info":true}'
    signed = client.sign(f"{client.socket_id}:presence-x:{data}")
    message = subscribe("presence-x", auth=f"{TEST_APP.key}:{signed}", channel_data=data)
    assert "user_info" in (await error_of(client, message))["message"]


@entry("Fewer members than connections")
async def _(network: MemoryNetwork) -> None:
    first, second = await network.connect(), await network.connect()
    await first.subscribe("presence-x", user_id="ann")
    success = await second.subscribe("presence-x", user_id="ann")
    assert success.json()["presence"]["count"] == 1


@entry("No subscription_count", sends_subscription_counts=False)
async def _(network: MemoryNetwork) -> None:
    client = await network.connect()
    await client.subscribe("prices")
    await trio.sleep(10)
    assert [m.event for m in client.messages if "count" in m.event] == []


# --- events


OTHER = App(id="2", key="other-key", secret="other-secret")


@entry("Connected, but no events")
async def _(network: MemoryNetwork) -> None:
    await network.broker.reload(BrokerConfig(apps=(TEST_APP, OTHER)))
    client = await network.connect()
    await client.subscribe("private-x")
    event = {"name": "tick", "channel": "private-x", "data": "1"}
    assert (await network.request("POST", "/events", event, app=OTHER)).json() == {}
    await network.request("POST", "/events", event | {"channel": "x"})
    await network.request("POST", "/events", event | {"socket_id": client.socket_id})
    await trio.sleep(1)
    n_heard = len(client.messages)
    await network.request("POST", "/events", event)
    assert (await client.receive()).event == "tick"
    assert len(client.messages) == n_heard + 1


@entry("Client events vanish", allows_client_events=False)
async def _(network: MemoryNetwork) -> None:
    client = await network.connect()
    await client.subscribe("private-x")
    message = {"event": "client-a", "channel": "private-x", "data": {}}
    assert "enable this feature" in (await error_of(client, message))["message"]


@entry("An event over 10 KB is refused")
async def _(network: MemoryNetwork) -> None:
    answer = await network.request("POST", "/events", TICK | {"data": "x" * 10_241})
    assert answer.status == 413
    assert b"10240 bytes" in answer.body


@entry("Publishing is 429", publishes_per_s=1)
async def _(network: MemoryNetwork) -> None:
    statuses = [(await network.request("POST", "/events", TICK)).status for _ in range(101)]
    assert statuses == [200] * 100 + [429]


# --- cached values


async def first_event(network: MemoryNetwork, channel: str) -> str:
    client = await network.connect()
    await client.subscribe(channel)
    return (await client.receive()).event


@entry("cache_miss although I published", max_cache_entries=2)
async def _(network: MemoryNetwork) -> None:
    publish = partial(network.broker.publish, TEST_APP.id)
    await publish("cache-prices", "tick", "1")
    assert await first_event(network, "cache-prices") == "tick"
    await trio.sleep(1800)
    assert await first_event(network, "cache-prices") == "pusher:cache_miss"

    member = await network.connect()
    await member.subscribe("private-cache-x")
    member.trigger("private-cache-x", "client-a", {})
    assert await first_event(network, "private-cache-x") == "pusher:cache_miss"

    for name in ("cache-a", "cache-b", "cache-c"):
        await publish(name, "tick", "1")
    assert await first_event(network, "cache-a") == "pusher:cache_miss"
    assert network.broker.statistics().apps[0].cache_capacity_evictions == 1


@entry("No value and no cache_miss either")
async def _(network: MemoryNetwork) -> None:
    for name in ("x-cache", "cache_x", "my-cache-x"):
        await network.broker.publish(TEST_APP.id, name, "tick", "1")
        client = await network.connect()
        await client.subscribe(name)
        await trio.sleep(1)
        assert client.messages[-1].event == "pusher_internal:subscription_succeeded"


@entry("The value is older than what was published last")
async def _(network: MemoryNetwork) -> None:
    for n in range(3):
        await network.broker.publish(TEST_APP.id, "cache-prices", "tick", str(n))
        client = await network.connect()
        await client.subscribe("cache-prices")
        assert (await client.receive()).data == str(n)


# --- the HTTP API


@entry('401 "Invalid signature"')
async def _(network: MemoryNetwork) -> None:
    stranger = msgspec.structs.replace(TEST_APP, secret="wrong")
    answer = await network.request("POST", "/events", TICK, app=stranger)
    assert answer.status == 401
    assert b"POST\\n/apps/1/events\\n" in answer.body


@entry("415")
async def _(network: MemoryNetwork) -> None:
    answer = await network.request("POST", "/events", TICK, headers={"Content-Encoding": "gzip"})
    assert answer.status == 415


#: Entries that need sockets, processes or a proxy -> the test that reproduces them.
OUTSIDE = {
    "It never connects, and the log says nothing": "test_tls_on_a_plain_port_is_400",
    "Closes after sixty seconds": "test_a_proxy_that_is_less_patient_cuts_silent_clients",
    "401 behind a proxy": "test_a_prefix_that_a_proxy_takes_off_must_not_be_signed",
    '401 "Timestamp expired"': "test_a_clock_that_is_ten_minutes_off_is_refused",
    "Webhooks do not come": "test_a_receiver_that_refuses_is_counted",
    "It does not start": "test_an_address_in_use_is_said",
    "/ready is 503": "test_readiness_ends_with_the_first_signal",
}


async def test_tls_on_a_plain_port_is_400() -> None:
    """What `forceTLS: true` sends to a port without TLS: the beginning of a handshake."""
    async with running() as node:
        wire = await node.connect()
        await wire.say(bytes.fromhex("160301002001000001c0030300") + bytes(24))
        assert (await wire.answer()).status == 400


async def test_a_prefix_that_a_proxy_takes_off_must_not_be_signed() -> None:
    """Signed is `/realtime/apps/ID/events`; what arrives is `/apps/ID/events`."""
    async with running() as node:
        body = {"name": "tick", "channel": "prices", "data": "1"}
        kept = node.signed("POST", "events", body, prefix="/realtime")
        taken_off = kept.replace(b"POST /realtime", b"POST ")
        unsigned = node.signed("POST", "events", body).replace(b"POST ", b"POST /realtime")
        for request, status in ((kept, 200), (taken_off, 401), (unsigned, 200)):
            wire = await node.connect()
            await wire.say(request)
            assert (await wire.answer("POST")).status == status


async def test_a_clock_that_is_ten_minutes_off_is_refused() -> None:
    """Either way."""
    async with running() as node:
        for seconds, status in ((-600, 401), (600, 401), (599, 200)):
            wire = await node.connect()
            await wire.say(signed("GET", "channels", at=node.unix_now() + seconds))
            answer = await wire.answer()
            assert answer.status == status
            assert status == 200 or "Timestamp expired" in answer.text


async def test_readiness_ends_with_the_first_signal() -> None:
    """While those who are connected are still there."""
    async with running(has_admin=True) as node, trio.open_nursery() as nursery:
        assert await _status(node, "/ready") == 200
        client = await node.client()
        nursery.start_soon(node.server.drain, 5.0)
        with trio.fail_after(20):
            while await _status(node, "/ready") != 503:  # noqa: ASYNC110 - it is asked by HTTP
                await trio.sleep(0.01)
        await client.leave()
        nursery.cancel_scope.cancel()


async def _status(node: Any, path: str) -> int:
    wire = await node.connect(is_admin=True)
    await wire.say(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    return int((await wire.answer()).status)


async def test_a_receiver_that_refuses_is_counted() -> None:
    """Nobody listens at that port."""
    hooks = (Webhook(url="http://127.0.0.1:1/hooks", events=("channel_occupied",)),)
    app = msgspec.structs.replace(TEST_APP, webhooks=hooks)
    with trio.fail_after(20):
        async with (
            open_test_broker(BrokerConfig(apps=(app,))) as broker,
            open_memory_network(broker) as network,
        ):
            client = await network.connect()
            await client.subscribe("prices")
            await until(lambda: broker.statistics().apps[0].webhooks.get("retried"))


SERVER = """
server {{
    listen 127.0.0.1:{port};
    location / {{
        proxy_pass http://127.0.0.1:{node};
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection "upgrade";
        proxy_read_timeout {patience};
    }}
}}
"""


def test_a_proxy_that_is_less_patient_cuts_silent_clients(tmp_path: Path) -> None:
    """Without a close frame; beside it one that is patient, for as long."""
    server = ServerProcess(tmp_path)
    hasty, patient = free_port(), free_port()
    servers = "".join(
        SERVER.format(port=port, node=server.port, patience=patience)
        for port, patience in ((hasty, "1s"), (patient, "60s"))
    )
    try:
        with (
            nginx(tmp_path, servers, [hasty, patient]),
            connect(f"ws://127.0.0.1:{patient}/app/app-key") as kept,
            connect(f"ws://127.0.0.1:{hasty}/app/app-key") as cut,
        ):
            for socket in (kept, cut):
                assert "connection_established" in socket.recv(timeout=30)
            with pytest.raises(ConnectionClosedError) as ending:
                cut.recv(timeout=30)
            assert ending.value.rcvd is None
            with pytest.raises(TimeoutError):
                kept.recv(timeout=0.1)
    finally:
        server.stop()


def test_an_address_in_use_is_said(tmp_path: Path) -> None:
    """In one line, with exit code 1."""
    server = ServerProcess(tmp_path)
    try:
        second = subprocess.run(
            [sys.executable, "-m", "cachecast", "serve", "--port", str(server.port)],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    finally:
        server.stop()
    assert second.returncode == 1
    assert "in use" in second.stderr.splitlines()[-1]
