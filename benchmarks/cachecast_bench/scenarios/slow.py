"""Clients that read slowly or not at all, and what the healthy ones beside them feel.

The slow ones have the smallest receive buffer the kernel gives, so that they are the server's
problem within a second, not the kernel's. What becomes of them is not judged here, since a server
may have to drop their messages or close them: only whether the others notice, and what it costs
in memory.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from cachecast_bench.bench import describe_case
from cachecast_bench.result import ratios
from cachecast_bench.scenarios.base import Column, Panel, Scenario
from cachecast_bench.scenarios.steps import connect, own_and_peers, paced

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench, Stage
    from cachecast_bench.result import Sample, ScenarioResult
    from cachecast_bench.target import Target

_SIZE = 4096
_RATE_PER_S = 25.0
_TRICKLE = 1_024
_RECEIVE_BUFFER = 2_048
_CREW = "slow"


class Slow(Scenario):
    """See the module."""

    name: ClassVar[str] = "slow"
    title: ClassVar[str] = "1,000 healthy subscribers beside some that read slowly or not at all"
    columns: ClassVar[list[Column]] = [
        Column("cpu_us_per_delivery", "us/deliv", "cost"),
        Column("p50_us", "p50", "delay"),
        Column("p99_us", "p99", "delay"),
        Column("max_us", "max", "delay"),
        Column("rss_growth", "RSS growth", "bytes"),
        Column("rss_bytes", "RSS", "bytes"),
    ]
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel("Delay p99 of healthy subscribers", "p99_us", "delay"),
        Panel("Memory that the slow ones cost", "rss_growth", "bytes"),
    )  # fmt: skip

    figures: ClassVar[tuple[str, ...]] = ("p99_ratio_stalled", "p99_ratio_trickling")

    @override
    def n_samples(self, bench: Bench) -> int:
        """Each kind and number of slow clients, on each target."""
        return bench.n_repeats(5, quick=2) * 4 * len(own_and_peers(bench))

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Measure healthy clients without slow ones, then with more and more of them."""
        n = bench.n_subscribers([1_000], quick=[200])[0]
        for target in own_and_peers(bench):
            await self._measure_target(bench, target, n, result)
        for kind in ("stalled", "trickling"):
            without = result.find({"healthy": n, "slow": 0, "kind": "-"}, "cachecast")
            beside = result.find({"healthy": n, "slow": n // 10, "kind": kind}, "cachecast")
            words = f"p99 of {n:,} healthy subscribers with 10 % {kind} / without"
            name = f"p99_ratio_{kind}"
            result.add_figure(name, "", "lower", words, ratios(beside, without, "p99_us"))

    async def _measure_target(
        self, bench: Bench, target: Target, n: int, result: ScenarioResult
    ) -> None:
        cases = [(0, "-"), (n // 100, "stalled"), (n // 10, "stalled"), (n // 10, "trickling")]
        # One stage for each number of slow clients, so that repeats can be interleaved: a client
        # that was closed for being slow would not be there in the next turn.
        async with bench.stages([target] * len(cases), result) as stages:
            if len(stages) < len(cases):
                return
            await bench.each(stages, result, lambda stage: connect(bench, stage, n))
            for _ in range(bench.n_repeats(5, quick=2)):
                for stage, (n_slow, kind) in zip(stages, cases, strict=True):
                    case = {"healthy": n, "slow": n_slow, "kind": kind}
                    step = partial(self._measure, bench, result, case)
                    await bench.each([stage], result, step)

    async def _measure(
        self, bench: Bench, result: ScenarioResult, case: dict[str, Any], stage: Stage
    ) -> None:
        run: dict[str, Any] = {"plans": [paced(stage, _RATE_PER_S, lines=1)], "size": _SIZE}
        seconds = 1.5 if bench.quick else 4.0

        async def take() -> Sample:
            if case["slow"]:
                options: dict[str, Any] = {"receive_buffer": _RECEIVE_BUFFER, "n_probes": 0}
                speed = 0 if case["kind"] == "stalled" else _TRICKLE
                await connect(bench, stage, case["slow"], crew=_CREW, bytes_per_s=speed, **options)
            before = stage.running.child.usage().rss_bytes
            sample = await bench.sample(stage, seconds=seconds, **run)
            sample.metrics["rss_growth"] = (sample.get("rss_bytes") or 0) - before
            await stage.generator.disconnect(_CREW)
            await stage.generator.settle(0.3)
            return sample

        bench.on_progress(f"{result.name} {describe_case(case)} {stage.name}")
        sample, discarded = await bench.undisturbed(take)
        bench.keep(result, case, stage.name, sample, discarded)
