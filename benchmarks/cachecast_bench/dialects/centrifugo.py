"""Centrifugo: its JSON protocol for subscribers, its HTTP API for publishers.

Several messages may come in one frame, one a line. Only the marks are checked.
"""

from __future__ import annotations

import json

from typing_extensions import override

from cachecast_bench.dialects.base import (
    Dialect,
    Handshake,
    HttpReplies,
    ReplyCounter,
    await_message,
    client_frame,
    open_websocket,
    upgrade_request,
)

CACHE_NAMESPACE = "cache"
"""Where the server keeps the last value: it knows it by the beginning of a channel's name."""


class CentrifugoDialect(Dialect):
    """Option of the endpoint: `api_key`."""

    has_constant_frames = False

    @override
    def join(self, channels: list[str], *, wait_for: bytes | None = None) -> Handshake:
        """Connect anonymously and subscribe; a kept value comes with the confirmation."""
        request = upgrade_request(self.endpoint, "/connection/websocket")
        data = yield from open_websocket(request)
        data += yield client_frame(b'{"id":1,"connect":{}}')
        _, data = yield from await_message(data, b'"connect"')
        for number, channel in enumerate(channels, start=2):
            subscribe: dict[str, object] = {"channel": _name(channel)}
            if _keeps_value(channel):
                subscribe["recover"] = True
            command = {"id": number, "subscribe": subscribe}
            data += yield client_frame(json.dumps(command).encode())
            confirmation, data = yield from await_message(data, b'"subscribe"')
            if wait_for is not None and wait_for in confirmation:
                wait_for = None
        if wait_for is not None:
            _, data = yield from await_message(data, wait_for)
        return data

    @override
    def answer(self, message: bytes) -> bytes | None:
        """Answer the server's ping, an empty object, with the same."""
        return client_frame(b"{}") if message.strip() == b"{}" else None

    @override
    def publish(self, channel: str, payloads: list[bytes]) -> bytes:
        """Return one API request for each payload."""
        requests = []
        for payload in payloads:
            body = b'{"channel":"%s","data":{"event":"e","data":"%s"}}' % (
                _name(channel).encode(),
                payload,
            )
            head = (
                f"POST /api/publish HTTP/1.1\r\nHost: {self.endpoint.host}\r\n"
                f"X-API-Key: {self.endpoint.options['api_key']}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            requests.append(head.encode() + body)
        return b"".join(requests)

    @override
    def reply_counter(self) -> ReplyCounter | None:
        """Every request is answered."""
        return HttpReplies()


def _keeps_value(channel: str) -> bool:
    return channel.startswith("cache-")


def _name(channel: str) -> str:
    """Return what a channel is called there: one that keeps its value is in its namespace."""
    return channel.replace("cache-", f"{CACHE_NAMESPACE}:", 1) if _keeps_value(channel) else channel
