"""The Locust users: each drives one seat (a block of sockets, or a publisher) in its greenlet.

Importing this module imports Locust, and that monkey-patches the process.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gevent
import gevent.socket
from locust import User, task

from cachecast_load.net.reactor import Reactor
from cachecast_load.run.station import BLOCK, PUBLISHER


def wait_readable(fd: int, timeout_s: float | None) -> None:
    """Park this greenlet until `fd` is readable or the time is over."""
    try:
        gevent.socket.wait_read(fd, timeout=timeout_s)
    except TimeoutError:
        pass


def give_way() -> None:
    """Let the other greenlets run."""
    gevent.sleep(0)


class SeatUser(User):
    """Takes a seat of the run, works on it to its end, and gives it back never."""

    abstract = True
    kind: ClassVar[str] = ""

    @task
    def drive(self) -> None:
        """Work on a seat; without a free one, wait for the run to end."""
        swarm: Any = self.environment.loadtest  # type: ignore[attr-defined]
        station, number = swarm.take_seat(self.kind)
        if number < 0:
            gevent.sleep(0.5)
            return
        reactor = Reactor(wait_readable, give_way)
        seat = station.sit(self.kind, number, reactor)
        swarm.reactors.append(reactor)
        try:
            while not seat.is_finished:
                seat.turn()
        finally:
            # Also when Locust stops us early: what was measured must still be reported.
            seat.finish()
            swarm.reactors.remove(reactor)
            reactor.close()


class SubscriberUser(SeatUser):
    """One block of subscribers."""

    kind = BLOCK


class PublisherUser(SeatUser):
    """One publisher; Locust starts exactly as many as the run needs."""

    kind = PUBLISHER
    fixed_count = 1
