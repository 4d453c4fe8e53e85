"""The generator measured against the raw loop: is it fast enough to measure anything else?

Against the plain loop, one frame a read is the worst it can meet. Against the loop that joins, its
capacity shows: far more deliveries than any server under test makes. Beside the engine, flat out,
it should need no more than half the CPU that the engine needs. If the figures here are low, no
other result of this machine is worth much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from cachecast_bench.scenarios.base import Column, Panel, Scenario
from cachecast_bench.scenarios.steps import connect, flat
from cachecast_bench.target import RawLoop

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench, Stage
    from cachecast_bench.result import ScenarioResult
    from cachecast_bench.target import Target

_SIZE = 256


class GeneratorCheck(Scenario):
    """See the module."""

    name: ClassVar[str] = "generator"
    title: ClassVar[str] = "self-test: the generator's own speed, against the raw loop"
    columns: ClassVar[list[Column]] = [
        Column("deliveries_per_s", "deliv/s", "count"),
        Column("target_cpu", "server", "share"),
        Column("generator_cpu", "gen", "share"),
        Column("capacity_per_s", "gen capacity/s", "count"),
    ]
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel("Deliveries/s", "deliveries_per_s"),
        Panel("Deliveries/s that the generator could take", "capacity_per_s"),
    )  # fmt: skip

    figures: ClassVar[tuple[str, ...]] = (
        "headroom",
        "capacity_over_raw_loop",
        "capacity_over_engine",
    )

    @override
    def n_samples(self, bench: Bench) -> int:
        """Both loops and the engine, each repeat."""
        return len(_targets(bench)) * bench.n_repeats(5, quick=2)

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Measure the plain loop, the joining loop and the engine, interleaved."""
        n = bench.n_subscribers([1_000], quick=[1_000])[0]
        seconds = 0.5 if bench.quick else 2.0

        async def measure(stage: Stage) -> None:
            plan = flat(stage, _SIZE, n)
            run: dict[str, Any] = {"plans": [plan], "size": _SIZE, "warmup_s": 0.4}
            case = {"subscribers": n}
            sample = await bench.measure(stage, result, case, seconds=seconds, **run)
            rate, share = sample.get("deliveries_per_s"), sample.get("generator_cpu")
            sample.metrics["capacity_per_s"] = rate / share if rate and share else None

        async with bench.stages(_targets(bench), result) as stages:
            await bench.each(stages, result, lambda stage: connect(bench, stage, n))
            for _ in range(bench.n_repeats(5, quick=2)):
                await bench.each(stages, result, measure)
        self._conclude(result, n)

    def _conclude(self, result: ScenarioResult, n: int) -> None:
        case = {"subscribers": n}
        plain, joined = result.find(case, "raw loop"), result.find(case, "raw loop, joined")
        engine = result.find(case, "cachecast")
        for row, name, words in (
            (plain, "headroom", "CPU of the raw loop / CPU of the generator, one frame a write"),
            (
                engine,
                "capacity_over_engine",
                "CPU of the engine, flat out / CPU of the generator: 2 is twice as fast",
            ),
        ):
            if row is not None:
                pairs = zip(row.values("target_cpu"), row.values("generator_cpu"), strict=True)
                samples = [server / generator for server, generator in pairs]
                result.add_figure(name, "", "higher", words, samples)
        if plain is not None and joined is not None:
            pairs = zip(
                joined.values("capacity_per_s"), plain.values("deliveries_per_s"), strict=False
            )
            words = "deliveries/s the generator can take when frames are joined / the raw loop's"
            samples = [capacity / rate for capacity, rate in pairs]
            result.add_figure("capacity_over_raw_loop", "", "higher", words, samples)


def _targets(bench: Bench) -> list[Target]:
    engines = [] if bench.engine is None else [bench.engine]
    return [RawLoop(), RawLoop(joins=True), *engines]
