"""A worker's side of the messages that `swarm` lists: plan and orders in, reports out."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import gevent
from gevent.event import AsyncResult
from locust.rpc.protocol import Message

from cachecast_load.net.reactor import now_us
from cachecast_load.plan import model as plans
from cachecast_load.plan import orders
from cachecast_load.plan.orders import Order
from cachecast_load.run import clock
from cachecast_load.run.station import Station, open_session
from cachecast_load.swarm.stats import fold

if TYPE_CHECKING:
    from cachecast_load.swarm.swarm import Swarm

REPORT_S = 0.25
SEAT_TIMEOUT_S = 20.0


class WorkerLink:
    """Registers the handlers and asks the master for the run.

    Args:
        swarm: whose station this fills.
    """

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm
        self._runner = swarm.environment.runner
        self._tickets: dict[int, AsyncResult] = {}
        self._ticket = 0
        self._probes: list[tuple[int, int, int]] = []
        self._greenlets: list[gevent.Greenlet] = []
        self._runner.register_message("lt-run", self._on_run, concurrent=True)
        self._runner.register_message("lt-order", self._on_order)
        self._runner.register_message("lt-seat", self._on_seat_answer)
        self._runner.register_message("lt-clock", self._on_clock_answer)
        self._runner.send_message("lt-hello", {})

    def ask_for_seat(self, kind: str) -> int:
        """Return a seat's number, -1 when none is free. Blocks its greenlet."""
        self._ticket += 1
        waiting = self._tickets[self._ticket] = AsyncResult()
        self._runner.send_message("lt-seat", {"kind": kind, "ticket": self._ticket})
        try:
            return int(waiting.get(timeout=SEAT_TIMEOUT_S))
        except gevent.Timeout:
            return -1

    # Before 2.47 Locust passes both by position.
    def _on_run(self, environment: object, msg: Message) -> None:  # noqa: ARG002
        data = msg.data
        if self._swarm.station is not None and self._swarm.station.session.run == data["run"]:
            return
        gevent.killall(self._greenlets)
        self._swarm.plan = plans.from_dict(data["plan"])
        offset = clock.Offset(0, 0)
        try:
            self._swarm.target.require_same(data["sockets"], data["apis"])
            session = open_session(self._swarm.plan, self._swarm.target, data["run"])
            if data["machine"] != clock.machine_id():
                offset = self._synchronise()
        except ValueError as error:
            self._runner.send_message("lt-ready", {"error_us": 0, "problem": str(error)})
            return
        session.offset_us = offset.offset_us
        self._swarm.station = Station(session, data["publishers"])
        self._greenlets = [
            gevent.spawn(self._report_to_master),
            gevent.spawn(self._swarm.probe_lag),
        ]
        self._swarm.session_ready.set()
        self._runner.send_message("lt-ready", {"error_us": offset.error_us, "problem": ""})

    def _synchronise(self) -> clock.Offset:
        self._probes = []
        for _ in range(clock.PROBES):
            self._runner.send_message("lt-clock", {"asked": now_us()})
            gevent.sleep(0.05)
        return clock.estimate_offset(self._probes)

    def _on_clock_answer(self, msg: Message, **_kwargs: object) -> None:
        self._probes.append((msg.data["asked"], msg.data["theirs"], now_us()))

    def _on_order(self, msg: Message, **_kwargs: object) -> None:
        if self._swarm.station is not None:
            order = Order.from_wire(msg.data)
            book = self._swarm.station.session.orders
            if order.phase == orders.MEASURE != book.current.phase:
                calm_collector()
            book.receive(order)

    def _on_seat_answer(self, msg: Message, **_kwargs: object) -> None:
        waiting = self._tickets.pop(msg.data["ticket"], None)
        if waiting is not None:
            waiting.set(msg.data["number"])

    def _report_to_master(self) -> None:
        assert self._swarm.station is not None
        while True:
            now = self._swarm.station.session.run_now()
            gevent.sleep((next_report_us(now) - now) / 1e6)
            self._send_report()

    def _send_report(self) -> None:
        assert self._swarm.station is not None
        report = self._swarm.station.report()
        fold(self._swarm.environment.stats, report)
        session = self._swarm.station.session
        message = {"run": session.run, "at_us": session.run_now(), "report": report}
        self._runner.send_message("lt-report", message)


def next_report_us(now: int) -> int:
    """Return the next multiple of the report interval: each second gets whole reports."""
    step_us = int(REPORT_S * 1e6)
    return (now // step_us + 1) * step_us


def calm_collector() -> None:
    """Keep the garbage collector from walking every socket while measuring."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
