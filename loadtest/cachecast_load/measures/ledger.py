"""The ledger: who had to receive what, and who did.

Two books are kept and compared at the end. The *publish log* says, per channel, when each sequence
number left and when the target answered for it. A *membership* says what one subscriber saw of one
channel between the moment its subscription was confirmed and the moment it left. From both follows,
for each subscriber, the exact range it was owed; nothing is sampled.

    owed      published and answered with success, sent after the subscription was confirmed, and
              answered at least a grace before the subscriber left
    lost      owed and never received
    conflated on a cache channel, owed, not received, but replaced by a newer value that was:
              right for a subscriber that reads too slowly, if the target says it does that
              (`figures.split_superseded`)
    doubled   received again while it is still the newest one
    reordered received after a newer one, although the older had been answered before the newer
              was sent
    stale     an old value after a fresh one: received again later, or older than the subscription
    foreign   a sequence number that nobody published

Where a deployment has several nodes it is known besides at which of them a subscriber was, and by
which URL an event went in; *ways* are the pairs of the two, so that a link between nodes that loses
events has a name.

What was in flight while someone joined or left is neither owed nor forbidden. This module knows no
clock and no socket; times are microseconds of the run's clock.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, field, fields

MAX_EXAMPLES = 5
_NOT_SUMS = {"examples", "oldest_us", "youngest_miss_us"}
UNANSWERED = 0
FAILED = -1
NOWHERE = 255  # by which URL a publish went in that failed, or whose fate is not known yet


class Membership:
    """What one subscriber saw of one channel. The hot half of the ledger: one call per event.

    Args:
        channel: its number.
        subscriber: its number.
        since_us: when the subscription was confirmed.
        socket: at which of the targets.
    """

    __slots__ = (
        "channel",
        "doubled",
        "first",
        "floor",
        "gaps",
        "newest",
        "received",
        "reordered",
        "since_us",
        "socket",
        "stale",
        "subscriber",
        "until_us",
    )

    def __init__(self, channel: int, subscriber: int, since_us: int, socket: int = 0) -> None:
        self.channel = channel
        self.subscriber = subscriber
        self.socket = socket
        self.since_us = since_us
        self.until_us = 0
        self.first = -1
        self.newest = -1
        self.floor = -1
        self.received = 0
        self.doubled = 0
        self.reordered = 0
        self.stale = 0
        self.gaps: list[list[int]] = []

    def observe(self, seq: int, floor: int, sent_us: int) -> None:
        """Enter one received event; `sent_us` tells whether it is older than the subscription."""
        newest = self.newest
        if seq == newest + 1 or newest < 0:
            self.newest = seq
            self.received += 1
            if newest < 0:
                self.first = seq
        elif seq > newest:
            self.gaps.append([newest + 1, seq - 1])
            self.newest = seq
            self.received += 1
        elif seq == newest:
            self.doubled += 1
        else:
            self._observe_older(seq, sent_us)
        if floor > self.floor:  # noqa: PLR1730 - max() is a call, four times the price
            self.floor = floor

    def _observe_older(self, seq: int, sent_us: int) -> None:
        violates = seq <= self.floor
        if seq < self.first:
            if violates and sent_us < self.since_us:
                self.stale += 1
                return
            if self.first > seq + 1:
                self.gaps.insert(0, [seq + 1, self.first - 1])
            self.first = seq
        elif not self._fill(seq):
            self.stale += 1
            return
        self.received += 1
        self.reordered += violates

    def _fill(self, seq: int) -> bool:
        """Take `seq` out of the gaps, newest first; False when it was not missing."""
        gaps = self.gaps
        for index in range(len(gaps) - 1, -1, -1):
            low, high = gaps[index]
            if low <= seq <= high:
                rest = [part for part in ([low, seq - 1], [seq + 1, high]) if part[0] <= part[1]]
                gaps[index : index + 1] = rest
                return True
            if high < seq:
                return False
        return False

    @property
    def key(self) -> tuple[int, int, int]:
        """What no other membership of the run has in common with it."""
        return self.subscriber, self.channel, self.since_us

    def to_wire(self) -> list[object]:
        """Return the membership as a flat list, for a worker to send."""
        return [getattr(self, name) for name in self.__slots__]

    @classmethod
    def from_wire(cls, wire: Sequence[object]) -> Membership:
        """Rebuild what `to_wire` made."""
        membership = cls.__new__(cls)
        for name, value in zip(cls.__slots__, wire, strict=True):
            setattr(membership, name, value)
        return membership


def observe_by_all(members: Iterable[Membership], seq: int, floor: int, sent_us: int) -> None:
    """Enter one event that several subscribers received, as `Membership.observe` would."""
    before = seq - 1
    for member in members:
        # The ordinary case by hand: a call costs twice what it does.
        if member.newest == before and seq:
            member.newest = seq
            member.received += 1
            if floor > member.floor:  # noqa: PLR1730
                member.floor = floor
        else:
            member.observe(seq, floor, sent_us)


@dataclass(frozen=True, slots=True)
class Join:
    """One subscription to a cache channel and what it was answered with.

    `seq` is the sequence number of the replayed value, -1 for `pusher:cache_miss`.
    """

    channel: int
    subscriber: int
    asked_us: int
    answered_us: int
    seq: int
    socket: int = 0

    def to_wire(self) -> tuple[int, ...]:
        """Return the fields in order, for a worker to send; `Join(*wire)` reads them."""
        return astuple(self)


class ChannelLog:
    """The publishes of one channel: index is the sequence number, times in microseconds."""

    __slots__ = ("answered_us", "entrances", "sent_us", "via")

    def __init__(self) -> None:
        self.sent_us = array("q")
        self.answered_us = array("q")
        # By which URL each went in; a byte each, so that counting a range is one call.
        self.via = bytearray()
        self.entrances: set[int] = set()

    def enter(self, seq: int, sent_us: int, answered_us: int, via: int = 0) -> None:
        """Enter the fate of one publish; `answered_us` is `FAILED` where it was refused or died."""
        while len(self.sent_us) <= seq:
            self.sent_us.append(sent_us)
            self.answered_us.append(UNANSWERED)
            self.via.append(NOWHERE)
        self.sent_us[seq] = sent_us
        self.answered_us[seq] = answered_us
        if answered_us != FAILED:
            self.via[seq] = via
            self.entrances.add(via)

    def owed(self, since_us: int, answered_before_us: int) -> tuple[int, int]:
        """Return the first and last sequence number owed in an interval; none if last < first."""
        low = bisect_left(self.sent_us, since_us)
        high = bisect_right(self.sent_us, answered_before_us) - 1
        # A failed publish at the end hides nothing: failures() subtracts it.
        while high >= low and not (
            self.answered_us[high] == FAILED or 0 < self.answered_us[high] <= answered_before_us
        ):
            high -= 1
        return low, high

    def count(self, ranges: Iterable[tuple[int, int]], via: int | None = None) -> int:
        """Return how many publishes of the closed ranges succeeded: all, or those by one URL."""
        if via is not None:
            return sum(self.via.count(via, low, high + 1) for low, high in ranges)
        return sum(high - low + 1 - self.via.count(NOWHERE, low, high + 1) for low, high in ranges)

    def newest_answered(self, before_us: int) -> int:
        """Return the newest sequence number that had been answered with success, -1 if none had."""
        seq = bisect_right(self.sent_us, before_us) - 1
        while seq >= 0 and not 0 < self.answered_us[seq] <= before_us:
            seq -= 1
        return seq


@dataclass(slots=True)
class Way:
    """What went in by one URL and was owed to the subscribers of one target.

    Attributes:
        owed: events.
        lost: of these, what never came.
        superseded: of these, what did not come but was replaced on a cache channel by a newer one.
    """

    owed: int = 0
    lost: int = 0
    superseded: int = 0


@dataclass(slots=True)
class Findings:
    """The sums of an audit, and the first few cases of each fault by name.

    Attributes:
        oldest_us: the least age that the oldest value served to a joiner can have had.
        youngest_miss_us: the greatest age that the youngest value a joiner missed can have had;
            0 where none was missed.
    """

    expected: int = 0
    received: int = 0
    lost: int = 0
    superseded: int = 0
    doubled: int = 0
    reordered: int = 0
    stale: int = 0
    foreign: int = 0
    memberships: int = 0
    slow_missed: int = 0
    echoed: int = 0
    hits: int = 0
    misses: int = 0
    false_misses: int = 0
    stale_joins: int = 0
    expired_served: int = 0
    oldest_us: int = 0
    youngest_miss_us: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, fault: str, text: str) -> None:
        """Keep `text` as an example of a fault if it is one of the first."""
        kept = self.examples.setdefault(fault, [])
        if len(kept) < MAX_EXAMPLES:
            kept.append(text)

    def note_age(self, *, oldest_us: int = 0, youngest_miss_us: int = 0) -> None:
        """Keep the age of a value that was served, or of one that was gone, if it is extreme."""
        self.oldest_us = max(self.oldest_us, oldest_us)
        if youngest_miss_us:
            self.youngest_miss_us = min(self.youngest_miss_us or youngest_miss_us, youngest_miss_us)

    def add(self, other: Findings) -> None:
        """Add another's sums to these, and its examples as far as there is room."""
        self.note_age(oldest_us=other.oldest_us, youngest_miss_us=other.youngest_miss_us)
        for entry in fields(self):
            if entry.name not in _NOT_SUMS:
                total = getattr(self, entry.name) + getattr(other, entry.name)
                setattr(self, entry.name, total)
        for fault, texts in other.examples.items():
            for text in texts:
                self.note(fault, text)


class Auditor:
    """Compares memberships and joins with the publish log and sums up what is wrong.

    Attributes:
        logs: channel number -> its publishes.
        by_socket: target -> what was found among its subscribers.
        ways: (number of the URL by which events went in, target) -> what became of them.

    Args:
        channel_name: channel number -> name, for the examples.
        is_cache: channel number -> whether the target keeps its last value.
        grace_us: how long a publish may take after its answer before a leaving subscriber is
            owed it.
        ttl_us: how long the target keeps a cached value.
        patience_us: Age from which an event that has not come to a membership that goes on counts
            as missed; `grace_us` at least.
        clock_error_us: how far the clocks of two generators may disagree.
        is_slow: subscriber number -> whether it reads slowly on purpose; what such a subscriber
            missed is counted apart.
        socket_name: target -> what the examples say of it after a subscriber's number.
    """

    def __init__(
        self,
        *,
        channel_name: Callable[[int], str],
        is_cache: Callable[[int], bool],
        grace_us: int,
        ttl_us: int,
        patience_us: int = 0,
        clock_error_us: int = 0,
        is_slow: Callable[[int], bool] = lambda _subscriber: False,
        socket_name: Callable[[int], str] = lambda _socket: "",
    ) -> None:
        self.logs: dict[int, ChannelLog] = {}
        self.by_socket: defaultdict[int, Findings] = defaultdict(Findings)
        self.ways: defaultdict[tuple[int, int], Way] = defaultdict(Way)
        self.clock_error_us = clock_error_us
        self._channel_name = channel_name
        self._is_cache = is_cache
        self._is_slow = is_slow
        self._socket_name = socket_name
        self._grace_us = grace_us
        self._ttl_us = ttl_us
        self._patience_us = max(patience_us, grace_us)
        self._memberships: list[Membership] = []
        self._joins: list[Join] = []
        self._missed: dict[tuple[int, int, int], int] = {}

    @property
    def lost_so_far(self) -> int:
        """How many owed events have not come: of what was settled, and of what was looked at."""
        return self.findings.lost + sum(self._missed.values())

    def look(self, memberships: Iterable[Membership]) -> None:
        """See what memberships that go on have missed, without settling them.

        What is replaced on a cache channel is not counted: only the end tells it from conflation.

        Args:
            memberships: As they are just now, with the time as their end.
        """
        for member in memberships:
            log = self.logs.get(member.channel)
            if log is None or member.subscriber < 0 or self._is_slow(member.subscriber):
                continue
            low, high = log.owed(
                member.since_us + self.clock_error_us,
                member.until_us - self._patience_us - self.clock_error_us,
            )
            missed = 0
            if high >= low:
                replaced, never = _missing(member, low, high)
                missed = log.count(never if self._is_cache(member.channel) else replaced + never)
            if missed:
                self._missed[member.key] = missed
            else:
                self._missed.pop(member.key, None)

    def enter_publishes(self, publishes: Iterable[Sequence[int]]) -> None:
        """Enter (channel, seq, sent_us, answered_us, via) rows as workers report them.

        They may come in any order. `via` says by which URL, 0 where it is left out.
        """
        for channel, *fate in publishes:
            log = self.logs.get(channel)
            if log is None:
                log = self.logs[channel] = ChannelLog()
            log.enter(*fate)

    def enter_memberships(self, memberships: Iterable[Membership]) -> None:
        """Queue ended memberships; `settle` judges them."""
        self._memberships.extend(memberships)

    def enter_joins(self, joins: Iterable[Join]) -> None:
        """Queue answered subscriptions to cache channels; `settle` judges them."""
        self._joins.extend(joins)

    def settle(self, before_us: int) -> None:
        """Judge everything that ended before `before_us` and forget it.

        Call it with a time by which all publish logs up to then have come in, so that a run of
        hours holds seconds of unsettled entries and not hours of them.
        """
        waiting = [entry for entry in self._memberships if entry.until_us >= before_us]
        for membership in self._memberships:
            if membership.until_us < before_us:
                self._judge(membership)
        self._memberships = waiting
        unsettled = [join for join in self._joins if join.answered_us >= before_us]
        for join in self._joins:
            if join.answered_us < before_us:
                self._judge_join(join)
        self._joins = unsettled

    def finish(self) -> Findings:
        """Judge all that is left and return the findings; call once, after the last report."""
        self.settle(1 << 62)
        return self.findings

    @property
    def findings(self) -> Findings:
        """What was found so far, over all targets."""
        total = Findings()
        for _, findings in sorted(self.by_socket.items()):
            total.add(findings)
        return total

    def _judge(self, member: Membership) -> None:
        self._missed.pop(member.key, None)
        findings = self.by_socket[member.socket]
        if member.subscriber < 0:
            # The sender of a channel's client events: owed nothing, and nothing may come back.
            findings.echoed += member.received
            return
        findings.memberships += 1
        findings.received += member.received
        for fault in ("doubled", "reordered", "stale"):
            count = getattr(member, fault)
            if count:
                setattr(findings, fault, getattr(findings, fault) + count)
                findings.note(fault, f"{self._who(member)} saw {count} {fault}")
        log = self.logs.get(member.channel)
        published = len(log.sent_us) if log else 0
        if member.newest >= published:
            findings.foreign += 1
            findings.note("foreign", f"{self._who(member)} got {member.newest} of {published}")
        if log is not None:
            self._judge_completeness(member, log)

    def _judge_completeness(self, member: Membership, log: ChannelLog) -> None:
        findings = self.by_socket[member.socket]
        low, high = log.owed(
            member.since_us + self.clock_error_us,
            member.until_us - self._grace_us - self.clock_error_us,
        )
        if high < low:
            return
        findings.expected += log.count([(low, high)])
        replaced, never = _missing(member, low, high)
        if self._is_slow(member.subscriber):
            findings.slow_missed += log.count(replaced + never)
            return
        if not self._is_cache(member.channel):
            replaced, never = [], replaced + never
        n_replaced, n_never = log.count(replaced), log.count(never)
        findings.superseded += n_replaced
        findings.lost += n_never
        if n_replaced:
            findings.note("superseded", self._gap_text(member, replaced))
        if n_never:
            findings.note("lost", self._gap_text(member, never))
        for via in log.entrances:
            way = self.ways[via, member.socket]
            way.owed += log.count([(low, high)], via)
            if n_replaced or n_never:
                way.lost += log.count(never, via)
                way.superseded += log.count(replaced, via)

    def _judge_join(self, join: Join) -> None:
        findings = self.by_socket[join.socket]
        log = self.logs.get(join.channel)
        due = log.newest_answered(join.asked_us - self.clock_error_us) if log else -1
        if join.seq < 0:
            findings.misses += 1
            if log and due >= 0:
                findings.note_age(youngest_miss_us=join.answered_us - log.sent_us[due])
            if log and due >= 0 and join.answered_us < log.sent_us[due] + self._ttl_us:
                findings.false_misses += 1
                findings.note("false_miss", self._join_text(join, f"a miss, {due} was cached"))
            return
        findings.hits += 1
        if join.seq < due:
            findings.stale_joins += 1
            findings.note("stale_join", self._join_text(join, f"value {join.seq}, {due} was newer"))
        if log and join.seq < len(log.sent_us):
            answered_us = log.answered_us[join.seq]
            if answered_us > 0:
                findings.note_age(oldest_us=join.asked_us - answered_us)
            dead_us = answered_us + self._ttl_us + self.clock_error_us
            if answered_us > 0 and join.asked_us > dead_us:
                findings.expired_served += 1
                over_ms = (join.asked_us - dead_us) / 1000
                findings.note(
                    "expired", self._join_text(join, f"a value dead for {over_ms:.0f} ms")
                )

    def _who(self, member: Membership) -> str:
        where = self._socket_name(member.socket)
        return f"subscriber {member.subscriber}{where} on {self._channel_name(member.channel)}"

    def _gap_text(self, member: Membership, gaps: list[tuple[int, int]]) -> str:
        shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in gaps[:4])
        return f"{self._who(member)} never got {shown}{' ...' if len(gaps) > 4 else ''}"

    def _join_text(self, join: Join, what: str) -> str:
        where = self._socket_name(join.socket)
        return (
            f"subscriber {join.subscriber}{where} joined {self._channel_name(join.channel)}: {what}"
        )


def _missing(
    member: Membership, low: int, high: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the owed ranges not received: those a newer event replaced, and those none did."""
    if member.newest < 0:
        return [], [(low, high)]
    replaced = [(low, min(high, member.first - 1))] if member.first > low else []
    for first, last in member.gaps:
        if last >= low and first <= high:
            replaced.append((max(first, low), min(last, high)))
    never = [(max(low, member.newest + 1), high)] if member.newest < high else []
    return replaced, never
