"""Judge a recorded history of one channel, knowing nothing of how the broker works.

What was published is a list in the order that the channel gave it; what was heard is one
:class:`Listening` for each subscription, from its first frame to its end. Times are of one clock.
All that is known of an action is an interval, so every rule is worded to be sound: it accuses only
where no order of the hidden instants could explain what was seen.

The rules, as the promise of the product has them: a subscriber sees value k, then k+1, and so on;
never an old value after a newer one, never one twice, never a miss when a publish had been
answered, never a value at or past its deadline. A slow reader of a cache channel may skip values,
and must still end with the newest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MISS", "Heard", "Listening", "Published", "check"]

#: What is heard in place of an id where the channel was empty.
MISS = "<miss>"


@dataclass
class Published:
    """One publication.

    Attributes:
        id: unlike all others of its channel.
        started: before it was handed over.
        answered: when the publisher had its answer; infinity if it never had.
    """

    id: str
    started: float
    answered: float


@dataclass
class Heard:
    """One thing that a subscriber heard: an id or a miss; ``at`` may be late, never early."""

    id: str
    at: float


@dataclass
class Listening:
    """One subscription of one client.

    Attributes:
        who: the client.
        asked: before the subscription was sent.
        confirmed: when its success had been heard; infinity if it was not.
        is_cache: whether the channel is a cache channel.
        is_slow: whether the client has ever stopped reading during it.
        is_over: whether it ended before the history did.
        heard: in order.
    """

    who: str
    asked: float
    confirmed: float = inf
    is_cache: bool = True
    is_slow: bool = False
    is_over: bool = False
    heard: list[Heard] = field(default_factory=list)


def check(
    order: Sequence[Published], listenings: Sequence[Listening], ttl_s: float, end: float = inf
) -> list[str]:
    """What is wrong with the history of one channel; empty if nothing is.

    Args:
        order: of the channel's publications.
        listenings: of all clients; of each client in the order in which it subscribed.
        ttl_s: how long a value lives.
        end: when the history ended and everything had arrived.
    """
    faults = _check_order(order)
    position = {publication.id: number for number, publication in enumerate(order)}
    newest: dict[str, int] = {}
    for listening in listenings:
        judge = _Judge(order, position, listening, ttl_s, newest.get(listening.who, -1))
        faults += judge.judge(end)
        newest[listening.who] = max(judge.seen, newest.get(listening.who, -1))
    return faults


def _check_order(order: Sequence[Published]) -> list[str]:
    """No publication may stand before one that had been answered when it started."""
    faults = []
    earliest_answer = inf
    for publication in reversed(order):
        if earliest_answer < publication.started:
            faults.append(f"{publication.id} stands before one that was answered earlier")
        earliest_answer = min(earliest_answer, publication.answered)
    return faults


class _Judge:
    """Judges one subscription."""

    def __init__(
        self,
        order: Sequence[Published],
        position: dict[str, int],
        listening: Listening,
        ttl_s: float,
        seen: int,
    ) -> None:
        self.order = order
        self.position = position
        self.listening = listening
        self.ttl_s = ttl_s
        self.seen = seen
        self.faults: list[str] = []

    def accuse(self, text: str) -> None:
        story = [heard.id for heard in self.listening.heard]
        self.faults.append(f"{self.listening.who}: {text}; heard {story[:20]}")

    def judge(self, end: float) -> list[str]:
        listening, values = self.listening, []
        for number, heard in enumerate(listening.heard):
            if heard.id == MISS:
                self._check_miss(number, heard)
            elif heard.id not in self.position:
                self.accuse(f"{heard.id} was never published")
            else:
                values.append(heard)
        is_answered = listening.confirmed < inf and not (listening.is_slow or listening.is_over)
        if listening.is_cache and is_answered and not listening.heard:
            self.accuse("neither a value nor a miss")
        if values:
            self._check_first(values[0])
            self._check_steps(values)
        self._check_end(values, end)
        return self.faults

    def _check_miss(self, number: int, heard: Heard) -> None:
        if number or not self.listening.is_cache:
            self.accuse("a miss that is not the first thing heard")
        for publication in self.order:
            is_answered = publication.answered < self.listening.asked
            if is_answered and heard.at < publication.started + self.ttl_s:
                self.accuse(f"a miss although {publication.id} had been answered")
                return

    def _check_first(self, heard: Heard) -> None:
        listening, first = self.listening, self.position[heard.id]
        was_empty = listening.heard[0].id == MISS
        publication = self.order[first]
        if publication.started > heard.at:
            self.accuse(f"{heard.id} was heard before it was published")
        if first < self.seen or (first == self.seen and not listening.is_cache):
            self.accuse(f"{heard.id} after {self.order[self.seen].id}")
        is_old = publication.answered < listening.asked
        if is_old and (was_empty or not listening.is_cache):
            self.accuse(f"{heard.id} is older than the subscription")
        if is_old and listening.asked >= publication.answered + self.ttl_s:
            self.accuse(f"{heard.id} was dead when the subscription was asked for")
        for later in self.order[first + 1 :]:
            if later.answered < listening.asked:
                self.accuse(f"{heard.id} is stale: {later.id} had been answered")
                break
        if listening.is_slow and listening.is_cache:
            return
        for earlier in self.order[:first]:
            if earlier.started > listening.confirmed:
                self.accuse(f"{earlier.id} is missing before {heard.id}")
                break

    def _check_steps(self, values: Sequence[Heard]) -> None:
        may_skip = self.listening.is_slow and self.listening.is_cache
        last: int | None = None
        for heard in values:
            at = self.position[heard.id]
            if last is not None and (at <= last or (at != last + 1 and not may_skip)):
                self.accuse(f"{heard.id} after {self.order[last].id}")
            if self.order[at].started > heard.at:
                self.accuse(f"{heard.id} was heard before it was published")
            last = at
            self.seen = max(self.seen, at)

    def _check_end(self, values: Sequence[Heard], end: float) -> None:
        """Whoever listened to the end has heard the newest, unless it died while it waited."""
        listening = self.listening
        if listening.is_over or not self.order or listening.confirmed == inf:
            return
        newest = self.order[-1]
        if newest.started <= listening.confirmed or newest.answered == inf:
            return
        if listening.is_slow and newest.started + self.ttl_s <= end:
            return
        if not values or values[-1].id != newest.id:
            self.accuse(f"the newest, {newest.id}, is missing at the end")
