"""Runs scenarios one after the other, with a progress line.

And turns what goes wrong into problems of the result.

A scenario that cannot be carried out (a server that does not start, clients that are refused) makes
the result INVALID and does not stop the next one. An interrupt ends the run at once; what was
measured so far is still shown.
"""

from __future__ import annotations

import signal
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.generator.remote import GeneratorError
from benchmarks.process import StartError
from benchmarks.result import Problem, Result, ScenarioResult
from benchmarks.table import console
from benchmarks.verdict import judge_machine, judge_noise, judge_spread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.bench import Bench
    from benchmarks.scenarios import Scenario


async def run_all(bench: Bench, scenarios: list[Scenario], result: Result) -> bool:
    """Run `scenarios` and add what they measured to `result`.

    Return False if a signal ended it early.
    """
    is_complete = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_on_signal, nursery.cancel_scope)
        with _progress(bench):
            for scenario in scenarios:
                outcome = ScenarioResult(scenario.name)
                result.scenarios.append(outcome)
                await run_one(bench, scenario, outcome)
        is_complete = not nursery.cancel_scope.cancel_called
        nursery.cancel_scope.cancel()
    return is_complete


async def run_one(bench: Bench, scenario: Scenario, outcome: ScenarioResult) -> None:
    """Run one scenario; whatever stops it is a problem of its result."""
    outcome.problems += judge_machine(bench.cores)
    try:
        await scenario.run(bench, outcome)
    except* (StartError, GeneratorError, OSError) as group:
        for error in _leaves(group):
            outcome.problems.append(Problem("invalid", scenario.name, _in_short(error)))
    outcome.problems += judge_spread(outcome)
    if not bench.quick:
        outcome.problems += judge_noise(outcome)


def _leaves(group: BaseExceptionGroup) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _in_short(error: BaseException) -> str:
    """Return the first line of what went wrong, and the last: a traceback ends with its reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return traceback.format_exception_only(error)[-1].strip()
    return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"


async def _cancel_on_signal(scope: trio.CancelScope) -> None:
    """Wait for an interrupt or a request to end, then cancel the run.

    Every child is ended on the way out.
    """
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()
            return


@contextmanager
def _progress(bench: Bench) -> Iterator[None]:
    """Show what is being done, on standard error, if that is a terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    # Twice a second is enough to see life, and costs the generator's core nothing to speak of.
    with Progress(
        *columns, console=console(stderr=True), transient=True, refresh_per_second=2
    ) as progress:
        task = progress.add_task("")
        bench.on_progress = lambda words: progress.update(task, description=words)
        yield
