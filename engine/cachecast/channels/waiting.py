"""What waits for one slow socket, counted exactly, and for all of a node together.

Two questions are asked of it. *Who put it there?* What is published or announced to a client counts
against it; what it asked for itself (confirmations, rosters, cached values, pongs) does not, for
then its requests are paced instead: they wait until it has read. *How much memory is it?* All of it
counts, with what keeping a frame costs, and past the node's ceiling whoever has taken nothing for
the longest goes first.

Everything here happens on the way of those who are slow. Whoever keeps up never meets it.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from typing import Final

from cachecast.handover.state import OutboxState

__all__ = ["ITEM_BYTES", "PACE_BYTES", "RESUME_BYTES", "Total", "Waiting"]

#: Bytes of what a client asked for, beyond which it must read before more is answered; and down to
#: which. Enough to keep its socket busy meanwhile, with the 128 KiB that the kernel holds.
PACE_BYTES: Final = 64 * 1024
RESUME_BYTES: Final = 32 * 1024

#: Bytes that keeping a frame costs besides its own: a tuple, a key, a node of the list. Counted for
#: the node, so that its ceiling means memory also where frames are small.
ITEM_BYTES: Final = 200


class Total:
    """What waits on a node.

    Attributes:
        n_bytes: number of bytes that wait for all connections, ``ITEM_BYTES`` for each frame
            included.
    """

    __slots__ = ("n_bytes",)

    def __init__(self) -> None:
        self.n_bytes = 0


class Waiting:
    """What waits for one slow socket; exists only while something does.

    Attributes:
        head: bytes that must leave next and as they are: the rest of a frame that is half sent.
        is_bound: whether a part of ``head`` has left, or TLS was offered it, so that it cannot be
            taken back.
        head_deadline: time when the first cached value in ``head`` expires.
        earliest: time before which no value here expires.
        items: key -> (frame, deadline, whether the client asked for it). A cache channel's key is
            its name, so that a newer value takes the place of the older one; all others have a
            number.
        item_bytes: number of bytes of the frames in ``items``.
        asked_bytes: number of bytes that the client asked for, of ``items`` and ``head``. Of a head
            that is half sent, what was not asked for counts as sent first: in the client's favour,
            by a head.
        is_pacing: whether the client must read before more of what it asks for is answered.
        moved: number of bytes that the socket took.
        n_conflated: number of values that newer ones have replaced.
        seen, since: ``moved`` at the last look that saw it grow, and the time of that look.
    """

    __slots__ = (
        "_head_asked_bytes",
        "_serial",
        "_total",
        "asked_bytes",
        "earliest",
        "head",
        "head_deadline",
        "is_bound",
        "is_pacing",
        "item_bytes",
        "items",
        "moved",
        "n_conflated",
        "seen",
        "since",
    )

    def __init__(self, total: Total) -> None:
        self._total = total
        self._head_asked_bytes = 0
        self._serial = 0
        self.head = b""
        self.is_bound = False
        self.head_deadline = inf
        self.earliest = inf
        self.items: OrderedDict[str | int, tuple[bytes, float, bool]] = OrderedDict()
        self.item_bytes = 0
        self.asked_bytes = 0
        self.is_pacing = False
        self.moved = 0
        self.n_conflated = 0
        self.seen = 0
        self.since: float | None = None

    @property
    def n_bytes(self) -> int:
        """All that waits."""
        return len(self.head) + self.item_bytes

    @property
    def unasked_bytes(self) -> int:
        """What the client did not ask for: what counts against it."""
        return len(self.head) + self.item_bytes - self.asked_bytes

    def begin(self, rest: bytes, deadline: float, *, is_asked: bool) -> None:
        """Take the rest of what a socket has begun to take."""
        self.head = rest
        self.is_bound = True
        self.head_deadline = deadline
        self.earliest = deadline
        self._total.n_bytes += len(rest)
        if is_asked:
            self._head_asked_bytes = len(rest)
            self._ask(len(rest))

    def add(
        self, frame: bytes, key: str | None = None, deadline: float = inf, *, is_asked: bool = False
    ) -> bool:
        """Take a frame; whether it replaced an older value of the same key."""
        replaced = key is not None and self.forget(key)
        if key is None:
            self._serial += 1
        # At the end, not in place: what was said on the channel in between stays before it.
        self.items[self._serial if key is None else key] = (frame, deadline, is_asked)
        self.item_bytes += len(frame)
        self._total.n_bytes += len(frame) + ITEM_BYTES
        self.earliest = min(self.earliest, deadline)
        if is_asked:
            self._ask(len(frame))
        return replaced

    def _ask(self, size: int) -> None:
        self.asked_bytes += size
        self.is_pacing |= self.asked_bytes > PACE_BYTES

    def forget(self, key: str | int) -> bool:
        """Drop a frame; whether there was one."""
        item = self.items.pop(key, None)
        if item is None:
            return False
        size = len(item[0])
        self.item_bytes -= size
        self.asked_bytes -= size * item[2]
        self._total.n_bytes -= size + ITEM_BYTES
        return True

    def forget_unbound(self) -> None:
        """Drop everything that can still be taken back."""
        self._total.n_bytes -= self.item_bytes + ITEM_BYTES * len(self.items)
        self.items.clear()
        self.item_bytes = 0
        if not self.is_bound:
            self._total.n_bytes -= len(self.head)
            self.head = b""
            self.head_deadline = inf
            self._head_asked_bytes = 0
        self.asked_bytes = self._head_asked_bytes

    def forget_all(self) -> None:
        """Drop everything; the connection is gone."""
        self.is_bound = False
        self.forget_unbound()

    def fill_head(self, n_bytes: int) -> None:
        """Join what comes next, up to ``n_bytes`` and the frame that passes them."""
        parts: list[bytes] = []
        size = 0
        while self.items and size < n_bytes:
            _, (frame, deadline, is_asked) = self.items.popitem(last=False)
            parts.append(frame)
            size += len(frame)
            self._head_asked_bytes += len(frame) * is_asked
            self.head_deadline = min(self.head_deadline, deadline)
        self.item_bytes -= size
        self._total.n_bytes -= ITEM_BYTES * len(parts)
        self.head = b"".join(parts)
        self.is_bound = False

    def note_sent(self, size: int) -> None:
        """The socket took so many bytes of the head."""
        self.moved += size
        self._total.n_bytes -= size
        self.head = self.head[size:]
        self.is_bound = True
        if not self.head:
            self.head_deadline = inf
        asked = min(self._head_asked_bytes, len(self.head))
        self.asked_bytes -= self._head_asked_bytes - asked
        self._head_asked_bytes = asked
        if self.asked_bytes <= RESUME_BYTES:
            self.is_pacing = False

    def export(self) -> OutboxState:
        """All of it, in plain values. O(frames waiting)."""
        return OutboxState(
            self.head,
            self.is_bound,
            self.head_deadline,
            self._head_asked_bytes,
            [(key, *item) for key, item in self.items.items()],
            self.is_pacing,
            self.moved - self.seen,
            self.since,
        )

    def restore(self, state: OutboxState) -> None:
        """Take over what waited in another process. O(frames waiting)."""
        self.head, self.is_bound, self.head_deadline = (
            state.head,
            state.is_bound,
            state.head_deadline,
        )
        self._total.n_bytes += len(state.head)
        self._head_asked_bytes = self.asked_bytes = state.head_asked_bytes
        for key, frame, deadline, is_asked in state.items:
            self.add(frame, key if isinstance(key, str) else None, deadline, is_asked=is_asked)
        self.earliest = min(self.earliest, self.head_deadline)
        self.is_pacing = state.is_pacing
        self.moved, self.since = state.moved, state.since

    def purge(self, now: float) -> bool:
        """Drop cached values past their deadline; O(frames waiting).

        Returns:
            Whether all of them may be missing. What has no key has a place among the others.
        """
        expired = [key for key, item in self.items.items() if item[1] <= now]
        for key in expired:
            self.forget(key)
        earliest = min((item[1] for item in self.items.values()), default=inf)
        self.earliest = min(earliest, self.head_deadline)
        return all(isinstance(key, str) for key in expired)
