"""Conducting runs under Locust: when one begins, its orders, when it ends.

    open_run     surveys the target and makes a swarm, for the command line, the page and locustfile
    Swarm        one master's or local process's runs, one after the other
    RunShape     tells Locust how many users the run has, and when it is over

A run (`run.run`) is whole before Locust starts anything. Locust's start begins it; from then on the
conductor asks it for the next order ten times a second and hands that to the link (`links`), which
brings back what was measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import gevent
from locust import LoadTestShape, User
from locust.env import Environment
from locust.runners import MasterRunner
from typing_extensions import override

from cachecast_load.net.reactor import now_us
from cachecast_load.plan.model import Plan
from cachecast_load.plan.target import Target
from cachecast_load.run.preflight import survey
from cachecast_load.run.run import Run
from cachecast_load.swarm.links import LocalLink, MasterLink
from cachecast_load.swarm.users import PublisherUser, SubscriberUser

STEP_S = 0.1
REPEAT_US = 1_000_000
SCRAPE_S = 1.0
# Users a second: all of them within a moment; what they do is paced by the run.
SPAWN_RATE = 100.0
USERS: list[type[User]] = [PublisherUser, SubscriberUser]

Finished = Callable[[dict[str, Any]], None]


def open_run(
    plan: Plan,
    target: Target,
    *,
    environment: Environment | None = None,
    bind: tuple[str, int] | None = None,
    processes: int = 1,
    command: str = "",
    on_result: Finished = lambda _result: None,
) -> Swarm:
    """Survey the target and make everything ready for a run.

    Args:
        plan: What to run.
        target: What to aim at.
        environment: Locust's, with its runner; by default a new one, made after the survey.
        bind: Host and port at which a new one's master listens for workers; None for no workers.
        processes: Generator processes there will be.
        command: The command line for the report, without secrets.
        on_result: Gets each run's result.

    Raises:
        PreflightError: The target cannot be tested; no run can be judged.
    """
    plan, notes = survey(plan, target)
    if environment is None:
        environment = Environment(user_classes=USERS)
        if bind:
            environment.create_master_runner(*bind)
        else:
            environment.create_local_runner()
    return Swarm(
        environment,
        plan,
        target,
        processes=processes,
        command=command,
        notes=notes,
        on_result=on_result,
    )


class RunShape(LoadTestShape):
    """Number of users that a run needs; the levels themselves travel in orders."""

    abstract = False
    # The form of Locust's page has a number of users and a rate: there a user is a subscriber.
    use_common_options = True

    def __init__(self, swarm: Swarm) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Locust has no types here
        self.runner = swarm.environment.runner
        self._swarm = swarm
        self._is_reset = False

    @override
    def reset_time(self) -> None:
        """Begin: Locust calls this at each start, also of a second run from its page."""
        super().reset_time()  # type: ignore[no-untyped-call]  # Locust has no types here
        self._is_reset = True

    @override
    def tick(self) -> tuple[int, float] | None:
        """Return (users, spawn rate), None when the run is over."""
        if self._is_reset:
            # Here, in the greenlet that asks: making a run takes a moment, and others go on.
            self._is_reset = False
            self._swarm.renew()
        run = self._swarm.run
        return None if run.director.is_over else (run.seats.seats, SPAWN_RATE)


class Swarm:
    """A master's or a local process's runs, attached to a Locust environment.

    Attributes:
        run: The run that goes on; before a start the next one, after the end the last.
        link: Where it meets those who generate.
        plan: What the next run shall do.
        processes: Generator processes there will be.

    Args:
        environment: Locust's, with its runner.
        plan: What to run.
        target: What to aim at.
        processes: Generator processes there will be.
        command: The command line for the report, without secrets.
        notes: Sentences that the operator should know of every run.
        on_result: Gets each run's result.
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
        on_result: Finished = lambda _result: None,
    ) -> None:
        self.environment = environment
        self.plan = plan
        self.target = target
        self.processes = processes
        self._command = command
        self._notes = notes
        self._on_result = on_result
        self._greenlets: list[gevent.Greenlet[..., None]] = []
        self.run = self._make_run()
        is_master = isinstance(environment.runner, MasterRunner)
        self.link = (MasterLink if is_master else LocalLink)(environment, self.run)
        environment.shape_class = RunShape(self)
        environment.events.test_start.add_listener(self._on_test_start)
        environment.events.test_stop.add_listener(self._on_test_stop)

    def renew(self) -> None:
        """Make the next run, unless one goes on or the next one stands already.

        A master resets its shape once more when the run has begun.
        """
        is_ready = not self.run.has_started and self.run.plan is self.plan
        if not is_ready and (self.run.result is not None or not self.run.has_started):
            self.run = self._make_run()
            self.link.begin(self.run)

    def run_to_end(self, on_second: Callable[[Run], None]) -> dict[str, Any]:
        """Run the plan once and return its result; `on_second` is called about twice a second."""
        runner = self.environment.runner
        assert runner is not None
        runner.start_shape()
        while self.run.result is None:
            gevent.sleep(0.5)
            for greenlet in self._greenlets:
                if greenlet.exception is not None:
                    raise greenlet.exception
            if self.run.has_started and self.run.result is None:
                on_second(self.run)
        with contextlib.suppress(gevent.GreenletExit):
            runner.quit()
        return self.run.result

    def _make_run(self) -> Run:
        run = Run(
            self.plan,
            self.target,
            processes=self.processes,
            command=self._command,
            notes=self._notes,
        )
        PublisherUser.fixed_count = run.station.publishers
        return run

    def _on_test_start(self, **_kwargs: object) -> None:
        self.run.start()
        self._greenlets = [gevent.spawn(self._conduct, self.run)]
        if self.target.metrics_urls:
            self._greenlets.append(gevent.spawn(self._scrape, self.run))

    def _conduct(self, run: Run) -> None:
        """Walk a run through its phases; ends with it."""
        repeat_us = 0
        while not run.director.is_over:
            order, now = run.step(), now_us()
            # Also now and then: a worker that was not listening yet must not wait for a change.
            if order or now >= repeat_us:
                self.link.give(run.director.order)
                repeat_us = now + REPEAT_US
            gevent.sleep(STEP_S)

    def _scrape(self, run: Run) -> None:
        while True:
            run.sample_server()
            gevent.sleep(SCRAPE_S)

    def _on_test_stop(self, **_kwargs: object) -> None:
        if self.run.has_started and self.run.result is None:
            gevent.killall(self._greenlets)
            self.run.cut()
            self.link.end()
            self._on_result(self.run.finish())
