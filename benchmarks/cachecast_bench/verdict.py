"""When a number may be believed, and when it is good enough.

Believed: `judge` looks at one measured sample and names what speaks against it. The limits stand
here, each with its reason. Good enough: a requirement such as `fanout.ratio_to_raw_loop>=0.85` is
parsed and held against the figures.

Exit codes are those of the load test: 2 if anything is INVALID (then nothing was shown, whatever
the requirements say), 1 if a requirement failed or names a figure that was not measured, else 0.
"""

from __future__ import annotations

import math
import operator
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cachecast_bench.result import Outcome, Problem, Sample
from cachecast_load.measures.verdict import EXIT_CODES, FAIL, INVALID, PASS

if TYPE_CHECKING:
    from cachecast_bench.machine import Cores
    from cachecast_bench.result import Figure, Level, Result, ScenarioResult
    from cachecast_bench.scenarios import Scenario

GENERATOR_BUSY = 0.90
"""Above this share of its core the generator is taken to be the bottleneck, unless the server is as
busy."""

TARGET_BUSY = 0.90
"""A server this busy sets the rate itself, however busy the generator is."""

IDLE_BELOW = 0.80
"""Flat out, one of the two should be busier than this; else something outside set the rate."""

MIN_DELAYS = 100
"""Below this a 99th percentile is the maximum by another name. Flat out, delays are the length of
the queue and nothing is concluded from them, so there only deliveries have to be many."""

MIN_DELIVERIES = 1_000
"""Below this a rate of deliveries, flat out, is that of whatever stopped the server meanwhile."""

OFFERED_KEPT = 0.98
"""A paced run must publish at least this share of its schedule."""

FOREIGN_WARNING, FOREIGN_INVALID = 0.10, 0.30
"""Share of a core that went to programs that are not part of the run. 10 % moves ratios by less
than their spread."""

STEAL_WARNING, STEAL_INVALID = 0.02, 0.10
"""Share of a core that the hypervisor gave to somebody else."""

SPREAD_WARNING = 0.25
"""(highest - lowest) / median over the repeats of one row, above which its median is shown with a
warning."""

_NOISE = {
    "foreign": (FOREIGN_WARNING, "went to other programs"),
    "steal": (STEAL_WARNING, "was taken by the hypervisor"),
}

TRUSTED_CLOCKS = {"tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page"}

_PLACES_NAMED = 2

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_REQUIREMENT = re.compile(r"\s*([a-z0-9-]+\.[a-z0-9_]+)\s*(>=|<=|>|<)\s*([0-9.eE+-]+)\s*")


class RequirementError(ValueError):
    """A requirement cannot be understood."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One service level: a figure, a comparison, a number."""

    figure: str
    comparison: str
    wanted: float

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Parse `scenario.figure>=number` (also <=, > and <).

        Raises:
            RequirementError: It is not of that form.
        """
        match = _REQUIREMENT.fullmatch(text)
        try:
            if match is not None and math.isfinite(level := float(match[3])):
                return cls(match[1], match[2], level)
        except ValueError:
            pass
        message = f"{text!r} is not of the form scenario.figure>=number"
        raise RequirementError(message)

    def check_name(self, scenarios: dict[str, Scenario]) -> None:
        """Say beforehand if a run of `scenarios` cannot come up with the figure.

        Raises:
            RequirementError: The scenario is not run, or has no such figure.
        """
        name, _, figure = self.figure.partition(".")
        scenario = scenarios.get(name)
        if scenario is None:
            message = f"{self.figure}: {name} is not among the scenarios of this run"
            raise RequirementError(message)
        if not scenario.has_figure(figure):
            message = f"{name} has no figure {figure!r}; it has {', '.join(scenario.figures)}"
            raise RequirementError(message)

    def check(self, figures: dict[str, Figure]) -> Outcome:
        """Return what became of it."""
        figure = figures.get(self.figure)
        value = None if figure is None else figure.value
        is_met = value is not None and _OPERATORS[self.comparison](value, self.wanted)
        return Outcome(f"{self.figure}{self.comparison}{self.wanted:g}", value, is_met)


def exit_code(result: Result) -> int:
    """Return the exit code that a result calls for."""
    if result.is_invalid:
        return EXIT_CODES[INVALID]
    return EXIT_CODES[PASS if all(one.is_met for one in result.requirements) else FAIL]


def judge(sample: Sample, where: str) -> list[Problem]:
    """Name everything that speaks against one sample.

    Args:
        sample: As `cachecast_bench.bench` makes it; keys that are missing are not judged.
        where: Scenario, case and target.
    """
    problems: list[Problem] = []

    def add(level: Level, text: str) -> None:
        problems.append(Problem(level, where, text))

    for name, count in sample.ledger.items():
        if count:
            add(
                "invalid", f"{count:,} deliveries {name}: the numbers are of work that was not done"
            )
    if n_refused := int(sample.get("n_refused") or 0):
        reasons = "; ".join(sample.refusals)
        add("invalid", f"{n_refused:,} clients did not get through: {reasons}")
    _judge_generator(sample, add)
    _judge_counts(sample, add)
    offered, kept = sample.get("n_planned"), sample.get("n_published")
    if offered and kept is not None and kept < OFFERED_KEPT * offered:
        add(
            "invalid",
            f"{kept:,} of {offered:,} planned publishes were sent: the schedule was not kept",
        )
    _judge_noise(sample, add)
    return problems


def _judge_counts(sample: Sample, add: Callable[[Level, str], None]) -> None:
    n_delays, n_deliveries = sample.get("n_delays"), sample.get("n_deliveries")
    if sample.is_flat:
        if n_delays is not None and n_deliveries is not None and n_deliveries < MIN_DELIVERIES:
            text = (
                f"{n_deliveries:,} deliveries are too few for a rate; it takes {MIN_DELIVERIES:,}"
            )
            add("invalid", text)
    elif n_delays is not None and n_delays < MIN_DELAYS:
        add(
            "invalid",
            f"{n_delays} delays are too few for a 99th percentile; it takes {MIN_DELAYS}",
        )


def _judge_generator(sample: Sample, add: Callable[[Level, str], None]) -> None:
    generator, target = sample.get("generator_cpu"), sample.get("target_cpu")
    if generator is None or target is None:
        return
    if generator > GENERATOR_BUSY and target < TARGET_BUSY and not sample.is_yardstick:
        text = f"the generator used {generator:.0%} of its core, the server {target:.0%} of its own"
        add("invalid", f"{text}: the generator set the pace")
    elif sample.is_flat and max(generator, target) < IDLE_BELOW and not sample.is_yardstick:
        text = (
            f"flat out the server used {target:.0%} of its core and the generator {generator:.0%}"
        )
        add("warning", f"{text}: neither was the bottleneck, so trust costs rather than rates")
    lag, allowed = sample.get("generator_lag_p99_us"), sample.get("allowed_lag_us")
    if lag is not None and allowed is not None and lag > allowed:
        add(
            "invalid",
            f"the generator's own loop was up to {lag / 1000:.1f} ms late (p99): it starved",
        )
    late, delay = sample.get("late_p99_us"), sample.get("p99_us")
    if late is not None and delay and late > max(1000, delay / 4):
        add(
            "warning",
            f"publishes left up to {late / 1000:.1f} ms late (p99): part of the delays is our own",
        )


def _judge_noise(sample: Sample, add: Callable[[Level, str], None]) -> None:
    for reason in disturbances(sample):
        add("warning", reason)


def disturbances(sample: Sample) -> list[str]:
    """Say what others took of our two cores while a sample was taken; empty if hardly anything."""
    reasons = []
    for kind, (limit, words) in _NOISE.items():
        for core in ("target", "generator"):
            share = sample.get(f"{kind}_{core}")
            if share is not None and share > limit:
                reasons.append(f"{share:.0%} of the {core}'s core {words}")
    return reasons


def disturbance(sample: Sample) -> float:
    """Return how much a sample was disturbed, to choose the least one: 1 is worth a note."""
    return max(
        (sample.get(f"{kind}_{core}") or 0.0) / limit
        for kind, (limit, _) in _NOISE.items()
        for core in ("target", "generator")
    )


def has_failures(sample: Sample) -> bool:
    """Say whether the server did something wrong: such a sample counts in any case."""
    return bool(sample.get("n_refused") or any(sample.ledger.values()))


def is_worth_retaking(sample: Sample, *, quick: bool) -> bool:
    """Say whether a sample should be thrown away, because of what other programs did meanwhile.

    A quick run is content with any sample that is not INVALID.
    """
    if has_failures(sample) or not disturbances(sample):
        return False
    return not quick or any(one.level == "invalid" for one in judge(sample, ""))


def judge_noise(result: ScenarioResult) -> list[Problem]:
    """Refuse rows of which most samples were disturbed too much for a median to help."""
    problems = []
    for row in result.rows:
        n_spoilt = sum(_is_spoilt(sample) for sample in row.samples)
        if n_spoilt * 2 > len(row.samples):
            text = (
                f"{n_spoilt} of {len(row.samples)} samples lost more than {FOREIGN_INVALID:.0%} of "
                f"a core to other programs, or {STEAL_INVALID:.0%} to the hypervisor"
            )
            case = ", ".join(f"{name} {value}" for name, value in row.case.items())
            problems.append(Problem("invalid", f"{result.name} {case} {row.target}", text))
    return problems


def _is_spoilt(sample: Sample) -> bool:
    return any(
        (sample.get(f"foreign_{core}") or 0.0) > FOREIGN_INVALID
        or (sample.get(f"steal_{core}") or 0.0) > STEAL_INVALID
        for core in ("target", "generator")
    )


def judge_machine(cores: Cores) -> list[Problem]:
    """Name what about this machine forbids measuring on it."""
    problems = []
    if not cores.are_separate:
        text = "server and generator share the only core: neither could be told from the other"
        problems.append(Problem("invalid", "machine", text))
    info = time.get_clock_info("monotonic")
    if not info.monotonic or info.resolution > 1e-6:
        text = f"the monotonic clock resolves no more than {info.resolution:g} s"
        problems.append(Problem("invalid", "machine", text))
    clock = _clock_source()
    if clock is not None and clock not in TRUSTED_CLOCKS:
        text = f"the kernel's clock source is {clock!r}, which is slow or not steady between cores"
        problems.append(Problem("warning", "machine", text))
    return problems


def _clock_source() -> str | None:
    path = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None


def merged(problems: list[Problem]) -> list[Problem]:
    """Return each place and kind of problem once, INVALID ones first.

    A kind is a wording without its numbers. Of one that many places share, a few are named and the
    rest counted: a page of the same warning is read by nobody.
    """
    kinds: dict[tuple[str, str], dict[str, Problem]] = {}
    for problem in problems:
        shape = re.sub(r"[\d.,]+", "#", problem.text)
        kinds.setdefault((problem.level, shape), {})[problem.where] = problem
    shown: list[Problem] = []
    for places in kinds.values():
        *some, last = list(places.values())[:_PLACES_NAMED]
        if n_more := len(places) - _PLACES_NAMED if len(places) > _PLACES_NAMED else 0:
            text = f"{last.text}; the like in {n_more} more place{'s' if n_more > 1 else ''}"
            last = Problem(last.level, last.where, text)
        shown += [*some, last]
    return sorted(shown, key=lambda one: one.level)


def judge_spread(result: ScenarioResult) -> list[Problem]:
    """Warn of figures whose repeats disagree; a median of such is not worth three digits."""
    problems = []
    for figure in result.figures:
        if len(figure.samples) > 1 and figure.value:
            spread = (figure.high - figure.low) / abs(figure.value)
            if spread > SPREAD_WARNING:
                text = f"its repeats differ by {spread:.0%} of their median: take their range"
                problems.append(Problem("warning", f"{result.name}.{figure.name}", text))
    return problems
