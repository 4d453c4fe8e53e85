"""The generator measured against the raw loop: is it fast enough to measure anything else?

Against the plain loop, one frame a read is the worst it can meet. Against the loop that joins, its
capacity shows: far more deliveries than any server under test makes. If the figures here are low,
no other result of this machine is worth much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from benchmarks.scenarios.base import Column, Scenario
from benchmarks.scenarios.steps import connect, flat
from benchmarks.target import Limit

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.result import ScenarioResult

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

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Measure the plain and the joining loop, interleaved."""
        n = (bench.subscribers or [1_000])[0]
        async with bench.stages([Limit(), Limit(joins=True)]) as stages:
            for stage in stages:
                await connect(bench, stage, n)
            for _ in range(bench.repeats or (2 if bench.quick else 5)):
                for stage in stages:
                    run: dict[str, Any] = {
                        "plans": [flat(stage, _SIZE)],
                        "size": _SIZE,
                        "warmup_s": 0.4,
                    }
                    seconds = 0.5 if bench.quick else 2.0
                    case = {"subscribers": n}
                    sample = await bench.measure(stage, result, case, seconds=seconds, **run)
                    sample["capacity_per_s"] = sample["deliveries_per_s"] / sample["generator_cpu"]
        self._conclude(result, n)

    def _conclude(self, result: ScenarioResult, n: int) -> None:
        plain = result.find({"subscribers": n}, "limit")
        joined = result.find({"subscribers": n}, "limit, joined")
        if plain is None or joined is None:
            return
        shares = zip(plain.values("target_cpu"), plain.values("generator_cpu"), strict=True)
        words = "CPU of the raw loop / CPU of the generator, one frame a write"
        result.add_figure("headroom", "", "higher", words, [mine / other for mine, other in shares])
        pairs = zip(joined.values("capacity_per_s"), plain.values("deliveries_per_s"), strict=False)
        words = "deliveries/s the generator can take when frames are joined / the raw loop's"
        samples = [capacity / rate for capacity, rate in pairs]
        result.add_figure("capacity_over_limit", "", "higher", words, samples)
