"""Attaching channels and reading them again, on the link that brings their messages.

For each part of a hundred: ``SUBSCRIBE``, and behind it, in the same write, ``read``. Whatever was
published before the read is in its answer; whatever comes later is a message. The other way round
would lose what is published in between.

A few parts are under way at a time. The link is a subscriber, whose output buffer in the engine has
a limit (8 MB by default, for a minute), and fifty thousand values at once would run over it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from cachecast.bus.calls import MAX_KEYS
from cachecast.bus.faults import LinkError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cachecast.bus.functions import Functions
    from cachecast.bus.record import Record
    from cachecast.bus.resp import Reply

__all__ = ["Sender", "attach"]

#: Number of parts under way: at most a megabyte of answers.
WINDOW: Final = 4


class Sender(Protocol):
    """What a real connection and the model's have in common."""

    def send(
        self, arguments: Sequence[bytes | str | int], on_reply: Callable[[Reply], None] | None
    ) -> None:
        """Send a call."""

    def subscribe(
        self, topics: Sequence[bytes], on_reply: Callable[[Reply], None] | None = None
    ) -> None:
        """Subscribe to topics."""


def attach(
    connection: Sender,
    to: Functions,
    epoch: int,
    channels: Sequence[tuple[str, str]],
    on_record: Callable[[int, Record | None], None],
    on_done: Callable[[LinkError | None], None],
) -> None:
    """Subscribe to channels and read their values. Never yields.

    Args:
        connection: connection that brings the messages; callbacks and messages come in the order of
            its stream.
        to: calls of the primary on which all of the channels lie.
        epoch: epoch of the primary.
        channels: app id and channel of each.
        on_record: function called for each channel with its index and its value, or None, in order
            within a part; a message that comes before may be newer and one that comes after is.
        on_done: function called once: with None after the last record, or with why there are not
            all.
    """
    _Reading(connection, to, epoch, channels, on_record, on_done).start()


class _Reading:
    """One :func:`attach` under way."""

    def __init__(
        self,
        connection: Sender,
        to: Functions,
        epoch: int,
        channels: Sequence[tuple[str, str]],
        on_record: Callable[[int, Record | None], None],
        on_done: Callable[[LinkError | None], None],
    ) -> None:
        self._connection = connection
        self._to = to
        self._epoch = epoch
        self._channels = channels
        self._on_record = on_record
        self._on_done = on_done
        self._position = 0
        self._n_under_way = 0
        self._is_done = False

    def start(self) -> None:
        """Send the first parts."""
        for _ in range(WINDOW):
            self._send_next()

    def _send_next(self) -> None:
        if self._is_done:
            return
        first, part = self._position, self._channels[self._position : self._position + MAX_KEYS]
        if not part:
            if not self._n_under_way:
                self._end(None)
            return
        self._position += len(part)
        self._n_under_way += 1
        keys = self._to.keys
        try:
            self._connection.subscribe(
                [keys.topic(*channel) for channel in part], self._take_confirmation
            )
            self._ask(first, [keys.value(*channel) for channel in part])
        except LinkError as fault:
            self._end(fault)

    def _ask(self, first: int, values: list[bytes]) -> None:
        call = self._to.read(self._epoch, values)

        def take(reply: Reply) -> None:
            if self._is_done:
                return
            if isinstance(reply, LinkError):
                self._end(reply)
                return
            try:
                _, records = call.read(reply)
                for index, record in enumerate(records, first):
                    self._on_record(index, record)
                if len(records) < len(values):  # they are large; the rest by another call
                    self._ask(first + len(records), values[len(records) :])
                    return
            except LinkError as fault:
                self._end(fault)
                return
            self._n_under_way -= 1
            self._send_next()

        self._connection.send(call.arguments, take)

    def _take_confirmation(self, reply: Reply) -> None:
        if isinstance(reply, LinkError):
            self._end(reply)

    def _end(self, fault: LinkError | None) -> None:
        if not self._is_done:
            self._is_done = True
            self._on_done(fault)
