"""What the commands do under Locust: run a plan here or with workers, work for a master, a page."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

# Locust first: it patches the standard library, and everything imported later must see that.
import gevent
from gevent.event import Event
from locust.env import Environment

from cachecast_load.measures.verdict import EXIT_CODES, HARNESS_FAILED, INVALID
from cachecast_load.plan.model import Plan
from cachecast_load.plan.target import Target
from cachecast_load.report.live import LiveTable
from cachecast_load.run.preflight import PreflightError
from cachecast_load.run.result import Facts, empty_result
from cachecast_load.swarm.exposition import AddressError, Exposition
from cachecast_load.swarm.links import MasterLink, WorkerLink
from cachecast_load.swarm.swarm import USERS, Swarm, open_run
from cachecast_load.swarm.web import extend
from cachecast_load.swarm.workers import Workers, follow_the_master, free_port

__all__ = ["AddressError", "run", "serve_page", "work"]

WORKERS_TIMEOUT_S = 30.0
REMOTE_TIMEOUT_S = 120.0  # somebody starts them by hand
LONG_S = 600.0
_INTERRUPTED = "ended early by a signal; what was measured until then is reported"


def run(
    plan: Plan,
    target: Target,
    *,
    workers: int = 0,
    remote: int = 0,
    bind: tuple[str, int] = ("127.0.0.1", 0),
    command: str = "",
    quiet: bool = False,
    live: tuple[str, int] | None = None,
) -> dict[str, Any]:
    """Run a plan to its end and return its result.

    Args:
        plan: What to run.
        target: What to aim at.
        workers: Generator processes to start here; 0 generates in this process.
        remote: Number of workers to wait for besides.
        bind: Host and port at which the master listens for workers; port 0 for any.
        command: The command line for the report, without secrets.
        quiet: Whether to show no live table.
        live: Host and port at which to serve metrics while it goes on.

    Raises:
        AddressError: The address for the metrics cannot be had.
    """
    # Locust logs what the live table shows.
    logging.getLogger("locust").setLevel(logging.WARNING)
    count, (host, port) = workers + remote, bind
    port = port or free_port()
    facts = Facts(_now(), run=0, command=command, processes=max(count, 1))
    try:
        swarm = open_run(
            plan,
            target,
            bind=(host, port) if count else None,
            processes=max(count, 1),
            command=command,
        )
    except PreflightError as error:
        facts.invalid.append(str(error))
        return empty_result(plan, target, facts)
    with Workers() as own, contextlib.ExitStack() as served:
        if live:
            exposition = served.enter_context(Exposition(lambda: swarm.run, *live))
            print(f"metrics while it runs: {exposition.url}", file=sys.stderr, flush=True)
        _stop_on_interrupt(swarm, own)
        own.start(target, workers, port)
        if remote and not quiet:
            print(f"waiting for {remote} workers at {host}:{port}", file=sys.stderr)
        timeout_s = REMOTE_TIMEOUT_S if remote else WORKERS_TIMEOUT_S
        if isinstance(swarm.link, MasterLink):
            ready = swarm.link.wait_for_workers(count, timeout_s)
            if ready < count:
                facts.invalid.append(
                    f"only {ready} of {count} workers reported within {timeout_s:g} s"
                )
                return empty_result(swarm.plan, target, facts)
        if not quiet:
            for note in swarm.run.facts.notes:
                print(note, file=sys.stderr)
        if not quiet and swarm.plan.measured_s >= LONG_S:
            minutes = swarm.plan.measured_s / 60
            print(f"this run measures for {minutes:.0f} minutes", file=sys.stderr)
        result = swarm.run_to_end(LiveTable(quiet=quiet).show)
        own.are_done = True
    return result


def was_interrupted(results: Sequence[dict[str, Any]]) -> bool:
    """Return whether the last of the results is of a run that a signal ended."""
    return bool(results) and _INTERRUPTED in results[-1]["run"]["notes"]


def work(target: Target, master_host: str, master_port: int, *, quiet: bool) -> int:
    """Generate for a master until it says quit; returns the exit code."""
    follow_the_master()
    if not quiet:
        print(f"waiting for the master at {master_host}:{master_port}", file=sys.stderr)
    logging.getLogger("locust").setLevel(logging.ERROR)
    environment = Environment(user_classes=USERS)
    try:
        runner = environment.create_worker_runner(master_host, master_port)
    except ConnectionError:
        print(f"no master at {master_host}:{master_port}", file=sys.stderr)
        return HARNESS_FAILED
    WorkerLink(environment, target)
    with contextlib.suppress(gevent.GreenletExit):
        runner.greenlet.join()
    return 0


def serve_page(
    plan: Plan, target: Target, web: tuple[str, int], *, autostart: bool, command: str
) -> int:
    """Serve Locust's page with our charts until Ctrl-C; returns the last run's exit code."""
    try:
        swarm = open_run(plan, target, command=command)
    except PreflightError as error:
        print(f"INVALID  {error}", file=sys.stderr)
        return EXIT_CODES[INVALID]
    environment = swarm.environment
    environment.host = target.socket_urls[0]
    # Locust's page reads the command line again, and these options are not Locust's.
    sys.argv = sys.argv[:1]
    page = environment.create_web_ui(web[0], web[1], delayed_start=True)
    extend(environment, swarm)
    page.start()
    print(f"Locust's page: http://{web[0]}:{web[1]}/   our charts: /loadtest", flush=True)
    assert environment.runner is not None
    if autostart:
        environment.runner.start_shape()
    stopped = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, stopped.set)
    stopped.wait()
    environment.runner.quit()
    page.stop()
    result = swarm.run.result
    return int(result["verdict"]["exit_code"]) if result else 0


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _stop_on_interrupt(swarm: Swarm, workers: Workers) -> None:
    """Ctrl-C once ends the run in order and reports it; twice gives up."""

    def interrupted() -> None:
        run = swarm.run
        if run.has_started and _INTERRUPTED not in run.director.notes:
            run.stop(_INTERRUPTED)
            print("ending the run in order; once more gives it up", file=sys.stderr)
            return
        workers.kill()
        print("stopped", file=sys.stderr)
        os._exit(HARNESS_FAILED)

    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, interrupted)
