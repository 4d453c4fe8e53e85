"""The bridge to Locust: who is master and worker, which messages pass, when a run begins and ends.

    master -> worker   lt-run     plan, run mark, how many publishers, the master's machine
    worker -> master   lt-hello   asks for lt-run
    worker -> master   lt-ready   says the session stands, and its clock's error
    worker -> master   lt-seat    asks for a seat; the answer has the same name
    worker -> master   lt-clock   asks for the time; the answer has the same name
    master -> worker   lt-order   phase and level
    worker -> master   lt-report  everything measured since the last one

Reports are our own messages, beside Locust's statistics and four times a second: Locust's are
rounded to milliseconds and sent every three seconds. Into those statistics goes a copy, so that
Locust's page and CSV files show the run as well.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import gevent
from gevent.event import Event
from locust import LoadTestShape
from locust.env import Environment
from locust.rpc.protocol import Message
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from cachecast_load.measures.ledger import Auditor
from cachecast_load.measures.rules import judge
from cachecast_load.net.reactor import Reactor, now_us
from cachecast_load.plan import orders
from cachecast_load.plan.model import Plan
from cachecast_load.plan.orders import Order
from cachecast_load.plan.target import Target
from cachecast_load.run import clock, scrape
from cachecast_load.run.collector import Collector
from cachecast_load.run.director import Director
from cachecast_load.run.figures import latency_figures
from cachecast_load.run.health import diagnose, raise_descriptor_limit
from cachecast_load.run.result import Facts, make_result
from cachecast_load.run.station import SeatPlan, Station, open_session, publishers_for
from cachecast_load.swarm.links import (
    REPORT_S,
    SEAT_TIMEOUT_S,
    WorkerLink,
    calm_collector,
    next_report_us,
)
from cachecast_load.swarm.stats import fold
from cachecast_load.swarm.users import PublisherUser

STEP_S = 0.1
REPEAT_US = 1_000_000
LAG_PROBE_S = 0.02
LOST_AFTER_S = 6.0
# By this long after a publish was answered its worker has reported it, or is lost.
REPORTED_S = 5.0


class RunShape(LoadTestShape):
    """Tells Locust how many users a run needs; the levels themselves travel in orders."""

    abstract = False

    def __init__(self, swarm: Swarm) -> None:
        super().__init__()
        self._swarm = swarm

    def reset_time(self) -> None:
        """Begin: Locust calls this at each start, also of a second run from its page."""
        super().reset_time()
        self._swarm.begin_anew()

    def tick(self) -> tuple[int, float] | None:
        """Return (users, spawn rate), None when the run is over."""
        return self._swarm.tick()


class Swarm:
    """One process's side of runs, attached to a Locust environment.

    Args:
        environment: Locust's.
        plan: what to run; a worker gets its own from the master.
        target: what to aim at.
        processes: how many generator processes there will be (master and local only).
        command: the command line for the report.
        notes: what the operator should know of every run.
    """

    def __init__(
        self,
        environment: Environment,
        plan: Plan,
        target: Target,
        *,
        processes: int = 1,
        command: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        self.notes = notes
        self.environment = environment
        self.plan = plan
        self.target = target
        self.processes = processes
        self.command = command
        self.station: Station | None = None
        self.collector: Collector | None = None
        self.director: Director | None = None
        self.result: dict[str, Any] | None = None
        self.on_result: Callable[[dict[str, Any]], None] = lambda _result: None
        self.ready_workers: set[str] = set()
        self.reactors: list[Reactor] = []
        self.invalid: list[str] = []
        self._facts: Facts | None = None
        self._seats: SeatPlan | None = None
        self._link: WorkerLink | None = None
        self.session_ready = Event()
        self._clock_error_us = 0
        self._heard: dict[str, int] = {}
        self._lost: set[str] = set()
        self.conductor: gevent.Greenlet | None = None
        self._greenlets: list[gevent.Greenlet] = []
        environment.loadtest = self  # type: ignore[attr-defined]

    @property
    def is_worker(self) -> bool:
        """Whether this process only generates."""
        return isinstance(self.environment.runner, WorkerRunner)

    @property
    def is_master(self) -> bool:
        """Whether workers generate and this process only sums up."""
        return isinstance(self.environment.runner, MasterRunner)

    def make_shape(self) -> LoadTestShape:
        """Return the shape to give to the environment."""
        shape = RunShape(self)
        shape.runner = self.environment.runner
        return shape

    def attach(self) -> None:
        """Register messages and listeners; call once the runner exists."""
        raise_descriptor_limit()
        runner = self.environment.runner
        events = self.environment.events
        if self.is_worker:
            self._link = WorkerLink(self)
            return
        if self.is_master:
            runner.register_message("lt-hello", self._on_hello)
            runner.register_message("lt-ready", self._on_ready)
            runner.register_message("lt-seat", self._on_seat_request)
            runner.register_message("lt-clock", self._on_clock_request)
            runner.register_message("lt-report", self._on_report)
        self._prepare()
        events.test_start.add_listener(self._on_test_start)
        events.test_stop.add_listener(self._on_test_stop)

    def _prepare(self) -> None:
        """Draw a run mark and work out the seats."""
        self._run = random.SystemRandom().randrange(1, 1 << 16)
        publishers = publishers_for(self.plan, self.processes)
        self._seats = SeatPlan(self.plan.blocks, publishers)
        PublisherUser.fixed_count = publishers

    def begin_anew(self) -> None:
        """Forget the last run, if there was one: the next begins with a clean sheet."""
        if self.result is None:
            return  # a master resets its shape once more when the run has begun
        self._prepare()
        self.director = None
        self.collector = None
        self.result = None
        self.invalid = []
        self._heard.clear()
        self._lost.clear()

    def _on_test_start(self, **_kwargs: object) -> None:
        session = open_session(self.plan, self.target, self._run)
        assert self._seats is not None
        station = Station(session, self._seats.publishers)
        profile = station.make_profile()
        self.collector = Collector(
            Auditor(
                channel_name=profile.channel_name,
                is_cache=profile.is_cache,
                grace_us=int(self.plan.limits.grace_s * 1e6),
                ttl_us=int(self.plan.behaviour.ttl_s * 1e6),
                clock_error_us=self._clock_error_us,
                is_slow=profile.is_slow,
                socket_name=self._socket_name,
            ),
            session.run_now(),
            settle_after_us=int((self.plan.limits.publish_timeout_s + REPORTED_S) * 1e6),
        )
        self.director = Director(
            self.plan,
            expected_ready=profile.expected_ready,
            seats=self._seats.seats,
            has_primes=bool(profile.primed()),
            begin_window=self.collector.begin_window,
            judge_trial=self._judge_trial,
        )
        self._facts = Facts(
            started=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            run=self._run,
            command=self.command,
            processes=self.processes,
            clock_error_us=self._clock_error_us,
            invalid=self.invalid,
            notes=list(self.notes),
        )
        self.station = station
        self.conductor = gevent.spawn(self._conduct)
        self._greenlets = [self.conductor]
        if self.target.metrics_urls:
            self._greenlets.append(gevent.spawn(self._scrape))
        if self.is_master:
            self.environment.runner.send_message("lt-run", self._run_message())
        else:
            self._greenlets.append(gevent.spawn(self.probe_lag))
            self.session_ready.set()

    def _socket_name(self, socket: int) -> str:
        """Return what the ledger's examples say of a target: nothing where there is only one."""
        urls = self.target.socket_urls
        return f" at {urls[socket]}" if len(urls) > 1 else ""

    def _conduct(self) -> None:
        """Walk the run through its phases; ends with it."""
        assert self.station is not None
        assert self.director is not None
        assert self.collector is not None
        session, due_us, repeat_us = self.station.session, 0, 0
        while not self.director.is_over:
            now = session.run_now()
            if not self.is_master and now >= due_us:
                self._take_own_report(now)
                due_us = next_report_us(now)
            self._look_for_lost(now)
            before = session.orders.current
            levels = self.collector.levels() | {"slowest_us": self.collector.slowest_us}
            order = self.director.step(now, levels)
            if order.number != before.number:
                self._give(order)
                repeat_us = now + REPEAT_US
            elif self.is_master and now >= repeat_us:
                # A worker that was not listening yet must not wait for the next change.
                self.environment.runner.send_message("lt-order", order.to_wire())
                repeat_us = now + REPEAT_US
            gevent.sleep(max(0.001, min(STEP_S, (due_us - now) / 1e6)) if due_us else STEP_S)
        if not self.is_master:
            self._take_own_report(session.run_now())

    def _give(self, order: Order) -> None:
        assert self.station is not None
        assert self.collector is not None
        assert self.director is not None
        self.collector.measured_us = self.director.measured_us
        if order.phase == orders.MEASURE:
            calm_collector()
        self.station.session.orders.receive(order)
        if self.is_master:
            self.environment.runner.send_message("lt-order", order.to_wire())

    def _take_own_report(self, now: int) -> None:
        assert self.station is not None
        assert self.collector is not None
        report = self.station.report()
        fold(self.environment.stats, report)
        self.collector.collect("local", report, now)

    def _judge_trial(self, seconds: float) -> tuple[tuple[str, ...], dict[str, float], bool]:
        """Judge a knee trial's window by those of the rules that a window can answer."""
        assert self.collector is not None
        assert self.director is not None
        counts = self.collector.window_counts
        figures = latency_figures(self.collector.window)
        delivered = self.collector.window.get("delivery")
        figures["delivery.per_s"] = (delivered.count if delivered else 0) / seconds
        figures["publish.failed"] = counts["publish_failed"]
        figures["closed.unexpected"] = counts["closed"]
        figures["connect.failed"] = counts["connect_failed"]
        scheduled = counts["publish_scheduled"]
        if scheduled:
            figures["publish.achieved_ratio"] = min(1.0, counts["publish_ok"] / scheduled)
        rules = [rule for rule in self.plan.rules if rule.figure in figures]
        failed = [str(j.slo) for j in judge(rules, figures) if j.outcome != "pass"]
        if figures.get("publish.achieved_ratio", 1.0) < 0.95:
            failed.append("the target did not keep up with the publishes")
        assert self.station is not None
        now_s = (self.station.session.run_now() - self.collector.began_us) / 1e6
        doubts = diagnose(
            self.collector.health, self.collector.window, counts, (now_s - seconds, now_s)
        )
        if doubts:
            self.director.notes.append(f"at {self.director.trial_level:g}: {doubts[0]}")
        # A rule that holds although the generator lagged still holds: lag only ever adds latency.
        return tuple(failed), figures, bool(doubts and failed)

    def _look_for_lost(self, now: int) -> None:
        assert self.collector
        for source, heard_us in self._heard.items():
            if source not in self._lost and now - heard_us > LOST_AFTER_S * 1e6:
                self._lost.add(source)
                self.collector.forget(source)
                self.invalid.append(f"worker {source} was lost during the run")
                assert self.director
                self.director.lose_seats(f"ended early: worker {source} was lost")

    def _scrape(self) -> None:
        assert self._facts is not None
        assert self.collector is not None
        assert self.station is not None
        failures = 0
        while True:
            second = (self.station.session.run_now() - self.collector.began_us) / 1e6
            try:
                self._facts.server.append({"t_s": round(second, 3), **scrape.sample(self.target)})
            except scrape.ScrapeError as error:
                failures += 1
                if failures == 1:
                    self._facts.notes.append(str(error))
            gevent.sleep(1.0)

    def tick(self) -> tuple[int, float] | None:
        """Return what Locust's shape wants: users and spawn rate, None at the end."""
        assert self._seats is not None
        if self.director is not None and self.director.is_over:
            return None
        return self._seats.seats, 100.0

    def stop(self, reason: str) -> None:
        """End the run in order; what was measured is reported."""
        if self.director is not None:
            self.director.stop(reason)

    def _on_test_stop(self, **_kwargs: object) -> None:
        if self.director is None or self.result is not None:
            return
        assert self.collector is not None
        assert self._facts is not None
        assert self.station is not None
        if not self.director.is_over:
            # Stopped from Locust's page or by its own Ctrl-C: the users have just ended.
            self.director.stop("stopped before its end")
            begin, end = self.director.measured_us
            if end == begin and begin:
                self.director.measured_us = (begin, self.station.session.run_now())
            if not self.is_master:
                self._take_own_report(self.station.session.run_now())
            else:
                gevent.sleep(2 * REPORT_S)
        gevent.killall(self._greenlets)
        self.result = make_result(
            self.plan, self.target, self.collector, self.director, self._facts
        )
        self.on_result(self.result)

    def current_result(self) -> dict[str, Any] | None:
        """Return the last result, or what is known of a run that goes on; None before any."""
        if self.result is not None or self.collector is None:
            return self.result
        assert self.director is not None
        assert self._facts is not None
        return make_result(
            self.plan, self.target, self.collector, self.director, self._facts, is_final=False
        )

    def _run_message(self) -> dict[str, Any]:
        assert self._seats is not None
        return {
            "plan": self.plan.to_dict(),
            "run": self._run,
            "publishers": self._seats.publishers,
            "machine": clock.machine_id(),
            "sockets": self.target.socket_urls,
            "apis": self.target.api_urls,
        }

    def _on_hello(self, msg: Message, **_kwargs: object) -> None:
        self.environment.runner.send_message("lt-run", self._run_message(), msg.node_id)

    def _on_ready(self, msg: Message, **_kwargs: object) -> None:
        self.ready_workers.add(msg.node_id)
        self._clock_error_us = max(self._clock_error_us, int(msg.data["error_us"]))
        if self.collector is not None and self._facts is not None:
            self.collector.auditor.clock_error_us = self._clock_error_us
            self._facts.clock_error_us = self._clock_error_us
        if msg.data.get("problem"):
            self.invalid.append(f"worker {msg.node_id}: {msg.data['problem']}")

    def _on_seat_request(self, msg: Message, **_kwargs: object) -> None:
        assert self._seats is not None
        number = self._seats.take(msg.data["kind"])
        answer = {"ticket": msg.data["ticket"], "number": number}
        self.environment.runner.send_message("lt-seat", answer, msg.node_id)

    def _on_clock_request(self, msg: Message, **_kwargs: object) -> None:
        answer = {"asked": msg.data["asked"], "theirs": now_us()}
        self.environment.runner.send_message("lt-clock", answer, msg.node_id)

    def _on_report(self, msg: Message, **_kwargs: object) -> None:
        if self.collector is None or msg.data["run"] != self._run:
            return
        self._heard[msg.node_id] = now_us()
        self.collector.collect(msg.node_id, msg.data["report"], msg.data["at_us"])

    def take_seat(self, kind: str) -> tuple[Station, int]:
        """Return the station and a seat's number, -1 when none is free. Blocks its greenlet."""
        self.session_ready.wait(SEAT_TIMEOUT_S)
        assert self.station is not None
        if self._link is not None:
            return self.station, self._link.ask_for_seat(kind)
        assert self._seats is not None
        return self.station, self._seats.take(kind)

    def probe_lag(self) -> None:
        """Measure how late this process's loop is: a timer that should ring now, and does when?"""
        assert self.station is not None
        session = self.station.session
        record = session.recorder.histograms["loop_lag"].record
        while True:
            due_us = now_us() + int(LAG_PROBE_S * 1e6)
            before = session.orders.current
            gevent.sleep(LAG_PROBE_S)
            # The order from before, too: a stop may have lasted beyond the end of measuring.
            order = before if before.phase == orders.MEASURE else session.orders.current
            if order.phase != orders.MEASURE:
                continue  # starting and stopping may take their time: nothing is measured then
            late_us = now_us() - max(due_us, session.to_local(order.measure_us))
            if late_us >= 0:
                behind_us = max((reactor.behind_us() for reactor in self.reactors), default=0)
                record(max(late_us, behind_us))


def wait_for_workers(swarm: Swarm, count: int, timeout_s: float) -> bool:
    """Wait until enough workers said that they are ready."""
    end = time.monotonic() + timeout_s
    while len(swarm.ready_workers) < count and time.monotonic() < end:
        gevent.sleep(0.05)
    return len(swarm.ready_workers) >= count


def run_to_end(swarm: Swarm, on_second: Callable[[Swarm], None]) -> None:
    """Run the plan once, calling `on_second` about once a second; returns when all is measured."""
    runner = swarm.environment.runner
    assert isinstance(runner, LocalRunner | MasterRunner)
    runner.start_shape()
    while swarm.result is None:
        gevent.sleep(0.5)
        if swarm.conductor is not None and swarm.conductor.exception is not None:
            raise swarm.conductor.exception
        if swarm.collector is not None and swarm.result is None:
            on_second(swarm)
    with contextlib.suppress(gevent.GreenletExit):
        runner.quit()
