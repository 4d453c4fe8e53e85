"""Everybody comes at once: connect, subscribe, receive the cached value.

A thousand handshakes are under way at any time, as many as a common listen backlog holds, until
all clients are through. Meanwhile a hundred clients that were there before are published to on a
schedule: what they feel is the price of the storm for everybody else. The raw loop and, if it is
installed, nginx with nchan accept the same WebSockets; they have no value to give. They may be
faster than the generator, so they are compared by the CPU that one client takes of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from benchmarks.peers import PEERS
from benchmarks.result import ratios
from benchmarks.scenarios.base import Column, Scenario
from benchmarks.scenarios.steps import connect, own_and_peers, paced
from benchmarks.target import Limit

if TYPE_CHECKING:
    from benchmarks.bench import Bench, Stage
    from benchmarks.result import ScenarioResult
    from benchmarks.target import Target

_IN_FLIGHT = 1_000
_N_CALM = 100
_CALM_RATE_PER_S = 50.0
_VALUE_SIZE = 256


class Storm(Scenario):
    """See the module."""

    name: ClassVar[str] = "storm"
    title: ClassVar[str] = "connect + subscribe + cached value, everybody at once"
    columns: ClassVar[list[Column]] = [
        Column("clients_per_s", "clients/s", "count"),
        Column("cpu_us_per_client", "us/client", "cost"),
        Column("cpu_us_per_client", "/limit", "ratio", versus="limit"),
        Column("target_cpu", "server", "share"),
        Column("wait_p50_us", "wait p50", "delay"),
        Column("wait_p99_us", "p99", "delay"),
        Column("p99_us", "calm p99", "delay"),
    ]

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Measure storms of several sizes on every target, interleaved."""
        for n in bench.subscribers or ([1_000] if bench.quick else [1_000, 5_000, 10_000]):
            for kind in ("public", "authorized"):
                async with bench.stages(_targets(bench, kind)) as stages:
                    for stage in stages:
                        await connect(bench, stage, _N_CALM, crew="calm", n_probes=_N_CALM)
                    case = {"clients": n, "kind": kind}
                    for _ in range(bench.repeats or (2 if bench.quick else 3)):
                        for stage in stages:
                            await self._storm(bench, stage, result, case)
        self._conclude(result)

    async def _storm(
        self, bench: Bench, stage: Stage, result: ScenarioResult, case: dict[str, Any]
    ) -> None:
        has_values = stage.running.endpoint.keeps_values
        channel = "private-cache-storm" if case["kind"] == "authorized" else "cache-storm"
        if has_values:
            await publish_once(stage, channel)
        clients = {
            "crew": "storm",
            "channels": [channel],
            "count": case["clients"],
            "in_flight": _IN_FLIGHT,
            "wait_for_value": has_values,
        }
        calm = paced(stage, _CALM_RATE_PER_S, name="calm", crew="calm")
        run: dict[str, Any] = {
            "plans": [calm],
            "size": _VALUE_SIZE,
            "seconds": 0.0,
            "warmup_s": 0.2,
        }
        is_yardstick = stage.name != "cachecast"
        run |= {"connect": clients, "is_yardstick": is_yardstick}
        await bench.measure(stage, result, case, plan="calm", **run)
        await stage.generator.disconnect("storm")
        # The server has as many farewells to digest; they are not part of the next storm.
        await stage.generator.settle(0.5 + case["clients"] / 10_000)

    def _conclude(self, result: ScenarioResult) -> None:
        sizes = sorted({row.case["clients"] for row in result.rows})
        result.notes.append(
            "calm: 100 clients that were there before, published to 50 times a second"
        )
        for n in sizes:
            case = {"clients": n, "kind": "public"}
            mine = result.find(case, "cachecast")
            suffix = "" if n == sizes[-1] else f"_{n}"
            words = f"{n:,} clients at once, public cache channel"
            if mine is not None:
                rates = mine.values("clients_per_s")
                result.add_figure(f"clients_per_s{suffix}", "/s", "higher", words, rates)
            for other, title in (("nchan", "nginx + nchan"), ("limit", "the raw loop")):
                share = ratios(result.find(case, other), mine, "cpu_us_per_client")
                meaning = f"CPU of a client that {title} accepts / CPU of one here, {n:,} clients"
                result.add_figure(f"ratio_to_{other}{suffix}", "", "higher", meaning, share)


async def publish_once(stage: Stage, channel: str) -> None:
    """Publish one value to `channel`, whoever listens, and wait for the answer."""
    plan = {"name": "value", "channels": [channel], "crews": [], "lines": 1, "rate_per_s": 5.0}
    await stage.generator.run(plans=[plan], size=_VALUE_SIZE, seconds=0.1)


def _targets(bench: Bench, kind: str) -> list[Target]:
    if kind == "authorized":
        return [] if bench.engine is None else [bench.engine]
    nchan = PEERS.get("nchan")
    others = own_and_peers(bench)
    if nchan is not None and nchan.why_missing() is None and nchan not in others:
        others.append(nchan)
    return [Limit(), *others]
