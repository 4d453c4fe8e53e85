"""What waits for the engine, and for how long: nothing waits for ever.

Everything that waits has the same limit, so the first to come is the first to be late, and one look
at the front of the line, four times a second, is enough.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from cachecast.bus.faults import DownError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.bus.receipt import Receipt

__all__ = ["Lateness"]

#: Seconds that a subscription, a sign-in or a departure may wait for the engine.
LIMIT_S: Final = 5.0

#: Number of those that may wait at one primary; a client costs one or two.
MAX_WAITING: Final = 50_000


class Lateness:
    """The line of those who wait at one seat.

    Attributes:
        n_late: number of those that were given up.
        n_refused: number of those for whom there was no room.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin with an empty line.

        Args:
            clock: function that gives the broker's seconds.
        """
        self._clock = clock
        self._line: deque[tuple[float, Receipt[Any], Callable[[], object]]] = deque()
        self._is_over = False
        self.n_late = 0
        self.n_refused = 0

    def __len__(self) -> int:
        """Those in the line; some may be done already."""
        return len(self._line)

    @property
    def is_awaited(self) -> bool:
        """Whether anybody waits for an answer. O(those in the line)."""
        return any(not receipt.is_done for _, receipt, _ in self._line)

    def refusal(self) -> DownError | None:
        """Why nobody more may wait; None if they may."""
        if self._is_over:
            return self.fault()
        if len(self._line) < MAX_WAITING:
            return None
        self.n_refused += 1
        return DownError(f"The engine is behind: {MAX_WAITING} wait for it already.")

    def keep(self, receipt: Receipt[Any], give_up: Callable[[], object]) -> None:
        """Have ``give_up`` called once the limit is over, unless the receipt is done by then.

        It must settle the receipt. Never yields.
        """
        if receipt.is_done:
            return
        if self._is_over:
            give_up()
        else:
            self._line.append((self._clock() + LIMIT_S, receipt, give_up))

    def expire(self) -> None:
        """Give up whatever is late; O(done and late). Never yields."""
        now = self._clock()
        while self._line and (self._line[0][1].is_done or self._line[0][0] <= now):
            _, receipt, give_up = self._line.popleft()
            if not receipt.is_done:
                self.n_late += 1
                give_up()

    def stop(self) -> None:
        """Give up everybody now, and whoever comes from now on. Never yields."""
        self._is_over = True
        line, self._line = self._line, deque()
        for _, receipt, give_up in line:
            if not receipt.is_done:
                give_up()

    def fault(self) -> DownError:
        """What those are told who are given up."""
        if self._is_over:
            return DownError("The node has left the cluster.")
        return DownError(f"The engine did not answer within {LIMIT_S:g} s.")
