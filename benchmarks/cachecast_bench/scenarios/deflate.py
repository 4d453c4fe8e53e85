"""What compressing events costs and saves: the fan-out of typical JSON, plain and compressed.

In process, on sockets of the kernel's: see `cachecast_bench.inprocess.deflate`. A few subscribers
are there beside many, since one compression is shared by all of them and one subscriber pays for it
alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from cachecast_bench.inprocess import measure_in_process
from cachecast_bench.result import ratios
from cachecast_bench.scenarios.base import Column, Panel, Scenario

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench
    from cachecast_bench.result import ScenarioResult

_SIZES = (256, 1_024, 4_096, 10_240)
_WAYS = ("off", "on")
_SWEEPS = 30
_MANY = 1_000
"""Subscribers of the figures."""


class Deflate(Scenario):
    """See the module."""

    name: ClassVar[str] = "deflate"
    title: ClassVar[str] = "typical JSON, plain and compressed: bytes and CPU of a delivery"
    columns: ClassVar[list[Column]] = [
        Column("bytes_per_delivery", "bytes/deliv", "count"),
        Column("cpu_us_per_delivery", "us/deliv", "cost"),
    ]
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel("Bytes of a delivery", "bytes_per_delivery", across="bytes"),
        Panel("CPU of a delivery, us", "cpu_us_per_delivery", "cost", across="bytes"),
    )  # fmt: skip

    figures: ClassVar[tuple[str, ...]] = ("bytes_ratio", "cpu_ratio")

    @override
    def n_samples(self, bench: Bench) -> int:
        """Each number of subscribers, size, way and repeat."""
        if bench.engine is None:
            return 0
        cases = len(_subscribers(bench)) * len(_SIZES) * len(_WAYS)
        return cases * bench.n_repeats(3, quick=1)

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Deliver the same both ways, in turns; each repeat in a process of its own."""
        if bench.engine is None:
            return
        for n in _subscribers(bench):
            cases = [
                ({"subscribers": n, "bytes": size, "compresses": way}, "cachecast", f"{size} {way}")
                for size in _SIZES
                for way in _WAYS
            ]
            sweeps = str(5 if bench.quick else _SWEEPS)
            for _ in range(bench.n_repeats(3, quick=1)):
                await measure_in_process(bench, result, cases, "deflate", str(n), sweeps)
        for size in _SIZES:
            off, on = (
                result.find({"subscribers": _MANY, "bytes": size, "compresses": way}, "cachecast")
                for way in _WAYS
            )
            words = f"compressed / plain, {size:,} bytes of JSON, {_MANY:,} subscribers"
            for metric, name in (
                ("bytes_per_delivery", f"bytes_ratio_{size}"),
                ("cpu_us_per_delivery", f"cpu_ratio_{size}"),
            ):
                result.add_figure(name, "", "lower", words, ratios(on, off, metric))


def _subscribers(bench: Bench) -> list[int]:
    return bench.n_subscribers([1, 10, _MANY, 10_000], quick=[10, _MANY])
