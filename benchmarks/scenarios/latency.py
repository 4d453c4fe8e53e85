"""Delay against load: the curve, and where it bends.

First each server's own saturation is measured, flat out. Then it is published to on a schedule, and
the delay of each delivery is counted from the planned publish: at 10 to 90 % of the raw loop's
saturation, where all do the same work at the same rate, and at 10 to 90 % of its own. A server that
joins frames saturates at fifty times the raw loop's rate and is busy all the time from the raw
loop's on; what grows then is the batches, and the two curves say different things about it.

The knee is the highest load at which the 99th percentile is still within three times that at 10 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from benchmarks.result import ratios
from benchmarks.scenarios.base import DELAY_COLUMNS, Column, Scenario
from benchmarks.scenarios.steps import connect, flat, own_and_peers, paced
from benchmarks.target import Limit

if TYPE_CHECKING:
    from benchmarks.bench import Bench, Stage
    from benchmarks.result import ScenarioResult

_SIZE = 256
_KNEE = 3.0
_LIMIT = "limit"
_SAME, _OWN = "{} % of limit", "{} % of own"
"""What a load is a share of: of what the raw loop can do, or the server itself."""


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

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Find each server's saturation, then walk up the curve, all servers at each step."""
        sizes = bench.subscribers or [1_000]
        for n in sizes:
            async with bench.stages([Limit(), *own_and_peers(bench)]) as stages:
                for stage in stages:
                    await connect(bench, stage, n)
                await self._curve(bench, stages, n, result)
        self._conclude(result, sizes[0])

    async def _curve(
        self, bench: Bench, stages: list[Stage], n: int, result: ScenarioResult
    ) -> None:
        saturation: dict[str, float] = {}
        seconds = 0.5 if bench.quick else 2.0
        for stage in stages:
            bench.on_progress(f"{stage.name}: saturation")
            run: dict[str, Any] = {"plans": [flat(stage, _SIZE)], "size": _SIZE, "warmup_s": 0.5}
            sample = await bench.sample(stage, seconds=seconds, **run)
            saturation[stage.name] = sample["deliveries_per_s"] / n
        rates = ", ".join(f"{name} {rate:,.0f}/s" for name, rate in saturation.items())
        result.notes.append(f"saturation with {n:,} subscribers, publishes: {rates}")
        for _ in range(bench.repeats or (1 if bench.quick else 3)):
            for percent in (10, 50, 90) if bench.quick else (10, 30, 50, 70, 90):
                for of, load in ((_LIMIT, _SAME), ("", _OWN)):
                    for stage in stages:
                        if stage.name == _LIMIT and not of:
                            continue
                        rate = saturation[of or stage.name] * percent / 100
                        case = {"subscribers": n, "load": load.format(percent)}
                        plan = paced(stage, rate, lines=1 if stage.is_unanswered else 32)
                        run = {"plans": [plan], "size": _SIZE, "seconds": max(seconds, 20 / rate)}
                        await bench.measure(stage, result, case, **run)

    def _conclude(self, result: ScenarioResult, n: int) -> None:
        sweep = result.find({"subscribers": n, "load": _SAME.format(10)}, _LIMIT)
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
