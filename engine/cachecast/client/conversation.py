"""A client's side of the protocol: what each message means, and in which state the client is.

The rule of this file: a message is handled without a checkpoint, one after the other, so each
handler may rely on what the one before has left.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import trio

from cachecast.client import refusals, wire
from cachecast.client.decryption import Decryption
from cachecast.client.events import Event, EventQueue, WhenFull
from cachecast.client.identity import Identity
from cachecast.client.subscriptions import Subscriptions
from cachecast.errors import RefusedError, SubscriptionError
from cachecast.protocol.channel_name import SERVER_TO_USER_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.client.backoff import Ending
    from cachecast.client.credentials import Credentials
    from cachecast.client.link import Link
    from cachecast.client.subscription import Subscription
    from cachecast.client.wire import ServerMessage
    from cachecast.errors import BadMessageError

__all__ = ["ClientState", "Conversation"]

#: Number of the connection's own events that wait for somebody who reads them; perhaps nobody does.
MAX_OWN_EVENTS = 256


class ClientState(enum.Enum):
    """Where a client stands."""

    #: State before the first connection.
    CONNECTING = "connecting"
    CONNECTED = "connected"
    #: State between two attempts, or at another attempt; ``last_ending`` says why.
    UNAVAILABLE = "unavailable"
    #: State once the server told us not to come back (protocol.md 1.6: 4001 to 4099, and 43xx).
    FAILED = "failed"
    #: State once ``async with`` was left.
    CLOSED = "closed"


class Conversation:
    """Implements :class:`~cachecast.client.link.LinkHandler`.

    Attributes:
        state: state of the connection, see :class:`ClientState`.
        link: the established connection, or None.
        last_ending: ending of the last connection, or of the last attempt at one.
        is_failure_told: whether somebody was told of the error of state ``FAILED``.
        events: queue of the connection's own events, see :attr:`cachecast.client.Client.events`.
        connections: number of connections that were established.
        bad_messages: number of messages from the server that could not be understood.
        errors: number of ``pusher:error`` messages.
    """

    def __init__(
        self, credentials: Credentials, random: Callable[[], float], max_queued: int
    ) -> None:
        self.state = ClientState.CONNECTING
        self.link: Link | None = None
        self.last_ending: Ending | None = None
        self.is_failure_told = False
        self.events = EventQueue(MAX_OWN_EVENTS, WhenFull.DROP_OLDEST)
        self.connections = 0
        self.bad_messages = 0
        self.errors = 0
        self.identity = Identity(credentials, random, self._report)
        self.subscriptions = Subscriptions(credentials, random, self.identity, max_queued)
        self.decryption = Decryption(
            self.subscriptions, self._report, can_ask_again=credentials.can_ask_again
        )
        self._changed = trio.lowlevel.ParkingLot()

    # --- state

    def enter(self, state: ClientState) -> None:
        """Change the state, note it in ``events`` and tell whoever waits. Never yields."""
        if state is self.state:
            return
        data = wire.encode_data({"previous": self.state.value, "current": state.value})
        self.state = state
        self.events.put(Event("pusher:state_change", data))
        self._changed.unpark_all()

    async def wait_connected(self) -> None:
        """Wait until a connection is established. Always yields."""
        await trio.lowlevel.checkpoint()
        while self.link is None:
            self.raise_if_over()
            await self._changed.park()

    def raise_if_over(self) -> None:
        """Raise what this client ended with, if it has ended."""
        if self.state in (ClientState.FAILED, ClientState.CLOSED):
            raise self.ending()

    def ending(self) -> RefusedError | trio.ClosedResourceError:
        """What this client ended with; made anew, for each raise adds to a traceback."""
        if self.state is not ClientState.FAILED or self.last_ending is None:
            return trio.ClosedResourceError("the client is closed")
        self.is_failure_told = True
        code, text = self.last_ending.code, self.last_ending.text
        return RefusedError(f"The server refused the connection: {code} {text}", close_code=code)

    def fail(self) -> None:
        """The last connection ended with a code that forbids another. Never yields."""
        self.enter(ClientState.FAILED)
        self.subscriptions.finish(self.ending)
        self.identity.finish(self.ending)
        self.events.finish(self.ending)

    def close(self) -> None:
        """The owner of this client has had enough. Never yields."""
        if self.state is not ClientState.FAILED:
            self.enter(ClientState.CLOSED)
            self.subscriptions.finish(lambda: None)
            self.identity.finish(self.ending)
            self.events.finish(lambda: None)

    def _report(self, text: str, channel: str | None = None) -> None:
        """Show a trouble of our own as the server's are shown."""
        data = wire.encode_data({"code": None, "message": text})
        self.events.put(Event("pusher:error", data, channel))

    # --- the link

    def on_connected(self, link: Link) -> None:
        """Ask for everything that is wished for; sign in first, as pusher-js does (2.3)."""
        self.link = link
        self.connections += 1
        self.identity.on_connected(link)
        self.subscriptions.on_connected(link)
        self.enter(ClientState.CONNECTED)

    def on_disconnected(self, ending: Ending) -> None:
        """Keep the wishes, forget what was the connection's."""
        self.link = None
        self.last_ending = ending
        for subscription in self.subscriptions:
            self.decryption.abandon(subscription)
        self.subscriptions.on_disconnected()
        self.identity.on_disconnected()

    def on_bad_message(self, error: BadMessageError) -> None:
        """Count it, report it, and go on."""
        self.bad_messages += 1
        self._report(error.message)

    def on_message(self, message: ServerMessage) -> None:
        """Handle one message.

        Raises:
            BadMessageError: it cannot be understood.
        """
        handler = _HANDLERS.get(message.event)
        if handler is not None:
            handler(self, message)
        elif message.channel is None:
            self.events.put(Event(message.event, message.text))
        else:
            self._on_channel_event(message)

    def _on_channel_event(self, message: ServerMessage) -> None:
        subscription = self.subscriptions.find(message.channel)
        event = None if subscription is None else subscription.receive(message)
        if subscription is None or event is None or self.link is None:
            return
        if subscription.name.is_encrypted and not event.is_protocol:
            self.decryption.deliver(self.link, subscription, event)
        else:
            subscription.queue.put(event)

    def _on_succeeded(self, message: ServerMessage) -> None:
        self.subscriptions.accept(message)

    def _on_refused(self, message: ServerMessage) -> None:
        self.subscriptions.refuse(message)

    def _on_signed_in(self, message: ServerMessage) -> None:
        del message
        self.identity.accept()

    def _on_watchlist(self, message: ServerMessage) -> None:
        for event in message.data_as(wire.WatchlistData).events:
            self.events.put(Event(f"pusher:{event.name}", wire.encode_data(event)))

    def _on_error(self, message: ServerMessage) -> None:
        data = message.data_as(wire.ErrorData)
        text = data.message or ""
        self.errors += 1
        self.events.put(Event("pusher:error", message.text, message.channel))
        is_about_sign_in = data.code == 4009 or refusals.is_about_sign_in(text)
        if self.identity.is_unanswered and is_about_sign_in:
            self.identity.refuse(text, data.code)
        elif data.code is None or data.code == 4009:
            # 4301 and 4302 are about something that was sent, never about a subscription.
            self.subscriptions.refuse_by_text(text)

    # --- verbs

    async def subscribe(
        self, channel: str, channel_data: str | None, max_queued: int | None
    ) -> Subscription:
        """See :meth:`cachecast.client.Client.subscribe`; still to be taken or released."""
        self.raise_if_over()
        if channel.startswith(SERVER_TO_USER_PREFIX) and self.identity.user_id is None:
            raise SubscriptionError("sign_in() subscribes to the user's channel", channel=channel)
        return await self.subscriptions.subscribe(channel, channel_data, max_queued)

    async def sign_in(self, user_data: str | None) -> Subscription:
        """See :meth:`cachecast.client.Client.sign_in`; still to be taken or released."""
        self.raise_if_over()
        user_id = await self.identity.sign_in(user_data, self.link)
        try:
            return await self.subscriptions.subscribe(SERVER_TO_USER_PREFIX + user_id, None, None)
        except BaseException:
            self.identity.forget()
            raise

    async def trigger(self, subscription: Subscription, event: str, data: object) -> None:
        """See :meth:`cachecast.client.Channel.trigger`."""
        while True:
            await subscription.wait_active()
            try:
                if self.link is not None:
                    await self.link.send(event, data, subscription.name.text)
                    return
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # not handed over; the loop yields until the next connection is there


_HANDLERS: dict[str, Callable[[Conversation, ServerMessage], None]] = {
    "pusher:error": Conversation._on_error,  # noqa: SLF001 - the table is part of the class
    "pusher:signin_success": Conversation._on_signed_in,  # noqa: SLF001
    "pusher:subscription_error": Conversation._on_refused,  # noqa: SLF001
    "pusher_internal:subscription_error": Conversation._on_refused,  # noqa: SLF001
    "pusher_internal:subscription_succeeded": Conversation._on_succeeded,  # noqa: SLF001
    "pusher_internal:watchlist_events": Conversation._on_watchlist,  # noqa: SLF001
}
