"""What a client knows of one channel; sans-I/O. :class:`cachecast.client.Channel` is its face.

The one idea: a subscription outlives connections. It is *pending* from the wish to the server's
answer, and again after each reconnection; *active* in between; *over* when it was given up or
refused, and then it never comes back.
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import trio

from cachecast.client import wire
from cachecast.client.events import Event, EventQueue, WhenFull

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.client.events import Ending
    from cachecast.client.wire import ServerMessage
    from cachecast.protocol.channel_name import ChannelName

__all__ = ["Phase", "Subscription"]


class Phase(enum.Enum):
    """Where a subscription stands."""

    PENDING = "pending"
    ACTIVE = "active"
    OVER = "over"


class Subscription:
    """One channel of one client.

    Attributes:
        name: name of the channel.
        queue: events that wait for the consumer.
        phase: stage that it has reached, see :class:`Phase`.
        is_wanted: whether it is still wanted; False once it was given up while the server's answer
            was still due; hosted Pusher refuses to unsubscribe before that (protocol.md 2.9), so
            the answer decides.
        waiters: calls of ``subscribe()`` that wait for the answer, or have it and not returned yet.
        is_taken: whether such a call has returned it, so that somebody may be reading.
        was_active: whether it ever was.
        channel_data: data to be signed for a presence channel.
        request_scope: cancel scope of the task that asks the authorizer, while there is one.
        members: the roster of a presence channel, user id -> user_info; None where there is none.
        my_id: user id that the server knows us by on a presence channel.
        count: number of subscribers, where the app announces it (protocol.md 2.10).
        key: key of an encrypted channel.
        sealed: events that wait for another key; None if no other key was asked for.
        asked_at: time when another key was asked for last; seconds of Trio's clock.
    """

    def __init__(self, name: ChannelName, max_queued: int, channel_data: str | None) -> None:
        when_full = WhenFull.NEWEST_REPLACES if name.is_cache else WhenFull.TELL
        self.name = name
        self.queue = EventQueue(max_queued, when_full)
        self.phase = Phase.PENDING
        self.is_wanted = True
        self.waiters = 0
        self.is_taken = False
        self.was_active = False
        self.channel_data = channel_data
        self.request_scope: trio.CancelScope | None = None
        self.members: MappingProxyType[str, Any] = MappingProxyType({})
        self.my_id: str | None = None
        self.count: int | None = None
        self.key: bytes | None = None
        self.sealed: list[Event] | None = None
        self.asked_at = -float("inf")
        self._roster: dict[str, Any] = {}
        self._ending: Callable[[], Ending] | None = None
        self._settled = trio.Event()

    # --- phases

    def activate(self, message: ServerMessage) -> None:
        """The server said yes. Replaces the roster as a whole.

        Raises:
            BadMessageError: the roster cannot be read.
        """
        if self.name.is_presence:
            data = message.data_as(wire.PresenceData)
            # No user_info is an empty object here, null with clones, and absent in member_added.
            self._roster = {key: info or None for key, info in data.presence.hash.items()}
            self.members = MappingProxyType(self._roster)
        self.phase = Phase.ACTIVE
        self.was_active = True
        self._settled.set()

    def suspend(self) -> None:
        """The connection ended; the subscription is to be made again."""
        if self.phase is Phase.ACTIVE:
            self.phase = Phase.PENDING
            self._settled = trio.Event()
        self.sealed = None

    def end(self, ending: Callable[[], Ending]) -> None:
        """It is over: whoever waits or reads is told what ``ending`` makes, each time anew."""
        if self.phase is not Phase.OVER:
            self.phase = Phase.OVER
            self._ending = ending
            self.queue.finish(ending)
            self._settled.set()

    async def wait_active(self) -> None:
        """Wait until the server has said yes, however many connections that takes.

        Always yields. If cancelled, nothing has changed.

        Raises:
            EngineError: it was refused, or the client failed.
            trio.ClosedResourceError: it was given up.
        """
        await trio.lowlevel.checkpoint()
        while self.phase is Phase.PENDING:
            await self._settled.wait()
        if self.phase is Phase.OVER and self._ending is not None:
            raise self._ending() or trio.ClosedResourceError("unsubscribed")

    # --- messages

    def receive(self, message: ServerMessage) -> Event | None:
        """Note what a message of this channel says; the event to deliver, if there is one.

        Raises:
            BadMessageError: its data cannot be read.
        """
        if self.phase is not Phase.ACTIVE:
            return None  # the end of an earlier subscription to the same channel
        name = message.event
        if name == "pusher_internal:member_added":
            member = message.data_as(wire.MemberData)
            self._roster[str(member.user_id)] = member.user_info or None
        elif name == "pusher_internal:member_removed":
            self._roster.pop(str(message.data_as(wire.MemberData).user_id), None)
        elif name == "pusher_internal:subscription_count":
            # No event: a count stands for those before it, and a reader waits for values.
            self.count = message.data_as(wire.CountData).subscription_count
            return None
        user_id = None if message.user_id is None else str(message.user_id)
        # As pusher-js shows internal events to its users (protocol.md 2.10).
        shown = name.replace("pusher_internal:", "pusher:", 1)
        return Event(shown, message.text, self.name.text, user_id)
