"""The same promise over real sockets: several clients and publishers at once, judged afterwards.

Nothing here knows how the broker works. Clients are trio-websocket's, publishers use the HTTP API
over keep-alive connections and the embedded API, all concurrently; one observer for each channel
hears everything, so it has the order in which the channel gave the publications.
"""

from __future__ import annotations

import json
import time
from random import Random
from typing import TYPE_CHECKING

import pytest
import trio
from trio_websocket import open_websocket_url

from cachecast.broker import open_broker
from cachecast.config import BrokerConfig
from cachecast.protocol import auth
from cachecast.server import serve
from cachecast.testing import TEST_APP
from tests.simulation.checker import MISS, Heard, Listening, Published, check
from tests.sockets.node import until

if TYPE_CHECKING:
    from trio_websocket import WebSocketConnection

    from cachecast.broker import Broker

TTL_S = 0.4
CACHE_CHANNELS = ("cache-a", "cache-b", "cache-c")
CHANNELS = (*CACHE_CHANNELS, "normal")
#: How often each is published to: one is quiet, so that its values die before the next.
WEIGHTS = (10.0, 4.0, 0.3, 4.0)
N_CLIENTS = 8

#: What the history must have of each before it ends, however long a busy machine takes for it.
N_MISSES = 20
N_REPLAYS = 200
N_EVICTIONS = 2
N_PUBLICATIONS = 1_500


class History:
    """What everybody did and heard, by channel."""

    def __init__(self) -> None:
        self.published: dict[str, dict[str, Published]] = {name: {} for name in CHANNELS}
        self.listenings: dict[str, list[Listening]] = {name: [] for name in CHANNELS}
        self.n = 0
        self.is_over = False

    def begin(self, channel: str) -> Published:
        self.n += 1
        publication = Published(f"{channel}:{self.n}", trio.current_time(), float("inf"))
        self.published[channel][publication.id] = publication
        return publication

    def is_rich(self) -> bool:
        """Whether enough of everything has happened but for evictions, which it cannot see."""
        first = [
            listening.heard[0].id
            for name in CACHE_CHANNELS
            for listening in self.listenings[name]
            if listening.heard
        ]
        n_misses = first.count(MISS)
        return (
            self.n >= N_PUBLICATIONS and n_misses >= N_MISSES and len(first) - n_misses >= N_REPLAYS
        )


class Client:
    """One connection; its reader writes down what it hears."""

    def __init__(self, name: str, connection: WebSocketConnection, history: History) -> None:
        self.name = name
        self.connection = connection
        self.history = history
        self.current: dict[str, Listening] = {}
        self.next: dict[str, list[Listening]] = {channel: [] for channel in CHANNELS}
        self.joined: set[str] = set()
        self.pong = trio.Event()

    async def subscribe(self, channel: str) -> None:
        listening = Listening(self.name, trio.current_time(), is_cache=channel in CACHE_CHANNELS)
        self.next[channel].append(listening)
        self.history.listenings[channel].append(listening)
        self.joined.add(channel)
        await self._send("pusher:subscribe", channel)

    async def unsubscribe(self, channel: str) -> None:
        self._last(channel).is_over = True
        self.joined.discard(channel)
        await self._send("pusher:unsubscribe", channel)

    def _last(self, channel: str) -> Listening:
        return self.next[channel][-1] if self.next[channel] else self.current[channel]

    async def _send(self, event: str, channel: str) -> None:
        message = {"event": event, "data": {"channel": channel}}
        await self.connection.send_message(json.dumps(message))

    async def fence(self) -> None:
        """Wait until everything that the server has sent so far is here."""
        await self.connection.send_message('{"event":"pusher:ping"}')
        await self.pong.wait()

    async def read(self) -> None:
        while True:
            message = json.loads(await self.connection.get_message())
            channel, now = message.get("channel"), trio.current_time()
            assert message["event"] != "pusher:error", message
            if message["event"] == "pusher_internal:subscription_succeeded":
                self.current[channel] = self.next[channel].pop(0)
                self.current[channel].confirmed = now
            elif message["event"] == "pusher:cache_miss":
                self.current[channel].heard.append(Heard(MISS, now))
            elif message["event"] == "tick":
                self.current[channel].heard.append(Heard(message["data"].split(" ")[0], now))
            elif message["event"] == "pusher:pong":
                self.pong.set()

    async def play(self, random: Random) -> None:
        """Come, stay a while and go, on all channels, in every rhythm."""
        while not self.history.is_over:
            channel = random.choice(CHANNELS)
            if channel in self.joined:
                await self.unsubscribe(channel)
                if random.random() < 0.5:
                    await self.subscribe(channel)
            else:
                await self.subscribe(channel)
            await trio.sleep(random.choice([0, 0, 0.001, 0.01, 0.05]))


async def _publish_embedded(broker: Broker, history: History, random: Random) -> None:
    while not history.is_over:
        (channel,) = random.choices(CHANNELS, WEIGHTS)
        publication = history.begin(channel)
        data = f"{publication.id} " + "x" * random.choice([0, 200, 8_000])
        await broker.publish(TEST_APP.id, channel, "tick", data)
        publication.answered = trio.current_time()
        await trio.sleep(random.choice([0, 0.001, 0.005, 0.02, TTL_S]))


async def _publish_by_http(port: int, history: History, random: Random) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        while not history.is_over:
            (channel,) = random.choices(CHANNELS, WEIGHTS)
            publication = history.begin(channel)
            body = json.dumps({"name": "tick", "channel": channel, "data": publication.id}).encode()
            await stream.send_all(_request(body))
            answer = b""
            while not answer.endswith(b"\r\n\r\n{}"):
                part = await stream.receive_some()
                assert part, answer
                answer += part
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            publication.answered = trio.current_time()
            await trio.sleep(random.choice([0, 0.002, 0.01]))


def _request(body: bytes) -> bytes:
    path = f"/apps/{TEST_APP.id}/events"
    query = auth.sign_request(
        TEST_APP.key, TEST_APP.secret.encode(), "POST", path, {}, body, time.time()
    )
    target = path + "?" + "&".join(f"{name}={value}" for name, value in query.items())
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.slow
async def test_every_subscriber_sees_k_then_k_plus_one_over_real_sockets() -> None:
    """Invariant 3, where clients, publishers, expiry and the kernel all run at once."""
    random, history = Random(1), History()
    config = BrokerConfig(apps=(TEST_APP,), cache_ttl_s=TTL_S)
    async with (
        open_broker(config, clock=trio.current_time) as broker,
        trio.open_nursery() as nursery,
    ):
        server = await nursery.start(serve, broker, "127.0.0.1:0")
        url = f"ws://127.0.0.1:{server.port}/app/{TEST_APP.key}?protocol=7"
        observers = [await _connect(nursery, f"observer {name}", url, history) for name in CHANNELS]
        for channel, observer in zip(CHANNELS, observers, strict=True):
            await observer.subscribe(channel)
        clients = [await _connect(nursery, f"client {n}", url, history) for n in range(N_CLIENTS)]
        for observer in observers:
            await observer.fence()
            observer.pong = trio.Event()
        async with trio.open_nursery() as crowd:
            for client in clients:
                crowd.start_soon(client.play, Random(random.random()))
            for _ in range(3):
                crowd.start_soon(_publish_embedded, broker, history, Random(random.random()))
            for _ in range(2):
                crowd.start_soon(_publish_by_http, server.port, history, Random(random.random()))
            await until(
                lambda: (
                    history.is_rich() and broker.statistics().apps[0].cache_evictions >= N_EVICTIONS
                )
            )
            history.is_over = True
        await until(lambda: not broker.hubs[TEST_APP.id].undelivered_bytes)
        for client in (*observers, *clients):
            await client.fence()
        nursery.cancel_scope.cancel()

    faults = []
    for channel in CHANNELS:
        observed = next(li for li in history.listenings[channel] if li.who == f"observer {channel}")
        order = [
            history.published[channel][heard.id] for heard in observed.heard if heard.id != MISS
        ]
        assert len(order) == len(history.published[channel]) > 0
        faults += check(order, history.listenings[channel], TTL_S)
    assert faults == []


async def _connect(nursery: trio.Nursery, name: str, url: str, history: History) -> Client:
    async def run(task_status: trio.TaskStatus[Client]) -> None:
        async with open_websocket_url(url) as connection:
            await connection.get_message()
            client = Client(name, connection, history)
            task_status.started(client)
            await client.read()

    return await nursery.start(run)
