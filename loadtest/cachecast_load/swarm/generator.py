"""What generates in this process: it works on seats, reports, and measures how late its loop is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import gevent.socket
from locust.stats import RequestStats

from cachecast_load.net.reactor import Reactor, now_us
from cachecast_load.plan.orders import MEASURE
from cachecast_load.run.collector import REPORT_S
from cachecast_load.run.station import Station
from cachecast_load.swarm.stats import fold

LAG_PROBE_S = 0.02


class Generator:
    """This process's generating half of one run, from its beginning to `end`.

    Args:
        station: Who sits here.
        stats: Locust's statistics, which get a copy.
        tell: Gets each report and the run clock at which it was made.
    """

    def __init__(
        self, station: Station, stats: RequestStats, tell: Callable[[dict[str, Any], int], None]
    ) -> None:
        self.station = station
        self._session = station.session
        self._stats = stats
        self._tell = tell
        self._reactors: list[Reactor] = []
        self._greenlets = [gevent.spawn(self._report_on_time), gevent.spawn(self._probe_lag)]

    def drive(self, kind: str, number: int) -> None:
        """Work on a seat to its end, in the greenlet of a Locust user."""
        reactor = Reactor(_wait_readable, _give_way)
        self._reactors.append(reactor)
        seat = self.station.sit(kind, number, reactor)
        try:
            while not seat.is_finished:
                seat.turn()
        finally:
            # Also when Locust stops us early: what was measured must still be reported.
            seat.finish()
            self._reactors.remove(reactor)
            reactor.close()

    def report(self) -> None:
        """Tell what was measured since the last time."""
        report = self.station.report()
        fold(self._stats, report)
        self._tell(report, self._session.run_now())

    def end(self) -> None:
        """Stop reporting, with a last report."""
        gevent.killall(self._greenlets)
        self.report()

    def _report_on_time(self) -> None:
        step_us = int(REPORT_S * 1e6)
        while True:
            # At multiples of the interval: each second of the run gets whole reports.
            gevent.sleep((step_us - self._session.run_now() % step_us) / 1e6)
            self.report()

    def _probe_lag(self) -> None:
        """Measure how late this process's loop is: a timer that should ring now, and does when?"""
        session = self._session
        record = session.recorder.histograms["loop_lag"].record
        while True:
            due_us = now_us() + int(LAG_PROBE_S * 1e6)
            before = session.orders.current
            gevent.sleep(LAG_PROBE_S)
            # The order from before, too: a stop may have lasted beyond the end of measuring.
            order = before if before.phase == MEASURE else session.orders.current
            if order.phase != MEASURE:
                continue  # starting and stopping may take their time: nothing is measured then
            late_us = now_us() - max(due_us, session.to_local(order.measure_us))
            if late_us >= 0:
                behind_us = max((reactor.behind_us() for reactor in self._reactors), default=0)
                record(max(late_us, behind_us))


def _wait_readable(fd: int, timeout_s: float | None) -> None:
    """Park this greenlet until `fd` is readable or the time is over."""
    try:
        gevent.socket.wait_read(fd, timeout=timeout_s)
    except TimeoutError:
        pass


def _give_way() -> None:
    """Let the other greenlets run."""
    gevent.sleep(0)
