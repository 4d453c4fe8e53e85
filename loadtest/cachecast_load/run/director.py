"""The director walks a run through its phases: one per run; it sees sums and gives orders.

    prime -> connect -> measure -> drain -> close -> done

It knows no sockets and no clock: `step` gets the time and the levels of all processes and returns
the order that now holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from cachecast_load.plan import orders as phases
from cachecast_load.plan.knee import REST_S, SETTLE_SHARE, KneeSearch, Trial
from cachecast_load.plan.model import Plan
from cachecast_load.plan.orders import Order
from cachecast_load.plan.shapes import Level, TimedShape

# Without a single value more; as long as they become fewer, priming goes on.
PRIME_TIMEOUT_S = 30.0
LOST_SEATS_PATIENCE_S = 6.0
# Levels are reported four times a second; one report without a sign of life is no silence.
QUIET_S = 0.5
MOST_QUIET_S = 10.0
_LEVEL_STEP = 0.01
# Measuring begins a little after it is announced, so that every process, wherever it is, begins
# at the same instant and with its house in order.
ANNOUNCE_US = 400_000

# Judges the window of a trial: (rules that failed, figures, whether the generator was the
# bottleneck)
JudgeTrial = Callable[[float], tuple[tuple[str, ...], dict[str, float], bool]]


class Director:
    """Phases, levels and the knee search of one run.

    Args:
        plan: What is to be walked through.
        expected_ready: Number of subscribers -> number that must be ready before measuring.
        seats: Number of blocks and publishers that must report that they finished.
        has_primes: Whether values are published before anybody subscribes.
        begin_window: Function called when a trial's judged part begins.
        judge_trial: Function called at the end of that part, with its length in seconds.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        expected_ready: Callable[[int], int],
        seats: int,
        has_primes: bool,
        begin_window: Callable[[], None] = lambda: None,
        judge_trial: JudgeTrial = lambda _seconds: ((), {}, False),
    ) -> None:
        self.plan = plan
        self.shape = TimedShape(plan)
        self.notes: list[str] = []
        self.stages: list[tuple[float, str, float]] = []
        self.order = Order()
        self.measured_us = (0, 0)
        self.ready_after_s: float | None = None
        self.knee: KneeSearch | None = None
        if plan.shape.kind == "knee":
            start = plan.shape.start or self.shape.base
            self.knee = KneeSearch(
                start, self.shape.to, plan.shape.steps, whole=plan.shape.of == "subscribers"
            )
        self._expected_ready = expected_ready
        self._seats = seats
        self._has_primes = has_primes
        self._begin_window = begin_window
        self._judge_trial = judge_trial
        self._stopping = ""
        self.unprimed = 0
        self._primed_us = 0
        self._phase_us = 0
        self._drain_us = 0
        self._quiet_since_us = 0
        self._trial_us = 0
        self._trial_stage = ""
        self._had_primes = False
        self._has_lost_seats = False

    @property
    def is_over(self) -> bool:
        """Whether the last order is to be done."""
        return self.order.phase == phases.DONE

    @property
    def is_cut_short(self) -> bool:
        """Whether the run was told to end before its plan did."""
        return bool(self._stopping)

    @property
    def trial_level(self) -> float:
        """The rate, or the number of subscribers, that a knee search tries."""
        order = self.order
        return order.rate if self.plan.shape.of == "rate" else float(order.subscribers)

    def stop(self, reason: str) -> None:
        """End early but in order: drain what is under way, then done."""
        if not self._stopping:
            self._stopping = reason
            self.notes.append(reason)

    def cut(self, now_us: int) -> None:
        """Take note that whoever generates is ended from outside, whatever the phase."""
        self.stop("stopped before its end")
        begin, end = self.measured_us
        if begin and begin == end:
            self.measured_us = (begin, now_us)

    def lose_seats(self, reason: str) -> None:
        """End early because a process died: its seats will never report that they finished."""
        self._has_lost_seats = True
        self.stop(reason)

    def step(self, now_us: int, levels: Mapping[str, int]) -> Order:
        """Look at the run and return the order that holds from now on."""
        phase = self.order.phase
        if phase == phases.IDLE:
            self._enter(phases.PRIME if self._has_primes else phases.CONNECT, now_us)
        elif self._stopping and phase not in (phases.DRAIN, phases.CLOSE, phases.DONE):
            self._enter(phases.DRAIN, now_us)
        elif phase == phases.PRIME:
            self._prime(now_us, levels)
        elif phase == phases.CONNECT:
            self._connect(now_us, levels)
        elif phase == phases.MEASURE:
            self._measure(now_us, levels)
        elif phase == phases.DRAIN:
            self._drain(now_us, levels)
        elif phase == phases.CLOSE:
            self._close(now_us, levels)
        return self.order

    def _enter(self, phase: str, now_us: int) -> None:
        self._phase_us = now_us
        if phase == phases.DRAIN:
            self._drain_us = now_us
        rate, subscribers = self._first_level()
        if phase == phases.MEASURE:
            now_us += ANNOUNCE_US
            self.measured_us = (now_us, now_us)
        elif phase in (phases.DRAIN, phases.CLOSE, phases.DONE):
            rate, subscribers = 0.0, self.order.subscribers
            self._quiet_since_us = now_us
            if self.order.phase == phases.MEASURE:
                self.measured_us = (self.measured_us[0], now_us)
        self.order = Order(
            number=self.order.number + 1,
            phase=phase,
            rate=rate,
            subscribers=subscribers,
            at_us=now_us,
            measure_us=self.measured_us[0],
            all_present=self.order.all_present,
        )
        if phase == phases.MEASURE and self.knee:
            self._next_trial(now_us)

    def _first_level(self) -> Level:
        if self.knee:
            return self.shape.level(self.knee.next_level() or self.shape.base)
        return self.shape.load_at(0.0) or self.shape.level(0.0)

    def _set_level(self, level: Level, now_us: int) -> None:
        rate, subscribers = level
        order = self.order
        if level == (order.rate, order.subscribers):
            return
        # A ramp is sent as steps of one percent: each order costs every process a moment.
        near = abs(rate - order.rate) <= _LEVEL_STEP * max(order.rate, 1.0)
        if near and abs(subscribers - order.subscribers) <= _LEVEL_STEP * order.subscribers:
            return
        self.order = replace(
            order, number=order.number + 1, rate=rate, subscribers=subscribers, at_us=now_us
        )
        second = (now_us - self.measured_us[0]) / 1e6
        if rate != order.rate:
            self.stages.append((second, "rate", rate))
        if subscribers != order.subscribers:
            self.stages.append((second, "subscribers", float(subscribers)))

    def _prime(self, now_us: int, levels: Mapping[str, int]) -> None:
        # Publishers say how much is left once they exist; silence is not "nothing left".
        left = levels.get("unprimed", 0)
        if left:
            self._had_primes = True
        if left != self.unprimed:
            self.unprimed, self._primed_us = left, now_us
        is_done = not left and (self._had_primes or now_us - self._phase_us > 2_000_000)
        since_us = max(self._phase_us, self._primed_us)
        if is_done or now_us - since_us > PRIME_TIMEOUT_S * 1e6:
            self._enter(phases.CONNECT, now_us)

    def _connect(self, now_us: int, levels: Mapping[str, int]) -> None:
        wanted = self._expected_ready(self.order.subscribers)
        ready = levels.get("ready", 0)
        waited_s = (now_us - self._phase_us) / 1e6
        patience_s = self.plan.limits.ready_timeout_s
        patience_s += self.order.subscribers / self.plan.load.connect_rate
        if ready >= wanted and levels.get("seats", 0) >= self._seats:
            self.ready_after_s = waited_s
            self.order = replace(self.order, all_present=True)
            self._enter(phases.MEASURE, now_us)
        elif waited_s > patience_s:
            self.notes.append(
                f"only {ready} of {wanted} subscribers were ready after {waited_s:.0f} s"
            )
            self._enter(phases.MEASURE if ready else phases.DRAIN, now_us)

    def _measure(self, now_us: int, levels: Mapping[str, int]) -> None:
        if now_us < self.measured_us[0]:
            return
        if self.knee:
            self._follow_trial(now_us, levels)
            return
        level = self.shape.load_at(max(now_us - self.measured_us[0], 0) / 1e6)
        if level is None:
            self._enter(phases.DRAIN, now_us)
        else:
            self._set_level(level, now_us)

    def _next_trial(self, now_us: int) -> None:
        assert self.knee is not None
        level = self.knee.next_level()
        if level is None:
            self._enter(phases.DRAIN, now_us)
            return
        self._set_level(self.shape.level(level), now_us)
        self._trial_us = now_us
        self._trial_stage = "settle"

    def _follow_trial(self, now_us: int, levels: Mapping[str, int]) -> None:
        assert self.knee is not None
        seconds = (now_us - self._trial_us) / 1e6
        period_s = self.plan.shape.period_s
        if self._trial_stage == "settle" and seconds >= SETTLE_SHARE * period_s:
            if levels.get("ready", 0) >= self._expected_ready(self.order.subscribers) or (
                seconds > period_s + self.plan.limits.ready_timeout_s
            ):
                self._begin_window()
                self._trial_us = now_us - int(SETTLE_SHARE * period_s * 1e6)
                self._trial_stage = "judge"
        elif self._trial_stage == "judge" and seconds >= period_s:
            failed, figures, doubtful = self._judge_trial(period_s * (1 - SETTLE_SHARE))
            holds = not failed and not doubtful
            self.knee.add(Trial(self.trial_level, holds, failed, figures, doubtful))
            if self.plan.shape.of == "rate":
                # Silence between trials: what a level that was too high left behind must drain.
                self.order = replace(self.order, number=self.order.number + 1, rate=0.0)
            self._trial_us = now_us
            self._trial_stage = "rest"
        elif self._trial_stage == "rest":
            quiet = not levels.get("publishes_waiting", 0)
            if (seconds >= REST_S and quiet) or seconds > 10 * REST_S:
                self._next_trial(now_us)

    def _drain(self, now_us: int, levels: Mapping[str, int]) -> None:
        """Wait until every publish has been answered and nothing comes in any more, anywhere.

        One block may hear nothing for a while although the target is still busy with the others:
        only when all are silent, and for longer than any event has taken so far, is an event that
        has not come a lost one.
        """
        if levels.get("publishing", 0) or levels.get("busy", 0):
            self._quiet_since_us = now_us
        waited_s = (now_us - self._phase_us) / 1e6
        slowest_s = levels.get("slowest_us", 0) / 1e6
        quiet_s = min(max(QUIET_S, 1.5 * slowest_s), MOST_QUIET_S)
        is_quiet = (now_us - self._quiet_since_us) / 1e6 > quiet_s
        is_graced = waited_s > 1.5 * self.plan.limits.grace_s
        if (is_quiet and is_graced) or levels.get("finished", 0) >= self._seats:
            self._enter(phases.CLOSE, now_us)
        else:
            self._lose_patience(now_us, self._phase_us)

    def _close(self, now_us: int, levels: Mapping[str, int]) -> None:
        if levels.get("finished", 0) >= self._seats:
            self._enter(phases.DONE, now_us)
        else:
            self._lose_patience(now_us, self._drain_us)

    def _lose_patience(self, now_us: int, since_us: int) -> None:
        limits = self.plan.limits
        patience_s = limits.drain_s + limits.publish_timeout_s + 2.0
        if self._has_lost_seats:
            # The run is invalid anyway, and some seats will never answer.
            patience_s = min(patience_s, LOST_SEATS_PATIENCE_S)
        if (now_us - since_us) / 1e6 > patience_s:
            self.notes.append("not every block finished in time")
            self._enter(phases.DONE, now_us)
