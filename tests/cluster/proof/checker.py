"""Judge a history, knowing nothing of how nodes, bus or engine work.

Every rule is worded to be sound: it accuses only where no order of the hidden instants could
explain what was seen. The order of a channel is nobody's to tell, so it is found: one publication
stands before another if it was known (answered, or heard by anybody) before the other was sent, if
one subscriber heard it before the other, or if a subscription found the other although this one
had been known when it was asked for. Where these contradict each other there is no order.

The rules of values are those of the product: k, then k+1; never an old one after a newer one that
anybody had seen or any publisher had been answered for, never one twice, never a miss while a
publish had been answered, never one at or past its deadline. What the product does not promise is
forgiven: what passes a node by while it is cut off (:class:`Disturbance`), and what an engine
forgot that no living node had (:class:`Loss`). A subscriber of a plain channel may hear what was
answered for just before it came: nothing is older there than what it was told, for it was told
nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING

from tests.cluster.proof.graph import find_cycle
from tests.cluster.proof.history import MISS
from tests.cluster.proof.rosters import check_rosters
from tests.cluster.proof.verdict import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.cluster.proof.history import History, Listening, Loss, Publication

__all__ = ["check", "count_near"]

#: Seconds before a loss within which a node that was published through offers what it published.
#: The product keeps it for five, and a node may notice late.
RECENT_S = 3.0

#: Seconds by which a value may go early: clocks are known by the slowest answer.
EARLY_S = 1.0

#: Seconds that a delivery may take on a busy machine before it counts as lost.
LAG_S = 3.0

#: Publications that are compared with a subscription one by one; older ones stand before these.
N_LATEST = 30


def check(history: History) -> list[Violation]:
    """What is wrong with a history; empty if nothing is."""
    publications: dict[str, list[Publication]] = defaultdict(list)
    listenings: dict[str, list[Listening]] = defaultdict(list)
    for publication in history.publications:
        publications[publication.channel].append(publication)
    for listening in history.listenings:
        listenings[listening.channel].append(listening)
    found = []
    for channel in sorted(publications.keys() | listenings.keys()):
        found += _Channel(history, channel, publications[channel], listenings[channel]).check()
        if channel.startswith("presence-"):
            found += check_rosters(history, channel, listenings[channel])
    return found


def count_near(history: History, within_s: float) -> int:
    """Confirmed subscriptions beside a publish to their channel from another node."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    nodes = {publication.node for publication in history.publications}
    for publication in history.publications:
        if not publication.sender:
            times[publication.channel, publication.node].append(publication.started)
    n = 0
    for one in history.listenings:
        if one.confirmed == inf:
            continue
        for node in nodes - {one.node}:
            near = times[one.channel, node]
            at = bisect_left(near, one.asked - within_s)
            if at < len(near) and near[at] <= one.asked + within_s:
                n += 1
                break
    return n


@dataclass
class _Known:
    """A publication that came about.

    Attributes:
        it: what it was.
        at: when it was known: answered, or heard by somebody.
        forgotten: since when it may be forgotten.
    """

    it: Publication
    at: float
    forgotten: float = inf
    heard_on: list[tuple[Listening, float]] = field(default_factory=list)


class _Channel:
    """Judges one channel."""

    def __init__(
        self,
        history: History,
        name: str,
        publications: Sequence[Publication],
        listenings: Sequence[Listening],
    ) -> None:
        self.history = history
        self.name = name
        self.is_cache = name.startswith("cache-") or "-cache-" in name
        self.ttl_s = history.ttl_s.get(name, inf)
        self.listenings = listenings
        self.found: list[Violation] = []
        self.all = {publication.id: publication for publication in publications}
        self.known = self._find_known()
        self.by_known = sorted(self.known.values(), key=lambda one: one.at)
        self.known_times = [one.at for one in self.by_known]
        self.by_start = sorted(self.known.values(), key=lambda one: one.it.started)
        self.start_times = [one.it.started for one in self.by_start]
        self.earliest_after = self._earliest_after()

    def check(self) -> list[Violation]:
        """All that is wrong with it."""
        if self.is_cache:
            for loss in self.history.losses:
                self._forget(loss)
        for listening in self.listenings:
            self._check_story(listening)
            if self.is_cache:
                self._check_beginning(listening)
            self._check_gaps(listening)
        self._check_order()
        return self.found

    def accuse(self, rule: str, text: str, at: float, *who: Listening) -> None:
        """Write down a violation."""
        self.found.append(Violation(rule, self.name, text, at, tuple(one.who for one in who)))

    # --- what is known

    def _find_known(self) -> dict[str, _Known]:
        known = {
            publication.id: _Known(publication, publication.answered)
            for publication in self.all.values()
            if publication.answered < inf
        }
        for listening in self.listenings:
            for name, at in listening.heard:
                publication = self.all.get(name)
                if publication is None:
                    continue
                one = known.setdefault(name, _Known(publication, at))
                one.at = min(one.at, at)
                one.heard_on.append((listening, at))
        return known

    def _earliest_after(self) -> list[_Known]:
        """For each by start: of it and all that started later, the one that was known first."""
        earliest: list[_Known] = []
        for one in reversed(self.by_start):
            earliest.append(min(one, earliest[-1], key=lambda it: it.at) if earliest else one)
        return earliest[::-1]

    def _known_before(self, at: float) -> Iterator[_Known]:
        """What was known before a time, the latest first."""
        for number in range(bisect_left(self.known_times, at) - 1, -1, -1):
            yield self.by_known[number]

    def _forget(self, loss: Loss) -> None:
        for one in self.known.values():
            if one.it.started < loss.end and not self._is_safe(one, loss):
                one.forgotten = min(one.forgotten, loss.start)

    def _is_safe(self, one: _Known, loss: Loss) -> bool:
        """Whether a living node certainly had it when the engine forgot."""
        if one.at >= loss.start:
            # Done while the engine forgot: answered before or after, nobody can tell.
            return False
        is_recent = one.it.started > loss.start - RECENT_S
        has_lived = one.it.node not in loss.absent and not any(
            node == one.it.node and one.it.started <= at <= loss.end
            for node, at in self.history.deaths
        )
        if is_recent and one.it.answered < loss.start and has_lived:
            return True
        return any(
            at < loss.start and listening.ended > loss.end and listening.node not in loss.absent
            for listening, at in one.heard_on
        )

    # --- the rules

    def _check_story(self, listening: Listening) -> None:
        """What one subscription heard, by itself."""
        seen: set[str] = set()
        for number, (name, at) in enumerate(listening.heard):
            if name == MISS:
                if number or not self.is_cache:
                    self.accuse("miss", "a miss that is not the first thing", at, listening)
                continue
            publication = self.all.get(name)
            if publication is None:
                self.accuse("unknown", f"{name} was never published here", at, listening)
                continue
            if publication.is_refused:
                self.accuse("refused", f"{name} was refused, and heard", at, listening)
            if publication.started > at:
                self.accuse("unknown", f"{name} was heard before it was sent", at, listening)
            if publication.sender == listening.who:
                self.accuse("sender", f"{name} came back to who sent it", at, listening)
            if name in seen:
                self.accuse("twice", f"{name} was heard twice", at, listening)
            seen.add(name)

    def _check_beginning(self, listening: Listening) -> None:
        """The first thing heard on a cache channel."""
        if not listening.heard:
            until = min(listening.ended, self.history.end)
            if listening.confirmed + LAG_S < until and self.history.is_calm(
                listening.node, listening.asked, until
            ):
                text = "neither a value nor a miss"
                self.accuse("silence", text, listening.confirmed, listening)
            return
        name, at = listening.heard[0]
        if name == MISS:
            self._check_miss(listening, at)
        elif name in self.known:
            self._check_fresh(listening, self.known[name], at)

    def _check_miss(self, listening: Listening, at: float) -> None:
        for one in self._known_before(listening.asked):
            if one.at + self.ttl_s <= at:
                return
            is_value = not one.it.sender
            if is_value and at < min(one.forgotten, one.it.started + self.ttl_s - EARLY_S):
                text = f"a miss although {one.it.id} was {self._how_known(one)}"
                self.accuse("miss", text, at, listening)
                return

    def _check_fresh(self, listening: Listening, first: _Known, at: float) -> None:
        asked = listening.asked
        if asked >= first.at + self.ttl_s:
            past_s = asked - first.at - self.ttl_s
            text = f"{first.it.id} was served {past_s:.3f} s past its deadline at least"
            self.accuse("deadline", text, at, listening)
        for one in self._known_before(asked):
            if one.at <= first.at:
                return
            if one.it.started > first.at and at < one.forgotten and not one.it.sender:
                text = f"{first.it.id} is stale: {one.it.id} was {self._how_known(one)}"
                self.accuse("stale", text, at, listening)
                return

    def _how_known(self, one: _Known) -> str:
        return "answered" if one.it.answered == one.at else "seen"

    def _check_gaps(self, listening: Listening) -> None:
        """Nothing may be missing between two things heard, nor at the end."""
        if listening.confirmed == inf:
            return
        last_at, after = listening.asked, listening.confirmed
        for name, at in listening.heard:
            if (one := self.known.get(name)) is None:
                continue
            self._check_gap(listening, (last_at, at), after, one.it.started, name)
            last_at, after = at, max(after, one.at)
        end = min(listening.ended, self.history.end)
        if end < inf:
            is_there = listening.ended >= self.history.end
            self._check_gap(
                listening, (last_at, end), after, end - LAG_S, "its end", is_final=is_there
            )

    def _check_gap(
        self,
        listening: Listening,
        heard: tuple[float, float],
        after: float,
        before: float,
        what: str,
        *,
        is_final: bool = False,
    ) -> None:
        """Accuse if something certainly lies between two things.

        At the end of the history a subscriber of a cache channel must have the newest, whatever
        it went through.
        """
        at = bisect_left(self.start_times, after + 1e-9)
        while at < len(self.by_start):
            one = self.earliest_after[at]
            if one.at >= before:
                return
            if one.it.sender != listening.who:
                break
            # Its own client event; look behind it.
            at = self.by_start.index(one, at) + 1
        else:
            return
        if is_final and self.is_cache and one.at < one.forgotten < inf:
            return
        start, end = heard
        if self.history.is_calm(listening.node, start, end):
            self.accuse("gap", f"{one.it.id} is missing before {what}", end, listening)
        elif is_final and self.is_cache and one.it.started + self.ttl_s > end:
            self.accuse("gap", f"{one.it.id} is missing at the end", end, listening)

    # --- the order

    def _check_order(self) -> None:
        """Whether there is an order at all, and if not, a shortest contradiction."""
        edges, why = self._edges()
        names = [one.it.id for one in self.by_known]
        for cycle in find_cycle(edges):
            pairs = list(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
            reasons = [why[pair] for pair in pairs if pair in why]
            is_stale = any(reason[0] == "stale" for reason in reasons)
            told = " > ".join(names[number] for number in cycle if number < len(names))
            text = f"no order explains {told}: " + "; ".join(reason[1] for reason in reasons)
            at = max((reason[2] for reason in reasons), default=0.0)
            self.found.append(Violation("stale" if is_stale else "order", self.name, text, at))

    def _edges(self) -> tuple[list[list[int]], dict[tuple[int, int], tuple[str, str, float]]]:
        """What must stand before what: publications by when they were known, then those times."""
        n = len(self.by_known)
        number = {one.it.id: at for at, one in enumerate(self.by_known)}
        edges: list[list[int]] = [[] for _ in range(2 * n)]
        why: dict[tuple[int, int], tuple[str, str, float]] = {}
        for at, one in enumerate(self.by_known):
            # "One was known before the other was sent" goes by way of the times: n edges, not n².
            edges[at].append(n + at)
            if at + 1 < n:
                edges[n + at].append(n + at + 1)
            before = bisect_left(self.known_times, one.it.started) - 1
            if before >= 0:
                edges[n + before].append(at)
        # Whatever is accused by itself would only be accused a second time.
        accused = {
            (violation.who, violation.at)
            for violation in self.found
            if violation.rule in {"stale", "twice"}
        }
        for listening in self.listenings:
            heard = [(number[name], at) for name, at in listening.heard if name in number]
            heard = [pair for pair in heard if ((listening.who,), pair[1]) not in accused]
            for (first, _), (second, at) in pairwise(heard):
                if (first, second) not in why:
                    edges[first].append(second)
                    why[first, second] = ("order", f"{listening.who} heard it so", at)
            first = listening.heard[0] if listening.heard and self.is_cache else (MISS, 0.0)
            if first[0] in number and ((listening.who,), first[1]) not in accused:
                self._add_found(edges, why, listening, number)
        return edges, why

    def _add_found(
        self,
        edges: list[list[int]],
        why: dict[tuple[int, int], tuple[str, str, float]],
        listening: Listening,
        number: dict[str, int],
    ) -> None:
        """What a subscription found stands behind all that had been known."""
        name, at = listening.heard[0]
        for n, one in enumerate(self._known_before(listening.asked)):
            if n == N_LATEST:
                return
            pair = (number[one.it.id], number[name])
            is_telling = one.it.id != name and not one.it.sender and at < one.forgotten
            if is_telling and pair not in why:
                edges[pair[0]].append(pair[1])
                text = f"{listening.who} found {name} after {one.it.id} was known"
                why[pair] = ("stale", text, at)
