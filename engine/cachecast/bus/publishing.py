"""Publishing by one seat: a call is numbered, and made until it is known what became of it.

A call that the engine refused because the node must say hello again, or because a grace is on, was
not carried out: it waits and is made when the seat opens. A call whose answer was lost is made
again under its number, which the engine remembers, so it is done once; after a new session nobody
can tell, and its publisher is told so.

What is published while the engine is away fails at once: a publisher can try elsewhere, and would
not be helped by waiting.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from cachecast.bus.answers import Published
from cachecast.bus.calls import MAX_REMEMBERED, Event
from cachecast.bus.faults import (
    BacklogError,
    DownError,
    EpochError,
    FencedError,
    GraceError,
    LinkError,
    MissingFunctionError,
)
from cachecast.bus.receipt import Receipt, join
from cachecast.bus.record import Record, read_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cachecast.bus.primary import PrimarySeat

__all__ = ["Publishing", "UnknownOutcomeError", "all_of"]

#: Seconds that a publisher waits for an answer, at most.
LIMIT_S: Final = 5.0

#: Number of calls that may wait for the seat to open.
MAX_WAITING: Final = 4096

#: Seconds for which a value that was published here is offered to an engine that has lost it, and
#: their most in number and bytes.
RECENT_S: Final = 5.0
MAX_RECENT: Final = 8192
MAX_RECENT_BYTES: Final = 16 * 1024 * 1024

#: Answers after which a call is made again: it was not carried out, and will be.
_NOT_YET: Final = (EpochError, FencedError, GraceError, MissingFunctionError, DownError)


class UnknownOutcomeError(LinkError):
    """Nobody can tell whether the event was published."""

    was_maybe_done = True

    def __init__(self, why: str) -> None:
        super().__init__(f"Whether the event was published is unknown; it may have been. {why}")


class _Publish(Receipt[None]):
    """One call, and the receipt of its publisher.

    Attributes:
        events: events of the call.
        since: time when it was asked for, in the broker's seconds.
        sent: time when it was made last, in the broker's seconds.
        number: number of the call within the session; 0 before it was made.
        is_lost: whether its answer will not come by itself.
        was_lost: whether one of its answers did not: what was not done since may have been before.
    """

    __slots__ = ("events", "is_lost", "number", "sent", "since", "was_lost")

    def __init__(self, events: Sequence[Event], since: float) -> None:
        super().__init__()
        self.events = events
        self.since = self.sent = since
        self.number = 0
        self.is_lost = False
        self.was_lost = False


class Publishing:
    """The publishes of one seat.

    Attributes:
        n_refused: number of calls that failed, for whatever reason.
        n_repeated: number of calls that were made again because their answer was lost.
        on_kept: function called with each value that the engine has taken, its order, and the time
            when it was sent, in the broker's seconds.
    """

    def __init__(self, seat: PrimarySeat, *, now: Callable[[], float]) -> None:
        """Begin with nothing.

        Args:
            seat: the node's seat at the primary, by which it is published.
            now: function that gives the broker's seconds.
        """
        self._seat = seat
        self._now = now
        self._number = 0
        self._unanswered: dict[int, _Publish] = {}
        self._waiting: deque[_Publish] = deque()
        self._refused: list[_Publish] = []
        self._recent: deque[tuple[float, Event, tuple[int, int]]] = deque()
        self._recent_bytes = 0
        self.n_refused = 0
        self.n_repeated = 0
        self.on_kept: Callable[[Event, tuple[int, int], float], None] | None = None

    @property
    def n_unanswered(self) -> int:
        """Calls without an answer."""
        return len(self._unanswered)

    def publish(self, events: Sequence[Event]) -> Receipt[None]:
        """Publish events in one step of the engine. Never yields.

        Faults:
            LinkError: none of them was published; or, if ``was_maybe_done``, they may have been.
        """
        seat = self._seat
        publish = _Publish(events, self._now())
        is_first = not self._waiting and not self._refused
        if seat.is_open and is_first and len(self._unanswered) < MAX_REMEMBERED:
            self._make(publish, publish.since)
        elif not seat.is_open and seat.is_away:
            self._fail(publish, DownError(f"The event was not published. {seat.why_down()}"))
        elif len(self._waiting) >= MAX_WAITING:
            self._fail(publish, BacklogError(MAX_WAITING, "calls"))
        else:
            self._waiting.append(publish)
        return publish

    def _make(self, publish: _Publish, now: float) -> None:
        if not publish.number:
            self._number += 1
            publish.number = self._number
        publish.is_lost = False
        publish.sent = now
        self._unanswered[publish.number] = publish
        seat = self._seat
        call = seat.to.publish(seat.epoch, seat.session, publish.number, publish.events)
        seat.command(call, partial(self._take, publish))

    def _take(self, publish: _Publish, answer: Published | LinkError) -> None:
        if self._unanswered.get(publish.number) is not publish:
            return
        if isinstance(answer, LinkError) and (
            answer.was_maybe_done or (publish.was_lost and isinstance(answer, _NOT_YET))
        ):
            # Under another number it could be done twice.
            publish.is_lost = publish.was_lost = True
            return
        del self._unanswered[publish.number]
        if isinstance(answer, Published):
            if answer.is_unknown:
                self._fail(publish, UnknownOutcomeError("Its number is too long ago."))
            else:
                self._note_kept(publish.events, answer.version, publish.sent)
                publish.fulfil(None)
        elif publish.was_lost:
            self._fail(publish, UnknownOutcomeError(str(answer)))
        elif isinstance(answer, _NOT_YET):
            # Nothing was done. It is made again under another number, before those that came later.
            publish.number = 0
            self._refused.append(publish)
        else:
            self._fail(publish, answer)
        if self._waiting and self._seat.is_open and not self._refused:
            self._make_waiting()

    def _note_kept(self, events: Sequence[Event], version: int, sent: float) -> None:
        for event in events:
            if event.value:
                order = self._seat.epoch, version
                self._recent.append((sent, event, order))
                self._recent_bytes += len(event.payload)
                if self.on_kept is not None:
                    self.on_kept(event, order, sent)
            version += 1
        if len(self._recent) > MAX_RECENT or self._recent_bytes > MAX_RECENT_BYTES:
            self._forget_recent()

    def _forget_recent(self) -> None:
        # What was published just before an outage is what the engine may have lost by it.
        down_since = self._seat.down_since
        before = (self._now() if down_since is None else down_since) - RECENT_S
        while self._recent and (
            self._recent[0][0] < before
            or len(self._recent) > MAX_RECENT
            or self._recent_bytes > MAX_RECENT_BYTES
        ):
            self._recent_bytes -= len(self._recent.popleft()[1].payload)

    def recent(self) -> Iterator[tuple[bytes, Record, float]]:
        """Key, record and remaining seconds of what was published here just now."""
        now = self._now()
        # A copy: some of it is forgotten while the first is on its way.
        for sent, event, order in tuple(self._recent):
            remains = event.lifetime_ms / 1000 - (now - sent)
            if remains > 0:
                yield event.value, _record(event, order), remains

    @property
    def is_idle(self) -> bool:
        """Whether no publisher waits."""
        return not (self._unanswered or self._waiting or self._refused)

    @property
    def number(self) -> int:
        """Number of the last call within the session."""
        return self._number

    def export(self) -> list[tuple[float, bytes, bytes]]:
        """What was published here just now: when it was sent, key, record."""
        self._forget_recent()
        return [
            (sent, event.value, _record(event, order).pack()) for sent, event, order in self._recent
        ]

    def restore(self, number: int, recent: Sequence[tuple[float, bytes, bytes]]) -> None:
        """Go on where another process was, within the same session. Never yields."""
        self._number = number
        for sent, key, packed in recent:
            found = read_record(packed)
            event = Event(
                b"", found.payload, found.exclude, value=key, lifetime_ms=found.lifetime_ms
            )
            self._recent.append((sent, event, found.order))
            self._recent_bytes += len(found.payload)

    def _make_waiting(self) -> None:
        while self._waiting and self._seat.is_open and len(self._unanswered) < MAX_REMEMBERED:
            self._make(self._waiting.popleft(), self._now())

    def _fail(self, publish: _Publish, fault: LinkError) -> None:
        self.n_refused += 1
        publish.fail(fault)

    # --- the steps of the seat

    def begin(self, *, is_new_session: bool, is_new_epoch: bool) -> None:
        """What was lost with an earlier session cannot be asked for again."""
        if is_new_session or is_new_epoch:
            lost = [publish for publish in self._unanswered.values() if publish.is_lost]
            for publish in lost:
                del self._unanswered[publish.number]
                self._fail(publish, UnknownOutcomeError("The engine is another one now."))
            self._number = 0 if is_new_session else self._number

    def resync(self, on_done: Callable[[], None]) -> None:
        """There is nothing to read."""
        on_done()

    def opened(self) -> None:
        """Ask again for what was lost, in its order; then make what waits."""
        for publish in sorted(
            (publish for publish in self._unanswered.values() if publish.is_lost),
            key=lambda publish: publish.number,
        ):
            self.n_repeated += 1
            self._make(publish, self._now())
        self._waiting.extendleft(reversed(self._refused))
        self._refused.clear()
        self._make_waiting()

    def closed(self) -> None:
        """Answers that were on their way come as faults by themselves."""

    def tick(self) -> None:
        """Tell those who have waited too long."""
        before = self._now() - LIMIT_S
        while self._refused and self._refused[0].since <= before:
            self._fail(self._refused.pop(0), DownError(self._late()))
        while self._waiting and self._waiting[0].since <= before:
            self._fail(self._waiting.popleft(), DownError(self._late()))
        for publish in [found for found in self._unanswered.values() if found.since <= before]:
            del self._unanswered[publish.number]
            self._fail(publish, UnknownOutcomeError(f"No answer came within {LIMIT_S:g} s."))
        self._forget_recent()
        if not self._refused:
            self._make_waiting()

    def end(self, fault: LinkError) -> None:
        """Fail all that is under way or waits: the node has left."""
        unanswered, self._unanswered = self._unanswered, {}
        for publish in unanswered.values():
            self._fail(publish, UnknownOutcomeError(str(fault)))
        for publish in (*self._refused, *self._waiting):
            self._fail(publish, fault)
        self._refused.clear()
        self._waiting.clear()

    def _late(self) -> str:
        return f"The event was not published within {LIMIT_S:g} s. {self._seat.why_down()}"


def _record(event: Event, order: tuple[int, int]) -> Record:
    epoch, version = order
    return Record(epoch, version, version, event.lifetime_ms, event.exclude, event.payload)


def _was_maybe_done(part: Receipt[None]) -> bool:
    fault = part.fault
    return fault is None or (isinstance(fault, LinkError) and fault.was_maybe_done)


def all_of(parts: Sequence[Receipt[None]]) -> Receipt[None]:
    """The receipt of a publish to several primaries, which may fail at some of them only."""
    whole: Receipt[None] = Receipt()
    joined = join(parts, lambda: None)

    def settle() -> None:
        fault = joined.fault
        if fault is not None and any(map(_was_maybe_done, parts)):
            fault = UnknownOutcomeError(f"Another engine may have taken some of it. {fault}")
        if fault is None:
            whole.fulfil(None)
        else:
            whole.fail(fault)

    joined.when_done(settle)
    return whole
