"""Where a run meets those who generate: three homes, one set of verbs.

    LocalLink    the run and its generator are both here
    MasterLink   the run is here, generators are elsewhere
    WorkerLink   the generator is here, the run is elsewhere

    begin        a run is known from now on          lt-run     master -> worker
    give         an order holds                      lt-order   master -> worker
    take         a Locust user asks for a seat       lt-seat    worker -> master, and its answer
    collect      what was measured is added up       lt-report  worker -> master
    end          the run is over here

Besides, a worker says `lt-hello` when it comes, `lt-clock` to ask for the time (the answer has the
same name), and `lt-ready` when its session stands, with its clock's error.

Reports are our own messages, beside Locust's statistics and four times a second: Locust's are
rounded to milliseconds and sent every three seconds. Into those statistics goes a copy, so that
Locust's page and CSV files show the run as well.
"""

from __future__ import annotations

import gc
import itertools
import time
from abc import ABC, abstractmethod
from typing import Any

import gevent
from gevent.event import AsyncResult
from locust.env import Environment
from locust.rpc.protocol import Message
from typing_extensions import override

from cachecast_load.net.reactor import now_us
from cachecast_load.plan.orders import MEASURE, Order
from cachecast_load.plan.target import Target
from cachecast_load.run import clock
from cachecast_load.run.collector import REPORT_S
from cachecast_load.run.health import raise_descriptor_limit
from cachecast_load.run.run import HERE, Run
from cachecast_load.run.station import Station
from cachecast_load.swarm.generator import Generator

SEAT_TIMEOUT_S = 20.0


class Link(ABC):
    """One process's tie between runs and Locust's users.

    Args:
        environment: Locust's, with its runner; its users find the link there.
    """

    def __init__(self, environment: Environment) -> None:
        raise_descriptor_limit()
        assert environment.runner is not None
        self._environment = environment
        self._runner = environment.runner
        self._generator: AsyncResult[Generator] = AsyncResult()
        environment.loadtest = self  # type: ignore[attr-defined]  # where its users find it

    @abstractmethod
    def give(self, order: Order) -> None:
        """Let generators know the order that holds from now on."""

    @abstractmethod
    def take(self, kind: str) -> int:
        """Return the number of a free seat, -1 when all are taken. Blocks its greenlet."""

    @abstractmethod
    def end(self) -> None:
        """Have all that was measured reported: the run is over here."""

    def drive_seat(self, kind: str) -> bool:
        """Work on a seat until the run is over; returns False at once where none is free."""
        try:
            generator = self._generator.get(timeout=SEAT_TIMEOUT_S)
        except gevent.Timeout:
            return False
        number = self.take(kind)
        if number < 0:
            return False
        generator.drive(kind, number)
        return True

    @staticmethod
    def _obey(station: Station, order: Order) -> None:
        book = station.session.orders
        if order.phase == MEASURE != book.current.phase:
            _calm_collector()
        book.receive(order)

    def _end_generator(self) -> None:
        """End generating; who asks for a seat waits for the next run."""
        if self._generator.ready():
            self._generator.get().end()
            self._generator = AsyncResult()


class LocalLink(Link):
    """The run and its generator, both in this process."""

    def __init__(self, environment: Environment, run: Run) -> None:
        super().__init__(environment)
        self.begin(run)

    def begin(self, run: Run) -> None:
        """Generate for a run from now on."""
        self._run = run
        self._end_generator()
        generator = Generator(
            run.station,
            self._environment.stats,
            lambda report, at_us: run.collect(HERE, report, at_us),
        )
        self._generator.set(generator)

    @override
    def give(self, order: Order) -> None:
        self._obey(self._run.station, order)

    @override
    def take(self, kind: str) -> int:
        return self._run.seats.take(kind)

    @override
    def end(self) -> None:
        self._end_generator()


class MasterLink(Link):
    """The run is here, and workers generate for it."""

    def __init__(self, environment: Environment, run: Run) -> None:
        super().__init__(environment)
        self._ready: set[str] = set()
        for name, handler in (
            ("lt-hello", self._on_hello),
            ("lt-ready", self._on_ready),
            ("lt-seat", self._on_seat),
            ("lt-clock", self._on_clock),
            ("lt-report", self._on_report),
        ):
            self._runner.register_message(name, handler)
        self.begin(run)

    def begin(self, run: Run) -> None:
        """Let workers know of a run: those that are here, and those that come."""
        self._run = run
        self._announce(None)

    @override
    def give(self, order: Order) -> None:
        self._obey(self._run.station, order)
        self._runner.send_message("lt-order", order.to_wire())

    @override
    def take(self, kind: str) -> int:
        return self._run.seats.take(kind)

    @override
    def end(self) -> None:
        if not self._run.director.is_over:
            gevent.sleep(2 * REPORT_S)  # workers were ended just now, and tell it in a moment

    def wait_for_workers(self, count: int, timeout_s: float) -> int:
        """Wait until so many workers are ready, and return how many are."""
        end = time.monotonic() + timeout_s
        while len(self._ready) < count and time.monotonic() < end:
            gevent.sleep(0.05)
        return len(self._ready)

    def _announce(self, worker: str | None) -> None:
        announced = self._run.station.to_wire() | {"machine": clock.machine_id()}
        self._runner.send_message("lt-run", announced, worker)

    def _on_hello(self, msg: Message, **_kwargs: object) -> None:
        self._announce(msg.node_id)

    def _on_ready(self, msg: Message, **_kwargs: object) -> None:
        self._ready.add(msg.node_id)
        self._run.admit(msg.node_id, int(msg.data["error_us"]), msg.data["problem"])

    def _on_seat(self, msg: Message, **_kwargs: object) -> None:
        answer = {"ticket": msg.data["ticket"], "number": self.take(msg.data["kind"])}
        self._runner.send_message("lt-seat", answer, msg.node_id)

    def _on_clock(self, msg: Message, **_kwargs: object) -> None:
        answer = {"asked": msg.data["asked"], "theirs": now_us()}
        self._runner.send_message("lt-clock", answer, msg.node_id)

    def _on_report(self, msg: Message, **_kwargs: object) -> None:
        if msg.data["run"] == self._run.mark:
            self._run.collect(msg.node_id, msg.data["report"], msg.data["at_us"])


class WorkerLink(Link):
    """The generator is here, for a master's runs.

    Args:
        environment: Locust's, with its runner.
        target: What this worker aims at; its own, secrets included.
    """

    def __init__(self, environment: Environment, target: Target) -> None:
        super().__init__(environment)
        self._target = target
        self._mark = -1
        self._tickets: dict[int, AsyncResult[int]] = {}
        self._count = itertools.count()
        self._probes: list[tuple[int, int, int]] = []
        self._runner.register_message("lt-run", self._on_run, concurrent=True)
        self._runner.register_message("lt-order", self._on_order)
        self._runner.register_message("lt-seat", self._on_seat)
        self._runner.register_message("lt-clock", self._on_clock)
        self._runner.send_message("lt-hello", {})

    def begin(self, station: Station) -> None:
        """Generate for a run from now on."""
        run = station.session.run

        def tell(report: dict[str, Any], at_us: int) -> None:
            self._runner.send_message("lt-report", {"run": run, "at_us": at_us, "report": report})

        self._generator.set(Generator(station, self._environment.stats, tell))

    @override
    def give(self, order: Order) -> None:
        if self._generator.ready():
            self._obey(self._generator.get().station, order)

    @override
    def take(self, kind: str) -> int:
        ticket = next(self._count)
        waiting = self._tickets[ticket] = AsyncResult()
        self._runner.send_message("lt-seat", {"kind": kind, "ticket": ticket})
        try:
            return int(waiting.get(timeout=SEAT_TIMEOUT_S))
        except gevent.Timeout:
            return -1

    @override
    def end(self) -> None:
        self._end_generator()

    # Before 2.47 Locust passes both by position.
    def _on_run(self, environment: object, msg: Message) -> None:  # noqa: ARG002
        told = msg.data
        if told["run"] == self._mark:
            return
        self._mark = told["run"]
        self.end()
        offset = clock.Offset(0, 0)
        try:
            station = Station.from_wire(told, self._target)
            if told["machine"] != clock.machine_id():
                offset = self._synchronise()
        except ValueError as error:
            self._runner.send_message("lt-ready", {"error_us": 0, "problem": str(error)})
            return
        station.session.offset_us = offset.offset_us
        self.begin(station)
        self._runner.send_message("lt-ready", {"error_us": offset.error_us, "problem": ""})

    def _synchronise(self) -> clock.Offset:
        self._probes = []
        for _ in range(clock.PROBES):
            self._runner.send_message("lt-clock", {"asked": now_us()})
            gevent.sleep(0.05)
        return clock.estimate_offset(self._probes)

    def _on_clock(self, msg: Message, **_kwargs: object) -> None:
        self._probes.append((msg.data["asked"], msg.data["theirs"], now_us()))

    def _on_order(self, msg: Message, **_kwargs: object) -> None:
        self.give(Order.from_wire(msg.data))

    def _on_seat(self, msg: Message, **_kwargs: object) -> None:
        waiting = self._tickets.pop(msg.data["ticket"], None)
        if waiting is not None:
            waiting.set(msg.data["number"])


def _calm_collector() -> None:
    """Keep the garbage collector from walking every socket while measuring."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
