"""What a run leaves behind.

One JSON document with every raw sample and the conditions it was taken under.

Document -> scenarios -> rows (one case of one target, its samples in the order they were taken) and
figures (the numbers a requirement or a comparison names: ratios first). `SCHEMA` rises when the
shape changes; an unknown one is refused rather than guessed at.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA = 2

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
class Row:
    """One case measured on one target, several times.

    Attributes:
        case: What was varied: name to value, such as subscribers or bytes.
        target: Whose row it is.
        samples: One for each repeat: metric to value, and everything raw (histograms, ledger, CPU)
            below "raw".
        discarded: Samples that other programs disturbed and that were taken again, each as `why`
            (reasons in words) and `sample`; they are in no figure.
    """

    case: dict[str, Any]
    target: str
    samples: list[dict[str, Any]] = field(default_factory=list)
    discarded: list[dict[str, Any]] = field(default_factory=list)

    def values(self, metric: str) -> list[float]:
        """Return the values of `metric` in the samples that have one."""
        return [sample[metric] for sample in self.samples if sample.get(metric) is not None]

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
    samples: list[float]

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
        requirements: Each `--require` with what became of it.
    """

    environment: dict[str, Any]
    command: list[str]
    started_at: str
    quick: bool
    duration_s: float = 0.0
    targets: dict[str, str] = field(default_factory=dict)
    scenarios: list[ScenarioResult] = field(default_factory=list)
    requirements: list[dict[str, Any]] = field(default_factory=list)

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

    def to_json(self) -> dict[str, Any]:
        """Return the document."""
        document = asdict(self)
        for scenario in document["scenarios"]:
            for figure in scenario["figures"]:
                figure["value"] = statistics.median(figure["samples"])
        return {
            "schema": SCHEMA,
            "tool": "cachecast benchmarks",
            "is_invalid": self.is_invalid,
            **document,
        }

    @classmethod
    def from_json(cls, document: object) -> Self:
        """Rebuild a result from its document.

        Raises:
            ResultError: It has another shape or another schema.
        """
        if not isinstance(document, dict) or document.get("tool") != "cachecast benchmarks":
            message = "not a result of `cachecast bench run --json`"
            raise ResultError(message)
        if document.get("schema") != SCHEMA:
            message = (
                f"schema {document.get('schema')!r} is not the {SCHEMA} that this version reads"
            )
            raise ResultError(message)
        try:
            return cls(
                environment=document["environment"],
                command=document["command"],
                started_at=document["started_at"],
                quick=document["quick"],
                duration_s=document["duration_s"],
                targets=document["targets"],
                scenarios=[_scenario(one) for one in document["scenarios"]],
                requirements=document["requirements"],
            )
        except (KeyError, TypeError) as error:
            message = f"the document is damaged: {error!r}"
            raise ResultError(message) from error


def _scenario(document: dict[str, Any]) -> ScenarioResult:
    figures = [
        Figure(**{name: value for name, value in one.items() if name != "value"})
        for one in document["figures"]
    ]
    return ScenarioResult(
        name=document["name"],
        rows=[Row(**one) for one in document["rows"]],
        figures=figures,
        problems=[Problem(**one) for one in document["problems"]],
        notes=document["notes"],
    )


def load(path: Path) -> Result:
    """Read a result file.

    Raises:
        ResultError: It cannot be read or is no result.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path}: {error}"
        raise ResultError(message) from error
    return Result.from_json(document)


def save(result: Result, path: Path) -> None:
    """Write a result file; OSError if that is not possible."""
    path.write_text(json.dumps(result.to_json(), separators=(",", ":")) + "\n", encoding="utf-8")
