"""What the protocol itself says to a whole channel: members come and go, subscribers are counted.

It goes through the same queue as publications, so everybody hears it in the same order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.protocol.codec import JSON, MSGPACK
from engine.tasks.webhooks import WebhookEvent

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.channels.channel import Channel
    from engine.channels.hub import Hub
    from engine.protocol.session import Session
    from engine.tasks.fanout import Fanout

__all__ = ["Announcements"]

#: Above so many subscribers their count is announced every ``COUNT_INTERVAL_S`` at most
#: (Pusher's "Events" page, subscription_count).
COUNT_THROTTLE_ABOVE: Final = 100
COUNT_INTERVAL_S: Final = 5.0


class Announcements:
    """Queues the protocol's own events.

    Attributes:
        stale_counts: channels whose count the throttle holds back.
    """

    def __init__(
        self,
        fanout: Fanout,
        clock: Callable[[], float],
        notify: Callable[[Hub, WebhookEvent], bool],
    ) -> None:
        """Wire it up.

        Args:
            fanout: delivers what is queued here.
            clock: the broker's seconds.
            notify: tells webhooks and hooks.
        """
        self._fanout = fanout
        self._clock = clock
        self._notify = notify
        self.stale_counts: dict[Channel, Hub] = {}

    def announce(
        self, hub: Hub, channel: Channel, event: str, data: object, exclude: Session | None = None
    ) -> None:
        """Queue a protocol event to everyone in a channel, in order with its publications."""
        self._queue(hub, channel, event, data, channel.name.text, exclude)

    def tell_watchers(
        self, hub: Hub, user_id: str, change: str, newcomer: Session | None = None
    ) -> None:
        """Queue to those who watch a user that it went ``online`` or ``offline``.

        Args:
            hub: of the app.
            user_id: of the user.
            change: the name of the event.
            newcomer: who is left out: one who watches itself is given its state otherwise.
        """
        channel = hub.users.watchers_of(user_id)
        if channel is not None:
            data = {"events": [{"name": change, "user_ids": [user_id]}]}
            self._queue(hub, channel, "watchlist_events", data, None, newcomer)

    def _queue(
        self,
        hub: Hub,
        channel: Channel,
        event: str,
        data: object,
        text: str | None,
        exclude: Session | None,
    ) -> None:
        speaks_json, speaks_msgpack = channel.recipients.by_codec
        name = f"pusher_internal:{event}"
        hub.enqueue(
            channel,
            (
                JSON.system_frame(name, data, text) if speaks_json else None,
                MSGPACK.system_frame(name, data, text) if speaks_msgpack else None,
            ),
            exclude,
        )
        self._fanout.wake()

    def count_changed(self, hub: Hub, channel: Channel) -> None:
        """Announce how many are subscribed: at once up to 100, every 5 s above."""
        if not hub.app.sends_subscription_counts or channel.name.is_presence:
            return
        now = self._clock()
        if len(channel.subscriptions) > COUNT_THROTTLE_ABOVE and now < channel.count_due_at:
            self.stale_counts[channel] = hub
            return
        self._announce_count(hub, channel, now)

    def _announce_count(self, hub: Hub, channel: Channel, now: float) -> None:
        channel.count_due_at = now + COUNT_INTERVAL_S
        self.stale_counts.pop(channel, None)
        count = len(channel.subscriptions)
        self._notify(
            hub,
            WebhookEvent("subscription_count", channel.name.text, subscription_count=count),
        )
        if count:
            self.announce(hub, channel, "subscription_count", {"subscription_count": count})

    def announce_due_counts(self, limit: int) -> None:
        """Announce at most ``limit`` counts that the throttle held back and are due now."""
        now = self._clock()
        due = [item for item in self.stale_counts.items() if item[0].count_due_at <= now]
        for channel, hub in due[:limit]:
            self._announce_count(hub, channel, now)

    def forget(self, channel: Channel) -> None:
        """A vacated channel has no count to announce any more."""
        self.stale_counts.pop(channel, None)
