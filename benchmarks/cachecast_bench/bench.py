"""What every scenario works with: targets on a stage, measured samples, progress.

A *stage* is one server and one generator of its own. All stages of a scenario stand at the same
time, with their clients connected, and take turns: A B A B. The ones that wait cost nothing, since
both their processes sleep. So a ratio is one of neighbours in time, and nobody has to connect ten
thousand clients for each repeat.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from cachecast_bench.cpu_clock import cpu_ns
from cachecast_bench.delays import summary
from cachecast_bench.generator.remote import Generator, GeneratorError, open_generator
from cachecast_bench.loop_lag import loop_lag_us
from cachecast_bench.process import CoreTimes, StartError, core_times
from cachecast_bench.result import Discarded, Problem, Sample
from cachecast_bench.verdict import (
    disturbance,
    disturbances,
    has_failures,
    is_worth_retaking,
    judge,
)
from cachecast_load.measures.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cachecast_bench.machine import Cores
    from cachecast_bench.process import Child
    from cachecast_bench.result import ScenarioResult
    from cachecast_bench.target import Certificate, Running, Target

_RETAKES = 3
"""How often a sample that other programs disturbed is taken again."""

_RETAKE_PAUSE_S = 0.3
"""Before the first retake; as much longer before each further one."""

RETAKE_BUDGET_S, QUICK_RETAKE_BUDGET_S = 120.0, 10.0
"""Time a scenario may spend on samples that it takes again. On a machine that is never quiet a run
must end all the same, with a verdict that says so."""

_CLOSES = "; closes after each answer, so every publish opens a connection of its own"

MIN_DELAYS_P999 = 1_000
"""Below this a 99.9th percentile is the maximum by another name, and is left out."""


@dataclass(slots=True)
class Stage:
    """A server and the generator that is its client.

    Attributes:
        target: What was started.
        running: The server.
        generator: Its client.
        is_out: A peer that could not do what was asked of it; the others go on without it.
        company: Programs of ours that share the generator's core, so that nobody takes them for
            other people's.
    """

    target: Target
    running: Running
    generator: Generator
    is_out: bool = False
    company: list[Child] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The server's name in tables."""
        return self.running.name

    @property
    def is_unanswered(self) -> bool:
        """Publishes are not answered, so one publisher connection is as good as several."""
        return not self.running.endpoint.answers_publishes


@dataclass(slots=True)
class Bench:
    """The means of a run, handed to each scenario.

    Attributes:
        cores: Which core is whose.
        quick: Smoke-test sizes.
        peers: Other servers to measure beside the engine, where a scenario suits them.
        certificate: Set when everything is to speak TLS.
        on_progress: Called with a description before each step.
        on_sample: Called after each sample that was added to a row.
        configurations: Filled with each target's configuration in words.
        subscribers: If given, these numbers instead of a scenario's own.
        sizes: If given, payloads of so many bytes instead of a scenario's own.
        repeats: If given, this many instead of a scenario's own.
        engine: The engine, unless it is left out.
        retake_budget_s: Time that this scenario may still spend on taking samples again.
    """

    cores: Cores
    quick: bool = False
    peers: list[Target] = field(default_factory=list)
    certificate: Certificate | None = None
    on_progress: Callable[[str], None] = lambda _: None
    on_sample: Callable[[], None] = lambda: None
    configurations: dict[str, str] = field(default_factory=dict)
    subscribers: list[int] | None = None
    sizes: list[int] | None = None
    repeats: int | None = None
    engine: Target | None = None
    retake_budget_s: float = RETAKE_BUDGET_S

    def n_repeats(self, usual: int, *, quick: int) -> int:
        """Return how often each case is measured: as asked for, else what the scenario wants."""
        return self.repeats or (quick if self.quick else usual)

    def n_subscribers(self, usual: list[int], *, quick: list[int]) -> list[int]:
        """Return the numbers of clients: as asked for, else as the scenario thinks best."""
        return self.subscribers or (quick if self.quick else usual)

    @asynccontextmanager
    async def stage(self, target: Target) -> AsyncIterator[Stage]:
        """Start `target` and a generator for it; end both when the block is left."""
        self.on_progress(f"starting {target.name}")
        async with (
            target.start(self.cores.target, self.certificate) as running,
            open_generator(running.endpoint, core=self.cores.generator) as generator,
        ):
            closing = _CLOSES if running.endpoint.closes_after_answer else ""
            self.configurations[running.name] = running.notes + closing
            yield Stage(target, running, generator)

    @asynccontextmanager
    async def stages(
        self, targets: list[Target], result: ScenarioResult
    ) -> AsyncIterator[list[Stage]]:
        """Start all `targets`, in order; a peer that does not start is a problem of `result`."""
        async with AsyncExitStack() as stack:
            stages = []
            for target in targets:
                try:
                    stages.append(await stack.enter_async_context(self.stage(target)))
                except StartError as error:
                    if not target.is_peer:
                        raise
                    result.problems.append(_left_out(result, target, error))
            yield stages

    async def each(
        self,
        stages: list[Stage],
        result: ScenarioResult,
        step: Callable[[Stage], Awaitable[object]],
    ) -> None:
        """Carry out `step` on one stage after the other.

        A peer that cannot do it is out from here on, which is a problem of `result`.

        Raises:
            GeneratorError: The engine or a yardstick could not do it: nothing is left to measure.
        """
        for stage in stages:
            if stage.is_out:
                continue
            try:
                await step(stage)
            except GeneratorError as error:
                reason = _why(stage, error)
                if not stage.target.is_peer:
                    raise reason from error
                stage.is_out = True
                result.problems.append(_left_out(result, stage.target, reason))

    async def measure(
        self,
        stage: Stage,
        result: ScenarioResult,
        case: dict[str, Any],
        *,
        plan: str = "main",
        is_yardstick: bool = False,
        **run: Any,  # noqa: ANN401 - the generator checks it
    ) -> Sample:
        """Run once, judge the sample, add it to its row, and return it.

        `plan` names the plan whose deliveries make the row.
        """
        where = f"{result.name} {describe_case(case)} {stage.name}"
        self.on_progress(where)
        sample, discarded = await self.undisturbed(lambda: self.sample(stage, plan=plan, **run))
        sample.is_yardstick = is_yardstick
        self.keep(result, case, stage.name, sample, discarded)
        return sample

    async def undisturbed(
        self, take: Callable[[], Awaitable[Sample]]
    ) -> tuple[Sample, list[Sample]]:
        """Take a sample, and again, after a pause, if other programs disturbed it.

        The least disturbed one counts, unless the server did something wrong in one: then that one
        does. Bounded for each sample and for the scenario.

        Returns:
            The sample that counts, and those that do not.
        """
        taken = [await take()]
        while (
            len(taken) <= _RETAKES
            and self.retake_budget_s > 0
            and is_worth_retaking(taken[-1], quick=self.quick)
        ):
            started = trio.current_time()
            await trio.sleep(_RETAKE_PAUSE_S * len(taken))
            taken.append(await take())
            self.retake_budget_s -= trio.current_time() - started
        counts = taken[-1] if has_failures(taken[-1]) else min(taken, key=disturbance)
        return counts, [one for one in taken if one is not counts]

    def keep(
        self,
        result: ScenarioResult,
        case: dict[str, Any],
        target: str,
        sample: Sample,
        discarded: list[Sample],
    ) -> None:
        """Judge a sample and add it to its row, with what was thrown away for it."""
        where = f"{result.name} {describe_case(case)} {target}"
        result.problems.extend(judge(sample, where))
        row = result.row(case, target)
        row.samples.append(sample)
        row.discarded += [Discarded(disturbances(one), one) for one in discarded]
        self.on_sample()

    async def sample(
        self,
        stage: Stage,
        *,
        plan: str = "main",
        **run: Any,  # noqa: ANN401 - the generator checks it
    ) -> Sample:
        """Run once and return what was measured, with the disturbance seen meanwhile."""
        child = stage.running.child
        beside = [pid for one in stage.company for pid in one.pids]
        generator = [*stage.generator.child.pids, os.getpid(), *beside]
        pids = {"target": child.pids, "generator": generator}
        before, used = core_times(), {role: cpu_ns(them) for role, them in pids.items()}
        report = await stage.generator.run(pids=pids["target"], **run)
        after, used_after = core_times(), {role: cpu_ns(them) for role, them in pids.items()}
        usage = child.usage()
        sample = derive(report, plan, is_paced=_is_paced(run["plans"], plan))
        ours = {role: (used_after[role] - used[role]) / 1e9 for role in pids}
        metrics = sample.metrics
        metrics |= taken_by_others(before, after, ours, self.cores)
        metrics["n_planned"] = _planned(run, plan)
        if stage.running.admin_port is not None:
            metrics["target_loop_lag_us"] = await loop_lag_us(stage.running.admin_port)
        client = stage.generator.child.usage()
        metrics |= {"rss_bytes": usage.rss_bytes, "n_fds": usage.n_fds}
        metrics |= {"generator_rss_bytes": client.rss_bytes, "generator_n_fds": client.n_fds}
        return sample


def derive(report: dict[str, Any], plan: str, *, is_paced: bool) -> Sample:
    """Turn a generator's report into the metrics of one plan; the report itself stays in `raw`.

    Paced: from the first publish until the last delivery. Flat: between the two marks well inside
    the run.
    """
    marks, part = report["marks"], report["plans"][plan]
    is_whole = is_paced and not report.get("connect")
    first, last = (
        (marks["start"], marks["drained"]) if is_whole else (marks["opened"], marks["closed"])
    )
    wall_s = (last["at_ns"] - first["at_ns"]) / 1e9
    counts = {
        name: last["plans"][plan][name] - first["plans"][plan][name]
        for name in ("published", "replied", "delivered")
    }
    target_cpu_s = (last["target_cpu_ns"] - first["target_cpu_ns"]) / 1e9
    generator_cpu_s = (last["generator_cpu_ns"] - first["generator_cpu_ns"]) / 1e9
    delays = Histogram.from_wire(part["delays"])
    late = Histogram.from_wire(part["lateness"])
    answers = Histogram.from_wire(part["answers"])
    delivered, published = counts["delivered"], counts["published"]
    metrics: dict[str, float | None] = {
        "wall_s": wall_s,
        "deliveries_per_s": delivered / wall_s,
        "publishes_per_s": published / wall_s,
        "answers_per_s": counts["replied"] / wall_s,
        "target_cpu": target_cpu_s / wall_s,
        "generator_cpu": generator_cpu_s / wall_s,
        "n_deliveries": delivered,
        "cpu_us_per_delivery": 1e6 * target_cpu_s / delivered if delivered else None,
        "cpu_us_per_publish": 1e6 * target_cpu_s / published if published else None,
        "frame_bytes": part["frame_bytes"],
        "n_published": part["n_published"],
        "late_p99_us": late.percentile(99),
        "generator_lag_p99_us": Histogram.from_wire(report["loop_lag"]).percentile(99),
        "answer_p50_us": answers.percentile(50),
        "answer_p99_us": answers.percentile(99),
    }
    sample = Sample(
        metrics,
        ledger=part["ledger"],
        beside=_rates_of_others(marks, plan),
        is_flat=not is_paced,
        raw=report,
    )
    if connect := report.get("connect"):
        metrics |= _connecting(connect, marks)
        sample.refusals = connect["errors"]
    if report.get("churn"):
        waits = Histogram.from_wire(report["churn"]["waits"])
        metrics |= {"confirm_p50_us": waits.percentile(50), "confirm_p99_us": waits.percentile(99)}
        metrics["confirms_per_s"] = waits.count / wall_s
    if part["n_expected"] and part["n_probes"]:
        metrics |= {"n_delays": delays.count, **summary(delays)}
        if delays.count < MIN_DELAYS_P999:
            metrics["p999_us"] = None
    return sample


def _why(stage: Stage, error: GeneratorError) -> GeneratorError:
    """Return the error with the server's name, and with its last words if it has ended."""
    code = stage.running.child.process.poll()
    if code is None:
        return GeneratorError(f"{stage.name}: {error}")
    words = stage.running.child.last_words().splitlines()
    # Who was killed by a signal has not said why.
    last = f": {words[-1]}" if words and code > 0 else ""
    return GeneratorError(f"{stage.name}: the server ended with code {code}{last}")


def _left_out(result: ScenarioResult, target: Target, error: Exception) -> Problem:
    where = f"{result.name} {target.name}"
    return Problem("invalid", where, f"{in_short(error)}; it is left out from here on")


def in_short(error: BaseException) -> str:
    """Return the first line of what went wrong, and the last: a traceback ends with its reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return traceback.format_exception_only(error)[-1].strip()
    return lines[0] if len(lines) == 1 or lines[-1] in lines[0] else f"{lines[0]} ... {lines[-1]}"


def _rates_of_others(marks: dict[str, Any], plan: str) -> dict[str, float]:
    """Deliveries/s of the other plans of a run, between the two marks well inside it."""
    first, last = marks["opened"], marks["closed"]
    wall_s = (last["at_ns"] - first["at_ns"]) / 1e9 or 1.0
    return {
        name: (counts["delivered"] - first["plans"][name]["delivered"]) / wall_s
        for name, counts in last["plans"].items()
        if name != plan
    }


def _connecting(connect: dict[str, Any], marks: dict[str, Any]) -> dict[str, float | None]:
    """What clients that connected meanwhile add to a sample."""
    waits = Histogram.from_wire(connect["waits"])
    cpu_ns_used = marks["closed"]["target_cpu_ns"] - marks["opened"]["target_cpu_ns"]
    seconds = connect["seconds"]
    return {
        "n_refused": connect["n_failed"],
        "clients_per_s": connect["n_connected"] / seconds if seconds else None,
        "last_client_us": seconds * 1e6 if seconds else None,
        "wait_p50_us": waits.percentile(50),
        "wait_p99_us": waits.percentile(99),
        "cpu_us_per_client": cpu_ns_used / 1e3 / max(1, connect["n_connected"]),
    }


def _is_paced(plans: list[dict[str, Any]], name: str) -> bool:
    return any(plan["name"] == name and plan.get("rate_per_s") is not None for plan in plans)


def _planned(run: dict[str, Any], name: str) -> int | None:
    """How many publishes the schedule of a paced plan holds.

    None if clients decide when the run ends.
    """
    if run.get("connect"):
        return None
    for plan in run["plans"]:
        if plan["name"] == name and plan.get("rate_per_s") is not None:
            return int(plan["rate_per_s"] * (run["seconds"] + run.get("warmup_s", 0.0)))
    return None


def taken_by_others(
    before: dict[int, CoreTimes], after: dict[int, CoreTimes], ours: dict[str, float], cores: Cores
) -> dict[str, float | None]:
    """Return what went to others on our two cores between two looks, as shares of the time."""
    seen: dict[str, float | None] = {}
    for role, core in (("target", cores.target), ("generator", cores.generator)):
        first, last = before[core], after[core]
        span = last.at_s - first.at_s
        seen[f"foreign_{role}"] = max(0.0, (last.busy_s - first.busy_s - ours[role]) / span)
        seen[f"steal_{role}"] = max(0.0, (last.steal_s - first.steal_s) / span)
    return seen


def describe_case(case: dict[str, Any]) -> str:
    """Return a case in words: `1,000 subscribers, 256 bytes, paced`."""
    words = []
    for name, value in case.items():
        if isinstance(value, str):
            words.append(value)
        elif isinstance(value, int | float):
            words.append(f"{value:,} {name}")
    return ", ".join(words)
