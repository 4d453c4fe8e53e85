"""What single calls of the engine cost, in process: the floor under everything else."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from cachecast_bench.inprocess import measure_in_process
from cachecast_bench.scenarios.base import Column, Panel, Scenario

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench
    from cachecast_bench.result import ScenarioResult

_CALLS = (
    "encode JSON frame",
    "encode msgpack frame",
    "parse client frame",
    "decode subscribe",
    "decode msgpack",
    "sign request",
    "verify subscription",
)
"""What `cachecast_bench.inprocess.micro` times."""


def _figure_of(call: str) -> str:
    return call.lower().replace(" ", "_") + "_us"


class Codec(Scenario):
    """See the module."""

    name: ClassVar[str] = "codec"
    title: ClassVar[str] = "encode, decode, sign, verify: one call, in process, 256 bytes of data"
    columns: ClassVar[list[Column]] = [
        Column("us_per_call", "us/call", "cost"),
        Column("best_us", "best", "cost"),
        Column("calls_per_s", "calls/s", "count"),
    ]
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel("Time of a call, us", "us_per_call", "cost"),
    )  # fmt: skip

    figures: ClassVar[tuple[str, ...]] = tuple(_figure_of(call) for call in _CALLS)

    @override
    def n_samples(self, bench: Bench) -> int:
        """Each call and repeat."""
        return 0 if bench.engine is None else len(_CALLS) * bench.n_repeats(5, quick=1)

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Time each call in several processes, so that no one layout of memory decides."""
        if bench.engine is None:
            return
        cases = [({"call": call}, "cachecast", call) for call in _CALLS]
        n_batches = "3" if bench.quick else "9"
        for _ in range(bench.n_repeats(5, quick=1)):
            await measure_in_process(bench, result, cases, "micro", "codec", n_batches)
        for row in result.rows:
            call = row.case["call"]
            samples = row.values("us_per_call")
            result.add_figure(_figure_of(call), "us", "lower", call, samples)
