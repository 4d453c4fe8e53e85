"""What a publish costs: signed HTTP requests on kept-alive connections, and the same in process.

Each connection publishes to a channel of its own with one subscriber, so that hardly anything but
the way in is measured. The yardstick is a bare httptools responder that is sent the very same
requests: as long as it is faster than the generator, which has as many system calls to make, rates
say nothing, so the two are held against each other by the CPU that one request takes of them.
`events/s` counts events: a batch of 10 is 10 of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from cachecast_bench.inprocess import measure_in_process
from cachecast_bench.result import ratios
from cachecast_bench.scenarios.base import Column, Panel, Scenario
from cachecast_bench.scenarios.steps import connect
from cachecast_bench.target import Responder

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench, Stage
    from cachecast_bench.result import ScenarioResult
    from cachecast_bench.target import Target

_SIZE = 256


class Publish(Scenario):
    """See the module."""

    name: ClassVar[str] = "publish"
    title: ClassVar[str] = "signed HTTP publishes, keep-alive, one subscriber each; Broker.publish"
    columns: ClassVar[list[Column]] = [
        Column("events_per_s", "events/s", "count"),
        Column("cpu_us_per_event", "us/event", "cost"),
        Column("cpu_us_per_event", "/bare", "ratio", versus="responder"),
        Column("target_cpu", "server", "share"),
        Column("generator_cpu", "gen", "share"),
        Column("answer_p50_us", "answer p50", "delay"),
        Column("answer_p99_us", "p99", "delay"),
    ]
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel("Events/s", "events_per_s"),
        Panel("CPU of an event, us", "cpu_us_per_event", "cost"),
    )  # fmt: skip

    figures: ClassVar[tuple[str, ...]] = (
        "per_s",
        "ratio_to_httptools",
        "rate_ratio_to_httptools",
        "in_process_per_s",
    )

    @override
    def n_samples(self, bench: Bench) -> int:
        """Each number of connections, way of encoding, target and repeat; and in process."""
        n = len(_connections(bench)) * len(_variants(bench)) * bench.n_repeats(5, quick=2)
        n *= len(_targets(bench))
        return n + (2 * bench.n_repeats(3, quick=1) if _runs_in_process(bench) else 0)

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Measure both targets, interleaved, then the engine in process."""
        for n in _connections(bench):
            async with bench.stages(_targets(bench), result) as stages:
                for stage in stages:
                    if stage.name != "responder":
                        await connect(bench, stage, n, channels=_channels(n), n_probes=0)
                await self._measure(bench, stages, n, result)
        if _runs_in_process(bench):
            cases = [
                ({"connections": "in process", "encoding": "no reader", "batch": 1}, "nobody"),
                ({"connections": "in process", "encoding": "one reader", "batch": 1}, "subscribed"),
            ]
            for _ in range(bench.n_repeats(3, quick=1)):
                rows = [(case, "cachecast", key) for case, key in cases]
                effort = "0.5" if bench.quick else "2"
                await measure_in_process(bench, result, rows, "micro", "publish", effort)
        self._conclude(result)

    async def _measure(
        self, bench: Bench, stages: list[Stage], n: int, result: ScenarioResult
    ) -> None:
        for encoding, batch in _variants(bench):
            case = {"connections": n, "encoding": encoding, "batch": batch}
            for _ in range(bench.n_repeats(5, quick=2)):
                for stage in stages:
                    run = _run_of(bench, stage, n, encoding, batch)
                    is_bare = stage.name == "responder"
                    sample = await bench.measure(stage, result, case, is_yardstick=is_bare, **run)
                    sample.metrics["events_per_s"] = sample.get("answers_per_s")
                    sample.metrics["cpu_us_per_event"] = sample.get("cpu_us_per_publish")

    def _conclude(self, result: ScenarioResult) -> None:
        single = {"connections": 32, "encoding": "json", "batch": 1}
        mine, bare = result.find(single, "cachecast"), result.find(single, "responder")
        words = "signed JSON publishes, 32 connections, one subscriber each"
        if mine is not None:
            rates = mine.values("events_per_s")
            result.add_figure("per_s", "/s", "higher", words, rates)
        shares = ratios(bare, mine, "cpu_us_per_event")
        meaning = "CPU of a bare httptools answer / CPU of such a publish"
        result.add_figure("ratio_to_httptools", "", "higher", meaning, shares)
        meaning = (
            "such publishes/s / requests/s of the bare responder, which the load may hold back"
        )
        rates = ratios(mine, bare, "events_per_s")
        result.add_figure("rate_ratio_to_httptools", "", "higher", meaning, rates)
        alone = {"connections": "in process", "encoding": "no reader", "batch": 1}
        row = result.find(alone, "cachecast")
        if row is not None:
            words = "Broker.publish in process, nobody subscribed"
            rates = row.values("events_per_s")
            result.add_figure("in_process_per_s", "/s", "higher", words, rates)


def _connections(bench: Bench) -> list[int]:
    return [32] if bench.quick else [1, 32]


def _variants(bench: Bench) -> list[tuple[str, int]]:
    variants = [("json", 1), ("json", 10), ("msgpack", 1)]
    return variants[:1] if bench.quick else variants


def _targets(bench: Bench) -> list[Target]:
    return [Responder(), *([] if bench.engine is None else [bench.engine])]


def _runs_in_process(bench: Bench) -> bool:
    return bench.engine is not None and bench.certificate is None


def _channels(n: int) -> list[str]:
    return [f"publish-{i:02}" for i in range(n)]


def _run_of(bench: Bench, stage: Stage, n: int, encoding: str, batch: int) -> dict[str, Any]:
    plan: dict[str, Any] = {
        "name": "main",
        "channels": _channels(n),
        "crews": [] if stage.name == "responder" else ["all"],
        "lines": n,
        "batch": batch,
        "window": 0,
        # The answer alone frees a connection, as with the server libraries.
        "gate_on_deliveries": False,
        "dialect_options": {"encoding": encoding},
    }
    seconds = 0.5 if bench.quick else 2.0
    return {"plans": [plan], "size": _SIZE, "seconds": seconds, "warmup_s": 0.3}
