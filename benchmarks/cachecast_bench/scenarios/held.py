"""As many connections as four workers hold here, and what one publish to all of them costs.

The clients are held by small processes with addresses of their own, for a process has no more
files, and an address no more ports, than a part of the connections. They subscribe to one channel
and stay. After each step: memory of the workers, the parent and the engine, CPU of all of
them while nothing happens, and then a few signed publishes, one at a time, until the last client
has read each.

All servers are on one core and all clients on another. So the time of a sweep is that of one core,
or of the clients if they are slower; the CPU is the servers' alone.
"""

from __future__ import annotations

import math
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import psutil
import trio
from typing_extensions import override

from cachecast_bench.bench import taken_by_others
from cachecast_bench.ceilings import find_ceilings, held_by_one, sources_of
from cachecast_bench.cpu_clock import cpu_ns
from cachecast_bench.dialects import open_dialect
from cachecast_bench.generator.remote import Generator, GeneratorError, open_generator
from cachecast_bench.generator.stream import payload_of
from cachecast_bench.joined import Workers, pids_by_role
from cachecast_bench.process import core_times
from cachecast_bench.result import Sample
from cachecast_bench.scenarios.base import Column, Panel, Scenario
from cachecast_bench.scenarios.slope import fit_line
from cachecast_bench.scenarios.steps import CHANNEL
from cachecast_load.measures.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from cachecast_bench.bench import Bench
    from cachecast_bench.result import Row, ScenarioResult
    from cachecast_bench.target import Running

_N_WORKERS = 4
_SIZE = 256
_N_WARM = 40
"""Clients that come and go before memory is first looked at: a few for each worker, for what they
leave behind is used again."""

_SWEEP_LIMIT_S = 60.0
_ANSWER_LIMIT_S = 30.0
_SETTLE_S = 0.5

_MILLION = 1_000_000
_CORES_OF_ONE = 16
"""Of a machine on paper."""
_KIB, _MIB, _GIB = 1024.0, 1024.0**2, 1024.0**3


@dataclass(slots=True)
class _Crowd:
    """A node with workers, the processes that hold its clients, and one publisher.

    Attributes:
        running: The node.
        holders: Its clients.
        n_held: How many they are.
        n_published: Publishes so far: the next one's number.
        base: Memory before anybody was held.
    """

    running: Running
    holders: list[Generator]
    publisher: trio.SocketStream
    n_held: int = 0
    n_published: int = 0
    base: dict[str, float] = field(default_factory=dict)

    @property
    def pids(self) -> list[int]:
        """All processes of the node."""
        return self.running.child.pids

    async def hold(self, n: int) -> float:
        """Connect clients until there are `n`; returns the seconds that took.

        Raises:
            GeneratorError: Some did not get through.
        """
        started = trio.current_time()
        shares = share_out(n, len(self.holders))
        already = share_out(self.n_held, len(self.holders))

        async def connect(number: int) -> None:
            await self.holders[number].connect(
                count=shares[number] - already[number],
                channel=CHANNEL,
                sources=sources_of(number),
                reached=self.n_published - 1,
            )

        await _for_each(range(len(self.holders)), connect)
        self.n_held = n
        return trio.current_time() - started

    async def release(self) -> None:
        """Close all clients."""
        for holder in self.holders:
            await holder.disconnect("all")
        self.n_held = 0

    async def sweep(self) -> tuple[int, list[dict[str, Any]]]:
        """Publish once and wait until it has reached everybody.

        Returns:
            When it was published (monotonic, nanoseconds), and what each holder says.
        """
        dialect = open_dialect(self.running.endpoint.to_json())
        count = dialect.reply_counter()
        assert count is not None
        number, self.n_published = self.n_published, self.n_published + 1
        request = dialect.publish(CHANNEL, [payload_of(0, 0, number, _SIZE)])
        since_ns = time.monotonic_ns()
        with trio.move_on_after(_ANSWER_LIMIT_S) as scope:
            await self.publisher.send_all(request)
            while not count(data := await self.publisher.receive_some(65536)):
                if not data:
                    message = "the node closed its publisher's connection"
                    raise GeneratorError(message)
        if scope.cancelled_caught:
            message = f"a publish to {self.n_held:,} was not answered in {_ANSWER_LIMIT_S:.0f} s"
            raise GeneratorError(message)
        return since_ns, await self.collect(number, since_ns, _SWEEP_LIMIT_S)

    async def collect(self, number: int, since_ns: int, limit_s: float) -> list[dict[str, Any]]:
        """Ask all holders what became of a publish."""
        reports: list[dict[str, Any]] = []

        async def ask(holder: Generator) -> None:
            about = {"number": number, "since_ns": since_ns, "limit_s": limit_s}
            reports.append(await holder.ask("collect", **about))

        await _for_each(self.holders, ask)
        return reports

    def memory(self) -> dict[str, float]:
        """Look at the memory of the node, by role, and at the kernel's."""
        roles = pids_by_role(self.running.child)
        rss = {
            role: [psutil.Process(pid).memory_info().rss for pid in pids]
            for role, pids in roles.items()
        }
        return {
            "rss_bytes": sum(rss["workers"]),
            "rss_fullest_bytes": max(rss["workers"]),
            "rss_parent_bytes": sum(rss["parent"]),
            "rss_engine_bytes": sum(rss["engine"]),
            "rss_holders_bytes": sum(one.child.usage().rss_bytes for one in self.holders),
            "slab_bytes": _slab_bytes(),
        }


class Held(Scenario):
    """See the module."""

    name: ClassVar[str] = "held"
    title: ClassVar[str] = "connections held by four workers, and one publish to all of them"
    columns: ClassVar[list[Column]] = [
        Column("rss_per_connection", "RSS/conn", "bytes"),
        Column("kernel_per_connection", "kernel", "bytes"),
        Column("rss_bytes", "RSS", "bytes"),
        Column("imbalance", "uneven", "ratio"),
        Column("cpu_at_rest", "rest", "share"),
        Column("sweep_us", "sweep", "delay"),
        Column("cpu_us_per_delivery", "us/deliv", "cost"),
        Column("p50_us", "p50", "delay"),
        Column("p99_us", "p99", "delay"),
    ]
    panels: ClassVar[tuple[Panel, ...]] = (
        Panel("Memory of four workers", "rss_bytes", "bytes", across="connections"),
        Panel("From one publish to its last delivery", "sweep_us", "delay", across="connections"),
    )  # fmt: skip

    figures: ClassVar[tuple[str, ...]] = (
        "held",
        "kib_per_connection",
        "cpu_percent_at_rest",
        "sweep_ms",
        "cpu_us_per_delivery",
        "imbalance",
    )

    @override
    def n_samples(self, bench: Bench) -> int:
        """Each publish at each step."""
        return 0 if bench.engine is None else len(_wanted(bench)) * _repeats(bench)

    @override
    async def run(self, bench: Bench, result: ScenarioResult) -> None:
        """Hold more and more, and publish to all of them after each step."""
        if bench.engine is None:
            return
        steps = self._steps(bench, result)
        base: dict[str, float] = {}
        try:
            async with _open_crowd(bench, max(steps)) as (target, crowd):
                await self._warm(crowd)
                base = crowd.base
                for n in steps:
                    await self._step(bench, result, target, crowd, n)
        finally:
            self._conclude(result, base)

    def _steps(self, bench: Bench, result: ScenarioResult) -> list[int]:
        """Return the steps that the system allows, the last one as high as it does."""
        lowest = min(find_ceilings(_N_WORKERS), key=lambda one: one.most)
        wanted = _wanted(bench)
        if max(wanted) > lowest.most:
            result.notes.append(
                f"{max(wanted):,} connections are more than this system lets us hold; it ends at "
                f"{lowest.most:,}: {lowest.words}"
            )
        return sorted({min(n, lowest.most) for n in wanted})

    async def _warm(self, crowd: _Crowd) -> None:
        """Have everything imported and made before memory is looked at."""
        await crowd.hold(_N_WARM)
        await crowd.sweep()
        await crowd.release()
        await trio.sleep(2 * _SETTLE_S)
        crowd.base = crowd.memory()

    async def _step(
        self, bench: Bench, result: ScenarioResult, target: Workers, crowd: _Crowd, n: int
    ) -> None:
        bench.on_progress(f"{target.name}: connecting {n:,} clients")
        n_more = n - crowd.n_held
        seconds = await crowd.hold(n)
        await trio.sleep(_SETTLE_S)
        once = _compared(crowd.memory(), crowd.base, n)
        counts = await target.connections(crowd.running)
        once["imbalance"] = max(counts) * len(counts) / sum(counts)
        once["clients_per_s"] = n_more / seconds
        bench.on_progress(f"{target.name}: {n:,} clients at rest")
        once |= await self._rest(bench, crowd)
        for _ in range(_repeats(bench)):
            bench.on_progress(f"{target.name}: a publish to {n:,}")
            sample, discarded = await bench.undisturbed(lambda: self._sweep(bench, crowd))
            sample.metrics |= once
            sample.raw["by_worker"] = counts
            bench.keep(result, {"connections": n}, target.name, sample, discarded)
            once = {}

    async def _rest(self, bench: Bench, crowd: _Crowd) -> dict[str, float | None]:
        """Watch the servers do nothing for a while."""
        seconds = 1.0 if bench.quick else 5.0
        pinged = await self._n_pings(crowd)
        used = cpu_ns(crowd.pids)
        await trio.sleep(seconds)
        share = (cpu_ns(crowd.pids) - used) / 1e9 / seconds
        n_pings = await self._n_pings(crowd) - pinged
        return {"cpu_at_rest": share, "pings_per_s_at_rest": n_pings / seconds}

    async def _n_pings(self, crowd: _Crowd) -> int:
        reports = [await holder.ask("count") for holder in crowd.holders]
        return sum(report["n_pings"] for report in reports)

    async def _sweep(self, bench: Bench, crowd: _Crowd) -> Sample:
        beside = [pid for holder in crowd.holders for pid in holder.child.pids]
        pids = {"target": crowd.pids, "generator": [psutil.Process().pid, *beside]}
        before, used = core_times(), {role: cpu_ns(them) for role, them in pids.items()}
        _, reports = await crowd.sweep()
        after, used_after = core_times(), {role: cpu_ns(them) for role, them in pids.items()}
        ours = {role: (used_after[role] - used[role]) / 1e9 for role in pids}
        delays, ledger = Histogram(), dict.fromkeys(reports[0]["ledger"], 0)
        for report in reports:
            delays.merge(Histogram.from_wire(report["delays"]))
            for name, count in report["ledger"].items():
                ledger[name] += count
        span_s = after[bench.cores.target].at_s - before[bench.cores.target].at_s
        metrics: dict[str, float | None] = {
            "sweep_us": delays.greatest,
            "cpu_ms": 1e3 * ours["target"],
            "cpu_us_per_delivery": 1e6 * ours["target"] / max(1, delays.count),
            "target_cpu": ours["target"] / span_s,
            "generator_cpu": ours["generator"] / span_s,
            "first_us": delays.least,
            "p50_us": delays.percentile(50),
            "p99_us": delays.percentile(99),
            **taken_by_others(before, after, ours, bench.cores),
        }
        # A sweep is as fast as the slower side, which the notes say.
        return Sample(metrics, ledger, is_yardstick=True, raw={"delays": delays.to_wire()})

    def _conclude(self, result: ScenarioResult, base: dict[str, float]) -> None:
        rows = sorted(result.rows, key=lambda row: int(row.case["connections"]))
        if not rows:
            return
        last = rows[-1]
        n = last.case["connections"]
        words = f"RSS of four workers, another connection with a subscription, up to {n:,}"
        slopes = _slopes(rows, base)
        result.add_figure("held", "", "higher", "connections, each with a subscription", [n])
        result.add_figure("kib_per_connection", "KiB", "lower", words, [slopes["rss_bytes"] / _KIB])
        share = [100 * value for value in last.values("cpu_at_rest")]
        words = f"CPU of workers, parent and engine with {n:,} connections that do nothing"
        result.add_figure("cpu_percent_at_rest", "%", "lower", words, share)
        words = f"from a signed publish until the last of {n:,} has read it; servers on one core"
        sweeps = [value / 1e3 for value in last.values("sweep_us")]
        result.add_figure("sweep_ms", "ms", "lower", words, sweeps)
        words = f"CPU of workers, parent and engine for one publish to {n:,}, a delivery"
        costs = last.values("cpu_us_per_delivery")
        result.add_figure("cpu_us_per_delivery", "us", "lower", words, costs)
        words = "connections of the busiest of four workers / a quarter of all"
        result.add_figure("imbalance", "", "lower", words, last.values("imbalance"))
        result.notes += self._notes(last, slopes)

    def _notes(self, last: Row, slopes: dict[str, float]) -> list[str]:
        others = {
            "parent": last.median("rss_parent_bytes"),
            "engine": last.median("rss_engine_bytes"),
            "the fullest worker": last.median("rss_fullest_bytes"),
        }
        sizes = ", ".join(f"{name} {(size or 0) / _MIB:.0f} MiB" for name, size in others.items())
        clients = (last.median("rss_holders_bytes") or 0) / _MIB
        pings = last.median("pings_per_s_at_rest") or 0
        return [
            f"RSS at the end: {sizes}; the clients' own {clients:.0f} MiB",
            f"pings while at rest: {pings:.0f} a second (of silent clients, one in 45 seconds)",
            "clients and servers share the machine; a delay ends when its client has read",
            "kernel: half of what its slabs grew by, for both ends are here",
            on_paper(slopes),
        ]


def on_paper(slopes: dict[str, float]) -> str:
    """Say what a million connections would take, by the lines through what was measured.

    Args:
        slopes: What another connection adds: bytes of `rss_bytes` and `slab_bytes` (both ends), and
            `cpu_ms` of a publish to all.
    """
    rss = slopes["rss_bytes"] * _MILLION / _GIB
    kernel = slopes["slab_bytes"] / 2 * _MILLION / _GIB
    seconds = slopes["cpu_ms"] * _MILLION / 1e3
    n_cores = math.ceil(seconds)
    n_machines = max(1, math.ceil(n_cores / _CORES_OF_ONE))
    return (
        f"a million, on paper: {slopes['rss_bytes'] / _KIB:.2f} KiB a connection are {rss:.1f} GiB "
        f"in the workers, and sockets {kernel:.1f} GiB in the kernel; {slopes['cpu_ms'] * 1e3:.1f} "
        f"us a delivery are {seconds:.1f} s of CPU for one publish to all: {n_cores} cores, of "
        f"{n_machines} machine{'s' if n_machines > 1 else ''} with {_CORES_OF_ONE}, to be through "
        "in a second"
    )


def share_out(n: int, n_parts: int) -> list[int]:
    """Return `n` in parts that differ by one at most; with a larger `n` none is smaller."""
    return [n // n_parts + (i < n % n_parts) for i in range(n_parts)]


@asynccontextmanager
async def _open_crowd(bench: Bench, n_most: int) -> AsyncIterator[tuple[Workers, _Crowd]]:
    """Start the node and as many holders as `n_most` clients take; end them with the block."""
    target = Workers(_N_WORKERS)
    bench.on_progress(f"starting {target.name}")
    n_holders = -(-n_most // held_by_one())
    async with target.start(bench.cores.target, None) as running, AsyncExitStack() as stack:
        bench.configurations[running.name] = running.notes
        endpoint, core = running.endpoint, bench.cores.generator
        holders = [
            await stack.enter_async_context(open_generator(endpoint, core=core, program="holder"))
            for _ in range(n_holders)
        ]
        publisher = await trio.open_tcp_stream(endpoint.host, endpoint.port)
        async with publisher:
            yield target, _Crowd(running, holders, publisher)


async def _for_each(them: Any, step: Callable[[Any], Awaitable[object]]) -> None:  # noqa: ANN401
    async with trio.open_nursery() as nursery:
        for one in them:
            nursery.start_soon(step, one)


def _compared(memory: dict[str, float], base: dict[str, float], n: int) -> dict[str, float | None]:
    """Return memory with what of it is a connection's."""
    kernel = (memory["slab_bytes"] - base["slab_bytes"]) / 2 / n
    rss = (memory["rss_bytes"] - base["rss_bytes"]) / n
    return {**memory, "rss_per_connection": rss, "kernel_per_connection": kernel}


def _slopes(rows: list[Row], base: dict[str, float]) -> dict[str, float]:
    """Return what another connection adds to each amount, by the line through what was seen."""
    slopes = {}
    for metric in ("rss_bytes", "slab_bytes", "cpu_ms"):
        points = [(row.case["connections"], row.median(metric) or 0.0) for row in rows]
        if metric in base or len(points) == 1:
            points.append((0, base.get(metric, 0.0)))
        slopes[metric], _ = fit_line(points)
    return slopes


def _slab_bytes() -> int:
    """Return what the kernel holds in small objects, sockets among them."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    return int(text.partition("\nSlab:")[2].split()[0]) * 1024


def _wanted(bench: Bench) -> list[int]:
    return bench.n_subscribers([10_000, 20_000, 40_000, 70_000], quick=[400])


def _repeats(bench: Bench) -> int:
    return bench.n_repeats(5, quick=1)
