"""Users whose connections are ended: heard on the control topic, read again where that had a gap.

Every entry names the one before it. Whoever does not know that one has missed some, and reads them;
if even the engine's list has lost some, nobody here can be sure of anybody, and all who are signed
in are ended. A new epoch may have lost the newest entries: each node says its own of the last half
a minute again, as it offers the values that it published.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from cachecast.bus.faults import LinkError
from cachecast.bus.receipt import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cachecast.bus.answers import Termination
    from cachecast.bus.holdings import Holdings
    from cachecast.bus.seam import Node
    from cachecast.bus.seat import Seat

__all__ = ["Endings"]

#: Seconds for which a node says again what it ended, after a new epoch: clients of a node that was
#: cut off for longer have been closed.
SAID_AGAIN_S: Final = 35.0

#: Number of endings that a node remembers; the engine keeps as many.
MAX_SAID: Final = 1_000

#: Number of entries in one answer of the engine.
STEP: Final = 100


class Endings:
    """The terminations of one seat.

    Attributes:
        n_holes: number of times that the engine had lost entries which this node had not read.
    """

    def __init__(
        self, seat: Seat, node: Node, holdings: Holdings, clock: Callable[[], float]
    ) -> None:
        """Begin without knowledge.

        Args:
            seat: the node's seat at the primary where the users lie.
            node: the node that ends connections.
            holdings: what the seat holds: users who are signed in here.
            clock: function that gives the broker's seconds.
        """
        self._seat = seat
        self._node = node
        self._holdings = holdings
        self._clock = clock
        self._known = ""
        self._is_new_epoch = True
        self._is_reading = False
        self._said: deque[tuple[float, str, str]] = deque(maxlen=MAX_SAID)
        self.n_holes = 0

    def terminate(self, app_id: str, user_id: str) -> Receipt[int]:
        """See ``Bus.terminate``. Never yields."""
        receipt: Receipt[int] = Receipt()
        seat = self._seat
        counted = 0

        def count(answer: tuple[int, ...] | LinkError) -> None:
            nonlocal counted
            if not isinstance(answer, LinkError):
                (counted,) = answer

        def take(answer: str | LinkError) -> None:
            if isinstance(answer, LinkError):
                receipt.fail(answer)
            else:
                self._said.append((self._clock(), app_id, user_id))
                receipt.fulfil(counted)

        # Behind what this node's clients have just done.
        seat.ask(seat.to.look(seat.epoch, "u", app_id, [user_id]), count)
        seat.ask(seat.to.terminate(seat.epoch, app_id, user_id), take)
        return receipt

    @property
    def is_reading(self) -> bool:
        """Whether entries that were missed are on their way."""
        return self._is_reading

    def export(self) -> list[tuple[float, str, str]]:
        """Who was ended from here lately."""
        return list(self._said)

    def restore(self, said: Sequence[tuple[float, str, str]]) -> None:
        """Say them again where the process before this one would have."""
        self._said.extend(said)

    def begin_epoch(self) -> None:
        """The engine may have forgotten: say again what was ended here lately. Never yields."""
        self._is_new_epoch = True
        since = self._clock() - SAID_AGAIN_S
        for at, app_id, user_id in self._said:
            if at >= since:
                self._seat.ask(self._seat.to.terminate(self._seat.epoch, app_id, user_id), _ignore)

    def hear(self, payload: bytes) -> None:
        """Take a message of kind t on the control topic."""
        id_, previous, whose = payload[1:].decode().split(" ", 2)
        app_id, user_id = whose.split("/", 1)
        if self._is_reading or not self._known:
            return  # the answer that is under way has it, or a later one
        if previous == self._known:
            self._end(id_, app_id, user_id)
        elif _order(id_) > _order(self._known):
            self.read(_nothing)

    def read(self, on_done: Callable[[], None]) -> None:
        """Read what was missed; ``on_done`` is called when there is no more.

        Not called back if there is a fault; do it again then.
        """
        self._is_reading = True
        seat = self._seat

        def take(answer: tuple[str, tuple[Termination, ...]] | LinkError) -> None:
            self._is_reading = False
            if isinstance(answer, LinkError):
                return
            newest, entries = answer
            if self._take(newest, entries):
                self.read(on_done)
            else:
                self._is_new_epoch = False
                on_done()

        seat.ask(seat.to.ended(seat.epoch, self._known), take)

    def _take(self, newest: str, entries: tuple[Termination, ...]) -> bool:
        """Take an answer; whether there is more to be read."""
        if not self._known:
            self._known = newest
            return False
        if self._is_new_epoch and _order(newest) < _order(self._known):
            # Its clock is another one, and all of what it has is of this epoch.
            self._known = "0-0"
            return True
        if entries and entries[0].previous != self._known and not self._is_new_epoch:
            self.n_holes += 1
            for holding in self._holdings.of_kind("u"):
                self._node.end_user(holding.app_id, holding.field)
        for entry in entries:
            self._end(entry.id, entry.app_id, entry.user_id)
        return len(entries) >= STEP

    def _end(self, id_: str, app_id: str, user_id: str) -> None:
        self._known = id_
        self._node.end_user(app_id, user_id)


def _order(id_: str) -> tuple[int, ...]:
    return tuple(int(part) for part in id_.split("-"))


def _ignore(answer: object) -> None:
    """What was said again need not be answered: it was answered the first time."""
    del answer


def _nothing() -> None:
    """Nobody waits."""
