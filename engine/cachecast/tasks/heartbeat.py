"""The task that notices silence: pings, missing pongs, stalled sockets, overdue authorization.

One task and one wheel for all connections; an idle one costs an entry in a set. Everything is
checked once a second, so limits hold to the second.

Source: Pusher's WebSocket protocol page, "Ping and pong messages" and "Connection closure".
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

import trio

from cachecast.channels.wheel import Wheel
from cachecast.protocol import frames

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.channels.outbox import Backlog, Outbox
    from cachecast.config import BrokerConfig
    from cachecast.protocol.session import Session

__all__ = ["Disconnector", "Heartbeat"]

TICK_S: Final = 1.0

#: Sessions checked between two checkpoints.
SESSIONS_PER_STEP: Final = 200

#: Connections ended between two checkpoints; each leaves its channels and tells those in them.
CLOSINGS_PER_STEP: Final = 50

_PING: Final = frames.server_frame(frames.PING, b"")


class Disconnector(Protocol):
    """What the heartbeat needs of the Broker."""

    def disconnect(self, session: Session, code: int, message: str) -> None:
        """Say why, close, and forget the session."""


class Heartbeat:
    """Watches all sessions of a node.

    Attributes:
        lag_s: how late the loop woke this task at the last tick; the node's loop lag.
        max_lag_s: the worst since start.
    """

    def __init__(
        self,
        config: BrokerConfig,
        backlog: Backlog,
        clock: Callable[[], float],
        broker: Disconnector,
    ) -> None:
        self._config = config
        self._backlog = backlog
        self._clock = clock
        self._broker = broker
        self._wheel: Wheel[Session] = Wheel(clock())
        #: When a session was pinged that has not been seen to answer.
        self._pinged_at: dict[Session, float] = {}
        self._closing: dict[Outbox, float] = {}
        self.lag_s = 0.0
        self.max_lag_s = 0.0

    def watch(self, session: Session) -> None:
        """Begin to watch a session."""
        self._schedule(session, session.active_at + self._config.activity_timeout_s)

    def unwatch(self, session: Session) -> None:
        """Stop watching a session that has ended."""
        self._wheel.cancel(session)
        self._pinged_at.pop(session, None)

    def watch_closing(self, outbox: Outbox, now: float) -> None:
        """Give a closing connection its time to read the close frame, and then end it."""
        self._closing[outbox] = now + self._config.close_timeout_s

    async def run(self) -> NoReturn:
        """Check once a second, for ever."""
        while True:
            due = trio.current_time() + TICK_S
            await trio.sleep_until(due)
            self.lag_s = trio.current_time() - due
            self.max_lag_s = max(self.max_lag_s, self.lag_s)
            await self.step()

    async def step(self) -> None:
        """Check everyone who is due, yielding after each bounded part."""
        while True:
            now = self._clock()
            sessions = self._wheel.pop_due(now, SESSIONS_PER_STEP)
            for session in sessions:
                self._check(session, now)
            await trio.lowlevel.checkpoint()
            if len(sessions) < SESSIONS_PER_STEP:
                break
        now = self._clock()
        stalled = [outbox for outbox in self._backlog if outbox.has_stalled(now)]
        overdue = [outbox for outbox, deadline in self._closing.items() if deadline <= now]
        for number, outbox in enumerate([*stalled, *overdue], 1):
            if number <= len(stalled):
                outbox.give_up()
            else:
                outbox.break_off()
            if not number % CLOSINGS_PER_STEP:
                await trio.lowlevel.checkpoint()
        self._closing = {
            outbox: deadline for outbox, deadline in self._closing.items() if not outbox.is_gone
        }

    def _schedule(self, session: Session, due: float) -> None:
        self._wheel.schedule(session, min(due, session.authorize_by))

    def _check(self, session: Session, now: float) -> None:
        config = self._config
        if now >= session.authorize_by:
            self._broker.disconnect(session, 4009, "Connection not authorized within timeout")
            return
        if session.outbox.is_pacing:
            # Its answers lie unread until it has read ours. Whether it does is what ends it or not.
            session.active_at = now
        pinged_at = self._pinged_at.get(session, inf)
        if session.active_at >= pinged_at:
            del self._pinged_at[session]
            pinged_at = inf
        if pinged_at == inf:
            self._check_silence(session, now)
        # The pong has its whole time from the ping on, however late the ping was: after a sleep
        # of the machine everybody has been silent for hours.
        elif session.must_pong and now - pinged_at >= config.pong_timeout_s:
            self._broker.disconnect(session, 4201, "Pong reply not received")
        elif not session.must_pong and now - session.active_at >= config.max_inactivity_s:
            self._broker.disconnect(session, 4202, "Closed after inactivity")
        elif session.must_pong:
            self._schedule(session, pinged_at + config.pong_timeout_s)
        else:
            self._schedule(session, session.active_at + config.max_inactivity_s)

    def _check_silence(self, session: Session, now: float) -> None:
        """Ping whoever has been silent for long enough."""
        config = self._config
        due = session.active_at + config.activity_timeout_s
        if now >= due:
            self._pinged_at[session] = now
            session.outbox.put(_PING)
            if session.outbox.is_finishing:
                return  # the ping met a broken socket, and the session has been forgotten
            due = now + min(config.pong_timeout_s, config.activity_timeout_s)
        self._schedule(session, due)
