"""The client for services on asyncio: :mod:`cachecast.client`, seen through a door.

    async with connect("ws://127.0.0.1:6001", key="app-key", secret="app-secret") as client:
        channel = await client.subscribe("private-cache-prices")
        async for event in channel:
            print(event.name, event.json())

The one idea: there is one client, and it lives in the guest run of this loop, beside a broker if
there is one. What has to wait is a task over there, which a cancellation here ends. Events are
the exception, for there are many: both loops take turns in one thread, so a queue that Trio fills
may be emptied from here.
"""

from __future__ import annotations

import asyncio
import random as random_module
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from cachecast import client as trio_client
from cachecast.asyncio.client_dial import Dial, dialled
from cachecast.asyncio.guest import open_guest
from cachecast.client.credentials import channel_data_of
from cachecast.client.subscription import Phase
from cachecast.client.wire import encode_data

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from cachecast.asyncio.guest import Guest
    from cachecast.client import (
        Authorizer,
        ClientState,
        ClientStatistics,
        Ending,
        Event,
        UserAuthenticator,
    )
    from cachecast.client.conversation import Conversation
    from cachecast.client.events import EventQueue
    from cachecast.client.subscription import Subscription

__all__ = ["Channel", "Client", "OwnEvents", "connect"]

#: Number of events that wait already and are taken in a row, before the loop has a turn.
TURN_EVENTS: Final = 64


class _Door:
    """The way to one client in Trio.

    Attributes:
        guest: run that it lives in.
        talk: what it knows, which may be asked and told without a hop.
    """

    def __init__(self, guest: Guest, talk: Conversation) -> None:
        self.guest = guest
        self.talk = talk
        self._n_taken = 0

    def check(self, what: str) -> None:
        """Refuse who cannot wait here: another loop, another thread, or Trio.

        Args:
            what: verb that was called.

        Raises:
            RuntimeError: the text says what to do.
            trio.ClosedResourceError: the loop is closed, and the client with it.
        """
        if trio.lowlevel.in_trio_task():
            raise RuntimeError(
                f"{what} of cachecast.asyncio belongs to asyncio, and Trio runs here: use the "
                "client of cachecast.client"
            )
        # Private, as asyncio libraries use it: the public one raises, which costs a microsecond.
        if asyncio._get_running_loop() is not self.guest.loop:  # noqa: SLF001
            if self.guest.loop.is_closed():
                raise trio.ClosedResourceError("the client is closed: its loop is")
            raise RuntimeError(
                f"{what} works in the loop and thread that opened the client only: call "
                "asyncio.run_coroutine_threadsafe() from others"
            )

    async def next(self, what: str, queue: EventQueue) -> Event:
        """The next event of a queue; no hop, for both loops are in this thread."""
        self.check(what)
        self._n_taken += 1
        if not self._n_taken % TURN_EVENTS:
            await asyncio.sleep(0)  # before one is taken, which a cancellation would lose
        return await queue.get_by(asyncio.Event)


class OwnEvents:
    """The events of a connection rather than of a channel; iterate over it.

    The same as those of :class:`cachecast.client.OwnEvents`.
    """

    def __init__(self, door: _Door) -> None:
        self._door = door

    def __aiter__(self) -> OwnEvents:
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event, see :class:`cachecast.client.OwnEvents`.

        If cancelled, none was taken. Yields where none waits already, and each 64th time.
        """
        return await self._door.next("Client.events", self._door.talk.events)


class Channel:
    """A subscription; iterate over it for its events.

    All that :class:`cachecast.client.Channel` says holds here.
    """

    def __init__(self, door: _Door, subscription: Subscription) -> None:
        self._door = door
        self._subscription = subscription
        self._channel = trio_client.Channel(door.talk, subscription)

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        return repr(self._channel)

    @property
    def name(self) -> str:
        """The whole name, prefixes included."""
        return self._channel.name

    @property
    def is_subscribed(self) -> bool:
        """Whether the server delivers at present; False between two connections."""
        return self._channel.is_subscribed

    @property
    def members(self) -> Mapping[str, Any]:
        """The users of a presence channel, see :attr:`cachecast.client.Channel.members`."""
        return self._channel.members

    @property
    def my_id(self) -> str | None:
        """Which of :attr:`members` is this client."""
        return self._channel.my_id

    @property
    def subscription_count(self) -> int | None:
        """The last count that was announced; None where the app does not."""
        return self._channel.subscription_count

    def __aiter__(self) -> Channel:
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event, see :class:`cachecast.client.Channel`.

        If cancelled, none was taken. Yields where none waits already, and each 64th time.
        """
        return await self._door.next("iterating", self._subscription.queue)

    async def trigger(self, event: str, data: object) -> None:
        """Send a client event, see :meth:`cachecast.client.Channel.trigger`."""
        self._door.check("Channel.trigger()")
        self._door.talk.raise_if_over()
        await self._door.guest.run(self._channel.trigger, event, data)

    async def unsubscribe(self) -> None:
        """Leave the channel, see :meth:`cachecast.client.Channel.unsubscribe`."""
        self._door.check("Channel.unsubscribe()")
        if self._subscription.phase is Phase.OVER:
            self._subscription.queue.clear()
        else:
            await self._door.guest.run(self._channel.unsubscribe)


class Client:
    """A connection to a Pusher server that comes back by itself; made by :func:`connect`.

    All that :class:`cachecast.client.Client` says holds here.
    """

    def __init__(self, guest: Guest, client: trio_client.Client) -> None:
        self._client = client
        self._door = _Door(guest, client._conversation)  # noqa: SLF001 - the other side of it
        self._events = OwnEvents(self._door)

    @property
    def state(self) -> ClientState:
        """Where the client stands; changes come as ``pusher:state_change`` in :attr:`events`."""
        return self._client.state

    @property
    def socket_id(self) -> str | None:
        """The server's name for the present connection; None without one."""
        return self._client.socket_id

    @property
    def user_id(self) -> str | None:
        """Who is signed in on the present connection."""
        return self._client.user_id

    @property
    def last_ending(self) -> Ending | None:
        """Why the last connection, or the last attempt at one, came to an end."""
        return self._client.last_ending

    @property
    def events(self) -> OwnEvents:
        """Errors, watchlist events and changes of state."""
        return self._events

    def statistics(self) -> ClientStatistics:
        """A snapshot of the counts. O(subscriptions)."""
        return self._client.statistics()

    async def wait_connected(self) -> None:
        """Wait until there is a connection, see :meth:`cachecast.client.Client.wait_connected`.

        Goes on through all attempts, so bound it: ``async with asyncio.timeout(10): ...``.
        """
        self._door.check("Client.wait_connected()")
        self._door.talk.raise_if_over()
        await self._door.guest.run(self._client.wait_connected)

    async def subscribe(
        self,
        channel: str,
        *,
        user_id: str | None = None,
        user_info: object = None,
        max_queued: int | None = None,
    ) -> Channel:
        """Subscribe, see :meth:`cachecast.client.Client.subscribe`."""
        self._door.check("Client.subscribe()")
        data = channel_data_of(user_id, user_info)
        return await self._take(partial(self._door.talk.subscribe, channel, data, max_queued))

    async def sign_in(self, user_data: Mapping[str, object] | str | None = None) -> Channel:
        """Sign in, see :meth:`cachecast.client.Client.sign_in`."""
        self._door.check("Client.sign_in()")
        if user_data is not None and not isinstance(user_data, str):
            user_data = encode_data(user_data)
        talk = self._door.talk
        return await self._take(partial(talk.sign_in, user_data), talk.identity.forget)

    async def _take(
        self,
        subscribe: Callable[[], Awaitable[Subscription]],
        undo: Callable[[], object] = lambda: None,
    ) -> Channel:
        """Have a subscription made; if cancelled, it is nobody's.

        Trio's own callers have it in the step in which it is there. Here a cancellation may come
        between that step and the one in which who waits goes on.
        """
        talk = self._door.talk
        talk.raise_if_over()
        call = self._door.guest.start(subscribe)
        try:
            subscription = await call.wait()
        except asyncio.CancelledError:
            with suppress(Exception, asyncio.CancelledError):  # it came to nothing by itself
                talk.subscriptions.release(call.result())
                undo()
            raise
        return Channel(self._door, talk.subscriptions.take(subscription))


@asynccontextmanager
async def connect(
    url: str | None = None,
    *,
    key: str,
    secret: str | None = None,
    authorizer: Authorizer | None = None,
    auth_endpoint: str | None = None,
    user_authenticator: UserAuthenticator | None = None,
    user_auth_endpoint: str | None = None,
    auth_headers: Mapping[str, str] | None = None,
    encryption_master_key: str | bytes | None = None,
    cluster: str | None = None,
    headers: Mapping[str, str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    max_queued: int = 1_000,
    max_message_length: int = 1 << 20,
    activity_s: float = 120.0,
    pong_limit_s: float = 30.0,
    handshake_limit_s: float = 10.0,
    random: Callable[[], float] = random_module.random,
    dial: Dial | None = None,
) -> AsyncIterator[Client]:
    """Open a client of a Pusher server in an asyncio program, see :func:`cachecast.client.connect`.

    All that is said there holds here. ``authorizer``, ``user_authenticator`` and ``dial`` are
    called in the loop of the caller; all clients and brokers of a loop share one run of Trio in it.

    Leaving sends what was triggered and closes in an orderly way, within 2 s. If cancelled, it
    just closes.

    Args:
        url: address of the server, ``ws://host:port`` or ``wss://host``, with any path prefix.
        key: key of the app.
        secret: secret of the app: this program signs for itself.
        authorizer: function that is asked for each private, encrypted or presence channel, instead
            of a secret.
        auth_endpoint: URL that is asked the same over HTTP, as pusher-js does.
        user_authenticator: function that is asked for signing in.
        user_auth_endpoint: URL that is asked the same over HTTP.
        auth_headers: headers sent to both endpoints, and to where they redirect on the same host.
        encryption_master_key: key of 32 bytes, or the base64 of them, where no authorizer gives the
            ``shared_secret`` of an encrypted channel.
        cluster: name of a cluster of hosted Pusher, for example ``eu``; instead of ``url``.
        headers: headers sent with the WebSocket handshake.
        ssl_context: terms of TLS; None verifies with the system's certificates.
        max_queued: number of events that may wait for the consumer of a channel, see ``Channel``.
        max_message_length: characters of a message from the server at most; a longer one ends the
            connection with 1009.
        activity_s: seconds of silence after which the server is pinged, unless it announces less.
        pong_limit_s: seconds of silence after that ping which end the connection.
        handshake_limit_s: seconds for TCP, TLS, WebSocket and the server's greeting together.
        random: function that draws evenly in 0 <= x < 1; for the jitter.
        dial: function that opens the byte stream, TLS included, instead of the network (tests,
            proxies); gives what :func:`asyncio.open_connection` gives.

    Raises:
        RuntimeError: on entering, if another loop than asyncio's runs the caller.
        ConfigError: on entering, for arguments that cannot work.
        RefusedError: on leaving, if nothing that waited has told it.
    """
    failure: list[Exception] = []

    @asynccontextmanager
    async def connecting() -> AsyncIterator[trio_client.Client]:
        async with trio_client.connect(
            url,
            key=key,
            secret=secret,
            authorizer=authorizer and guest.for_trio(authorizer),
            auth_endpoint=auth_endpoint,
            user_authenticator=user_authenticator and guest.for_trio(user_authenticator),
            user_auth_endpoint=user_auth_endpoint,
            auth_headers=auth_headers,
            encryption_master_key=encryption_master_key,
            cluster=cluster,
            headers=headers,
            ssl_context=ssl_context,
            max_queued=max_queued,
            max_message_length=max_message_length,
            activity_s=activity_s,
            pong_limit_s=pong_limit_s,
            handshake_limit_s=handshake_limit_s,
            random=random,
            dial=dial and dialled(guest, dial),
        ) as client:
            yield client
            if failure:
                raise failure[0]

    async with open_guest("connect") as guest, guest.hold(connecting) as client:
        try:
            yield Client(guest, client)
        # Raised above, so that it ends the client as it does in Trio.
        except Exception as error:  # noqa: BLE001
            failure.append(error)
