"""A million cached values expire: how late, how evenly, and whether the memory comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from cachecast_bench.inprocess import measure_in_process
from cachecast_bench.result import Problem
from cachecast_bench.scenarios.base import Column, Panel, Scenario

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench
    from cachecast_bench.result import ScenarioResult


class Evict(Scenario):
    """See the module."""

    name: ClassVar[str] = "evict"
    title: ClassVar[str] = "cached values expiring: lag, pauses of the loop, memory (in process)"
    columns: ClassVar[list[Column]] = [
        Column("lag_p99_us", "lag p99", "delay"),
        Column("lag_max_us", "max", "delay"),
        Column("pause_p99_us", "pause p99", "delay"),
        Column("pause_max_us", "max", "delay"),
        Column("cpu_us_per_value", "us/value", "cost"),
        Column("rss_before", "before", "bytes"),
        Column("rss_bytes", "full", "bytes"),
        Column("rss_after_bytes", "after", "bytes"),
    ]
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel("Lag behind the deadline, p99", "lag_p99_us", "delay"),
        Panel("Longest pause of the loop", "pause_max_us", "delay"),
    )  # fmt: skip

    figures: ClassVar[tuple[str, ...]] = (
        "lag_p99_ms",
        "longest_pause_ms",
        "tracked_bytes_after",
        "rss_kept_ratio",
    )

    @override
    def n_samples(self, bench: Bench) -> int:
        """Each number of values and repeat."""
        return sum(_repeats(bench, n) for n in _sizes(bench))

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Fill, wait, watch; each repeat in a process of its own."""
        if bench.engine is None:
            return
        for n in _sizes(bench):
            for _ in range(_repeats(bench, n)):
                cases = [({"values": n}, "cachecast", "sample")]
                await measure_in_process(bench, result, cases, "expiry", str(n))
        self._conclude(result)

    def _conclude(self, result: ScenarioResult) -> None:
        row = result.rows[-1]
        n = row.case["values"]
        for sample in row.samples:
            n_held = sample.get("n_held")
            if n_held != n:
                text = f"{n_held:,} of {n:,} values were held: some expired too early"
                result.problems.append(Problem("invalid", f"evict {n:,} values", text))
        for metric, name, words in (
            ("lag_p99_us", "lag_p99_ms", "lag of the oldest held value behind its deadline, p99"),
            ("pause_max_us", "longest_pause_ms", "longest pause of the loop while values expire"),
        ):
            samples = [value / 1e3 for value in row.values(metric)]
            result.add_figure(name, "ms", "lower", f"{words}, {n:,} values", samples)
        tracked = row.values("tracked_after")
        words = "bytes the cache still accounts for when everything has expired"
        result.add_figure("tracked_bytes_after", "B", "lower", words, tracked)
        memory = ("rss_before", "rss_bytes", "rss_after_bytes")
        kept = [
            (after - before) / (full - before)
            for before, full, after in zip(*map(row.values, memory), strict=True)
            if full > before
        ]
        words = "share of the memory that the values took which the process still has after them"
        result.add_figure("rss_kept_ratio", "", "lower", words, kept)


def _sizes(bench: Bench) -> list[int]:
    return [20_000] if bench.quick else [100_000, 1_000_000]


def _repeats(bench: Bench, n: int) -> int:
    return bench.n_repeats(3 if n < 1_000_000 else 2, quick=1)
