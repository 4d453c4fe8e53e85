"""What a proxy has lost on the way is named; over real sockets, as its operator sees it."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from cachecast.server.handshake import find_key
from tests.sockets.node import KEY, make_app, running, upgrade_request

NONCE = b"dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE, CONNECTION = b"Upgrade: websocket\r\n", b"Connection: keep-alive, Upgrade\r\n"


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/app/k", "k"),
        ("/app/k/", "k"),
        ("/any/prefix/app/k", "k"),
        ("/app/app/app", "app"),
        ("//app/k", "k"),
        ("/app/a+b=c", "a+b=c"),
        ("/app/a%2Bb%3dc", "a+b=c"),
        ("/app/a%20b", "a b"),
        ("/app/%E2%82%AC", "€"),
        ("/app/a%2Fb", "a/b"),
        ("/app/%2525", "%25"),
        ("/app/a%b", "a%b"),
        ("/app", None),
        ("/app/", None),
        ("/", None),
        ("", None),
        ("/app/k/x", None),
        ("/apps/k", None),
    ],
)
def test_key_of_a_path_is_decoded_once(path, key):
    assert find_key(path) == key


def replaced(request, changes):
    for old, new in changes:
        assert old in request
        request = request.replace(old, new)
    return request


NO_UPGRADE, NO_CONNECTION = (UPGRADE, b""), (CONNECTION, b"")


@pytest.mark.parametrize("path", [f"/app/{KEY}", f"/a/prefix/app/{KEY}?protocol=7", "/app/nobody"])
@pytest.mark.parametrize(
    ("changes", "words", "silent"),
    [
        ([NO_UPGRADE, NO_CONNECTION],
         ["Upgrade: websocket (no such", "Connection: Upgrade (no such"], []),
        ([NO_UPGRADE], ["lacks Upgrade: websocket (no such header came)."],
         ["Connection: Upgrade ("]),
        ([NO_CONNECTION], ["lacks Connection: Upgrade (no such"], ["Upgrade: websocket ("]),
        ([(CONNECTION, b"Connection: close\r\n")], ["Connection: Upgrade (it says 'close')"], []),
        ([(CONNECTION, b"Connection: keep-alive\r\n")], ["(it says 'keep-alive')"], []),
        ([(UPGRADE, b"Upgrade: h2c\r\n")], ["Upgrade: websocket (it says 'h2c')"],
         ["Connection: Upgrade ("]),
        ([(b"HTTP/1.1", b"HTTP/1.0")], ["lacks HTTP/1.1 (it came as HTTP/1.0)"],
         ["Connection: Upgrade (", "Upgrade: websocket ("]),
        ([(b"HTTP/1.1", b"HTTP/1.0"), (CONNECTION, b"Connection: close\r\n"), NO_UPGRADE,
          (b"Host: localhost\r\n", b"")],
         ["HTTP/1.0", "Upgrade: websocket (no such", "Connection: Upgrade (it says 'close')"], []),
        ([(b"GET ", b"HEAD "), NO_UPGRADE], None, []),
    ],
)  # fmt: skip
async def test_what_is_missing_for_a_websocket_is_named(path, changes, words, silent):
    """404 would send people to look for a fault in the path, which is right."""
    async with running() as node:
        wire = await node.connect()
        request = replaced(upgrade_request(path, NONCE), changes)
        await wire.say(request)
        answer = await wire.answer("HEAD" if request.startswith(b"HEAD") else "GET")
        assert answer.status == 426
        assert (answer.headers["upgrade"], answer.headers["connection"].split(",")[0]) == (
            "websocket", "Upgrade",
        )  # fmt: skip
        if words is None:
            assert answer.body == b""
            assert int(answer.headers["content-length"]) > 100
            return
        assert "most likely a proxy did not pass it on" in answer.text
        assert answer.text.endswith("both headers, Upgrade: websocket and Connection: Upgrade.\n")
        assert all(word in answer.text for word in words), answer.text
        assert not any(word in answer.text for word in silent), answer.text


async def test_browser_that_opens_the_address_is_told_the_same():
    async with running() as node:
        wire = await node.connect()
        await wire.say(f"GET /app/{KEY} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert (await wire.answer()).status == 426
        assert node.broker.statistics().refusals == {"http 426": 1}


async def test_lost_upgrade_is_named_also_where_the_path_is_wrong():
    """By the key that only a WebSocket client sends."""
    async with running() as node:
        wire = await node.connect()
        await wire.say(replaced(upgrade_request("/wrong", NONCE), [NO_UPGRADE]))
        assert (await wire.answer()).status == 426


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE"])
async def test_handshake_by_another_method_is_405(method):
    async with running() as node:
        for changes in ([], [NO_UPGRADE]):
            wire = await node.connect()
            request = replaced(upgrade_request(f"/app/{KEY}", NONCE), changes)
            await wire.say(request.replace(b"GET ", method + b" "))
            answer = await wire.answer(method.decode())
            assert (answer.status, answer.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("key", ["a+b=c", "a b", "clé€", "100%", 'a"<b>|^`{}'])
async def test_key_works_encoded_and_as_it_is(key):
    """pusher-js leaves the encoding to the browser, which leaves most of it out."""
    as_browsers_do = quote(key, safe="!$&'()*+,;=@%|^`{}")
    async with running(make_app(key=key)) as node:
        for path in (quote(key, safe=""), as_browsers_do):
            await node.client(f"/app/{path}?protocol=7")
