"""One channel, many subscribers: what a delivery costs, and how many a second there can be.

*Paced* publishes come so rarely that none waits for another: there is nothing to join, so the CPU
of one delivery can be held against the raw loop's. *Flat* publishes come as fast as the server
takes them, through its own way of publishing; a server may join frames then, and the raw loop,
which does not, is the yardstick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from benchmarks.result import ratios
from benchmarks.scenarios.base import Column, Scenario
from benchmarks.scenarios.slope import fit_line
from benchmarks.scenarios.steps import connect, flat, own_and_peers, paced
from benchmarks.target import Limit

if TYPE_CHECKING:
    from benchmarks.bench import Bench, Stage
    from benchmarks.result import ScenarioResult

PACED_DELIVERIES_PER_S = 30_000
"""A fifth of what the raw loop reaches: a sweep is over long before the next begins."""


class Fanout(Scenario):
    """See the module."""

    name: ClassVar[str] = "fanout"
    title: ClassVar[str] = "1 channel, 100 to 10,000 subscribers: CPU of a delivery, deliveries/s"
    columns: ClassVar[list[Column]] = [
        Column("deliveries_per_s", "deliv/s", "count"),
        Column("deliveries_per_s", "/limit", "ratio", versus="limit"),
        Column("cpu_us_per_delivery", "us/deliv", "cost"),
        Column("cpu_us_per_delivery", "/limit", "ratio", versus="limit"),
        Column("p50_us", "p50", "delay"),
        Column("p99_us", "p99", "delay"),
        Column("max_us", "max", "delay"),
    ]

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Measure every size on every target, interleaved."""
        targets = [Limit(), *own_and_peers(bench)]
        for n_subscribers in bench.subscribers or (
            [100, 1_000] if bench.quick else [100, 1_000, 5_000, 10_000]
        ):
            async with bench.stages(targets) as stages:
                for stage in stages:
                    await connect(bench, stage, n_subscribers)
                await self._measure(bench, stages, n_subscribers, result)
        self._conclude(bench, result)

    async def _measure(
        self, bench: Bench, stages: list[Stage], n: int, result: ScenarioResult
    ) -> None:
        sizes = [256] if bench.quick else [64, 256, 4096]
        for size in sizes:
            for mode in ("paced", "flat"):
                case = {"subscribers": n, "bytes": size, "mode": mode}
                for _ in range(bench.repeats or (2 if bench.quick else 5)):
                    for stage in stages:
                        await bench.measure(
                            stage, result, case, **run_of(bench, stage, n, size, mode)
                        )

    def _conclude(self, bench: Bench, result: ScenarioResult) -> None:
        result.notes.append(
            "delay: from the planned publish to the read, 32 probes; flat out it is mostly queueing"
        )
        for n, suffix in _named_sizes(result):
            paced = {"subscribers": n, "bytes": 256, "mode": "paced"}
            flat = {"subscribers": n, "bytes": 256, "mode": "flat"}
            cost = ratios(
                result.find(paced, "cachecast"), result.find(paced, "limit"), "cpu_us_per_delivery"
            )
            rate = ratios(
                result.find(flat, "cachecast"), result.find(flat, "limit"), "deliveries_per_s"
            )
            words = f"{n:,} subscribers, 256 bytes"
            result.add_figure(
                f"cpu_ratio{suffix}",
                "",
                "lower",
                f"CPU per delivery / raw loop's, paced, {words}",
                cost,
            )
            result.add_figure(
                f"ratio_to_limit{suffix}",
                "",
                "higher",
                f"deliveries/s / raw loop's, flat out, {words}",
                rate,
            )
        self._compare_with_peers(bench, result)
        self._fit(result)

    def _compare_with_peers(self, bench: Bench, result: ScenarioResult) -> None:
        flat = {"subscribers": 1_000, "bytes": 256, "mode": "flat"}
        mine = result.find(flat, "cachecast")
        rows = [
            row
            for row in result.rows
            if row.case == flat and row.target in {one.name for one in bench.peers}
        ]
        best = max(rows, key=lambda row: row.median("deliveries_per_s") or 0.0, default=None)
        if best is not None:
            meaning = f"deliveries/s, flat out / the best peer's: {best.target}"
            samples = ratios(mine, best, "deliveries_per_s")
            result.add_figure("ratio_to_best_peer", "", "higher", meaning, samples)

    def _fit(self, result: ScenarioResult) -> None:
        """How the price of a sweep grows with subscribers.

        The machine's descriptors end the line at 10,000.
        """
        rows = [
            row
            for row in result.rows
            if row.target == "cachecast"
            and row.case["mode"] == "paced"
            and row.case["bytes"] == 256
        ]
        points = [
            (row.case["subscribers"], row.median("cpu_us_per_delivery") or 0.0) for row in rows
        ]
        few, many = result.find(_paced(100), "cachecast"), result.find(_paced(10_000), "cachecast")
        meaning = "CPU per delivery at 10,000 subscribers / at 100, paced, 256 bytes"
        result.add_figure(
            "cost_10k_over_100", "", "lower", meaning, ratios(many, few, "cpu_us_per_delivery")
        )
        if len(points) > 1:
            slope, start = fit_line([(n, n * cost) for n, cost in points])
            first, last = points[0][0], points[-1][0]
            result.notes.append(
                f"fit over {first:,} to {last:,}: a sweep costs {start:.0f} us + {slope:.2f} us a "
                "subscriber; 20,000 descriptors a process leave more than that untested"
            )


def _paced(n: int) -> dict[str, Any]:
    return {"subscribers": n, "bytes": 256, "mode": "paced"}


def _named_sizes(result: ScenarioResult) -> list[tuple[int, str]]:
    """The figures without a suffix are those of 1,000 subscribers, which the requirements name."""
    sizes = sorted({row.case["subscribers"] for row in result.rows})
    return [(n, "" if n == 1_000 else f"_{n}") for n in sizes]


def run_of(bench: Bench, stage: Stage, n_subscribers: int, size: int, mode: str) -> dict[str, Any]:
    """Return the arguments of one run."""
    if mode == "paced":
        rate_per_s = max(2.0, PACED_DELIVERIES_PER_S / n_subscribers)
        # Enough sweeps for a percentile, also where one takes a tenth of a second.
        seconds = max(0.6 if bench.quick else 2.0, 5 / rate_per_s)
        return {"plans": [paced(stage, rate_per_s)], "size": size, "seconds": seconds}
    seconds = 0.4 if bench.quick else 1.5
    return {"plans": [flat(stage, size)], "size": size, "seconds": seconds, "warmup_s": 0.4}
