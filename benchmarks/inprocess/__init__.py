"""Measurements from within: programs that import the engine, run in a process of their own.

Everything else about the engine is measured from outside, over sockets. Three things cannot be: the
price of a call (`codec`), of `Broker.publish` (`publish`), and how late expired values are freed
(`evict`). Each program prints one JSON document and ends.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import trio

from benchmarks.bench import describe_case
from benchmarks.process import StartError, child_process, core_times
from benchmarks.verdict import is_disturbed, judge

if TYPE_CHECKING:
    from benchmarks.bench import Bench, Sample
    from benchmarks.result import ScenarioResult

_LIMIT_S = 900.0
_RETAKES = 2


async def run_program(bench: Bench, program: str, *arguments: str) -> Any:  # noqa: ANN401 - its JSON
    """Run `benchmarks.inprocess.<program>` pinned to the server's core; return what it prints.

    Raises:
        StartError: It failed, or took longer than a quarter of an hour.
    """
    command = [sys.executable, "-m", f"benchmarks.inprocess.{program}", *arguments]
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
    document, steal = await _run_watched(bench, program, *arguments)
    for _ in range(0 if bench.quick else _RETAKES):
        if not is_disturbed(steal):
            break
        document, steal = await _run_watched(bench, program, *arguments)
    for case, target, key in cases:
        sample = document[key] | steal
        where = f"{result.name} {describe_case(case)} {target}"
        result.problems.extend(judge(sample, where))
        result.row(case, target).samples.append(sample)


async def _run_watched(
    bench: Bench, program: str, *arguments: str
) -> tuple[dict[str, Sample], Sample]:
    """Run a program; return its document, and what the hypervisor took meanwhile."""
    before = core_times()[bench.cores.target]
    document: dict[str, Sample] = await run_program(bench, program, *arguments)
    after = core_times()[bench.cores.target]
    span = after.at_s - before.at_s
    return document, {"steal_target": max(0.0, (after.steal_s - before.steal_s) / span)}
