"""nginx with nchan: one location to subscribe at, one to publish to, the channel in the query."""

from __future__ import annotations

from typing_extensions import override

from cachecast_bench.dialects.base import (
    Dialect,
    Handshake,
    HttpReplies,
    ReplyCounter,
    open_websocket,
    upgrade_request,
)
from cachecast_bench.dialects.websocket import pusher_message


class NchanDialect(Dialect):
    """A WebSocket is subscribed by its URL; a publish is an unsigned POST on a kept connection."""

    @override
    def join(self, channels: list[str], *, wait_for: bytes | None = None) -> Handshake:
        """Open the WebSocket."""
        del wait_for
        channel = channels[0] if channels else "nobody"
        return open_websocket(upgrade_request(self.endpoint, f"/sub?id={channel}"))

    @override
    def publish(self, channel: str, payloads: list[bytes]) -> bytes:
        """Return one POST for each payload; only single ones can be counted by their answers."""
        host = f"{self.endpoint.host}:{self.endpoint.publish_port or self.endpoint.port}"
        head = f"POST /pub?id={channel} HTTP/1.1\r\nHost: {host}\r\nContent-Length: ".encode()
        bodies = [pusher_message(channel, payload) for payload in payloads]
        return b"".join(b"%s%d\r\n\r\n%s" % (head, len(body), body) for body in bodies)

    @override
    def reply_counter(self) -> ReplyCounter | None:
        """Every POST is answered."""
        return HttpReplies()
