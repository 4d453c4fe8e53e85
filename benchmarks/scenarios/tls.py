"""Fan-out, storm and publish once more, over TLS in process; the yardsticks speak TLS too."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from benchmarks.certificate import temporary_certificate
from benchmarks.result import ScenarioResult
from benchmarks.scenarios.base import Column, Scenario
from benchmarks.scenarios.fanout import Fanout
from benchmarks.scenarios.publish import Publish
from benchmarks.scenarios.storm import Storm

if TYPE_CHECKING:
    from benchmarks.bench import Bench


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

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Run the three scenarios with a certificate, and gather their rows and figures."""
        with temporary_certificate() as certificate:
            peers = [one for one in bench.peers if one.supports_tls]
            secure = dataclasses.replace(
                bench,
                certificate=certificate,
                subscribers=bench.subscribers or [1_000],
                peers=peers,
            )
            for scenario in (Fanout(), Storm(), Publish()):
                part = ScenarioResult(scenario.name)
                await scenario.run(secure, part)
                for row in part.rows:
                    words = " ".join(str(value) for value in row.case.values())
                    result.row(
                        {"work": f"{scenario.name} {words}"}, row.target
                    ).samples += row.samples
                for figure in part.figures:
                    result.figures.append(
                        dataclasses.replace(figure, name=f"{scenario.name}_{figure.name}")
                    )
                result.problems += part.problems
