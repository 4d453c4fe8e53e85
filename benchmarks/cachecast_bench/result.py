"""What a run leaves behind.

One JSON document with every raw sample and the conditions it was taken under.

Document -> scenarios -> rows (one case of one target, its samples in the order they were taken) and
figures (the numbers a requirement or a comparison names: ratios first). `SCHEMA` rises when the
shape changes; an unknown one is refused rather than guessed at.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import msgspec

from cachecast_load.measures.intervals import median_interval

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA = 3

TOOL = "cachecast benchmarks"

Level = Literal["invalid", "warning"]


class ResultError(Exception):
    """A file is no result of this tool, or one of a version that this one does not know."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a result must not, or should not, be trusted.

    Attributes:
        level: "invalid" forbids any conclusion, "warning" asks for care.
        where: The scenario, case and target.
        text: The reason, in words.
    """

    level: Level
    where: str
    text: str


@dataclass(slots=True)
class Sample:
    """One measurement.

    Attributes:
        metrics: Value of each metric, by a name that ends in its unit; None where it could not be
            measured. What columns, figures and charts are made of.
        ledger: Number of deliveries that went wrong, by kind.
        refusals: What the server said to clients that did not get through.
        beside: Deliveries/s of the run's other plans, by plan.
        is_flat: The plan was published flat out, not on a schedule.
        is_yardstick: Whatever set the rate is as it should be: nothing is concluded from a busy
            generator.
        raw: Everything that was reported, histograms included.
    """

    metrics: dict[str, float | None] = field(default_factory=dict)
    ledger: dict[str, int] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    beside: dict[str, float] = field(default_factory=dict)
    is_flat: bool = False
    is_yardstick: bool = False
    raw: dict[str, Any] = field(default_factory=dict)

    def get(self, metric: str) -> float | None:
        """Return the value of a metric; None if it was not measured."""
        return self.metrics.get(metric)


@dataclass(slots=True)
class Discarded:
    """A sample that other programs disturbed and that was taken again; it is in no figure.

    Attributes:
        why: Reasons, in words.
        sample: What was thrown away.
    """

    why: list[str]
    sample: Sample


@dataclass(slots=True)
class Row:
    """One case measured on one target, several times.

    Attributes:
        case: What was varied: name to value, such as subscribers or bytes.
        target: Whose row it is.
        samples: One for each repeat.
        discarded: Those that were taken again.
    """

    case: dict[str, Any]
    target: str
    samples: list[Sample] = field(default_factory=list)
    discarded: list[Discarded] = field(default_factory=list)

    def values(self, metric: str) -> list[float]:
        """Return the values of `metric` in the samples that have one."""
        found = (sample.metrics.get(metric) for sample in self.samples)
        return [value for value in found if value is not None]

    def median(self, metric: str) -> float | None:
        """Return the median of `metric` over the repeats; None if it was not measured."""
        values = self.values(metric)
        return statistics.median(values) if values else None

    def spread(self, metric: str) -> float | None:
        """Return (highest - lowest) / median of `metric`, None with fewer than two repeats."""
        values = self.values(metric)
        middle = self.median(metric)
        if len(values) < 2 or not middle:
            return None
        return (max(values) - min(values)) / middle


@dataclass(slots=True)
class Figure:
    """A named number that requirements and comparisons refer to as `scenario.name`.

    Attributes:
        name: Lower case with underscores.
        unit: "" for a ratio.
        better: Which direction is an improvement.
        meaning: One line for people.
        samples: The value of each repeat; `value` is their median.
    """

    name: str
    unit: str
    better: Literal["lower", "higher"]
    meaning: str
    samples: Annotated[list[float], msgspec.Meta(min_length=1)]

    @property
    def value(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        """The lowest sample."""
        return min(self.samples)

    @property
    def high(self) -> float:
        """The highest sample."""
        return max(self.samples)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % bootstrap interval of the median; None with fewer than five repeats."""
        return median_interval(self.samples)


@dataclass(slots=True)
class ScenarioResult:
    """All that one scenario measured."""

    name: str
    rows: list[Row] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def row(self, case: dict[str, Any], target: str) -> Row:
        """Return the row of `case` and `target`, made if there is none yet."""
        found = self.find(case, target)
        if found is None:
            found = Row(case, target)
            self.rows.append(found)
        return found

    def find(self, case: dict[str, Any], target: str) -> Row | None:
        """Return the row of exactly this case and target, or None."""
        return next((row for row in self.rows if row.target == target and row.case == case), None)

    def add_figure(
        self,
        name: str,
        unit: str,
        better: Literal["lower", "higher"],
        meaning: str,
        samples: list[float],
    ) -> None:
        """Add a figure, unless nothing was measured for it."""
        if samples:
            self.figures.append(Figure(name, unit, better, meaning, samples))


def ratios(over: Row | None, under: Row | None, metric: str) -> list[float]:
    """Return `over` / `under` for each pair of repeats.

    Interleaved repeats are ratios of neighbours in time.
    """
    if over is None or under is None:
        return []
    pairs = zip(over.values(metric), under.values(metric), strict=False)
    return [mine / theirs for mine, theirs in pairs if theirs]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a requirement.

    Attributes:
        text: The requirement.
        value: The figure's value; None if it was not measured.
        is_met: It holds.
    """

    text: str
    value: float | None
    is_met: bool


@dataclass(slots=True)
class Result:
    """One run of the tool.

    Attributes:
        environment: `cachecast_bench.machine.describe()`.
        command: The command line.
        started_at: UTC, ISO 8601.
        duration_s: How long it took.
        quick: Smoke-test sizes: fewer and shorter repeats than a measurement needs.
        targets: Configuration of each target, in words.
        scenarios: In the order they were run.
        requirements: What became of each `--require`.
    """

    environment: dict[str, Any]
    command: list[str]
    started_at: str
    quick: bool
    duration_s: float = 0.0
    targets: dict[str, str] = field(default_factory=dict)
    scenarios: list[ScenarioResult] = field(default_factory=list)
    requirements: list[Outcome] = field(default_factory=list)

    def problems(self) -> Iterator[Problem]:
        """All problems of all scenarios."""
        for scenario in self.scenarios:
            yield from scenario.problems

    @property
    def is_invalid(self) -> bool:
        """Something forbids any conclusion."""
        return any(problem.level == "invalid" for problem in self.problems())

    def figures(self) -> dict[str, Figure]:
        """All figures by `scenario.name`."""
        return {
            f"{one.name}.{figure.name}": figure for one in self.scenarios for figure in one.figures
        }

    def to_json(self) -> bytes:
        """Return the document."""
        document = msgspec.to_builtins(self)
        for scenario, one in zip(document["scenarios"], self.scenarios, strict=True):
            for figure, its in zip(scenario["figures"], one.figures, strict=True):
                figure |= {"value": its.value, "interval": its.interval}
        head = {"schema": SCHEMA, "tool": TOOL, "is_invalid": self.is_invalid}
        return msgspec.json.encode({**head, **document}) + b"\n"

    @classmethod
    def from_json(cls, document: bytes) -> Self:
        """Rebuild a result from its document.

        Raises:
            ResultError: It has another shape or another schema.
        """
        try:
            head = msgspec.json.decode(document, type=_Head)
            if head.tool != TOOL:
                message = "not a result of `cachecast bench run --json`"
                raise ResultError(message)
            if head.schema != SCHEMA:
                message = (
                    f"schema {head.schema} is not the {SCHEMA} that this version reads: show it "
                    "with the version that wrote it, or run it again"
                )
                raise ResultError(message)
            msgspec.json.decode(document, type=_Believable)
            return msgspec.json.decode(document, type=cls)
        except msgspec.DecodeError as error:
            message = f"the document is damaged: {error}"
            raise ResultError(message) from error


class _Head(msgspec.Struct):
    tool: str = ""
    schema: int = 0


class _Environment(msgspec.Struct):
    cpu: str
    n_cores: int
    kernel: str
    python: str
    commit: str


class _Believable(msgspec.Struct):
    """What no number may be shown without."""

    environment: _Environment


def load(path: Path) -> Result:
    """Read a result file.

    Raises:
        ResultError: It cannot be read or is no result.
    """
    try:
        return Result.from_json(path.read_bytes())
    except (OSError, ResultError) as error:
        message = f"{path}: {error}"
        raise ResultError(message) from error


def save(result: Result, path: Path) -> None:
    """Write a result file; OSError if that is not possible."""
    path.write_bytes(result.to_json())
