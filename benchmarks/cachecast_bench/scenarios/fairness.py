"""One huge channel that is swept without pause, and what a hundred small ones beside it feel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from cachecast_bench.scenarios.base import DELAY_COLUMNS, Column, Panel, Scenario
from cachecast_bench.scenarios.steps import connect, flat, own_and_peers, paced

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench, Stage
    from cachecast_bench.result import ScenarioResult

_N_SMALL = 100
_MEMBERS = 10
_SMALL_RATE_PER_S = 100.0
_SIZE = 256


class Fairness(Scenario):
    """See the module."""

    name: ClassVar[str] = "fairness"
    title: ClassVar[str] = "100 channels of 10 subscribers beside one of 10,000 swept without pause"
    columns: ClassVar[list[Column]] = [
        Column("publishes_per_s", "publish/s", "count"),
        *DELAY_COLUMNS,
        Column("big_deliveries_per_s", "big deliv/s", "count"),
        Column("target_cpu", "CPU", "share"),
    ]
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel("Delay p99 of the small channels, by what is beside them", "p99_us", "delay"),
        Panel("Deliveries/s of the large channel", "big_deliveries_per_s"),
    )  # fmt: skip

    figures: ClassVar[tuple[str, ...]] = ("small_p99_ms", "small_p99_alone_ms")

    @override
    def n_samples(self, bench: Bench) -> int:
        """With and without the big channel, on each target."""
        return bench.n_repeats(5, quick=2) * 2 * len(own_and_peers(bench))

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Measure the small channels alone and beside the big one, interleaved."""
        n = bench.n_subscribers([10_000], quick=[1_000])[0]
        small = [f"small-{i:02}" for i in range(_N_SMALL)]

        async def prepare(stage: Stage) -> None:
            await connect(bench, stage, n, n_probes=0)
            count = _N_SMALL * _MEMBERS
            options: dict[str, Any] = {"channels": small, "n_probes": count // 5}
            await connect(bench, stage, count, crew="small", **options)

        async with bench.stages(own_and_peers(bench), result) as stages:
            await bench.each(stages, result, prepare)
            for _ in range(bench.n_repeats(5, quick=2)):
                await bench.each(
                    stages, result, lambda stage: self._measure(bench, stage, result, small, 0)
                )
                await bench.each(
                    stages, result, lambda stage: self._measure(bench, stage, result, small, n)
                )
        self._conclude(result, n)

    async def _measure(
        self, bench: Bench, stage: Stage, result: ScenarioResult, small: list[str], n: int
    ) -> None:
        plans = [paced(stage, _SMALL_RATE_PER_S, name="small", crew="small", channels=small)]
        if n:
            plans.append(flat(stage, _SIZE, n, name="big"))
        run: dict[str, Any] = {"plans": plans, "size": _SIZE, "warmup_s": 0.5}
        run["seconds"] = 1.0 if bench.quick else 3.0
        case = {"beside": f"{n:,}" if n else "nothing"}
        sample = await bench.measure(stage, result, case, plan="small", **run)
        if n:
            sample.metrics["big_deliveries_per_s"] = sample.beside["big"]

    def _conclude(self, result: ScenarioResult, n: int) -> None:
        words = f"p99 of 100 small channels beside {n:,} subscribers swept without pause"
        for beside, name, meaning in (
            (f"{n:,}", "small_p99_ms", words),
            ("nothing", "small_p99_alone_ms", "p99 of the same channels beside nothing"),
        ):
            row = result.find({"beside": beside}, "cachecast")
            if row is not None:
                samples = [value / 1e3 for value in row.values("p99_us")]
                result.add_figure(name, "ms", "lower", meaning, samples)
