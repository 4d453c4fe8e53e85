"""All that a node holds at one primary: members, occupied channels, users who are signed in.

Numbers that change are said four times a second; what begins or ends is said at once. After a new
session everything is said again, a few hundred calls at a time, so that the link's bounds and the
engine's other clients are left alone.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from cachecast.bus.holding import Holding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cachecast.bus.calls import Rosters
    from cachecast.bus.seat import Seat
    from cachecast.handover.state import HoldingState

__all__ = ["Holdings"]

#: Number of calls at one tick: 13 us of the engine each, so a tenth of its time at four ticks a
#: second.
CALLS_PER_TICK: Final = 2_000

#: Number of fields that are entered again at a time.
WINDOW: Final = 500

Key = tuple[str, str, str, str]


class Holdings:
    """The fields of one seat."""

    def __init__(self, seat: Seat) -> None:
        """Begin with none.

        Args:
            seat: the node's seat at the primary where the fields lie.
        """
        self._seat = seat
        self._all: dict[Key, Holding] = {}
        self._unsettled: dict[Holding, None] = {}
        self._again: deque[Holding] = deque()
        self._round = 0
        self._on_entered: Callable[[], object] | None = None

    def __len__(self) -> int:
        """Fields that are held, or about to be."""
        return len(self._all)

    @property
    def n_unsettled(self) -> int:
        """Fields of which the engine has not said that it has what is wanted."""
        return len(self._unsettled)

    @property
    def n_again(self) -> int:
        """Fields that wait to be entered again."""
        return len(self._again)

    def find(self, kind: Rosters, app_id: str, field: str, name: str = "") -> Holding | None:
        """A field; None if nobody here has to do with it."""
        return self._all.get((kind, app_id, name, field))

    def require(
        self,
        kind: Rosters,
        app_id: str,
        field: str,
        *,
        name: str = "",
        info: bytes = b"",
        limit: int = 0,
        on_change: Callable[[bool], None] | None = None,
    ) -> Holding:
        """A field, made if there is none.

        Args:
            kind: kind of the roster, see ``Functions.enter``.
            app_id: id of the roster's app.
            field: id of the user, or name of the channel, see ``Functions.enter``.
            name: name of the presence channel, where the field is its member.
            info: what is said of the field, see ``Functions.enter``.
            limit: number of fields of the roster at most; 0 for no limit.
            on_change: function called when the engine says that the field is held, or that nobody
                holds it.
        """
        key = (kind, app_id, name, field)
        found = self._all.get(key)
        if found is None:

            def changed(holding: Holding, is_held: bool | None) -> None:  # noqa: FBT001
                if is_held is not None and on_change is not None:
                    on_change(is_held)
                self.note(holding)

            found = self._all[key] = Holding(
                self._seat,
                kind,
                app_id,
                field,
                name=name,
                info=info,
                limit=limit,
                on_change=changed,
            )
        return found

    def note(self, holding: Holding) -> None:
        """Look at what is wanted of a field, after it has changed. Never yields."""
        if not holding.is_settled:
            self._unsettled[holding] = None
            return
        self._unsettled.pop(holding, None)
        if not holding.wanted:
            key = (holding.kind, holding.app_id, holding.name, holding.field)
            self._all.pop(key, None)

    def of_kind(self, kind: Rosters) -> Iterator[Holding]:
        """The fields of a kind that are wanted; O(all)."""
        return (held for held in list(self._all.values()) if held.kind == kind and held.wanted)

    def export(self) -> list[HoldingState]:
        """All of them in plain values."""
        return [held.export() for held in self._all.values()]

    def level(self, n: int = CALLS_PER_TICK) -> None:
        """Tell the engine of what has changed, of at most ``n`` fields. Never yields."""
        for holding in list(self._unsettled)[:n]:
            # To the end: those for whom there was no room today come first tomorrow.
            del self._unsettled[holding]
            self._unsettled[holding] = None
            holding.level()
            self.note(holding)

    def renew(self) -> None:
        """The session is a new one: enter again what was held, in a grace too. Never yields."""
        for holding in list(self._all.values()):
            holding.renew()
            self.note(holding)
        self.enter_again()

    def enter_again(self) -> None:
        """Go on with it on a new connection. Never yields."""
        self._again = deque(self._unsettled)
        self._round += 1
        self._on_entered = None
        for _ in range(WINDOW):
            self._next_again(self._round)

    def when_entered(self, action: Callable[[], object]) -> None:
        """Have something called when all that is entered again has been asked for.

        Not called if the link is lost before. Never yields.
        """
        if self._again:
            self._on_entered = action
        else:
            action()

    def _next_again(self, round_: int) -> None:
        def done(was_entered: bool) -> None:  # noqa: FBT001 - a callback
            if was_entered:
                self._next_again(round_)

        while self._again and round_ == self._round:
            if self._again.popleft().enter_again(done):
                break
        if not self._again and self._on_entered is not None:
            action, self._on_entered = self._on_entered, None
            action()
