"""The client: :func:`connect`, and the one task that keeps it connected."""

from __future__ import annotations

import dataclasses
import random as random_module
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from cachecast.client import wire
from cachecast.client.backoff import Backoff, Ending
from cachecast.client.channel import Channel
from cachecast.client.conversation import ClientState, Conversation
from cachecast.client.credentials import Credentials, HttpEndpoint, channel_data_of
from cachecast.client.link import Link, LinkSettings
from cachecast.client.target import dialer, find_target
from cachecast.errors import ConfigError
from cachecast.protocol.close_codes import Reaction
from cachecast.runtime import require_trio

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Mapping

    from cachecast.client.credentials import Authorizer, UserAuthenticator
    from cachecast.client.events import Event, EventQueue
    from cachecast.client.target import Dial, Target

__all__ = ["Client", "ClientStatistics", "OwnEvents", "connect"]

#: Seconds that leaving ``async with`` may take: what was triggered leaves, the server answers
#: Close.
CLOSE_GRACE_S: Final = 2.0


@dataclasses.dataclass(frozen=True)
class ClientStatistics:
    """What has happened so far; see :meth:`Client.statistics`.

    Attributes:
        state: state of the connection at present.
        attempts: number of attempts at a connection, also those that failed.
        connections: number of connections that were established.
        messages_sent, messages_received: number of messages of the protocol, pings included.
        bad_messages: number of messages from the server that could not be understood.
        errors: number of ``pusher:error`` messages from the server.
        subscriptions: number of subscriptions that are active or are to be.
        queued_events: number of events that wait for a consumer.
        conflated_events: number of values of cache channels that a newer one replaced unread.
        lost_events: number of events dropped because the consumer was too slow.
        undecryptable_events: number of events of encrypted channels that could not be opened.
    """

    state: ClientState
    attempts: int
    connections: int
    messages_sent: int
    messages_received: int
    bad_messages: int
    errors: int
    subscriptions: int
    queued_events: int
    conflated_events: int
    lost_events: int
    undecryptable_events: int


class OwnEvents:
    """The events of a connection rather than of a channel; iterate over it.

    * ``pusher:error``: data is ``{"code": int or null, "message": str}``. From the server, or from
      this client where it could not understand or decrypt something (then code is null). Refused
      subscriptions are shown here too.
    * ``pusher:online``, ``pusher:offline``: the watchlist; data has ``user_ids`` (protocol.md 5.4).
    * ``pusher:state_change``: data has ``previous`` and ``current``, values of ``ClientState``.
    * anything that a server sends without a channel.

    The last 256 are kept for whoever reads them; older ones are dropped and counted as lost.
    """

    def __init__(self, queue: EventQueue) -> None:
        self._queue = queue

    def __aiter__(self) -> OwnEvents:
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event. If cancelled, none was taken.

        Raises:
            StopAsyncIteration: the client was closed.
            RefusedError: the server told the client not to come back.
            trio.BusyResourceError: another task is reading.
        """
        return await self._queue.get()


class Client:
    """A connection to a Pusher server that comes back by itself; made by :func:`connect`."""

    def __init__(
        self,
        target: Target,
        settings: LinkSettings,
        dial: Dial,
        credentials: Credentials,
        random: Callable[[], float],
        max_queued: int,
    ) -> None:
        self._target = target
        self._settings = settings
        self._dial = dial
        self._backoff = Backoff(random)
        self._conversation = Conversation(credentials, random, max_queued)
        self._events = OwnEvents(self._conversation.events)
        self._link: Link | None = None
        self._attempts = 0
        self._sent = 0
        self._received = 0
        self._closing = trio.Event()
        self._stopped = trio.Event()

    # --- looking

    @property
    def state(self) -> ClientState:
        """Where the client stands; changes come as ``pusher:state_change`` in :attr:`events`."""
        return self._conversation.state

    @property
    def socket_id(self) -> str | None:
        """The server's name for the present connection; None without one."""
        link = self._conversation.link
        return None if link is None else link.socket_id

    @property
    def user_id(self) -> str | None:
        """Who is signed in on the present connection."""
        return self._conversation.identity.user_id

    @property
    def last_ending(self) -> Ending | None:
        """Why the last connection, or the last attempt at one, came to an end."""
        return self._conversation.last_ending

    @property
    def events(self) -> OwnEvents:
        """Errors, watchlist events and changes of state."""
        return self._events

    def statistics(self) -> ClientStatistics:
        """A snapshot of the counts. O(subscriptions)."""
        talk = self._conversation
        subscriptions = list(talk.subscriptions)
        queues = [subscription.queue for subscription in subscriptions]
        link = self._link
        return ClientStatistics(
            state=talk.state,
            attempts=self._attempts,
            connections=talk.connections,
            messages_sent=self._sent + (link.sent if link else 0),
            messages_received=self._received + (link.received if link else 0),
            bad_messages=talk.bad_messages,
            errors=talk.errors,
            subscriptions=len(subscriptions),
            queued_events=sum(map(len, queues)) + len(talk.events),
            conflated_events=talk.subscriptions.conflated + sum(q.conflated for q in queues),
            lost_events=talk.subscriptions.lost + talk.events.lost + sum(q.lost for q in queues),
            undecryptable_events=talk.decryption.failed,
        )

    # --- doing

    async def wait_connected(self) -> None:
        """Wait until there is a connection; returns at once if there is one.

        Goes on through all attempts, so bound it: ``with trio.fail_after(10): ...``, after which
        :attr:`last_ending` says what the trouble is.

        Raises:
            RefusedError: the server told the client not to come back; with ``close_code``.
            trio.ClosedResourceError: the client was closed.
        """
        await self._conversation.wait_connected()

    async def subscribe(
        self,
        channel: str,
        *,
        user_id: str | None = None,
        user_info: object = None,
        max_queued: int | None = None,
    ) -> Channel:
        """Subscribe, and wait for the server's yes; through a reconnection if need be.

        A channel that is subscribed to already is given again (the options are the first call's).
        If cancelled, the subscription is given up, unless another call waits for it too.

        Args:
            channel: whole name of the channel; the prefix decides its kind.
            user_id: id of the member that this client is on a presence channel, if a ``secret``
                signs. An authorizer decides that itself. Without either, the signed-in user.
            user_info: what others are told of that member; JSON-encodable.
            max_queued: number of events that may wait for the consumer, instead of connect()'s.

        Raises:
            SubscriptionError: refused, by the authorizer (then it is the ``__cause__``) or by the
                server; ``channel``, ``kind`` and ``status`` say more.
            BadChannelNameError: outside the grammar; nothing was sent.
            RefusedError: the server told the client not to come back; with ``close_code``.
            trio.ClosedResourceError: the client was closed, or the channel unsubscribed.
        """
        talk = self._conversation
        data = channel_data_of(user_id, user_info)
        subscription = await talk.subscribe(channel, data, max_queued)
        return Channel(talk, talk.subscriptions.take(subscription))

    async def sign_in(self, user_data: Mapping[str, object] | str | None = None) -> Channel:
        """Sign in, now and on every later connection, and subscribe to the user's own channel.

        If cancelled, this client does not sign in on later connections. The server may have been
        asked already and takes the present one for signed in; the protocol has no signing out.

        Args:
            user_data: fields ``id``, and if wanted ``user_info`` and ``watchlist`` (protocol.md
                5.1); text is signed as it is. None with an authenticator, which brings its own.

        Returns:
            The channel ``#server-to-user-ID``.

        Raises:
            AuthError: refused, or signed in already.
            RefusedError: the server closed the connection for it, as soketi does (4009).
            SubscriptionError: the user's channel was refused.
        """
        if user_data is not None and not isinstance(user_data, str):
            user_data = wire.encode_data(user_data)
        talk = self._conversation
        return Channel(talk, talk.subscriptions.take(await talk.sign_in(user_data)))

    # --- the task

    async def run(self) -> None:
        """Connect, and connect again; returns when closed or refused. For :func:`connect`."""
        try:
            while not self._closing.is_set():
                ending = await self._connect_once()
                if self._closing.is_set():
                    return
                if ending.reaction is Reaction.TRY_TLS and not self._target.is_tls:
                    self._target = self._target.with_tls()
                elif ending.reaction in (Reaction.STOP, Reaction.TRY_TLS, Reaction.REPORT):
                    self._conversation.fail()
                    return
                self._conversation.enter(ClientState.UNAVAILABLE)
                with trio.move_on_after(self._backoff.next_delay_s(ending)):
                    await self._closing.wait()
        finally:
            self._conversation.close()
            self._stopped.set()

    async def _connect_once(self) -> Ending:
        self._attempts += 1
        link = self._link = Link(self._target, self._settings, self._dial, self._conversation)
        try:
            ending = await link.run()
        finally:
            self._link = None
            self._sent += link.sent
            self._received += link.received
        self._conversation.on_disconnected(ending)
        return ending

    async def close(self) -> None:
        """Let what was triggered leave, close the connection and wait for the end of :meth:`run`.

        For :func:`connect`, which bounds it.
        """
        self._closing.set()
        self._conversation.close()
        if self._link is not None:
            self._link.request_close()
        await self._stopped.wait()

    def raise_if_untold(self) -> None:
        """Raise the refusal that ended this client, if nobody has heard of it yet."""
        if self.state is ClientState.FAILED and not self._conversation.is_failure_told:
            raise self._conversation.ending()


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
    """Open a client of a Pusher server: this one, hosted Pusher, soketi, Reverb.

    Entering does not wait for the connection (``subscribe`` and the others do), so a service may
    start before its broker. Connections that end are replaced as the close code asks for, with
    backoff, and everything is subscribed to again. A code that forbids that (protocol.md 1.6)
    raises ``RefusedError`` out of whatever waits or iterates; if nothing does, leaving raises it.

    Leaving sends what was triggered and closes in an orderly way, within 2 s. If cancelled, it
    just closes. The client's only task lives in a nursery in here; errors of the body are not
    wrapped in groups by it.

    Args:
        url: address of the server, ``ws://host:port`` or ``wss://host``, with any path prefix.
        key: key of the app.
        secret: secret of the app: this program signs for itself. Never in a program that others
            run.
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
            proxies).

    Raises:
        RuntimeError: on entering, if another loop than Trio runs the caller.
        ConfigError: on entering, for arguments that cannot work.
        RefusedError: on leaving, see above.
    """
    require_trio("connect")
    target = find_target(url, key, cluster)
    settings = LinkSettings(
        headers or {}, activity_s, pong_limit_s, handshake_limit_s, max_message_length
    )
    async with AsyncExitStack() as stack:
        if auth_endpoint is not None or user_auth_endpoint is not None:
            # Imported where it is needed, for it takes 70 ms and most do not.
            import httpx2  # noqa: PLC0415

            http = await stack.enter_async_context(httpx2.AsyncClient())
            if auth_endpoint is not None:
                _refuse_two(secret, authorizer)
                authorizer = HttpEndpoint(http, auth_endpoint, auth_headers).authorize
            if user_auth_endpoint is not None:
                endpoint = HttpEndpoint(http, user_auth_endpoint, auth_headers)
                user_authenticator = endpoint.authenticate
        credentials = Credentials(
            key,
            secret=secret,
            authorizer=authorizer,
            user_authenticator=user_authenticator,
            encryption_master_key=encryption_master_key,
        )
        dial = dial or dialer(ssl_context)
        client = Client(target, settings, dial, credentials, random, max_queued)
        await stack.enter_async_context(_running(client))
        yield client


def _refuse_two(secret: str | None, authorizer: Authorizer | None) -> None:
    if secret is not None or authorizer is not None:
        raise ConfigError("auth_endpoint", "give one of secret, authorizer and auth_endpoint.")


@asynccontextmanager
async def _running(client: Client) -> AsyncIterator[None]:
    """Run the client's task while the body runs."""
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        try:
            yield
        # Raised again below, where no nursery wraps it into a group: `except KeyboardInterrupt`
        # around trio.run() is how programs end. Cancelled is none of it.
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001
            failure = error
        # A cancelled body has no use for an orderly end; its nursery ends the task at once.
        with trio.move_on_after(CLOSE_GRACE_S):
            await client.close()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    client.raise_if_untold()
