"""What all blocks of one process share in one run."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from cachecast_load.crowd.receipts import Receipts
from cachecast_load.measures.recorder import Recorder
from cachecast_load.net.reactor import now_us
from cachecast_load.net.transport import Address
from cachecast_load.plan.model import Plan
from cachecast_load.plan.orders import OrderBook
from cachecast_load.plan.target import Target
from cachecast_load.pusher.envelope import Envelopes
from cachecast_load.pusher.stamp import run_mark


@dataclass(slots=True)
class Session:
    """One process's part in a run.

    Attributes:
        sockets: Addresses of the target's `sockets`, in their order.
        apis: Addresses of its `apis`, in theirs.
        run: Mark of this run's payloads and channel names, 16 bits.
        offset_us: Run clock minus this machine's monotonic clock.
        auth: Address of the auth endpoint, where there is one.
        users: Subscriber -> user id, as far as an auth endpoint told it this process.
        receipts: Receipts of its subscribers that are not entered yet.
        envelopes: What may surround a payload.
    """

    plan: Plan
    target: Target
    run: int
    sockets: tuple[Address, ...]
    apis: tuple[Address, ...]
    recorder: Recorder
    orders: OrderBook
    auth: Address | None = None
    offset_us: int = 0
    users: dict[int, str] = field(default_factory=dict)
    receipts: Receipts = field(init=False)
    envelopes: Envelopes = field(init=False)

    def __post_init__(self) -> None:
        self.receipts = Receipts(self.recorder)
        load = self.plan.load
        self.envelopes = Envelopes(self.mark, load.payload_bytes, self.plan.event_name)

    @property
    def mark(self) -> bytes:
        """What every payload of this run begins with."""
        return run_mark(self.run)

    def socket_of(self, subscriber: int, attempt: int) -> int:
        """Return which of the sockets a subscriber's connection goes to.

        Each run of as many subscribers as there are sockets has one on each, in an order of its
        own: evenly spread, and whoever shares a channel does not share a socket as well. Later
        attempts go on through that order, unless the plan lets them stay.
        """
        count = len(self.sockets)
        if count == 1:
            return 0
        group, place = divmod(subscriber, count)
        order = random.Random(f"{self.plan.seed}/sockets/{group}").sample(range(count), count)
        if self.plan.behaviour.reconnect_to == "same":
            attempt = 0
        return order[(place + attempt) % count]

    def run_now(self) -> int:
        """Return the run clock in microseconds."""
        return now_us() + self.offset_us

    def to_local(self, run_us: int) -> int:
        """Turn a time of the run clock into one of this machine's."""
        return run_us - self.offset_us
