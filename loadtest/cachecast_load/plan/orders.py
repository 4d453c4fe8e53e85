"""What the master tells everybody: the phase of the run and the level of the load.

Orders are small, whole (never a difference) and numbered, so that a lost or late one does no harm.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

# prime: publish the values that joiners shall find.   connect: bring the subscribers up.
# measure: publish on schedule.   drain: no new publish; wait for what is under way.
# close: everything has come; leave.   done: the run is over.
PRIME, CONNECT, MEASURE, DRAIN = "prime", "connect", "measure", "drain"
CLOSE, DONE = "close", "done"
IDLE = "idle"


@dataclass(frozen=True, slots=True)
class Order:
    """The state everybody shall be in.

    Attributes:
        number: grows with every order.
        phase: one of the phases above.
        rate: publishes per second, over the whole run.
        subscribers: how many shall be connected, over the whole run.
        at_us: run clock when this level began.
        measure_us: run clock when measuring began, 0 before.
        all_present: every subscriber was subscribed when the order was given.
    """

    number: int = 0
    phase: str = IDLE
    rate: float = 0.0
    subscribers: int = 0
    at_us: int = 0
    measure_us: int = 0
    all_present: bool = False

    def to_wire(self) -> dict[str, Any]:
        """Return the order as plain data."""
        return asdict(self)

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Order:
        """Rebuild what `to_wire` made."""
        return cls(**wire)


class OrderBook:
    """One process's newest order; blocks look at it in every turn."""

    def __init__(self) -> None:
        self.current = Order()

    def receive(self, order: Order) -> None:
        """Take an order unless a newer one is known."""
        if order.number > self.current.number:
            self.current = order
