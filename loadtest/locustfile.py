"""For people who know Locust: `locust -f loadtest/locustfile.py`.

Every option of `python -m loadtest run` is an option here too (`--lt-...`, environment variables
included), the master's page and `--master`, `--worker`, `--processes`, `--headless` work as
always, and the same reports are written at the end. The number of users Locust shows is the
number of blocks and publishers; how many subscribers they hold is in the plan.

Exit code under `--headless`: 0, 1 or 2 as for `python -m loadtest run`.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path

from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from loadtest.plan import Plan, PlanError, make_plan, read_toml
from loadtest.preflight import PreflightError, check, settle_ttl
from loadtest.profiles import PROFILES, default_plan
from loadtest.report import write_reports
from loadtest.report.text import print_result
from loadtest.station import open_session
from loadtest.swarm import Swarm
from loadtest.target import Target, TargetError, make_target, public_hosts
from loadtest.users import PublisherUser, SubscriberUser
from loadtest.web import extend

__all__ = ["PublisherUser", "SubscriberUser"]

ENV = "CACHECAST_LOADTEST"
_TEXTS = ("api-url", "header", "ca-file", "auth-endpoint", "metrics-url")
_NUMBERS = {
    "subscribers": int,
    "channels": int,
    "rate": float,
    "payload-bytes": int,
    "duration-s": float,
    "connect-rate": float,
    "seed": int,
    "ttl-s": float,
    "joins-per-s": float,
}


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Add our options to Locust's command line and to its page."""
    parser.add_argument("--lt-profile", choices=sorted(PROFILES), default="fanout", help="profile")
    parser.add_argument("--lt-plan", default="", help="plan in TOML")
    parser.add_argument("--lt-target", env_var=f"{ENV}_TARGET", default="", help="ws://HOST:PORT")
    parser.add_argument("--lt-app-id", env_var=f"{ENV}_APP_ID", default="", help="the app's id")
    parser.add_argument("--lt-key", env_var=f"{ENV}_KEY", default="", help="the app's key")
    parser.add_argument(
        "--lt-secret",
        env_var=f"{ENV}_SECRET",
        default="",
        is_secret=True,
        include_in_web_ui=False,
        help="the app's secret, or @FILE",
    )
    for name in _TEXTS:
        parser.add_argument(f"--lt-{name}", default="", help=f"as --{name} of loadtest run")
    for name, kind in _NUMBERS.items():
        parser.add_argument(f"--lt-{name}", type=kind, help=f"{name.replace('-', ' ')} of the plan")
    parser.add_argument("--lt-slo", action="append", default=[], help="an objective, repeatable")
    parser.add_argument("--lt-strict", action="store_true", help="full WebSocket client")
    parser.add_argument("--lt-insecure", action="store_true", help="accept any certificate")
    parser.add_argument("--lt-yes", action="store_true", help="do not ask about public hosts")
    parser.add_argument("--lt-report", default="", help="folder for the reports")


@events.init.add_listener
def set_up(environment: Environment, **_kwargs: object) -> None:
    """Attach a swarm to this process: master, worker or both in one."""
    options = environment.parsed_options
    if options is None or not options.lt_target:
        raise SystemExit(f"--lt-target (or {ENV}_TARGET) is missing, such as ws://127.0.0.1:6001")
    try:
        plan, target = _plan(options), _target(options)
    except (PlanError, TargetError) as error:
        raise SystemExit(str(error)) from error
    # Locust sends its options to workers; the secret stays here, each worker has its own.
    options.lt_secret = ""
    public = public_hosts(target)
    if public and not options.lt_yes:
        raise SystemExit(f"{', '.join(public)} is public; add --lt-yes if you may load it")
    processes = 1
    if isinstance(environment.runner, MasterRunner):
        processes = max(options.expect_workers or 1, abs(options.processes or 1))
    command = "locust -f loadtest/locustfile.py"
    is_worker = isinstance(environment.runner, WorkerRunner)
    if not is_worker:
        try:
            session = open_session(plan, target, secrets.randbelow(1 << 16))
            check(session)
            plan = settle_ttl(plan, session)
        except (PreflightError, TargetError, PlanError) as error:
            print(f"INVALID  {error}", file=sys.stderr)
            raise SystemExit(2) from error
    swarm = Swarm(environment, plan, target, processes=processes, command=command)
    if is_worker:
        swarm.attach()
        return
    environment.shape_class = swarm.make_shape()

    def finished(result: dict[str, object]) -> None:
        _finish(environment, options, result)

    swarm.on_result = finished
    swarm.attach()
    if environment.web_ui is not None:
        extend(environment, swarm)


def _finish(
    environment: Environment, options: argparse.Namespace, result: dict[str, object]
) -> None:
    from rich.console import Console  # noqa: PLC0415 - not needed before the end

    print_result(result, Console(highlight=False))
    if options.lt_report:
        write_reports(result, Path(options.lt_report))
    verdict = result["verdict"]
    assert isinstance(verdict, dict)
    environment.process_exit_code = verdict["exit_code"]


def _plan(options: argparse.Namespace) -> Plan:
    document = read_toml(Path(options.lt_plan)) if options.lt_plan else {}
    profile = str(document.get("profile", options.lt_profile))
    overrides = {
        name.replace("-", "_"): getattr(options, f"lt_{name.replace('-', '_')}")
        for name in _NUMBERS
    }
    overrides["slos"] = tuple(options.lt_slo) or None
    overrides["strict"] = options.lt_strict or None
    plan = make_plan(default_plan(profile), document, overrides)
    return PROFILES[profile].fit(plan)


def _target(options: argparse.Namespace) -> Target:
    return make_target(
        url=options.lt_target,
        app_id=options.lt_app_id,
        key=options.lt_key,
        secret=options.lt_secret,
        api_url=options.lt_api_url or None,
        headers=(options.lt_header,) if options.lt_header else (),
        ca_file=options.lt_ca_file or None,
        verify=not options.lt_insecure,
        auth_endpoint=options.lt_auth_endpoint or None,
        metrics_url=options.lt_metrics_url or None,
    )
