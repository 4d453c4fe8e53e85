"""The WebSocket handshake: who may begin, and how those who may not are told."""

from __future__ import annotations

import pytest

from cachecast import App
from tests.sockets.node import APP_ID, KEY, make_app, running, upgrade_request

NONCE = b"dGhlIHNhbXBsZSBub25jZQ=="


async def test_accept_token_is_the_rfcs():
    async with running() as node:
        wire = await node.connect()
        await wire.say(upgrade_request(f"/app/{KEY}", NONCE))
        head = await wire.until(b"\r\n\r\n")
        assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head
        assert b"Sec-WebSocket-Protocol" not in head
        assert b"Sec-WebSocket-Extensions" not in head


@pytest.mark.parametrize(
    ("old", "new", "status", "header"),
    [
        (b"GET ", b"POST ", 405, ("allow", "GET")),
        (b"Version: 13", b"Version: 8", 426, ("sec-websocket-version", "13")),
        (b"Sec-WebSocket-Version: 13\r\n", b"", 426, ("upgrade", "websocket")),
        (NONCE, b"short", 400, None),
        (NONCE, b"", 400, None),
        (NONCE, b"!" * 24, 400, None),
        (NONCE, b"\xff" * 24, 400, None),
        (b"Sec-WebSocket-Key: " + NONCE + b"\r\n", b"", 400, None),
        (
            b"Sec-WebSocket-Key",
            b"Sec-WebSocket-Key: " + NONCE + b"\r\nSec-WebSocket-Key",
            400,
            None,
        ),
        (b"Upgrade: websocket", b"Upgrade: h2c", 426, ("upgrade", "websocket")),
        (b"keep-alive, Upgrade", b"keep-alive", 426, ("upgrade", "websocket")),
        (b"HTTP/1.1", b"HTTP/1.0", 426, ("upgrade", "websocket")),
        (b"Host: localhost\r\n", b"", 400, None),
    ],
)
async def test_faulty_handshake_is_answered_in_http(old, new, status, header):
    async with running() as node:
        wire = await node.connect()
        request = upgrade_request(f"/app/{KEY}", NONCE)
        assert old in request
        await wire.say(request.replace(old, new))
        answer = await wire.answer()
        assert answer.status == status
        assert header is None or answer.headers[header[0]] == header[1]


@pytest.mark.parametrize(
    "path",
    [
        "/app/{key}",
        "/app/{key}?protocol=7&client=js&version=8.6.0&flash=false",
        "/app/{key}?client=Pysher&version=1.0.7&protocol=6",
        "/app/{key}?client=java-client&protocol=5&version=2",
        "/app/{key}?protocol=4",
        "/app/{key}/",
        "/any/prefix/app/{key}?protocol=7",
        "/app/app/{key}",
        "http://localhost/app/{key}",
        "WSS://localhost:1/any/prefix/app/{key}?protocol=7",
    ],
)
async def test_clients_of_all_kinds_are_admitted(path):
    async with running() as node:
        client = await node.client(path.format(key=KEY))
        await client.say("pusher:ping")
        assert (await client.hear())["event"] == "pusher:pong"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/app/unknown", 4001),
        ("/app/" + "k" * 10_000, 4001),
        ("/app/%00", 4001),
        ("/app/{key}?protocol=3", 4007),
        ("/app/{key}?protocol=8", 4007),
        ("/app/{key}?protocol=" + "9" * 5_000, 4007),
        ("/app/{key}?protocol=x", 4006),
        ("/app/{key}?protocol=", 4006),
        ("/app/{key}?protocol=7.0", 4006),
        ("/app/{key}?protocol=%D9%A7", 4006),
        ("/", 4005),
        ("/app", 4005),
        ("/app/", 4005),
        ("/apps/{key}", 4005),
        ("/app/{key}/events", 4005),
        ("/apps/3/events", 4005),
    ],
)
async def test_refusal_is_said_inside_a_websocket(path, code):
    """pusher-js reports nothing at all for an HTTP error on the upgrade (9.2)."""
    async with running() as node:
        client = await node.handshake(path.format(key=KEY))
        assert await client.refused() == (code, code)


@pytest.mark.parametrize(
    ("fields", "config", "headers", "code"),
    [
        ({"is_enabled": False}, {}, (), 4003),
        ({"is_tls_only": True}, {}, (), 4000),
        ({"is_tls_only": True}, {}, ("X-Forwarded-Proto: https",), 4000),
        ({"cluster": "eu"}, {"cluster": "us"}, (), 4001),
        ({"cluster": "eu"}, {}, (), 4001),
        ({"allowed_origins": ("example.org",)}, {}, ("Origin: https://evil.org",), 4009),
        ({"allowed_origins": ("example.org",)}, {}, ("Origin: null",), 4009),
        ({"allowed_origins": ("*.example.org",)}, {}, ("Origin: https://example.org.evil",), 4009),
        ({"allowed_origins": ("a.org",)}, {}, ("Origin: http://a.org", "Origin: http://b"), 4009),
        ({"max_connections": 0.5}, {}, (), 4004),
        ({}, {"max_connections": 0.5}, (), 4100),
    ],
)
async def test_app_or_node_may_refuse(fields, config, headers, code):
    async with running(make_app(**fields), **config) as node:
        if code == 4004 or config.get("max_connections"):
            await node.client()  # the one that fits
        client = await node.handshake(f"/app/{KEY}", *headers)
        assert await client.refused() == (code, code)


async def test_refusal_of_a_foreign_cluster_has_the_hosted_text():
    async with running(make_app(cluster="eu"), cluster="us") as node:
        client = await node.handshake()
        assert (await client.hear())["data"]["message"] == (
            f"App key {KEY} not in this cluster. Did you forget to specify the cluster?"
        )


async def test_allowed_origins_and_clients_without_one_are_admitted():
    async with running(make_app(allowed_origins=("*.example.org", "Localhost"))) as node:
        for origin in ("https://a.example.org", "http://localhost:8080", "https://B.EXAMPLE.ORG"):
            await node.client(f"/app/{KEY}", f"Origin: {origin}")
        await node.client()


@pytest.mark.parametrize(
    ("lines", "is_tls"),
    [
        (["X-Forwarded-Proto: https"], True),
        (["X-Forwarded-Proto: WSS"], True),
        (["X-Forwarded-Proto: https, https"], True),
        (["X-Forwarded-Proto: HTTPS ,http"], True),
        (["X-Forwarded-Proto: https", "X-Forwarded-Proto: http"], True),
        (['Forwarded: for="[::1]:1";proto=https;by=a, for=b;proto=http'], True),
        (["Forwarded: Proto=https", "Forwarded: proto=http"], True),
        (["X-Forwarded-Proto: http"], False),
        (["X-Forwarded-Proto: "], False),
        (["X-Forwarded-Proto: http", "X-Forwarded-Proto: https"], False),
        (["Forwarded: for=a;proto=http, for=b;proto=https"], False),
        (["Forwarded: proto=https", "X-Forwarded-Proto: http"], False),
    ],
)
async def test_proxys_word_counts_only_where_it_is_trusted(lines, is_tls):
    """Of several proxies the first, for the client is on its other side."""
    async with running(make_app(is_tls_only=True), trusts_proxy=True) as node:
        if is_tls:
            await node.client(f"/app/{KEY}", *lines)
        else:
            client = await node.handshake(f"/app/{KEY}", *lines)
            assert await client.refused() == (4000, 4000)
    async with running(make_app(is_tls_only=True)) as node:
        client = await node.handshake(f"/app/{KEY}", *lines)
        assert await client.refused() == (4000, 4000)


async def test_pages_without_a_host_are_admitted_where_they_are_named():
    """Files, sandboxed frames, web views of apps."""
    async with running(make_app(allowed_origins=("null", "file://", "a.org"))) as node:
        for origin in ("null", "file://", "https://a.org"):
            await node.client(f"/app/{KEY}", f"Origin: {origin}")
        for origin in ("https://null", "file://host", "https://file", "b.org"):
            client = await node.handshake(f"/app/{KEY}", f"Origin: {origin}")
            assert await client.refused() == (4009, 4009)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Upgrade: websocket\r\n", b"Upgrade: websocket \t\r\n"),
        (b"keep-alive, Upgrade", b"keep-alive , Upgrade\t"),
        (b"Version: 13", b"Version:13 "),
        (NONCE, NONCE + b"  "),
        (b"Host: localhost", b"Host: localhost\t"),
    ],
)
async def test_blanks_around_a_header_say_nothing(old, new):
    async with running() as node:
        wire = await node.connect()
        request = upgrade_request(f"/app/{KEY}", NONCE)
        assert old in request
        await wire.say(request.replace(old, new))
        assert (await wire.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")


async def test_subprotocols_are_confirmed_if_they_are_ours():
    async with running() as node:
        for offers, chosen in (
            (["pusher-channels-protocol-7"], "pusher-channels-protocol-7"),
            (["x, pusher-channels-protocol-7"], "pusher-channels-protocol-7"),
            (["x", "pusher-channels-protocol-7"], "pusher-channels-protocol-7"),
            (["pusher-channels-protocol-7", "x"], "pusher-channels-protocol-7"),
            (["cachecast.v1.msgpack, pusher-channels-protocol-7"], "cachecast.v1.msgpack"),
            (["pusher-channels-protocol-7,cachecast.v1.msgpack"], "cachecast.v1.msgpack"),
            (["x, y"], None),
        ):
            headers = [f"Sec-WebSocket-Protocol: {offer}" for offer in offers]
            client = await node.handshake(f"/app/{KEY}", *headers)
            confirmed = [line for line in client.head.split("\r\n") if "Protocol:" in line]
            assert confirmed == ([f"Sec-WebSocket-Protocol: {chosen}"] if chosen else []), offers


async def test_extensions_are_never_negotiated():
    async with running() as node:
        client = await node.client(
            f"/app/{KEY}", "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
        )
        assert "extensions" not in client.head.lower()


async def test_each_app_has_its_own_connections():
    other = App(id="4", key="other", secret="s", max_connections=1)
    async with running(make_app(), other) as node:
        await node.client()
        await node.client("/app/other")
        client = await node.handshake("/app/other")
        assert await client.refused() == (4004, 4004)
        assert len(node.broker.hubs[APP_ID].connections) == 1


async def test_place_of_a_connection_that_ended_is_free_again():
    async with running(make_app(max_connections=1), max_connections=1) as node:
        for _ in range(3):
            client = await node.client()
            await client.leave()


async def test_refusals_are_counted_by_code():
    async with running() as node:
        for path in ("/app/unknown", f"/app/{KEY}?protocol=9", "/nowhere"):
            await (await node.handshake(path)).refused()
        statistics = node.broker.statistics()
        assert statistics.apps[0].refusals == {"4007": 1}
        assert statistics.refusals == {"4001": 1, "4005": 1}
