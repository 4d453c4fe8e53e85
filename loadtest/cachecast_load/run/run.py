"""One run of a plan, whole from the beginning: everything that its result is made of.

Whoever conducts it (`swarm`) calls `start`, then `step` and `collect` again and again, and `finish`
at the end. It knows neither Locust nor greenlets.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Sequence
from typing import Any

from cachecast_load.measures.ledger import Auditor
from cachecast_load.measures.rules import judge
from cachecast_load.plan.model import Plan
from cachecast_load.plan.orders import MEASURE, Order
from cachecast_load.plan.target import Target
from cachecast_load.run import scrape
from cachecast_load.run.collector import Collector
from cachecast_load.run.director import Director
from cachecast_load.run.figures import window_figures
from cachecast_load.run.health import diagnose
from cachecast_load.run.result import Facts, make_result
from cachecast_load.run.station import SeatPlan, Station, open_session, publishers_for
from cachecast_load.run.watch import Watch, look_ahead

HERE = "local"
LOST_AFTER_S = 6.0
LOOK_US = 1_000_000
# By this long after a publish was answered its worker has reported it, or is lost.
REPORTED_S = 5.0


class Run:
    """One run: what is asked, who does it, what came of it.

    Attributes:
        plan: What is asked for.
        target: What is aimed at.
        station: This process's part; a master's only names channels and tells the time.
        seats: The seats that are still free.
        collector: The sums of all reports.
        director: Phases and levels.
        facts: What the result says besides the sums.
        result: The judged result; None until `finish`.

    Args:
        plan: What to run.
        target: What to aim at.
        processes: Generator processes.
        command: The command line for the report, without secrets.
        notes: Sentences that the operator should know.

    Raises:
        TargetError: A host does not resolve, or TLS cannot be set up.
    """

    def __init__(
        self,
        plan: Plan,
        target: Target,
        *,
        processes: int = 1,
        command: str = "",
        notes: Sequence[str] = (),
    ) -> None:
        self.plan = plan
        self.target = target
        mark = random.SystemRandom().randrange(1, 1 << 16)
        publishers = publishers_for(plan, processes)
        self.station = Station(open_session(plan, target, mark), publishers)
        self.seats = SeatPlan(plan.blocks, publishers)
        profile = self.station.make_profile()
        self.collector = Collector(
            Auditor(
                channel_name=profile.channel_name,
                is_cache=profile.is_cache,
                grace_us=int(plan.limits.grace_s * 1e6),
                ttl_us=int(plan.behaviour.ttl_s * 1e6),
                patience_us=int((plan.limits.abort_after_s or 0.0) * 1e6),
                is_slow=profile.is_slow,
                socket_name=self._socket_name,
            ),
            settle_after_us=int((plan.limits.publish_timeout_s + REPORTED_S) * 1e6),
        )
        self.director = Director(
            plan,
            expected_ready=profile.expected_ready,
            seats=self.seats.seats,
            has_primes=bool(profile.primed()),
            begin_window=self.collector.begin_window,
            judge_trial=self._judge_trial,
        )
        self.facts = Facts(
            started="", run=mark, command=command, processes=processes, notes=list(notes)
        )
        self.result: dict[str, Any] | None = None
        self._heard: dict[str, int] = {}
        self._has_scrape_failed = False
        grace_s = plan.limits.abort_after_s
        self._watch = None if grace_s is None else Watch(plan.rules, grace_s)
        self._looked_us = 0

    @property
    def mark(self) -> int:
        """Number by which everything of this run is told from other runs."""
        return self.facts.run

    @property
    def has_started(self) -> bool:
        """Whether its clock runs."""
        return bool(self.facts.started)

    def now(self) -> int:
        """Return the run clock, microseconds."""
        return self.station.session.run_now()

    def start(self) -> None:
        """Begin now: second 0 of every series."""
        self.facts.started = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        self.collector.began_us = self.now()

    def admit(self, source: str, clock_error_us: int, problem: str) -> None:
        """Take up a worker: how wrong its clock may be, and why it cannot generate, if so."""
        self.facts.clock_error_us = max(self.facts.clock_error_us, clock_error_us)
        self.collector.auditor.clock_error_us = self.facts.clock_error_us
        if problem:
            self.facts.invalid.append(f"worker {source}: {problem}")

    def collect(self, source: str, report: dict[str, Any], at_us: int) -> None:
        """Add a process's report, made at a time of the run clock; before the start it is empty."""
        if not self.has_started:
            return
        if source != HERE:
            self._heard[source] = self.now()
        self.collector.collect(source, report, at_us)

    def step(self) -> Order | None:
        """Look at the run; returns the order that holds from now on, None if the last one does."""
        now = self.now()
        self._look_for_lost(now)
        self._look_ahead(now)
        before = self.director.order.number
        levels = self.collector.levels() | {"slowest_us": self.collector.slowest_us}
        order = self.director.step(now, levels)
        self.collector.measured_us = self.director.measured_us
        return order if order.number != before else None

    def sample_server(self) -> None:
        """Read the target's own metrics once. Blocks until they are there."""
        try:
            told = scrape.sample(self.target)
        except scrape.ScrapeError as error:
            if not self._has_scrape_failed:
                self._has_scrape_failed = True
                self.facts.notes.append(str(error))
            return
        self.facts.server.append({"t_s": round(self._second(), 3), **told})

    def stop(self, reason: str) -> None:
        """End early but in order: what was measured is reported."""
        self.director.stop(reason)

    def cut(self) -> None:
        """Take note that whoever generates is ended from outside just now, if the run goes on."""
        if not self.director.is_over:
            self.director.cut(self.now())

    def finish(self) -> dict[str, Any]:
        """Close the ledger, judge, and return the result; call it once."""
        self.result = self._describe(is_final=True)
        return self.result

    def glimpse(self) -> dict[str, Any]:
        """Return the result, or what is known of it before the end."""
        return self._describe(is_final=False) if self.result is None else self.result

    def _describe(self, *, is_final: bool) -> dict[str, Any]:
        return make_result(
            self.plan, self.target, self.collector, self.director, self.facts, is_final=is_final
        )

    def _second(self) -> float:
        return (self.now() - self.collector.began_us) / 1e6

    def _socket_name(self, socket: int) -> str:
        """Return what the ledger's examples say of a target: nothing where there is only one."""
        urls = self.target.socket_urls
        return f" at {urls[socket]}" if len(urls) > 1 else ""

    def _look_for_lost(self, now: int) -> None:
        for source, heard in self._heard.items():
            text = f"worker {source} was lost during the run"
            if now - heard > LOST_AFTER_S * 1e6 and text not in self.facts.invalid:
                self.collector.forget(source)
                self.facts.invalid.append(text)
                self.director.lose_seats(f"ended early: worker {source} was lost")

    def _look_ahead(self, now: int) -> None:
        """End the run if it is watched and its rules are lost; looks once a second."""
        order, begin = self.director.order, self.director.measured_us[0]
        if self._watch is None or order.phase != MEASURE or now - self._looked_us < LOOK_US:
            return
        self._looked_us = now
        elapsed_s = (now - begin) / 1e6
        if elapsed_s <= 0:
            return
        rate = self.collector.measured_counts["publish_scheduled"] / elapsed_s
        outlook = look_ahead(self.plan, elapsed_s, rate, self.facts.clock_error_us / 1000)
        why = self._watch.look(self.collector, outlook)
        if why:
            planned_s = self.plan.measured_s
            self.facts.aborted = f"ended early, after {elapsed_s:.0f} s of {planned_s:g}: {why}"
            self.stop(self.facts.aborted)

    def _judge_trial(self, seconds: float) -> tuple[tuple[str, ...], dict[str, float], bool]:
        """Judge a knee trial's window by those of the rules that a window can answer."""
        collector = self.collector
        figures = window_figures(collector, seconds)
        rules = [rule for rule in self.plan.rules if rule.figure in figures]
        failed = [str(j.slo) for j in judge(rules, figures) if j.outcome != "pass"]
        if figures.get("publish.achieved_ratio", 1.0) < 0.95:
            failed.append("the target did not keep up with the publishes")
        now_s = self._second()
        stretch_s = (now_s - seconds, now_s)
        doubts = diagnose(collector.health, collector.window, collector.window_counts, stretch_s)
        if doubts:
            self.director.notes.append(f"at {self.director.trial_level:g}: {doubts[0]}")
        # A rule that holds although the generator lagged still holds: lag only ever adds latency.
        return tuple(failed), figures, bool(doubts and failed)
