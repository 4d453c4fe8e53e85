"""A client of the HTTP transports, in memory: what it says and hears is real HTTP.

It is what pusher-js's HTTPSocket is: one request that receives, and others that send.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import trio
from trio.testing import wait_all_tasks_blocked

from cachecast.protocol import auth
from cachecast.testing.socket import MemorySocket

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from cachecast.apps import App
    from cachecast.testing import MemoryNetwork

PUSHER_MAX_CHARACTERS = 256 * 1024


class Exchange:
    """A connection of one client, on which requests are answered."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.received = b""
        self.is_closed = False
        self.fd = next(network._fds)
        self.socket = MemorySocket(self.fd, self._on_bytes, self._on_end)
        network._accept(self.socket)

    def _on_bytes(self, data: bytes) -> None:
        self.received += data

    def _on_end(self) -> None:
        self.is_closed = True

    def say(self, data: bytes) -> None:
        self.socket.inbound += data
        left = -1
        while left != len(self.socket.inbound):  # a new socket is read once before it is watched
            left = len(self.socket.inbound)
            self.network.poller.touch(self.fd)
            self.network.poller.serve_ready()

    def request(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Exchange:
        self.received = b""
        lines = {"Host": "memory", "Content-Length": str(len(body))} | dict(headers or {})
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(
            f"{k}: {v}\r\n" for k, v in lines.items()
        )
        self.say(head.encode() + b"\r\n" + body)
        return self

    def end(self) -> None:
        """The client closes it."""
        self.socket.has_ended = True
        self.network.poller.touch(self.fd)
        self.network.poller.serve_ready()

    def read(self, n_bytes: float = float("inf")) -> None:
        """The client reads on."""
        self.socket.room = n_bytes
        self.network.poller.touch(self.fd)
        self.network.poller.serve_ready()

    @property
    def status(self) -> int:
        return int(self.received.split(b" ", 2)[1]) if self.received else 0

    @property
    def headers(self) -> dict[str, str]:
        head = self.received.partition(b"\r\n\r\n")[0].decode("latin-1")
        lines = (line.partition(": ") for line in head.split("\r\n")[1:])
        return {name.lower(): value for name, _, value in lines}

    @property
    def body(self) -> bytes:
        return self.received.partition(b"\r\n\r\n")[2]

    @property
    def lines(self) -> list[str]:
        """Whole lines of the body, without the prelude."""
        *lines, _ = self.body.split(b"\n")
        return [line.decode("ascii") for line in lines if not line.startswith(b"hh")]


class HttpClient:
    """One session."""

    def __init__(
        self, network: MemoryNetwork, name: str = "123/abcdefgh", *, app: App | None = None,
        base: str | None = None, headers: Mapping[str, str] | None = None, protocol: str = "7",
        kind: str = "xhr_streaming",
    ) -> None:  # fmt: skip
        self.network = network
        self.app = app or network.broker.config.apps[0]
        self.base = base or f"/pusher/app/{self.app.key_pairs[-1].key}/{name}"
        self.headers = headers or {}
        self.query = f"?protocol={protocol}&client=js&version=8.6.0"
        self.kind = kind
        self.socket_id = ""
        self.is_polling = kind == "xhr"
        self.heard: list[str] = []
        self._n_read = 0
        self.receiver: Exchange | None = None
        self.sender: Exchange | None = None

    def receive(self) -> Exchange:
        """Begin to receive."""
        if self.receiver is None or self.receiver.is_closed or not self.is_polling:
            self.receiver = Exchange(self.network)
        self._n_read = 0
        target = f"{self.base}/{self.kind}{self.query}"
        return self.receiver.request("POST", target, headers=self.headers)

    def send(self, *messages: object) -> Exchange:
        """Send messages, in one request."""
        texts = [m if isinstance(m, str) else json.dumps(m) for m in messages]
        return self.send_raw(json.dumps(texts).encode())

    def send_raw(self, body: bytes) -> Exchange:
        if self.sender is None or self.sender.is_closed:
            self.sender = Exchange(self.network)
        return self.sender.request("POST", f"{self.base}/xhr_send", body, self.headers)

    async def hear(self) -> list[str]:
        """Lines that have come since it was asked last; a poll is made again."""
        found: list[str] = []
        while True:
            await wait_all_tasks_blocked()
            assert self.receiver is not None
            lines = self.receiver.lines[self._n_read :]
            if not lines:
                break
            found += lines
            self._n_read += len(lines)
            if self.is_polling and not lines[-1].startswith("c"):
                self.receive()
        self.heard += found
        return found

    async def hear_messages(self) -> list[dict[str, Any]]:
        """Messages that have come."""
        lines = [line for line in await self.hear() if line.startswith("a")]
        return [json.loads(message) for line in lines for message in json.loads(line[1:])]

    async def connect(self) -> HttpClient:
        self.receive()
        lines = await self.hear()
        assert lines[0] == "o", lines
        message = json.loads(json.loads(lines[1][1:])[0])
        assert message["event"] == "pusher:connection_established", message
        self.socket_id = json.loads(message["data"])["socket_id"]
        return self

    async def subscribe(self, channel: str, **member: Any) -> list[dict[str, Any]]:
        data: dict[str, Any] = {"channel": channel}
        if member:
            data["channel_data"] = json.dumps(member)
        pair = self.app.key_pairs[-1]
        text = auth.subscription_text(self.socket_id, channel, data.get("channel_data"))
        data["auth"] = f"{pair.key}:{auth.sign(pair.secret.encode(), text.encode())}"
        self.send({"event": "pusher:subscribe", "data": data})
        return await self.hear_messages()


async def pass_time(seconds: float) -> None:
    await trio.sleep(seconds)
    await wait_all_tasks_blocked()


def as_socket(sock: MemorySocket) -> socket.socket:
    return cast("socket.socket", sock)
