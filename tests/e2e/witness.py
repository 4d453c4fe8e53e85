"""A plain WebSocket client of another make: the independent witness of what is on the wire.

It knows the protocol's shapes only as JSON or msgpack, and RFC 6455 only by way of `websockets`.
"""

from __future__ import annotations

import json
import ssl
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import msgpack
from pusher import Pusher
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.e2e.program import PATIENCE_S
from tests.e2e.world import MAIN, Credentials

if TYPE_CHECKING:
    from tests.e2e.server import ServerProcess

MSGPACK = "cachecast.v1.msgpack"


class Witness:
    """One connection; ``with`` closes it.

    Attributes:
        seen: every message so far, in order, as it stood in the frame.
        socket_id: from ``connection_established``; empty if that did not come.
    """

    def __init__(
        self,
        server: ServerProcess,
        app: Credentials = MAIN,
        *,
        path: str | None = None,
        subprotocol: str | None = None,
        tls: ssl.SSLContext | None = None,
        origin: str | None = None,
        greets: bool = True,
    ) -> None:
        self.seen: list[dict[str, Any]] = []
        self.socket_id = ""
        self._app = app
        self._is_packed = subprotocol == MSGPACK
        self._greets = greets
        self._connect = partial(
            connect,
            server.ws_url + (path or f"/app/{app.key}?protocol=7"),
            subprotocols=[subprotocol] if subprotocol else None,  # type: ignore[list-item]
            ssl=tls,
            origin=origin,  # type: ignore[arg-type]
            proxy=None,
            open_timeout=PATIENCE_S,
        )

    def __enter__(self) -> Self:
        self._connection = self._connect().__enter__()
        if self._greets:
            try:
                hello = self.wait("pusher:connection_established")
            except BaseException:
                self._connection.close()
                raise
            data = hello["data"] if self._is_packed else json.loads(hello["data"])
            self.socket_id = data["socket_id"]
        return self

    def __exit__(self, *raised: object) -> None:
        self._connection.__exit__(*raised)  # type: ignore[arg-type]

    @property
    def subprotocol(self) -> str | None:
        """What the server chose."""
        return self._connection.subprotocol

    @property
    def extensions(self) -> list[str]:
        """Names of the extensions that were agreed on; the library offers compression always."""
        return [extension.name for extension in self._connection.protocol.extensions]

    def peer_certificate(self) -> dict[str, Any]:
        """The server's certificate, as this connection saw it."""
        sock = self._connection.socket
        assert isinstance(sock, ssl.SSLSocket)
        return dict(sock.getpeercert() or {})

    def send(self, event: str, data: object = None, **more: object) -> None:
        """Send one message."""
        message = {"event": event, **({} if data is None else {"data": data}), **more}
        self.send_raw(msgpack.packb(message) if self._is_packed else json.dumps(message))

    def send_raw(self, payload: str | bytes) -> None:
        """Send text or binary as it is."""
        self._connection.send(payload)

    def ping(self) -> None:
        """Send a WebSocket ping and wait for the pong."""
        if not self._connection.ping().wait(PATIENCE_S):
            raise AssertionError("no pong")

    def subscribe(self, channel: str, member: dict[str, object] | None = None) -> dict[str, Any]:
        """Subscribe, signed by the library for Python where a signature is due."""
        data: dict[str, object] = {"channel": channel}
        if channel.startswith(("private-", "presence-")):
            signer = Pusher(
                *self._app,
                encryption_master_key_base64="A" * 43 + "=",  # any key: not signed
            )
            signed = signer.authenticate(channel, self.socket_id, member)
            data |= {k: signed[k] for k in ("auth", "channel_data") if k in signed}
        self.send("pusher:subscribe", data)
        return self.wait("pusher_internal:subscription_succeeded", channel)

    def receive(self, within_s: float = PATIENCE_S) -> dict[str, Any]:
        """Return the next message."""
        frame = self._connection.recv(timeout=max(0.0, within_s))
        if self._is_packed:
            assert isinstance(frame, bytes), "a msgpack message came in a text frame"
            message = msgpack.unpackb(frame)
        else:
            assert isinstance(frame, str), "a JSON message came in a binary frame"
            message = json.loads(frame)
        self.seen.append(message)
        return message

    def wait(self, event: str, channel: str | None = None) -> dict[str, Any]:
        """Return the next message with that event, and channel if given; others are kept."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            message = self.receive(deadline - time.monotonic())
            if message["event"] == event and channel in {None, message.get("channel")}:
                return message

    def wait_closed(self) -> int | None:
        """Read to the end and return the close code that the server sent."""
        deadline = time.monotonic() + PATIENCE_S
        try:
            while True:
                self.receive(deadline - time.monotonic())
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else None

    def fence(self) -> None:
        """Wait until everything that the server had for us so far has come."""
        self.send("pusher:ping", {})
        self.wait("pusher:pong")

    def events_on(self, channel: str) -> list[str]:
        """Names of what was seen on a channel so far, in order."""
        return [m["event"] for m in self.seen if m.get("channel") == channel]
