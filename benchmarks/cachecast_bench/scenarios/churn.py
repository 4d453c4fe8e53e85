"""Subscribers that leave and come back at a steady rate while their channel is published to.

Half of the subscribers stay, and their delays are recorded; the other half takes turns in leaving
and coming back at once. A mover may miss what was published while it was away, and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from cachecast_bench.result import ratios
from cachecast_bench.scenarios.base import Column, Panel, Scenario
from cachecast_bench.scenarios.steps import connect, paced

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench, Stage
    from cachecast_bench.result import ScenarioResult

_SIZE = 256
_RATE_PER_S = 30.0


class Churn(Scenario):
    """See the module."""

    name: ClassVar[str] = "churn"
    title: ClassVar[str] = "unsubscribe + subscribe at a steady rate while publishing"
    columns: ClassVar[list[Column]] = [
        Column("confirms_per_s", "moves/s", "count"),
        Column("confirm_p50_us", "confirm p50", "delay"),
        Column("confirm_p99_us", "p99", "delay"),
        Column("target_cpu", "CPU", "share"),
        Column("p50_us", "delay p50", "delay"),
        Column("p99_us", "p99", "delay"),
        Column("max_us", "max", "delay"),
    ]
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel("Confirmation p99", "confirm_p99_us", "delay", across="moves a second"),
        Panel("Delay p99 of those who stay", "p99_us", "delay", across="moves a second"),
    )  # fmt: skip

    figures: ClassVar[tuple[str, ...]] = ("confirm_p99_ms", "p99_ratio")

    @override
    def n_samples(self, bench: Bench) -> int:
        """Each rate of moving, on the engine alone."""
        return 0 if bench.engine is None else bench.n_repeats(5, quick=2) * len(_rates(bench))

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Measure without and with churn of several rates, interleaved."""
        if bench.engine is None:
            return
        n = bench.n_subscribers([1_000], quick=[1_000])[0]
        async with bench.stage(bench.engine) as stage:
            await connect(bench, stage, n // 2, crew="staying")
            await connect(bench, stage, n - n // 2, crew="moving", n_probes=0)
            for _ in range(bench.n_repeats(5, quick=2)):
                for moves_per_s in _rates(bench):
                    await self._measure(bench, stage, result, n, moves_per_s)
        self._conclude(result, n)

    async def _measure(
        self, bench: Bench, stage: Stage, result: ScenarioResult, n: int, moves_per_s: int
    ) -> None:
        # The movers are listed second: whether they get a message depends on where they are.
        plan = paced(stage, _RATE_PER_S, crew="staying", lines=1)
        run: dict[str, Any] = {"plans": [plan], "size": _SIZE}
        run["seconds"] = 1.0 if bench.quick else 3.0
        if moves_per_s:
            run["churn"] = {"crew": "moving", "rate_per_s": moves_per_s}
        case = {"subscribers": n, "moves a second": moves_per_s}
        await bench.measure(stage, result, case, **run)

    def _conclude(self, result: ScenarioResult, n: int) -> None:
        calm = result.find({"subscribers": n, "moves a second": 0}, "cachecast")
        busy = result.find({"subscribers": n, "moves a second": 500}, "cachecast")
        if busy is not None:
            confirms = [value / 1e3 for value in busy.values("confirm_p99_us")]
            words = "p99 from subscribe to its confirmation, 500 moves/s"
            result.add_figure("confirm_p99_ms", "ms", "lower", words, confirms)
        words = "p99 of those who stay, with 500 moves/s / without"
        result.add_figure("p99_ratio", "", "lower", words, ratios(busy, calm, "p99_us"))


def _rates(bench: Bench) -> tuple[int, ...]:
    return (0, 500) if bench.quick else (0, 500, 2_000)
