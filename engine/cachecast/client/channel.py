"""One channel, as its consumer sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cachecast.client.subscription import Phase
from cachecast.errors import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachecast.client.conversation import Conversation
    from cachecast.client.events import Event
    from cachecast.client.subscription import Subscription

__all__ = ["Channel"]


class Channel:
    """A subscription; iterate over it for its events.

    ``async for event in channel`` gives every event in the server's order, across reconnections.
    Besides published events there are the protocol's own, which ``event.is_protocol`` tells apart:

    * ``pusher:cache_miss`` (``event.is_cache_miss``): the cache channel is empty. On a cache
      channel the first event is either the cached value or this; so it is again after each
      reconnection, for only the cache knows what was missed. A value may thus come twice.
    * ``pusher:member_added``, ``pusher:member_removed``: presence, with ``user_id`` (and
      ``user_info``) in ``event.json()``; :attr:`members` has been changed already. After a
      reconnection the roster is replaced as a whole, without such events.

    :attr:`subscription_count` just changes, without an event.

    What happens between two connections on a channel without a cache is not delivered; the
    protocol cannot tell (protocol.md 2.8).

    A bounded number of events waits for the consumer. When a *cache channel's* consumer falls
    behind, all pending values are replaced by the newest one (counted as ``conflated``). On any
    other channel new events are dropped, and once the consumer has read what waits the iteration
    raises ``LimitError`` with the number lost; it may then go on with another ``async for``.

    Each event has one consumer: a second task that reads at the same time gets
    ``trio.BusyResourceError``.
    """

    def __init__(self, conversation: Conversation, subscription: Subscription) -> None:
        self._conversation = conversation
        self._subscription = subscription

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        return f"<Channel {self.name!r} {self._subscription.phase.value}>"

    @property
    def name(self) -> str:
        """The whole name, prefixes included."""
        return self._subscription.name.text

    @property
    def is_subscribed(self) -> bool:
        """Whether the server delivers at present; False between two connections."""
        return self._subscription.phase is Phase.ACTIVE

    @property
    def members(self) -> Mapping[str, Any]:
        """The users of a presence channel: user id -> user_info, None where there is none.

        A live, read-only view; between two connections it is the last roster known.
        """
        return self._subscription.members

    @property
    def my_id(self) -> str | None:
        """Which of :attr:`members` is this client."""
        return self._subscription.my_id

    @property
    def subscription_count(self) -> int | None:
        """The last count that was announced; None where the app does not (protocol.md 2.10)."""
        return self._subscription.count

    def __aiter__(self) -> Channel:
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event. If cancelled, none was taken.

        Raises:
            StopAsyncIteration: unsubscribed, or the client was closed.
            LimitError: events were lost here, because the consumer was too slow.
            SubscriptionError: refused when it was to be renewed after a reconnection.
            RefusedError: the server told the client not to come back; with ``close_code``.
            trio.BusyResourceError: another task is reading.
        """
        return await self._subscription.queue.get()

    async def trigger(self, event: str, data: object) -> None:
        """Send a client event to the channel's other subscribers.

        Waits for the subscription if there is none at present. At most once: the event is handed
        to the connection's writer, and is lost if that connection ends before it has left. A
        refusal (client events are off, too many) comes as ``pusher:error`` in ``Client.events``,
        because that is all that the protocol has for it (protocol.md 4). If cancelled, nothing
        was sent.

        Args:
            event: name of the event; must start with ``client-``.
            data: value that JSON can say; sent as it is, so a string stays a string.

        Raises:
            LocalProtocolError: the name, or a channel that is neither private nor presence, or an
                encrypted one: nobody could read it, and every library refuses (protocol.md 8).
            SubscriptionError, RefusedError: as in iteration.
            trio.ClosedResourceError: unsubscribed, or the client was closed.
        """
        name = self._subscription.name
        if not event.startswith("client-"):
            raise LocalProtocolError(f"A client event's name must start with client-, not {event}")
        if not name.allows_client_events or name.is_encrypted:
            raise LocalProtocolError(
                "Client events need a private or presence channel without encryption, not "
                + name.text
            )
        await self._conversation.trigger(self._subscription, event, data)

    async def unsubscribe(self) -> None:
        """Leave the channel; pending events are forgotten and iteration ends.

        If cancelled, the channel is left nevertheless, but the server may not know.
        """
        await self._conversation.subscriptions.unsubscribe(self._subscription)
