"""Publishing through the HTTP API: on schedule, signed, every fate entered in the ledger."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from typing import TYPE_CHECKING

from cachecast_load.crowd.schedule import Schedule
from cachecast_load.measures.ledger import FAILED
from cachecast_load.net.http11 import HttpPool, make_request
from cachecast_load.net.reactor import Reactor, now_us
from cachecast_load.plan import orders as phases
from cachecast_load.plan.orders import Order
from cachecast_load.pusher import protocol as pusher
from cachecast_load.pusher.stamp import Stamp, make_payload

if TYPE_CHECKING:
    from cachecast_load.crowd.profile import Profile
    from cachecast_load.crowd.session import Session

_HEADERS = [("Content-Type", "application/json")]
_PRIME_AT_ONCE = 16


class Sequence:
    """Sequence numbers of the channels one publisher owns, and which of them are unanswered."""

    def __init__(self) -> None:
        self._next: dict[int, int] = {}
        self._open: dict[int, set[int]] = {}

    def begin(self, channel: int) -> tuple[int, int]:
        """Return the next sequence number and its floor (see `stamp`)."""
        seq = self._next.get(channel, 0)
        self._next[channel] = seq + 1
        unanswered = self._open.setdefault(channel, set())
        floor = min(unanswered) - 1 if unanswered else seq - 1
        unanswered.add(seq)
        return seq, floor

    def end(self, channel: int, seq: int) -> None:
        """The publish was answered, or failed."""
        self._open[channel].discard(seq)


class Publisher:
    """One share of the channels, published to at its share of the rate.

    Args:
        session: what the process shares.
        profile: names and encodes.
        reactor: this publisher's own loop.
        index: which share of `count`: channels are dealt out in turn.
        count: how many publishers the run has.
    """

    def __init__(
        self, session: Session, profile: Profile, reactor: Reactor, index: int, count: int
    ) -> None:
        self.session = session
        self.profile = profile
        self.reactor = reactor
        self.index = index
        self.is_finished = False
        self._recorder = session.recorder
        self._count = count
        self._path = session.target.api_path("events")
        self._sequence = Sequence()
        self._order = Order()
        load = session.plan.load
        self._channels = [c for c in profile.published() if c % count == index]
        self._rng = random.Random(f"{session.plan.seed}/publisher/{index}")
        self._turns = itertools.cycle(self._channels)
        self._weights = _zipf_weights(self._channels, load.zipf_exponent)
        self._unprimed = [c for c in profile.primed() if c % count == index]
        self._priming = 0
        self._scheduled = 0
        self._sent: Counter[int] = Counter()
        self._pools = [
            HttpPool(
                reactor,
                api,
                limit=max(1, load.publish_connections // (count * len(session.apis))),
                timeout_s=session.plan.limits.publish_timeout_s,
            )
            for api in session.apis
        ]
        rng = self._rng if load.arrivals == "poisson" else None
        self._schedule = Schedule(reactor, self._publish, rng)
        reactor.call_later(0, self._tick)

    def turn(self) -> None:
        """Do one bounded piece of work; called for ever by the Locust user."""
        self.reactor.turn(0.1)

    def finish(self) -> None:
        """Stop and close. Safe to call twice."""
        if self.is_finished:
            return
        self.is_finished = True
        self._schedule.stop()
        for pool in self._pools:
            pool.close()
        self._report_levels()

    def _tick(self) -> None:
        if self.is_finished:
            return
        order = self.session.orders.current
        if order.number != self._order.number:
            before, self._order = self._order, order
            self._obey(before, order)
        if order.phase == phases.PRIME:
            self._prime()
        if order.phase == phases.DRAIN and self._is_drained(order):
            self.finish()
        self._report_levels()
        self.reactor.call_later(0.05, self._tick)

    def _is_drained(self, order: Order) -> bool:
        over_us = now_us() - self.session.to_local(order.at_us)
        patience_us = self.session.plan.limits.publish_timeout_s * 1e6
        return over_us > patience_us or all(pool.is_quiet for pool in self._pools)

    def _obey(self, before: Order, order: Order) -> None:
        if order.phase == phases.MEASURE:
            if before.phase != order.phase:
                self._begin_script(order)
            if (before.phase, before.rate) != (order.phase, order.rate) and self._channels:
                owned = len(self._channels) / max(1, len(self.profile.published()))
                at_us = max(self.session.to_local(order.at_us), now_us() - 1_000_000)
                phase = (self.index + 0.5) / self._count
                self._schedule.set_rate(order.rate * owned, at_us, phase)
        elif order.phase in (phases.DRAIN, phases.CLOSE, phases.DONE):
            self._schedule.stop()
            if order.phase != phases.DRAIN:
                self.finish()
        elif order.phase == phases.CONNECT:
            for pool in self._pools:
                pool.warm_up(4)

    def _begin_script(self, order: Order) -> None:
        begin_us = self.session.to_local(order.measure_us)
        for seconds, channel in self.profile.script():
            if channel % self._count == self.index:
                at_us = begin_us + int(seconds * 1e6)
                self.reactor.call_at(at_us, self._publish_scripted, channel, at_us)

    def _publish_scripted(self, channel: int, at_us: int) -> None:
        self._recorder.counts["publish_scheduled"] += 1
        self._send(channel, at_us, self._next_api(channel))

    def _report_levels(self) -> None:
        # Blocks use indices from 0 up; publishers take the negative ones.
        self._recorder.gauges[-1 - self.index] = {
            "unprimed": len(self._unprimed) + self._priming,
            "publishes_waiting": sum(pool.waiting for pool in self._pools),
            "publishing": int(not self.is_finished),
            "seats": 1,
            "finished": int(self.is_finished),
        }

    def _prime(self) -> None:
        while self._unprimed and self._priming < _PRIME_AT_ONCE:
            self._priming += 1
            channel = self._unprimed.pop()
            self._send(channel, now_us(), self._next_api(channel), is_prime=True)

    def _publish(self, intended_us: int) -> None:
        """Send one scheduled publish, or let it wait for a free connection."""
        now = now_us()
        counts = self._recorder.counts
        counts["publish_scheduled"] += 1
        self._recorder.histograms["publish_late"].record(now - intended_us)
        patience_us = self.session.plan.limits.publish_timeout_s * 1e6
        load = self.session.plan.load
        if load.distribution == "zipf":
            channel = self._rng.choices(self._channels, cum_weights=self._weights)[0]
        else:
            channel = next(self._turns)
        via = self._next_api(channel)
        if self._pools[via].waiting > max(self._order.rate, 1.0) * patience_us / 1e6:
            tally = self._recorder.apis[via]
            tally.counts["publish_failed"] += 1
            tally.error(
                "publish: never sent, all connections busy",
                f"{load.publish_connections} connections wait for answers",
            )
            return
        self._send(channel, intended_us, via)

    def _next_api(self, channel: int) -> int:
        """Return which URL the next publish of a channel goes to: its own turn through all of them.

        So every channel travels every way between nodes, and is in order over all of them.
        """
        sent = self._sent[channel]
        self._sent[channel] = sent + 1
        return (channel + sent) % len(self._pools)

    def _send(self, channel: int, intended_us: int, via: int, *, is_prime: bool = False) -> None:
        fate = _Fate(self, channel, intended_us, via, is_prime=is_prime)
        self._pools[via].send(fate.make, fate.answered)

    def make_request(self, channel: int, intended_us: int, via: int) -> tuple[bytes, int, int]:
        """Build the request at the moment it leaves: (bytes, sequence number, departure time)."""
        session = self.session
        seq, floor = self._sequence.begin(channel)
        offset = session.offset_us
        sent_us = now_us() + offset
        stamp = Stamp(channel, seq, floor, intended_us + offset, sent_us)
        payload = make_payload(session.mark, stamp, session.plan.load.payload_bytes)
        name = self.profile.channel_name(channel)
        data = self.profile.encode(channel, payload)
        body = pusher.event_body(name, session.plan.event_name, data)
        target = session.target
        api = target.apis[via]
        signed = pusher.signed_target(
            target.credentials, "POST", self._path, body, int(time.time()), prefix=api.prefix
        )
        headers = [*_HEADERS, *target.headers]
        request = make_request("POST", signed, api.host_header, headers, body)
        return request, seq, sent_us

    def settle(self, fate: _Fate, status: int, body: bytes, reason: str) -> None:
        """Enter what became of a publish."""
        tally = self._recorder.apis[fate.via]
        now_run_us = now_us() + self.session.offset_us
        if fate.is_prime:
            self._priming -= 1
        status = pusher.meant_status(status, body)
        succeeded = 200 <= status < 300
        if fate.seq >= 0:
            self._sequence.end(fate.channel, fate.seq)
            answered_us = now_run_us if succeeded else FAILED
            row = (fate.channel, fate.seq, fate.sent_us, answered_us, fate.via)
            self._recorder.publishes.append(row)
        if not succeeded:
            tally.counts["publish_failed"] += 1
            label = f"HTTP {status}" if status else reason
            text = body.decode("utf-8", "replace").strip()
            tally.error(f"publish: {label}", f"{label} {text}".strip())
            return
        if not fate.is_prime:
            tally.counts["publish_ok"] += 1
            latency_us = now_run_us - fate.intended_us - self.session.offset_us
            tally.histograms["publish"].record(latency_us)
            tally.histograms["publish_service"].record(now_run_us - fate.sent_us)


class _Fate:
    """One publish from its schedule to its answer."""

    __slots__ = ("_publisher", "channel", "intended_us", "is_prime", "sent_us", "seq", "via")

    def __init__(
        self, publisher: Publisher, channel: int, intended_us: int, via: int, *, is_prime: bool
    ) -> None:
        self._publisher = publisher
        self.via = via
        self.channel = channel
        self.intended_us = intended_us
        self.is_prime = is_prime
        self.seq = -1
        self.sent_us = 0

    def make(self) -> bytes:
        """Return the request's bytes; called when it leaves."""
        request, self.seq, self.sent_us = self._publisher.make_request(
            self.channel, self.intended_us, self.via
        )
        return request

    def answered(self, status: int, body: bytes, reason: str) -> None:
        """Pass the answer on."""
        self._publisher.settle(self, status, body, reason)


def _zipf_weights(channels: list[int], exponent: float) -> list[float]:
    """Return cumulative weights: the channel with number k gets a share of 1 / (k + 1)^exponent."""
    return list(itertools.accumulate((channel + 1) ** -exponent for channel in channels))
