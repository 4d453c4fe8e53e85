"""Measurements from within: programs that import the engine, run in a process of their own.

Everything else about the engine is measured from outside, over sockets. Some things cannot be: the
price of a call (`codec`), of `Broker.publish` (`publish`), how late expired values are freed
(`evict`), and what compressing costs and saves, for the clients of the benchmarks read frames as
they are (`deflate`). Each program prints one JSON document and ends.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import TYPE_CHECKING, Any

import trio

from cachecast_bench.process import StartError, child_process, core_times
from cachecast_bench.result import Sample

if TYPE_CHECKING:
    from cachecast_bench.bench import Bench
    from cachecast_bench.result import ScenarioResult

_LIMIT_S = 900.0


async def run_program(bench: Bench, program: str, *arguments: str) -> Any:  # noqa: ANN401 - its JSON
    """Run `cachecast_bench.inprocess.<program>` pinned to the server's core; return what it prints.

    Raises:
        StartError: It failed, or took longer than a quarter of an hour.
    """
    command = [sys.executable, "-m", f"cachecast_bench.inprocess.{program}", *arguments]
    bench.on_progress(" ".join([program, *arguments]))
    async with child_process(program, command, core=bench.cores.target, wants_pipes=True) as child:
        assert child.process.stdout is not None
        output = b""
        with trio.move_on_after(_LIMIT_S):
            async for data in child.process.stdout:
                output += data
            if await child.process.wait() == 0:
                return json.loads(output)
        message = f"{program} failed: {child.last_words()}"
        raise StartError(message)


async def measure_in_process(
    bench: Bench,
    result: ScenarioResult,
    cases: list[tuple[dict[str, Any], str, str]],
    program: str,
    *arguments: str,
) -> None:
    """Run a program once; its document holds, under each case's key, one sample for a row.

    Args:
        bench: The means.
        result: Where the rows are.
        cases: (case, target, key in the document).
        program: Name of the module.
        arguments: Its command line.
    """

    async def take() -> Sample:
        return await _run_watched(bench, program, *arguments)

    taken, discarded = await bench.undisturbed(take)
    for case, target, key in cases:
        thrown_away = [_sample_of(one, key) for one in discarded]
        bench.keep(result, case, target, _sample_of(taken, key), thrown_away)


def _sample_of(watched: Sample, key: str) -> Sample:
    document = dict(watched.raw[key])
    raw = document.pop("raw", {})
    return Sample({**document, **watched.metrics}, raw=raw)


async def _run_watched(bench: Bench, program: str, *arguments: str) -> Sample:
    """Run a program; return its document as `raw`, and what others took of its core meanwhile."""
    before, used = core_times()[bench.cores.target], _children_cpu_s()
    document = await run_program(bench, program, *arguments)
    after, used_after = core_times()[bench.cores.target], _children_cpu_s()
    span = after.at_s - before.at_s
    foreign = after.busy_s - before.busy_s - (used_after - used)
    noise: dict[str, float | None] = {
        "foreign_target": max(0.0, foreign / span),
        "steal_target": max(0.0, (after.steal_s - before.steal_s) / span),
    }
    return Sample(noise, raw=document)


def _children_cpu_s() -> float:
    """Return the CPU time of all programs that we have started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
