"""What a client costs that does nothing: memory of the process, and CPU.

Each case begins with a fresh server, so that memory is not what an earlier case has left behind.
Resident memory of the process is counted (with its children); what the kernel holds for a socket,
about the same for every server, is not in it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from cachecast_bench.cpu_clock import cpu_ns
from cachecast_bench.result import Sample
from cachecast_bench.scenarios.base import Column, Panel, Scenario
from cachecast_bench.scenarios.slope import fit_line
from cachecast_bench.scenarios.steps import connect, own_and_peers
from cachecast_bench.target import RawLoop

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench, Stage
    from cachecast_bench.result import ScenarioResult
    from cachecast_bench.target import Target

_N_WARM = 20
"""Clients that come and go before memory is first looked at: code is imported, buffers are made."""


class Idle(Scenario):
    """See the module."""

    name: ClassVar[str] = "idle"
    title: ClassVar[str] = "memory of an idle connection and of a subscription, CPU at rest"
    columns: ClassVar[list[Column]] = [
        Column("rss_per_connection", "RSS/conn", "bytes"),
        Column("rss_bytes", "RSS", "bytes"),
        Column("rss_after_bytes", "after", "bytes"),
        Column("cpu_at_rest", "CPU at rest", "share"),
        Column("n_fds", "fds", "count"),
        Column("clients_per_s", "conn/s", "count"),
    ]
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel(
            "Memory of the process", "rss_bytes", "bytes", across="connections",
            prefers={"subscriptions": 1},
        ),
        Panel("Memory of a connection", "rss_per_connection", "bytes"),
        Panel("CPU at rest", "cpu_at_rest", "share", prefers={"subscriptions": 1}),
    )  # fmt: skip

    figures: ClassVar[tuple[str, ...]] = (
        "rss_kib_per_connection",
        "cpu_percent",
        "bytes_per_subscription",
    )

    @override
    def n_samples(self, bench: Bench) -> int:
        """Each number of connections, of subscriptions, target and repeat."""
        targets = [RawLoop(), *own_and_peers(bench)]
        return bench.n_repeats(3, quick=1) * sum(
            len(_subscriptions(bench, target, n)) for target in targets for n in _connections(bench)
        )

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Measure connections without, with one and with ten subscriptions."""
        for n in _connections(bench):
            for _ in range(bench.n_repeats(3, quick=1)):
                for target in [RawLoop(), *own_and_peers(bench)]:
                    for n_subscriptions in _subscriptions(bench, target, n):
                        step = partial(self._measure, bench, n, n_subscriptions, result)
                        # A fresh server for each sample.
                        async with bench.stages([target], result) as stages:
                            await bench.each(stages, result, step)
        self._conclude(result)

    async def _measure(
        self, bench: Bench, n: int, n_subscriptions: int, result: ScenarioResult, stage: Stage
    ) -> None:
        channels = [f"idle-{i}" for i in range(n_subscriptions)]
        options: dict[str, Any] = {"channels": channels, "per_client": n_subscriptions}
        await connect(bench, stage, _N_WARM, crew="warm", n_probes=0, **options)
        await stage.generator.disconnect("warm")
        await stage.generator.settle(0.3)
        before = stage.running.child.usage()
        report = await connect(bench, stage, n, n_probes=0, **options)
        await stage.generator.settle(0.5)
        sample = await self._rest(bench, stage)
        metrics = sample.metrics
        metrics["rss_per_connection"] = ((metrics["rss_bytes"] or 0) - before.rss_bytes) / n
        metrics["rss_before_bytes"] = before.rss_bytes
        metrics["clients_per_s"] = n / report["seconds"]
        await stage.generator.disconnect("all")
        await stage.generator.settle(0.5 + n / 10_000)
        metrics["rss_after_bytes"] = stage.running.child.usage().rss_bytes
        case = {"connections": n, "subscriptions": n_subscriptions}
        bench.keep(result, case, stage.name, sample, [])

    async def _rest(self, bench: Bench, stage: Stage) -> Sample:
        """Watch the server do nothing for a while."""
        seconds = 1.0 if bench.quick else 5.0
        pids = stage.running.child.pids
        bench.on_progress(f"{stage.name} at rest")
        used = cpu_ns(pids)
        report = await stage.generator.settle(seconds)
        share = (cpu_ns(pids) - used) / 1e9 / seconds
        usage = stage.running.child.usage()
        # Who was thrown out takes no memory: that would be no measurement of idle connections.
        ledger = {"closed": report["n_closed"]}
        return Sample(
            {"rss_bytes": usage.rss_bytes, "n_fds": usage.n_fds, "cpu_at_rest": share}, ledger
        )

    def _conclude(self, result: ScenarioResult) -> None:
        rows = [row for row in result.rows if row.target == "cachecast"]
        if not rows:
            return
        result.notes.append(
            "at rest nobody is pinged: a ping and its pong every 45 seconds come on top"
        )
        n = max(row.case["connections"] for row in rows)
        one = result.find({"connections": n, "subscriptions": 1}, "cachecast")
        ten = result.find({"connections": n, "subscriptions": 10}, "cachecast")
        if one is not None:
            kib = [value / 1024 for value in one.values("rss_per_connection")]
            words = f"process RSS of an idle connection with one subscription, {n:,} of them"
            result.add_figure("rss_kib_per_connection", "KiB", "lower", words, kib)
            share = [100 * value for value in one.values("cpu_at_rest")]
            result.add_figure("cpu_percent", "%", "lower", f"CPU at rest, {n:,} connections", share)
        if one is not None and ten is not None:
            pairs = zip(
                ten.values("rss_per_connection"), one.values("rss_per_connection"), strict=False
            )
            each = [(many - few) / 9 for many, few in pairs]
            words = "process RSS of one more subscription of a connection"
            result.add_figure("bytes_per_subscription", "B", "lower", words, each)
        self._fit(result)

    def _fit(self, result: ScenarioResult) -> None:
        rows = [
            row
            for row in result.rows
            if row.target == "cachecast" and row.case["subscriptions"] == 1
        ]
        points = [(row.case["connections"], row.median("rss_bytes") or 0.0) for row in rows]
        if len({x for x, _ in points}) > 1:
            slope, start = fit_line(points)
            result.notes.append(
                f"fit: {start / 1024**2:.1f} MiB + {slope / 1024:.2f} KiB a connection; beyond "
                f"{max(x for x, _ in points):,} the limit of 20,000 descriptors leaves it untested"
            )


def _connections(bench: Bench) -> list[int]:
    return bench.n_subscribers([1_000, 5_000, 10_000], quick=[1_000])


def _subscriptions(bench: Bench, target: Target, n: int) -> list[int]:
    """One; and of the engine, where there are most connections, what none and ten more take."""
    if target is not bench.engine or bench.quick or n < max(_connections(bench)):
        return [1]
    return [0, 1, 10]
