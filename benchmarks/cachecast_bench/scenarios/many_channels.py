"""Ten thousand channels of one and of ten subscribers, published to evenly and by Zipf's law.

There are as many connections as channels; with ten subscribers a channel, each connection is in
ten of them. By Zipf's law (exponent 1.1) the hottest channel gets about a tenth of all publishes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from cachecast_bench.scenarios.base import Column, Panel, Scenario
from cachecast_bench.scenarios.steps import connect, lines_of, own_and_peers

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench, Stage
    from cachecast_bench.result import ScenarioResult

_SIZE = 256
_ZIPF = 1.1
_PACED_PER_S = 1_000.0


class ManyChannels(Scenario):
    """See the module."""

    name: ClassVar[str] = "many-channels"
    title: ClassVar[str] = "10,000 channels of 1 and of 10 subscribers, uniform and Zipf"
    columns: ClassVar[list[Column]] = [
        Column("publishes_per_s", "publish/s", "count"),
        Column("deliveries_per_s", "deliv/s", "count"),
        Column("cpu_us_per_publish", "us/publish", "cost"),
        Column("target_cpu", "CPU", "share"),
        Column("p50_us", "p50", "delay"),
        Column("p99_us", "p99", "delay"),
    ]
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel("Publishes/s, flat out", "publishes_per_s", prefers={"mode": "flat"}),
        Panel("Delay p99, paced", "p99_us", "delay", prefers={"mode": "paced"}),
    )  # fmt: skip

    figures: ClassVar[tuple[str, ...]] = (
        "publishes_per_s_1_uniform",
        "publishes_per_s_1_zipf",
        "publishes_per_s_10_uniform",
        "publishes_per_s_10_zipf",
    )

    @override
    def n_samples(self, bench: Bench) -> int:
        """Two laws, two modes; with ten subscribers a channel only on the engine."""
        targets = own_and_peers(bench)
        stages = len(targets) + len(targets[:1])
        return bench.n_repeats(3, quick=1) * 4 * stages

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Measure each number of subscribers, distribution and mode, interleaved."""
        n = bench.n_subscribers([10_000], quick=[1_000])[0]
        channels = [f"many-{i:05}" for i in range(n)]
        for each in (1, 10):
            # Only the engine is in ten channels with one connection; paths and URLs allow one.
            targets = own_and_peers(bench) if each == 1 else own_and_peers(bench)[:1]
            options: dict[str, Any] = {
                "channels": channels,
                "per_client": each,
                "n_probes": max(1, n // 4),
            }
            async with bench.stages(targets, result) as stages:
                await bench.each(stages, result, partial(connect, bench, count=n, **options))
                step = partial(self._measure, bench, result, channels, each)
                for _ in range(bench.n_repeats(3, quick=1)):
                    await bench.each(stages, result, step)
        self._conclude(result, n)

    async def _measure(
        self, bench: Bench, result: ScenarioResult, channels: list[str], each: int, stage: Stage
    ) -> None:
        for law, skew in (("uniform", 0.0), ("Zipf", _ZIPF)):
            for mode in ("paced", "flat"):
                plan: dict[str, Any] = {"name": "main", "channels": channels, "crews": ["all"]}
                plan |= {"skew": skew, "lines": lines_of(stage, is_paced=False)}
                plan |= {"rate_per_s": _PACED_PER_S} if mode == "paced" else {"window": 256}
                case = {"channels": len(channels), "each": each, "law": law, "mode": mode}
                run: dict[str, Any] = {"plans": [plan], "size": _SIZE, "warmup_s": 0.3}
                seconds = 0.5 if bench.quick else 2.0
                await bench.measure(stage, result, case, seconds=seconds, **run)

    def _conclude(self, result: ScenarioResult, n: int) -> None:
        for each in (1, 10):
            for law in ("uniform", "Zipf"):
                case = {"channels": n, "each": each, "law": law, "mode": "flat"}
                row = result.find(case, "cachecast")
                if row is not None:
                    words = f"publishes/s, {n:,} channels of {each}, {law}"
                    name = f"publishes_per_s_{each}_{law.lower()}"
                    values = row.values("publishes_per_s")
                    result.add_figure(name, "/s", "higher", words, values)
