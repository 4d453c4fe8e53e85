"""What a channel's subscribers should read, and the ledger of what they read instead.

A payload starts with a mark of fixed width, `ccEE-TTTTT-SSSSSSSSSS~`: the epoch (a run of one
scenario step), the stream, the sequence number. The rest is padding, so that every frame of an
epoch is equally long. It needs no escaping in JSON. The intended publish time is not in the
payload: publisher and subscribers are one process, so it is kept in a list by sequence number, on
the one clock that both use.

`expected` is the exact byte stream of the epoch. Its frame template is learnt from the first
delivery: whatever stands around the payload there must stand around every later one. So no server's
framing is taken for granted here.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

MARK = re.compile(rb"cc(\d\d)-(\d{5})-(\d{10})~")
MARK_SIZE = 22
N_EPOCHS = 100
_PADDING = b"x" * 65536


def payload_of(epoch: int, stream: int, seq: int, size: int) -> bytes:
    """Return the payload of one publish, `size` bytes long (at least MARK_SIZE)."""
    return b"cc%02d-%05d-%010d~%s" % (epoch, stream, seq, _PADDING[: size - MARK_SIZE])


@dataclass(slots=True)
class Ledger:
    """Deliveries that were not what was published.

    Each count is a failure of the server (or of the way to it).

    Attributes:
        lost: Never arrived.
        doubled: The newest message came once more.
        reordered: Came after one that was published later, for the first time.
        stale: Came, though seen before, after one that was published later: an old value after a
        fresh one.
        foreign: Carried the mark of another step or of a channel not subscribed to.
        corrupted: Arrived with other bytes around or inside the payload than the first delivery
        had.
        closed: The server closed the connection.
    """

    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    stale: int = 0
    foreign: int = 0
    corrupted: int = 0
    closed: int = 0

    @property
    def n_failures(self) -> int:
        """Sum of all counts."""
        return sum(self.to_json().values())

    def to_json(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)


class Stream:
    """One channel: the messages published to it in this epoch, and the order they are delivered in.

    With one publisher connection the order is that of the sequence numbers. With several, the
    server may take their messages in any order, as long as it keeps that of each connection and is
    the same for every subscriber: then the first delivery of a message gives it its *place*, and
    everybody is held to it. If the very subscriber that sets the order has lost a message, the
    others are blamed as well; there is no doubt then that something was lost, only about by whom.

    Attributes:
        expected: The bytes every subscriber must have read or be about to read, from the epoch's
            start, as far as the order is known. Empty until the template is known.
        frame_size: Bytes of one delivered frame; 0 until the template is known.
        intended_ns: Planned publish time of each message by place, monotonic nanoseconds.
        n_published: Messages published in this epoch.
    """

    __slots__ = (
        "_is_ordered",
        "_last_of_line",
        "_lines",
        "_places",
        "_planned_ns",
        "_prefix",
        "_suffix",
        "channel",
        "epoch",
        "expected",
        "frame_size",
        "index",
        "intended_ns",
        "n_published",
        "size",
    )

    def __init__(self, channel: str, index: int) -> None:
        self.channel = channel
        self.index = index
        self.begin(0, 64)

    def begin(self, epoch: int, size: int, *, is_ordered: bool = True) -> None:
        """Start an epoch: what was published before is forgotten.

        Args:
            epoch: Its number, below N_EPOCHS.
            size: Bytes of each payload, at least MARK_SIZE.
            is_ordered: One connection publishes; otherwise the server chooses the order.
        """
        self.epoch = epoch
        self.size = size
        self.expected = bytearray()
        self.frame_size = 0
        self.n_published = 0
        self.intended_ns: list[int] = []
        self._is_ordered = is_ordered
        # A list each for the planned times by number and by place; one and the same if ordered.
        self._planned_ns = self.intended_ns if is_ordered else []
        self._lines: list[int] = []
        self._places: dict[int, int] = {}
        self._last_of_line: dict[int, int] = {}
        self._prefix = self._suffix = b""

    @property
    def is_ordered(self) -> bool:
        """The order of deliveries is that of the sequence numbers."""
        return self._is_ordered

    def append(self, intended_ns: int, line: int = 0) -> bytes:
        """Note one more message, planned for `intended_ns`, sent on `line`; return its payload."""
        seq = self.n_published
        payload = payload_of(self.epoch, self.index, seq, self.size)
        self.n_published = seq + 1
        self._planned_ns.append(intended_ns)
        if not self._is_ordered:
            self._lines.append(line)
        elif self.frame_size:
            self.expected += self._prefix + payload + self._suffix
        return payload

    def place_of(self, seq: int, ledger: Ledger) -> int:
        """Return the place of message `seq`; if it is delivered for the first time, give it one.

        A message that comes after a later one of its own publisher is booked as reordered.
        """
        if self._is_ordered:
            return seq
        place = self._places.get(seq)
        if place is None:
            place = self._places[seq] = len(self.intended_ns)
            self.intended_ns.append(self._planned_ns[seq])
            if self.frame_size:
                self.expected += self.frame_of(seq)
            line = self._lines[seq]
            if seq < self._last_of_line.get(line, 0):
                ledger.reordered += 1
            else:
                self._last_of_line[line] = seq
        return place

    def learn(self, frame: bytes) -> bool:
        """Take the template from a delivered `frame`.

        Returns:
            False if the payload in it is not one that was published.
        """
        mark = MARK.search(frame)
        if mark is None:
            return False
        payload = payload_of(self.epoch, self.index, int(mark[3]), self.size)
        if not frame.startswith(payload, mark.start()):
            return False
        self._prefix = frame[: mark.start()]
        self._suffix = frame[mark.start() + self.size :]
        self.frame_size = len(frame)
        known = range(self.n_published) if self._is_ordered else self._places
        self.expected = bytearray().join(self.frame_of(seq) for seq in known)
        return True

    def frame_of(self, seq: int) -> bytes:
        """Return the frame that delivers message `seq`; the template must be known."""
        return self._prefix + payload_of(self.epoch, self.index, seq, self.size) + self._suffix


class Group:
    """Subscribers that are counted together.

    Attributes:
        n_bytes: Bytes that were verified by comparison alone, whole frames and parts of them.
        n_parsed: Messages that were parsed one by one.
        delays_ns: Delays of the deliveries to the group's probes, in the order of arrival.
    """

    __slots__ = ("_frame_size", "delays_ns", "ledger", "n_bytes", "n_parsed", "name", "streams")

    def __init__(self, name: str) -> None:
        self.name = name
        self.streams: list[Stream] = []
        self.begin()

    def begin(self) -> None:
        """Start an epoch: all counts at zero."""
        self.ledger = Ledger()
        self.n_bytes = 0
        self.n_parsed = 0
        self.delays_ns: list[int] = []
        self._frame_size = 0

    @property
    def frame_size(self) -> int:
        """Bytes of one frame, the same for all streams of a group.

        0 until the first delivery has shown it.
        """
        if not self._frame_size:
            self._frame_size = next((one.frame_size for one in self.streams if one.frame_size), 0)
        return self._frame_size

    @property
    def n_delivered(self) -> int:
        """Complete deliveries in this epoch; several partly read frames may count as one."""
        n_parsed = self.n_parsed
        return n_parsed + self.n_bytes // self.frame_size if self.n_bytes else n_parsed
