"""One occupied channel on this node: its subscriptions, and the publications that wait for them.

The recipients of a publication are fixed when it is queued, in the same step that writes the
cache, so nobody gets it twice or misses it. Fixing costs nothing: :class:`Recipients` is built
when it is first needed after a change of membership and shared by every publication until the
next one. A subscription that ends in between has its outbox swapped for one that discards.

Publications that wait when a channel's turn comes leave joined, in one ``send`` a subscriber. When
the node is idle nothing is held back; under load batches grow by themselves. Only frames are
joined, never messages: pusher-js needs one JSON text a message.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Final

from cachecast.channels.outbox import DISCARD, Outbox
from cachecast.channels.presence import PresenceRoster

if TYPE_CHECKING:
    from cachecast.channels.connection import Connection
    from cachecast.metrics import AppCounters
    from cachecast.protocol.channel_name import ChannelName
    from cachecast.protocol.session import Member
    from cachecast.protocol.wire import Encoded, Wire

__all__ = ["Channel", "Recipients", "Subscription"]

#: Bytes of frames that are joined for one ``send``. Twice as much would deliver more in a second,
#: but the call is all copying by then, and small channels wait for it.
JOIN_BYTES: Final = 32 * 1024

#: Bytes whose copying costs about as much as a call of ``send`` does without them.
BYTES_PER_CALL: Final = 8 * 1024

#: Bytes whose compressing costs about as much as a call of ``send``.
PACKED_BYTES_PER_CALL: Final = 2 * 1024

#: Bytes that one recipient takes in a list of them.
POINTER_BYTES: Final = 8


class Subscription:
    """The edge between a connection and a channel.

    Attributes:
        outbox: outbox of the connection, until the subscription ends.
        member: the user that it stands for on a presence channel; else None.
    """

    __slots__ = ("channel", "connection", "member", "outbox")

    #: Whether it has joined, see :class:`cachecast.protocol.session.Subscribed`; always so here.
    is_joined: Final = True

    def __init__(self, connection: Connection, channel: Channel, member: Member | None) -> None:
        self.connection = connection
        self.channel = channel
        self.member = member
        self.outbox: Outbox = connection.outbox

    @property
    def name(self) -> ChannelName:
        """The channel's name."""
        return self.channel.name


class Recipients:
    """Who was subscribed at one moment, by wire.

    Attributes:
        by_wire: wire -> the subscriptions of those who speak it; mostly there is one wire.
        unbooked_bytes: bytes that the lists take, until the first publication that waits with them
            is charged for it: where members come and go, each one holds lists of its own.
    """

    __slots__ = ("by_wire", "unbooked_bytes")

    def __init__(self, subscriptions: dict[Connection, Subscription]) -> None:
        edges = list(subscriptions.values())
        wires = dict.fromkeys([connection.wire for connection in subscriptions])
        self.by_wire: dict[Wire, list[Subscription]] = {
            wire: edges if len(wires) == 1 else [e for e in edges if e.connection.wire is wire]
            for wire in wires
        }
        self.unbooked_bytes = POINTER_BYTES * len(subscriptions)

    def book(self) -> int:
        """The bytes that nobody has been charged for yet."""
        unbooked, self.unbooked_bytes = self.unbooked_bytes, 0
        return unbooked


class _Queued:
    """A publication that waits for its fan-out.

    Attributes:
        size: number of bytes of its frames, one for each wire of its recipients; before they are
            compressed, for that is done when its turn has come, and is not when a newer value comes
            first.
        booked: number of bytes it is charged for.
        at: time when it was queued, in the broker's seconds.
    """

    __slots__ = (
        "at",
        "booked",
        "deadline",
        "encoded",
        "exclude",
        "is_announcement",
        "recipients",
        "size",
    )

    def __init__(
        self,
        encoded: Encoded,
        recipients: Recipients,
        exclude: Subscription | None,
        deadline: float,
        now: float,
        *,
        is_announcement: bool,
    ) -> None:
        self.at = now
        self.encoded = encoded
        self.recipients = recipients
        self.exclude = exclude
        self.deadline = deadline
        self.is_announcement = is_announcement
        self.size = 0
        for wire in recipients.by_wire:  # mostly one, for which a sum would cost as much again
            self.size += len(encoded.on(wire.plain))
        self.booked = self.size + recipients.book()

    def joins(self, other: _Queued) -> bool:
        """Whether both go to the same subscribers and may replace what waits there alike."""
        return (
            self.recipients is other.recipients
            and self.exclude is other.exclude
            and (self.deadline == inf) == (other.deadline == inf)
        )


class _Sweep:
    """A fan-out under way: what is left of it, frames and subscriptions wire by wire.

    Attributes:
        cost: what its beginning took of the budget, in calls of ``send``: compressing does.
    """

    __slots__ = ("at", "batch", "cost", "left")

    def __init__(self, batch: list[_Queued]) -> None:
        self.batch = batch
        self.cost = 0
        self.left: list[tuple[list[bytes], list[Subscription]]] = []
        for wire, edges in batch[0].recipients.by_wire.items():
            self.left.append(([queued.encoded.on(wire) for queued in batch], edges))
            if wire.plain is not wire:
                self.cost += sum([q.size for q in batch]) // PACKED_BYTES_PER_CALL
        self.at = 0


class Channel:
    """One occupied channel.

    Attributes:
        subscriptions: connection -> subscription, in order of arrival.
        roster: the members of a presence channel; None on others.
        is_ready: whether it stands in the line of channels that have something to deliver.
        queued_bytes: number of bytes of what waits and what is being delivered.
        delivered_from: time when the oldest of what was last done with had been queued, in the
            broker's seconds.
        announcement_bytes: number of bytes of the protocol's own events among those queued.
        n_joined: number of subscriptions that there have been.
        count_due_at: the time when the throttle lets the next ``subscription_count`` out, in the
            broker's seconds.
    """

    __slots__ = (
        "_counters",
        "_queue",
        "_recipients",
        "_sweep",
        "announcement_bytes",
        "count_due_at",
        "delivered_from",
        "is_ready",
        "n_joined",
        "name",
        "queued_bytes",
        "roster",
        "subscriptions",
    )

    def __init__(
        self, name: ChannelName, counters: AppCounters, roster: PresenceRoster | None = None
    ) -> None:
        """Make an empty one.

        Args:
            name: name of the channel.
            counters: counters of the app.
            roster: the members of a presence channel, where somebody else keeps it up to date.
        """
        self.name = name
        self.subscriptions: dict[Connection, Subscription] = {}
        self.roster = PresenceRoster() if roster is None and name.is_presence else roster
        self.is_ready = False
        self.queued_bytes = 0
        self.announcement_bytes = 0
        self.n_joined = 0
        self.count_due_at = -inf
        self.delivered_from = 0.0
        self._counters = counters
        self._recipients: Recipients | None = None
        self._queue: deque[_Queued] | None = None
        self._sweep: _Sweep | None = None

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Name and size."""
        return f"Channel({self.name.text}, {len(self.subscriptions)} subscriptions)"

    @property
    def recipients(self) -> Recipients:
        """Who is subscribed now; the same object until that changes."""
        if self._recipients is None:
            self._recipients = Recipients(self.subscriptions)
        return self._recipients

    @property
    def has_queued(self) -> bool:
        """Whether anything is left to deliver."""
        return self._sweep is not None or bool(self._queue)

    def add(self, connection: Connection, member: Member | None) -> Subscription:
        """Add a subscription; the caller has checked that there is none yet."""
        edge = Subscription(connection, self, member)
        self.subscriptions[connection] = edge
        self.n_joined += 1
        self._recipients = None
        return edge

    def remove(self, connection: Connection) -> Subscription:
        """End a subscription; what is queued does not reach it any more."""
        edge = self.subscriptions.pop(connection)
        edge.outbox = DISCARD
        self._recipients = None
        return edge

    def enqueue(
        self,
        encoded: Encoded,
        exclude: Connection | None = None,
        deadline: float = inf,
        *,
        now: float = 0.0,
        is_announcement: bool = False,
    ) -> None:
        """Queue a publication for everyone who is subscribed now. Never yields.

        Args:
            encoded: the publication; it is encoded here, for each wire that somebody listens on.
            exclude: the connection that must not get it.
            deadline: the time when a cached value expires, in the broker's seconds; finite means a
                newer one may replace it.
            now: the broker's seconds.
            is_announcement: whether the protocol says it, and not a publisher, who would wait.
        """
        edge = self.subscriptions.get(exclude) if exclude is not None else None
        queued = _Queued(
            encoded, self.recipients, edge, deadline, now, is_announcement=is_announcement
        )
        if self._queue is None:
            self._queue = deque()
        self._queue.append(queued)
        self.queued_bytes += queued.booked
        if is_announcement:
            self.announcement_bytes += queued.booked

    def skip(self) -> int:
        """Forget the values that wait behind all else, for a newer one follows; how many.

        What is being delivered goes on. Never yields.
        """
        n_skipped = 0
        while self._queue and self._queue[-1].deadline < inf:
            self.queued_bytes -= self._queue.pop().booked
            n_skipped += 1
        return n_skipped

    def deliver(self, budget: int) -> tuple[int, int]:
        """Deliver a part of what is queued.

        Args:
            budget: number of calls of ``send`` at most; a call with much to copy counts as several,
                or the turn of a channel with joined frames would last ten times as long as another.

        Returns:
            Part of the budget that was used, and bytes of publications that are done with.
        """
        used, done = 0, 0
        while used < budget:
            sweep = self._sweep
            if sweep is None:
                if not self._queue:
                    self._queue = None
                    break
                sweep = self._sweep = _Sweep(self._take_batch(self._queue))
                used += sweep.cost
            if sweep.left:
                used += self._deliver_some(sweep, budget - used)
            if not sweep.left:
                self._sweep = None
                self.delivered_from = sweep.batch[0].at
                for queued in sweep.batch:
                    done += queued.booked
                    if queued.is_announcement:
                        self.announcement_bytes -= queued.booked
        self.queued_bytes -= done
        return used, done

    def _take_batch(self, queue: deque[_Queued]) -> list[_Queued]:
        first = queue.popleft()
        batch, size = [first], first.size
        while queue and queue[0].joins(first) and size + queue[0].size <= JOIN_BYTES:
            size += queue[0].size
            batch.append(queue.popleft())
        return batch

    def _deliver_some(self, sweep: _Sweep, budget: int) -> int:
        first, (frames, everyone) = sweep.batch[0], sweep.left[0]
        cost = 1 + sum(map(len, frames)) // BYTES_PER_CALL
        edges = everyone[sweep.at : sweep.at + max(1, budget // cost)]
        sweep.at += len(edges)
        if sweep.at >= len(everyone):
            del sweep.left[0]
            sweep.at = 0
        if first.exclude is not None:
            edges = [edge for edge in edges if edge is not first.exclude]
        self._counters.deliveries += len(edges) * len(frames)
        key = None if first.deadline == inf else self.name.text
        # The first one's deadline for all: what is kept of a short send begins with it.
        send_all(edges, frames, key, first.deadline)
        return len(edges) * cost


def send_all(
    edges: list[Subscription], frames: list[bytes], key: str | None, deadline: float
) -> None:
    """Send joined frames to each subscriber: the loop that everything else serves.

    It does the least that Python can: two attribute loads and a comparison beside the ``send``
    itself. Whatever is not "the kernel took it all" is the Outbox's business.
    """
    data = frames[0] if len(frames) == 1 else b"".join(frames)
    size = len(data)
    for edge in edges:
        outbox = edge.outbox
        try:
            sent = outbox.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            outbox.break_off()
            continue
        if sent != size:
            outbox.keep(data, sent, frames[-1], key, deadline, len(frames))
