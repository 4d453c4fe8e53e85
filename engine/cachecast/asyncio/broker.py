"""The Broker for asyncio: the verbs of the Trio one, in the same thread, without a hop.

What does not wait is called directly. What waits for a receipt waits for a future. Only what is a
task by its nature (a publisher that has to wait for room, a reload) becomes a task of Trio's.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio

from cachecast.asyncio.guest import GuestEndedError, open_guest
from cachecast.asyncio.subscriber import Subscriber
from cachecast.asyncio.sync import SyncBroker
from cachecast.asyncio.waits import Waits
from cachecast.broker import signing
from cachecast.broker.broker import boot_time
from cachecast.broker.broker import open_broker as open_trio_broker
from cachecast.config import DRAIN_CODES
from cachecast.protocol.http_api import make_event
from cachecast.server.listen import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from opentelemetry.trace import TracerProvider

    from cachecast.asyncio.guest import Guest
    from cachecast.broker.broker import Broker as TrioBroker
    from cachecast.broker.views import CachedEvent, ChannelState
    from cachecast.bus.receipt import Receipt as TrioReceipt
    from cachecast.bus.seam import Bus
    from cachecast.changes import Changes
    from cachecast.channels.hub import Hub
    from cachecast.config import BrokerConfig
    from cachecast.metrics import BrokerStatistics
    from cachecast.protocol.http_api import EventRequest
    from cachecast.server.inspector import InspectorTerms
    from cachecast.server.listen import Server as TrioServer
    from cachecast.server.listeners import Address
    from cachecast.server.tls import TlsTerms
    from cachecast.tasks.hooks import Hook

__all__ = ["Broker", "Receipt", "Server", "open_broker", "run_broker"]

T = TypeVar("T")
B = TypeVar("B", bound="Broker")


class Receipt:
    """What :meth:`Broker.publish_nowait` gives."""

    def __init__(self, receipt: TrioReceipt[None], waits: Waits) -> None:
        self._receipt = receipt
        self._waits = waits

    @property
    def is_done(self) -> bool:
        """Whether all nodes have it, or it has failed."""
        return self._receipt.is_done

    @property
    def fault(self) -> Exception | None:
        """Reason why it has failed, a ``BusError``; None while it is open or has not."""
        return self._receipt.fault

    async def wait(self) -> None:
        """Wait until it is done, and raise its fault. If cancelled, the publication goes on."""
        self._waits.check("publish_nowait")
        await self._waits.receipt(self._receipt)


class Server:
    """The server of a broker that listens.

    See ``cachecast.Server``.
    """

    def __init__(
        self, server: TrioServer, run: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]
    ) -> None:
        self._server = server
        self._run = run

    @property
    def port(self) -> int:
        """Number of the port for clients, the first of several; 0 where there is none."""
        return self._server.port

    @property
    def admin_port(self) -> int | None:
        """Number of the admin address's port, None if it has none."""
        return self._server.admin_port

    async def drain(self, within_s: float, *, code: int = DRAIN_CODES[0]) -> None:
        """Close all clients, evenly spread over ``within_s`` seconds, and stop listening.

        If cancelled, the rest stays open.

        Args:
            within_s: seconds over which the closings are spread.
            code: close code; 4100 or 4200.
        """

        async def drain() -> None:
            await self._server.drain(within_s, code=code)

        await self._run(drain)


class Broker:
    """One node in an asyncio program. Make it with :func:`open_broker`.

    Its methods are those of ``cachecast.Broker``, with the same arguments and errors. They work in
    the loop that opened it; ``sync`` has them for all other threads.

    Attributes:
        sync: the same verbs for threads, where they block until they are done.
    """

    def __init__(self, broker: TrioBroker, guest: Guest, server: TrioServer | None = None) -> None:
        """Wrap one that runs; :func:`open_broker` does."""
        self._broker = broker
        self._guest = guest
        self._waits = Waits(guest.loop, broker.delivery.check_open)
        self._server = None if server is None else Server(server, self._run)
        self.sync = SyncBroker(self, guest.loop)

    @property
    def server(self) -> Server:
        """Its server.

        Raises:
            RuntimeError: it does not listen.
        """
        if self._server is None:
            raise RuntimeError(
                "This broker does not listen: give open_broker(config, listen=...) an address"
            )
        return self._server

    @property
    def config(self) -> BrokerConfig:
        """The configuration that it serves by; :meth:`reload` replaces it."""
        return self._broker.config

    async def reload(self, config: BrokerConfig) -> Changes:
        """Serve by another configuration from now on; checked whole before anything changes.

        If cancelled, what has begun is finished all the same.

        Raises:
            ConfigError: the configuration cannot work; nothing has changed.
            BrokerClosedError: the broker has ended.
        """
        self._waits.check("reload")
        return await self._run(self._broker.reload, config)

    async def _run(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Await a function of Trio's, which ends with the broker at the latest."""
        self._broker.delivery.check_open()
        try:
            return await self._guest.run(function, *args)
        except GuestEndedError:
            self._broker.delivery.check_open()
            raise

    # --- publishing

    async def publish(
        self,
        app_id: str,
        channels: str | Sequence[str],
        event: str,
        data: object,
        *,
        socket_id: str | None = None,
    ) -> None:
        """Publish one event to one channel or several; see ``cachecast.Broker.publish``.

        If cancelled while it waits because too much is undelivered, nothing was published; later
        all is.

        Raises:
            BadRequestError: a name, the socket id or the app id is wrong.
            LimitError: the data or the rate is over the app's limit.
            BusError: the other nodes cannot be reached.
            TypeError: the data has no JSON form.
        """
        self._waits.check("publish")
        hub = self._broker.hub(app_id)
        await self._publish(hub, [make_event(hub.app, channels, event, data, socket_id)])

    async def _publish(self, hub: Hub, requests: Sequence[EventRequest]) -> None:
        delivery = self._broker.delivery
        try:
            receipt = delivery.publish_nowait(hub, requests)
        except trio.WouldBlock:
            await self._run(delivery.publish, hub, requests)
            return
        if receipt.is_done:
            await asyncio.sleep(0)  # whoever publishes in a loop lets others have their turn
        await self._waits.receipt(receipt)

    def publish_nowait(
        self,
        app_id: str,
        channels: str | Sequence[str],
        event: str,
        data: object,
        *,
        socket_id: str | None = None,
    ) -> Receipt:
        """Queue an event without waiting; see ``cachecast.Broker.publish_nowait``.

        Raises:
            WouldBlock: too much is undelivered; nothing was published.
        """
        self._waits.check("publish_nowait")
        receipt = self._broker.publish_nowait(app_id, channels, event, data, socket_id=socket_id)
        return Receipt(receipt, self._waits)

    async def publish_batch(self, app_id: str, events: Sequence[tuple[str, str, object]]) -> None:
        """Publish several events, ``(channel, event, data)`` each, in order, all or none.

        Raises:
            BadRequestError: one of them is wrong; none was published.
            LimitError: see :meth:`publish`.
        """
        self._waits.check("publish_batch")
        hub = self._broker.hub(app_id)
        await self._publish(
            hub, [make_event(hub.app, channel, event, data) for channel, event, data in events]
        )

    async def send_to_user(self, app_id: str, user_id: str, event: str, data: object) -> None:
        """Publish to all connections of a signed-in user; see :meth:`publish`.

        Raises:
            BadRequestError: no user can sign in with that id; the text names the rule.
        """
        self._waits.check("send_to_user")
        await self.publish(app_id, self._broker.channel_of_user(app_id, user_id), event, data)

    # --- reading

    async def channels(self, app_id: str, prefix: str = "") -> dict[str, ChannelState]:
        """The occupied channels whose name starts with ``prefix``; O(occupied channels).

        Raises:
            BusError: the other nodes cannot be reached; so with all that follow.
        """
        self._waits.check("channels")
        broker = self._broker
        return await self._waits.receipt(broker.questions.channels(broker.hub(app_id), prefix))

    async def channel(self, app_id: str, name: str) -> ChannelState:
        """One channel, occupied or not; a user's own counts as unoccupied.

        Raises:
            BadRequestError: the name is wrong.
        """
        self._waits.check("channel")
        broker = self._broker
        return await self._waits.receipt(broker.questions.channel(broker.hub(app_id), name))

    async def users(self, app_id: str, channel: str) -> list[str]:
        """Ids of the distinct members of a presence channel.

        Raises:
            BadRequestError: it is no presence channel.
        """
        self._waits.check("users")
        broker = self._broker
        found = await self._waits.receipt(broker.questions.users(broker.hub(app_id), channel))
        return list(found)

    async def read_cache(self, app_id: str, channel: str) -> CachedEvent | None:
        """The value of a cache channel, or None if it has none.

        Raises:
            BadRequestError: it is no cache channel.
        """
        self._waits.check("read_cache")
        broker = self._broker
        return await self._waits.receipt(broker.questions.cached(broker.hub(app_id), channel))

    @asynccontextmanager
    async def subscribe(self, app_id: str, channel: str) -> AsyncIterator[Subscriber]:
        """Receive a channel's events in this process, its cached value first.

            async with broker.subscribe(app.id, "cache-prices") as events:
                async for event in events:
                    print(event.name, event.json())

        It does not count as a connection: no presence, no ``channel_occupied``.

        Raises:
            BadRequestError: the name or the app id is wrong.
            BusError: the other nodes cannot be reached.
        """
        self._waits.check("subscribe")
        listening = self._broker.listen(app_id, channel)
        try:
            await self._waits.receipt(listening.receipt)
            yield Subscriber(listening.subscriber, self._waits)
        finally:
            listening.end()

    @property
    def is_ready(self) -> bool:
        """Whether clients should be sent here: not while it drains, or misses the other nodes."""
        return self._broker.is_ready

    def statistics(self) -> BrokerStatistics:
        """Everything there is to know in numbers; O(channels)."""
        return self._broker.statistics()

    # --- users and authorization

    async def terminate(self, app_id: str, user_id: str) -> int:
        """Disconnect all connections that are signed in as a user; returns how many.

        Raises:
            BusError: the other nodes cannot be reached.
        """
        self._waits.check("terminate")
        broker = self._broker
        return await self._waits.receipt(broker.end_user(broker.hub(app_id), user_id))

    def authorize_channel(
        self,
        app_id: str,
        socket_id: str,
        channel: str,
        *,
        user_id: str | None = None,
        user_info: object = None,
        encryption_master_key: str | None = None,
    ) -> dict[str, str]:
        """What an authorization endpoint answers; see ``cachecast.Broker.authorize_channel``.

        Works in any thread.
        """
        return self._broker.authorize_channel(
            app_id,
            socket_id,
            channel,
            user_id=user_id,
            user_info=user_info,
            encryption_master_key=encryption_master_key,
        )

    def authenticate_user(
        self, app_id: str, socket_id: str, user_data: Mapping[str, object]
    ) -> dict[str, str]:
        """What a user authentication endpoint answers; ``user_data`` needs a string ``id``.

        Works in any thread.

        Raises:
            BadRequestError: the socket id is wrong, or the broker would refuse the sign-in.
        """
        return self._broker.authenticate_user(app_id, socket_id, user_data)

    @staticmethod
    def encrypt(encryption_master_key: str, channel: str, data: object) -> str:
        """Event data, as :meth:`publish` takes it, as ciphertext for an encrypted channel.

        Works in any thread.

        Raises:
            ConfigError: the key is not 32 bytes in base64.
            TypeError: the data has no JSON form.
        """
        return signing.encrypt(encryption_master_key, channel, data)

    # --- being told

    def on(self, name: str, hook: Hook) -> None:
        """Call ``hook(app_id, event)``, an async function of asyncio's, when something happens.

        See ``cachecast.Broker.on`` for the names. A hook that takes longer than thirty seconds is
        cancelled; whatever it raises is logged.
        """
        self._waits.check("on")
        self._broker.on(name, self._guest.for_trio(hook))


@asynccontextmanager
async def open_broker(
    config: BrokerConfig,
    *,
    listen: Address | Sequence[Address] | None = None,
    tls: TlsTerms | None = None,
    admin_address: str | None = None,
    trusts_proxy: bool = False,
    proxy_protocol: bool = False,
    inspector: InspectorTerms | None = None,
    clock: Callable[[], float] = boot_time,
    unix_now: Callable[[], float] = time.time,
    bus: Bus | None = None,
    tracer_provider: TracerProvider | None = None,
) -> AsyncIterator[Broker]:
    """Run a Broker in the asyncio loop that runs here, with its server if it is to listen.

        async with open_broker(config, listen="127.0.0.1:6001") as broker:
            await broker.publish(app.id, "cache-prices", "tick", {"eur": 1.08})

    All brokers of a loop share one run of Trio in it. Leaving the block normally gives webhooks
    that wait a last chance, for at most five seconds; leaving it by an exception or a cancellation
    does not wait. Either way everything has ended when it is left. A broker that fails cancels the
    task that opened it, as a task group does, and its error comes out of the block.

    Args:
        config: apps and limits.
        listen: address for clients and the HTTP API, or several, see ``cachecast.serve``; None
            serves nobody outside of this process.
        tls: certificate and key; None serves plain text.
        admin_address: address of ``/up``, ``/ready`` and ``/metrics``, always plain text.
        trusts_proxy: whether to believe ``X-Forwarded-Proto`` and ``Forwarded``.
        proxy_protocol: whether each connection of a client begins with a header of the PROXY
            protocol.
        inspector: terms on which people look into the node at the admin address; None for its
            numbers only.
        clock: function that gives monotonic seconds.
        unix_now: function that gives the wall time in seconds.
        bus: the way to other nodes; by default what ``config.bus`` names, or this node is alone.
        tracer_provider: OpenTelemetry's provider of tracers, see ``cachecast.open_broker``.

    Raises:
        RuntimeError: asyncio does not run the caller, or Trio runs in this thread otherwise.
        ConfigError: the configuration cannot work, or an address cannot be listened on; nothing has
            started.
        BusError: the other nodes cannot be reached.
    """
    begin = None
    if listen is not None or admin_address is not None:
        begin = partial(
            serve,
            address=() if listen is None else listen,
            tls=tls,
            admin_address=admin_address,
            trusts_proxy=trusts_proxy,
            proxy_protocol=proxy_protocol,
            inspector=inspector,
        )
    opener = partial(
        open_trio_broker,
        config,
        clock=clock,
        unix_now=unix_now,
        bus=bus,
        tracer_provider=tracer_provider,
    )
    async with (
        open_guest("open_broker") as guest,
        guest.hold(partial(run_broker, Broker, guest, opener, begin)) as broker,
    ):
        yield broker


@asynccontextmanager
async def run_broker(
    kind: type[B],
    guest: Guest,
    opener: Callable[[], AbstractAsyncContextManager[TrioBroker]],
    begin: Callable[..., Awaitable[None]] | None = None,
) -> AsyncIterator[B]:
    """A broker for asyncio around one of Trio's, for a block of Trio.

    Args:
        kind: class of the broker.
        guest: the run that this block belongs to.
        opener: function that opens the broker of Trio.
        begin: function that serves it, if it is to be.
    """
    broker: B | None = None
    try:
        async with opener() as inner:
            if begin is None:
                broker = kind(inner, guest)
                yield broker
            else:
                async with _open_server(begin, inner) as server:
                    broker = kind(inner, guest, server)
                    yield broker
    finally:
        if broker is not None:
            broker._waits.end()  # noqa: SLF001 - its other half


@asynccontextmanager
async def _open_server(
    begin: Callable[..., Awaitable[None]], broker: TrioBroker
) -> AsyncIterator[TrioServer]:
    """Serve a broker for a block of Trio; that it cannot begin is not wrapped into a group."""
    refusal: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            server: TrioServer = await nursery.start(begin, broker)
        except Exception as error:  # noqa: BLE001 - raised again below
            refusal = error
        else:
            yield server
            nursery.cancel_scope.cancel()
    if refusal is not None:
        raise refusal
