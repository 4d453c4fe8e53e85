"""Subscriptions whose answer is under way: other nodes have to agree on them first.

There is no task for any of them. The bus gives a receipt, and what must happen happens in the step
in which it is done. Until then a :class:`Joining` stands for the subscription among those of its
session: so a second one is a second one, an unsubscribe takes it back, and the limit counts it.

A client may have ``MAX_OPEN`` under way; what else it asks for waits here in its order, at most as
much as it may have channels, and goes on when it has read what it was answered (DESIGN.md 3, "Slow
clients"). A node that is alone has none of this.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Final, NoReturn

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.bus.receipt import Receipt
    from cachecast.bus.seam import Bus, Entry
    from cachecast.channels.connection import Connection
    from cachecast.protocol.channel_name import ChannelName
    from cachecast.protocol.session import Member, Subscribe

__all__ = ["Joining", "Joins"]

#: Number of subscriptions of one connection that other nodes are asked about at once: their answers
#: may all come before the client has read one.
MAX_OPEN: Final = 16

#: Seconds between two looks whether clients have read what they asked for.
PACE_CHECK_S: Final = 0.1


class Joining:
    """Stands for a subscription until it is answered.

    Attributes:
        request: what the client asked for.
    """

    __slots__ = ("request",)

    #: Whether it has joined, see :class:`cachecast.protocol.session.Subscribed`; never so here.
    is_joined: Final = False

    def __init__(self, request: Subscribe) -> None:
        self.request = request

    @property
    def name(self) -> ChannelName:
        """The channel's name."""
        return self.request.name

    @property
    def member(self) -> Member | None:
        """Whom it will bring into a presence channel."""
        return self.request.member


class _Line:
    """What one connection has under way, and what waits behind that."""

    __slots__ = ("n_open", "waiting")

    def __init__(self) -> None:
        self.n_open = 0
        self.waiting: deque[Joining] = deque()


class Joins:
    """The subscriptions under way of a node."""

    def __init__(
        self,
        bus: Bus,
        finish: Callable[[Connection, Subscribe, Receipt[Entry], bool], None],
    ) -> None:
        """Make it.

        Args:
            bus: the bus that is asked about each.
            finish: function that is given a connection, its request, the receipt that is done, and
                whether the subscription is still wanted.
        """
        self._bus = bus
        self._finish = finish
        self._lines: dict[Connection, _Line] = {}
        self._paced: dict[Connection, _Line] = {}
        #: App id and channel -> number of subscriptions that other nodes are asked about now.
        self._asked: Counter[tuple[str, str]] = Counter()
        self._has_paced = trio.Event()

    def __len__(self) -> int:
        """Connections that have any."""
        return len(self._lines)

    def is_asked(self, app_id: str, channel: str) -> bool:
        """Whether a subscription to a channel is under way at the other nodes. O(1)."""
        return (app_id, channel) in self._asked

    def is_busy(self, app_id: str) -> bool:
        """Whether any subscription of an app is under way at the other nodes. O(those)."""
        return any(key[0] == app_id for key in self._asked)

    @property
    def is_any_asked(self) -> bool:
        """Whether any subscription is under way at the other nodes."""
        return bool(self._asked)

    def waiting(self, connection: Connection) -> list[Subscribe]:
        """What a client has asked for and other nodes have not been asked about, in its order."""
        line = self._lines.get(connection)
        joinings = () if line is None else line.waiting
        return [one.request for one in joinings if _is_wanted(connection, one)]

    def begin(self, connection: Connection, request: Subscribe) -> None:
        """Subscribe, now or when the other nodes have answered. Never yields."""
        line = self._lines.get(connection)
        if line is None:
            receipt = self._enter(connection, request)
            if receipt.is_done:
                self._finish(connection, request, receipt, True)  # noqa: FBT003
                return
            line = self._lines[connection] = _Line()
            self._wait(connection, line, _stand_in(connection, request), receipt)
        else:
            line.waiting.append(_stand_in(connection, request))
            self._go_on(connection, line)

    def take_back(self, connection: Connection, name: str) -> None:
        """The client wants it no more, before it was answered. Never yields; O(what waits)."""
        joining = connection.session.subscriptions.pop(name)
        line = self._lines.get(connection)
        if line is not None and isinstance(joining, Joining) and joining in line.waiting:
            line.waiting.remove(joining)

    def _enter(self, connection: Connection, request: Subscribe) -> Receipt[Entry]:
        return self._bus.enter(connection.session.app.id, request.name, request.member)

    def _wait(
        self,
        connection: Connection,
        line: _Line,
        joining: Joining,
        receipt: Receipt[Entry],
    ) -> None:
        key = connection.session.app.id, joining.name.text
        line.n_open += 1
        self._asked[key] += 1

        def settle() -> None:
            line.n_open -= 1
            self._asked[key] -= 1
            if not self._asked[key]:
                del self._asked[key]
            self._settle(connection, joining, receipt)
            self._go_on(connection, line)

        receipt.when_done(settle)

    def _settle(self, connection: Connection, joining: Joining, receipt: Receipt[Entry]) -> None:
        is_wanted = _is_wanted(connection, joining)
        if is_wanted:
            del connection.session.subscriptions[joining.name.text]
        self._finish(connection, joining.request, receipt, is_wanted)

    def _go_on(self, connection: Connection, line: _Line) -> None:
        """Ask about what waits, as far as may be."""
        while line.waiting and line.n_open < MAX_OPEN:
            if not _is_wanted(connection, line.waiting[0]):
                line.waiting.popleft()
            elif connection.outbox.is_pacing:
                self._paced[connection] = line
                self._has_paced.set()
                return
            else:
                joining = line.waiting.popleft()
                receipt = self._enter(connection, joining.request)
                if receipt.is_done:
                    self._settle(connection, joining, receipt)
                else:
                    self._wait(connection, line, joining, receipt)
        if not (line.n_open or line.waiting) and self._lines.get(connection) is line:
            del self._lines[connection]

    async def run_paced(self) -> NoReturn:
        """Go on with those who have read, for ever: nothing on the floors below tells of it."""
        while True:
            if not self._paced:
                self._has_paced = trio.Event()
                await self._has_paced.wait()
            await trio.sleep(PACE_CHECK_S)
            paced, self._paced = self._paced, {}
            for connection, line in paced.items():
                self._go_on(connection, line)


def _stand_in(connection: Connection, request: Subscribe) -> Joining:
    joining = Joining(request)
    connection.session.subscriptions[request.name.text] = joining
    return joining


def _is_wanted(connection: Connection, joining: Joining) -> bool:
    """Whether its client is there and has not taken it back."""
    subscriptions = connection.session.subscriptions
    is_mine = subscriptions.get(joining.name.text) is joining
    return is_mine and not connection.outbox.is_finishing
