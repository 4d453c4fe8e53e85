"""Events of encrypted channels, opened in order, with one more try after a key rotation.

As pusher-js does (protocol.md 8): an event that cannot be opened makes the client ask its
authorizer once more, and is tried again with the key that it then gets. Events that come in the
meantime wait their turn behind it. What cannot be opened even so (a value that was cached before
the rotation, say) is dropped, counted and reported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import trio

from cachecast.errors import AuthError, BadMessageError
from cachecast.protocol import encryption

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.client.events import Event
    from cachecast.client.link import Link
    from cachecast.client.subscription import Subscription
    from cachecast.client.subscriptions import Subscriptions

__all__ = ["Decryption"]

#: Seconds that the authorizer is left alone after an answer that brought no other key: whoever can
#: publish rubbish must not be able to make every subscriber ask at that rate.
ASK_EVERY_S: Final = 10.0


class Decryption:
    """Opens the events of one client's encrypted channels.

    Attributes:
        failed: number of events that could not be opened.
    """

    def __init__(
        self,
        subscriptions: Subscriptions,
        report: Callable[[str, str], None],
        *,
        can_ask_again: bool,
    ) -> None:
        self.failed = 0
        self._subscriptions = subscriptions
        self._report = report
        self._can_ask_again = can_ask_again

    def deliver(self, link: Link, subscription: Subscription, event: Event) -> None:
        """Open an event and queue it, or let it wait for another key. Never yields."""
        if subscription.sealed is not None:
            if len(subscription.sealed) < subscription.queue.limit:
                subscription.sealed.append(event)
            else:
                self._fail(event, "too many events wait for another key")
            return
        now = trio.current_time()
        is_time = now - subscription.asked_at >= ASK_EVERY_S
        try:
            self._open(subscription, event)
        except AuthError as error:
            if not (self._can_ask_again and is_time):
                self._fail(event, error.message)
                return
            subscription.sealed = [event]
            link.start_soon(self._ask_again, link, subscription)

    async def _ask_again(self, link: Link, subscription: Subscription) -> None:
        """Task of the link: get the key anew and go through what waits."""
        fault = ""
        try:
            leave = await self._subscriptions.authorize(link, subscription)
            if leave.key == subscription.key:
                subscription.asked_at = trio.current_time()
            subscription.key = leave.key
        except AuthError as error:
            subscription.asked_at = trio.current_time()
            fault = error.message
        waiting, subscription.sealed = subscription.sealed or [], None
        for event in waiting:
            try:
                self._open(subscription, event)
            except AuthError as error:
                self._fail(event, fault or error.message)

    def _open(self, subscription: Subscription, event: Event) -> None:
        """Open one event and queue it.

        Raises:
            AuthError: another key might open it.
        """
        if subscription.key is None:
            raise AuthError("no key")
        try:
            data = encryption.decrypt(subscription.key, event.data)
        except BadMessageError as error:
            self._fail(event, error.message)
        else:
            subscription.queue.put(msgspec.structs.replace(event, data=data))

    def abandon(self, subscription: Subscription) -> None:
        """The connection ended, and what waits for a key will not get one."""
        self.failed += len(subscription.sealed or ())

    def _fail(self, event: Event, text: str) -> None:
        self.failed += 1
        self._report(f"Event {event.name} could not be decrypted: {text}", event.channel or "")
