"""One page that is open: server-sent events of what happens and of the node's figures.

A console writes only where there is room; what it has not taken waits in its watch, which is
bounded and counts what it leaves out. Who takes nothing at all is closed by the timeouts of HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from cachecast.broker.feed import Happening
from cachecast.errors import CapacityError

if TYPE_CHECKING:
    from cachecast.broker.feed import Feed, Wanted, Watch
    from cachecast.server.streaming import Body

__all__ = ["Console", "ConsolePart", "server_sent"]

#: Seconds of silence after which a comment is sent: so that what lies in between keeps the
#: connection, and one whose client has gone without a word is noticed.
COMMENT_S: Final = 15.0

_encode = msgspec.json.Encoder().encode


def server_sent(event: str, value: object) -> bytes:
    """One server-sent event; JSON has no line ends of its own."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), _encode(value))


class ConsolePart(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a console says at a time.

    Attributes:
        happenings: what is shown.
        left_out: kind -> number of those that are not.
        worker: number of the worker that says it; None where there is one process.
    """

    happenings: list[Happening]
    left_out: dict[str, int]
    worker: int | None = None


class Console:
    """The source of one stream; it watches from its first byte on, and no longer than its client.

    Attributes:
        watch: what it watches; None before it begins, and where it asks for figures only.
    """

    def __init__(
        self, feed: Feed, wanted: Wanted | None, open_consoles: set[Console], first: bytes
    ) -> None:
        """Make it.

        Args:
            feed: the feed of the node.
            wanted: what it is to watch; None for figures only.
            open_consoles: all that are open, to which it belongs while it is.
            first: what is sent at once.
        """
        self.watch: Watch | None = None
        self._feed = feed
        self._wanted = wanted
        self._open = open_consoles
        self._first = first
        self._body: Body | None = None
        self._said_at = 0.0

    def begin(self, body: Body) -> None:
        """See :class:`~cachecast.server.streaming.Source`, as for all three."""
        if self._wanted is not None:
            try:
                self.watch = self._feed.watch(self._wanted)
            except CapacityError:  # others were faster
                body.end()
                return
        self._body = body
        self._open.add(self)
        body.write(self._first)

    def on_room(self) -> None:
        """The next :meth:`flush` is soon."""

    def on_gone(self) -> None:
        """Watch no longer."""
        self._body = None
        self._finish()

    def flush(self, now: float) -> None:
        """Send what has happened, if it goes anywhere; ``now`` in the broker's seconds."""
        body = self._body
        if body is None or not body.has_room:
            return
        part = b""
        if self.watch is not None:
            happenings, left_out = self.watch.take()
            if happenings or left_out:
                part = server_sent("console", ConsolePart(happenings, left_out))
        if not part and now - self._said_at >= COMMENT_S:
            part = b":\n\n"
        if part:
            self._said_at = now
            body.write(part)

    def say(self, part: bytes) -> None:
        """Send a part that every page gets; left out where there is no room for it."""
        if self._body is not None and self._body.has_room:
            self._body.write(part)

    def end(self) -> None:
        """End the stream: the node goes, and browsers come back to whoever is there then."""
        body, self._body = self._body, None
        self._finish()
        if body is not None:
            body.end()

    def _finish(self) -> None:
        if self.watch is not None:
            self._feed.unwatch(self.watch)
        self._open.discard(self)
