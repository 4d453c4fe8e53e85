"""The Pusher Channels protocol as a client and as a signing publisher speak it.

What the engine is driven with.

Wire facts: shared protocol notes 1.4 (connection_established), 2.3-2.5 (subscribe, auth, success),
6.2 (signatures), 6.3-6.4 (events, batch_events). `ResponderDialect` sends the very same signed
requests to a server that only parses
HTTP: the yardstick for the price of a publish.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Generator

import msgpack
from typing_extensions import override

from cachecast_bench.dialects.base import (
    Dialect,
    Endpoint,
    Handshake,
    HandshakeError,
    HttpReplies,
    ReplyCounter,
    await_message,
    client_frame,
    open_websocket,
    upgrade_request,
)

EVENT = "e"
_ESTABLISHED = b"connection_established"
_SUCCEEDED = b"subscription_succeeded"
_RESIGN_AFTER_S = 60.0
"""The server accepts a timestamp for 600 s (6.2), so it need not be formatted for each request."""


class PusherDialect(Dialect):
    """Subscribes like pusher-js, publishes like the server libraries.

    Options of the endpoint: `app_id`, `key`, `secret`, and for publishes `encoding` ("json" or
    "msgpack") and `says_close` (each asks for its connection to be closed after the answer).
    """

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        options = endpoint.options
        self._key: str = options["key"]
        self._secret: str = options["secret"]
        self._encoding: str = options.get("encoding", "json")
        path = f"/app/{self._key}?protocol=7&client=benchmark&version=1.0.0&flash=false"
        self._upgrade = upgrade_request(endpoint, path)
        self._subscribes: dict[str, bytes] = {}
        self._events_path = f"/apps/{options['app_id']}/events"
        self._batch_path = f"/apps/{options['app_id']}/batch_events"
        self._signer = hmac.new(self._secret.encode(), digestmod="sha256")
        self._stamped_at = float("-inf")
        self._timestamp = ""
        self._head = (
            f"Host: {endpoint.host}:{endpoint.publish_port or endpoint.port}\r\n"
            f"Content-Type: application/{self._encoding}\r\n"
            f"{'Connection: close' + chr(13) + chr(10) if options.get('says_close') else ''}"
            "Content-Length: "
        ).encode()

    @override
    def join(self, channels: list[str], *, wait_for: bytes | None = None) -> Handshake:
        """Connect, and subscribe to each channel, with a signature where it wants one."""
        established, data = yield from self.arrive()
        for channel in channels:
            request = (
                self.authorized(channel, established)
                if _needs_auth(channel)
                else self.subscribe(channel)
            )
            data += yield request
            _, data = yield from await_message(data, _SUCCEEDED)
        if wait_for is not None:
            _, data = yield from await_message(data, wait_for)
        return data

    def arrive(self) -> Generator[bytes, bytes, tuple[bytes, bytes]]:
        """Connect and no more.

        Returns:
            The `connection_established` message, and the bytes after its frame.
        """
        data = yield from open_websocket(self._upgrade)
        return (yield from await_message(data, _ESTABLISHED))

    def authorized(self, channel: str, established: bytes, user_id: str | None = None) -> bytes:
        """Return the subscribe frame of a channel that wants a signature.

        Args:
            channel: Its name.
            established: What `arrive` returned first.
            user_id: Who joins a presence channel.

        Raises:
            HandshakeError: There is no socket id in it.
        """
        try:
            signed = [json.loads(json.loads(established)["data"])["socket_id"], channel]
        except (ValueError, KeyError, TypeError) as error:
            raise HandshakeError(established[:200].decode("utf-8", "replace")) from error
        data = {"channel": channel}
        if user_id is not None:
            data["channel_data"] = json.dumps({"user_id": user_id})
            signed.append(data["channel_data"])
        signer = self._signer.copy()
        signer.update(":".join(signed).encode())
        data["auth"] = f"{self._key}:{signer.hexdigest()}"
        return client_frame(json.dumps({"event": "pusher:subscribe", "data": data}).encode())

    @override
    def subscribe(self, channel: str) -> bytes:
        """Return the subscribe frame of a public channel; made once for each channel."""
        frame = self._subscribes.get(channel)
        if frame is None:
            message = b'{"event":"pusher:subscribe","data":{"auth":"","channel":"%s"}}'
            frame = self._subscribes[channel] = client_frame(message % channel.encode())
        return frame

    @override
    def unsubscribe(self, channel: str) -> bytes:
        """Return the unsubscribe frame; the protocol has no answer to it (2.8)."""
        message = b'{"event":"pusher:unsubscribe","data":{"channel":"%s"}}'
        return client_frame(message % channel.encode())

    @override
    def confirms_subscription(self, message: bytes) -> bool:
        """Recognise `subscription_succeeded`."""
        return _SUCCEEDED in message

    @override
    def publish(self, channel: str, payloads: list[bytes]) -> bytes:
        """Return one signed POST: `events` for one payload, `batch_events` for several."""
        return self.publish_events([(channel, payload) for payload in payloads])

    def publish_events(self, events: list[tuple[str, bytes]]) -> bytes:
        """Return one signed POST that publishes each payload to its channel."""
        path = self._events_path if len(events) == 1 else self._batch_path
        return self._signed(path, self._body(events))

    def _body(self, events: list[tuple[str, bytes]]) -> bytes:
        if self._encoding == "msgpack":
            items: list[dict[str, object]] = [
                {"name": EVENT, "channel": channel, "data": payload.decode()}
                for channel, payload in events
            ]
            packed: bytes = msgpack.packb(items[0] if len(items) == 1 else {"batch": items})
            return packed
        event = EVENT.encode()
        texts = [
            b'{"name":"%s","channel":"%s","data":"%s"}' % (event, channel.encode(), payload)
            for channel, payload in events
        ]
        return texts[0] if len(texts) == 1 else b'{"batch":[%s]}' % b",".join(texts)

    def _signed(self, path: str, body: bytes) -> bytes:
        now = time.monotonic()
        if now - self._stamped_at > _RESIGN_AFTER_S:
            self._stamped_at, self._timestamp = now, str(int(time.time()))
        query = (
            f"auth_key={self._key}&auth_timestamp={self._timestamp}&auth_version=1.0"
            f"&body_md5={hashlib.md5(body).hexdigest()}"
        )
        signer = self._signer.copy()
        signer.update(f"POST\n{path}\n{query}".encode())
        start = f"POST {path}?{query}&auth_signature={signer.hexdigest()} HTTP/1.1\r\n".encode()
        return b"%s%s%d\r\n\r\n%s" % (start, self._head, len(body), body)

    @override
    def reply_counter(self) -> ReplyCounter | None:
        """Every POST is answered."""
        return HttpReplies()


class ResponderDialect(PusherDialect):
    """The same signed requests, sent to a server that answers them unread. Nobody subscribes."""

    @override
    def join(self, channels: list[str], *, wait_for: bytes | None = None) -> Handshake:
        """Refuse: a responder has no subscribers.

        Raises:
            HandshakeError: Always.
        """
        del channels, wait_for
        yield from ()
        message = "a bare HTTP responder has no subscribers"
        raise HandshakeError(message)


def _needs_auth(channel: str) -> bool:
    return channel.startswith(("private-", "presence-"))
