"""For people who know Locust: `locust -f loadtest/locustfile.py`.

Every option of `cachecast load run` that says what to run and what to aim at is an option
here too (`--target` is `--lt-target`, environment variables included), the master's page and
`--master`, `--worker`, `--processes`, `--headless` work as always, and the same reports are
written at the end. The number of users Locust shows is the number of blocks and publishers; how
many subscribers they hold is in the plan.

Exit code under `--headless`: as for `cachecast load run`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click
from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from cachecast_load.measures.verdict import EXIT_CODES, HARNESS_FAILED, INVALID
from cachecast_load.options import Fault, load_options, prepare, shown_command, target_options
from cachecast_load.profiles import PROFILES
from cachecast_load.report import markdown, write_reports, write_summary
from cachecast_load.report.table import printable
from cachecast_load.report.text import print_result
from cachecast_load.run.preflight import PreflightError
from cachecast_load.swarm.links import WorkerLink
from cachecast_load.swarm.swarm import open_run
from cachecast_load.swarm.users import PublisherUser, SubscriberUser
from cachecast_load.swarm.web import extend

__all__ = ["PublisherUser", "SubscriberUser"]

# Options of Locust's that would be ignored without a word, and what to give instead.
_LOCUSTS = {
    "num_users": "-u says nothing here: --lt-subscribers says how many connections there are",
    "spawn_rate": "-r says nothing here: --lt-connect-rate says how many connect per second",
    "run_time": "-t says nothing here: --lt-duration says how many seconds are measured",
}
_ON_THE_PAGE = ("rate", "payload_bytes", "channels")
_SECRET = ("secret", "headers", "encryption_key")


@target_options
@load_options
def _described() -> None:
    """Carry the options of the command line; they are defined once, in `cli`."""


OPTIONS: list[click.Option] = list(reversed(_described.__click_params__))  # type: ignore[attr-defined]  # set by click's decorators


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Add our options to Locust's command line and, but for secrets, to its page."""
    parser.add_argument(
        "--lt-profile", choices=sorted(PROFILES), help="profile (fanout)", include_in_web_ui=False
    )
    parser.add_argument("--lt-plan", default="", help="plan in TOML", include_in_web_ui=False)
    parser.add_argument(
        "--lt-report", default="", help="folder for the reports", include_in_web_ui=False
    )
    for option in OPTIONS:
        _add_option(parser, option)


def _add_option(parser: LocustArgumentParser, option: click.Option) -> None:
    extra: dict[str, Any] = {"help": option.help, "dest": f"lt_{option.name}"}
    if isinstance(option.envvar, str):
        extra["env_var"] = option.envvar
    if option.is_flag:
        extra["action"] = "store_true"
    elif option.multiple:
        extra |= {"action": "append", "default": []}
    elif option.name == "abort_after_s":
        extra |= {"type": float, "nargs": "?", "const": float(str(option.flag_value))}
    else:
        extra["type"] = {"integer": int, "float": float}.get(option.type.name, str)
    # The page's form sets these; its own fields set users, spawn rate and run time, and what was
    # given beside them is settled when it opens.
    extra["include_in_web_ui"] = option.name in _ON_THE_PAGE
    if option.name in _SECRET:
        extra["is_secret"] = True
    parser.add_argument(f"--lt-{option.opts[0].removeprefix('--')}", **extra)


@events.init.add_listener
def set_up(environment: Environment, **_kwargs: object) -> None:
    """Attach a swarm to this process: master, worker or both in one."""
    options = environment.parsed_options
    if options is None:
        return
    for name, words in _LOCUSTS.items():
        if getattr(options, name) is not None:
            _give_up(f"{words} (what Locust spawns are blocks and publishers)", HARNESS_FAILED)
    try:
        plan, target = prepare(_values(options))
    except Fault as error:
        _give_up(error.message, HARNESS_FAILED)
    for name in _SECRET:
        # Locust sends its options to workers; what is secret stays here, each worker has its own.
        setattr(options, f"lt_{name}", None)
    if isinstance(environment.runner, WorkerRunner):
        WorkerLink(environment, target)
        return
    processes = 1
    if isinstance(environment.runner, MasterRunner):
        here = options.processes or 0
        here = (os.cpu_count() or 1) if here < 0 else here
        processes = max(options.expect_workers or 1, here)
    try:
        swarm = open_run(
            plan,
            target,
            environment=environment,
            processes=processes,
            command=shown_command("locust", "--lt-"),
            on_result=lambda result: _finish(environment, options, result),
        )
    except PreflightError as error:
        _give_up(f"INVALID  {error}", EXIT_CODES[INVALID])
    if environment.web_ui is not None:
        extend(environment, swarm)


def _values(options: argparse.Namespace) -> dict[str, Any]:
    """Return what was given, by the names that `cli.prepare` knows."""
    values = {str(option.name): getattr(options, f"lt_{option.name}") for option in OPTIONS}
    plan_file = Path(options.lt_plan) if options.lt_plan else None
    profile = options.lt_profile or (None if plan_file else "fanout")
    # A flag that was not set must not overrule the plan.
    strict = values["strict"] or None
    return {**values, "strict": strict, "profile": profile, "plan_file": plan_file}


def _give_up(text: str, code: int) -> NoReturn:
    print(printable(text), file=sys.stderr)
    raise SystemExit(code)


def _finish(environment: Environment, options: argparse.Namespace, result: dict[str, Any]) -> None:
    from rich.console import Console  # noqa: PLC0415 - not needed before the end

    print_result(result, Console(highlight=False))
    if options.lt_report:
        write_reports(result, Path(options.lt_report))
    write_summary(markdown.render(result), None)
    environment.process_exit_code = result["verdict"]["exit_code"]
