"""Running a plan under Locust: this process, local workers, or workers elsewhere."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import logging
import os
import signal
import socket
import subprocess
import sys
from typing import Any

# Locust first: it patches the standard library, and everything imported later must see that.
import gevent
import gevent.socket
from gevent.event import Event
from locust.env import Environment
from rich.console import Console

from cachecast_load.measures.series import Slot
from cachecast_load.measures.verdict import HARNESS_FAILED
from cachecast_load.plan.model import Plan, PlanError
from cachecast_load.plan.target import Target, TargetError
from cachecast_load.report import text
from cachecast_load.run.collector import Collector
from cachecast_load.run.preflight import PreflightError, survey
from cachecast_load.run.result import Facts, empty_result
from cachecast_load.swarm.swarm import Swarm, run_to_end, wait_for_workers
from cachecast_load.swarm.users import PublisherUser, SubscriberUser
from cachecast_load.swarm.web import extend

WORKERS_TIMEOUT_S = 30.0
REMOTE_TIMEOUT_S = 120.0  # somebody starts them by hand
NODES_EVERY_S = 5  # of the live table
ENV = "CACHECAST_LOADTEST"
LIFELINE = f"{ENV}_LIFELINE"  # set for workers whose stdin ends with their master


def run(
    plan: Plan,
    target: Target,
    *,
    workers: int = 0,
    remote: int = 0,
    bind: tuple[str, int] = ("127.0.0.1", 0),
    command: str = "",
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a plan to its end and return its result.

    Args:
        plan: what to run.
        target: what to aim at.
        workers: generator processes to start here; 0 generates in this process.
        remote: workers to wait for besides.
        bind: where the master listens for workers.
        command: for the report.
        quiet: no live table.
    """
    try:
        plan, notes = survey(plan, target)
    except (PreflightError, TargetError, PlanError) as error:
        facts = Facts(started=_now(), run=0, command=command, invalid=[str(error)])
        return empty_result(plan, target, facts)
    # Locust logs what the live table shows.
    logging.getLogger("locust").setLevel(logging.WARNING)
    environment = Environment(user_classes=[PublisherUser, SubscriberUser])
    processes = workers + remote
    swarm = Swarm(
        environment, plan, target, processes=max(processes, 1), command=command, notes=notes
    )
    environment.shape_class = swarm.make_shape()
    children: list[subprocess.Popen[bytes]] = []
    try:
        if processes:
            host, port = bind
            port = port or _free_port()
            environment.create_master_runner(host, port)
            swarm.attach()
            _stop_on_interrupt(swarm, children)
            # One by one into the list: whoever interrupts this finds those that have been started.
            children.extend(_start_worker(target, port) for _ in range(workers))
            if remote and not quiet:
                print(f"waiting for {remote} workers at {host}:{port}", file=sys.stderr)
            timeout_s = REMOTE_TIMEOUT_S if remote else WORKERS_TIMEOUT_S
            if not wait_for_workers(swarm, processes, timeout_s):
                ready = len(swarm.ready_workers)
                facts = Facts(started=_now(), run=0, command=command, processes=processes)
                facts.invalid.append(
                    f"only {ready} of {processes} workers reported within {timeout_s:g} s"
                )
                return empty_result(plan, target, facts)
        else:
            environment.create_local_runner()
            swarm.attach()
            _stop_on_interrupt(swarm, children)
        if not quiet and plan.measured_s >= 600:
            print(f"this run measures for {plan.measured_s / 60:.0f} minutes", file=sys.stderr)
        live = _LiveTable(quiet=quiet)
        run_to_end(swarm, live.show)
    finally:
        _end(children, are_done=swarm.result is not None)
    assert swarm.result is not None
    return swarm.result


def work(target: Target, master_host: str, master_port: int, *, quiet: bool) -> int:
    """Generate for a master until it says quit; returns the exit code."""
    if os.environ.pop(LIFELINE, None):
        gevent.spawn(_end_with_the_master)
    if not quiet:
        print(f"waiting for the master at {master_host}:{master_port}", file=sys.stderr)
    logging.getLogger("locust").setLevel(logging.ERROR)
    environment = Environment(user_classes=[PublisherUser, SubscriberUser])
    swarm = Swarm(environment, Plan("fanout"), target)
    try:
        runner = environment.create_worker_runner(master_host, master_port)
    except ConnectionError:
        print(f"no master at {master_host}:{master_port}", file=sys.stderr)
        return HARNESS_FAILED
    swarm.attach()
    with contextlib.suppress(gevent.GreenletExit):
        runner.greenlet.join()
    return 0


def _end_with_the_master() -> None:
    """End at once when the master does, however it ends: it holds the other end of our stdin.

    One that ended while this process was still starting has left an end of file, too.
    """
    gevent.socket.wait_read(sys.stdin.fileno())
    os._exit(HARNESS_FAILED)


def serve_page(plan: Plan, target: Target, web: tuple[str, int], *, autostart: bool) -> int:
    """Serve Locust's page with our charts until Ctrl-C; returns the last run's exit code."""
    try:
        plan, notes = survey(plan, target)
    except (PreflightError, TargetError, PlanError) as error:
        print(f"INVALID  {error}", file=sys.stderr)
        return 2
    environment = Environment(user_classes=[PublisherUser, SubscriberUser])
    swarm = Swarm(environment, plan, target, command="cachecast load ui", notes=notes)
    environment.shape_class = swarm.make_shape()
    environment.create_local_runner()
    swarm.attach()
    environment.host = target.socket_urls[0]
    # Locust's page reads the command line again, and these options are not Locust's.
    sys.argv = sys.argv[:1]
    page = environment.create_web_ui(web[0], web[1], delayed_start=True)
    extend(environment, swarm)
    page.start()
    print(f"Locust's page: http://{web[0]}:{web[1]}/   our charts: /loadtest", flush=True)
    if autostart:
        environment.runner.start_shape()
    stopped = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, stopped.set)
    stopped.wait()
    environment.runner.quit()
    page.stop()
    result = swarm.result
    return int(result["verdict"]["exit_code"]) if result else 0


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start_worker(target: Target, port: int) -> subprocess.Popen[bytes]:
    """Start a worker here; what is secret travels in its environment, not on its command line."""
    key = target.encryption_key
    given = {
        "TARGET": ",".join(target.socket_urls),
        "API_URL": ",".join(target.api_urls),
        "APP_ID": target.credentials.app_id,
        "KEY": target.credentials.key,
        "SECRET": target.credentials.secret,
        "HEADERS": "\n".join(f"{name}: {value}" for name, value in target.headers),
        "CA_FILE": target.ca_file,
        "AUTH_ENDPOINT": target.auth_endpoint,
        "ENCRYPTION_KEY": base64.b64encode(key).decode() if key else None,
        "INSECURE": None if target.verify else "1",
        "YES": "1",  # the master has asked
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith(f"{ENV}_")}
    environment |= {f"{ENV}_{name}": value for name, value in given.items() if value}
    environment[LIFELINE] = "1"
    command = [
        sys.executable,
        "-m",
        "cachecast_load",
        "run",
        "--worker",
        "--master-port",
        str(port),
        "--quiet",
    ]
    # A group of its own: Ctrl-C in the terminal is the master's, which ends its workers in order.
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        process_group=0,
    )


def _end(children: list[subprocess.Popen[bytes]], *, are_done: bool) -> None:
    """Wait for workers that were told to quit; end those that never got so far."""
    for child in children:
        if not are_done:
            child.terminate()
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        assert child.stdin is not None
        child.stdin.close()


def _stop_on_interrupt(swarm: Swarm, children: list[subprocess.Popen[bytes]]) -> None:
    """Ctrl-C once ends the run in order and reports it; twice gives up."""

    def interrupted() -> None:
        if swarm.director is not None and _INTERRUPTED not in swarm.director.notes:
            swarm.stop(_INTERRUPTED)
            print("ending the run in order; once more gives it up", file=sys.stderr)
            return
        for child in children:
            child.kill()
        print("stopped", file=sys.stderr)
        os._exit(HARNESS_FAILED)

    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, interrupted)


_INTERRUPTED = "ended early by a signal; what was measured until then is reported"


class _LiveTable:
    """A line a second on the terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)
        self._lines = 0
        self._faults: dict[str, int] = {}
        self._second = -1

    def show(self, swarm: Swarm) -> None:
        """Print the newest second, and the heading every twenty lines."""
        values = live_values(swarm)
        if self._quiet or values["time"] == self._second:
            return
        self._second = int(str(values["time"]))
        if self._lines % 20 == 0:
            header = text.live_header(self._console.width)
            self._console.print(header, style="bold", soft_wrap=True)
        self._lines += 1
        self._console.print(text.live_line(values, self._console.width), soft_wrap=True)
        for url, of_node in live_nodes(swarm):
            faults = int(of_node["lost"]) + int(of_node["errors"])
            # All of them now and then, and at once whichever has something new to complain about.
            if self._second % NODES_EVERY_S == 0 or faults > self._faults.get(url, 0):
                self._console.print(text.live_node_line(url, of_node), soft_wrap=True)
            self._faults[url] = faults


def live_nodes(swarm: Swarm) -> list[tuple[str, dict[str, Any]]]:
    """Return the newest complete second by target, where there are several."""
    assert swarm.collector is not None
    collector = swarm.collector
    levels = collector.levels()
    _, slot = _newest(collector)
    nodes: list[tuple[str, dict[str, Any]]] = []
    for number, tally in sorted(collector.sockets.items()):
        delivery = slot.histograms.get(f"delivery.{number}") if slot else None
        p99 = delivery.percentile(99) if delivery else None
        values = {
            "connected": levels[f"connected.{number}"],
            "lost": levels[f"missing.{number}"],
            "errors": tally.error_count,
            "p99 ms": None if p99 is None else p99 / 1000,
        }
        nodes.append((swarm.target.socket_urls[number], values))
    return nodes


def _newest(collector: Collector) -> tuple[float, Slot | None]:
    """Return the newest complete second of the series, or the only one."""
    slots = collector.series.slots()
    return slots[-2] if len(slots) > 1 else slots[-1] if slots else (0.0, None)


def live_values(swarm: Swarm) -> dict[str, Any]:
    """Return the newest complete second of a run, by the live table's column titles."""
    assert swarm.collector is not None
    assert swarm.director is not None
    levels = swarm.collector.levels()
    second, slot = _newest(swarm.collector)
    delivery = slot.histograms.get("delivery") if slot else None
    lag = slot.histograms.get("loop_lag") if slot else None
    seconds = swarm.collector.series.slot_s
    p50, p99 = delivery.percentiles((50, 99)) if delivery else (None, None)
    return {
        "time": int(second),
        "phase": swarm.director.order.phase,
        "connected": levels["connected"],
        "subscribed": levels["subscribed"],
        "publishes/s": slot.counts["publish_ok"] / seconds if slot else None,
        "deliveries/s": delivery.count / seconds if delivery else None,
        "p50 ms": None if p50 is None else p50 / 1000,
        "p99 ms": None if p99 is None else p99 / 1000,
        "lost": levels["missing"],
        "errors": swarm.collector.error_count,
        "lag ms": (lag.percentile(99) or 0) / 1000 if lag else None,
    }
