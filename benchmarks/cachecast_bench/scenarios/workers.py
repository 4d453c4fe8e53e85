"""What four workers cost beside one process, and how evenly connections fall on them.

All of them and their engine are on one core here, so that CPU is compared and nothing else: what a
delivery takes of it, all processes counted, with at least a thousand subscribers a worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from cachecast_bench.joined import Workers as WorkersTarget
from cachecast_bench.result import ratios
from cachecast_bench.scenarios.base import DELAY_COLUMNS, Column, Panel, Scenario
from cachecast_bench.scenarios.steps import connect, paced

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench
    from cachecast_bench.result import ScenarioResult

_SIZE = 256
_N_WORKERS = 4
_DELIVERIES_PER_S = 30_000


class Workers(Scenario):
    """See the module."""

    name: ClassVar[str] = "workers"
    title: ClassVar[str] = "four workers and their engine beside one process"
    columns: ClassVar[list[Column]] = [
        Column("deliveries_per_s", "deliv/s", "count"),
        Column("cpu_us_per_delivery", "us/deliv", "cost"),
        Column("cpu_us_per_delivery", "/one", "ratio", versus="cachecast"),
        Column("target_cpu", "CPU", "share"),
        Column("rss_bytes", "RSS", "bytes"),
        *DELAY_COLUMNS[:2],
    ]
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel("CPU of a delivery, us", "cpu_us_per_delivery", "cost", across="subscribers"),
        Panel("Memory", "rss_bytes", "bytes", across="subscribers"),
    )  # fmt: skip

    figures: ClassVar[tuple[str, ...]] = ("delivery_cpu_ratio", "imbalance")

    @override
    def n_samples(self, bench: Bench) -> int:
        """Each number of subscribers on both."""
        n = len(_subscribers(bench)) * 2
        return 0 if bench.engine is None else n * bench.n_repeats(5, quick=1)

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Measure one process and four workers, interleaved."""
        if bench.engine is None:
            return
        spread: list[float] = []
        for n in _subscribers(bench):
            four_workers = WorkersTarget(_N_WORKERS)
            targets = [bench.engine, four_workers]
            async with bench.stages(targets, result) as stages:
                for stage in stages:
                    await connect(bench, stage, n)
                counts = await four_workers.connections(stages[-1].running)
                spread.append(max(counts) * len(counts) / sum(counts))
                for _ in range(bench.n_repeats(5, quick=1)):
                    for stage in stages:
                        rate = max(2.0, _DELIVERIES_PER_S / n)
                        seconds = max(0.6 if bench.quick else 2.0, 5 / rate)
                        run: dict[str, Any] = {"plans": [paced(stage, rate)], "size": _SIZE}
                        case = {"subscribers": n}
                        await bench.measure(stage, result, case, seconds=seconds, **run)
        most = {"subscribers": max(_subscribers(bench))}
        four, one = result.find(most, "workers"), result.find(most, "cachecast")
        words = "CPU of a delivery, four workers and their engine / one process"
        shares = ratios(four, one, "cpu_us_per_delivery")
        result.add_figure("delivery_cpu_ratio", "", "lower", words, shares)
        words = "connections of the busiest of four workers / a quarter of all"
        result.add_figure("imbalance", "", "lower", words, spread)


def _subscribers(bench: Bench) -> list[int]:
    return bench.n_subscribers([4_000, 8_000], quick=[400])
