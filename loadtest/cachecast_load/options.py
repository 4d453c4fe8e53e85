"""What the user says, at the command line, in variables and in a plan, turned into plan and target.

Command line, page and locustfile read it here.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from cachecast_load.measures.verdict import HARNESS_FAILED
from cachecast_load.plan.checks import RECONNECTS
from cachecast_load.plan.model import Behaviour, Load, Plan, PlanError, make_plan, read_toml
from cachecast_load.plan.shipped import find_plan
from cachecast_load.plan.target import (
    AUTH_BODIES,
    ENV,
    Target,
    TargetError,
    make_target,
    public_hosts,
)
from cachecast_load.profiles import default_plan, profile_class
from cachecast_load.run.preflight import require_metrics


class Fault(click.ClickException):
    """A sentence for the user; exit code 3."""

    exit_code = HARNESS_FAILED


_Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def _all_of(*options: _Decorator) -> _Decorator:
    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


target_options = _all_of(
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


_LOAD, _BEHAVIOUR = Load(), Behaviour()


def _own(value: object) -> str:
    """Return what `--help` says of a default that a profile may have replaced."""
    return f"{value}, or the profile's own"


load_options = _all_of(
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


foreign_options = _all_of(
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
        target = read_target(options, document.get("target", {}))
        plan = profile_class(plan.profile).fit(plan)
        require_metrics(plan, target)
    except PlanError as error:
        raise Fault(str(error)) from error
    ask_first(target, is_sure=options["yes"])
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


def read_target(options: Mapping[str, Any], table: object, *, needs_api: bool = True) -> Target:
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


def ask_first(target: Target, *, is_sure: bool) -> None:
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
