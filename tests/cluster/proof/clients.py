"""Subscribers and publishers that write down what they did: raw sockets, no code of the engine."""

from __future__ import annotations

import hmac
import json
import os
import time
from base64 import b64encode
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import md5, sha256
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any

import trio

from tests.cluster.proof.history import MISS, History, Listening, Publication
from tests.cluster.proof.verdict import Violation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["App", "Publisher", "Record", "Subscriber", "get_json", "now"]

#: Seconds that a publisher waits for its answer; afterwards nobody knows.
ANSWER_LIMIT_S = 12.0

#: Bytes of one read.
_READ_BYTES = 65_536

_BEGAN = time.monotonic()


def now() -> float:
    """Seconds since this process began, of a clock that is never set."""
    return time.monotonic() - _BEGAN


@dataclass(frozen=True)
class App:
    """Credentials of a tenant."""

    id: str
    key: str
    secret: str

    def sign(self, text: str) -> str:
        """A signature in hex."""
        return hmac.new(self.secret.encode(), text.encode(), sha256).hexdigest()

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """A signed request on a connection that stays."""
        path = f"/apps/{self.id}/{path}"
        query = f"auth_key={self.key}&auth_timestamp={int(time.time())}&auth_version=1.0"
        if body:
            query += f"&body_md5={md5(body).hexdigest()}"
        signature = self.sign(f"{method}\n{path}\n{query}")
        head = (
            f"{method} {path}?{query}&auth_signature={signature} HTTP/1.1\r\n"
            "Host: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass
class Record:
    """The history as it is written, and what is counted beside it.

    Attributes:
        history: see there.
        counts: "published", "refused", "unknown", "closed 4100", and so on.
        apps: by channel, of each channel that is used.
        violations: that were seen at once, not found in the history.
    """

    history: History = field(default_factory=History)
    violations: list[Violation] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    apps: dict[str, App] = field(default_factory=dict)
    _ids: count[int] = field(default_factory=count)

    def begin(self, node: str, channel: str, sender: str = "") -> Publication:
        """Write down that something is about to be published."""
        one = Publication(f"p{next(self._ids)}", channel, node, now(), sender=sender)
        self.history.publications.append(one)
        return one


class _Wire:
    """Bytes of one TCP connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.buffer = bytearray()

    async def until(self, mark: bytes) -> bytes:
        """Everything up to a mark and with it."""
        while (at := self.buffer.find(mark)) < 0:
            await self.more()
        return self.take(at + len(mark))

    async def exactly(self, n: int) -> bytes:
        while len(self.buffer) < n:
            await self.more()
        return self.take(n)

    def take(self, n: int) -> bytes:
        taken = bytes(self.buffer[:n])
        del self.buffer[:n]
        return taken

    async def more(self) -> None:
        data = await self.stream.receive_some(_READ_BYTES)
        if not data:
            raise trio.BrokenResourceError("ended")
        self.buffer += data


class Subscriber:
    """One WebSocket client, which comes back when its connection has ended.

    Attributes:
        name: of it.
        node: on which it is.
        port: of the node.
        is_up: whether it is connected.
    """

    def __init__(self, record: Record, app: App, name: str, node: str, port: int) -> None:
        self._record = record
        self._app = app
        self.name, self.node, self.port = name, node, port
        self.is_up = False
        self._wire: _Wire | None = None
        self._socket_id = ""
        self._write = trio.Lock()
        self._asked: dict[str, Listening] = {}
        self._current: dict[str, Listening] = {}
        self._changed = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Be connected until cancelled."""
        wait_s = 0.05
        while True:
            try:
                with trio.move_on_after(5):
                    await self._connect()
                if self._wire is not None:
                    wait_s = 0.05
                    await self._read()
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            finally:
                self._end()
            await trio.sleep(wait_s)
            wait_s = min(2 * wait_s, 1.0)

    async def wait_for(self, is_so: Callable[[], bool], limit_s: float) -> bool:
        """Wait until something is so that changes by what this client hears."""
        with trio.move_on_after(limit_s):
            while not is_so():
                await self._changed.park()
        return is_so()

    async def subscribe(self, channel: str, user: str = "") -> Listening | None:
        """Ask for a channel; None if there is no connection."""
        if not self.is_up or channel in self._asked:
            return None
        listening = Listening(self.name, self.node, channel, 0.0, user=user)
        data: dict[str, Any] = {"channel": channel}
        text = f"{self._socket_id}:{channel}"
        if user:
            data["channel_data"] = json.dumps({"user_id": user})
            text += f":{data['channel_data']}"
        if channel.startswith(("private-", "presence-")):
            data["auth"] = f"{self._app.key}:{self._app.sign(text)}"
        self._asked[channel] = listening
        listening.asked = now()
        self._record.history.listenings.append(listening)
        await self._say({"event": "pusher:subscribe", "data": data})
        return listening

    async def unsubscribe(self, listening: Listening) -> None:
        """Take a confirmed subscription back."""
        if self._current.get(listening.channel) is listening and listening.ended == inf:
            listening.ended = now()
            data = {"channel": listening.channel}
            await self._say({"event": "pusher:unsubscribe", "data": data})

    async def trigger(self, channel: str) -> None:
        """Send a client event to a channel that it is subscribed to."""
        it = self._current.get(channel)
        if it is not None and it.ended == inf and self.is_up:
            one = self._record.begin(self.node, channel, self.name)
            self._record.counts["client events"] += 1
            await self._say({"event": "client-tick", "channel": channel, "data": one.id})

    async def drop(self) -> None:
        """Break the connection off without a word."""
        if self._wire is not None:
            await trio.aclose_forcefully(self._wire.stream)

    async def _connect(self) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        try:
            wire = _Wire(stream)
            key = b64encode(os.urandom(16)).decode()
            await stream.send_all(
                f"GET /app/{self._app.key}?protocol=7 HTTP/1.1\r\nHost: localhost\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
            )
            head = await wire.until(b"\r\n\r\n")
            message = await self._next(wire) if b" 101 " in head else None
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        if message is None or message["event"] != "pusher:connection_established":
            await trio.aclose_forcefully(stream)
            return
        self._socket_id = json.loads(message["data"])["socket_id"]
        self._wire, self.is_up = wire, True
        self._changed.unpark_all()

    async def _read(self) -> None:
        assert self._wire is not None
        while (message := await self._next(self._wire)) is not None:
            self._hear(message, now())
            self._changed.unpark_all()

    async def _next(self, wire: _Wire) -> dict[str, Any] | None:
        """The next message; None at the closing."""
        while True:
            first, length = await wire.exactly(2)
            if length >= 126:
                length = int.from_bytes(await wire.exactly(2 if length == 126 else 8), "big")
            payload = await wire.exactly(length) if length else b""
            if first & 15 == 8:
                code = int.from_bytes(payload[:2], "big")
                self._record.counts[f"closed {code}"] += 1
                return None
            if first & 15 == 9:
                await self._send(0x8A, payload)
            elif first & 15 == 1:
                message: dict[str, Any] = json.loads(payload)
                return message

    def _hear(self, message: dict[str, Any], at: float) -> None:
        event, channel = message["event"], message.get("channel", "")
        listening = self._current.get(channel)
        if event in {"tick", "client-tick"} and listening is not None:
            listening.heard.append((message["data"].partition(" ")[0], at))
        elif event == "pusher_internal:subscription_succeeded":
            listening = self._asked.pop(channel)
            self._current[channel] = listening
            listening.confirmed = at
            if listening.user:
                roster = json.loads(message["data"])["presence"]["ids"]
                listening.roster = frozenset(roster)
        elif event == "pusher:cache_miss" and listening is not None:
            listening.heard.append((MISS, at))
        elif event.startswith("pusher_internal:member_") and listening is not None:
            user = json.loads(message["data"])["user_id"]
            listening.news.append((at, "+" if event.endswith("added") else "-", user))
        elif event == "pusher:subscription_error":
            # No library asks again after one: whoever cannot be answered has to be closed.
            text = f"was refused with a subscription_error: {message['data']}"
            violation = Violation("refused", channel, text, at, (self.name,))
            self._record.violations.append(violation)
            self._asked.pop(channel).ended = at
        elif event == "pusher:error":
            data = message["data"]
            text = data["message"].split(": ")[0][:40]
            self._record.counts[f"error {data.get('code')}: {text}"] += 1

    def _end(self) -> None:
        at = now()
        for listening in (*self._asked.values(), *self._current.values()):
            listening.ended = min(listening.ended, at)
        self._asked.clear()
        self._current.clear()
        self.is_up = False
        if self._wire is not None:
            self._wire.stream.socket.close()
            self._wire = None
        self._changed.unpark_all()

    async def _say(self, message: dict[str, Any]) -> None:
        await self._send(0x81, json.dumps(message).encode())

    async def _send(self, first: int, payload: bytes) -> None:
        wire, n = self._wire, len(payload)
        if wire is None:
            return
        # A mask of zeros is as good as any, for it masks nothing that a proxy could be fooled by.
        size = bytes((0x80 | n,)) if n < 126 else bytes((0xFE,)) + n.to_bytes(2, "big")
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with self._write:
                await wire.stream.send_all(bytes((first,)) + size + bytes(4) + payload)


class Publisher:
    """Publishes through one node, on a few connections that it keeps."""

    def __init__(self, record: Record, node: str, port: int) -> None:
        self._record = record
        self._node, self._port = node, port
        self._idle: list[_Wire] = []

    async def publish(self, channels: Sequence[str], size: int = 0) -> list[Publication]:
        """Publish one event to channels of one app, and write down what came of it."""
        app = self._record.apps[channels[0]]
        ones = [self._record.begin(self._node, channel) for channel in channels]
        if len(ones) == 1:
            path, body = "events", _event(ones[0], size)
        else:
            path, body = "batch_events", {"batch": [_event(one, size) for one in ones]}
        try:
            status, said = await self._ask(app.request("POST", path, json.dumps(body).encode()))
        except _NeverSentError:
            status, said = 0, b""
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            status, said = -1, b""
        self._settle(ones, status, said)
        return ones

    def _settle(self, ones: Sequence[Publication], status: int, said: bytes) -> None:
        at = now()
        if status == 200:
            what = "published"
        elif status == -1 or (status >= 500 and b"may have been" in said):
            what = "unknown"
        else:
            what = "refused"
        self._record.counts[what] += len(ones)
        if what != "published":
            self._record.counts[f"answered {status}"] += 1
        for one in ones:
            if what == "published":
                one.answered = at
            one.is_refused = what == "refused"

    async def _ask(self, request: bytes) -> tuple[int, bytes]:
        """The answer of a request.

        Raises:
            _NeverSentError: nothing was sent.
            OSError, BrokenResourceError: nobody knows what became of it.
        """
        wire = self._idle.pop() if self._idle else await self._connect()
        is_done = False
        try:
            with trio.move_on_after(ANSWER_LIMIT_S):
                await wire.stream.send_all(request)
                answer = await _answer(wire)
                is_done = True
                self._idle.append(wire)
                return answer
        finally:
            if not is_done:
                wire.stream.socket.close()
        raise trio.BrokenResourceError("no answer")

    async def _connect(self) -> _Wire:
        try:
            with trio.fail_after(2):
                return _Wire(await trio.open_tcp_stream("127.0.0.1", self._port))
        except (OSError, trio.TooSlowError):
            raise _NeverSentError from None

    def forget(self) -> None:
        """Close all idle connections: their node has gone."""
        while self._idle:
            self._idle.pop().stream.socket.close()


class _NeverSentError(Exception):
    """There was no connection."""


def _event(one: Publication, size: int) -> Mapping[str, str]:
    return {"name": "tick", "channel": one.channel, "data": f"{one.id} {'x' * size}"}


async def _answer(wire: _Wire) -> tuple[int, bytes]:
    head = (await wire.until(b"\r\n\r\n")).decode().lower()
    status = int(head.split(" ", 2)[1])
    length = 0
    for line in head.split("\r\n"):
        if line.startswith("content-length:"):
            length = int(line.partition(":")[2])
    body = await wire.exactly(length) if length else b""
    return status, body


async def get_json(port: int, request: bytes, limit_s: float = 5.0) -> tuple[int, Any]:
    """One request on a connection of its own; status 0: there was no answer."""
    with suppress(OSError, trio.BrokenResourceError), trio.move_on_after(limit_s):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(request)
            status, body = await _answer(_Wire(stream))
            try:
                return status, json.loads(body)
            except ValueError:
                return status, None
    return 0, None
