"""What the protocol itself says to a whole channel: members come and go, subscribers are counted.

It goes through the same queue as publications, so everybody hears it in the same order.

A publisher waits while too much is queued; a client that comes and goes two hundred times a second
does not. So a channel has at most ``MAX_WAITING_BYTES`` of these events in its queue, which no
crowd of a hundred members fills by arriving at once; and of all of an app's channels no more than
twice what publishers may. What happens beyond that is held here and made
smaller: of a member only its last departure and arrival are told, and neither if it came and went
while nobody else arrived; of counts only the last is one. What is left is said once the queue has
room, and everybody's roster is right then. Some may hear once more of a member that their roster
had, or of the departure of one they never saw; libraries keep members by id.

With other nodes it is the bus that says who came and how many there are, of all nodes together.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from cachecast.events import AppEvent
from cachecast.protocol.messages import Control
from cachecast.protocol.wire import Encoded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cachecast.channels.channel import Channel
    from cachecast.channels.connection import Connection
    from cachecast.channels.hub import Hub
    from cachecast.protocol.channel_name import ChannelName
    from cachecast.protocol.wire import Wire
    from cachecast.tasks.fanout import Fanout

__all__ = ["Announcements", "confirmation_frame", "count_message", "is_counted"]

#: Number of subscribers of one channel above which their count is announced every
#: ``COUNT_INTERVAL_S`` at most (protocol.md 2.10).
COUNT_THROTTLE_ABOVE: Final = 100
COUNT_INTERVAL_S: Final = 5.0

#: Bytes of protocol events that wait in one channel's queue, with their lists of recipients: of a
#: hundred members some five hundred events, of ten thousand a dozen.
MAX_WAITING_BYTES: Final = 1024 * 1024

#: Number of users whose coming and going is held back in one channel; past it the oldest news is
#: dropped.
MAX_HELD_USERS: Final = 10_000

_ARRIVALS: Final = frozenset({"member_added", "online"})


class _News(msgspec.Struct, frozen=True, gc=False):
    """One protocol event.

    Attributes:
        message: the event.
        change: the change of the user whom it is about; None where it is about nobody.
        exclude: the connection that is not told; None for none.
        n_joined: the channel's count of arrivals when it happened.
    """

    message: Control
    change: str | None = None
    exclude: Connection | None = None
    n_joined: int = 0


class _Held:
    """What must still be said in a channel, by user, at most two events of each.

    Attributes:
        hub: the app's hub.
        is_leaving: whether its turn has come, so that it goes on past ``MAX_WAITING_BYTES``.
        news: user id -> events, in the order in which they happened.
    """

    __slots__ = ("hub", "is_leaving", "news")

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.is_leaving = False
        self.news: dict[str, list[_News]] = {}

    def add(self, user: str, news: _News) -> bool:
        """Hold one event back; return whether older news had to go for it."""
        waiting = self.news.setdefault(user, [])
        if news.change in _ARRIVALS or not waiting:
            waiting.append(news)
        else:
            arrival = waiting.pop()
            # Nobody has heard that it began, so nobody need hear that it ended; but for those who
            # have arrived since, and have it in their roster.
            if waiting or arrival.change not in _ARRIVALS or arrival.n_joined != news.n_joined:
                waiting[:] = [news]
        if not waiting:
            del self.news[user]
        if len(self.news) <= MAX_HELD_USERS:
            return False
        del self.news[next(iter(self.news))]
        return True


class Announcements:
    """Queues the protocol's own events.

    Attributes:
        stale_counts: channels whose count the throttle, or a full queue, holds back, with their
            hubs.
        held: channel -> what else a full queue holds back.
        counts: app id and channel -> subscriptions on all nodes, as they were last told; of
            channels of this node only, and empty where it is alone.
    """

    def __init__(
        self,
        fanout: Fanout,
        clock: Callable[[], float],
        notify: Callable[[Hub, AppEvent], bool],
    ) -> None:
        """Wire it up.

        Args:
            fanout: the task that delivers what is queued here.
            clock: function that gives the broker's seconds.
            notify: function that tells webhooks and hooks.
        """
        self._fanout = fanout
        self._clock = clock
        self._notify = notify
        self.stale_counts: dict[Channel, Hub] = {}
        self.held: dict[Channel, _Held] = {}
        self.counts: dict[tuple[str, str], int] = {}
        #: Channels of shared apps in which connections of this node came or went since then.
        self._stirred: set[Channel] = set()

    def tell_members(
        self,
        hub: Hub,
        channel: Channel,
        change: str,
        user_id: str | int,
        user_info: msgspec.Raw | None = None,
        newcomer: Connection | None = None,
    ) -> None:
        """Queue to everyone in a presence channel that a member came or went.

        Args:
            hub: the app's hub.
            channel: the channel, in whose order of publications it is told.
            change: ``member_added`` or ``member_removed``.
            user_id: the member's id, as it was signed.
            user_info: raw JSON of a member that came; None if it has none.
            newcomer: the connection that it came with, which is not told.
        """
        info = {} if user_info is None else {"user_info": user_info}
        data = {"user_id": user_id, **info}
        message = Control(f"pusher_internal:{change}", data, channel.name.text)
        news = _News(message, change, newcomer, channel.n_joined)
        self._say(hub, channel, str(user_id), news)

    def tell_watchers(
        self, hub: Hub, user_id: str, change: str, newcomer: Connection | None = None
    ) -> None:
        """Queue to those who watch a user that it went ``online`` or ``offline``.

        Args:
            hub: the app's hub.
            user_id: the user's id.
            change: the name of the event.
            newcomer: the connection that is left out: one that watches itself is given its state
                otherwise.
        """
        channel = hub.users.watchers_of(user_id)
        if channel is not None:
            data = {"events": [{"name": change, "user_ids": [user_id]}]}
            message = Control("pusher_internal:watchlist_events", data)
            news = _News(message, change, newcomer, channel.n_joined)
            self._say(hub, channel, user_id, news)

    def _say(self, hub: Hub, channel: Channel, user: str, news: _News) -> None:
        held = self.held.get(channel)
        if held is None:
            if _has_room(hub, channel):
                self._queue(hub, channel, news)
                return
            held = self.held[channel] = _Held(hub)
        hub.counters.announcements_dropped += held.add(user, news)

    def _queue(self, hub: Hub, channel: Channel, news: _News) -> None:
        hub.enqueue(
            channel,
            Encoded(news.message),
            news.exclude,
            now=self._clock(),
            is_announcement=True,
        )
        self._fanout.wake()

    def count_changed(self, hub: Hub, channel: Channel) -> None:
        """Announce how many are subscribed: at once up to 100, every 5 s above."""
        if not is_counted(hub, channel.name):
            return
        if hub.is_shared:
            if channel.subscriptions:
                self._stirred.add(channel)
            return
        self._announce_soon(hub, channel)

    def tell_count(self, hub: Hub, channel: Channel, count: int) -> None:
        """Announce how many are subscribed on all nodes; see :meth:`count_changed`."""
        if is_counted(hub, channel.name):
            self.counts[hub.app.id, channel.name.text] = count
            self._announce_soon(hub, channel)

    def _announce_soon(self, hub: Hub, channel: Channel) -> None:
        now = self._clock()
        if channel.subscriptions and not self._may_count(hub, channel, now):
            self.stale_counts[channel] = hub
        else:
            self._announce_count(hub, channel, now)

    def _announce_count(self, hub: Hub, channel: Channel, now: float) -> None:
        channel.count_due_at = now + COUNT_INTERVAL_S
        self.stale_counts.pop(channel, None)
        count = self._count(hub, channel)
        # Of several nodes those report it who had a part in it; rather twice than never.
        if not hub.is_shared or channel in self._stirred:
            self._stirred.discard(channel)
            self._notify(
                hub, AppEvent("subscription_count", channel.name.text, subscription_count=count)
            )
        if count:
            self._queue(hub, channel, _News(count_message(channel.name.text, count)))

    def _count(self, hub: Hub, channel: Channel) -> int:
        here = len(channel.subscriptions)
        return self.counts.get((hub.app.id, channel.name.text), here) if hub.is_shared else here

    def announce_due(self, limit: int) -> bool:
        """Announce at most ``limit`` of what was held back and may go now. Never yields.

        Returns:
            Whether there is more that may go.
        """
        now = self._clock()
        due = [item for item in self.stale_counts.items() if self._may_count(item[1], item[0], now)]
        for channel, hub in due[:limit]:
            self._announce_count(hub, channel, now)
        return self._announce_held(limit - len(due)) or len(due) > limit

    def _announce_held(self, limit: int) -> bool:
        for channel, held in list(self.held.items()):
            held.is_leaving |= _has_room(held.hub, channel)
            while held.is_leaving and held.news and limit > 0:
                for news in held.news.pop(next(iter(held.news))):
                    self._queue(held.hub, channel, news)
                    limit -= 1
            if not held.news:
                del self.held[channel]
        return any(held.is_leaving for held in self.held.values())

    def forget(self, hub: Hub, channel: Channel) -> None:
        """A vacated channel has nobody who could be told anything."""
        self.stale_counts.pop(channel, None)
        self.held.pop(channel, None)
        if hub.is_shared:
            self._stirred.discard(channel)
            self.counts.pop((hub.app.id, channel.name.text), None)

    def export(self, hub: Hub) -> tuple[dict[str, int], list[str]]:
        """Numbers of an app's channels on all nodes, and where they changed by clients of here."""
        app_id = hub.app.id
        counts = {name: n for (owner, name), n in self.counts.items() if owner == app_id}
        stirred = [name for name, channel in hub.channels.items() if channel in self._stirred]
        return counts, stirred

    def restore(self, hub: Hub, counts: Mapping[str, int], stirred: Iterable[str]) -> None:
        """Go on with what another process knew of them; nobody is told."""
        self.counts.update({(hub.app.id, name): n for name, n in counts.items()})
        self._stirred.update(hub.channels[name] for name in stirred)

    def let_go(self) -> None:
        """Another process announces what is held back here."""
        self.stale_counts.clear()
        self.held.clear()

    def _may_count(self, hub: Hub, channel: Channel, now: float) -> bool:
        """Whether neither the throttle nor a full queue holds a channel's count back."""
        is_due = self._count(hub, channel) <= COUNT_THROTTLE_ABOVE or now >= channel.count_due_at
        return is_due and _has_room(hub, channel)


def is_counted(hub: Hub, name: ChannelName) -> bool:
    """Whether the number of a channel's subscriptions is announced."""
    return hub.app.sends_subscription_counts and not (name.is_presence or name.is_hidden)


@lru_cache(maxsize=1024)
def confirmation_frame(wire: Wire, channel: str) -> bytes:
    """What confirms a subscription; the same for everybody who comes to a channel in a storm."""
    return wire.control(Control("pusher_internal:subscription_succeeded", {}, channel))


def count_message(channel: str, count: int) -> Control:
    """What subscribers are told of their number."""
    return Control("pusher_internal:subscription_count", {"subscription_count": count}, channel)


def _has_room(hub: Hub, channel: Channel) -> bool:
    """Whether more may wait in a channel, and in all of its app.

    Twice what publishers may fill: they fill all of that again and again, and nothing would be
    announced beside them.
    """
    is_full = hub.undelivered_bytes >= 2 * hub.app.max_undelivered_bytes
    return channel.announcement_bytes < MAX_WAITING_BYTES and not is_full
