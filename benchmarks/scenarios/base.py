"""What all scenarios have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.result import ScenarioResult


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a scenario's table.

    Attributes:
        metric: The key in a sample.
        title: Short enough for a table of 100 columns.
        form: How the median is written: see `benchmarks.table`.
        versus: Show the ratio to this target's row of the same case instead of the value.
    """

    metric: str
    title: str
    form: str = "count"
    versus: str | None = None


class Scenario:
    """One experiment."""

    name: ClassVar[str]
    title: ClassVar[str]
    columns: ClassVar[list[Column]]

    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Measure; add rows, figures and problems to `result`, which is empty.

        What is in it when this is cancelled or fails is what a report shows.
        """
        raise NotImplementedError


DELAY_COLUMNS = [
    Column("p50_us", "p50", "delay"),
    Column("p99_us", "p99", "delay"),
    Column("p999_us", "p99.9", "delay"),
    Column("max_us", "max", "delay"),
]
