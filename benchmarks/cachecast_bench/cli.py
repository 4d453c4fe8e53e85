"""The command line: list, run, compare, show, peers."""

from __future__ import annotations

import datetime as dt
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

import click
import trio
from rich.table import Table

from cachecast_bench import machine
from cachecast_bench.bench import Bench
from cachecast_bench.compare import compare, comparison_table
from cachecast_bench.generator.stream import MARK_SIZE
from cachecast_bench.peers import PEERS, choose_peers
from cachecast_bench.plot import PlotError, check_plot, plot
from cachecast_bench.result import Result, ResultError, load, save
from cachecast_bench.runner import run_all
from cachecast_bench.scenarios import SCENARIOS, Column, Scenario, load_scenario
from cachecast_bench.table import console, render
from cachecast_bench.target import Engine
from cachecast_bench.verdict import Requirement, RequirementError, exit_code
from cachecast_load.measures.verdict import HARNESS_FAILED

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cachecast", prog_name="cachecast bench")
def cli() -> None:
    """Measure Cachecast beside the physical limit and beside its peers, in one run."""


@cli.command("list")
def list_scenarios() -> None:
    """Show what can be run."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name in SCENARIOS:
        scenario = load_scenario(name)
        figures = ", ".join(scenario.figures)
        table.add_row(name, f"{scenario.title}\n[dim]{figures}[/]")
    console().print(table)
    console().print(
        "\n[dim]Below each its figures, for --require: fanout.cpu_ratio, or, of another number of "
        "clients than the usual one, fanout.cpu_ratio_10000.[/]"
    )


@cli.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--quick", is_flag=True, help="A smoke test of seconds: small sizes, short repeats.")
@click.option("--json", "json_file", type=_FILE, help="Keep everything, every raw sample, in FILE.")
@click.option("--plot", "plot_file", type=_FILE, help="Draw the result into FILE (.svg or .png).")
@click.option(
    "--peers", "peer_names", default="", help="'all' that are installed, or names: nchan,ws"
)
@click.option(
    "--require",
    "requirements",
    multiple=True,
    help="A level to reach: 'fanout.ratio_to_raw_loop>=0.85'",
)
@click.option("--subscribers", help="These numbers instead of the scenario's own: 100,1000")
@click.option("--bytes", "sizes", help="These payloads instead of fanout's own: 64,256,4096")
@click.option(
    "--repeats",
    type=click.IntRange(1, 100),
    help="This many repeats instead of the scenario's own.",
)
@click.option("--without-engine", is_flag=True, help="Measure only baselines and peers.")
def run(
    names: tuple[str, ...],
    *,
    quick: bool,
    json_file: Path | None,
    plot_file: Path | None,
    peer_names: str,
    requirements: tuple[str, ...],
    subscribers: str | None,
    sizes: str | None,
    repeats: int | None,
    without_engine: bool,
) -> None:
    """Run scenarios ('all' for every one).

    Exit code 0: fine, 1: a requirement failed, 2: INVALID, 3: not understood, or not possible.
    """
    chosen = _scenarios(names)
    wanted = _requirements(requirements, chosen)
    _check_files(json_file, plot_file)
    try:
        peers = choose_peers(peer_names)
    except KeyError as error:
        text = f"no peer is called {error.args[0]!r}; there are {', '.join(PEERS)}"
        raise click.BadParameter(text, param_hint="--peers") from error
    for peer in [one for one in peers if one.why_missing()]:
        click.echo(f"{peer.name} is left out: {peer.why_missing()}", err=True)
    bench = Bench(
        cores=machine.choose_cores(),
        quick=quick,
        peers=[one for one in peers if not one.why_missing()],
        subscribers=_numbers(subscribers, "--subscribers", at_least=1),
        sizes=_numbers(sizes, "--bytes", at_least=MARK_SIZE),
        repeats=repeats,
        engine=None if without_engine else Engine(),
    )
    result = Result(
        environment={**machine.describe(), "cores": asdict(bench.cores)},
        command=machine.command_line(),
        started_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        quick=quick,
    )
    os.sched_setaffinity(0, {bench.cores.generator})
    started = time.monotonic()
    trio.run(run_all, bench, chosen, result)
    result.duration_s = time.monotonic() - started
    result.targets = bench.configurations
    figures = result.figures()
    result.requirements = [one.check(figures) for one in wanted]
    _show(result)
    if json_file is not None:
        save(result, json_file)
    if plot_file is not None:
        _plot(result, plot_file)
    sys.exit(exit_code(result))


@cli.command("compare")
@click.argument("base", type=_FILE)
@click.argument("new", type=_FILE)
def compare_files(base: Path, new: Path) -> None:
    """Hold NEW against BASE, figure by figure.

    Exit code 0: nothing got worse, 1: something did, 2: they cannot be compared, 3: no such file.
    """
    comparison = compare(_load(base), _load(new))
    console().print(comparison_table(comparison))
    sys.exit(comparison.exit_code)


@cli.command()
@click.argument("file", type=_FILE)
@click.option("--plot", "plot_file", type=_FILE, help="Draw the result into FILE (.svg or .png).")
def show(file: Path, plot_file: Path | None) -> None:
    """Print a result again. The exit code is that of the run."""
    result = _load(file)
    _show(result)
    if plot_file is not None:
        _plot(result, plot_file)
    sys.exit(exit_code(result))


@cli.command()
def peers() -> None:
    """Show the peers.

    Which are installed, how to install the others, and how each is configured.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, peer in PEERS.items():
        missing = peer.why_missing()
        state = "[yellow]missing[/]" if missing else "[green]ready[/]"
        details = missing or f"{peer.version()}, {peer.configuration}".removeprefix(", ")
        table.add_row(name, state, f"{peer.title}\n[dim]{details}[/]")
    console().print(table)


def _scenarios(names: tuple[str, ...]) -> list[Scenario]:
    """Return each scenario once, in the order asked for."""
    try:
        return [
            load_scenario(name) for name in dict.fromkeys(SCENARIOS if "all" in names else names)
        ]
    except KeyError as error:
        text = f"no scenario is called {error.args[0]!r}; there are all, {', '.join(SCENARIOS)}"
        raise click.BadParameter(text, param_hint="NAME") from error


def _requirements(texts: tuple[str, ...], chosen: list[Scenario]) -> list[Requirement]:
    """Parse requirements; one that this run cannot answer is refused before it costs minutes."""
    try:
        wanted = [Requirement.parse(text) for text in texts]
        for one in wanted:
            one.check_name({scenario.name: scenario for scenario in chosen})
    except RequirementError as error:
        raise click.BadParameter(str(error), param_hint="--require") from error
    return wanted


def _numbers(
    text: str | None, option: str, *, at_least: int, at_most: int = 1_000_000
) -> list[int] | None:
    """Parse whole numbers separated by commas; sorted, since figures and lines go by size."""
    if text is None:
        return None
    try:
        numbers = sorted({int(one) for one in text.split(",")})
    except ValueError as error:
        text = f"{text!r} is not whole numbers separated by commas"
        raise click.BadParameter(text, param_hint=option) from error
    if numbers[0] < at_least:
        raise click.BadParameter(f"{numbers[0]} is less than {at_least}", param_hint=option)
    if numbers[-1] > at_most:
        raise click.BadParameter(f"{numbers[-1]} is more than {at_most}", param_hint=option)
    return numbers


def _check_files(json_file: Path | None, plot_file: Path | None) -> None:
    """Refuse what could not be written or drawn, before anything is measured."""
    for path, option in ((json_file, "--json"), (plot_file, "--plot")):
        if path is not None and not os.access(path.parent, os.W_OK):
            text = f"the folder {path.parent} is not there or cannot be written"
            raise click.BadParameter(text, param_hint=option)
    if plot_file is not None:
        try:
            check_plot(plot_file)
        except PlotError as error:
            raise click.BadParameter(str(error), param_hint="--plot") from error


def _show(result: Result) -> None:
    screen = console()
    screen.print(render(result, _titles(result), screen.width))


def _titles(result: Result) -> dict[str, tuple[str, list[Column]]]:
    """Return title and columns of the scenarios that a result holds."""
    scenarios = [load_scenario(one.name) for one in result.scenarios]
    return {one.name: (one.title, one.columns) for one in scenarios}


def _load(path: Path) -> Result:
    try:
        result = load(path)
    except ResultError as error:
        raise click.ClickException(str(error)) from error
    unknown = [one.name for one in result.scenarios if one.name not in SCENARIOS]
    if unknown:
        raise click.ClickException(
            f"{path}: this version has no scenario {', '.join(unknown)}: show it with the version"
            " that wrote it"
        )
    return result


def _plot(result: Result, path: Path) -> None:
    try:
        plot(result, path)
    except PlotError as error:
        click.echo(f"nothing drawn: {error}", err=True)


def main() -> None:
    """Run the command line; whatever was not understood ends in a sentence and exit code 3."""
    # The whole command line of `cachecast`, for usage lines and for the shell's completion.
    whole = click.Group("cachecast", commands={"bench": cli})
    try:
        whole.main(["bench", *sys.argv[1:]], prog_name="cachecast", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        sys.exit(HARNESS_FAILED)
    except click.ClickException as error:
        error.show()
        sys.exit(HARNESS_FAILED)
