"""Judge the rosters of a presence channel."""

from __future__ import annotations

from collections import defaultdict
from math import inf
from typing import TYPE_CHECKING

from tests.cluster.proof.verdict import Violation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.cluster.proof.history import History, Listening

__all__ = ["check_rosters"]

#: Seconds within which news of members are to be heard.
LAG_S = 3.0

#: Seconds after which a node that was cut off has come back as another, or been given up.
LEASES_S = 20.0


def check_rosters(
    history: History, channel: str, listenings: Sequence[Listening]
) -> list[Violation]:
    """What is wrong with the members of one channel: each transition once, all equal in the end."""
    return _Rosters(history, channel, listenings).check()


class _Rosters:
    """Judges one channel."""

    def __init__(self, history: History, channel: str, listenings: Sequence[Listening]) -> None:
        self.history = history
        self.channel = channel
        self.listenings = [one for one in listenings if one.confirmed < inf]
        self.of_user: dict[str, list[Listening]] = defaultdict(list)
        for one in listenings:
            self.of_user[one.user].append(one)
        self.found: list[Violation] = []

    def check(self) -> list[Violation]:
        """All that is wrong with it."""
        there = {one.user for one in self.listenings if one.ended >= self.history.end}
        for listening in self.listenings:
            view = self._follow(listening)
            if listening.ended >= self.history.end and view != there:
                missing, extra = sorted(there - view), sorted(view - there)
                text = f"in the end members are missing: {missing}, too many: {extra}"
                self.accuse("roster", text, self.history.end, listening)
            self._check_arrivals(listening)
        return self.found

    def accuse(self, rule: str, text: str, at: float, who: Listening) -> None:
        """Write down a violation."""
        self.found.append(Violation(rule, self.channel, text, at, (who.who,)))

    def _follow(self, listening: Listening) -> set[str]:
        """The roster as it was told, checking each step."""
        view = set(listening.roster)
        if listening.user not in view:
            text = "is not in the roster that it was given"
            self.accuse("roster", text, listening.confirmed, listening)
            view.add(listening.user)
        for user in view - self.of_user.keys():
            self.accuse("roster", f"{user} was never there", listening.confirmed, listening)
        for at, sign, user in listening.news:
            if user not in self.of_user:
                self.accuse("roster", f"{user} was never there", at, listening)
            elif (user in view) == (sign == "+"):
                text = f"{user} was announced {'added' if sign == '+' else 'removed'} twice"
                self.accuse("transition", text, at, listening)
            elif sign == "-":
                self._check_departure(listening, at, user)
            (view.add if sign == "+" else view.discard)(user)
        return view

    def _check_departure(self, listening: Listening, at: float, user: str) -> None:
        """Nobody is announced gone who is there all the time."""
        for one in self.of_user[user]:
            is_there = one.confirmed < at - LAG_S and at + LAG_S < one.ended
            if is_there and all(
                self.history.is_calm(node, max(one.confirmed, at - LEASES_S), at)
                for node in (one.node, listening.node)
            ):
                text = f"{user} was announced removed while it was there, as {one.who}"
                self.accuse("transition", text, at, listening)
                return

    def _check_arrivals(self, listening: Listening) -> None:
        """Whoever comes while nothing is disturbed is announced to who is there, once."""
        heard: dict[str, list[float]] = defaultdict(list)
        for at, sign, user in listening.news:
            if sign == "+":
                heard[user].append(at)
        for one in self.listenings:
            start, end = one.asked, one.confirmed + LAG_S
            if not listening.confirmed < start - LAG_S or listening.ended < end:
                continue
            if one.ended < end or one.user == listening.user or self._has_another(one, end):
                continue
            is_calm = all(
                self.history.is_calm(node, start - LAG_S, end)
                for node in (one.node, listening.node)
            )
            n = sum(start <= at <= end for at in heard[one.user])
            if is_calm and n != 1:
                text = f"{one.user} came and was announced {n} times"
                self.accuse("transition", text, one.confirmed, listening)

    def _has_another(self, one: Listening, end: float) -> bool:
        """Whether a user may have been there already, by another connection or just before."""
        return any(
            other is not one and other.asked < end and one.asked - LAG_S < other.ended
            for other in self.of_user[one.user]
        )
