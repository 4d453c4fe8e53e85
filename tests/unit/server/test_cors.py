"""Pages of other origins, which a browser lets read what the server allows."""

from __future__ import annotations

import pytest

from tests.sockets.node import APP_ID, make_app, running

PAGE = "https://app.example.org"


def sharing(answer):
    return {name: value for name, value in answer.headers.items() if "access-control" in name}


@pytest.mark.parametrize("origins", [(PAGE,), ("https://other.example.org", PAGE), ("*",)])
async def test_pages_of_an_allowed_origin_may_read_answers(origins):
    """Good ones, late ones and refusals: a page that cannot read an error shows none."""
    async with running(make_app(cors_origins=origins)) as node:
        for path, status in (("channels", 200), ("channels/cache-a/cache", 404)):
            answer = await node.ask("GET", path, headers=f"Origin: {PAGE}\r\n")
            assert answer.status == status
            allowed = answer.headers["access-control-allow-origin"]
            assert allowed == ("*" if origins == ("*",) else PAGE)
            assert "Origin" in answer.headers["vary"]
            assert "ETag" in answer.headers["access-control-expose-headers"]


async def test_other_pages_are_told_nothing():
    """And where nobody is allowed, nothing changes for anybody."""
    async with running(make_app(cors_origins=(PAGE,))) as node:
        for origin in (f"{PAGE}.evil.example", f"{PAGE}:8443", "http://app.example.org", "null"):
            answer = await node.ask("GET", "channels", headers=f"Origin: {origin}\r\n")
            assert (answer.status, sharing(answer)) == (200, {})
    async with running(make_app()) as node:
        assert not sharing(await node.ask("GET", "channels", headers=f"Origin: {PAGE}\r\n"))


async def test_a_preflight_needs_no_signature():
    """Browsers send it by themselves; it says what a page may send, and publishes nothing."""
    ask = ["Access-Control-Request-Method: POST", "Access-Control-Request-Headers: content-type"]
    async with running(make_app(cors_origins=(PAGE,))) as node:

        async def preflight(path, *headers):
            wire = await node.connect()
            lines = "\r\n".join([f"OPTIONS {path} HTTP/1.1", "Host: a", *headers, *ask, "", ""])
            await wire.say(lines.encode())
            return await wire.answer("OPTIONS")

        answer = await preflight(f"/apps/{APP_ID}/events", f"Origin: {PAGE}")
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert "Content-Type" in answer.headers["access-control-allow-headers"]
        for path, origin in (
            (f"/apps/{APP_ID}/events", "https://evil.example"),
            ("/apps/nobody/events", PAGE),
            ("/nothing", PAGE),
        ):
            answer = await preflight(path, f"Origin: {origin}")
            assert (answer.status in {400, 404, 405}, sharing(answer)) == (True, {})
