"""What all blocks of one process share in one run."""

from __future__ import annotations

from dataclasses import dataclass

from cachecast_load.orders import OrderBook
from cachecast_load.plan import Plan
from cachecast_load.reactor import now_us
from cachecast_load.recorder import Recorder
from cachecast_load.stamp import run_mark
from cachecast_load.target import Target
from cachecast_load.transport import Address


@dataclass(slots=True)
class Session:
    """One process's part in a run.

    Attributes:
        run: 16 bits that mark this run's payloads and channel names.
        offset_us: run clock minus this machine's monotonic clock.
        auth: address of the auth endpoint, where there is one.
    """

    plan: Plan
    target: Target
    run: int
    socket: Address
    api: Address
    recorder: Recorder
    orders: OrderBook
    auth: Address | None = None
    offset_us: int = 0

    @property
    def mark(self) -> bytes:
        """What every payload of this run begins with."""
        return run_mark(self.run)

    def run_now(self) -> int:
        """Return the run clock in microseconds."""
        return now_us() + self.offset_us

    def to_local(self, run_us: int) -> int:
        """Turn a time of the run clock into one of this machine's."""
        return run_us - self.offset_us
