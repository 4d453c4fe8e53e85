"""Everybody comes at once: connect, subscribe, receive the cached value.

A thousand handshakes are under way at any time, as many as a common listen backlog holds, until
all clients are through. Meanwhile a hundred clients that were there before are published to on a
schedule: what they feel is the price of the storm for everybody else. The raw loop and, if it is
installed, nginx with nchan accept the same WebSockets; they have no value to give. They may be
faster than the generator, so they are compared by the CPU that one client takes of them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from cachecast_bench.bench import describe_case
from cachecast_bench.peers import PEERS
from cachecast_bench.result import ratios
from cachecast_bench.scenarios.base import Column, Panel, Scenario
from cachecast_bench.scenarios.steps import connect, own_and_peers, paced
from cachecast_bench.target import RawLoop

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench, Stage
    from cachecast_bench.result import Sample, ScenarioResult
    from cachecast_bench.target import Target

_KINDS = ("public", "authorized")
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
        Column("cpu_us_per_client", "/raw", "ratio", versus="raw loop"),
        Column("wait_p50_us", "wait p50", "delay"),
        Column("wait_p99_us", "p99", "delay"),
        Column("last_client_us", "last", "delay"),
        Column("p99_us", "calm", "delay"),
    ]
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel(
            "Clients/s, everybody at once", "clients_per_s", across="clients",
            prefers={"kind": "public"},
        ),
        Panel(
            "CPU of a client, us", "cpu_us_per_client", "cost", across="clients",
            prefers={"kind": "public"},
        ),
        Panel(
            "Delay p99 of those who were there before", "p99_us", "delay", across="clients",
            prefers={"kind": "public"},
        ),
    )  # fmt: skip

    figures: ClassVar[tuple[str, ...]] = (
        "clients_per_s",
        "authorized_per_s",
        "last_client_ms",
        "ratio_to_nchan",
        "ratio_to_raw_loop",
        "rate_ratio_to_nchan",
        "rate_ratio_to_raw_loop",
        "calm_p99_ms",
    )

    @override
    def n_samples(self, bench: Bench) -> int:
        """Each number of clients, kind, target and repeat."""
        n_targets = sum(len(_targets(bench, kind)) for kind in _KINDS)
        return len(_clients(bench)) * n_targets * bench.n_repeats(3, quick=2)

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Measure storms of several sizes on every target, interleaved."""
        calm: dict[str, Any] = {"count": _N_CALM, "crew": "calm", "n_probes": _N_CALM}
        for n in _clients(bench):
            for kind in _KINDS:
                step = partial(self._storm, bench, result, {"clients": n, "kind": kind})
                async with bench.stages(_targets(bench, kind), result) as stages:
                    await bench.each(stages, result, lambda stage: connect(bench, stage, **calm))
                    for _ in range(bench.n_repeats(3, quick=2)):
                        await bench.each(stages, result, step)
        self._conclude(result)

    async def _storm(
        self, bench: Bench, result: ScenarioResult, case: dict[str, Any], stage: Stage
    ) -> None:
        has_values = stage.running.endpoint.keeps_values
        channel = "private-cache-storm" if case["kind"] == "authorized" else "cache-storm"
        clients = {
            "crew": "storm",
            "channels": [channel],
            "count": case["clients"],
            "in_flight": _IN_FLIGHT,
            "wait_for_value": has_values,
        }
        plan = paced(stage, _CALM_RATE_PER_S, name="calm", crew="calm")
        run: dict[str, Any] = {"plans": [plan], "size": _VALUE_SIZE, "connect": clients}

        async def take() -> Sample:
            if has_values:
                await publish_once(stage, channel)
            sample = await bench.sample(stage, plan="calm", seconds=0.0, warmup_s=0.2, **run)
            await stage.generator.disconnect("storm")
            # The server has as many farewells to digest; they are not part of the next storm.
            await stage.generator.settle(0.5 + case["clients"] / 10_000)
            return sample

        bench.on_progress(f"{result.name} {describe_case(case)} {stage.name}")
        sample, discarded = await bench.undisturbed(take)
        sample.is_yardstick = stage.name != "cachecast"
        sample.metrics["with_value"] = float(has_values)
        bench.keep(result, case, stage.name, sample, discarded)

    def _conclude(self, result: ScenarioResult) -> None:
        with_value = {row.target for row in result.rows if any(row.values("with_value"))}
        names = " and ".join(sorted(with_value)) or "nobody"
        result.notes += [
            f"who waits for a cached value: clients of {names}; the others have none to give",
            "calm: p99 of 100 clients that were there before, published to 50 times a second",
        ]
        sizes = sorted({row.case["clients"] for row in result.rows})
        for n in sizes:
            suffix = "" if n == sizes[-1] else f"_{n}"
            self._add_figures(result, n, suffix)

    def _add_figures(self, result: ScenarioResult, n: int, suffix: str) -> None:
        public, authorized = ({"clients": n, "kind": kind} for kind in _KINDS)
        mine, checked = result.find(public, "cachecast"), result.find(authorized, "cachecast")
        if mine is None:
            return
        words = f"{n:,} clients at once"
        rates = mine.values("clients_per_s")
        meaning = f"connect + subscribe + cached value, {words}, public"
        result.add_figure(f"clients_per_s{suffix}", "/s", "higher", meaning, rates)
        if checked is not None:
            rates = checked.values("clients_per_s")
            meaning = f"the same, {words}, authorized"
            result.add_figure(f"authorized_per_s{suffix}", "/s", "higher", meaning, rates)
        for metric, name, meaning in (
            ("last_client_us", "last_client_ms", f"until the last one has its value, {words}"),
            ("p99_us", "calm_p99_ms", f"p99 of those who were there before, {words}"),
        ):
            delays = [value / 1e3 for value in mine.values(metric)]
            result.add_figure(f"{name}{suffix}", "ms", "lower", meaning, delays)
        for other, title in (("nchan", "nginx + nchan"), ("raw loop", "the raw loop")):
            row = result.find(public, other)
            share = ratios(row, mine, "cpu_us_per_client")
            meaning = f"CPU of a client that {title} accepts / CPU of one here, {words}"
            name = other.replace(" ", "_")
            result.add_figure(f"ratio_to_{name}{suffix}", "", "higher", meaning, share)
            rates = ratios(mine, row, "clients_per_s")
            meaning = f"clients/s / those of {title}, which the load may hold back, {words}"
            result.add_figure(f"rate_ratio_to_{name}{suffix}", "", "higher", meaning, rates)


async def publish_once(stage: Stage, channel: str) -> None:
    """Publish one value to `channel`, whoever listens, and wait for the answer."""
    plan = {"name": "value", "channels": [channel], "crews": [], "lines": 1, "rate_per_s": 5.0}
    await stage.generator.run(plans=[plan], size=_VALUE_SIZE, seconds=0.1)


def _clients(bench: Bench) -> list[int]:
    return bench.n_subscribers([1_000, 5_000, 10_000], quick=[1_000])


def _targets(bench: Bench, kind: str) -> list[Target]:
    if kind == "authorized":
        return [] if bench.engine is None else [bench.engine]
    nchan = PEERS.get("nchan")
    others = own_and_peers(bench)
    if nchan is not None and nchan.why_missing() is None and nchan not in others:
        others.append(nchan)
    return [RawLoop(), *others]
