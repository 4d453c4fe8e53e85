"""The knee finder: the highest level at which every rule still holds.

First the level doubles until a trial fails (or the ceiling holds), then the gap between the best
and the worst is halved. Each trial is a fresh stretch of time: the level is set, a part of it
settles and is thrown away, the rest is judged by the plan's own rules. A trial during which the
generator itself was overloaded decides nothing about the target; the search ends there and says
so.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

SETTLE_SHARE = 0.25
REST_S = 1.0
CLOSE_ENOUGH = 0.05
_GROWTH = 2.0


@dataclass(frozen=True, slots=True)
class Trial:
    """One level that was tried, and what came of it.

    Attributes:
        level: rate or number of subscribers.
        holds: whether every rule held.
        failed: the rules that did not.
        figures: a few figures of the trial, by SLO name.
        is_doubtful: the generator was the bottleneck.
    """

    level: float
    holds: bool
    failed: tuple[str, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)
    is_doubtful: bool = False


class KneeSearch:
    """Proposes levels and takes verdicts; knows no clock.

    Args:
        start: first level.
        ceiling: highest level to try.
        max_trials: most trials.
        whole: levels are whole numbers (subscribers).
    """

    def __init__(self, start: float, ceiling: float, max_trials: int, *, whole: bool) -> None:
        self.trials: list[Trial] = []
        self._start = min(start, ceiling)
        self._ceiling = ceiling
        self._max_trials = max_trials
        self._whole = whole

    @property
    def best(self) -> Trial | None:
        """The highest level that held."""
        return max((t for t in self.trials if t.holds), key=lambda t: t.level, default=None)

    @property
    def first_bad(self) -> Trial | None:
        """The lowest level that failed."""
        failed = (t for t in self.trials if not t.holds and not t.is_doubtful)
        return min(failed, key=lambda t: t.level, default=None)

    def next_level(self) -> float | None:
        """Return the level to try next, None when the search is over."""
        if not self.trials:
            return self._round(self._start)
        if len(self.trials) >= self._max_trials or self.trials[-1].is_doubtful:
            return None
        best, bad = self.best, self.first_bad
        if bad is None:
            assert best is not None
            if best.level >= self._ceiling:
                return None
            return self._round(min(best.level * _GROWTH, self._ceiling))
        low = best.level if best else 0.0
        if bad.level - low <= max(CLOSE_ENOUGH * bad.level, 1.0 if self._whole else 0.0):
            return None
        level = self._round((low + bad.level) / 2)
        return None if level in (low, bad.level) or level <= 0 else level

    def add(self, trial: Trial) -> None:
        """Enter the verdict on the level proposed last."""
        self.trials.append(trial)

    def _round(self, level: float) -> float:
        return float(math.floor(level)) if self._whole else round(level, 3)

    def describe(self) -> dict[str, Any]:
        """Return the search for the report: trials in order, and the sentence that sums it up."""
        return {
            "trials": [asdict(trial) for trial in self.trials],
            "best": self.best.level if self.best else None,
            "first_bad": self.first_bad.level if self.first_bad else None,
            "sentence": self.sentence(),
        }

    def sentence(self) -> str:
        """Return what was found, in one line."""
        best, bad = self.best, self.first_bad
        if self.trials and self.trials[-1].is_doubtful:
            level = self.trials[-1].level
            held = f"{best.level:g} held; at" if best else "at"
            return f"{held} {level:g} this generator was the bottleneck, so the search ended there"
        if best is None:
            return f"not even {self._round(self._start):g} held"
        if bad is None:
            return f"{best.level:g} held, and nothing higher was tried"
        return f"{best.level:g} held and {bad.level:g} did not ({', '.join(bad.failed[:3])})"
