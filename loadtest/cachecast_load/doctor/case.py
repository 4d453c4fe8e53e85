"""What the probes of one examination share: the target, its doors, and the time that is left."""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from cachecast_load.doctor.lines import Answer, HttpLine, Peer
from cachecast_load.net.http11 import make_request
from cachecast_load.net.reactor import Reactor, now_us
from cachecast_load.net.transport import Address
from cachecast_load.plan.target import Endpoint, Target
from cachecast_load.pusher import protocol as pusher
from cachecast_load.pusher.protocol import Credentials

#: Seconds that one answer may take.
PATIENCE_S = 5.0


@dataclass
class Door:
    """One URL: where WebSockets connect, or where the HTTP API is.

    Attributes:
        endpoint: the URL, taken apart.
        scheme: `ws` or `http`.
        address: where to connect; None until it was reached.
        is_usable: whether it does what it is for.
        main: the client that probes share.
        quiet: a client that says nothing, to see who ends it.
        line: a connection for HTTP requests.
        skew_s: seconds to add to our clock, so that signatures are in time there.
        signs_prefix: whether signatures must be over the path with the URL's prefix.
    """

    endpoint: Endpoint
    scheme: str
    address: Address | None = None
    is_usable: bool = False
    main: Peer | None = None
    quiet: Peer | None = None
    line: HttpLine | None = None
    skew_s: float = 0.0
    signs_prefix: bool = False

    @property
    def place(self) -> str:
        """Host and port, for what two doors of one server have in common."""
        return f"{self.endpoint.host_header} {self.endpoint.tls}"

    @property
    def url(self) -> str:
        """The URL as people write it."""
        return self.endpoint.url(self.scheme)


@dataclass
class Case:
    """One examination under way.

    Attributes:
        target: what is examined.
        idle_s: how long a quiet connection is watched.
        deadline_us: when everything must have come to an end.
        mark: in every name of ours, so that people know where it came from.
        sockets: doors for WebSockets, one a `--target`.
        apis: doors of the HTTP API.
        published: how many events were published.
        cached: cache channels that now have a value of ours.
        peers: every client that was opened.
        lines: every connection for HTTP requests.
        delivers: whether an event that was published arrived.
        blamed: what was found wrong already, so that what follows from it is not blamed again.
    """

    target: Target
    idle_s: float
    deadline_us: int
    reactor: Reactor = field(default_factory=Reactor)
    mark: str = field(default_factory=lambda: f"doctor-{secrets.token_hex(4)}")
    sockets: list[Door] = field(default_factory=list)
    apis: list[Door] = field(default_factory=list)
    published: int = 0
    cached: list[str] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)
    lines: list[HttpLine] = field(default_factory=list)
    delivers: bool = False
    blamed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.sockets = [Door(endpoint, "ws") for endpoint in self.target.sockets]
        self.apis = [Door(endpoint, "http") for endpoint in self.target.apis]

    @property
    def doors(self) -> list[Door]:
        """All of them."""
        return self.sockets + self.apis

    @property
    def credentials(self) -> Credentials:
        """App id, key and secret; what is not known is empty."""
        return self.target.credentials

    @property
    def socket(self) -> Door | None:
        """The first door at which a client is welcome."""
        return next((door for door in self.sockets if door.is_usable), None)

    @property
    def api(self) -> Door | None:
        """The first door that takes signed requests."""
        return next((door for door in self.apis if door.is_usable), None)

    def within(self, seconds: float = PATIENCE_S) -> float:
        """Return how long may be waited now, at most `seconds`."""
        return max(0.05, min(seconds, (self.deadline_us - now_us()) / 1e6))

    def close(self) -> None:
        """Close every connection."""
        for peer in self.peers:
            peer.close()
        for line in self.lines:
            line.close()
        self.reactor.close()

    def answers(self, door: Door) -> bool:
        """Whether a door was reached, and speaks HTTP as far as is known."""
        return door.address is not None and door.place not in self.blamed

    # --- WebSockets

    def connect(
        self,
        door: Door,
        *,
        path: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        within_s: float = PATIENCE_S,
    ) -> Peer:
        """Open a client and wait until it is welcome, refused, or out of time."""
        assert door.address is not None
        path = path or pusher.socket_path(door.endpoint.prefix, self.credentials.key)
        request = (door.endpoint.host_header, path, (*self.target.headers, *headers))
        peer = Peer(self.reactor, door.address, request)
        self.peers.append(peer)
        peer.wait(lambda: bool(peer.socket_id) or bool(peer.heard), self.within(within_s))
        if peer.heard and not peer.socket_id:
            # An error is followed by a close, which has the code that counts.
            peer.wait(lambda: False, self.within(0.5))
        return peer

    # --- HTTP

    def path(self, *parts: str) -> str:
        """Return the path of a resource of the app."""
        return self.target.api_path(*parts)

    def fetch(
        self,
        door: Door,
        path: str,
        *,
        method: str = "GET",
        body: bytes = b"",
        kind: str = "application/json",
    ) -> Answer:
        """Send a request as it stands to a door of either kind and return its answer."""
        assert door.address is not None
        if door.line is None:
            door.line = HttpLine(self.reactor, door.address)
            self.lines.append(door.line)
        extra = [("Content-Type", kind)] if body else []
        request = make_request(
            method, path, door.endpoint.host_header, [*extra, *self.target.headers], body
        )
        return door.line.ask(request, self.within())

    def ask(
        self,
        door: Door,
        method: str,
        path: str,
        body: bytes = b"",
        query: dict[str, str] | None = None,
        *,
        credentials: Credentials | None = None,
        skew_s: float | None = None,
        signs_prefix: bool | None = None,
        prefix: str | None = None,
    ) -> Answer:
        """Send a signed request of the HTTP API and return its answer.

        Args:
            door: where to.
            method: of HTTP.
            path: from `/apps/` on.
            body: JSON, or empty.
            query: further parameters.
            credentials: others than the target's, to compare.
            skew_s: other than the door's.
            signs_prefix: other than the door's.
            prefix: other than the URL's.
        """
        prefix = door.endpoint.prefix if prefix is None else prefix
        signs_prefix = door.signs_prefix if signs_prefix is None else signs_prefix
        skew_s = door.skew_s if skew_s is None else skew_s
        signed = pusher.signed_target(
            credentials or self.credentials,
            method,
            prefix + path if signs_prefix else path,
            body,
            int(time.time() + skew_s),
            query,
            "" if signs_prefix else prefix,
        )
        return self.fetch(door, signed, method=method, body=body)

    def publish(self, door: Door, channels: list[str], data: str, **fields: object) -> Answer:
        """Publish one event, `doctor`, to some channels."""
        body: Mapping[str, object] = {
            "name": "doctor",
            "channels": channels,
            "data": data,
            **fields,
        }
        self.published += len(channels)
        self.cached += [
            name for name in channels if pusher.is_cache_channel(name) and name not in self.cached
        ]
        return self.ask(door, "POST", self.path("events"), json.dumps(body).encode())

    def stranger(self, **fields: str) -> Credentials:
        """Return our credentials with one of them wrong, to see what such an answer looks like."""
        return dataclasses.replace(self.credentials, **fields)


def app_path(prefix: str, key: str, query: str) -> str:
    """Return the path of the WebSocket URL with a query of one's own."""
    return f"{prefix}/app/{quote(key, safe='')}{f'?{query}' if query else ''}"
