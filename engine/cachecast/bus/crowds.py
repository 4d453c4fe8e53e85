"""Channels on which some node is behind: publishers everywhere wait for it, as for their own.

A node says it on the control topic, at once when it begins and within a quarter of a second when it
ends, and again every second while it lasts. What was not said again for three seconds is over: the
node that said so has died, or is cut off and delivers nothing anyway. While this node is cut off
itself nobody's word counts. Whoever waits is told when it is over.

    b+ SESSION APP/CHANNEL      it is behind
    b- SESSION APP/CHANNEL      it is no more
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cachecast.bus.seam import Node
    from cachecast.bus.seat import Seat

__all__ = ["Crowds"]

#: Seconds between two times that a node says that a channel is crowded, and for which it is
#: believed.
SAY_EVERY_S: Final = 1.0
BELIEVED_S: Final = 3.0

#: Number of channels that a node says, or believes, to be crowded; beyond it publishers do not
#: wait.
MAX_CROWDS: Final = 10_000

#: Number of signals at one tick.
SIGNALS_PER_TICK: Final = 500

Channel = tuple[str, str]


class Crowds:
    """The crowded channels of one seat.

    Attributes:
        n_dropped: number of signals that were too many.
    """

    def __init__(self, seat: Seat, node: Node, clock: Callable[[], float]) -> None:
        """Begin with none.

        Args:
            seat: the node's seat at the primary where the channels lie.
            node: the node that is told when a crowd is over.
            clock: function that gives the broker's seconds.
        """
        self._seat = seat
        self._node = node
        self._clock = clock
        # Here: when it is to be said next; the oldest first.
        self._mine: dict[Channel, float] = {}
        self._over: dict[Channel, None] = {}
        # Elsewhere: until when each node's word is believed.
        self._theirs: dict[Channel, dict[str, float]] = {}
        self.n_dropped = 0

    def is_crowded(self, app_id: str, channel: str) -> bool:
        """See ``Bus.is_crowded``. O(1)."""
        return bool(self._theirs) and (app_id, channel) in self._theirs

    def note(self, app_id: str, channel: str, *, is_crowded: bool) -> None:
        """See ``Bus.note_crowded``. Never yields."""
        where = app_id, channel
        if not is_crowded:
            if self._mine.pop(where, None) is not None:
                self._over[where] = None
        elif where in self._over:
            del self._over[where]
            self._mine[where] = self._clock() + SAY_EVERY_S
        elif where not in self._mine:
            if len(self._mine) >= MAX_CROWDS:
                self.n_dropped += 1
                return
            self._say(where, "+")

    def tick(self) -> None:
        """Say what is due, and forget what is over. Never yields."""
        for where in list(self._over)[:SIGNALS_PER_TICK]:
            del self._over[where]
            self._signal(where, "-")
        now = self._clock()
        for where in [where for where, due in self._mine.items() if due <= now][:SIGNALS_PER_TICK]:
            del self._mine[where]
            self._say(where, "+")
        for where in [w for w, said in self._theirs.items() if max(said.values()) <= now]:
            self._ease(where)

    def export(self) -> list[Channel]:
        """What this node has called crowded and has not taken back."""
        return [*self._mine, *self._over]

    def restore(self, crowded: Iterable[Channel]) -> None:
        """Take back at the next tick what another process called so: all of it is delivered."""
        self._over.update(dict.fromkeys(crowded))

    def close(self) -> None:
        """The seat is closed: what others say is not heard. Never yields."""
        for where in list(self._theirs):
            self._ease(where)

    def hear(self, payload: bytes) -> None:
        """Take a message of kind b on the control topic."""
        session, _, whose = payload[3:].decode().partition(" ")
        app_id, _, channel = whose.partition("/")
        if session == self._seat.session:
            return
        where = app_id, channel
        if payload[1:2] == b"+":
            if where not in self._theirs and len(self._theirs) >= MAX_CROWDS:
                self.n_dropped += 1
                return
            self._theirs.setdefault(where, {})[session] = self._clock() + BELIEVED_S
            return
        said = self._theirs.get(where)
        if said is not None:
            said.pop(session, None)
            if not said:
                self._ease(where)

    def _ease(self, where: Channel) -> None:
        del self._theirs[where]
        self._node.crowd_eased(*where)

    def _say(self, where: Channel, sign: str) -> None:
        self._mine[where] = self._clock() + SAY_EVERY_S
        self._signal(where, sign)

    def _signal(self, where: Channel, sign: str) -> None:
        text = f"{sign} {self._seat.session} {where[0]}/{where[1]}"
        self._seat.command(self._seat.to.signal(text.encode()), _ignore)


def _ignore(answer: object) -> None:
    """It will be said again."""
    del answer
