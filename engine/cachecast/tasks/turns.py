"""Who may send a webhook now: a bounded number of open requests, shared out among the apps.

The idea: a receiver that answers holds its turn for milliseconds, one that is silent for the whole
of a try. First come, first served would leave all turns to the silent ones. So

- an app has a fifth of the turns at most, and the apps that wait get theirs in rotation;
- receivers that answered promptly at their last try go before those of which nothing is known, and
  these before the slow;
- the slow have half of the turns at most, and a quarter is kept for the prompt; so for all apps
  together and within each.

A receiver that dies costs others one try for each of the turns it had. After a second of silence it
waits with its like, and whoever answers finds room beside them. Looking up a name takes a thread
that nobody can stop: it holds the turn that began it until it comes back, however long the request
has been given up.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from contextlib import asynccontextmanager
from enum import IntEnum
from math import ceil
from typing import TYPE_CHECKING, Final, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Standing", "Turn", "Turns"]

#: Number of requests of the whole node that may be open at once, and so of its sockets to
#: receivers.
MAX_REQUESTS: Final = 100

#: Number of requests of one app that may be open at once.
MAX_REQUESTS_PER_APP: Final = 20

#: Seconds of holding its turn after which a receiver is slow.
SLOW_S: Final = 1.0


class Standing(IntEnum):
    """What is known of a receiver from its last try; the lower goes first."""

    PROMPT = 0
    NEW = 1
    SLOW = 2


class _Receiver(Protocol):
    """What asks for turns.

    Attributes:
        app_id: id of the app that it belongs to.
        standing: what its last try showed; noted here, after each try.
        trying_since: turn -> time when its request, which is open, began, in seconds of Trio's
            clock; oldest first; kept here too.
    """

    app_id: str
    standing: Standing
    trying_since: OrderedDict[Turn, float]


class Turn:
    """The right to one request; over when the request and every look-up that it began are.

    It is also what ``trio.to_thread`` takes as ``limiter``: the thread holds the turn too.
    """

    __slots__ = ("_event", "_n_holders", "_turns", "queued_as", "receiver")

    def __init__(self, turns: Turns, receiver: _Receiver) -> None:
        self.receiver = receiver
        self.queued_as = receiver.standing
        self._turns = turns
        self._event = trio.Event()
        self._n_holders = 0

    @property
    def is_given(self) -> bool:
        """Whether it has come."""
        return self._n_holders > 0

    def give(self) -> None:
        """It has come."""
        self._n_holders = 1
        self._event.set()

    async def wait(self) -> None:
        """Wait for it to come."""
        await self._event.wait()

    async def acquire_on_behalf_of(self, _borrower: object) -> None:
        """Hold it in a thread too."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._n_holders += 1

    def release_on_behalf_of(self, _borrower: object) -> None:
        """Let go; who lets go last gives it back."""
        self._n_holders -= 1
        if not self._n_holders:
            self._turns.take_back(self)


class _Share:
    """How many turns are held, of the node's or of an app's."""

    __slots__ = ("_held", "_most")

    def __init__(self, most: int) -> None:
        self._held = [0] * len(Standing)
        # With those of a worse standing: all of the turns, three quarters, half.
        self._most = [ceil(most * (4 - standing) / 4) for standing in Standing]

    def has_room(self, standing: Standing) -> bool:
        return all(sum(self._held[at:]) < self._most[at] for at in range(standing + 1))

    def count(self, standing: Standing, n: int) -> bool:
        """Note that one more or less is held; whether any is."""
        self._held[standing] += n
        return any(self._held)


class Turns:
    """All turns of a node, and who waits for one. Who calls decides how many wait."""

    def __init__(
        self, max_open: int = MAX_REQUESTS, max_per_app: int = MAX_REQUESTS_PER_APP
    ) -> None:
        self._max_per_app = max_per_app
        self._all = _Share(max_open)
        self._of_app: dict[str, _Share] = {}
        # By standing: app -> its requests in order; the app whose turn is next comes first.
        self._waiting: tuple[OrderedDict[str, deque[Turn]], ...] = tuple(
            OrderedDict() for _ in Standing
        )

    @asynccontextmanager
    async def hold(self, receiver: _Receiver) -> AsyncIterator[Turn]:
        """Wait for a turn and hold it; afterwards the receiver's standing is known."""
        turn = Turn(self, receiver)
        self._queue(turn, trio.current_time())
        self._serve()
        try:
            await turn.wait()
        except trio.Cancelled:
            if turn.is_given:
                turn.release_on_behalf_of(None)
            else:
                self._forget(turn)
            raise
        began = receiver.trying_since[turn]
        try:
            yield turn
            is_slow = trio.current_time() - began >= SLOW_S
            receiver.standing = Standing.SLOW if is_slow else Standing.PROMPT
        finally:
            turn.release_on_behalf_of(None)

    def take_back(self, turn: Turn) -> None:
        """A turn is over: the next may have it."""
        app_id = turn.receiver.app_id
        del turn.receiver.trying_since[turn]
        self._all.count(turn.queued_as, -1)
        if not self._of_app[app_id].count(turn.queued_as, -1):
            del self._of_app[app_id]
        self._serve()

    def _queue(self, turn: Turn, now: float) -> None:
        turn.queued_as = _standing(turn.receiver, now)
        ring = self._waiting[turn.queued_as]
        ring.setdefault(turn.receiver.app_id, deque()).append(turn)

    def _forget(self, turn: Turn) -> None:
        ring, app_id = self._waiting[turn.queued_as], turn.receiver.app_id
        ring[app_id].remove(turn)
        if not ring[app_id]:
            del ring[app_id]

    def _serve(self) -> None:
        now = trio.current_time()
        while (turn := self._next(now)) is not None:
            app_id = turn.receiver.app_id
            turn.receiver.trying_since[turn] = now
            self._all.count(turn.queued_as, 1)
            self._of_app.setdefault(app_id, _Share(self._max_per_app)).count(turn.queued_as, 1)
            turn.give()

    def _next(self, now: float) -> Turn | None:
        """Take out who is next; who has another standing by now is sorted in anew."""
        rings = iter(Standing)
        standing = next(rings, None)
        while standing is not None:
            app_id = self._find_app(standing)
            if app_id is None:
                standing = next(rings, None)
                continue
            ring = self._waiting[standing]
            turn = ring[app_id].popleft()
            if ring[app_id]:
                ring.move_to_end(app_id)
            else:
                del ring[app_id]
            if _standing(turn.receiver, now) is standing:
                return turn
            self._queue(turn, now)
            rings = iter(Standing)
            standing = next(rings)
        return None

    def _find_app(self, standing: Standing) -> str | None:
        """The app whose turn is next. O(1): no more than ten have all that they may have."""
        if self._all.has_room(standing):
            for app_id in self._waiting[standing]:
                share = self._of_app.get(app_id)
                if share is None or share.has_room(standing):
                    return app_id
        return None


def _standing(receiver: _Receiver, now: float) -> Standing:
    """What is known of a receiver: one that has kept silent since a second is slow already."""
    for began in receiver.trying_since.values():
        if now - began >= SLOW_S:
            return Standing.SLOW
        break
    return receiver.standing
