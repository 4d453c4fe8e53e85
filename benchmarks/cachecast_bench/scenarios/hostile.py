"""One app under attack, and what another one on the same node feels.

The healthy app has one publisher, who sends a signed request on a kept connection at each instant
of a schedule, and a few subscribers. Its delays are those from the planned publish to the answer
and to the delivery. Each attack meets a node of its own, on which the healthy app is measured
without it first.

The attack comes from a process of its own (`cachecast_bench.attacker`). If that has to share the
generator's core, the generator goes first; a sample in which it starved all the same is INVALID.
What an attack came to (connections, cut off, bytes) is in the file, below `attack`.
"""

from __future__ import annotations

import dataclasses
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import trio
from typing_extensions import override

from cachecast_bench.attacker.attacks import ATTACKS
from cachecast_bench.certificate import temporary_certificate
from cachecast_bench.generator.remote import open_generator
from cachecast_bench.scenarios.base import Column, Panel, Scenario
from cachecast_bench.scenarios.steps import connect, paced
from cachecast_bench.target import Engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cachecast_bench.bench import Bench, Stage
    from cachecast_bench.generator.remote import Generator
    from cachecast_bench.result import Sample, ScenarioResult

_SIZE = 256
_RATE_PER_S = 100.0
_N_SUBSCRIBERS = 5

_CREDENTIALS = {"app_id": "666", "key": "attacked-key", "secret": "attacked-secret"}
_ATTACKED = {
    "id": _CREDENTIALS["app_id"],
    "key": _CREDENTIALS["key"],
    "secret": _CREDENTIALS["secret"],
    "sends_subscription_counts": True,
    "max_presence_members": 10_000,
}

_NOTHING = "nothing"
_QUICK = ("fragment_flood", "many_channels", "connection_flood")
_QUICK_SCALE = 0.2

_PATIENCE_S = 60.0
"""How long the node may take for what was published before it counts as lost: a stall is what is
looked for here, so it must be measured and not called a loss."""

_ALLOWED_LAG_US = 10_000.0
"""By which the generator may be late itself: a fifth of what the healthy app is promised."""


class Hostile(Scenario):
    """See the module."""

    name: ClassVar[str] = "hostile"
    title: ClassVar[str] = "each attack on one app, and the delays of a healthy one beside it"
    columns: ClassVar[list[Column]] = [
        Column("healthy_p99_us", "p99", "delay"),
        Column("answer_p50_us", "answer p50", "delay"),
        Column("answer_p99_us", "p99", "delay"),
        Column("p50_us", "delivery p50", "delay"),
        Column("p99_us", "p99", "delay"),
        Column("max_us", "max", "delay"),
        Column("target_cpu", "CPU", "share"),
    ]
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel("p99 of a healthy app beside each attack", "healthy_p99_us", "delay"),
    )  # fmt: skip

    figures: ClassVar[tuple[str, ...]] = (
        "healthy_p99_ms",
        "alone_p99_ms",
        *(f"{attack}_p99_ms" for attack in ATTACKS),
    )

    @override
    def n_samples(self, bench: Bench) -> int:
        """Each attack and repeat, with and without it."""
        return 0 if bench.engine is None else 2 * _repeats(bench) * len(_attacks(bench))

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Measure the healthy app alone and beside each attack, on a new node each time."""
        if bench.engine is None:
            return
        with temporary_certificate() as certificate:
            secure = dataclasses.replace(bench, certificate=certificate)
            for _ in range(_repeats(bench)):
                for attack in _attacks(bench):
                    means = secure if attack == "tls_handshakes" else bench
                    await self._measure(means, result, attack)
        self._conclude(result)

    async def _measure(self, bench: Bench, result: ScenarioResult, attack: str) -> None:
        async def take() -> Sample:
            """Both samples, on a node that nobody has attacked yet."""
            async with bench.stage(Engine(apps=[_ATTACKED])) as stage:
                await connect(bench, stage, _N_SUBSCRIBERS, n_probes=_N_SUBSCRIBERS)
                alone = await self._sample(bench, stage, result, _NOTHING)
                async with _attacker(bench, stage) as attacker:
                    bench.on_progress(f"{result.name}: preparing {attack}")
                    scale = _QUICK_SCALE if bench.quick else 1.0
                    await attacker.ask("prepare", attack=attack, scale=scale)
                    sample = await self._beside(bench, stage, result, attack, attacker)
            calm[id(sample)] = alone
            return sample

        calm: dict[int, Sample] = {}
        sample, discarded = await bench.undisturbed(take)
        bench.keep(result, {"beside": _NOTHING}, "cachecast", calm[id(sample)], [])
        bench.keep(result, {"beside": attack}, "cachecast", sample, discarded)

    async def _beside(
        self,
        bench: Bench,
        stage: Stage,
        result: ScenarioResult,
        attack: str,
        attacker: Generator,
    ) -> Sample:
        counts: dict[str, Any] = {}

        async def strike() -> None:
            counts.update(await attacker.ask("strike", seconds=_seconds(bench)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(strike)
            sample = await self._sample(bench, stage, result, attack)
        sample.raw["attack"] = counts
        return sample

    async def _sample(
        self, bench: Bench, stage: Stage, result: ScenarioResult, beside: str
    ) -> Sample:
        bench.on_progress(f"{result.name} beside {beside}")
        plan = paced(stage, _RATE_PER_S, lines=1)
        run: dict[str, Any] = {"plans": [plan], "size": _SIZE, "patience_s": _PATIENCE_S}
        sample = await bench.sample(stage, seconds=_seconds(bench), **run)
        delays = [sample.get("answer_p99_us"), sample.get("p99_us")]
        known = [one for one in delays if one is not None]
        sample.metrics["healthy_p99_us"] = max(known, default=None)
        sample.metrics["allowed_lag_us"] = _ALLOWED_LAG_US
        return sample

    def _conclude(self, result: ScenarioResult) -> None:
        result.notes.append("p99: the larger one of answer and delivery, from the planned publish")
        result.notes += [
            f"{row.case['beside']}: {ATTACKS[row.case['beside']].title}"
            for row in result.rows
            if row.case["beside"] in ATTACKS
        ]
        p99_ms = {
            row.case["beside"]: [value / 1e3 for value in row.values("healthy_p99_us")]
            for row in result.rows
        }
        add = partial(result.add_figure, unit="ms", better="lower")
        alone = p99_ms.pop(_NOTHING, [])
        # Every attack has to be held against the promise, so of each repeat the worst one counts.
        worst = [max(values) for values in zip(*p99_ms.values(), strict=False)]
        add(
            "healthy_p99_ms",
            meaning="p99 of the healthy app beside the worst attack",
            samples=worst,
        )
        add("alone_p99_ms", meaning="p99 of the healthy app beside nothing", samples=alone)
        for attack, samples in p99_ms.items():
            meaning = f"p99 of the healthy app: {ATTACKS[attack].title}"
            add(f"{attack}_p99_ms", meaning=meaning, samples=samples)


@asynccontextmanager
async def _attacker(bench: Bench, stage: Stage) -> AsyncIterator[Generator]:
    """Start a process that attacks the other app; end it when the block is left."""
    endpoint = dataclasses.replace(stage.running.endpoint, options=_CREDENTIALS)
    core = bench.cores.spare
    is_shared = core is None
    if core is None:
        core = bench.cores.generator
    async with open_generator(endpoint, core=core, program="attacker") as attacker:
        if is_shared:
            stage.company.append(attacker.child)
        yield attacker
        stage.company.clear()


def _attacks(bench: Bench) -> list[str]:
    return [name for name in ATTACKS if not bench.quick or name in _QUICK]


def _repeats(bench: Bench) -> int:
    return bench.n_repeats(3, quick=1)


def _seconds(bench: Bench) -> float:
    return 1.2 if bench.quick else 4.0
