"""Channels whose publications arrive here, and the values that are kept of them: one seat's.

**Attached** is a channel that is subscribed to and whose value has been read behind that. What
comes by its topic is delivered in the order of the stream, and only what is newer than what was: a
value that is read again, or comes twice, is none. So every copy here is the newest that anybody
can have been shown or told of, as long as the seat is open.

**Barrier.** A further subscriber of an attached cache channel waits for one PING on the link of the
messages: when the answer is there, whatever was published before the question has been handed over.
One PING serves all who wait. Without it the promise is broken with no fault at all.

**After a gap** all of them are attached anew in the same way: subscribed to, then read.

A copy stays for :data:`STAYS_S` after its last subscriber has left, for whoever comes back.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from typing import TYPE_CHECKING, Final

import structlog

from cachecast.bus.attach import attach
from cachecast.bus.calls import portions
from cachecast.bus.faults import GarbageError, LinkError
from cachecast.bus.receipt import DONE, Receipt
from cachecast.bus.record import NO_VERSION, read_record, read_value
from cachecast.bus.seam import Envelope
from cachecast.protocol.channel_name import parse_channel_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cachecast.bus.contents import Contents
    from cachecast.bus.lateness import Lateness
    from cachecast.bus.primary import PrimarySeat
    from cachecast.bus.record import Record, Version
    from cachecast.bus.resp import Reply
    from cachecast.bus.seam import Node
    from cachecast.protocol.channel_name import ChannelName

__all__ = ["Attachment", "Values"]

#: Seconds for which a channel stays attached without a subscriber.
STAYS_S: Final = 5.0

#: Number of channels without a subscriber that stay; past it those go first that have waited
#: longest.
MAX_IDLE: Final = 20_000

_log = structlog.get_logger("cachecast.bus")


class Attachment:
    """One channel that arrives here.

    Attributes:
        app_id, name: id of the app and name of the channel.
        topic: topic on which the channel is heard.
        n: number of subscriptions that need it, or are about to.
        generation: generation of the seat when the channel was read; it is up to date while that is
            the present one.
        order: version of the newest value that was delivered.
        record, deadline: newest value, and the time from which it does not exist, in the broker's
            seconds.
        waiting: receipts of those who need it to be up to date.
    """

    __slots__ = (
        "app_id", "deadline", "generation", "n", "name", "order", "record", "topic", "waiting",
    )  # fmt: skip

    def __init__(self, app_id: str, name: ChannelName, topic: bytes) -> None:
        self.app_id = app_id
        self.name = name
        self.topic = topic
        self.n = 0
        self.generation = 0
        self.order: Version = NO_VERSION
        self.record: Record | None = None
        self.deadline = 0.0
        self.waiting: list[Receipt[None]] = []


class Values:
    """The attachments of one seat.

    Attributes:
        by_topic: topic -> attached channel.
        n_barriers: number of PINGs that were asked.
        n_gaps: number of values that came behind one that never did.
        n_resyncs: number of times that all of them were read again.
        n_broken: number of publications that could not be read.
    """

    def __init__(
        self,
        seat: PrimarySeat,
        node: Node,
        *,
        contents: Contents,
        lateness: Lateness,
        now: Callable[[], float],
    ) -> None:
        """Begin with none.

        Args:
            seat: the node's seat at the primary where the channels lie.
            node: the node that publications are given to.
            contents: reader of publications.
            lateness: lateness of the seat.
            now: function that gives the broker's seconds.
        """
        self._seat = seat
        self._node = node
        self._contents = contents
        self._lateness = lateness
        self._now = now
        self._generation = 1
        self._idle: OrderedDict[bytes, float] = OrderedDict()
        self._asked: list[tuple[Attachment, Receipt[None]]] | None = None
        self._to_ask: list[tuple[Attachment, Receipt[None]]] = []
        self.by_topic: dict[bytes, Attachment] = {}
        self.n_barriers = 0
        self.n_gaps = 0
        self.n_resyncs = 0
        self.n_broken = 0

    def is_current(self, attachment: Attachment) -> bool:
        """Whether what is kept of it is what the engine has."""
        return attachment.generation == self._generation and self._seat.is_open

    # --- coming and going

    def attach(self, app_id: str, name: ChannelName) -> Receipt[None]:
        """See ``Bus.attach``. Never yields."""
        refusal = self._lateness.refusal()
        if refusal is not None:
            return Receipt.failed(refusal)
        topic = self._seat.to.keys.topic(app_id, name.text)
        attachment = self.by_topic.get(topic)
        is_new = attachment is None
        if attachment is None:
            attachment = self.by_topic[topic] = Attachment(app_id, name, topic)
        elif not attachment.n:
            self._idle.pop(topic, None)
        attachment.n += 1
        if not is_new and not name.is_cache and self.is_current(attachment):
            return DONE
        receipt: Receipt[None] = Receipt()
        if not is_new and self._seat.is_open:
            # Also while it is being read for somebody who came before: that read may be older than
            # what was answered since.
            self._to_ask.append((attachment, receipt))
            self._ask()
        else:
            attachment.waiting.append(receipt)
            if is_new and self._seat.is_open:
                self._read(attachment)
        self._lateness.keep(receipt, lambda: self._give_up(attachment, receipt))
        return receipt

    def detach(self, app_id: str, name: ChannelName) -> None:
        """See ``Bus.detach``. Never yields."""
        self._release(self.by_topic[self._seat.to.keys.topic(app_id, name.text)])

    def _release(self, attachment: Attachment) -> None:
        attachment.n -= 1
        if not attachment.n:
            self._idle[attachment.topic] = self._now()
            if len(self._idle) > MAX_IDLE:
                self._drop(next(iter(self._idle)))

    def _give_up(self, attachment: Attachment, receipt: Receipt[None]) -> None:
        """It has taken too long; who asked is told, and does not detach."""
        if receipt in attachment.waiting:
            attachment.waiting.remove(receipt)
        self._release(attachment)
        receipt.fail(self._lateness.fault())

    def _drop(self, topic: bytes) -> None:
        del self._idle[topic]
        attachment = self.by_topic.pop(topic)
        self._seat.unsubscribe([topic])
        if attachment.name.is_cache:
            self._node.forget(attachment.app_id, attachment.name.text)

    # --- becoming up to date

    def _read(self, attachment: Attachment) -> None:
        """Attach one channel, of an open seat."""
        generation = self._generation
        connection = self._seat.messages
        if connection is None:
            return

        def done(fault: LinkError | None) -> None:
            if generation != self._generation:
                return
            if fault is None:
                self._settle(attachment)
            else:
                self._seat.judge(fault)
                if generation == self._generation and connection.fault is None:
                    self._refuse(attachment, fault)

        if attachment.name.is_cache:
            attach(
                connection,
                self._seat.to,
                self._seat.epoch,
                [(attachment.app_id, attachment.name.text)],
                lambda _, record: self._take_read(attachment, record),
                done,
            )
            return

        def confirmed(reply: Reply) -> None:
            done(reply if isinstance(reply, LinkError) else None)

        try:
            connection.subscribe([attachment.topic], confirmed)
        except LinkError as fault:
            done(fault)

    def _refuse(self, attachment: Attachment, fault: LinkError) -> None:
        """It cannot be attached on a link that works: whoever waits is told, and may come again."""
        if self.by_topic.get(attachment.topic) is not attachment:
            return
        waiting, attachment.waiting = attachment.waiting, []
        for receipt in waiting:
            self._release(attachment)
            receipt.fail(fault)
        if not attachment.n and attachment.topic in self._idle:
            self._drop(attachment.topic)

    def _settle(self, attachment: Attachment) -> None:
        """It is up to date: whoever waited is told in this same step."""
        if self.by_topic.get(attachment.topic) is not attachment:
            return
        attachment.generation = self._generation
        waiting, attachment.waiting = attachment.waiting, []
        for receipt in waiting:
            receipt.fulfil(None)

    def _ask(self) -> None:
        """Ask the barrier, for all who wait; those who come while it is asked wait for the next."""
        connection = self._seat.messages
        if self._asked is not None or not self._to_ask or connection is None:
            return
        asked, self._to_ask = self._to_ask, []
        self._asked = asked
        self.n_barriers += 1

        def take(reply: Reply) -> None:
            if self._asked is asked:
                self._asked = None
            for attachment, receipt in asked:
                if not isinstance(reply, LinkError) and self.is_current(attachment):
                    receipt.fulfil(None)
                elif not receipt.is_done:
                    attachment.waiting.append(receipt)
                    if len(attachment.waiting) == 1 and self._seat.is_open:
                        self._read(attachment)  # what was read for who came before has failed
            self._ask()

        try:
            connection.send((b"PING",), take)
        except LinkError as fault:
            take(fault)

    # --- handing over

    @property
    def channels(self) -> list[tuple[str, str]]:
        """App and name of all attached channels that somebody needs."""
        return [(found.app_id, found.name.text) for found in self.by_topic.values() if found.n]

    def follow(self, channels: Sequence[tuple[str, str]]) -> None:
        """Attach what another process has, before the seat is open. Never yields."""
        for app_id, channel in channels:
            topic = self._seat.to.keys.topic(app_id, channel)
            name = parse_channel_name(channel, len(channel))
            attachment = self.by_topic[topic] = Attachment(app_id, name, topic)
            attachment.n = 1

    def export(self, staying: Mapping[tuple[str, str], int]) -> list[tuple[str, str, int]]:
        """The channels that those need who do not stay, with their number; see ``Giver.export``."""
        found = []
        for one in self.by_topic.values():
            n = one.n - staying.get((one.app_id, one.name.text), 0)
            if n:
                found.append((one.app_id, one.name.text, n))
        return found

    def restore(self, attached: Sequence[tuple[str, str, int]]) -> None:
        """Need what another process needed; all of it is attached here. Never yields."""
        followed = dict(self.by_topic)
        for app_id, channel, n in attached:
            followed.pop(self._seat.to.keys.topic(app_id, channel)).n = n
        for attachment in followed.values():
            attachment.n = 1
            self._release(attachment)

    # --- the steps of the seat

    def begin(self, *, is_new_session: bool, is_new_epoch: bool) -> None:
        """Nothing is up to date until :meth:`resync`."""
        del is_new_session, is_new_epoch
        self._invalidate()

    def closed(self) -> None:
        """The same."""
        self._invalidate()

    def _invalidate(self) -> None:
        self._generation += 1
        self._asked = None
        for attachment, receipt in self._to_ask:
            attachment.waiting.append(receipt)
        self._to_ask.clear()

    def resync(self, on_done: Callable[[], None]) -> None:
        """Subscribe to all of them again, and read them."""
        for topic in list(self._idle):
            self._drop(topic)
        connection = self._seat.messages
        if connection is None:
            return
        self.n_resyncs += bool(self.by_topic)
        generation = self._generation
        values = [found for found in self.by_topic.values() if found.name.is_cache]
        plain = [found for found in self.by_topic.values() if not found.name.is_cache]
        for part in portions(plain):
            self._seat.subscribe([found.topic for found in part])

        def done(fault: LinkError | None) -> None:
            if generation != self._generation:
                return
            if fault is not None:
                _log.warning("values could not be read", engine=self._seat.name, reason=str(fault))
                self._seat.drop(fault)
                return
            for attachment in [*plain, *values]:
                if self.by_topic.get(attachment.topic) is attachment:
                    attachment.generation = generation
            on_done()

        attach(
            connection,
            self._seat.to,
            self._seat.epoch,
            [(found.app_id, found.name.text) for found in values],
            lambda index, record: self._take_read(values[index], record),
            done,
        )

    def opened(self) -> None:
        """Tell those who waited; those who came meanwhile are attached now."""
        for attachment in list(self.by_topic.values()):
            if attachment.generation != self._generation:
                self._read(attachment)
                continue
            # Who came while all was read again may have come behind the read of its channel.
            self._to_ask += [(attachment, receipt) for receipt in attachment.waiting]
            attachment.waiting.clear()
        self._ask()

    def tick(self) -> None:
        """Let go of what nobody needs."""
        before = self._now() - STAYS_S
        while self._idle and next(iter(self._idle.values())) <= before:
            self._drop(next(iter(self._idle)))

    def copies(self) -> Iterator[tuple[Attachment, Record, float]]:
        """What could be put back into an engine that has lost it, with the seconds that remain."""
        now = self._now()
        for attachment in tuple(self.by_topic.values()):  # some may go while it is gone through
            if attachment.record is not None and attachment.deadline > now:
                yield attachment, attachment.record, attachment.deadline - now

    # --- what arrives

    def hear(self, attachment: Attachment, payload: bytes) -> None:
        """Take a message of kind V or E on an attachment's topic. Never yields, never raises."""
        try:
            if payload[:1] == b"V":
                before, record = read_value(payload)
                if record.order <= attachment.order:
                    return
                if attachment.generation == self._generation and before > attachment.order:
                    self.n_gaps += 1
                self._take(attachment, record)
            else:
                record = read_record(payload, 1)
                envelope = self._open(attachment.app_id, attachment.name, record)
                if envelope is not None:
                    self._node.deliver(envelope)
        except GarbageError:
            self.n_broken += 1

    def _take_read(self, attachment: Attachment, record: Record | None) -> None:
        if self.by_topic.get(attachment.topic) is not attachment:
            return
        if record is None:
            if attachment.record is not None:
                # The engine let go of it: of its time, or above a ceiling.
                attachment.record = None
                self._node.forget(attachment.app_id, attachment.name.text)
        elif record.order > attachment.order:
            self._take(attachment, record)

    def _take(self, attachment: Attachment, record: Record) -> None:
        attachment.order = record.order
        attachment.record = record
        envelope = self._open_value(attachment.app_id, attachment.name, record)
        if envelope is not None:
            attachment.deadline = envelope.deadline
            self._node.deliver(envelope)
        else:  # the one before it is not the newest any more
            attachment.deadline = self._seat.clock.deadline(record.deadline_us, self._now())
            self._node.forget(attachment.app_id, attachment.name.text)

    def envelope_of(self, app_id: str, channel: str, record: Record | None) -> Envelope | None:
        """The value that a record holds; None if there is none, or its time is over."""
        name = parse_channel_name(channel, len(channel))
        return None if record is None else self._open_value(app_id, name, record)

    def _open_value(self, app_id: str, name: ChannelName, record: Record) -> Envelope | None:
        clock, now = self._seat.clock, self._now()
        deadline = clock.deadline(record.deadline_us, now)
        if deadline <= now:
            return None
        published_at = now - clock.age_s(record.published_at_us, now)
        return self._open(app_id, name, record, published_at, deadline)

    def _open(
        self,
        app_id: str,
        name: ChannelName,
        record: Record,
        published_at: float | None = None,
        deadline: float = inf,
    ) -> Envelope | None:
        try:
            publication = self._contents.read_publication(app_id, name.text, record)
        except LinkError:
            self.n_broken += 1
            return None
        is_value = published_at is not None
        return Envelope(app_id, name, publication, is_value, published_at, deadline)
