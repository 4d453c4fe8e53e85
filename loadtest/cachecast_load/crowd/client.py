"""One simulated Pusher client: connects, subscribes, answers pings, judges every event it gets.

There are thousands, so each is one object with slots, no task and no greenlet; its block's reactor
calls it. What it does besides listening is the profile's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cachecast_load.measures.ledger import Join, Membership
from cachecast_load.measures.recorder import generic
from cachecast_load.net.frames import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    FastWire,
    UpgradeRefusedError,
    WireError,
    read_close,
)
from cachecast_load.net.reactor import Timer, now_us
from cachecast_load.net.strict import StrictWire
from cachecast_load.net.transport import CLOSED, GENERATOR, Connection
from cachecast_load.pusher import protocol as pusher
from cachecast_load.pusher.stamp import Stamp, StampError, read_stamp

if TYPE_CHECKING:
    from cachecast_load.crowd.block import Block
    from cachecast_load.crowd.profile import Profile

IDLE, CONNECTING, OPEN = 0, 1, 2
PONG_TIMEOUT_US = 30_000_000
_SUBSCRIPTION_COUNT = b"pusher_internal:subscription_count"
_RESERVED = ("pusher:", "pusher_internal:")


class Client:
    """A subscriber slot: it keeps its number over reconnects.

    Attributes:
        number: Number in the whole run, from 0.
        memberships: Channel number -> what it saw since its subscription was confirmed.
        pending: Channel name -> (channel number, when asked), until answered.
        asks: Channel number -> when asked, for cache channels, until value or miss.
        socket: Number of the target that its connection goes to, or went to last.
        tally: Tally of that target.
        attempts: Number of connections begun so far.
        memory: Whatever the profile has to remember of this client.
    """

    __slots__ = (
        "_timer",
        "asks",
        "attempts",
        "began_us",
        "block",
        "connection",
        "dropped_us",
        "heard_us",
        "idle_limit_us",
        "is_slow",
        "memberships",
        "memory",
        "number",
        "pending",
        "pinged_us",
        "profile",
        "socket",
        "socket_id",
        "state",
        "tally",
        "tries",
        "wire",
    )

    def __init__(self, number: int, block: Block, profile: Profile) -> None:
        self.number = number
        self.block = block
        self.profile = profile
        self.state = IDLE
        self.socket = 0
        self.attempts = 0
        self.tally = block.recorder.sockets[0]
        self.connection: Connection | None = None
        self.wire: FastWire | StrictWire = FastWire()
        self.socket_id = ""
        self.memberships: dict[int, Membership] = {}
        self.pending: dict[str, tuple[int, int]] = {}
        self.asks: dict[int, int] = {}
        self.memory: Any = None
        self.is_slow = False
        self.tries = 0
        self.began_us = 0
        self.heard_us = 0
        self.pinged_us = 0
        self.dropped_us = 0
        self.idle_limit_us = 120_000_000
        self._timer: Timer | None = None

    def connect(self, *, receive_buffer: int | None = None, socket: int | None = None) -> None:
        """Begin a connection attempt now; its outcome reaches the profile.

        Args:
            receive_buffer: Bytes that the kernel holds for a reader slow on purpose.
            socket: Number of the target; by default as the session spreads them.
        """
        block = self.block
        if socket is None:
            socket = block.session.socket_of(self.number, self.attempts)
        self.socket = socket
        self.tally = block.recorder.sockets[socket]
        self.attempts += 1
        self.state = CONNECTING
        self.began_us = now_us()
        self.wire = StrictWire() if block.session.plan.strict else FastWire()
        self.pinged_us = 0
        block.connecting += 1
        timeout_s = block.session.plan.limits.connect_timeout_s
        self._timer = block.reactor.call_later(timeout_s, self._give_up)
        try:
            self.connection = Connection(
                block.reactor, block.session.sockets[socket], self, receive_buffer=receive_buffer
            )
        except OSError as error:
            # Out of descriptors: ours to report, and never the target's fault.
            self._ended(f"{GENERATOR}: {(error.strerror or str(error)).lower()}", 1006)

    def subscribe(self, channel: int, auth: str = "", channel_data: str | None = None) -> None:
        """Ask for a channel; an `auth` made elsewhere may be given, otherwise it is made here."""
        self.block.receipts.settle()
        name = self.profile.channel_name(channel)
        if not auth and pusher.needs_auth(name):
            credentials = self.block.session.target.credentials
            auth = pusher.subscribe_auth(credentials, self.socket_id, name, channel_data)
        now = now_us()
        self.pending[name] = (channel, now)
        if self.profile.is_cache(channel):
            self.asks[channel] = now
        self.send(pusher.subscribe_message(name, auth, channel_data))

    def unsubscribe(self, channel: int) -> None:
        """Leave a channel; events still under way are neither owed nor counted."""
        self._end_membership(channel)
        self.asks.pop(channel, None)
        self.send(pusher.unsubscribe_message(self.profile.channel_name(channel)))

    def send(self, text: bytes) -> None:
        """Send one text message."""
        if self.connection is not None:
            self.connection.send(self.wire.text(text))

    def leave(self) -> None:
        """Say goodbye and close; the profile is not told."""
        if self.connection is not None:
            if self.state == OPEN:
                self.connection.send(self.wire.close(1000))
            self.connection.close()
        self._forget()

    def drop(self) -> None:
        """Vanish without a word (RST), as a phone in a tunnel does; the profile is not told."""
        if self.connection is not None:
            self.connection.abort()
        self._forget()
        self.dropped_us = now_us()

    def opened(self) -> None:
        """Ask for the upgrade."""
        target = self.block.session.target
        endpoint = target.sockets[self.socket]
        path = pusher.socket_path(endpoint.prefix, target.credentials.key)
        assert self.connection is not None
        request = self.wire.request(endpoint.host_header, path, list(target.headers))
        self.connection.send(request)

    def arrived(self, data: bytes, now_us: int) -> None:
        """Take received bytes; for all but the first of a row, that is one comparison."""
        self.heard_us = now_us
        block, wire = self.block, self.wire
        # Who waits for a first value, or reads slowly on purpose, has more to say of it.
        if (
            self.state == OPEN
            and not (wire.tail or self.asks or self.is_slow)
            and block.receipts.hold(self, data, now_us)
        ):
            return
        block.receipts.settle()
        is_whole = not wire.tail
        try:
            messages = wire.feed(data)
        except WireError as error:
            self._broke(error)
            return
        block.recorder.counts["frames"] += len(messages)
        stamps: list[Stamp] = []
        for opcode, payload in messages:
            stamp = self._stamp_of(payload) if opcode == TEXT else None
            if stamp is not None:
                stamps.append(stamp)
                self.observe(stamp, now_us)
            elif not self._other(opcode, payload, now_us):
                return
        if block.memoize and stamps and len(stamps) == len(messages) and is_whole and not wire.tail:
            block.receipts.remember(data, stamps)

    def lost(self, reason: str) -> None:
        """The connection ended without a close frame."""
        was_upgraded = self.state == OPEN and reason == CLOSED
        self._ended(f"{reason} without a close frame" if was_upgraded else reason, 1006)

    def observe(self, stamp: Stamp, now_us: int) -> None:
        """Enter one of our own events into ledger and histograms."""
        channel, seq, floor, intended_us, sent_us = stamp
        member = self.memberships.get(channel)
        if member is None:
            self._stray(channel)
            return
        member.observe(seq, floor, sent_us)
        run_us = now_us + self.block.offset_us
        if self.asks:
            asked_us = self.asks.pop(channel, None)
            if asked_us is not None:
                self._joined(channel, asked_us, now_us, seq)
                if sent_us < asked_us + self.block.offset_us:
                    return  # a replayed value: its age is not a latency
        if self.is_slow:
            return
        self.tally.record_delivery(run_us - intended_us)
        self.tally.record_service(run_us - sent_us)

    def _stamp_of(self, payload: bytes) -> Stamp | None:
        block = self.block
        try:
            stamp = read_stamp(payload, block.mark)
        except StampError as error:
            self.tally.counts["altered"] += 1
            self.tally.error("delivery: altered payload", str(error))
            return None
        if stamp is None:
            return None
        fault = block.session.envelopes.fault(payload, stamp, block.profile.channel_name)
        if not fault:
            return stamp
        self.tally.counts[fault] += 1
        self.tally.error(f"delivery: {fault}", payload[:200].decode("utf-8", "replace"))
        return None  # an SDK would hand it to nobody, so it is no delivery

    def _stray(self, channel: int) -> None:
        counts = self.tally.counts
        if self.profile.channel_name(channel) in self.pending:
            self.tally.error(
                "protocol: event before subscription_succeeded",
                self.profile.channel_name(channel),
            )
        else:
            counts["after_leaving"] += 1

    def _joined(self, channel: int, asked_us: int, now_us: int, seq: int) -> None:
        offset = self.block.offset_us
        self.tally.histograms["first_value"].record(now_us - asked_us)
        self.block.recorder.joins.append(
            Join(channel, self.number, asked_us + offset, now_us + offset, seq, self.socket)
        )
        self.profile.joined(self, channel, seq)

    def _other(self, opcode: int, payload: bytes, now_us: int) -> bool:
        """Handle anything but our own events; False when the connection is over."""
        if opcode == TEXT:
            return self._system(payload, now_us)
        if opcode == PING:
            if self.connection is not None:
                self.connection.send(self.wire.pong(payload))
        elif opcode == PONG:
            self.pinged_us = 0
        elif opcode == CLOSE:
            code, reason = read_close(payload)
            if self.connection is not None:
                self.connection.send(self.wire.close(code if code != 1005 else 1000))
                self.connection.close()
            self._ended(reason or "no reason given", code)
            return False
        else:
            self.tally.error("protocol: binary frame", repr(payload[:60]))
        return True

    def _system(self, payload: bytes, now_us: int) -> bool:
        if _SUBSCRIPTION_COUNT in payload[:64]:
            # A storm on a channel of n brings n squared of them; parsing would drown the generator.
            self.tally.counts["system_events"] += 1
            return True
        try:
            message = pusher.read_message(payload)
        except ValueError:
            example = payload[:120].decode("utf-8", "replace")
            self.tally.error("protocol: not a Pusher message", example)
            return True
        handler = _HANDLERS.get(message["event"])
        if handler is not None:
            handler(self, message, now_us)
        elif message["event"].startswith(_RESERVED):
            self.tally.counts["system_events"] += 1  # subscription_count and its like
        elif isinstance(message.get("channel"), str):
            self.profile.other_event(self, message, now_us)
        return self.state != IDLE

    def _established(self, message: dict[str, Any], now_us: int) -> None:
        data = message.get("data")
        if self.state != CONNECTING or not isinstance(data, dict) or "socket_id" not in data:
            self.tally.error("protocol: bad connection_established", repr(message)[:200])
            return
        self.socket_id = str(data["socket_id"])
        timeout_s = data.get("activity_timeout")
        if isinstance(timeout_s, int) and timeout_s > 0:
            self.idle_limit_us = timeout_s * 1_000_000
        self.state = OPEN
        self.tries = 0
        self._settle_attempt()
        self.block.connected += 1
        self.tally.counts["connects"] += 1
        self.tally.histograms["connect"].record(now_us - self.began_us)
        self.profile.welcomed(self)

    def _succeeded(self, message: dict[str, Any], now_us: int) -> None:
        name = message.get("channel")
        pending = self.pending.pop(name, None) if isinstance(name, str) else None
        if pending is None:
            self.tally.error("protocol: unasked subscription_succeeded", str(name))
            return
        channel, asked_us = pending
        block = self.block
        self.tally.histograms["subscribe"].record(now_us - asked_us)
        self.tally.counts["subscribes"] += 1
        block.subscribed += 1
        since_us = now_us + block.offset_us
        self.memberships[channel] = Membership(channel, self.number, since_us, self.socket)
        self.profile.subscribed(self, channel, message.get("data"))
        if self.dropped_us and not self.pending:
            self.tally.histograms["recover"].record(now_us - self.dropped_us)
            self.dropped_us = 0

    def _missed(self, message: dict[str, Any], now_us: int) -> None:
        channel = self.profile.channel_number(str(message.get("channel")))
        asked_us = self.asks.pop(channel, None)
        if asked_us is None:
            self.tally.error("protocol: unasked cache_miss", str(message.get("channel")))
            member = self.memberships.get(channel)
            if member is not None and member.newest >= 0 and self.profile.is_cache(channel):
                # Whoever has a value is told that there is none: the ledger knows if there was.
                at_us = now_us + self.block.offset_us
                join = Join(channel, self.number, at_us, at_us, -1, self.socket)
                self.block.recorder.joins.append(join)
        else:
            self._joined(channel, asked_us, now_us, -1)

    def _error(self, message: dict[str, Any], _now_us: int) -> None:
        data = message.get("data")
        data = data if isinstance(data, dict) else {"message": data}
        code, text = data.get("code"), str(data.get("message"))
        self.tally.error(f"pusher:error {code}: {generic(text)}", text)
        for name in list(self.pending):
            if name in text:
                self._refuse(name)
        self.profile.refused(self, code, text)

    def _subscription_error(self, message: dict[str, Any], _now_us: int) -> None:
        name = str(message.get("channel"))
        if name in self.pending:
            data = message.get("data")
            self.tally.error("subscription refused", repr(data))
            self._refuse(name)

    def _refuse(self, name: str) -> None:
        channel, _ = self.pending.pop(name)
        self.asks.pop(channel, None)
        self.tally.counts["subscribe_failed"] += 1

    def _asked_ping(self, _message: dict[str, Any], _now_us: int) -> None:
        self.send(pusher.PONG)

    def _got_pong(self, _message: dict[str, Any], _now_us: int) -> None:
        self.pinged_us = 0

    def _member(self, message: dict[str, Any], _now_us: int) -> None:
        data = message.get("data")
        if isinstance(data, dict):
            channel = self.profile.channel_number(str(message.get("channel")))
            joined = message["event"] == "pusher_internal:member_added"
            self.profile.member_event(self, channel, data, joined=joined)

    def check_alive(self, now: int) -> None:
        """Ping after the activity timeout, give up after 30 s without an answer."""
        if self.state != OPEN or self.is_slow:
            return
        if self.pinged_us:
            if self.heard_us > self.pinged_us:
                self.pinged_us = 0
            elif now - self.pinged_us > PONG_TIMEOUT_US:
                assert self.connection is not None
                self.connection.abort()
                self._ended("no pong within 30 s", 1006)
        elif now - self.heard_us > self.idle_limit_us:
            self.pinged_us = now
            self.send(pusher.PING)

    def _give_up(self) -> None:
        if self.connection is not None and self.state == CONNECTING:
            self.connection.abort()
            seconds = self.block.session.plan.limits.connect_timeout_s
            self._ended(f"not established within {seconds:g} s", 1006)

    def _broke(self, error: WireError) -> None:
        if self.connection is not None:
            self.connection.close()
        prefix = "" if isinstance(error, UpgradeRefusedError) else "protocol: "
        self._ended(f"{prefix}{error}", 1002)

    def _settle_attempt(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self.block.connecting -= 1

    def _ended(self, reason: str, code: int) -> None:
        was_open = self.state == OPEN
        tally = self.tally
        if reason.startswith(GENERATOR):
            tally.counts["out_of_sockets"] += 1
        label = f"{code} {reason}" if code not in (1002, 1006) else reason
        if was_open and self.is_slow:
            tally.counts["slow_closed"] += 1
            tally.counts[f"close_{code}"] += 1
        elif was_open:
            tally.counts["closed"] += 1
            tally.counts[f"close_{code}"] += 1
            tally.error(f"closed: {generic(label)}", f"subscriber {self.number}: {label}")
        else:
            tally.counts["connect_failed"] += 1
            tally.error(f"connect: {generic(label)}", f"subscriber {self.number}: {label}")
        if was_open and not self.dropped_us:
            self.dropped_us = now_us()
        self._forget()
        self.profile.closed(self, code, was_open=was_open)

    def _forget(self) -> None:
        self._settle_attempt()
        if self.state == OPEN:
            self.block.connected -= 1
        self.state = IDLE
        self.connection = None
        self.socket_id = ""
        self.pending.clear()
        self.asks.clear()
        for channel in list(self.memberships):
            self._end_membership(channel)

    def _end_membership(self, channel: int) -> None:
        self.block.receipts.settle()
        member = self.memberships.pop(channel, None)
        if member is not None:
            member.until_us = now_us() + self.block.offset_us
            self.block.subscribed -= 1
            self.block.recorder.memberships.append(member)


_HANDLERS: dict[str, Callable[[Client, dict[str, Any], int], None]] = {
    "pusher:connection_established": Client._established,  # noqa: SLF001
    "pusher_internal:subscription_succeeded": Client._succeeded,  # noqa: SLF001
    "pusher:cache_miss": Client._missed,  # noqa: SLF001
    "pusher:error": Client._error,  # noqa: SLF001
    "pusher:subscription_error": Client._subscription_error,  # noqa: SLF001
    "pusher:ping": Client._asked_ping,  # noqa: SLF001
    "pusher:pong": Client._got_pong,  # noqa: SLF001
    "pusher_internal:member_added": Client._member,  # noqa: SLF001
    "pusher_internal:member_removed": Client._member,  # noqa: SLF001
}
