"""The Locust users: each drives one seat (a block of sockets, or a publisher) in its greenlet.

Importing this module imports Locust, and that monkey-patches the process.
"""

from __future__ import annotations

from typing import ClassVar

import gevent
from locust import User, task

from cachecast_load.run.station import BLOCK, PUBLISHER
from cachecast_load.swarm.links import Link


class SeatUser(User):
    """Takes a seat of the run, works on it to its end, and gives it back never."""

    abstract = True
    kind: ClassVar[str] = ""

    @task
    def drive(self) -> None:
        """Work on a seat; without a free one, wait for the run to end."""
        link: Link = self.environment.loadtest
        if not link.drive_seat(self.kind):
            gevent.sleep(0.5)


class SubscriberUser(SeatUser):
    """One block of subscribers."""

    kind = BLOCK


class PublisherUser(SeatUser):
    """One publisher; Locust starts exactly as many as the run needs."""

    kind = PUBLISHER
    fixed_count = 1
