"""The command line.

Exit codes: 0 all objectives hold, 1 one fails, 2 the run is invalid, 3 the harness failed.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
from rich.console import Console
from rich.table import Table
from typing_extensions import override

from cachecast_load.measures.figures import FAMILIES, FIGURES, STATISTICS, Source
from cachecast_load.measures.verdict import EXIT_CODES, HARNESS_FAILED
from cachecast_load.plan.checks import RECONNECTS
from cachecast_load.plan.model import Behaviour, Load, Plan, PlanError, make_plan, read_toml
from cachecast_load.plan.shipped import find_plan, shipped_plans, summary
from cachecast_load.plan.target import (
    AUTH_BODIES,
    ENV,
    Target,
    TargetError,
    make_target,
    public_hosts,
)
from cachecast_load.profiles import PROFILES, default_plan, profile_class
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
from cachecast_load.run.preflight import require_metrics

PORT = click.IntRange(1, 65_535)
_PATH = click.Path(path_type=Path)
_FILE = click.Path(dir_okay=False, path_type=Path)


class Fault(click.ClickException):
    """A sentence for the user; exit code 3."""

    exit_code = HARNESS_FAILED


_Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def _options(*options: _Decorator) -> _Decorator:
    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


target_options = _options(
    click.option(
        "--target",
        "url",
        multiple=True,
        envvar=f"{ENV}_TARGET",
        show_envvar=True,
        help="ws://HOST:PORT of the deployment; once for each of several nodes.",
    ),
    click.option(
        "--api-url",
        multiple=True,
        envvar=f"{ENV}_API_URL",
        show_envvar=True,
        help="HTTP API, if on another host; several take turns.",
    ),
    click.option("--app-id", envvar=f"{ENV}_APP_ID", show_envvar=True, help="The app's id."),
    click.option("--key", envvar=f"{ENV}_KEY", show_envvar=True, help="The app's key."),
    click.option(
        "--secret",
        envvar=f"{ENV}_SECRET",
        show_envvar=True,
        help="The app's secret, or @FILE; better in its variable than on a command line.",
    ),
    click.option(
        "--header",
        "headers",
        multiple=True,
        help=f"'Name: value' for every request, or @FILE of such lines; or {ENV}_HEADERS.",
    ),
    click.option(
        "--ca-file", envvar=f"{ENV}_CA_FILE", show_envvar=True, help="Certificate authority, PEM."
    ),
    click.option(
        "--insecure",
        is_flag=True,
        envvar=f"{ENV}_INSECURE",
        show_envvar=True,
        help="Accept any certificate; the report says so.",
    ),
    click.option(
        "--auth-endpoint",
        envvar=f"{ENV}_AUTH_ENDPOINT",
        show_envvar=True,
        help="URL that signs subscriptions, instead of signing here.",
    ),
    click.option(
        "--auth-body",
        type=click.Choice(AUTH_BODIES),
        envvar=f"{ENV}_AUTH_BODY",
        help="How the endpoint is asked: as pusher-js does (form, the default), or in JSON.",
    ),
    click.option(
        "--encryption-key",
        envvar=f"{ENV}_ENCRYPTION_KEY",
        show_envvar=True,
        help="Master key of encrypted channels, base64 or @FILE, where the endpoint grants keys.",
    ),
    click.option(
        "--metrics-url",
        multiple=True,
        envvar=f"{ENV}_METRICS_URL",
        show_envvar=True,
        help="Prometheus metrics of the target, for server figures; several are added up.",
    ),
    click.option(
        "--yes",
        is_flag=True,
        envvar=f"{ENV}_YES",
        show_envvar=True,
        help="Do not ask before loading a public host.",
    ),
)


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


def _grace(_context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """Return seconds; says what to do about a word that was taken for them."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is no number of seconds; write {option.opts[0]}=10"
        ) from None
    if not 0 <= seconds < math.inf:
        raise click.BadParameter("it must be 0 or more, and finite")
    return seconds


def _own(value: object) -> str:
    """Return what `--help` says of a default that a profile may have replaced."""
    return f"{value}, or the profile's own"


_LOAD, _BEHAVIOUR = Load(), Behaviour()
load_options = _options(
    click.option(
        "--subscribers",
        type=int,
        show_default=_own(_LOAD.subscribers),
        help="How many subscribers; at the peak, where a plan's stages say how many.",
    ),
    click.option(
        "--channels", type=int, show_default=_own(_LOAD.channels), help="How many channels."
    ),
    click.option(
        "--rate",
        type=float,
        show_default=_own(f"{_LOAD.rate:g}"),
        help="Publishes per second, all channels together; at the peak, as --subscribers.",
    ),
    click.option(
        "--payload",
        "payload_bytes",
        type=int,
        show_default=_own(_LOAD.payload_bytes),
        help="Bytes of data per event.",
    ),
    click.option(
        "--duration",
        "duration_s",
        type=float,
        show_default=_own(f"{_LOAD.duration_s:g}"),
        help="Seconds to measure; a plan's stages are stretched to them.",
    ),
    click.option(
        "--connect-rate",
        type=float,
        show_default=_own(f"{_LOAD.connect_rate:g}"),
        help="Connects per second while ramping up.",
    ),
    click.option(
        "--seed", type=int, show_default="1", help="Makes channel choice and arrivals repeatable."
    ),
    click.option(
        "--ttl",
        "ttl_s",
        type=float,
        show_default="what the target says, or 1800",
        help="Seconds the target keeps a cached value.",
    ),
    click.option(
        "--joins",
        "joins_per_s",
        type=float,
        show_default=_own(f"{_BEHAVIOUR.joins_per_s:g}"),
        help="Joins per second (cache profiles).",
    ),
    click.option(
        "--kind",
        "channel_kind",
        show_default="the profile's own",
        help="Channel kind, such as private-cache-.",
    ),
    click.option(
        "--reconnect-to",
        type=click.Choice(RECONNECTS),
        show_default=_BEHAVIOUR.reconnect_to,
        help="Where subscribers of several targets come back: the next one, or the same.",
    ),
    click.option("--strict", is_flag=True, default=None, help="Use a full WebSocket client."),
    click.option(
        "--slo",
        "slos",
        multiple=True,
        show_default="the profile's own",
        help="An objective; replaces the profile's own.",
    ),
    click.option("--also-slo", "more_slos", multiple=True, help="An objective more."),
    click.option(
        "--abort-on-fail",
        "abort_after_s",
        callback=_grace,
        is_flag=False,
        flag_value="10",
        metavar="[SECONDS]",
        show_default="never; 10 without a number",
        help="End the run once an objective has been lost for good for so many seconds.",
    ),
)

# What people who know Locust type, and what it is called here.
FOREIGN = {
    "-u/--users": "--subscribers says how many connections there are",
    "-r/--spawn-rate": "--connect-rate says how many connect per second",
    "-t/--run-time": "--duration says how many seconds are measured",
    "-H/--host": "--target says where the deployment is",
    "--headless": "`run` has no page anyway, and `ui` is the command for one",
    "--html": "--report FOLDER writes it, with the JSON, CSV and JUnit",
    "--csv": "--report FOLDER writes it, with the JSON, HTML and JUnit",
}


def _refuse_foreign(_context: click.Context, option: click.Parameter, value: object) -> None:
    if value:
        names = "/".join(option.opts)
        raise click.UsageError(f"{option.opts[0]} is Locust's; here {FOREIGN[names]}")


foreign_options = _options(
    *(
        click.option(
            *names.split("/"),
            f"locust_{names.rpartition('--')[2].replace('-', '_')}",
            hidden=True,
            expose_value=False,
            is_flag=names == "--headless",
            callback=_refuse_foreign,
        )
        for names in FOREIGN
    )
)


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
@click.option("--workers", type=click.IntRange(0), default=0, help="Generator processes here.")
@click.option("--processes", "workers", type=click.IntRange(0), help="The same as --workers.")
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
    problem = room_for(plan.greatest_subscribers, processes, len(target.sockets))
    problem = problem or fit_here(options["workers"])
    if problem:
        raise Fault(problem)
    _make_folders(folder, options["summary_file"])
    if options["workers"] and options["master_port"] == 5557 and not options["master"]:
        options["master_port"] = 0  # own workers only: any free port
    from cachecast_load.swarm import running  # noqa: PLC0415

    console = Console(highlight=False)
    results: list[dict[str, Any]] = []
    while len(results) < options["repeats"] and not running.was_interrupted(results):
        try:
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
        except running.AddressError as error:
            raise Fault(str(error)) from error
        results.append(result)
        print_result(result, console)
        if folder:
            own = folder / str(len(results)) if options["repeats"] > 1 else folder
            _write_report(write_reports, result, own, console)
    summary = markdown.render(results[0])
    if options["repeats"] > 1:
        summary = _report_repeats(results, folder, console)
    _summarize(summary, options["summary_file"])
    raise SystemExit(EXIT_CODES[repeats.outcome(results)])


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
    """Make the folders of what is written at the end before a run of hours begins."""
    for option, folder in (("--report", report), ("--summary", summary and summary.parent)):
        try:
            if folder:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Fault(f"{option} {folder}: {error.strerror}") from error


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
@click.option("--autostart", is_flag=True, help="Begin at once, without a click.")
def ui(**options: Any) -> None:  # noqa: ANN401 - typed by the options above
    """Open Locust's own web page, with this tool's charts beside it."""
    plan, target = prepare(options)
    from cachecast_load.swarm import running  # noqa: PLC0415

    web = (options["web_host"], options["web_port"])
    raise SystemExit(
        running.serve_page(
            plan, target, web, autostart=options["autostart"], command=shown_command()
        )
    )


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


def _work(options: Mapping[str, Any]) -> NoReturn:
    """Generate for a master."""
    if options["live"]:
        raise Fault("--live belongs to the master, which knows the run as a whole")
    target = _target(options, {})
    _ask(target, is_sure=options["yes"])
    # Locust is imported only where nothing can be refused any more: it patches the whole process.
    from cachecast_load.swarm import running  # noqa: PLC0415

    master = options["master_host"], options["master_port"]
    raise SystemExit(running.work(target, *master, quiet=options["quiet"]))


def prepare(options: Mapping[str, Any]) -> tuple[Plan, Target]:
    """Return plan and target from the values of our options, by their names here.

    Raises:
        Fault: something is missing, wrong, or not allowed.
    """
    try:
        plan_file = options["plan_file"]
        document = read_toml(find_plan(plan_file)) if plan_file else {}
        name = _profile_name(options, document)
        overrides = dict(options)
        overrides["slos"] = tuple(options["slos"]) or None
        plan = make_plan(default_plan(name), document, _only_fields(overrides))
        if options["more_slos"]:
            slos = plan.slos + tuple(options["more_slos"])
            plan = make_plan(plan, {}, {"slos": slos})
        target = _target(options, document.get("target", {}))
        plan = profile_class(plan.profile).fit(plan)
        require_metrics(plan, target)
    except PlanError as error:
        raise Fault(str(error)) from error
    _ask(target, is_sure=options["yes"])
    is_watched = options.get("live") is not None or plan.limits.abort_after_s is not None
    return dataclasses.replace(plan, is_watched=is_watched), target


def _profile_name(options: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    name = options["profile"] or document.get("profile")
    if not name:
        raise PlanError(
            "name a profile or a --plan; `cachecast load profiles` and `cachecast load plans` list"
            " them"
        )
    return str(name)


def _only_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    # `profile` is settled, and `target` is not the plan's.
    return {name: value for name, value in options.items() if name not in ("profile", "target")}


_TARGET_FIELDS = (
    "url",
    "api_url",
    "app_id",
    "key",
    "secret",
    "ca_file",
    "auth_endpoint",
    "auth_body",
    "metrics_url",
    "encryption_key",
)


# Fields that name each of several nodes, as a text or as a list.
_URL_LISTS = ("url", "api_url", "metrics_url")


def _target(options: Mapping[str, Any], table: object) -> Target:
    """Build the target from flags over the plan's [target] table."""
    if not isinstance(table, Mapping):
        raise Fault("[target] must be a table")
    for key, value in table.items():
        _check_target_field(key, value)
    values: dict[str, Any] = {n: options.get(n) or table.get(n) for n in _TARGET_FIELDS}
    if not values["url"]:
        raise Fault(f"--target is missing (or {ENV}_TARGET), for example ws://127.0.0.1:6001")
    headers = options.get("headers") or os.environ.get(f"{ENV}_HEADERS", "").splitlines()
    verify = table.get("verify", True) and not options.get("insecure")
    try:
        return make_target(
            **values, headers=tuple(headers or table.get("headers", ())), verify=verify
        )
    except TargetError as error:
        raise Fault(str(error)) from error


def _check_target_field(key: str, value: object) -> None:
    if key == "verify":
        fits, wanted = isinstance(value, bool), "true or false"
    elif key == "headers":
        fits = isinstance(value, list) and all(isinstance(line, str) for line in value)
        wanted = "a list of 'Name: value' texts"
    elif key in _URL_LISTS:
        several = value if isinstance(value, list) else [value]
        fits = all(isinstance(url, str) for url in several)
        wanted = "a text, or a list of texts"
    elif key in _TARGET_FIELDS:
        fits, wanted = isinstance(value, str), "a text"
    else:
        known = ", ".join((*_TARGET_FIELDS, "headers", "verify"))
        raise Fault(f"[target] has no field {key!r}; known are {known}")
    if not fits:
        raise Fault(f"[target] {key} must be {wanted}")


def _ask(target: Target, *, is_sure: bool) -> None:
    """Ask before loading a host that is neither loopback nor private."""
    if is_sure:
        return
    try:
        public = public_hosts(target)
    except TargetError as error:
        raise Fault(str(error)) from error
    if not public:
        return
    hosts = ", ".join(public)
    if not sys.stdin.isatty():
        raise Fault(f"{hosts} is a public host; add --yes if you may load it")
    if not click.confirm(f"{hosts} is a public host. Are you allowed to load it?"):
        raise Fault("not run")


_HIDDEN = ("secret", "header", "encryption-key")


def shown_command(program: str = "cachecast load", dashes: str = "--") -> str:
    """Return the command line, quoted for a shell, with every secret left out.

    Args:
        program: What was called.
        dashes: Beginning of our options there.
    """
    shown: list[str] = []
    words = iter(sys.argv[1:])
    for word in words:
        option, is_assigned, _ = word.partition("=")
        # Locust takes options that are cut short, too.
        is_hidden = option.startswith(dashes) and any(
            f"{dashes}{name}".startswith(option) for name in _HIDDEN
        )
        if not is_hidden:
            shown.append(word)
        elif is_assigned:
            shown.append(f"{option}=...")
        else:
            shown += [option, "..."]
            next(words, None)
    return f"{program} {shlex.join(shown)}".strip()


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
