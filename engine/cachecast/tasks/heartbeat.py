"""The task that notices silence: pings, missing pongs, stalled sockets, overdue authorization.

One task and one wheel for all connections; an idle one costs an entry in a set. Everything is
checked once a second, so limits hold to the second.

Source: Pusher's WebSocket protocol page, "Ping and pong messages" and "Connection closure".
"""

from __future__ import annotations

from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

import trio

from cachecast.channels.wheel import Wheel
from cachecast.metrics import Durations

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.channels.connection import Connection
    from cachecast.channels.outbox import Backlog, Outbox
    from cachecast.config import BrokerConfig

__all__ = ["Disconnector", "Heartbeat", "Reader"]

TICK_S: Final = 1.0

#: Number of connections checked between two checkpoints.
CONNECTIONS_PER_STEP: Final = 200

#: Number of connections ended between two checkpoints; each leaves its channels and tells those in
#: them.
CLOSINGS_PER_STEP: Final = 50

#: Seconds that checks or endings take between two checkpoints: one that leaves a thousand channels
#: is as much work as a hundred others.
STEP_S: Final = 0.001


class Disconnector(Protocol):
    """What the heartbeat needs of the Broker."""

    def disconnect(self, connection: Connection, code: int, message: str) -> None:
        """Say why, close, and forget the connection."""


class Reader(Protocol):
    """What the heartbeat needs of whoever reads the clients' sockets.

    Attributes:
        max_wait_s: seconds of the longest time since start that something which had arrived waited
            to be read.
    """

    max_wait_s: float

    def read_until(self, app_id: str | None = None) -> float:
        """The instant up to which all that had arrived has been read, in the broker's seconds.

        Args:
            app_id: id of the app whose connections are meant; None means all.
        """

    @property
    def wait_s(self) -> float:
        """Seconds that the oldest of what has arrived has been waiting to be read, at most."""


class Heartbeat:
    """Watches all connections of a node.

    Nobody is judged for silence before what had arrived was read: after a pause of the process, or
    while it is overloaded, the answers lie in the sockets.

    Attributes:
        config: limits of the node; may be replaced.
        readers: those who read the clients' sockets; servers come and go.
        lag_s: seconds by which the loop woke this task late at the last tick; the node's loop lag.
        max_lag_s: seconds of the latest waking since start.
        lags: all of them since start, counted.
    """

    def __init__(
        self,
        config: BrokerConfig,
        backlog: Backlog,
        clock: Callable[[], float],
        broker: Disconnector,
    ) -> None:
        self.config = config
        self._backlog = backlog
        self._clock = clock
        self._broker = broker
        self._wheel: Wheel[Connection] = Wheel(clock())
        #: Connection -> time of the ping that it has not been seen to answer, in the broker's
        #: seconds.
        self._pinged_at: dict[Connection, float] = {}
        self._closing: dict[Outbox, float] = {}
        self.readers: list[Reader] = []
        self.lag_s = 0.0
        self.max_lag_s = 0.0
        self.lags = Durations()

    def watch(self, connection: Connection) -> None:
        """Begin to watch a connection."""
        self._schedule(connection, connection.session.active_at + self.config.activity_timeout_s)

    def pinged_at(self, connection: Connection) -> float | None:
        """Time of a ping that it has not answered, in the broker's seconds; None for none."""
        return self._pinged_at.get(connection)

    def resume(self, connection: Connection, pinged_at: float) -> None:
        """Watch a connection that another process has pinged."""
        self._pinged_at[connection] = pinged_at
        config = self.config
        self._schedule(
            connection, pinged_at + min(config.pong_timeout_s, config.activity_timeout_s)
        )

    def unwatch(self, connection: Connection) -> None:
        """Stop watching a connection that has ended."""
        self._wheel.cancel(connection)
        self._pinged_at.pop(connection, None)

    def watch_closing(self, outbox: Outbox, now: float) -> None:
        """Give a closing connection its time to read the close frame, and then end it."""
        self._closing[outbox] = now + self.config.close_timeout_s

    async def run(self) -> NoReturn:
        """Check once a second, for ever."""
        was_paused = False
        while True:
            looked_at, due = self._clock(), trio.current_time() + TICK_S
            await trio.sleep_until(due)
            self.lag_s = trio.current_time() - due
            self.max_lag_s = max(self.max_lag_s, self.lag_s)
            self.lags.observe(self.lag_s)
            # Those who are read by tasks of a host service have no reader to ask: after a pause of
            # the process, or of the machine, they get one second to be heard.
            was_paused = not was_paused and self._clock() - looked_at > 2 * TICK_S
            if not was_paused:
                await self.step()

    async def step(self) -> None:
        """Check everyone who is due, yielding after each bounded part."""
        while True:
            now = self._clock()
            connections = self._wheel.pop_due(now, CONNECTIONS_PER_STEP)
            await self._check_all(connections, now)
            await trio.lowlevel.checkpoint()
            if len(connections) < CONNECTIONS_PER_STEP:
                break
        heard_until = self._heard_until()
        stalled = [outbox for outbox in self._backlog if outbox.has_stalled(heard_until)]
        overdue = [outbox for outbox, deadline in self._closing.items() if deadline <= heard_until]
        until = perf_counter() + STEP_S
        for number, outbox in enumerate([*stalled, *overdue], 1):
            if number <= len(stalled):
                outbox.give_up()
            else:
                outbox.break_off()
            if not number % CLOSINGS_PER_STEP or perf_counter() > until:
                await trio.lowlevel.checkpoint()
                until = perf_counter() + STEP_S
        self._closing = {
            outbox: deadline for outbox, deadline in self._closing.items() if not outbox.is_gone
        }

    def _heard_until(self, app_id: str | None = None) -> float:
        """What had arrived by then has been read, by all who read."""
        return min([self._clock(), *(reader.read_until(app_id) for reader in self.readers)])

    @property
    def ready_wait_s(self) -> float:
        """Seconds that the oldest of what has arrived has been waiting to be read."""
        return max((reader.wait_s for reader in self.readers), default=0.0)

    @property
    def max_ready_wait_s(self) -> float:
        """The worst of it since those who read began."""
        return max([self.ready_wait_s, *(reader.max_wait_s for reader in self.readers)])

    async def _check_all(self, connections: list[Connection], now: float) -> None:
        until = perf_counter() + STEP_S
        for connection in connections:
            if connection.outbox.is_finishing:
                continue  # it has ended since, in one of the pauses of this loop
            self._check(connection, now, self._heard_until(connection.session.app.id))
            if perf_counter() > until:
                await trio.lowlevel.checkpoint()
                until = perf_counter() + STEP_S

    def _schedule(self, connection: Connection, due: float, now: float = 0.0) -> None:
        """Look at a connection when it is due; not again at ``now``, whose turn is under way."""
        due = min(due, connection.authorize_by)
        self._wheel.schedule(connection, due if due > now else now + TICK_S)

    def _check(self, connection: Connection, now: float, heard_until: float) -> None:
        """Ping, or end, a connection that is due.

        Args:
            connection: a client's connection, not on the wheel any more.
            now: the present, in the broker's seconds.
            heard_until: time up to which everything that arrived has been read, in the broker's
                seconds; the measure of silence.
        """
        config, session = self.config, connection.session
        if heard_until >= connection.authorize_by:
            self._broker.disconnect(connection, 4009, "Connection not authorized within timeout")
            return
        if connection.outbox.is_pacing:
            # Its answers lie unread until it has read ours. Whether it does is what ends it or not.
            session.active_at = now
        pinged_at = self._pinged_at.get(connection, inf)
        if session.active_at >= pinged_at:
            del self._pinged_at[connection]
            pinged_at = inf
        if pinged_at == inf:
            self._check_silence(connection, now, heard_until)
        # The pong has its whole time from the ping on, however late the ping was: after a sleep
        # of the machine everybody has been silent for hours.
        elif connection.must_pong and heard_until - pinged_at >= config.pong_timeout_s:
            self._broker.disconnect(connection, 4201, "Pong reply not received")
        elif (
            not connection.must_pong and heard_until - session.active_at >= config.max_inactivity_s
        ):
            self._broker.disconnect(connection, 4202, "Closed after inactivity")
        elif connection.must_pong:
            self._schedule(connection, pinged_at + config.pong_timeout_s, now)
        else:
            self._schedule(connection, session.active_at + config.max_inactivity_s, now)

    def _check_silence(self, connection: Connection, now: float, heard_until: float) -> None:
        """Ping whoever has been silent for long enough."""
        config = self.config
        due = connection.session.active_at + config.activity_timeout_s
        if heard_until >= due:
            connection.ping()
            if connection.outbox.is_finishing:
                return  # the ping met a broken socket, and the connection has been forgotten
            # Not ``now``: the process may have been stopped since, between two pings.
            pinged_at = self._pinged_at[connection] = self._clock()
            due = pinged_at + min(config.pong_timeout_s, config.activity_timeout_s)
        self._schedule(connection, due, now)
