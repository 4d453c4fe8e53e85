"""What single calls of the engine cost, in process: the floor under everything else."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from benchmarks.inprocess import run_program
from benchmarks.scenarios.base import Column, Scenario

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.result import ScenarioResult


class Codec(Scenario):
    """See the module."""

    name: ClassVar[str] = "codec"
    title: ClassVar[str] = "encode, decode, sign, verify: one call, in process, 256 bytes of data"
    columns: ClassVar[list[Column]] = [
        Column("us_per_call", "us/call", "cost"),
        Column("best_us", "best", "cost"),
        Column("calls_per_s", "calls/s", "count"),
    ]

    figures: ClassVar[tuple[str, ...]] = (
        "encode_json_frame_us",
        "encode_msgpack_frame_us",
        "parse_client_frame_us",
        "decode_subscribe_us",
        "decode_msgpack_us",
        "sign_request_us",
        "verify_subscription_us",
    )

    @override
    def n_samples(self, bench: Bench) -> int:
        """Each call and repeat."""
        return len(self.figures) * bench.n_repeats(5, quick=1)

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Time each call in several processes, so that no one layout of memory decides."""
        for _ in range(bench.n_repeats(5, quick=1)):
            document = await run_program(bench, "micro", "codec", "3" if bench.quick else "9")
            for call, sample in document.items():
                sample["us_per_call"] = sample.pop("ns_per_call") / 1e3
                sample["best_us"] = sample.pop("best_ns") / 1e3
                sample["calls_per_s"] = 1e6 / sample["us_per_call"]
                bench.keep(result, {"call": call}, "cachecast", sample, [])
        for row in result.rows:
            name = row.case["call"].lower().replace(" ", "_") + "_us"
            result.add_figure(name, "us", "lower", row.case["call"], row.values("us_per_call"))
