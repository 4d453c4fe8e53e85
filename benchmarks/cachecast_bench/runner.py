"""Runs scenarios one after the other, with a progress line.

And turns what goes wrong into problems of the result.

A scenario that cannot be carried out (a server that does not start, clients that are refused) makes
the result INVALID and does not stop the next one. An interrupt ends the run at once; what was
measured so far is still shown.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from cachecast_bench.bench import QUICK_RETAKE_BUDGET_S, RETAKE_BUDGET_S, in_short
from cachecast_bench.generator.remote import GeneratorError
from cachecast_bench.process import StartError
from cachecast_bench.result import Problem, Result, ScenarioResult
from cachecast_bench.table import console
from cachecast_bench.verdict import judge_machine, judge_noise, judge_spread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cachecast_bench.bench import Bench
    from cachecast_bench.scenarios import Scenario


async def run_all(bench: Bench, scenarios: list[Scenario], result: Result) -> None:
    """Run `scenarios` and add what they measured to `result`.

    A signal ends it early; the scenario that was cut off then has a problem that says so.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_on_signal, nursery.cancel_scope)
        with _progress(bench, sum(one.n_samples(bench) for one in scenarios)) as advance_to:
            n_samples = 0
            for scenario in scenarios:
                outcome = ScenarioResult(scenario.name)
                result.scenarios.append(outcome)
                try:
                    await run_one(bench, scenario, outcome)
                finally:
                    if nursery.cancel_scope.cancel_called:
                        text = "interrupted: the rest was not measured"
                        outcome.problems.append(Problem("invalid", scenario.name, text))
                n_samples += scenario.n_samples(bench)
                advance_to(n_samples)
        nursery.cancel_scope.cancel()


async def run_one(bench: Bench, scenario: Scenario, outcome: ScenarioResult) -> None:
    """Run one scenario; whatever stops it is a problem of its result."""
    outcome.problems += judge_machine(bench.cores)
    bench.retake_budget_s = QUICK_RETAKE_BUDGET_S if bench.quick else RETAKE_BUDGET_S
    try:
        await scenario.run(bench, outcome)
    except* (StartError, GeneratorError, OSError) as group:
        for error in _leaves(group):
            outcome.problems.append(Problem("invalid", scenario.name, in_short(error)))
    for figure in outcome.figures:
        if not scenario.has_figure(figure.name):
            message = f"{scenario.name} does not declare its figure {figure.name}"
            raise RuntimeError(message)
    outcome.problems += judge_spread(outcome)
    if not bench.quick:
        outcome.problems += judge_noise(outcome)


def _leaves(group: BaseExceptionGroup) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _cancel_on_signal(scope: trio.CancelScope) -> None:
    """Wait for an interrupt or a request to end, then cancel the run.

    Every child is ended on the way out.
    """
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()
            return


@contextmanager
def _progress(bench: Bench, n_samples: int) -> Iterator[Callable[[int], None]]:
    """Show what is being done and how far it is, on standard error, if that is a terminal.

    Yields a function that is told how many samples must be behind us by now: a scenario that was
    cut short takes fewer than it meant to.
    """
    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    screen = console(stderr=True)
    # Twice a second is enough to see life, and costs the generator's core nothing to speak of.
    with Progress(
        *columns,
        console=screen,
        transient=True,
        refresh_per_second=2,
        disable=not screen.is_terminal,
    ) as progress:
        task = progress.add_task("", total=n_samples)
        bench.on_progress = lambda words: progress.update(task, description=words)
        bench.on_sample = lambda: progress.advance(task)
        yield lambda n: progress.update(task, completed=n)
