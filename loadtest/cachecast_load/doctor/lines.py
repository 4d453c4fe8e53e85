"""Connections at a doctor's pace, which remember all that was said to them.

The load test's own connections count; these remember. Whatever the other side answers is kept
(status, headers, beginning of the body, bytes that are no HTTP, how and when it closed): what a
wrong answer looks like is half of the diagnosis. All of them live on one reactor, so that a quiet
connection is watched while others are busy.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httptools

from cachecast_load.net.frames import CLOSE, PING, PONG, TEXT, WireError, encode_frame, read_close
from cachecast_load.net.reactor import Reactor, now_us
from cachecast_load.net.strict import StrictWire
from cachecast_load.net.transport import CLOSED, Address, Connection
from cachecast_load.pusher import protocol as pusher

MAX_KEPT = 256 * 1024
NO_ANSWER = "no answer within"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one request.

    Attributes:
        status: of HTTP; 0 where there was no whole answer, and `fault` says why.
        version: `1.1` or `1.0`.
        headers: by lower-case name; of several, the last.
        body: as far as it was kept.
        fault: a short phrase.
        first: the first bytes received, whatever they are.
        took_s: from sending to the end of the answer.
        unix_s: wall time of this machine half-way between the two.
        is_last: whether the connection ends with this answer.
    """

    status: int = 0
    version: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    fault: str = ""
    first: bytes = b""
    took_s: float = 0.0
    unix_s: float = 0.0
    is_last: bool = False

    @property
    def text(self) -> str:
        """The body as text, in one line, at most 300 characters."""
        return " ".join(self.body.decode("utf-8", "replace").split())[:300]


class _Reading:
    """An HTTP answer being read; what `httptools` calls."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.body = b""
        self.is_complete = False
        self.has_head = False
        self.keeps_alive = False
        self.parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.has_head = self.parser.get_status_code() >= 200
        self.keeps_alive = self.parser.should_keep_alive()
        if not self.has_head:
            self.headers.clear()

    def on_body(self, data: bytes) -> None:
        self.body = (self.body + data)[:MAX_KEPT]

    def on_message_complete(self) -> None:
        self.is_complete = self.has_head


class HttpLine:
    """One connection for HTTP requests, one after the other; opened again where it ended."""

    def __init__(self, reactor: Reactor, address: Address) -> None:
        self.n_opened = 0
        self._reactor = reactor
        self._address = address
        self._connection: Connection | None = None
        self._request = b""
        self._is_open = False
        self._reading = _Reading()
        self._first = b""
        self._fault = ""

    def ask(self, request: bytes, within_s: float) -> Answer:
        """Send a request and wait for its answer, `within_s` seconds at most."""
        was_open = self._is_open
        answer = self._ask(request, within_s)
        if was_open and answer.fault and not answer.first:
            # It was closed in the meantime, as keeping connections allows; nobody saw the request.
            answer = self._ask(request, within_s)
        return answer

    def _ask(self, request: bytes, within_s: float) -> Answer:
        self._reading, self._first, self._fault = _Reading(), b"", ""
        began_unix, began = time.time(), now_us()
        self._begin(request)
        done = self._reactor.run_until(self._is_done, within_s)
        took_s = (now_us() - began) / 1e6
        reading = self._reading
        if not done:
            self._fault = f"{NO_ANSWER} {within_s:.0f} s"
        is_last = bool(self._fault) or not reading.keeps_alive
        if is_last:
            self.close()
        # An answer without a length ends with its connection.
        is_whole = reading.is_complete or (reading.has_head and self._fault == CLOSED)
        return Answer(
            status=reading.parser.get_status_code() if is_whole else 0,
            version=reading.parser.get_http_version() if reading.has_head else "",
            headers=reading.headers,
            body=reading.body,
            fault="" if is_whole else self._fault,
            first=self._first,
            took_s=took_s,
            unix_s=began_unix + took_s / 2,
            is_last=is_last,
        )

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._is_open = None, False

    def opened(self) -> None:
        """Send what waited for the connection."""
        self._is_open = True
        if self._connection is not None:
            self._connection.send(self._request)

    def arrived(self, data: bytes, now_us: int) -> None:
        """Read a part of the answer."""
        del now_us
        self._first = (self._first + data)[:512]
        try:
            self._reading.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._reading.is_complete = True
        except httptools.HttpParserError:
            self._fault = "the answer is not HTTP"

    def lost(self, reason: str) -> None:
        """Note that the connection ended."""
        self._fault = self._fault or reason
        self._connection, self._is_open = None, False

    def _begin(self, request: bytes) -> None:
        self._request = request
        if self._is_open and self._connection is not None:
            self._connection.send(request)
            return
        self.n_opened += 1
        try:
            self._connection = Connection(self._reactor, self._address, self)
        except OSError as error:
            self._fault = f"this machine: {(error.strerror or str(error)).lower()}"

    def _is_done(self) -> bool:
        return self._reading.is_complete or bool(self._fault)


@dataclass(frozen=True, slots=True)
class Said:
    """A message of the server: when it came, and what it says.

    `raw` is the message as it came; `data` is decoded where it was JSON text.
    """

    at_us: int
    event: str
    channel: str
    data: Any
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class End:
    """How a connection ended: close code (1006: without a word), its reason, and after how long."""

    code: int
    reason: str
    after_s: float


class Peer:
    """One client of the protocol; it answers pings, as every library does, and is silent else.

    Attributes:
        heard: everything the server said, in order.
        refusal: the answer to the upgrade where it is not 101.
        fault: how the server broke HTTP or WebSocket, in a few words.
        end: how the connection ended; None while it lives.
        socket_id: from `connection_established`.
        activity_timeout_s: likewise; None if it was not told.
        welcomed_s: from the first SYN to `connection_established`.
        pings: how often the server pinged, by either way.
    """

    def __init__(self, reactor: Reactor, address: Address, request: tuple[str, str, Any]) -> None:
        self.heard: list[Said] = []
        self.refusal: Answer | None = None
        self.fault = ""
        self.end: End | None = None
        self.socket_id = ""
        self.activity_timeout_s: float | None = None
        self.welcomed_s = 0.0
        self.pings = 0
        self.pongs = 0
        self.is_upgraded = False
        self._reactor = reactor
        self._wire = StrictWire()
        self._request = request
        self._raw = b""
        self._reading = _Reading()
        self._began_us = now_us()
        self._connection: Connection | None = None
        try:
            self._connection = Connection(reactor, address, self)
        except OSError as error:
            self._ended(1006, f"this machine: {(error.strerror or str(error)).lower()}")

    @property
    def is_welcome(self) -> bool:
        """Whether the connection is established, and still there."""
        return bool(self.socket_id) and self.end is None

    @property
    def is_over(self) -> bool:
        """Whether the connection has ended."""
        return self.end is not None

    def opened(self) -> None:
        """Ask for the upgrade."""
        host, path, headers = self._request
        self._send(self._wire.request(host, path, list(headers)))

    def arrived(self, data: bytes, now_us: int) -> None:
        """Read what came."""
        if not self.is_upgraded:
            self._raw = (self._raw + data)[:MAX_KEPT]
            if not self._read_upgrade(data):
                return
            data = self._raw
        try:
            messages = self._wire.feed(data)
        except WireError as error:
            self.fault = str(error).removeprefix("strict: ")
            self.close()
            self._ended(1006, self.fault)
            return
        for opcode, payload in messages:
            self._take(opcode, payload, now_us)

    def lost(self, reason: str) -> None:
        """Note that the connection ended without a close frame."""
        if self._reading.has_head and not self.is_upgraded:
            self._refuse()
        self._ended(1006, reason)

    def say(self, message: bytes) -> None:
        """Send one message."""
        self._send(self._wire.text(message))

    def ping(self) -> None:
        """Send a WebSocket ping."""
        self._send(encode_frame(PING, b"doctor"))

    def wait(self, done: Callable[[], bool], within_s: float) -> bool:
        """Wait until `done()`, or the connection or the time ends; returns `done()`."""
        self._reactor.run_until(lambda: self.end is not None or done(), within_s)
        return done()

    def find(self, wanted: Callable[[Said], bool], since: int = 0) -> Said | None:
        """Return the first thing heard that is wanted, from position `since` of `heard` on."""
        return next((said for said in self.heard[since:] if wanted(said)), None)

    def expect(
        self, wanted: Callable[[Said], bool], within_s: float, since: int = 0
    ) -> Said | None:
        """Wait for something to be heard and return it; None if it did not come."""
        self.wait(lambda: self.find(wanted, since) is not None, within_s)
        return self.find(wanted, since)

    def close(self) -> None:
        """Say goodbye and close."""
        if self._connection is not None:
            if self.is_upgraded and self.end is None and not self.fault:
                self._send(self._wire.close(1000))
            self._connection.close()
            self._connection = None

    def _send(self, data: bytes) -> None:
        if self._connection is not None:
            self._connection.send(data)

    def _read_upgrade(self, data: bytes) -> bool:
        """Read a part of the answer to the upgrade; whether it is 101 and whole."""
        reading = self._reading
        try:
            reading.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.is_upgraded = reading.parser.get_status_code() == 101
        except httptools.HttpParserError:
            self.fault = "the answer is not HTTP"
        if not self.is_upgraded and (reading.is_complete or self.fault):
            self._refuse()
            self.close()
            self._ended(1006, self.fault)
        return self.is_upgraded

    def _refuse(self) -> None:
        reading = self._reading
        self.refusal = Answer(
            status=reading.parser.get_status_code() if reading.has_head else 0,
            version=reading.parser.get_http_version() if reading.has_head else "",
            headers=reading.headers,
            body=reading.body,
            fault=self.fault,
            first=self._raw[:512],
        )

    def _take(self, opcode: int, payload: bytes, at_us: int) -> None:
        if opcode == TEXT:
            self._read_message(payload, at_us)
        elif opcode == PING:
            self.pings += 1
            self._send(self._wire.pong(payload))
        elif opcode == PONG:
            self.pongs += 1
        elif opcode == CLOSE:
            code, reason = read_close(payload)
            if self._connection is not None:
                self._connection.close()
            self._ended(code, reason)

    def _read_message(self, payload: bytes, at_us: int) -> None:
        try:
            message = pusher.read_message(payload)
        except ValueError:
            self.fault = (
                self.fault or f"a frame that is no message of the protocol: {payload[:60]!r}"
            )
            return
        said = Said(
            at_us,
            message["event"],
            str(message.get("channel") or ""),
            message.get("data"),
            json.loads(payload),
        )
        self.heard.append(said)
        if said.event == "pusher:ping":
            self.pings += 1
            self.say(pusher.PONG)
        elif said.event == "pusher:connection_established" and isinstance(said.data, dict):
            self.socket_id = str(said.data.get("socket_id") or "")
            told = said.data.get("activity_timeout")
            self.activity_timeout_s = float(told) if isinstance(told, int | float) else None
            self.welcomed_s = (at_us - self._began_us) / 1e6

    def _ended(self, code: int, reason: str) -> None:
        if self.end is None:
            self.end = End(code, reason, (now_us() - self._began_us) / 1e6)
