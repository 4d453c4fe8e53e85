"""What a node does while the other nodes cannot be reached.

What the clients have is true and stays with them for a while, in case the link comes back. Past
that they are sent away evenly, with 4100, which brings them back to a node that may do better.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final, NoReturn

import structlog
import trio

from cachecast.broker.sign_ins import OUTAGE_TEXT

if TYPE_CHECKING:
    from cachecast.broker.clients import Clients
    from cachecast.channels.hub import Hub

__all__ = ["Outage"]

#: Seconds over which clients are sent away: those of a node come back elsewhere, and not at once.
SPREAD_S: Final = 10.0

#: Seconds between two steps of sending clients away, and number of connections that are closed
#: between two checkpoints.
STEP_S: Final = 0.1
CLOSINGS_PER_TURN: Final = 50

_log = structlog.get_logger("cachecast.bus")


class Outage:
    """Whether the cluster can be reached; :meth:`run` is its task.

    Attributes:
        reason: reason why the other nodes cannot be reached, for operators; None while they can.
        n_closed: number of connections sent away since start.
    """

    def __init__(self, hubs: dict[str, Hub], clients: Clients, outage_s: float) -> None:
        """Make it.

        Args:
            hubs: app id -> hub, of all apps whose connections are sent away.
            clients: object that closes the connections.
            outage_s: seconds for which clients are kept.
        """
        self._hubs = hubs
        self._clients = clients
        self._outage_s = outage_s
        self._has_changed = trio.Event()
        self.reason: str | None = None
        self.n_closed = 0

    def went_down(self, reason: str) -> None:
        """The cluster cannot be reached. Never yields."""
        if self.reason is None:
            _log.warning("other nodes cannot be reached", reason=reason)
            self._has_changed.set()
        self.reason = reason

    def went_up(self) -> None:
        """It can; whoever has not been sent away stays. Never yields."""
        if self.reason is not None:
            _log.info("other nodes are back", clients_closed_since_start=self.n_closed)
            self._has_changed.set()
        self.reason = None
        self._clients.is_cut_off = False

    async def run(self) -> NoReturn:
        """Wait for outages, and send clients away in those that last, for ever."""
        while True:
            await self._has_changed.wait()
            self._has_changed = trio.Event()
            if self.reason is not None:
                with trio.move_on_after(self._outage_s):
                    await self._has_changed.wait()
                    continue
                await self._send_away()

    async def _send_away(self) -> None:
        """Close all connections, evenly, until there is none or the cluster is back."""
        self._clients.is_cut_off = True
        ends_at = trio.current_time() + SPREAD_S
        while self.reason is not None:
            n_steps = max(1.0, (ends_at - trio.current_time()) / STEP_S)
            left = int(self._clients.n_sessions / n_steps) + 1
            while left > 0 and self.reason is not None:
                n_closed = self._close_some(min(left, CLOSINGS_PER_TURN))
                left -= n_closed or left
                await trio.lowlevel.checkpoint()
            if not self._clients.n_sessions:
                return
            with trio.move_on_after(STEP_S):
                await self._has_changed.wait()

    def _close_some(self, limit: int) -> int:
        connections = (c for hub in self._hubs.values() for c in hub.connections.values())
        some = list(islice(connections, limit))
        for connection in some:
            self._clients.disconnect(connection, 4100, OUTAGE_TEXT)
        self.n_closed += len(some)
        return len(some)
