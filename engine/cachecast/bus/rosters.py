"""Channels that clients of this node are in: occupied ones, and who is in the presence channels.

**Entering** is attaching, holding the channel, holding the member, and having the whole roster. All
of it goes by one link and is answered in order; whoever entered is answered when the last of it is
there, and at that moment the roster is what the cluster agrees on.

**News** of members come by the channel's topic, in order with the pages of the roster. Each is said
absolutely (here, gone), so that applying both in the order of the stream makes up the roster, and
it does not matter that a node's own news come before the answer to its call on Redis and behind it
on Valkey: whoever sees that the roster changes by it tells the node, once.

**After a gap** the roster is paged again. What the pages do not have has gone, what only they have
has come: that is told, as news would have been.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cachecast.bus.faults import CrowdedError, GarbageError, LinkError
from cachecast.bus.receipt import DONE, Receipt, join
from cachecast.bus.record import read_news
from cachecast.bus.seam import Entry, Exit
from cachecast.bus.series import Series
from cachecast.channels.presence import PresenceRoster
from cachecast.errors import SubscriptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from cachecast.bus.answers import Entered
    from cachecast.bus.calls import Call
    from cachecast.bus.calls import Rosters as Kind
    from cachecast.bus.contents import Contents
    from cachecast.bus.holding import Holding
    from cachecast.bus.holdings import Holdings
    from cachecast.bus.lateness import Lateness
    from cachecast.bus.seam import Node
    from cachecast.bus.seat import Seat
    from cachecast.errors import EngineError
    from cachecast.handover.state import HoldingState
    from cachecast.protocol.channel_name import ChannelName
    from cachecast.protocol.session import Member

__all__ = ["Rosters"]

#: Number of rosters that are paged at a time after a gap: a page is 100 us of the engine.
WINDOW: Final = 8

#: Number of subscriptions of a channel at most: what JSON carries exactly.
MAX_COUNT: Final = 2**53

_KINDS: Final[dict[str, Kind]] = {"m": "m", "o": "o", "u": "u"}

_HIDDEN: Final = Entry(is_occupied=False, is_member_new=False)
_NOTHING: Final = Exit(is_vacated=False, is_member_gone=False)


class _Place:
    """A channel that somebody here is in, or about to be.

    Attributes:
        app_id, channel: id of the app and name of the channel.
        n: number of connections that have entered it, or are about to.
        roster: members of a presence channel that somebody here is in.
        whole: receipt that is fulfilled when the roster is whole for the first time.
        seen: members that pages and news had, while the roster is paged.
        round: number of the paging; answers of an earlier one are nothing.
    """

    __slots__ = ("app_id", "channel", "n", "roster", "round", "seen", "whole")

    def __init__(self, app_id: str, channel: str) -> None:
        self.app_id = app_id
        self.channel = channel
        self.n = 0
        self.roster: PresenceRoster | None = None
        self.whole: Receipt[None] = Receipt()
        self.seen: set[str] | None = None
        self.round = 0


class Rosters:
    """The channels of one seat."""

    def __init__(
        self,
        seat: Seat,
        node: Node,
        *,
        holdings: Holdings,
        contents: Contents,
        lateness: Lateness,
        max_members: Callable[[str], int],
        attach: Callable[[str, ChannelName], Receipt[None]],
        detach: Callable[[str, ChannelName], None],
    ) -> None:
        """Begin with none.

        Args:
            seat: the node's seat at the primary where the channels lie.
            node: the node that is told.
            holdings: holdings of the seat.
            contents: reader of members.
            lateness: lateness of the seat.
            max_members: function that gives the limit of an app's presence channels.
            attach: function that attaches a channel, see ``Bus.attach``.
            detach: function that detaches a channel, see ``Bus.detach``.
        """
        self._seat = seat
        self._node = node
        self._holdings = holdings
        self._contents = contents
        self._lateness = lateness
        self._max_members = max_members
        self._attach = attach
        self._detach = detach
        self._places: dict[tuple[str, str], _Place] = {}
        self._to_page: dict[_Place, None] = {}
        self._n_paging = 0
        self._on_paged: Callable[[], None] | None = None

    # --- coming and going

    def enter(self, app_id: str, name: ChannelName, member: Member | None) -> Receipt[Entry]:
        """See ``Bus.enter``. Never yields."""
        refusal = self._lateness.refusal()
        if refusal is not None:
            return Receipt.failed(refusal)
        entering = _Entering(self, app_id, name, member)
        entering.attached = self._attach(app_id, name)
        if not name.is_hidden:
            place = entering.place = self._require_place(app_id, name)
            place.n += 1
            fields = [self._holdings.require("o", app_id, name.text)]
            if place.roster is not None and member is not None:
                fields.append(self._require_member(place, member))
            entering.fields = [(field, self._add(field)) for field in fields]
            self._page_if_new(place)
        entering.wait()
        self._lateness.keep(entering.receipt, lambda: entering.fail(self._lateness.fault()))
        return entering.receipt

    def leave(self, app_id: str, name: ChannelName, member: Member | None) -> Receipt[Exit]:
        """See ``Bus.leave``. Never yields."""
        receipt: Receipt[Exit] = Receipt.of(_NOTHING)
        if not name.is_hidden:
            place = self._places[app_id, name.text]
            found = self._holdings.find("m", app_id, member.key, name.text) if member else None
            gone = Receipt.of(value=False) if found is None else self._remove(found)
            vacated = self._remove(self._holdings.require("o", app_id, name.text))
            self._step_out(place)

            receipt = join((gone, vacated), lambda: Exit(vacated.value, gone.value))
            self._lateness.keep(receipt, lambda: receipt.fulfil(_NOTHING))
        self._detach(app_id, name)
        return receipt

    def _require_place(self, app_id: str, name: ChannelName) -> _Place:
        place = self._places.get((app_id, name.text))
        if place is None:
            place = self._places[app_id, name.text] = _Place(app_id, name.text)
            if name.is_presence:
                place.roster = PresenceRoster()
                self._to_page[place] = None
        return place

    def _require_member(self, place: _Place, member: Member) -> Holding:
        app_id, channel = place.app_id, place.channel

        def changed(is_held: bool) -> None:  # noqa: FBT001 - a callback
            # The place may be another one by now, with another roster.
            at = self._places.get((app_id, channel))
            if at is not None and at.roster is not None:
                self._put(at, member) if is_held else self._discard(at, member.key)

        found = self._holdings.find("m", app_id, member.key, channel)
        return found or self._holdings.require(
            "m",
            app_id,
            member.key,
            name=channel,
            info=self._contents.pack_member(app_id, channel, member),
            limit=self._max_members(app_id),
            on_change=changed,
        )

    def _add(self, field: Holding) -> Receipt[None]:
        receipt = field.add()
        self._holdings.note(field)
        return receipt

    def _remove(self, field: Holding) -> Receipt[bool]:
        receipt = field.remove()
        self._holdings.note(field)
        return receipt

    def _step_out(self, place: _Place) -> None:
        place.n -= 1
        if not place.n:
            del self._places[place.app_id, place.channel]
            place.roster = None
            self._end_paging(place)

    def be_there(self, place: _Place, member: Member) -> None:
        """Have a member who has entered in the roster that it is given. Never yields.

        It may have been announced gone between entering and now: with the session of a node that
        stood still longer than its lease, which enters all its members again by itself.
        """
        if place.roster is not None and member.key not in place.roster:
            self._put(place, member)

    def undo(self, entering: _Entering) -> None:
        """Take back what a connection did that could not enter. Never yields."""
        for field, part in reversed(entering.fields):
            if part.fault is None:
                self._remove(field)
        if entering.place is not None:
            self._step_out(entering.place)
        attached = entering.attached

        def detach() -> None:
            if attached.fault is None:
                self._detach(entering.app_id, entering.name)

        attached.when_done(detach)

    def fault_of(self, entering: _Entering, fault: EngineError) -> EngineError:
        """What a client is told of a fault; in the words of a node that is alone."""
        if not isinstance(fault, CrowdedError):
            return fault
        limit = self._max_members(entering.app_id)
        return SubscriptionError(
            f"The presence channel has its maximum of {limit} members",
            channel=entering.name.text,
            kind="LimitReached",
            status=4100,
        )

    # --- handing over

    @property
    def is_paging(self) -> bool:
        """Whether a roster is not whole, or may not be."""
        return bool(self._n_paging or self._to_page)

    def export(self) -> list[tuple[str, str, int]]:
        """The channels, with the number of connections in each; rosters are their hubs'."""
        return [(place.app_id, place.channel, place.n) for place in self._places.values()]

    def restore(
        self,
        places: Sequence[tuple[str, str, int]],
        holdings: Sequence[HoldingState],
        app_ids: Container[str],
        roster_of: Callable[[str, str], PresenceRoster | None],
    ) -> None:
        """Go on with what another process had under the same session; nobody is told.

        Args:
            places: channels that somebody is in, with their numbers of connections.
            holdings: what is held, of users too.
            app_ids: ids of the apps that are served here; what is held for others is left.
            roster_of: function that gives the whole roster of an app's presence channel.
        """
        for app_id, channel, n in places:
            place = self._places[app_id, channel] = _Place(app_id, channel)
            place.n = n
            place.roster = roster_of(app_id, channel)
            place.whole.fulfil(None)
        for state in holdings:
            kind, app_id, name, field, *_, info = state
            if app_id not in app_ids:
                holding = self._holdings.require(_KINDS[kind], app_id, field, name=name)
                holding.restore(state)
                holding.wanted = 0
            elif kind == "m":
                member = self._contents.read_member(app_id, name, field, info)
                holding = self._require_member(_Place(app_id, name), member)
                holding.restore(state)
            else:
                holding = self._holdings.require(_KINDS[kind], app_id, field)
                holding.restore(state)
            self._holdings.note(holding)

    # --- news

    def hear(self, app_id: str, channel: str, payload: bytes) -> None:
        """Take a message of kind + - or # on a channel's topic; in order with answers."""
        if payload[:1] == b"#":
            count = int(payload[1:])
            if not 0 <= count <= MAX_COUNT:
                raise GarbageError("A topic of ours carries what is no count.")
            self._node.count_changed(app_id, channel, count)
            return
        place = self._places.get((app_id, channel))
        if place is None or place.roster is None:
            return
        has_come, key, text = read_news(payload)
        if not has_come:
            self._discard(place, key)
        elif key not in place.roster:
            self._put(place, self._contents.read_member(app_id, channel, key, text))
        elif place.seen is not None:
            place.seen.add(key)

    def _put(self, place: _Place, member: Member) -> None:
        if place.seen is not None:
            place.seen.add(member.key)
        assert place.roster is not None
        # Before it is whole nobody here has been given it, and nobody is told of changes.
        if place.roster.put(member) and place.whole.is_done:
            self._node.member_changed(place.app_id, place.channel, "member_added", member)

    def _discard(self, place: _Place, key: str) -> None:
        if place.seen is not None:
            place.seen.discard(key)
        assert place.roster is not None
        member = place.roster.discard(key)
        if member is not None and place.whole.is_done:
            self._node.member_changed(place.app_id, place.channel, "member_removed", member)

    # --- pages

    def page_again(self, on_done: Callable[[], None]) -> None:
        """Page all rosters, for news may have been missed; ``on_done`` is called behind the last.

        If the link is lost meanwhile it is not called; do it again on the next one.
        """
        self._on_paged = on_done
        self._n_paging = 0
        for place in self._places.values():
            place.round += 1
            place.seen = None
            if place.roster is not None:
                self._to_page[place] = None
        self._page_next()

    def page_due(self) -> None:
        """Page what could not be paged when it was due. Never yields."""
        if self._seat.is_open or self._on_paged is not None:
            self._page_next()

    def stop_paging(self) -> None:
        """The link or the session is another one, and :meth:`page_again` will be called again."""
        self._on_paged = None

    def enter_ghosts(self, wants: Callable[[str], bool]) -> None:
        """Enter what others were known to hold, in a grace: see ``Functions.ghost``. Never yields.

        Args:
            wants: function that tells whether an app has webhooks: nobody else needs it, for every
                node finds out what has gone when it pages its rosters again.
        """
        seat, session = self._seat, self._seat.to.ghost(self._seat.epoch)
        members = [
            (place, member)
            for place in self._places.values()
            if place.roster is not None and place.whole.is_done and wants(place.app_id)
            for member in place.roster.members
        ]

        def make(item: tuple[_Place, Member]) -> Call[Entered]:
            place, member = item
            text = self._contents.pack_member(place.app_id, place.channel, member)
            return seat.to.enter(
                seat.epoch, session, "m", place.app_id, member.key,
                name=place.channel, info=text, again=True,
            )  # fmt: skip

        # What is not done when the grace is over comes too late, and changes nothing.
        Series(seat.ask, (item for item in members if self._is_others(*item)), make, _ignore)

    def _is_others(self, place: _Place, member: Member) -> bool:
        return self._holdings.find("m", place.app_id, member.key, place.channel) is None

    def _page_if_new(self, place: _Place) -> None:
        """Page a new roster at once: behind the call that enters it, in the same write."""
        if place in self._to_page and self._seat.is_open:
            self._begin_page(place)

    def _page_next(self) -> None:
        for place in list(self._to_page)[: max(0, WINDOW - self._n_paging)]:
            self._begin_page(place)
        if not self._n_paging and self._on_paged is not None:
            done, self._on_paged = self._on_paged, None
            done()

    def _begin_page(self, place: _Place) -> None:
        del self._to_page[place]
        self._n_paging += 1
        place.round += 1
        place.seen = set()
        self._page(place, place.round, "0")

    def _page(self, place: _Place, round_: int, cursor: str) -> None:
        def take(answer: tuple[str, dict[str, tuple[int, bytes]]] | LinkError) -> None:
            if round_ != place.round:
                return
            if isinstance(answer, LinkError):
                self._end_paging(place)
                self._to_page[place] = None
                return
            self._take_page(place, answer[1])
            if answer[0] == "0":
                self._take_last(place)
            else:
                self._page(place, round_, answer[0])

        seat = self._seat
        call = seat.to.page(seat.epoch, "m", place.app_id, place.channel, cursor)
        seat.ask(call, take)

    def _take_page(self, place: _Place, fields: dict[str, tuple[int, bytes]]) -> None:
        assert place.roster is not None
        assert place.seen is not None
        for key, (_, text) in fields.items():
            if key in place.roster:
                place.seen.add(key)
            else:
                member = self._contents.read_member(place.app_id, place.channel, key, text)
                self._put(place, member)

    def _take_last(self, place: _Place) -> None:
        assert place.roster is not None
        assert place.seen is not None
        for key in [key for key in place.roster.user_ids if key not in place.seen]:
            self._discard(place, key)
        self._end_paging(place)
        place.whole.fulfil(None)
        self._page_next()

    def _end_paging(self, place: _Place) -> None:
        self._to_page.pop(place, None)
        if place.seen is not None:
            place.seen = None
            place.round += 1
            self._n_paging -= 1


class _Entering:
    """One connection that enters: what it waits for.

    Attributes:
        app_id, name: id of the app and name of the channel.
        member: user whom the connection brings.
        place: place of the channel here, unless it is hidden.
        fields: holdings for the connection, with their answers.
        attached: receipt of attaching.
        receipt: receipt that the connection waits for.
    """

    def __init__(
        self, rosters: Rosters, app_id: str, name: ChannelName, member: Member | None
    ) -> None:
        self._rosters = rosters
        self._n_open = 0
        self.app_id = app_id
        self.name = name
        self.member = member
        self.place: _Place | None = None
        self.fields: list[tuple[Holding, Receipt[None]]] = []
        self.attached: Receipt[None] = DONE
        self.receipt: Receipt[Entry] = Receipt()

    def wait(self) -> None:
        """Begin to wait, for all of it."""
        parts = [self.attached, *(part for _, part in self.fields)]
        if self.place is not None and self.place.roster is not None:
            parts.append(self.place.whole)
        self._n_open = len(parts)
        for part in parts:
            part.when_done(self._take_part)

    def fail(self, fault: EngineError) -> None:
        """Undo it, and say why. Never yields."""
        self._rosters.undo(self)
        self.receipt.fail(self._rosters.fault_of(self, fault))

    def _take_part(self) -> None:
        self._n_open -= 1
        if self._n_open or self.receipt.is_done:
            return
        for part in (self.attached, *(part for _, part in self.fields)):
            if part.fault is not None:
                self.fail(part.fault)
                return
        if self.place is None:
            self.receipt.fulfil(_HIDDEN)
            return
        if self.member is not None:
            self._rosters.be_there(self.place, self.member)
        is_occupied, *is_new = (field.take_first() for field, _ in self.fields)
        self.receipt.fulfil(Entry(is_occupied, any(is_new), self.place.roster))


def _ignore(item: object, answer: object) -> None:
    """What a ghost is answered: there is nothing that could be done."""
    del item, answer
