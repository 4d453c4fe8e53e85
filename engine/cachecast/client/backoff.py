"""When to come back after a connection has ended: what the close code asks for, and no oftener."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from cachecast.protocol.close_codes import Reaction, reaction_to

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["STABLE_AFTER_S", "Backoff", "Ending"]

#: Seconds that a connection must live to be no part of a series of failures.
STABLE_AFTER_S: Final = 10.0

FIRST_S: Final = 1.0
LONGEST_S: Final = 30.0  # Java's and Swift's limit (protocol.md 1.6)


class Ending(msgspec.Struct, frozen=True):
    """How a connection ended, or why there was none.

    Attributes:
        code: status code of the Close frame or of the ``pusher:error`` before it; 1006 where there
            was neither (RFC 6455 7.1.5).
        text: the reason in the server's words, or ours where it gave none.
        lived_s: seconds since ``connection_established``; 0 if it never came.
        is_pong_missing: whether we ended it, because the server had fallen silent.
    """

    code: int
    text: str
    lived_s: float = 0.0
    is_pong_missing: bool = False

    @property
    def reaction(self) -> Reaction:
        """What the code asks for; after a missing pong pusher-js returns at once (1.5)."""
        return Reaction.RECONNECT if self.is_pong_missing else reaction_to(self.code)


class Backoff:
    """Exponential backoff with full jitter, per client.

    Full jitter (a delay drawn evenly between zero and the limit) because a server that restarts
    loses all its clients in one instant, and they must not return in one.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        """Begin without failures.

        Args:
            random: function that draws evenly in 0 <= x < 1.
        """
        self._random = random
        self._failures = 0

    def next_delay_s(self, ending: Ending) -> float:
        """Seconds to wait before the next attempt.

        ``RECONNECT`` and ``TRY_TLS`` mean at once, but only once: pusher-js takes "at once"
        literally and reconnects 400 to 600 times a second to a server that closes with 4200
        before the connection is established (protocol.md 1.6). So a connection that was not
        stable, after another failure, waits like all the others.
        """
        if ending.lived_s >= STABLE_AFTER_S:
            self._failures = 0
        failures = self._failures
        self._failures += 1
        if ending.reaction is not Reaction.BACK_OFF and failures == 0:
            return 0.0
        limit_s = min(LONGEST_S, FIRST_S * 2.0 ** min(failures, 16))
        # Over capacity asks for a second at least (protocol.md 1.6, 4100-4199).
        floor_s = FIRST_S if 4100 <= ending.code < 4200 else 0.0
        return floor_s + self._random() * limit_s
