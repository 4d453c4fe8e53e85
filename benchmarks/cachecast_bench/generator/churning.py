"""Subscribers that leave their channel and come back, while it is being published to.

Each step takes the next client in turn: unsubscribe, and right behind it subscribe. Measured is the
time from that to the server's confirmation. What the client missed while it was away is no loss; a
message older than what it had already seen is stale, as ever.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cachecast_bench.dialects import Dialect
    from cachecast_bench.generator.loop import Loop
    from cachecast_bench.generator.subscriber import Subscriber


class Churning:
    """Moves `rate_per_s` clients a second out of their channel and in again.

    Attributes:
        members: Those who are moved, in turn.
        waits_ns: From the subscribe to its confirmation, for each that was confirmed.
        n_skipped: Turns at which the client had not yet been confirmed from its last one.
    """

    def __init__(
        self, loop: Loop, dialect: Dialect, subscribers: list[Subscriber], rate_per_s: float
    ) -> None:
        self._loop = loop
        self._dialect = dialect
        self.members = subscribers
        self._interval_ns = 1e9 / rate_per_s
        self._asked_at: dict[Subscriber, int] = {}
        self._is_on = False
        self._n_turns = 0
        self._start_ns = 0
        self.waits_ns: list[int] = []
        self.n_skipped = 0
        for one in subscribers:
            one.on_message = self._on_message

    def start(self) -> None:
        """Begin; the first client leaves at once."""
        self._is_on = True
        self._start_ns = time.monotonic_ns()
        self._tick()

    def stop(self) -> None:
        """Let nobody leave any more; those on their way back still arrive."""
        self._is_on = False

    @property
    def n_away(self) -> int:
        """Clients whose subscribe is not confirmed yet."""
        return len(self._asked_at)

    def _tick(self) -> None:
        if not self._is_on:
            return
        one = self.members[self._n_turns % len(self.members)]
        self._n_turns += 1
        if one in self._asked_at:
            self.n_skipped += 1
        elif one.stream is not None:
            channel = one.stream.channel
            one.leave()
            self._asked_at[one] = time.monotonic_ns()
            one.sock.send(self._dialect.unsubscribe(channel) + self._dialect.subscribe(channel))
        self._loop.call_at(self._start_ns + int(self._n_turns * self._interval_ns), self._tick)

    def _on_message(self, one: Subscriber, message: bytes) -> None:
        if one in self._asked_at and self._dialect.confirms_subscription(message):
            self.waits_ns.append(time.monotonic_ns() - self._asked_at.pop(one))
            one.come_back()
