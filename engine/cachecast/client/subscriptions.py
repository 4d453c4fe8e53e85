"""All channels of one client: asking for them, and what becomes of the asking.

Wishes are kept here and links come and go; whenever a link is established everything wished for is
asked for again. What has to wait (an authorizer, the sign-in) runs as a task of the link and dies
with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import trio

from cachecast.client import refusals, wire
from cachecast.client.credentials import Authorization, ask
from cachecast.client.subscription import Phase, Subscription
from cachecast.errors import AuthError, RemoteProtocolError, SubscriptionError
from cachecast.protocol.channel_name import Kind, parse_channel_name
from cachecast.protocol.json_text import read_json
from cachecast.protocol.messages import fault_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cachecast.client.credentials import Credentials
    from cachecast.client.events import Ending
    from cachecast.client.identity import Identity
    from cachecast.client.link import Link
    from cachecast.client.wire import ServerMessage

__all__ = ["Subscriptions"]

#: Seconds that a refusal that names no channel waits for a ``subscription_error`` that does.
ATTRIBUTION_S: Final = 0.25


class Subscriptions:
    """The channels of one client.

    Attributes:
        conflated, lost: number of events of subscriptions that are over, see ``EventQueue``.
    """

    def __init__(
        self,
        credentials: Credentials,
        random: Callable[[], float],
        identity: Identity,
        max_queued: int,
    ) -> None:
        self.conflated = 0
        self.lost = 0
        self._credentials = credentials
        self._random = random
        self._identity = identity
        self._max_queued = max_queued
        self._link: Link | None = None
        self._wanted: dict[str, Subscription] = {}
        #: Subscriptions asked for on this link and not answered, by name; in the order of asking.
        self._unanswered: dict[str, Subscription] = {}
        #: Texts of refusals without a channel that wait for one.
        self._nameless: list[str] = []

    def __iter__(self) -> Iterator[Subscription]:
        return iter(tuple(self._wanted.values()))

    def find(self, channel: str | None) -> Subscription | None:
        """The subscription to a channel that is not over."""
        return self._wanted.get(channel or "")

    # --- wishes

    async def subscribe(
        self, channel: str, channel_data: str | None, max_queued: int | None
    ) -> Subscription:
        """See :meth:`cachecast.client.Client.subscribe`.

        Whoever calls owes one :meth:`take` or :meth:`release` of what this returns.
        """
        subscription = self._wanted.get(channel)
        if subscription is None:
            name = parse_channel_name(channel)
            to_sign = channel_data if name.is_presence else None
            subscription = Subscription(name, max_queued or self._max_queued, to_sign)
            self._wanted[channel] = subscription
            if self._link is not None:
                self._link.start_soon(self._request, self._link, subscription)
        subscription.is_wanted = True
        subscription.waiters += 1
        try:
            await subscription.wait_active()
        except BaseException:
            self.release(subscription)
            raise
        return subscription

    def take(self, subscription: Subscription) -> Subscription:
        """What :meth:`subscribe` gave has come to its consumer. Never yields."""
        subscription.is_taken = True
        subscription.waiters -= 1
        return subscription

    def release(self, subscription: Subscription) -> None:
        """Nobody waits for what :meth:`subscribe` gave. Never yields.

        Given up is what no other call waits for and none has taken.
        """
        subscription.waiters -= 1
        if subscription.waiters or subscription.is_taken:
            return
        if subscription.phase is Phase.PENDING:
            self._give_up(subscription)
        elif subscription.phase is Phase.ACTIVE:
            self._undo(subscription)

    async def unsubscribe(self, subscription: Subscription) -> None:
        """See :meth:`cachecast.client.Channel.unsubscribe`."""
        subscription.queue.clear()
        if subscription.phase is Phase.ACTIVE:
            self._drop(subscription, _nothing)
            await self._send_unsubscribe(subscription)
        else:
            subscription.queue.finish(_nothing)
            self._give_up(subscription)
            await trio.lowlevel.checkpoint()

    def finish(self, ending: Callable[[], Ending]) -> None:
        """The client has ended; all is over."""
        for subscription in self:
            self._drop(subscription, ending)

    def _give_up(self, subscription: Subscription) -> None:
        """Nobody wants a pending subscription any more; an answer that is due decides."""
        subscription.is_wanted = False
        if subscription.name.text not in self._unanswered:
            self._drop(subscription, _nothing)

    def _undo(self, subscription: Subscription) -> None:
        """The server said yes to what nobody wants any more."""
        self._drop(subscription, _nothing)
        if self._link is not None:
            self._link.start_soon(self._send_unsubscribe, subscription)

    def _drop(self, subscription: Subscription, ending: Callable[[], Ending]) -> None:
        name = subscription.name.text
        if self._wanted.get(name) is subscription:
            del self._wanted[name]
            self._unanswered.pop(name, None)
            self.conflated += subscription.queue.conflated
            self.lost += subscription.queue.lost
        if subscription.request_scope is not None:
            subscription.request_scope.cancel()
        subscription.end(ending)

    async def _send_unsubscribe(self, subscription: Subscription) -> None:
        if self._link is None:
            await trio.lowlevel.checkpoint()
            return
        try:
            await self._link.send("pusher:unsubscribe", {"channel": subscription.name.text})
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the connection ended, and all its subscriptions with it

    # --- connections

    def on_connected(self, link: Link) -> None:
        """Ask for everything."""
        self._link = link
        for subscription in self:
            link.start_soon(self._request, link, subscription)

    def on_disconnected(self) -> None:
        """Keep the wishes, forget what was the connection's."""
        self._link = None
        self._unanswered.clear()
        self._nameless.clear()
        for subscription in self:
            subscription.suspend()
            if not subscription.is_wanted:
                self._drop(subscription, _nothing)

    async def _request(self, link: Link, subscription: Subscription) -> None:
        """Task of the link: obtain leave, then ask the server."""
        name = subscription.name
        with trio.CancelScope() as subscription.request_scope:
            try:
                leave = await self._obtain_leave(link, subscription)
                subscription.key = leave.key
                data = {"auth": leave.auth, "channel": name.text}
                if leave.channel_data:
                    data["channel_data"] = leave.channel_data
                self._unanswered[name.text] = subscription
                await link.send("pusher:subscribe", data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the next link asks again
            except RemoteProtocolError as error:
                self._refuse(subscription, error)
        subscription.request_scope = None

    async def _obtain_leave(self, link: Link, subscription: Subscription) -> Authorization:
        """What the channel's kind needs, and the sign-in where that has to come first (2.4)."""
        name = subscription.name
        leave = Authorization(auth="")
        if name.needs_auth:
            leave = await self.authorize(link, subscription)
        if name.is_presence and leave.channel_data:
            subscription.my_id = _user_id_in(leave.channel_data)
        elif name.is_presence or name.kind is Kind.SERVER_TO_USER:
            subscription.my_id = await self._identity.wait_signed_in()
        return leave

    async def authorize(self, link: Link, subscription: Subscription) -> Authorization:
        """Ask for leave for one channel.

        Raises:
            AuthError: refused, or no answer was to be had.
        """
        return await ask(
            lambda: self._credentials.authorize(
                link.socket_id, subscription.name, subscription.channel_data
            ),
            self._random,
            is_patient=subscription.was_active,
        )

    # --- answers

    def accept(self, message: ServerMessage) -> None:
        """``pusher_internal:subscription_succeeded``.

        Raises:
            BadMessageError: its roster cannot be read.
        """
        subscription = self._unanswered.pop(message.channel or "", None)
        if subscription is None:
            return
        if subscription.is_wanted:
            subscription.activate(message)
        else:
            # Given up while the answer was due. Only now may it be undone (protocol.md 2.8).
            self._undo(subscription)

    def refuse(self, message: ServerMessage) -> None:
        """``pusher:subscription_error``, which names the channel.

        Raises:
            BadMessageError: it cannot be read.
        """
        data = message.data_as(wire.ErrorData)
        text = data.error or data.message or "refused without a reason"
        if text in self._nameless:
            self._nameless.remove(text)
        subscription = self._unanswered.get(message.channel or "")
        if subscription is not None:
            name = subscription.name.text
            error = SubscriptionError(text, channel=name, kind=data.type, status=data.status)
            self._refuse(subscription, error)

    def refuse_by_text(self, text: str) -> None:
        """``pusher:error`` with code null, which may be about one of ours (protocol.md 2.9)."""
        channel = refusals.find_channel(text, self._unanswered)
        if channel is not None:
            self._refuse(self._unanswered[channel], SubscriptionError(text, channel=channel))
        elif self._link is not None and self._unanswered and refusals.is_nameless_refusal(text):
            self._nameless.append(text)
            self._link.start_soon(self._attribute, text, tuple(self._unanswered.values()))

    async def _attribute(self, text: str, candidates: tuple[Subscription, ...]) -> None:
        """Task of the link: find whom a refusal without a channel is about.

        Answers come in the order of asking, so it is the oldest signed one that is unanswered
        still. Servers that answer out of order name the channel, which is why we wait for that.
        """
        await trio.sleep(ATTRIBUTION_S)
        if text not in self._nameless:
            return
        self._nameless.remove(text)
        for subscription in candidates:
            name = subscription.name
            if name.needs_auth and self._unanswered.get(name.text) is subscription:
                self._refuse(subscription, SubscriptionError(text, channel=name.text))
                return

    def _refuse(self, subscription: Subscription, error: RemoteProtocolError) -> None:
        """A subscription came to nothing; whoever waits for it or reads is told why."""
        name = subscription.name.text
        is_evidence = isinstance(error, SubscriptionError)
        kind = error.kind if isinstance(error, SubscriptionError) else "AuthError"
        status = error.status if isinstance(error, SubscriptionError) else error.http_status

        def ending() -> SubscriptionError:
            made = SubscriptionError(error.message, channel=name, kind=kind, status=status)
            made.__cause__ = None if is_evidence else error
            return made

        self._drop(subscription, ending)


class _ChannelData(msgspec.Struct, frozen=True):
    user_id: str | int


_decode_channel_data = msgspec.json.Decoder(_ChannelData).decode


def _user_id_in(channel_data: str) -> str:
    try:
        return str(read_json(_decode_channel_data, channel_data).user_id)
    except (ValueError, RecursionError) as error:
        raise AuthError(f"Invalid channel_data: {fault_of(error)}") from None


def _nothing() -> None:
    """The ending of what was given up: ``async for`` just ends."""
