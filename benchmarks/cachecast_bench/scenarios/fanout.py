"""One channel, many subscribers: what a delivery costs, and how many a second there can be.

*Paced* publishes come so rarely that none waits for another: there is nothing to join, so the CPU
of one delivery can be held against the raw loop's. *Flat* publishes come as fast as the server
takes them, through its own way of publishing; a server may join frames then, and the raw loop,
which does not, is the yardstick. *Batch* is the same with as many events in a request as one may
carry, for those who have such requests: so somebody publishes who has much to say.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from cachecast_bench.peers import PEERS
from cachecast_bench.result import ratios
from cachecast_bench.scenarios.base import Column, Panel, Scenario
from cachecast_bench.scenarios.slope import fit_line
from cachecast_bench.scenarios.steps import (
    N_LINES,
    connect,
    flat,
    own_and_peers,
    paced,
    window_of,
)
from cachecast_bench.target import RawLoop

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench, Stage
    from cachecast_bench.result import ScenarioResult

PACED_DELIVERIES_PER_S = 30_000
"""A fifth of what the raw loop reaches: a sweep is over long before the next begins."""

_MAIN_SIZE = 256
"""Bytes of the payloads that the figures are about."""

_MODES = ("paced", "flat", "batch")

_PROBE_S, _CLEARLY_BETTER = 0.3, 1.1


def _identifier(peer: str) -> str:
    """Return a peer's name as part of a figure's."""
    return peer.replace("-", "_")


class Fanout(Scenario):
    """See the module."""

    name: ClassVar[str] = "fanout"
    title: ClassVar[str] = "1 channel, 100 to 10,000 subscribers: CPU of a delivery, deliveries/s"
    columns: ClassVar[list[Column]] = [
        Column("deliveries_per_s", "deliv/s", "count"),
        Column("deliveries_per_s", "/raw", "ratio", versus="raw loop"),
        Column("cpu_us_per_delivery", "us/deliv", "cost"),
        Column("cpu_us_per_delivery", "/raw", "ratio", versus="raw loop"),
        Column("p50_us", "p50", "delay"),
        Column("p99_us", "p99", "delay"),
        Column("max_us", "max", "delay"),
    ]
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel(
            "Deliveries/s, flat out", "deliveries_per_s", across="subscribers",
            prefers={"mode": "flat", "bytes": _MAIN_SIZE}, is_log=True,
        ),
        Panel(
            "CPU of a delivery, paced, us", "cpu_us_per_delivery", "cost", across="subscribers",
            prefers={"mode": "paced", "bytes": _MAIN_SIZE}, is_log=True,
        ),
        Panel(
            "Delay p99, paced", "p99_us", "delay", across="subscribers",
            prefers={"mode": "paced", "bytes": _MAIN_SIZE}, is_log=True,
        ),
    )  # fmt: skip

    figures: ClassVar[tuple[str, ...]] = (
        "cpu_ratio",
        "ratio_to_raw_loop",
        "ratio_to_best_peer",
        "batch_ratio_to_raw_loop",
        "batch_ratio_to_best_peer",
        *(f"ratio_to_{_identifier(peer)}" for peer in PEERS),
        "cost_10k_over_100",
        "raw_loop_cost_10k_over_100",
    )

    @override
    def n_samples(self, bench: Bench) -> int:
        """One for each number of subscribers, size, mode, target and repeat."""
        cases = len(_subscribers(bench)) * sum(_repeats(bench, size) for size in _sizes(bench))
        return cases * (2 * (1 + len(own_and_peers(bench))) + (bench.engine is not None))

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Measure every size on every target, interleaved."""
        for n in _subscribers(bench):
            async with bench.stages([RawLoop(), *own_and_peers(bench)], result) as stages:
                await bench.each(stages, result, partial(connect, bench, count=n))
                await self._measure(bench, stages, n, result)
        self._conclude(bench, result)

    async def _measure(
        self, bench: Bench, stages: list[Stage], n: int, result: ScenarioResult
    ) -> None:
        for size in _sizes(bench):
            windows = await self._windows(bench, stages, n, size, result)
            for mode in _MODES:
                case = {"subscribers": n, "bytes": size, "mode": mode}

                async def measure(
                    stage: Stage,
                    case: dict[str, Any] = case,
                    windows: dict[str, int] = windows,
                ) -> None:
                    run = run_of(bench, stage, case, windows.get(stage.name))
                    sample = await bench.measure(stage, result, case, **run)
                    sample.metrics["window"] = run["plans"][0].get("window")

                takers = [stage for stage in stages if mode != "batch" or _takes_batches(stage)]
                for _ in range(_repeats(bench, size)):
                    await bench.each(takers, result, measure)

    async def _windows(
        self, bench: Bench, stages: list[Stage], n: int, size: int, result: ScenarioResult
    ) -> dict[str, int]:
        """Return how many publishes each server likes to have on their way, flat out.

        Who joins frames wants many, but uWebSockets, to name one, joins up to 32 and sends each one
        alone when more are waiting; and many may mean many connections, which cost something too.
        A contest is fair if everybody is at his best.
        """
        many = window_of(size, n)
        fewer = [
            window for window in dict.fromkeys((many // 2, N_LINES)) if N_LINES <= window < many
        ]
        chosen: dict[str, int] = {}

        async def probe(stage: Stage) -> None:
            bench.on_progress(f"{stage.name}: how many publishes on their way")
            rates: dict[int, float] = {}
            for window in (many, *fewer):
                run: dict[str, Any] = {"plans": [flat(stage, size, n, window=window)], "size": size}
                sample = await bench.sample(stage, seconds=_PROBE_S, warmup_s=_PROBE_S, **run)
                rates[window] = sample.get("deliveries_per_s") or 0.0
            chosen[stage.name] = best_window(rates)

        if fewer:
            await bench.each(stages, result, probe)
        for window in fewer:
            names = [name for name, chose in chosen.items() if chose == window]
            if names:
                result.notes.append(
                    f"{n:,} subscribers, {size:,} bytes, flat out: with {window} instead of {many} "
                    f"publishes on their way, which suits them better: {', '.join(names)}"
                )
        return chosen

    def _conclude(self, bench: Bench, result: ScenarioResult) -> None:
        result.notes.append(
            "delay: from the planned publish to the read, 32 probes; flat out it is mostly queueing"
        )
        if bench.peers and bench.sizes is None and not bench.quick:
            result.notes.append("beside peers only 256 bytes, unless --bytes says otherwise")
        for n, suffix in _named_sizes(result):
            paced, flat = _case(n, "paced"), _case(n, "flat")
            cost = ratios(
                result.find(paced, "cachecast"),
                result.find(paced, "raw loop"),
                "cpu_us_per_delivery",
            )
            rate = ratios(
                result.find(flat, "cachecast"), result.find(flat, "raw loop"), "deliveries_per_s"
            )
            words = f"{n:,} subscribers, 256 bytes"
            meaning = f"CPU per delivery / raw loop's, paced, {words}"
            result.add_figure(f"cpu_ratio{suffix}", "", "lower", meaning, cost)
            meaning = f"deliveries/s / raw loop's, flat out, {words}"
            result.add_figure(f"ratio_to_raw_loop{suffix}", "", "higher", meaning, rate)
            batches = result.find(_case(n, "batch"), "cachecast")
            rate = ratios(batches, result.find(flat, "raw loop"), "deliveries_per_s")
            meaning = f"the same, published in batches, {words}"
            result.add_figure(f"batch_ratio_to_raw_loop{suffix}", "", "higher", meaning, rate)
            self._compare_with_peers(bench, result, n, suffix)
        for target, name, whose in (
            ("cachecast", "cost_10k_over_100", ""),
            ("raw loop", "raw_loop_cost_10k_over_100", " of the raw loop: what the kernel takes"),
        ):
            few = result.find(_case(100, "paced"), target)
            many = result.find(_case(10_000, "paced"), target)
            meaning = f"CPU per delivery at 10,000 subscribers / at 100, paced, 256 bytes{whose}"
            growth = ratios(many, few, "cpu_us_per_delivery")
            result.add_figure(name, "", "lower", meaning, growth)
        self._fit(result)

    def _compare_with_peers(
        self, bench: Bench, result: ScenarioResult, n: int, suffix: str
    ) -> None:
        mine = result.find(_case(n, "flat"), "cachecast")
        rows = [result.find(_case(n, "flat"), peer.name) for peer in bench.peers]
        measured = [row for row in rows if row is not None]
        best = max(measured, key=lambda row: row.median("deliveries_per_s") or 0.0, default=None)
        if best is None:
            return
        words = f"{n:,} subscribers"
        meaning = f"deliveries/s / the best peer's ({best.target}), flat out, {words}"
        samples = ratios(mine, best, "deliveries_per_s")
        result.add_figure(f"ratio_to_best_peer{suffix}", "", "higher", meaning, samples)
        batches = result.find(_case(n, "batch"), "cachecast")
        meaning = f"the same, published in batches, {words}"
        samples = ratios(batches, best, "deliveries_per_s")
        result.add_figure(f"batch_ratio_to_best_peer{suffix}", "", "higher", meaning, samples)
        for row in measured:
            name = f"ratio_to_{_identifier(row.target)}{suffix}"
            meaning = f"deliveries/s / those of {row.target}, flat out, {words}"
            samples = ratios(mine, row, "deliveries_per_s")
            result.add_figure(name, "", "higher", meaning, samples)

    def _fit(self, result: ScenarioResult) -> None:
        """How the price of a sweep grows with subscribers; descriptors end the line at 10,000."""
        rows = [result.find(_case(n, "paced"), "cachecast") for n, _ in _named_sizes(result)]
        points = [
            (row.case["subscribers"], row.median("cpu_us_per_delivery") or 0.0)
            for row in rows
            if row is not None
        ]
        if len(points) > 1:
            slope, start = fit_line([(n, n * cost) for n, cost in points])
            result.notes.append(
                f"fit over {points[0][0]:,} to {points[-1][0]:,}: a sweep costs {start:.0f} us + "
                f"{slope:.2f} us a subscriber; 20,000 descriptors a process leave more than that "
                "untested"
            )


def _takes_batches(stage: Stage) -> bool:
    return stage.running.endpoint.batch > 1


def best_window(rates: dict[int, float]) -> int:
    """Return the window of the best rate, or the largest one if none is clearly better."""
    many, best = max(rates), max(rates, key=lambda window: rates[window])
    return best if rates[best] > _CLEARLY_BETTER * rates[many] else many


def _subscribers(bench: Bench) -> list[int]:
    return bench.n_subscribers([100, 1_000, 5_000, 10_000], quick=[100, 1_000])


def _sizes(bench: Bench) -> list[int]:
    """Beside peers one size, because nine servers at three would take an hour."""
    return bench.sizes or ([_MAIN_SIZE] if bench.quick or bench.peers else [64, _MAIN_SIZE, 4096])


def _repeats(bench: Bench, size: int) -> int:
    """Most where figures come from."""
    usual = 3 if bench.peers else 5
    return bench.n_repeats(usual if size == _MAIN_SIZE else 2, quick=2)


def _case(n: int, mode: str) -> dict[str, Any]:
    return {"subscribers": n, "bytes": _MAIN_SIZE, "mode": mode}


def _named_sizes(result: ScenarioResult) -> list[tuple[int, str]]:
    """The figures without a suffix are those of 1,000 subscribers, which the requirements name."""
    sizes = sorted({row.case["subscribers"] for row in result.rows})
    return [(n, "" if n == 1_000 else f"_{n}") for n in sizes]


def run_of(bench: Bench, stage: Stage, case: dict[str, Any], window: int | None) -> dict[str, Any]:
    """Return the arguments of one run; flat out with `window` publishes on their way, if given."""
    n, size = case["subscribers"], case["bytes"]
    if case["mode"] == "paced":
        rate_per_s = max(2.0, PACED_DELIVERIES_PER_S / n)
        # Enough sweeps for a percentile, also where one takes a tenth of a second.
        seconds = max(0.6 if bench.quick else 1.5, 5 / rate_per_s)
        return {"plans": [paced(stage, rate_per_s)], "size": size, "seconds": seconds}
    seconds = 0.4 if bench.quick else 1.0
    options: dict[str, Any] = {} if window is None else {"window": window}
    if case["mode"] == "batch":
        # All that may be on its way in so many fewer requests.
        batch = stage.running.endpoint.batch
        options = {"batch": batch, "lines": max(1, window_of(size, n) // batch)}
    plan = flat(stage, size, n, **options)
    return {"plans": [plan], "size": size, "seconds": seconds, "warmup_s": 0.4}
