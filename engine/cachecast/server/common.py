"""What all connections of a server have in common: their poller, their limits, one date.

A connection is handed this and not the server, so that nothing here looks back up at whoever
accepted it.
"""

from __future__ import annotations

from email.utils import formatdate
from typing import TYPE_CHECKING, Protocol

from cachecast.channels.wheel import Wheel
from cachecast.server.poller import Mortal
from cachecast.server.room import Room

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Sized

    from cachecast.broker.journal import Journal
    from cachecast.channels.outbox import Backlog
    from cachecast.config import BrokerConfig
    from cachecast.server.poller import Poller

__all__ = ["Common"]


class _Timed(Mortal, Protocol):
    """What can take too long.

    Attributes:
        wheel_slot: place in the wheel :attr:`Common.timeouts`; the wheel's own.
    """

    wheel_slot: int

    def on_timeout(self) -> None:
        """It has."""

    def __hash__(self) -> int: ...  # type: ignore[explicit-override]  # needs Python 3.12


class Common:
    """Made by the server, which keeps it up to date.

    Attributes:
        config: limits and times of the broker.
        poller: the Poller that serves all sockets.
        now: function that gives the broker's seconds.
        timeouts: connections by the second in which they have taken too long.
        room: counts of those who are connected; says who of those that connect may stay.
        backlog: outboxes with something that waits for slow connections, on the whole node.
        date: date of responses, renewed every second.
        is_draining: whether connections close after their next answer.
        has_ended: whether nobody is served any more.
    """

    __slots__ = (
        "_journal",
        "_refusals",
        "backlog",
        "config",
        "date",
        "has_ended",
        "is_draining",
        "now",
        "poller",
        "room",
        "timeouts",
    )

    def __init__(
        self,
        config: BrokerConfig,
        poller: Poller,
        listeners: Sized,
        *,
        now: Callable[[], float],
        backlog: Backlog,
        refusals: Counter[str],
        journal: Journal,
    ) -> None:
        """Gather it; ``listeners`` are those in the poller that are no connections."""
        self.config = config
        self.poller = poller
        self.now = now
        self.timeouts: Wheel[_Timed] = Wheel(self.now())
        self.room = Room(poller, listeners, self.now)
        self.backlog = backlog
        self.date = ""
        self.is_draining = False
        self.has_ended = False
        self._refusals = refusals
        self._journal = journal
        self.renew_date()

    def renew_date(self) -> None:
        """Once a second."""
        self.date = formatdate(usegmt=True)

    def expire_after(self, seconds: float, connection: _Timed) -> None:
        """Call a connection's ``on_timeout`` then, and not when it said before."""
        self.timeouts.schedule(connection, self.now() + seconds)

    def note_refusal(self, status: int, reason: str) -> None:
        """Count a request that was not understood, and say why for an operator."""
        self._refusals[f"http {status}"] += 1
        self._journal.note("HTTP request refused", app=None, code=status, reason=reason)

    def note_proxy_fault(self, reason: str) -> None:
        """Count a connection without a PROXY header: a client that came past the balancer, say."""
        self._refusals["proxy"] += 1
        self._journal.note("PROXY header refused", app=None, code=None, reason=reason)

    def note_tls_fault(self, reason: str) -> None:
        """Count a TLS handshake that failed: a client that does not trust the certificate, say."""
        self._refusals["tls"] += 1
        self._journal.note("TLS handshake failed", app=None, code=None, reason=reason)
