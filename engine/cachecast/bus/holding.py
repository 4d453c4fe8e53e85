"""One field of a roster that this node holds: what is wanted, and what the engine has of it.

The idea: who comes and goes only changes what is *wanted*; one call at a time is under way, and
each answer is compared with it. So a field that is left while it is being entered, entered while it
is being left, or lost on the way is not a case of its own. A call names the absolute number that
this node holds, so it may be made again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cachecast.bus.faults import LinkError
from cachecast.bus.receipt import Receipt
from cachecast.bus.seat import is_passing

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.bus.answers import Entered
    from cachecast.bus.calls import Rosters
    from cachecast.bus.seat import Seat
    from cachecast.handover.state import HoldingState

__all__ = ["Holding"]

_NO: Final = Receipt.of(value=False)
_DONE: Final[Receipt[None]] = Receipt.of(None)


class Holding:
    """What this node holds of a field, or is about to.

    Attributes:
        kind, app_id, name, field: place of the field; see ``Functions.enter``.
        wanted: number of connections of this node that stand behind it.
        held: number that the engine has of it under the present session; None if nobody can tell.
        is_known: whether it was entered, in this session or one before, and not left since: then it
            is entered *again*, without limit and without being news.
        is_first: whether the field became held by this node, and nobody has been told yet.
    """

    __slots__ = (
        "_entering", "_info", "_is_under_way", "_leaving", "_limit", "_on_change", "_seat",
        "_serial", "app_id", "field", "held", "is_first", "is_known", "kind", "name", "wanted",
    )  # fmt: skip

    def __init__(
        self,
        seat: Seat,
        kind: Rosters,
        app_id: str,
        field: str,
        *,
        name: str = "",
        info: bytes = b"",
        limit: int = 0,
        on_change: Callable[[Holding, bool | None], None],
    ) -> None:
        """Begin with nothing wanted and nothing held.

        Args:
            seat: the node's seat at the primary where the field lies.
            kind: kind of the roster, see ``Functions.enter``.
            app_id: id of the roster's app.
            field: id of the user, or name of the channel, see ``Functions.enter``.
            name: name of the presence channel, where the field is its member.
            info: what is said of the field, see ``Functions.enter``.
            limit: number of fields of the roster at most; 0 for no limit.
            on_change: function called behind every answer, with whether the field is held by
                somebody now; None if that was not told. Receipts are settled afterwards.
        """
        self.kind: Rosters = kind
        self.app_id = app_id
        self.name = name
        self.field = field
        self.wanted = 0
        self.held: int | None = 0
        self.is_known = False
        self.is_first = False
        self._seat = seat
        self._info = info
        self._limit = limit
        self._on_change = on_change
        self._serial = 0
        self._is_under_way = False
        self._entering: Receipt[None] | None = None
        self._leaving: Receipt[bool] | None = None

    @property
    def target(self) -> int:
        """The number that the engine shall have; of members nobody asks how often they are here."""
        return min(self.wanted, 1) if self.kind == "m" else self.wanted

    @property
    def is_settled(self) -> bool:
        """Whether the engine has what is wanted, and has said so."""
        return self.held == self.target and not self._is_under_way

    # --- what this node wants

    def add(self) -> Receipt[None]:
        """One connection more. Never yields.

        Returns:
            Receipt, fulfilled when the engine has it. A fault means that the connection does not
            stand behind it.
        """
        self.wanted += 1
        if self.wanted == 1:
            entering: Receipt[None] = Receipt()
            self._entering = entering
            self._look_whether_it_stays()
            self.push()
            return entering
        return self._entering or _DONE

    def remove(self) -> Receipt[bool]:
        """One connection less. Never yields.

        Returns:
            Receipt of whether nobody in the cluster holds the field any more. Never fails.
        """
        self.wanted -= 1
        if self.wanted:
            return _NO
        self._entering = None
        leaving = self._leaving = self._leaving or Receipt()
        self.push()
        return leaving

    def take_first(self) -> bool:
        """Whether the field became held by it; True once, for one of those who waited."""
        was_first, self.is_first = self.is_first, False
        return was_first

    # --- handing over

    def export(self) -> HoldingState:
        """The same in plain values; of a call under way nobody can tell what became of it."""
        held = None if self._is_under_way else self.held
        place = self.kind, self.app_id, self.name, self.field
        return (*place, self.wanted, held, self.is_known, self._info)

    def restore(self, state: HoldingState) -> None:
        """Go on with what another process held under the same session. Never yields."""
        *_, self.wanted, self.held, self.is_known, self._info = state

    # --- what the engine has

    def push(self) -> None:
        """Make the next call, if one is due and can be made; numbers wait for :meth:`level`."""
        if self._is_under_way:
            return
        if not self.wanted and self.held == 0:
            self._end_leaving(was_last=False)
        elif self._seat.is_open and not self.wanted:
            self._leave()
        elif self._seat.is_open and not self.held:
            self._enter()

    def level(self) -> None:
        """Make the call that is due, though it be for a number that has changed."""
        if self.wanted and self.held:
            is_due = self.held != self.target and not self._is_under_way
            if is_due and self._seat.is_open:
                self._enter()
        else:
            self.push()

    def renew(self) -> None:
        """The session is another one, which holds nothing yet; answers of the old one say nothing.

        What is wanted is entered again by :meth:`enter_again`, or by :meth:`push`.
        """
        self.held = 0
        self._serial += 1
        self._is_under_way = False
        if not self.wanted:
            self._end_leaving(was_last=False)

    def enter_again(self, on_done: Callable[[bool], None]) -> bool:
        """Enter what was held before, in a grace too; False if there is nothing to be entered.

        Args:
            on_done: function called when there is an answer, with whether the field was entered.
        """
        if not self.wanted or not self.is_known or self.held or self._is_under_way:
            return False
        self._enter(on_done)
        return True

    def _enter(self, on_done: Callable[[bool], None] | None = None) -> None:
        n, serial = self.target, self._begin()
        call = self._seat.to.enter(
            self._seat.epoch,
            self._seat.session,
            self.kind,
            self.app_id,
            self.field,
            name=self.name,
            n=n,
            info=self._info,
            limit=self._limit,
            again=self.is_known,
        )

        def take(answer: Entered | LinkError) -> None:
            if serial == self._serial:
                self._take_entered(n, answer)
            if on_done is not None:
                on_done(not isinstance(answer, LinkError))

        self._seat.ask(call, take)

    def _leave(self) -> None:
        serial = self._begin()
        call = self._seat.to.leave(
            self._seat.epoch, self._seat.session, self.kind, self.app_id, self.field, name=self.name
        )

        def take(answer: tuple[bool, int] | LinkError) -> None:
            if serial == self._serial:
                self._take_left(answer)

        self._seat.ask(call, take)

    def _begin(self) -> int:
        self._serial += 1
        self._is_under_way = True
        return self._serial

    def _take_entered(self, n: int, answer: Entered | LinkError) -> None:
        self._is_under_way = False
        if isinstance(answer, LinkError):
            self._fail(answer)
            return
        self.held = n
        self.is_known = True
        self.is_first = self.is_first or answer.is_first
        self._on_change(self, True)  # noqa: FBT003 - a callback
        self._look_whether_it_stays()
        self.push()

    def _take_left(self, answer: tuple[bool, int] | LinkError) -> None:
        self._is_under_way = False
        if isinstance(answer, LinkError):
            self._fail(answer)
            return
        was_held, total = answer
        was_last = was_held and not total
        self.held = 0
        self.is_known = False
        self._on_change(self, False if was_last else None)
        self._end_leaving(was_last=was_last)
        self.push()

    def _look_whether_it_stays(self) -> None:
        """Tell those who wait, if the engine has what they want: also what was never left."""
        if self.wanted and self.held and not self._is_under_way:
            self._end_leaving(was_last=False)
            entering, self._entering = self._entering, None
            if entering is not None:
                entering.fulfil(None)

    def _end_leaving(self, *, was_last: bool) -> None:
        leaving, self._leaving = self._leaving, None
        if leaving is not None:
            leaving.fulfil(was_last)

    def _fail(self, fault: LinkError) -> None:
        """No answer: it is asked again, unless those who wait must be told that they cannot."""
        if fault.was_maybe_done:
            self.held = None
        entering = self._entering
        if entering is None or self.is_known or is_passing(fault):
            self._on_change(self, None)
            self._look_whether_it_stays()
            return
        self.wanted = 0
        self._entering = None
        self._on_change(self, None)
        entering.fail(fault)
