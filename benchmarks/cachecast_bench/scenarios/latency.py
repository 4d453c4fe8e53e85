"""Delay against load: the curve, and where it bends.

First each server's own saturation is measured, flat out. Then it is published to on a schedule, and
the delay of each delivery is counted from the planned publish: at 10 to 90 % of the raw loop's
saturation, where all do the same work at the same rate, and at 10 to 90 % of its own. A server that
joins frames saturates at forty times the raw loop's rate and is busy all the time from the raw
loop's on; what grows then is the batches, and the two curves say different things about it.

The knee is the highest load at which the 99th percentile is still within three times that at 10 %.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from cachecast_bench.result import ratios
from cachecast_bench.scenarios.base import DELAY_COLUMNS, Column, Panel, Scenario
from cachecast_bench.scenarios.steps import N_LINES, connect, flat, own_and_peers, paced
from cachecast_bench.target import RawLoop

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench, Stage
    from cachecast_bench.result import ScenarioResult

_SIZE = 256
_KNEE = 3.0
_SAME, _OWN = "{} % of raw", "{} % of own"
"""What a load is a share of: of what the raw loop can do, or the server itself."""

_N_SATURATION = 2
"""The better of so many tries: something else may only ever lower it."""

_LEAST_PUBLISHES, _LEAST_RATE = 20, 2.0
"""Enough for a percentile over 32 probes, and never so few a second that a step takes minutes."""


class Latency(Scenario):
    """See the module."""

    name: ClassVar[str] = "latency"
    title: ClassVar[str] = (
        "delay of a delivery at 10 to 90 % of saturation, the raw loop's and its own"
    )
    columns: ClassVar[list[Column]] = [
        Column("publishes_per_s", "publish/s", "count"),
        Column("deliveries_per_s", "deliv/s", "count"),
        Column("target_cpu", "CPU", "share"),
        *DELAY_COLUMNS,
    ]
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel(
            "Delay p99 against load", "p99_us", "delay", across="load",
            where=lambda case: case["load"].endswith("raw"), below="% of the raw loop's saturation",
        ),
        Panel(
            "Delay p99 against load", "p99_us", "delay", across="load",
            where=lambda case: case["load"].endswith("own"), below="% of its own saturation",
        ),
    )  # fmt: skip

    figures: ClassVar[tuple[str, ...]] = (
        "p99_ratio_at_half",
        "p99_ratio_at_own_half",
        "knee_percent",
    )

    @override
    def n_samples(self, bench: Bench) -> int:
        """Saturation twice, then the curves: one of the raw loop, two of each other target."""
        curve = bench.n_repeats(3, quick=1) * len(_loads(bench))
        others = len(own_and_peers(bench)) * (_N_SATURATION + 2 * curve)
        return len(_subscribers(bench)) * (_N_SATURATION + curve + others)

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Find each server's saturation, then walk up the curve, all servers at each step."""
        for n in _subscribers(bench):
            async with bench.stages([RawLoop(), *own_and_peers(bench)], result) as stages:
                await bench.each(stages, result, partial(connect, bench, count=n))
                await self._curve(bench, stages, n, result)
        self._conclude(result, _subscribers(bench)[0])

    async def _curve(
        self, bench: Bench, stages: list[Stage], n: int, result: ScenarioResult
    ) -> None:
        seconds = 0.5 if bench.quick else 2.0
        flat_out = {"subscribers": n, "load": "flat out"}

        async def saturate(stage: Stage) -> None:
            plan = flat(stage, _SIZE, n)
            run: dict[str, Any] = {"plans": [plan], "size": _SIZE, "warmup_s": 0.5}
            await bench.measure(stage, result, flat_out, seconds=seconds, **run)

        for _ in range(_N_SATURATION):
            await bench.each(stages, result, saturate)
        saturation = {
            stage.name: max(row.values("deliveries_per_s")) / n
            for stage in stages
            if (row := result.find(flat_out, stage.name)) is not None and not stage.is_out
        }
        rates = ", ".join(f"{name} {rate:,.0f}/s" for name, rate in saturation.items())
        result.notes.append(f"saturation with {n:,} subscribers, publishes: {rates}")
        for _ in range(bench.n_repeats(3, quick=1)):
            for percent in _loads(bench):
                for load in (_SAME, _OWN):
                    case = {"subscribers": n, "load": load.format(percent)}

                    async def measure(
                        stage: Stage,
                        case: dict[str, Any] = case,
                        percent: int = percent,
                        of: str | None = "raw loop" if load == _SAME else None,
                    ) -> None:
                        rate = saturation[of or stage.name] * percent / 100
                        await _measure(bench, stage, result, case, max(_LEAST_RATE, rate), seconds)

                    takes = [stage for stage in stages if load == _SAME or stage.name != "raw loop"]
                    await bench.each(takes, result, measure)

    def _conclude(self, result: ScenarioResult, n: int) -> None:
        sweep = result.find({"subscribers": n, "load": _SAME.format(10)}, "raw loop")
        for load, name, whose in (
            (_SAME, "p99_ratio_at_half", "the raw loop's"),
            (_OWN, "p99_ratio_at_own_half", "its own"),
        ):
            half = result.find({"subscribers": n, "load": load.format(50)}, "cachecast")
            words = f"p99 at half of {whose} saturation / p99 of the raw loop's sweep"
            result.add_figure(name, "", "lower", words, ratios(half, sweep, "p99_us"))
        rows = [
            row
            for row in result.rows
            if row.target == "cachecast" and row.case["load"].endswith("own")
        ]
        calm = rows[0].median("p99_us") if rows else None
        if calm:
            loads = [
                int(row.case["load"].split()[0])
                for row in rows
                if (row.median("p99_us") or 0.0) <= _KNEE * calm
            ]
            words = f"highest load at which p99 is within {_KNEE:g} x that at 10 %"
            result.add_figure("knee_percent", "%", "higher", words, [float(max(loads))])


async def _measure(
    bench: Bench,
    stage: Stage,
    result: ScenarioResult,
    case: dict[str, Any],
    rate: float,
    seconds: float,
) -> None:
    plan = paced(stage, rate, lines=1 if stage.is_unanswered else N_LINES)
    span = max(seconds, _LEAST_PUBLISHES / rate)
    await bench.measure(stage, result, case, plans=[plan], size=_SIZE, seconds=span)


def _subscribers(bench: Bench) -> list[int]:
    return bench.n_subscribers([1_000], quick=[1_000])


def _loads(bench: Bench) -> tuple[int, ...]:
    return (10, 50, 90) if bench.quick else (10, 30, 50, 70, 90)
