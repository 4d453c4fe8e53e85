"""The command line.

Exit codes: 0 all objectives hold, 1 one fails, 2 the run is invalid, 3 the harness failed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from rich.console import Console
from rich.table import Table
from typing_extensions import override

from cachecast_load import doctor
from cachecast_load.measures.figures import FAMILIES, FIGURES, STATISTICS, Source
from cachecast_load.measures.verdict import EXIT_CODES, HARNESS_FAILED
from cachecast_load.options import (
    Fault,
    ask_first,
    foreign_options,
    load_options,
    prepare,
    read_target,
    shown_command,
    target_options,
)
from cachecast_load.plan.model import Plan, PlanError
from cachecast_load.plan.shipped import find_plan, shipped_plans, summary
from cachecast_load.plan.target import ENV, Target
from cachecast_load.profiles import PROFILES
from cachecast_load.report import compare as comparing
from cachecast_load.report import (
    html,
    markdown,
    read_results,
    repeats,
    write_repeats,
    write_reports,
    write_summary,
)
from cachecast_load.report.text import print_result, print_several
from cachecast_load.run.health import fit_here, room_for

PORT = click.IntRange(1, 65_535)
_PATH = click.Path(path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


def _address(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> tuple[str, int] | None:
    """Return host and port of `[HOST:]PORT`."""
    if value is None:
        return None
    host, _, port = value.rpartition(":")
    if not port.isdecimal() or int(port) > 65_535:
        raise click.BadParameter(f"{value!r} is no [HOST:]PORT, such as 127.0.0.1:9646")
    return host.strip("[]") or "127.0.0.1", int(port)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="cachecast", prog_name="cachecast load")
def cli() -> None:
    """Load-test a Pusher-compatible deployment, with verdicts that hold."""


@cli.command()
@click.argument("profile", required=False)
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path),
    help="Plan in TOML, or the name of one that ships (`cachecast load plans`).",
)
@target_options
@load_options
@foreign_options
@click.option(
    "--workers",
    "--processes",
    "workers",
    type=click.IntRange(0),
    default=0,
    help="Generator processes here.",
)
@click.option("--master", is_flag=True, help="Wait for workers from other machines.")
@click.option("--expect-workers", type=click.IntRange(1), help="How many of them.")
@click.option("--worker", "is_worker", is_flag=True, help="Generate for a master.")
@click.option("--master-host", default="127.0.0.1", show_default=True, help="Where the master is.")
@click.option("--master-port", type=PORT, default=5557, show_default=True, help="Its port.")
@click.option("--master-bind", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--report", "report_folder", type=click.Path(path_type=Path), help="Write reports.")
@click.option("--summary", "summary_file", type=_FILE, help="Write a Markdown summary.")
@click.option(
    "--repeats", type=click.IntRange(1, 100), default=1, show_default=True, help="Runs in a row."
)
@click.option("--quiet", is_flag=True, help="No live table.")
@click.option(
    "--live",
    metavar="[HOST:]PORT",
    callback=_address,
    show_default="not served; a port alone is one of 127.0.0.1",
    help="Serve OpenMetrics of the run there while it goes on.",
)
def run(**options: Any) -> None:  # noqa: ANN401 - typed by the options above
    """Run PROFILE (or the one --plan names) and judge it."""
    if options["is_worker"]:
        _work(options)
    if options["master"] != bool(options["expect_workers"]):
        raise Fault("--master and --expect-workers N belong together")
    if options["master"] and options["repeats"] > 1:
        raise Fault("--repeats needs workers of its own: those of --master leave after one run")
    plan, target = prepare(options)
    remote, folder = options["expect_workers"] or 0, options["report_folder"]
    processes = max(1, options["workers"] + remote)
    _require_room(plan, target, processes, options["workers"])
    _make_folders(folder, options["summary_file"])
    if options["workers"] and options["master_port"] == 5557 and not options["master"]:
        options["master_port"] = 0  # own workers only: any free port
    from cachecast_load.swarm import running  # noqa: PLC0415

    console = Console(highlight=False)
    try:
        results = _run_all(plan, target, options, remote, console)
    except running.AddressError as error:
        raise Fault(str(error)) from error
    summary = markdown.render(results[0])
    if options["repeats"] > 1:
        summary = _report_repeats(results, folder, console)
    _summarize(summary, options["summary_file"])
    raise SystemExit(EXIT_CODES[repeats.outcome(results)])


def _run_all(
    plan: Plan, target: Target, options: Mapping[str, Any], remote: int, console: Console
) -> list[dict[str, Any]]:
    """Run the plan as often as asked for, and print and write what came of each run."""
    from cachecast_load.swarm import running  # noqa: PLC0415

    results: list[dict[str, Any]] = []
    while len(results) < options["repeats"] and not running.was_interrupted(results):
        result = running.run(
            plan,
            target,
            workers=options["workers"],
            remote=remote,
            bind=(options["master_bind"], options["master_port"]),
            command=shown_command(),
            quiet=options["quiet"],
            live=options["live"],
        )
        results.append(result)
        print_result(result, console)
        folder = options["report_folder"]
        if folder:
            own = folder / str(len(results)) if options["repeats"] > 1 else folder
            _write_report(write_reports, result, own, console)
    return results


def _require_room(plan: Plan, target: Target, processes: int, here: int) -> None:
    """Refuse what does not fit into the generator processes, or on this machine."""
    problem = room_for(plan.greatest_subscribers, processes, len(target.sockets))
    problem = problem or fit_here(here)
    if problem:
        raise Fault(problem)


def _report_repeats(
    results: Sequence[dict[str, Any]], folder: Path | None, console: Console
) -> str:
    """Print and write what several runs agree on; returns it as Markdown."""
    said, table = repeats.sentences(results), repeats.table(results)
    print_several(said, table, console)
    if folder:
        _write_report(write_repeats, results, folder, console)
    return markdown.render_several(repeats.title(results), said, [table])


def _make_folders(report: Path | None, summary: Path | None) -> None:
    """Find out whether what is written at the end can be, before a run of hours begins."""
    for option, folder in (("--report", report), ("--summary", summary and summary.parent)):
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Fault(f"{option} {folder}: {error.strerror}") from error
    if report and not os.access(report, os.W_OK):
        raise Fault(f"--report {report}: nothing can be written there")
    try:
        if summary:
            summary.open("a").close()
    except OSError as error:
        raise Fault(f"--summary {summary}: {error.strerror}") from error


_Given = TypeVar("_Given")


def _write_report(
    write: Callable[[_Given, Path], list[Path]], given: _Given, folder: Path, console: Console
) -> None:
    try:
        paths = write(given, folder)
    except OSError as error:
        raise Fault(f"the report cannot be written: {error}") from error
    console.print(f"\nreport: {next(path for path in paths if path.suffix == '.html')}")


@cli.command()
@click.argument("profile", required=False)
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path),
    help="Plan in TOML, or the name of one that ships (`cachecast load plans`).",
)
@target_options
@load_options
@foreign_options
@click.option("--web-host", default="127.0.0.1", show_default=True, help="Where the page is.")
@click.option("--web-port", type=PORT, default=8089, show_default=True, help="Its port.")
@click.option(
    "--workers",
    type=click.IntRange(0),
    default=1,
    help="Generator processes; with 0 the one of the page, which its charts then hold up.",
)
@click.option("--autostart", is_flag=True, help="Begin at once, without a click.")
def ui(**options: Any) -> None:  # noqa: ANN401 - typed by the options above
    """Open Locust's own web page, with this tool's charts beside it."""
    plan, target = prepare(options)
    web = (options["web_host"], options["web_port"])
    workers = options["workers"]
    _require_room(plan, target, max(workers, 1), workers)
    from cachecast_load.swarm import running  # noqa: PLC0415

    try:
        code = running.serve_page(
            plan,
            target,
            web,
            workers=workers,
            autostart=options["autostart"],
            command=shown_command(),
        )
    except running.AddressError as error:
        raise Fault(str(error)) from error
    raise SystemExit(code)


class _TwoSides(click.Command):
    """A command whose operands after `--` are the values of its `--to`."""

    @override
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read `A1 A2 -- B1 B2 --html FILE` as `A1 A2 --to B1 --to B2 --html FILE`."""
        if "--" in args:
            at = args.index("--")
            rest = args[at + 1 :]
            ends = next((n for n, word in enumerate(rest) if word.startswith("-")), len(rest))
            to = [word for path in rest[:ends] for word in ("--to", path)]
            args = [*args[:at], *to, *rest[ends:]]
        return super().parse_args(ctx, args)


@cli.command(cls=_TwoSides, options_metavar="[OPTIONS]")
@click.argument("base", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--to", "new", multiple=True, type=click.Path(path_type=Path), help="A new result.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--html", "page", type=_FILE, help="Write a page.")
@click.option("--summary", "summary_file", type=_FILE, help="Write a Markdown summary.")
@click.option("--fail-if-worse", is_flag=True, help="Exit 1 if a figure is worse.")
def compare(
    base: tuple[Path, ...],
    new: tuple[Path, ...],
    *,
    as_json: bool,
    page: Path | None,
    summary_file: Path | None,
    fail_if_worse: bool,
) -> None:
    """Say what changed between runs: `compare A B`, or of several `compare A1 A2 A3 -- B1 B2 B3`.

    Each is a result.json, the folder of a report, or a folder of such folders.
    """
    if not new:
        if len(base) != 2:
            raise Fault("give two results, or several, then -- and the new ones")
        base, new = base[:1], base[1:]
    try:
        olds, news = read_results(base), read_results(new)
        if page:
            page.write_text(html.render_comparison(olds, news), encoding="utf-8")
    except (OSError, ValueError) as error:
        raise Fault(str(error)) from error
    comparison = comparing.compare(olds, news)
    found = [comparing.sentence(comparison), *(f"Note: {text}" for text in comparison.warnings)]
    table = comparing.table(comparison)
    if as_json:
        click.echo(comparing.to_json(comparison))
    else:
        print_several(found, table, Console(highlight=False))
    _summarize(markdown.render_several("Load tests compared", found, [table]), summary_file)
    if fail_if_worse:
        raise SystemExit(comparison.exit_code)


def _summarize(text: str, file: Path | None) -> None:
    try:
        write_summary(text, file)
    except OSError as error:
        raise Fault(f"the summary cannot be written: {error}") from error


@cli.command()
@click.argument("paths", metavar="RESULT...", nargs=-1, required=True, type=_PATH)
@click.option("--html", "folder", type=_PATH, help="Write the reports anew.")
def show(paths: tuple[Path, ...], folder: Path | None) -> None:
    """Print a result again, from its JSON; of several, what they agree on."""
    console = Console(highlight=False)
    try:
        results = read_results(paths)
        if len(results) == 1:
            print_result(results[0], console)
        else:
            print_several(repeats.sentences(results), repeats.table(results), console)
        if folder and len(results) == 1:
            write_reports(results[0], folder)
        elif folder:
            write_repeats(results, folder)
    except (OSError, ValueError) as error:
        raise Fault(str(error)) from error


@cli.command()
def profiles() -> None:
    """List the profiles."""
    table = Table(box=None, pad_edge=False)
    table.add_column("profile")
    table.add_column("what it does")
    for name, profile in PROFILES.items():
        table.add_row(name, profile.summary)
    Console(highlight=False).print(table)


@cli.command()
@click.argument("name", required=False)
def plans(name: str | None) -> None:
    """List the plans that ship, or print the one called NAME, to begin one's own with."""
    if name:
        try:
            click.echo(find_plan(Path(name)).read_text(encoding="utf-8"), nl=False)
        except (PlanError, OSError) as error:
            raise Fault(str(error)) from error
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("plan")
    table.add_column("what it is")
    for found, path in shipped_plans().items():
        table.add_row(found, summary(path))
    Console(highlight=False).print(table)


@cli.command()
@click.argument("part", required=False, default="")
def figures(part: str) -> None:
    """List what an SLO can name, or those with PART in their name."""
    shown = [figure for figure in FIGURES.values() if part in figure.name]
    if not shown:
        raise Fault(f"no figure has {part!r} in its name; `cachecast load figures` lists them all")
    console = Console(highlight=False)
    families = {f.group: FAMILIES[f.group].text for f in shown if f.source is Source.HISTOGRAM}
    if families:
        table = Table(box=None, pad_edge=False)
        table.add_column("times", no_wrap=True)
        table.add_column(f"in milliseconds, each with .{' .'.join(STATISTICS)}, and .count")
        for name, text in families.items():
            table.add_row(name, text)
        console.print(table)
        console.print()
    table = Table(box=None, pad_edge=False)
    for title in ("figure", "unit", "what it is"):
        table.add_column(title, no_wrap=title == "figure")
    for figure in shown:
        if figure.source is not Source.HISTOGRAM:
            table.add_row(figure.name, figure.unit, figure.text)
    if table.row_count:
        console.print(table)


@cli.command("doctor")
@click.argument("targets", nargs=-1, metavar="[TARGET]...")
@target_options
@click.option(
    "--idle",
    "idle_s",
    type=click.FloatRange(0, 3600),
    default=doctor.DEFAULT_S,
    show_default=True,
    help="Seconds for which a quiet connection is watched; 130 finds what ends those of 120 s.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the findings.")
def doctor_(
    targets: tuple[str, ...],
    idle_s: float,
    json_file: Path | None,
    **options: Any,  # noqa: ANN401 - typed by the options above
) -> None:
    """Say what the deployment at TARGET can do, and what is wrong with it.

    Before any load: some connections, some events, and a page of sentences. Give what you have: the
    URL and the key, and the app's id and secret for all of it.
    """
    options["url"] = targets or options["url"]
    target = read_target(options, {}, needs_api=False)
    if json_file is not None:
        _require_writable(json_file)
    console = Console(highlight=False)
    with Console(stderr=True).status("...") as status:
        outcome = doctor.examine(target, idle_s, lambda name: status.update(f"looking at {name}"))
    doctor.print_page(outcome, console)
    if json_file is not None:
        json_file.write_text(doctor.to_json(outcome), encoding="utf-8")
    raise SystemExit(outcome.exit_code)


def _require_writable(path: Path) -> None:
    try:
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        raise Fault(f"--json {path}: {error.strerror}") from error


def _work(options: Mapping[str, Any]) -> NoReturn:
    """Generate for a master."""
    if options["live"]:
        raise Fault("--live belongs to the master, which knows the run as a whole")
    target = read_target(options, {})
    ask_first(target, is_sure=options["yes"])
    # Locust is imported only where nothing can be refused any more: it patches the whole process.
    from cachecast_load.swarm import running  # noqa: PLC0415

    master = options["master_host"], options["master_port"]
    raise SystemExit(running.work(target, *master, quiet=options["quiet"]))


def main() -> None:
    """Run the command line; whatever goes wrong ends in a sentence and exit code 3."""
    # The whole command line of `cachecast`, for usage lines and for the shell's completion.
    whole = click.Group("cachecast", commands={"load": cli})
    try:
        whole.main(["load", *sys.argv[1:]], prog_name="cachecast", standalone_mode=False)
    except ModuleNotFoundError:
        raise  # what to install is said in __main__
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        raise SystemExit(HARNESS_FAILED) from None
    except click.ClickException as error:
        error.show()
        raise SystemExit(HARNESS_FAILED) from None
    except Exception as error:  # the last line of defence: a sentence, and the traceback on request
        if os.environ.get(f"{ENV}_DEBUG"):
            raise
        click.echo(f"the harness failed: {type(error).__name__}: {error}", err=True)
        click.echo(f"(set {ENV}_DEBUG=1 for the traceback)", err=True)
        raise SystemExit(HARNESS_FAILED) from error
