"""The command line.

Exit codes: 0 all objectives hold, 1 one fails, 2 the run is invalid, 3 the harness failed.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cachecast_load import doctor
from cachecast_load.measures.figures import FAMILIES, FIGURES, STATISTICS, Source
from cachecast_load.measures.verdict import HARNESS_FAILED
from cachecast_load.plan.checks import RECONNECTS
from cachecast_load.plan.model import Plan, PlanError, make_plan, read_toml
from cachecast_load.plan.target import Target, TargetError, make_target, public_hosts
from cachecast_load.profiles import PROFILES, default_plan, profile_class
from cachecast_load.report import compare as comparing
from cachecast_load.report import read_result, write_reports
from cachecast_load.report.text import print_result
from cachecast_load.run.health import fit_here, room_for
from cachecast_load.run.preflight import require_metrics

ENV = "CACHECAST_LOADTEST"
PORT = click.IntRange(1, 65_535)


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
        help="ws://HOST:PORT of the deployment; once for each of several nodes.",
    ),
    click.option(
        "--api-url",
        multiple=True,
        envvar=f"{ENV}_API_URL",
        help="HTTP API, if on another host; several take turns.",
    ),
    click.option("--app-id", envvar=f"{ENV}_APP_ID", help="The app's id."),
    click.option("--key", envvar=f"{ENV}_KEY", help="The app's key."),
    click.option(
        "--secret",
        envvar=f"{ENV}_SECRET",
        help=f"The app's secret, or @FILE; better in {ENV}_SECRET than on a command line.",
    ),
    click.option(
        "--header",
        "headers",
        multiple=True,
        help=f"'Name: value' for every request, or @FILE of such lines; or {ENV}_HEADERS.",
    ),
    click.option("--ca-file", envvar=f"{ENV}_CA_FILE", help="Certificate authority, PEM."),
    click.option(
        "--insecure",
        is_flag=True,
        envvar=f"{ENV}_INSECURE",
        help="Accept any certificate; the report says so.",
    ),
    click.option(
        "--auth-endpoint",
        envvar=f"{ENV}_AUTH_ENDPOINT",
        help="URL that signs subscriptions, instead of signing here.",
    ),
    click.option(
        "--encryption-key",
        envvar=f"{ENV}_ENCRYPTION_KEY",
        help="Master key of encrypted channels, base64 or @FILE, where the endpoint grants keys.",
    ),
    click.option(
        "--metrics-url",
        multiple=True,
        envvar=f"{ENV}_METRICS_URL",
        help="Prometheus metrics of the target, for server figures; several are added up.",
    ),
    click.option(
        "--yes", is_flag=True, envvar=f"{ENV}_YES", help="Do not ask before loading a public host."
    ),
)

load_options = _options(
    click.option("--subscribers", type=int, help="How many subscribers."),
    click.option("--channels", type=int, help="How many channels."),
    click.option("--rate", type=float, help="Publishes per second, all channels together."),
    click.option("--payload", "payload_bytes", type=int, help="Bytes of data per event."),
    click.option("--duration", "duration_s", type=float, help="Seconds to measure."),
    click.option("--connect-rate", type=float, help="Connects per second while ramping up."),
    click.option("--seed", type=int, help="Makes channel choice and arrivals repeatable."),
    click.option("--ttl", "ttl_s", type=float, help="Seconds the target keeps a cached value."),
    click.option("--joins", "joins_per_s", type=float, help="Joins per second (cache profiles)."),
    click.option("--kind", "channel_kind", help="Channel kind, such as private-cache-."),
    click.option(
        "--reconnect-to",
        type=click.Choice(RECONNECTS),
        help="Where subscribers of several targets come back: the next one (default), or the same.",
    ),
    click.option("--strict", is_flag=True, default=None, help="Use a full WebSocket client."),
    click.option("--slo", "slos", multiple=True, help="An objective; replaces the profile's own."),
    click.option("--also-slo", "more_slos", multiple=True, help="An objective more."),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cachecast", prog_name="cachecast load")
def cli() -> None:
    """Load-test a Pusher-compatible deployment, with verdicts that hold."""


@cli.command()
@click.argument("profile", required=False)
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Plan in TOML.")
@target_options
@load_options
@click.option("--workers", type=click.IntRange(0), default=0, help="Generator processes here.")
@click.option("--processes", "workers", type=click.IntRange(0), help="The same as --workers.")
@click.option("--master", is_flag=True, help="Wait for workers from other machines.")
@click.option("--expect-workers", type=click.IntRange(1), help="How many of them.")
@click.option("--worker", "is_worker", is_flag=True, help="Generate for a master.")
@click.option("--master-host", default="127.0.0.1", show_default=True, help="Where the master is.")
@click.option("--master-port", type=PORT, default=5557, show_default=True, help="Its port.")
@click.option("--master-bind", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--report", "report_folder", type=click.Path(path_type=Path), help="Write reports.")
@click.option("--quiet", is_flag=True, help="No live table.")
def run(**options: Any) -> None:  # noqa: ANN401 - typed by the options above
    """Run PROFILE (or the one --plan names) and judge it."""
    # Locust is imported only by the commands that need it: it patches the whole process.
    from cachecast_load.swarm import running  # noqa: PLC0415

    if options["is_worker"]:
        target = _target(options, {})
        _ask(target, is_sure=options["yes"])
        raise SystemExit(
            running.work(
                target, options["master_host"], options["master_port"], quiet=options["quiet"]
            )
        )
    if options["master"] != bool(options["expect_workers"]):
        raise Fault("--master and --expect-workers N belong together")
    plan, target = prepare(options)
    remote = options["expect_workers"] or 0
    processes = max(1, options["workers"] + remote)
    problem = room_for(plan.greatest_subscribers, processes, len(target.sockets))
    problem = problem or fit_here(options["workers"])
    if problem:
        raise Fault(problem)
    folder = options["report_folder"]
    if folder:
        try:  # a run of hours must not end here
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Fault(f"--report {folder}: {error.strerror}") from error
    if options["workers"] and options["master_port"] == 5557 and not options["master"]:
        options["master_port"] = 0  # own workers only: any free port
    result = running.run(
        plan,
        target,
        workers=options["workers"],
        remote=remote,
        bind=(options["master_bind"], options["master_port"]),
        command=_shown_command(),
        quiet=options["quiet"],
    )
    console = Console(highlight=False)
    print_result(result, console)
    if folder:
        try:
            paths = write_reports(result, folder)
        except OSError as error:
            raise Fault(f"the report cannot be written: {error}") from error
        console.print(f"\nreport: {next(p for p in paths if p.suffix == '.html')}")
    raise SystemExit(result["verdict"]["exit_code"])


@cli.command()
@click.argument("profile", required=False)
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Plan in TOML.")
@target_options
@load_options
@click.option("--web-host", default="127.0.0.1", show_default=True, help="Where the page is.")
@click.option("--web-port", type=PORT, default=8089, show_default=True, help="Its port.")
@click.option("--autostart", is_flag=True, help="Begin at once, without a click.")
def ui(**options: Any) -> None:  # noqa: ANN401 - typed by the options above
    """Open Locust's own web page, with this tool's charts beside it."""
    from cachecast_load.swarm import running  # noqa: PLC0415

    plan, target = prepare(options)
    web = (options["web_host"], options["web_port"])
    raise SystemExit(running.serve_page(plan, target, web, autostart=options["autostart"]))


@cli.command()
@click.argument("base", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--to", "new", multiple=True, type=click.Path(path_type=Path), help="New results.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(base: tuple[Path, ...], new: tuple[Path, ...], *, as_json: bool) -> None:
    """Say what changed between runs: `compare A B`, or `compare A... --to B...` for several."""
    if not new:
        if len(base) != 2:
            raise Fault("give two results, or several and --to for each of the new ones")
        base, new = base[:1], base[1:]
    try:
        olds = [read_result(path) for path in base]
        news = [read_result(path) for path in new]
    except (OSError, ValueError) as error:
        raise Fault(str(error)) from error
    comparison = comparing.compare(olds, news)
    if as_json:
        click.echo(comparing.to_json(comparison))
    else:
        comparing.print_comparison(comparison, Console(highlight=False))


@cli.command()
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--html", "folder", type=click.Path(path_type=Path), help="Write the reports anew.")
def show(result: Path, folder: Path | None) -> None:
    """Print a result again, from its JSON."""
    try:
        read = read_result(result)
        print_result(read, Console(highlight=False))
        if folder:
            write_reports(read, folder)
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
    target = _target(options, {}, needs_api=False)
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


def prepare(options: Mapping[str, Any]) -> tuple[Plan, Target]:
    """Return plan and target from the values of our options, by their names here.

    Raises:
        Fault: something is missing, wrong, or not allowed.
    """
    try:
        document = read_toml(options["plan_file"]) if options["plan_file"] else {}
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
    return plan, target


def _profile_name(options: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    name = options["profile"] or document.get("profile")
    if not name:
        raise PlanError("name a profile or a --plan; `cachecast load profiles` lists them")
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
    "metrics_url",
    "encryption_key",
)


# Fields that name each of several nodes, as a text or as a list.
_URL_LISTS = ("url", "api_url", "metrics_url")


def _target(options: Mapping[str, Any], table: object, *, needs_api: bool = True) -> Target:
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
            **values,
            headers=tuple(headers or table.get("headers", ())),
            verify=verify,
            needs_api=needs_api,
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


_HIDDEN = ("--secret", "--header", "--encryption-key")
_HIDDEN_ASSIGNED = tuple(f"{option}=" for option in _HIDDEN)


def _shown_command() -> str:
    """Return the command line with every secret left out."""
    shown: list[str] = []
    hide = False
    for word in sys.argv[1:]:
        if hide:
            shown.append("...")
            hide = False
        elif word.startswith(_HIDDEN_ASSIGNED):
            shown.append(word.partition("=")[0] + "=...")
        else:
            shown.append(word)
            hide = word in _HIDDEN
    return shlex.join(["cachecast", "load", *shown])


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
