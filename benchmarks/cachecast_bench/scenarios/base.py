"""What all scenarios have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench
    from cachecast_bench.result import ScenarioResult


_SUFFIX = re.compile(r"_\d+$")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a scenario's table.

    Attributes:
        metric: The key in a sample.
        title: Short enough for a table of 100 columns.
        form: How the median is written: see `cachecast_bench.table`.
        versus: Show the ratio to this target's row of the same case instead of the value.
    """

    metric: str
    title: str
    form: str = "count"
    versus: str | None = None


def _every(case: dict[str, Any]) -> bool:
    del case
    return True


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel of a scenario's chart.

    Attributes:
        title: What is shown.
        metric: The key in a sample.
        form: How values are written, as a column's.
        across: What of a case runs along the axis; a curve if it has several values, else bars, one
            for each case and target.
        prefers: Values of a case to keep to where a run has them; else its first.
        where: Says whether a case belongs here.
        below: Title of the axis; `across` if empty.
        is_log: Both axes grow by factors.
    """

    title: str
    metric: str
    form: str = "count"
    across: str | None = None
    prefers: Mapping[str, object] = field(default_factory=dict)
    where: Callable[[dict[str, Any]], bool] = _every
    below: str = ""
    is_log: bool = False


class Scenario:
    """One experiment.

    Attributes:
        name: On the command line.
        title: One line.
        columns: Of its table.
        panels: Of its chart, from top to bottom.
        figures: Names of its figures, which requirements and comparisons refer to. Where a number
            of clients is varied, the same names with that number as a suffix are figures too.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    columns: ClassVar[list[Column]]
    panels: ClassVar[tuple[Panel, ...]]
    figures: ClassVar[tuple[str, ...]] = ()

    def has_figure(self, name: str) -> bool:
        """Say whether `name` is that of a figure which this scenario may come up with."""
        return name in self.figures or _SUFFIX.sub("", name) in self.figures

    def n_samples(self, bench: Bench) -> int:
        """Return how many samples `run` takes, if nothing fails: the length of a progress bar."""
        raise NotImplementedError

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
