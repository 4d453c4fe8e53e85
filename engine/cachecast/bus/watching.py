"""Users: who of this node's clients is signed in, and whom they watch.

A user who is watched has a topic. To watch is to subscribe to it and to look behind that: news that
come before the look are older than its answer, and those behind it are newer. After a gap it is
done again, and what has changed is told as news would have been.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachecast.bus.calls import portions
from cachecast.bus.receipt import Receipt
from cachecast.bus.seat import is_passing
from cachecast.bus.series import Series

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cachecast.bus.calls import Call
    from cachecast.bus.holdings import Holdings
    from cachecast.bus.lateness import Lateness
    from cachecast.bus.seam import Node
    from cachecast.bus.seat import Seat
    from cachecast.errors import EngineError

__all__ = ["Watching"]

Look = tuple[str, "Sequence[str]"]


class _Watched:
    """A user whom somebody here watches; whether it is online is None until somebody has looked."""

    __slots__ = ("is_online", "n")

    def __init__(self) -> None:
        self.n = 0
        self.is_online: bool | None = None


class _Watch:
    """A watchlist that waits for its first answer."""

    __slots__ = ("app_id", "is_asked", "receipt", "user_ids")

    def __init__(self, app_id: str, user_ids: Sequence[str]) -> None:
        self.app_id = app_id
        self.user_ids = user_ids
        self.is_asked = False
        self.receipt: Receipt[frozenset[str]] = Receipt()


class Watching:
    """The users of one seat."""

    def __init__(self, seat: Seat, node: Node, holdings: Holdings, lateness: Lateness) -> None:
        """Begin with none.

        Args:
            seat: the node's seat at the primary where the users lie.
            node: the node that is told.
            holdings: holdings of the seat.
            lateness: lateness of the seat.
        """
        self._seat = seat
        self._node = node
        self._holdings = holdings
        self._lateness = lateness
        self._watched: dict[tuple[str, str], _Watched] = {}
        self._waiting: dict[_Watch, None] = {}

    def __len__(self) -> int:
        """Users who are watched from here."""
        return len(self._watched)

    # --- signing in

    def sign_in(self, app_id: str, user_id: str) -> Receipt[None]:
        """See ``Bus.sign_in``. Never yields."""
        receipt: Receipt[None] = Receipt()
        refusal = self._lateness.refusal()
        if refusal is not None:
            return Receipt.failed(refusal)
        holding = self._holdings.require("u", app_id, user_id)
        entered = holding.add()
        self._holdings.note(holding)

        def finish() -> None:
            if entered.fault is not None:
                receipt.fail(entered.fault)
            else:
                receipt.fulfil(None)

        def give_up() -> None:
            self.sign_out(app_id, user_id)
            receipt.fail(self._lateness.fault())

        entered.when_done(finish)
        self._lateness.keep(receipt, give_up)
        return receipt

    def sign_out(self, app_id: str, user_id: str) -> None:
        """See ``Bus.sign_out``. Never yields."""
        holding = self._holdings.find("u", app_id, user_id)
        assert holding is not None
        holding.remove()
        self._holdings.note(holding)

    # --- handing over

    @property
    def users(self) -> list[tuple[str, str]]:
        """App and id of those who are watched."""
        return list(self._watched)

    def follow(self, users: Sequence[tuple[str, str]]) -> None:
        """Watch those whom another process watches, before the seat is open. Never yields."""
        for user in users:
            self._watched.setdefault(user, _Watched()).n += 1

    def export(self) -> list[tuple[str, str, int, bool]]:
        """Who is watched, by how many, and whether it is online."""
        return [(*user, held.n, bool(held.is_online)) for user, held in self._watched.items()]

    def restore(self, watched: Sequence[tuple[str, str, int, bool]]) -> None:
        """Watch for those for whom another process did; all of them are followed. Never yields."""
        followed, self._watched = self._watched, {}
        for app_id, user_id, n, is_online in watched:
            mine = self._watched[app_id, user_id] = followed.pop((app_id, user_id))
            mine.n, mine.is_online = n, is_online
        for app_id, user_id in followed:
            self._seat.unsubscribe([self._seat.to.keys.user_topic(app_id, user_id)])

    # --- watching

    def watch(self, app_id: str, user_ids: Sequence[str]) -> Receipt[frozenset[str]]:
        """See ``Bus.watch``; all of the users lie here. Never yields."""
        refusal = self._lateness.refusal()
        if refusal is not None:
            return Receipt.failed(refusal)
        for user_id in user_ids:
            self._watched.setdefault((app_id, user_id), _Watched()).n += 1
        watch = _Watch(app_id, user_ids)
        self._waiting[watch] = None
        if self._seat.is_open:
            self._look(watch)
        self._lateness.keep(watch.receipt, lambda: self._end_watch(watch, self._lateness.fault()))
        return watch.receipt

    def unwatch(self, app_id: str, user_ids: Sequence[str]) -> None:
        """See ``Bus.unwatch``; all of the users lie here. Never yields."""
        gone = []
        for user_id in user_ids:
            watched = self._watched[app_id, user_id]
            watched.n -= 1
            if not watched.n:
                del self._watched[app_id, user_id]
                gone.append(self._seat.to.keys.user_topic(app_id, user_id))
        for topics in portions(gone):
            self._seat.unsubscribe(topics)

    def look_again(self, on_done: Callable[[], None]) -> None:
        """Subscribe to all who are watched and look at them, for news may have been missed.

        Not called back if the link is lost meanwhile; do it again on the next one.
        """
        by_app: dict[str, list[str]] = {}
        for app_id, user_id in self._watched:
            by_app.setdefault(app_id, []).append(user_id)
        looks = [(app_id, part) for app_id, all_ in by_app.items() for part in portions(all_)]
        looked = Series(self._seat.ask, looks, self._ask_for, self._take).done
        looked.when_done(lambda: on_done() if looked.fault is None else None)

    def look_due(self) -> None:
        """Look for those who could not when it was due. Never yields."""
        if self._seat.is_open:
            for watch in [watch for watch in self._waiting if not watch.is_asked]:
                self._look(watch)

    def hear(self, app_id: str, user_id: str, payload: bytes) -> None:
        """Take a message on a user's topic; in order with answers."""
        watched = self._watched.get((app_id, user_id))
        if watched is not None and watched.is_online is not None:
            self._set(watched, app_id, user_id, is_online=payload == b"+")

    def _set(self, watched: _Watched, app_id: str, user_id: str, *, is_online: bool) -> None:
        was_online, watched.is_online = watched.is_online, is_online
        if was_online is not None and was_online != is_online:
            self._node.user_changed(app_id, user_id, "online" if is_online else "offline")

    def _ask_for(self, look: Look) -> Call[tuple[int, ...]]:
        app_id, user_ids = look
        seat = self._seat
        # Again, where it is subscribed to already: cheaper than to know.
        seat.subscribe([seat.to.keys.user_topic(app_id, user_id) for user_id in user_ids])
        return seat.to.look(seat.epoch, "u", app_id, user_ids)

    def _take(self, look: Look, totals: tuple[int, ...]) -> None:
        app_id, user_ids = look
        for user_id, total in zip(user_ids, totals, strict=True):
            watched = self._watched.get((app_id, user_id))
            if watched is not None:
                self._set(watched, app_id, user_id, is_online=total > 0)

    def _look(self, watch: _Watch) -> None:
        watch.is_asked = True
        looks = [(watch.app_id, part) for part in portions(watch.user_ids)]
        looked = Series(self._seat.ask, looks, self._ask_for, self._take).done

        def finish() -> None:
            if looked.fault is not None and is_passing(looked.fault):
                watch.is_asked = False
            else:
                self._end_watch(watch, looked.fault)

        looked.when_done(finish)

    def _end_watch(self, watch: _Watch, fault: EngineError | None = None) -> None:
        self._waiting.pop(watch, None)
        if watch.receipt.is_done:
            return
        if fault is not None:
            self.unwatch(watch.app_id, watch.user_ids)
            watch.receipt.fail(fault)
            return
        watched = self._watched
        online = [u for u in watch.user_ids if watched[watch.app_id, u].is_online]
        watch.receipt.fulfil(frozenset(online))
