"""A node in figures over time: two seconds apart for two minutes, half a minute apart for an hour.

Only a node with an inspector has them. They are read from the state and from counters that are
kept anyway; what takes as long as there are channels is counted in steps.
"""

from __future__ import annotations

from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import msgspec
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.broker import Broker
    from cachecast.metrics import AppCounters

__all__ = ["FIELDS", "FINE_S", "Figures", "Row"]

#: Seconds between two rows, and how many there are, of the last minutes and of the last hour.
FINE_S: Final = 2.0
N_FINE: Final = 61
COARSE_EVERY: Final = 15
N_COARSE: Final = 121

#: Number of channels counted between two checkpoints.
CHANNELS_PER_STEP: Final = 5_000


class Row(msgspec.Struct, array_like=True):
    """One moment. What ends in ``_per_s`` is the mean since the row before.

    Attributes:
        at: wall time, in seconds.
        loop_lag_s, fanout_lag_s, ready_wait_s: the worst since the row before of what the metrics
            of these names show.
    """

    at: float = 0.0
    connections: int = 0
    subscriptions: int = 0
    channels: int = 0
    users: int = 0
    cache_entries: int = 0
    cache_bytes: int = 0
    slow_connections: int = 0
    outbox_bytes: int = 0
    undelivered_bytes: int = 0
    webhook_events: int = 0
    loop_lag_s: float = 0.0
    fanout_lag_s: float = 0.0
    ready_wait_s: float = 0.0
    publishes_per_s: float = 0.0
    deliveries_per_s: float = 0.0
    client_events_per_s: float = 0.0
    http_requests_per_s: float = 0.0
    connections_opened_per_s: float = 0.0
    refusals_per_s: float = 0.0
    cache_hits_per_s: float = 0.0
    cache_misses_per_s: float = 0.0
    conflated_per_s: float = 0.0
    slow_closes_per_s: float = 0.0
    webhooks_failed_per_s: float = 0.0


#: Names of a row's values, in order.
FIELDS: Final = Row.__struct_fields__

_RATES: Final = tuple(name.removesuffix("_per_s") for name in FIELDS if name.endswith("_per_s"))
_WORST: Final = ("loop_lag_s", "fanout_lag_s", "ready_wait_s")
_COUNTED: Final = {
    "refusals": lambda counters: counters.refusals.total(),
    "webhooks_failed": lambda counters: counters.webhooks["failed"] + counters.webhooks["dropped"],
}


class Figures:
    """Keeps the rows of one node; :meth:`sample` is called every :data:`FINE_S`.

    Attributes:
        fine: rows of the last two minutes, oldest first.
        coarse: rows of the last hour, oldest first.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.fine: deque[Row] = deque(maxlen=N_FINE)
        self.coarse: deque[Row] = deque(maxlen=N_COARSE)
        self._counted: dict[str, int] | None = None
        self._counted_at = 0.0
        self._n_rows = 0

    async def sample(self) -> Row:
        """Add the row of this moment. If cancelled, none."""
        broker = self._broker
        row = Row(at=broker.unix_now())
        for hub in list(broker.hubs.values()):
            channels = list(hub.channels.values())
            for at in range(0, len(channels), CHANNELS_PER_STEP):
                for channel in channels[at : at + CHANNELS_PER_STEP]:
                    if not channel.name.is_hidden:
                        row.channels += 1
                        row.subscriptions += len(channel.subscriptions)
                if len(channels) > CHANNELS_PER_STEP:
                    await trio.lowlevel.checkpoint()
            row.connections += len(hub.connections)
            row.users += len(hub.users)
            row.undelivered_bytes += hub.undelivered_bytes
            row.webhook_events += broker.webhooks.queued_events(hub.app.id)
        await trio.lowlevel.checkpoint()
        self._fill(row)
        self.fine.append(row)
        self._n_rows += 1
        if self._n_rows % COARSE_EVERY == 1:
            self.coarse.append(self._summarize())
        return row

    def _fill(self, row: Row) -> None:
        """What takes no time, and the rates since the row before."""
        broker = self._broker
        row.cache_entries = broker.cache.n_entries()
        row.cache_bytes = broker.cache.n_bytes()
        row.slow_connections = len(broker.backlog)
        row.outbox_bytes = broker.backlog.n_bytes
        row.loop_lag_s = broker.heartbeat.lag_s
        row.fanout_lag_s = broker.fanout.lag_s
        row.ready_wait_s = broker.heartbeat.ready_wait_s
        counted, now = self._count(), broker.clock()
        if self._counted is not None and now > self._counted_at:
            for name in _RATES:
                # An app that has been removed takes its counters with it.
                n = max(0, counted[name] - self._counted[name])
                setattr(row, f"{name}_per_s", round(n / (now - self._counted_at), 3))
        self._counted, self._counted_at = counted, now

    def _count(self) -> dict[str, int]:
        counters = [hub.counters for hub in self._broker.hubs.values()]
        counted = {name: sum(map(_getter(name), counters)) for name in _RATES}
        counted["refusals"] += self._broker.clients.refusals.total()
        return counted

    def _summarize(self) -> Row:
        """The last rows as one: the newest state, mean rates, the worst that was late."""
        rows = list(self.fine)[-COARSE_EVERY:]
        row = msgspec.structs.replace(rows[-1])
        for name in _WORST:
            setattr(row, name, max(map(attrgetter(name), rows)))
        for name in (f"{rate}_per_s" for rate in _RATES):
            setattr(row, name, round(sum(map(attrgetter(name), rows)) / len(rows), 3))
        return row


def _getter(name: str) -> Callable[[AppCounters], int]:
    return _COUNTED.get(name) or attrgetter(name)
