"""Everything at one primary that is no value: who is there, who is ended, where it is crowded.

The core of the bus hands it the messages and says when a session, a gap or a quarter of a second is
over; it asks by its seat and tells the node. It knows neither links nor values.

After a hello: :meth:`Attendance.begin`, in the grace too. Then, when the grace is over and the
topics are subscribed to again: :meth:`Attendance.resync`; behind it everything here is what the
cluster agrees on, and the seat is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachecast.bus.crowds import Crowds
from cachecast.bus.endings import Endings
from cachecast.bus.holdings import Holdings
from cachecast.bus.lateness import Lateness
from cachecast.bus.receipt import Receipt, join
from cachecast.bus.rosters import Rosters
from cachecast.bus.watching import Watching

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.bus.contents import Contents
    from cachecast.bus.seam import Node
    from cachecast.bus.seat import Seat
    from cachecast.protocol.channel_name import ChannelName

__all__ = ["Attendance"]


class Attendance:
    """What a node has to do with one primary besides values; a ``Part`` of its seat.

    Attributes:
        holdings: what the node holds there.
        lateness: bound of those who wait for an answer, and of their time.
        rosters: members and counts of channels: enter and leave.
        watching: states of users: sign in and out, watch and unwatch.
        endings: users who are ended.
        crowds: channels whose publishers wait.
    """

    def __init__(
        self,
        seat: Seat,
        node: Node,
        *,
        contents: Contents,
        clock: Callable[[], float],
        max_members: Callable[[str], int],
        has_webhooks: Callable[[str], bool],
        attach: Callable[[str, ChannelName], Receipt[None]],
        detach: Callable[[str, ChannelName], None],
    ) -> None:
        """Begin with nothing.

        Args:
            seat: the node's seat at the primary.
            node: the node that is told.
            contents: reader and packer of members.
            clock: function that gives the broker's seconds.
            max_members: function that gives the limit of an app's presence channels.
            has_webhooks: function that tells whether an app has any.
            attach: function that attaches a channel, see ``Bus.attach``; on the seat's link for
                messages.
            detach: function that detaches a channel, see ``Bus.detach``.
        """
        self._seat = seat
        self._has_webhooks = has_webhooks
        self.holdings = Holdings(seat)
        self.lateness = Lateness(clock)
        self.rosters = Rosters(
            seat,
            node,
            holdings=self.holdings,
            contents=contents,
            lateness=self.lateness,
            max_members=max_members,
            attach=attach,
            detach=detach,
        )
        self.watching = Watching(seat, node, self.holdings, self.lateness)
        self.endings = Endings(seat, node, self.holdings, clock)
        self.crowds = Crowds(seat, node, clock)

    def hear(self, kind: str, app_id: str, name: str, payload: bytes) -> None:
        """Take a message. Never yields.

        Args:
            kind: beginning of the topic: ``c`` for a channel, of the kinds + - #, ``u`` for a user,
                or ``control``, of the kinds t and b.
            app_id: id of the topic's app; empty for control.
            name: name of the channel, or id of the user; empty for control.
            payload: bytes of the message.

        Raises:
            GarbageError: it is none of ours.
        """
        if kind == "c":
            self.rosters.hear(app_id, name, payload)
        elif kind == "u":
            self.watching.hear(app_id, name, payload)
        elif payload[:1] == b"t":
            self.endings.hear(payload)
        elif payload[:1] == b"b":
            self.crowds.hear(payload)

    def begin(self, *, is_new_session: bool, is_new_epoch: bool) -> None:
        """Enter again what was held, behind every hello. Never yields.

        Args:
            is_new_session: whether what was held before is held no more.
            is_new_epoch: whether the engine may have forgotten.
        """
        self.rosters.stop_paging()
        if is_new_session:
            self.holdings.renew()
        else:
            self.holdings.enter_again()
        if is_new_epoch:
            self.rosters.enter_ghosts(self._has_webhooks)
            self.endings.begin_epoch()

    def resync(self, on_done: Callable[[], None]) -> None:
        """Find out what was missed, and tell it. Never yields.

        Args:
            on_done: function called when everything here is up to date. If the link or the session
                is lost meanwhile it may not be: ``resync`` will be, on the next one.
        """
        paged: Receipt[None] = Receipt()
        looked: Receipt[None] = Receipt()
        read: Receipt[None] = Receipt()

        join((paged, looked, read), on_done)
        # Behind all that is entered again, or this node's own members would seem to have gone.
        self.holdings.when_entered(lambda: self.rosters.page_again(lambda: paged.fulfil(None)))
        self.watching.look_again(lambda: looked.fulfil(None))
        self.endings.read(lambda: read.fulfil(None))

    def opened(self) -> None:
        """The seat is open: say everything that has changed while it was not. Never yields."""
        self.holdings.level(len(self.holdings))
        self.tick()

    def closed(self) -> None:
        """The seat is closed; what is under way gets its fault from it. Never yields."""
        self.crowds.close()

    def stop(self) -> None:
        """The node leaves the cluster: nobody waits any more. Never yields."""
        self.lateness.stop()

    def tick(self) -> None:
        """Four times a second: numbers, what was not possible before, who is late. Never yields."""
        self.holdings.level()
        self.rosters.page_due()
        self.watching.look_due()
        self.crowds.tick()
        self.lateness.expire()
