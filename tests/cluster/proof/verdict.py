"""Violations, and the part of a history that shows one."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cluster.proof.history import History

__all__ = ["Violation", "excerpt"]

#: Lines of one excerpt.
MAX_LINES = 40


@dataclass(frozen=True)
class Violation:
    """What is wrong.

    Attributes:
        rule: a word for it.
        channel: where.
        text: what was seen.
        at: when.
        who: whom it met.
    """

    rule: str
    channel: str
    text: str
    at: float
    who: tuple[str, ...] = ()

    def __str__(self) -> str:
        who = f" {', '.join(self.who)}:" if self.who else ""
        return f"[{self.rule}] {self.channel} at {self.at:.3f} s:{who} {self.text}"


def excerpt(history: History, violation: Violation, around_s: float = 1.0) -> list[str]:
    """What happened on a violation's channel around it, and to whom it met, in order of time."""
    start, end = violation.at - around_s, violation.at + around_s / 4
    lines: list[tuple[float, str]] = []

    def add(at: float, text: str) -> None:
        if start <= at <= end:
            lines.append((at, text))

    for one in history.publications:
        if one.channel == violation.channel:
            add(one.started, f"{one.node}: publish {one.id} {one.sender}")
            if one.answered < inf:
                add(one.answered, f"{one.node}: published {one.id}")
    for it in history.listenings:
        if it.channel != violation.channel:
            continue
        who = f"{it.node}: {'*' if it.who in violation.who else ''}{it.who}"
        add(it.asked, f"{who} subscribes")
        add(it.confirmed, f"{who} is confirmed {' '.join(sorted(it.roster))}")
        add(it.ended, f"{who} ends")
        for name, at in it.heard:
            add(at, f"{who} hears {name}")
        for at, sign, user in it.news:
            add(at, f"{who} hears {sign}{user}")
    for disturbance in history.disturbances:
        where = " ".join(sorted(disturbance.nodes)) or "all nodes"
        if disturbance.start <= end and start <= disturbance.end:
            lines.append((disturbance.start, f"disturbed until {disturbance.end:.3f}: {where}"))
    for loss in history.losses:
        if loss.start <= end and start <= loss.end:
            lines.append((loss.start, f"the engine forgets, until {loss.end:.3f}"))
    lines.sort(key=lambda line: abs(line[0] - violation.at))
    return [f"{at:10.4f}  {text}".rstrip() for at, text in sorted(lines[:MAX_LINES])]
