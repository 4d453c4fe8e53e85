"""What it costs a node to be one of several: beside a node that is alone, in the same run.

*Publish*: signed publishes to cache channels with one subscriber each. Alone, a publish is done in
the node; joined, it goes to the engine, which puts it in order and keeps the value, and comes back
by its topic. The CPU is the node's own. *Join*: subscribers of a cache channel that leave and come
back a thousand times a second; joined, each waits for the answer that proves that it has missed
nothing. *Cross*: published at one node and received at the other, a thousand times a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from cachecast_bench.joined import Joined
from cachecast_bench.result import ratios
from cachecast_bench.scenarios.base import Column, Panel, Scenario
from cachecast_bench.scenarios.steps import connect, paced

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench, Stage
    from cachecast_bench.result import ScenarioResult

_SIZE = 256
_N_LINES = 32
_N_MOVING = 500
_JOINS_PER_S = 1_000
_CROSS_PER_S = 1_000.0


class Cluster(Scenario):
    """See the module."""

    name: ClassVar[str] = "cluster"
    title: ClassVar[str] = "a node that is joined to others beside one that is alone"
    columns: ClassVar[list[Column]] = [
        Column("publishes_per_s", "publish/s", "count"),
        Column("cpu_us_per_publish", "us/publish", "cost"),
        Column("cpu_us_per_publish", "/alone", "ratio", versus="cachecast"),
        Column("target_cpu", "CPU", "share"),
        Column("confirm_p50_us", "join p50", "delay"),
        Column("confirm_p99_us", "p99", "delay"),
        Column("p50_us", "delay p50", "delay"),
        Column("p99_us", "p99", "delay"),
    ]
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel(
            "CPU of a signed cached publish, us", "cpu_us_per_publish", "cost",
            where=lambda case: case["work"] == "publish",
        ),
        Panel("Delay p99", "p99_us", "delay", where=lambda case: case["work"] != "publish"),
    )  # fmt: skip

    figures: ClassVar[tuple[str, ...]] = (
        "publish_cpu_ratio",
        "publishes_per_s",
        "join_p99_ms",
        "cross_p50_ms",
        "cross_p99_ms",
    )

    @override
    def n_samples(self, bench: Bench) -> int:
        """Publish and join on both, cross on the two nodes."""
        return 0 if bench.engine is None else 6 * bench.n_repeats(5, quick=1)

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Measure each on the lone node and on the joined one, interleaved."""
        if bench.engine is None:
            return
        seconds = 0.5 if bench.quick else 2.0
        channels = [f"cache-publish-{i:02}" for i in range(_N_LINES)]
        async with bench.stages([bench.engine, Joined()], result) as stages:
            for stage in stages:
                await connect(bench, stage, _N_LINES, crew="readers", channels=channels, n_probes=0)
                await connect(bench, stage, 4, crew="staying", channels=["cache-join"])
                await connect(
                    bench, stage, _N_MOVING, crew="moving", channels=["cache-join"], n_probes=0
                )
            for _ in range(bench.n_repeats(5, quick=1)):
                for stage in stages:
                    await self._publish(bench, stage, result, channels, seconds)
                for stage in stages:
                    await self._join(bench, stage, result, seconds)
        async with bench.stages([bench.engine, Joined(2)], result) as stages:
            for stage in stages:
                await connect(bench, stage, 1, n_probes=1)
            for _ in range(bench.n_repeats(5, quick=1)):
                for stage in stages:
                    plan = paced(stage, _CROSS_PER_S)
                    run: dict[str, Any] = {"plans": [plan], "size": _SIZE, "seconds": seconds}
                    await bench.measure(stage, result, {"work": "cross"}, **run)
        self._conclude(result)

    async def _publish(
        self,
        bench: Bench,
        stage: Stage,
        result: ScenarioResult,
        channels: list[str],
        seconds: float,
    ) -> None:
        plan: dict[str, Any] = {
            "name": "main", "channels": channels, "crews": ["readers"], "lines": _N_LINES,
            "window": 0, "gate_on_deliveries": False,
        }  # fmt: skip
        run: dict[str, Any] = {"plans": [plan], "size": _SIZE, "warmup_s": 0.3}
        await bench.measure(stage, result, {"work": "publish"}, seconds=seconds, **run)

    async def _join(
        self, bench: Bench, stage: Stage, result: ScenarioResult, seconds: float
    ) -> None:
        plan = paced(stage, 100.0, crew="staying", channels=["cache-join"], lines=1)
        churn = {"crew": "moving", "rate_per_s": _JOINS_PER_S}
        run: dict[str, Any] = {"plans": [plan], "size": _SIZE, "churn": churn}
        await bench.measure(stage, result, {"work": "join"}, seconds=seconds, **run)

    def _conclude(self, result: ScenarioResult) -> None:
        joined = result.find({"work": "publish"}, "joined")
        alone = result.find({"work": "publish"}, "cachecast")
        words = "CPU of a node for a signed cached publish, joined / alone, without the engine's"
        shares = ratios(joined, alone, "cpu_us_per_publish")
        result.add_figure("publish_cpu_ratio", "", "lower", words, shares)
        if joined is not None:
            words = "signed cached publishes of a joined node, 32 connections"
            rates = joined.values("publishes_per_s")
            result.add_figure("publishes_per_s", "/s", "higher", words, rates)
        joins = result.find({"work": "join"}, "joined")
        if joins is not None:
            words = f"subscribe to confirmation and value, {_JOINS_PER_S:,} a second"
            delays = [value / 1e3 for value in joins.values("confirm_p99_us")]
            result.add_figure("join_p99_ms", "ms", "lower", f"p99 of {words}", delays)
        cross = result.find({"work": "cross"}, "two nodes")
        if cross is not None:
            for metric in ("p50", "p99"):
                words = f"{metric} from a publish at one node to its delivery at another, 1,000/s"
                delays = [value / 1e3 for value in cross.values(f"{metric}_us")]
                result.add_figure(f"cross_{metric}_ms", "ms", "lower", words, delays)
