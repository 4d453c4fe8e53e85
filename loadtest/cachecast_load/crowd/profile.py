"""What a profile is to the crowd: a handful of hooks with sensible defaults.

`profiles/` has those that there are; copy a small one to write your own.

A profile says which channels there are, who subscribes to which, and what happens when. It never
measures: clients, publishers and the ledger do that for every profile alike, so that a new profile
cannot forget to.

Channels are numbers; a profile's are `base`, `base + 1` and so on, so that `mixed` can run
several profiles in one. One instance serves one block or publisher; nothing in it is shared
between processes, and everything it derives comes from the plan, so that all processes derive the
same.
"""

from __future__ import annotations

import heapq
import json
import math
import random
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlencode, urlsplit

from cachecast_load.crowd.client import IDLE
from cachecast_load.net.http11 import make_request
from cachecast_load.net.reactor import now_us
from cachecast_load.plan.features import Feature, features_of
from cachecast_load.plan.model import Plan, PlanError
from cachecast_load.pusher import protocol as pusher
from cachecast_load.pusher.encryption import is_key

if TYPE_CHECKING:
    from cachecast_load.crowd.block import Block
    from cachecast_load.crowd.client import Client
    from cachecast_load.crowd.session import Session
    from cachecast_load.plan.orders import Order
    from cachecast_load.plan.target import Target

# Draws of channels before what is left is taken to have next to no weight.
_DRAWS = 20

CLEAN = (
    "delivery.lost == 0",
    "delivery.doubled == 0",
    "delivery.reordered == 0",
    "delivery.stale == 0",
    "delivery.altered == 0",
    "delivery.misrouted == 0",
    "publish.failed == 0",
    "connect.failed == 0",
    "subscribe.failed == 0",
    "closed.unexpected == 0",
)


# Plan fields by section, as in a plan's TOML.
Defaults = Mapping[str, Mapping[str, Any]]


class Profile:
    """Subscribers that connect, listen, and come back when they lose their connection.

    Attributes:
        name: Name at the command line.
        summary: One line for `cachecast load profiles`.
        prefix: Kind of channel, as its names begin.
        defaults: Plan fields that differ from the general defaults, by section.
        slos: Rules that hold for any healthy deployment, used when the plan has none.
        unused: Fields of the load that say nothing to this profile, and why.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    prefix: ClassVar[str] = ""
    defaults: ClassVar[Defaults] = {}
    slos: ClassVar[tuple[str, ...]] = CLEAN
    unused: ClassVar[Mapping[str, str]] = {}

    def __init__(self, plan: Plan, session: Session, base: int = 0) -> None:
        self.plan = plan
        self.session = session
        self.base = base
        self.owns: Callable[[int], bool] = lambda _subscriber: True
        self._names: dict[int, str] = {}
        self._numbers: dict[str, int] = {}

    def channel_name(self, channel: int) -> str:
        """Return a channel's full name. It holds the run's mark: runs never share channels."""
        name = self._names.get(channel)
        if name is None:
            name = f"{self.channel_prefix(channel)}lt-{self.session.run:04x}-{channel}"
            self._names[channel] = name
            self._numbers[name] = channel
        return name

    def channel_number(self, name: str) -> int:
        """Return the number of a channel this process has named, -1 for any other."""
        return self._numbers.get(name, -1)

    def channel_prefix(self, channel: int) -> str:
        """Return the kind of a channel; the plan's `channel_kind` overrides the profile's."""
        del channel
        return self.plan.behaviour.channel_kind or self.prefix

    def is_cache(self, channel: int) -> bool:
        """Whether the target keeps the channel's last value."""
        return pusher.is_cache_channel(self.channel_prefix(channel))

    def channel_count(self) -> int:
        """Return how many channels this profile has."""
        return self.plan.load.channels

    def published(self) -> list[int]:
        """Return the channels that the HTTP API publishes to on schedule."""
        return [self.base + channel for channel in range(self.channel_count())]

    def script(self) -> list[tuple[float, int]]:
        """Return single publishes besides the schedule: (seconds into measuring, channel)."""
        return []

    def primed(self) -> list[int]:
        """Return the channels that get one value before anybody subscribes."""
        return []

    def encode(self, channel: int, payload: bytes) -> str:
        """Return the `data` that carries a payload on a channel."""
        del channel
        return payload.decode("ascii")

    def expected_ready(self, subscribers: int) -> int:
        """Return how many subscribers must be fully subscribed before measuring begins."""
        return subscribers

    def is_ready(self, client: Client) -> bool:
        """Whether a client has all it asked for."""
        return bool(client.memberships) and not client.pending and not client.asks

    def is_slow(self, subscriber: int) -> bool:
        """Whether a subscriber reads slowly on purpose. Must not depend on the process."""
        del subscriber
        return False

    def subscriptions(self, subscriber: int) -> list[int]:
        """Return the channels a subscriber listens to.

        By default its own number modulo the channels, and the next ones after it, so that
        subscribers spread evenly; with a Zipf distribution popular channels get more of them.
        """
        count, each = self.channel_count(), self.plan.load.channels_per_subscriber
        if self.plan.load.distribution == "zipf":
            rng = random.Random(f"{self.plan.seed}/zipf/{subscriber}")
            chosen = _zipf_sample(rng, self._zipf, self.plan.load.zipf_exponent, each)
        else:
            chosen = [(subscriber * each + step) % count for step in range(each)]
        return [self.base + channel for channel in chosen]

    @cached_property
    def _zipf(self) -> list[float]:
        exponent = self.plan.load.zipf_exponent
        return [(rank + 1) ** -exponent for rank in range(self.channel_count())]

    def added(self, client: Client) -> None:
        """A subscriber shall exist: connect it when the pace allows."""
        client.block.queue_connect(client)

    def removed(self, client: Client) -> None:
        """A subscriber shall leave; it is closed after this call."""

    def welcomed(self, client: Client) -> None:
        """A connection is established: subscribe."""
        for channel in self.subscriptions(client.number):
            self.authorize(client, channel, self.channel_data(client))

    def channel_data(self, client: Client) -> str | None:
        """Return `channel_data` for presence channels, None for others."""
        if not self.channel_prefix(self.base).startswith("presence-"):
            return None
        return pusher.presence_data(self.user_of(client.number))

    def user_of(self, subscriber: int) -> str:
        """Return the user id of a subscriber; several subscribers may be one user.

        It is what an auth endpoint granted last, and the plan's where none did.
        """
        granted = self.session.users.get(subscriber)
        return granted or f"u{subscriber // self.plan.behaviour.connections_per_user}"

    def subscribed(self, client: Client, channel: int, data: object) -> None:
        """A subscription was confirmed; `data` is what came with it."""

    def joined(self, client: Client, channel: int, seq: int) -> None:
        """A cache channel answered with its value's sequence number, or -1 for a miss."""

    def refused(self, client: Client, code: object, text: str) -> None:
        """A `pusher:error` came; the connection may go on."""

    def member_event(
        self, client: Client, channel: int, data: dict[str, Any], *, joined: bool
    ) -> None:
        """Someone joined or left a presence channel."""

    def other_event(self, client: Client, message: dict[str, Any], now_us: int) -> None:
        """A channel event without our stamp came: somebody else's, or an encrypted one."""
        del message, now_us
        client.tally.counts["unstamped"] += 1

    def closed(self, client: Client, code: int, *, was_open: bool) -> None:
        """A connection was lost or never made: come back as the close code says."""
        del was_open
        self.come_back(client, code)

    def ordered(self, block: Block, order: Order) -> None:
        """The level or phase changed."""

    def started(self, block: Block) -> None:
        """Measuring begins in this block."""

    def draining(self, block: Block) -> None:
        """No new publish will come; stop starting things."""

    def finishing(self, block: Block) -> None:
        """The block is about to close everything: last look."""

    @classmethod
    def features(cls, plan: Plan) -> dict[str, set[Feature]]:
        """Return what a run meets at its target, by the kinds of its channels."""
        kind = plan.behaviour.channel_kind or cls.prefix
        return {kind: features_of(kind)}

    @classmethod
    def without(cls, plan: Plan, kind: str, feature: Feature) -> tuple[Plan, str] | None:
        """Return the plan that does without a feature and what it then leaves out, in words.

        None where the profile has no point without it.
        """
        del kind
        return (plan, "") if feature is Feature.ROSTERS else None

    @classmethod
    def fit(cls, plan: Plan) -> Plan:
        """Return the plan with what follows from its other values; may refuse it (`PlanError`)."""
        if not plan.load.duration_s:
            raise PlanError("load.duration_s must be above 0")
        return plan

    @classmethod
    def explain(cls, plan: Plan) -> list[str]:
        """Return sentences on what a fitted plan does that its values do not say."""
        del plan
        return []

    def clients(self, block: Block) -> list[Client]:
        """Return the block's clients that run this profile."""
        return [client for client in block.clients.values() if client.profile is self]

    def come_back(self, client: Client, code: int) -> None:
        """Reconnect after the delay its close code's class asks for; never after a refusal."""
        block = client.block
        if block.is_finished or client.number not in block.clients:
            return
        todo = pusher.after_close(code)
        if todo == pusher.STOP:
            return
        client.tries += 1
        if self.plan.behaviour.backoff == "at once" or todo == pusher.AT_ONCE:
            # Even "at once" has a floor: a target that closes during the handshake would be
            # hammered.
            delay_s = 0.0 if client.tries == 1 else min(0.1 * client.tries, 1.0)
        elif self.plan.behaviour.backoff == "jitter":
            ceiling = min(2.0**client.tries / 2, self.plan.behaviour.backoff_max_s)
            delay_s = block.rng.uniform(0.0, ceiling)
        else:
            delay_s = min(1.0 * client.tries, self.plan.behaviour.backoff_max_s)
        block.reactor.call_later(delay_s, self.reconnect, client)

    def reconnect(self, client: Client) -> None:
        """Connect again if the client still exists and has no connection."""
        block = client.block
        if client.state == IDLE and not block.is_finished and client.number in block.clients:
            client.connect()

    def authorize(self, client: Client, channel: int, channel_data: str | None = None) -> None:
        """Subscribe, with the signature made here or, where the target has one, by its endpoint."""
        name = self.channel_name(channel)
        endpoint = self.session.target.auth_endpoint
        if endpoint is None or not pusher.needs_auth(name):
            client.subscribe(channel, channel_data=channel_data)
            return
        asked = {"socket_id": client.socket_id, "channel_name": name}
        if channel_data is not None:
            # A proposal: an endpoint that knows its users by other means decides for itself.
            asked["user_id"] = self.user_of(client.number)
        request = _auth_request(self.session.target, endpoint, asked)
        asked_us = now_us()
        socket_id = client.socket_id

        def answer(status: int, response: bytes, reason: str) -> None:
            tally = client.tally
            tally.histograms["auth"].record(now_us() - asked_us)
            grant, fault = _read_grant(name, status, response)
            if grant is None:
                tally.counts["subscribe_failed"] += 1
                text = reason or response.decode("utf-8", "replace")
                tally.error(f"auth endpoint: {fault or reason}", text)
            elif client.socket_id == socket_id:
                self.granted(client, channel, grant)
                client.subscribe(channel, str(grant["auth"]), grant.get("channel_data"))

        client.block.auth_pool().send(lambda: request, answer)

    def granted(self, client: Client, channel: int, grant: dict[str, Any]) -> None:
        """The auth endpoint said yes: note who it says this is, and what else it gave."""
        del channel
        user = _granted_user(grant)
        if user is not None:
            self.session.users[client.number] = user


def _auth_request(target: Target, endpoint: str, asked: dict[str, str]) -> bytes:
    """Return the request of an auth endpoint, as an SDK sends it."""
    parts = urlsplit(endpoint)
    if target.auth_body == "json":
        kind, body = "application/json", json.dumps(asked)
    else:
        kind, body = "application/x-www-form-urlencoded", urlencode(asked)
    # Frameworks answer an error with a page, or a redirection to one, unless they are told.
    ours = {"content-type": kind, "accept": "application/json"}
    given = {name.lower() for name, _ in target.headers}
    headers = [(name, value) for name, value in ours.items() if name not in given]
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return make_request("POST", path, parts.netloc, [*headers, *target.headers], body.encode())


def _read_grant(name: str, status: int, response: bytes) -> tuple[dict[str, Any] | None, str]:
    """Return what an auth endpoint granted, or None and what an SDK would miss in it."""
    if not 200 <= status < 300:
        return None, f"HTTP {status}" if status else ""
    try:
        grant = pusher.read_json(response)
    except ValueError:
        return None, f"HTTP {status}, not JSON"
    if not isinstance(grant, dict) or not isinstance(grant.get("auth"), str):
        return None, f"HTTP {status} without auth"
    if name.startswith("presence-") and _granted_user(grant) is None:
        return None, "no channel_data with a user_id for a presence channel"
    if name.startswith("private-encrypted-"):
        if not isinstance(grant.get("shared_secret"), str):
            return None, "no shared_secret for an encrypted channel"
        if not is_key(grant["shared_secret"]):
            return None, "a shared_secret that is no key: 32 bytes in base64 are"
    return grant, ""


def _granted_user(grant: Mapping[str, Any]) -> str | None:
    """Return the user id within a grant's `channel_data`: others will see this subscriber by it."""
    data = grant.get("channel_data")
    try:
        user = pusher.read_json(data)["user_id"] if isinstance(data, str) else ""
    except (ValueError, KeyError, TypeError):
        return None
    # Some grant numbers, which rosters then hold as text; nothing else is an identity.
    is_user = isinstance(user, str | int) and not isinstance(user, bool) and user != ""
    return str(user) if is_user else None


def _zipf_sample(
    rng: random.Random, weights: list[float], exponent: float, count: int
) -> list[int]:
    """Draw distinct channels, one after the other, each by its weight among those left."""
    chosen: dict[int, None] = {}
    channels = range(len(weights))
    for _ in range(_DRAWS):
        for channel in rng.choices(channels, weights, k=count - len(chosen)):
            chosen[channel] = None
        if len(chosen) == count:
            return list(chosen)
    # All that has weight is taken. A race of exponential clocks picks as drawing would, if it is
    # run in logarithms: the weights themselves may be too small for a number.
    rest = (channel for channel in channels if channel not in chosen)
    finish = {
        channel: math.log(rng.expovariate(1.0) or sys.float_info.min)
        + exponent * math.log(channel + 1)
        for channel in rest
    }
    return [*chosen, *heapq.nsmallest(count - len(chosen), finish, finish.__getitem__)]
