"""Service level objectives: `delivery.p99_ms <= 50`, parsed, checked for sense, and judged.

The registry (`figures`) knows each name with the range it can take: a rule that could never hold
(or never fail) is refused before the run and not found after it.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from typing_extensions import override

from cachecast_load.measures.figures import FIGURES, Figure
from cachecast_load.measures.names import nearest, suggest

_RULE = re.compile(
    r"\s*([a-z_]+(?:\.[a-z0-9_]+)?)\s*(<=|>=|==|<|>)\s*([-+0-9.a-z_%]+)\s*$", re.IGNORECASE
)
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
}


class SloError(ValueError):
    """A rule that cannot be judged; the text says what would be accepted."""


@dataclass(frozen=True, slots=True)
class Slo:
    """One rule: the figure, the comparison and its limit."""

    figure: str
    comparison: str
    limit: float

    @override
    def __str__(self) -> str:
        return f"{self.figure} {self.comparison} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of a rule.

    Attributes:
        slo: the rule.
        value: the figure measured; None when the run has none, which fails the rule.
        outcome: `pass`, `fail`, or `undecided` where the clocks' error straddles the limit.
        note: why, where value and limit do not say it.
    """

    slo: Slo
    value: float | None
    outcome: str
    note: str = ""


def parse_slo(text: str) -> Slo:
    """Read one rule.

    Raises:
        SloError: not a rule, an unknown name, a wrong unit, or a limit that makes no sense.
    """
    match = _RULE.match(text)
    if match is None:
        raise SloError(
            f"{text!r} is not a rule; write NAME COMPARISON NUMBER, for example"
            " 'delivery.p99_ms <= 50' (comparisons: <= >= < > ==)"
        )
    name, comparison, number = match.groups()
    figure = FIGURES.get(name)
    if figure is None:
        raise SloError(_unknown(name))
    try:
        limit = float(number)
    except ValueError:
        raise SloError(
            f"{text!r}: {number!r} is not a plain number; the unit is part of the name"
            f" ({name} is {_unit(figure)})"
        ) from None
    if not math.isfinite(limit):
        raise SloError(f"{text!r}: the limit must be finite")
    _check_range(text, figure, comparison, limit)
    return Slo(name, comparison, limit)


def _check_range(text: str, figure: Figure, comparison: str, limit: float) -> None:
    never = (
        (comparison in ("<=", "==") and limit < 0)
        or (comparison == "<" and limit <= 0)
        or (comparison in (">=", "==") and limit > figure.high)
        or (comparison == ">" and limit >= figure.high)
    )
    if never:
        bound = "at least 0" if math.isinf(figure.high) else f"between 0 and {figure.high:g}"
        raise SloError(f"{text!r} can never hold: the figure is {bound} ({figure.text})")
    if figure.is_whole and comparison == "==" and limit != int(limit):
        raise SloError(f"{text!r} can never hold: it counts whole things ({figure.text})")
    always = (comparison == ">=" and limit <= 0) or (comparison == "<=" and limit >= figure.high)
    if always:
        raise SloError(f"{text!r} can never fail, so it says nothing ({figure.text})")


def _unknown(name: str) -> str:
    group, _, figure = name.partition(".")
    same_group = [known.partition(".")[2] for known in FIGURES if known.startswith(f"{group}.")]
    if not same_group or not figure:
        groups = sorted({known.group for known in FIGURES.values()})
        meant = [f"{near}.{figure}" for near in nearest(group, groups)]
        near = [known for known in meant if known in FIGURES]
        if not figure:
            near = nearest(f".{group}", FIGURES)
        hint = f"did you mean {', '.join(near)}?" if near else f"groups are {', '.join(groups)}"
        return f"no figure is called {name!r}; {hint} (`cachecast load figures` explains them)"
    bare = re.sub(r"_(us|s|sec|ns)$", "_ms", figure)
    if f"{group}.{bare}" in FIGURES:
        return f"{name!r} has a unit that is not used here; write {group}.{bare}, in milliseconds"
    if f"{group}.{figure}_ms" in FIGURES:
        return f"{name!r} lacks its unit; write {group}.{figure}_ms"
    hint = suggest(figure, same_group, f"of {group} there are")
    return f"no figure is called {name!r}; {hint}"


def _unit(figure: Figure) -> str:
    """Return what a rule's number means, to follow "is"."""
    words = {"ms": "in milliseconds", "/s": "per second", "": "a plain number"}
    return words.get(figure.unit, f"in {figure.unit}")


def judge(slos: list[Slo], figures: Mapping[str, float], error_ms: float = 0.0) -> list[Judgement]:
    """Judge each rule against the figures of a run.

    Args:
        slos: the rules.
        figures: name -> value; a name that is missing was not measured.
        error_ms: how far delivery latencies may be wrong because clocks differ.
    """
    return [_judge_one(slo, figures.get(slo.figure), error_ms) for slo in slos]


def _judge_one(slo: Slo, value: float | None, error_ms: float) -> Judgement:
    if value is None:
        return Judgement(slo, None, "fail", "not measured in this run")
    holds = _OPERATORS[slo.comparison]
    outcome = "pass" if holds(value, slo.limit) else "fail"
    if error_ms and FIGURES[slo.figure].spans_clocks:
        low, high = holds(value - error_ms, slo.limit), holds(value + error_ms, slo.limit)
        if low != high:
            return Judgement(slo, value, "undecided", f"the clocks differ by up to {error_ms:g} ms")
    return Judgement(slo, value, outcome)
