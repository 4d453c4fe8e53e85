"""A Broker in memory with its clients, and the history of what they asked and heard."""

from __future__ import annotations

from collections import defaultdict, deque
from contextlib import AsyncExitStack, asynccontextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cachecast.broker import open_broker
from cachecast.channels import waiting
from cachecast.config import BrokerConfig
from cachecast.server.succession import leave, settle_all
from cachecast.testing import TEST_APP, open_memory_network
from tests.simulation.checker import MISS, Heard, Listening, Published, check
from tests.sockets import moving as moves

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from cachecast.broker import Broker
    from cachecast.testing import MemoryClient, MemoryNetwork
    from cachecast.testing.socket import MemorySocket

TTL_S = 30.0
CACHE_CHANNELS = ("cache-a", "private-cache-b", "presence-cache-c")
CHANNELS = (*CACHE_CHANNELS, "normal", "presence-d")

APP = msgspec.structs.replace(
    TEST_APP,
    cache_ttl_s=TTL_S,
    max_event_bytes=2_500,
    max_presence_member_bytes=1_000,
    max_pending_bytes=3_600,
    stall_timeout_s=20.0,
    client_events_per_s=1_000.0,
    sends_subscription_counts=True,
)


@dataclass
class _Player:
    """One client, and where it stands in each of its channels."""

    name: str
    client: MemoryClient
    n_heard: int = 0
    is_slow: bool = False
    waiting: dict[str, deque[Listening]] = field(default_factory=lambda: defaultdict(deque))
    current: dict[str, Listening] = field(default_factory=dict)

    def listenings(self, channel: str) -> list[Listening]:
        current = self.current.get(channel)
        return ([current] if current else []) + list(self.waiting[channel])


class World:
    """Everything that happens goes through here, so that it is written down."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.broker: Broker = network.broker
        self.asleep = 0.0
        self.players: list[_Player] = []
        self.order: dict[str, list[Published]] = {name: [] for name in CHANNELS}
        self.history: dict[str, list[Listening]] = {name: [] for name in CHANNELS}
        self.n_players = 0
        self.n_questions = 0
        #: Opens the next process; None where there is none.
        self.open_next: Callable[[], Awaitable[MemoryNetwork]] | None = None
        #: What each client has heard, those who have left included.
        self.everybody: list[MemoryClient] = []

    def now(self) -> float:
        """The broker's time, and a nanosecond later at each question.

        Virtual time stands still while things happen; without an order of before and after the
        checker could accuse nobody.
        """
        self.n_questions += 1
        return trio.current_time() + self.asleep + self.n_questions * 1e-9

    # --- what clients and publishers do

    def join(self, *, speaks_msgpack: bool) -> None:
        self.n_players += 1
        client = self.network.open(speaks_msgpack=speaks_msgpack)
        self.everybody.append(client)
        self.players.append(_Player(f"client {self.n_players}", client))

    def subscribe(self, player: _Player, channel: str) -> None:
        current = player.listenings(channel)
        if current and not current[-1].is_over:
            return  # the server would refuse, and test_decisions.py shows how
        listening = Listening(
            f"{player.name}", self.now(), is_cache=channel in CACHE_CHANNELS, is_slow=player.is_slow
        )
        player.waiting[channel].append(listening)
        self.history[channel].append(listening)
        user_id = player.name if channel.startswith("presence-") else None
        player.client.send(player.client.subscription(channel, user_id=user_id))

    def unsubscribe(self, player: _Player, channel: str) -> None:
        current = player.listenings(channel)
        if not current or current[-1].is_over:
            return
        current[-1].is_over = True
        player.client.unsubscribe(channel)

    def publish(self, channels: tuple[str, ...], size: int) -> None:
        """Published at one instant of the clock, which the answer is part of."""
        started = self.now()
        for channel in channels:
            name = f"{channel}:{len(self.order[channel])}"
            try:
                self.broker.publish_nowait(APP.id, channel, "tick", f"{name} " + "x" * size)
            except trio.WouldBlock:
                continue
            self.order[channel].append(Published(name, started, self.now()))

    def chat(self, player: _Player, channel: str) -> None:
        """A client event, which must neither be cached nor taken for a value."""
        if channel.startswith("pr"):
            player.client.trigger(channel, "client-chat", "chat")

    def stop_reading(self, player: _Player, n_bytes: int) -> None:
        player.is_slow = True
        for channel in CHANNELS:
            for listening in player.listenings(channel):
                listening.is_slow = True
        player.client.stop_reading(n_bytes)
        self.network.poller.touch(player.client.socket.fileno())  # there may be room now

    def read(self, player: _Player, n_bytes: float) -> None:
        player.client.read(n_bytes)

    def leave(self, player: _Player, how: str) -> None:
        self.listen()
        self.players.remove(player)
        for channel in CHANNELS:
            for listening in player.listenings(channel):
                listening.is_over = True
        if how == "close":
            player.client.close()
        else:
            player.client.drop(ConnectionResetError() if how == "break" else None)

    # --- another process

    async def replace(self) -> None:
        """A new process takes the place of the node; or, to compare, all is as before that."""
        old = self.network
        if self.open_next is None:
            assert settle_all(old.server, 10.0)
            for fd in old.poller.sockets:  # a new selector would ask all of them, too
                old.poller.touch(fd)
            return
        new = self.network = await self.open_next()
        self.broker = new.broker
        new._fds = old._fds
        twins: dict[int, MemorySocket] = {}

        def open_socket(_family: int, fd: int) -> MemorySocket:
            new.poller.sockets[fd] = twins[fd] = copy(old.poller.sockets[fd])
            return twins[fd]

        taking, state, moving = moves.copy(old.server, new.server, open_socket, int)
        taking.finish(state)
        clients = {player.client.socket.fileno(): player.client for player in self.players}
        for fd, twin in twins.items():
            old.poller.sockets[fd].is_closed = True  # as it seems to a client, it was not closed
            if fd in clients:
                clients[fd].socket, clients[fd]._network = twin, new
        leave(old.server, moving)

    # --- time

    async def settle(self) -> None:
        await wait_all_tasks_blocked()
        self.listen()

    async def wait(self, seconds: float) -> None:
        await trio.sleep(seconds)
        await self.settle()

    def sleep(self, seconds: float) -> None:
        """The machine is suspended: the clock goes on, no task runs."""
        self.asleep += seconds

    # --- what is heard

    def listen(self) -> None:
        """Write down what has arrived since the last time."""
        for player in self.players:
            new = player.client.messages[player.n_heard :]
            player.n_heard += len(new)
            for message in new:
                self._hear(player, message.channel, message.event, message.data)
            if player.client.is_closed:
                for channel in CHANNELS:
                    for listening in player.listenings(channel):
                        listening.is_over = True

    def _hear(self, player: _Player, channel: str | None, event: str, data: object) -> None:
        if channel is None:
            return
        if event == "pusher_internal:subscription_succeeded":
            player.current[channel] = player.waiting[channel].popleft()
            player.current[channel].confirmed = self.now()
            return
        assert event != "pusher:subscription_error", data
        listening = player.current.get(channel)
        if event == "pusher:cache_miss":
            assert listening is not None
            listening.heard.append(Heard(MISS, self.now()))
        elif event == "tick":
            assert listening is not None
            listening.heard.append(Heard(str(data).partition(" ")[0], self.now()))
        elif event == "client-chat" and listening is not None and listening.is_cache:
            # Nothing but a value or a miss may be the first thing heard on a cache channel.
            is_first = not (listening.heard or listening.is_slow or player.waiting[channel])
            if is_first:
                listening.heard.append(Heard(event, self.now()))

    # --- the end

    async def finish(self) -> None:
        """Everybody reads to the end; then the history is judged and the accounts are audited."""
        for player in self.players:
            player.client.start_reading()
        await self.settle()
        await self.settle()
        faults = [
            f"{channel}: {fault}"
            for channel in CHANNELS
            for fault in check(self.order[channel], self.history[channel], TTL_S, self.now())
        ]
        assert faults == []
        for player in list(self.players):
            self.leave(player, "close")
        # Until a connection that broke unnoticed meets its next ping.
        await self.wait(self.broker.config.activity_timeout_s + TTL_S)
        self._audit()

    def _audit(self) -> None:
        statistics = self.broker.statistics()
        app = statistics.apps[0]
        assert (app.connections, app.subscriptions, app.channels, app.users) == (0, 0, 0, 0)
        assert (app.cache_entries, app.cache_bytes, app.undelivered_bytes) == (0, 0, 0)
        assert (statistics.outbox_bytes, statistics.backlogged_connections) == (0, 0)
        assert len(self.broker.heartbeat._wheel) == self.broker.clients.n_sessions == 0
        assert self.broker.announcements.stale_counts == self.broker.announcements.held == {}


@asynccontextmanager
async def open_world(*, is_replaced: bool = True) -> AsyncIterator[World]:
    """A world at the beginning of its time.

    Args:
        is_replaced: whether another process takes over where the story says so.
    """
    world: World | None = None

    def now() -> float:
        return trio.current_time() + (world.asleep if world is not None else 0.0)

    with pytest.MonkeyPatch.context() as patch:
        # Small, so that clients are paced by a few answers.
        patch.setattr(waiting, "PACE_BYTES", 400)
        patch.setattr(waiting, "RESUME_BYTES", 200)
        async with AsyncExitStack() as stack:

            async def open_next() -> MemoryNetwork:
                broker = await stack.enter_async_context(
                    open_broker(BrokerConfig(apps=(APP,)), clock=now, unix_now=now)
                )
                return await stack.enter_async_context(open_memory_network(broker))

            world = World(await open_next())
            world.open_next = open_next if is_replaced else None
            yield world
