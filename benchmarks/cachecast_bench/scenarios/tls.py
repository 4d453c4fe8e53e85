"""Fan-out, storm and publish once more, over TLS in process; the yardsticks speak TLS too."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from cachecast_bench.certificate import temporary_certificate
from cachecast_bench.result import ScenarioResult
from cachecast_bench.scenarios.base import Column, Panel, Scenario
from cachecast_bench.scenarios.fanout import Fanout
from cachecast_bench.scenarios.publish import Publish
from cachecast_bench.scenarios.storm import Storm
from cachecast_bench.target import Certificate

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench

_PARTS = (Fanout(), Storm(), Publish())
_NO_CERTIFICATE = Certificate(Path(), Path())
"""To count samples with, before there is one."""


class Tls(Scenario):
    """See the module."""

    name: ClassVar[str] = "tls"
    title: ClassVar[str] = "fanout, storm and publish over TLS"
    columns: ClassVar[list[Column]] = [
        Column("deliveries_per_s", "deliv/s", "count"),
        Column("cpu_us_per_delivery", "us/deliv", "cost"),
        Column("clients_per_s", "clients/s", "count"),
        Column("events_per_s", "events/s", "count"),
        Column("cpu_us_per_event", "us/event", "cost"),
        Column("p99_us", "p99", "delay"),
    ]
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel("CPU of a delivery, us", "cpu_us_per_delivery", "cost"),
        Panel("CPU of an event, us", "cpu_us_per_event", "cost"),
    )  # fmt: skip

    figures: ClassVar[tuple[str, ...]] = tuple(
        f"{part.name}_{figure}" for part in _PARTS for figure in part.figures
    )

    @override
    def n_samples(self, bench: Bench) -> int:
        """All of its parts."""
        return sum(part.n_samples(_over_tls(bench)) for part in _PARTS)

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Run the three scenarios with a certificate, and gather their rows and figures."""
        with temporary_certificate() as certificate:
            secure = _over_tls(bench, certificate)
            for scenario in _PARTS:
                part = ScenarioResult(scenario.name)
                try:
                    await scenario.run(secure, part)
                finally:
                    _gather(result, part)


def _over_tls(bench: Bench, certificate: Certificate | None = None) -> Bench:
    """Return the same means, over TLS, at one number of subscribers unless asked."""
    return dataclasses.replace(
        bench,
        certificate=certificate or _NO_CERTIFICATE,
        subscribers=bench.subscribers or [1_000],
        peers=[one for one in bench.peers if one.supports_tls],
    )


def _gather(result: ScenarioResult, part: ScenarioResult) -> None:
    for row in part.rows:
        words = " ".join(str(value) for value in row.case.values())
        whole = result.row({"work": f"{part.name} {words}"}, row.target)
        whole.samples += row.samples
        whole.discarded += row.discarded
    result.figures += [
        dataclasses.replace(figure, name=f"{part.name}_{figure.name}") for figure in part.figures
    ]
    result.problems += part.problems
    result.notes += [f"{part.name}: {note}" for note in part.notes]
