"""A synchronous door for threads: each call is done in the loop, and waited for here."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cachecast.errors import BrokerClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence

    from cachecast.asyncio.broker import Broker
    from cachecast.asyncio.subscriber import Subscriber
    from cachecast.broker.subscriber import Event
    from cachecast.broker.views import CachedEvent, ChannelState
    from cachecast.changes import Changes
    from cachecast.config import BrokerConfig
    from cachecast.metrics import BrokerStatistics

__all__ = ["SyncBroker", "SyncSubscriber"]

T = TypeVar("T")

#: Seconds between two looks at whether the loop is still there, which tells nobody when it closes.
LOOK_S: Final = 1.0

_OVER: Final = "The broker has ended, and the loop that it ran in with it"


class SyncBroker:
    """The verbs of a :class:`~cachecast.asyncio.Broker` for threads; ``broker.sync`` is one.

        broker.sync.publish(app.id, "cache-prices", "tick", {"eur": 1.08})

    Each blocks its thread until it is done, and raises what the asynchronous one does. They work in
    any thread but the loop's own, for which they would have to wait.
    """

    def __init__(self, broker: Broker, loop: asyncio.AbstractEventLoop) -> None:
        self._broker = broker
        self._loop = loop

    def _run(self, what: str, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:  # noqa: ANN401
        loop = self._loop
        if asyncio._get_running_loop() is loop:  # noqa: SLF001 - see Waits.check
            raise RuntimeError(
                f"broker.sync.{what}() would block the loop that it waits for: use "
                f"`await broker.{what}()` in the loop's own thread"
            )
        if loop.is_closed():
            raise BrokerClosedError(_OVER)
        call = function(*args)
        try:
            future = asyncio.run_coroutine_threadsafe(call, loop)
        except RuntimeError:  # it has been closed in this very moment
            call.close()
            raise BrokerClosedError(_OVER) from None
        try:
            while True:
                try:
                    return future.result(LOOK_S)
                except concurrent.futures.TimeoutError:
                    if future.done():
                        raise  # it is the function's own
                    if loop.is_closed():
                        raise BrokerClosedError(_OVER) from None
        except concurrent.futures.CancelledError:
            raise BrokerClosedError(_OVER) from None
        finally:
            future.cancel()  # of a thread that is interrupted
            if inspect.getcoroutinestate(call) == inspect.CORO_CREATED and loop.is_closed():
                call.close()  # nobody will

    def reload(self, config: BrokerConfig) -> Changes:
        """See :meth:`Broker.reload`."""
        return self._run("reload", self._broker.reload, config)

    def publish(
        self,
        app_id: str,
        channels: str | Sequence[str],
        event: str,
        data: object,
        *,
        socket_id: str | None = None,
    ) -> None:
        """See :meth:`Broker.publish`."""

        async def publish() -> None:
            await self._broker.publish(app_id, channels, event, data, socket_id=socket_id)

        self._run("publish", publish)

    def publish_batch(self, app_id: str, events: Sequence[tuple[str, str, object]]) -> None:
        """See :meth:`Broker.publish_batch`."""
        self._run("publish_batch", self._broker.publish_batch, app_id, events)

    def send_to_user(self, app_id: str, user_id: str, event: str, data: object) -> None:
        """See :meth:`Broker.send_to_user`."""
        self._run("send_to_user", self._broker.send_to_user, app_id, user_id, event, data)

    def channels(self, app_id: str, prefix: str = "") -> dict[str, ChannelState]:
        """See :meth:`Broker.channels`."""
        return self._run("channels", self._broker.channels, app_id, prefix)

    def channel(self, app_id: str, name: str) -> ChannelState:
        """See :meth:`Broker.channel`."""
        return self._run("channel", self._broker.channel, app_id, name)

    def users(self, app_id: str, channel: str) -> list[str]:
        """See :meth:`Broker.users`."""
        return self._run("users", self._broker.users, app_id, channel)

    def read_cache(self, app_id: str, channel: str) -> CachedEvent | None:
        """See :meth:`Broker.read_cache`."""
        return self._run("read_cache", self._broker.read_cache, app_id, channel)

    def terminate(self, app_id: str, user_id: str) -> int:
        """See :meth:`Broker.terminate`."""
        return self._run("terminate", self._broker.terminate, app_id, user_id)

    def statistics(self) -> BrokerStatistics:
        """See :meth:`Broker.statistics`."""

        async def read() -> BrokerStatistics:
            return self._broker.statistics()

        return self._run("statistics", read)

    @contextmanager
    def subscribe(self, app_id: str, channel: str) -> Iterator[SyncSubscriber]:
        """See :meth:`Broker.subscribe`.

        with broker.sync.subscribe(app.id, "cache-prices") as events:
            for event in events:
                print(event.name, event.json())
        """
        context = self._broker.subscribe(app_id, channel)
        subscriber = self._run("subscribe", context.__aenter__)
        try:
            yield SyncSubscriber(subscriber, self._run)
        finally:
            try:
                self._run("subscribe", context.__aexit__, None, None, None)
            except BrokerClosedError:
                pass  # which has ended it, too

    # --- what needs no loop

    @property
    def config(self) -> BrokerConfig:
        """See :attr:`Broker.config`."""
        return self._broker.config

    @property
    def is_ready(self) -> bool:
        """See :attr:`Broker.is_ready`."""
        return self._broker.is_ready

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
        """See :meth:`Broker.authorize_channel`."""
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
        """See :meth:`Broker.authenticate_user`."""
        return self._broker.authenticate_user(app_id, socket_id, user_data)

    def encrypt(self, encryption_master_key: str, channel: str, data: object) -> str:
        """See :meth:`Broker.encrypt`."""
        return self._broker.encrypt(encryption_master_key, channel, data)


class SyncSubscriber:
    """Events of one channel for a thread; iterate over it with ``for``."""

    def __init__(self, subscriber: Subscriber, run: Callable[..., Any]) -> None:
        self._subscriber = subscriber
        self._run = run

    @property
    def conflated(self) -> int:
        """Number of values that a newer one replaced before they were read."""
        return self._subscriber.conflated

    def __iter__(self) -> SyncSubscriber:
        """Iterate until the ``with`` block or the broker has ended."""
        return self

    def __next__(self) -> Event:
        """Wait for the next event.

        Raises:
            LimitError: too many events waited, and some were lost.
            StopIteration: the block or the broker has ended.
        """

        async def take() -> Event | None:
            try:
                return await anext(self._subscriber)
            except StopAsyncIteration:
                return None

        try:
            event: Event | None = self._run("subscribe", take)
        except BrokerClosedError:
            event = None
        if event is None:
            raise StopIteration
        return event
