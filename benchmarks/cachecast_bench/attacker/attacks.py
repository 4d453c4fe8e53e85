"""What a client can do to a node, attack by attack.

Most of it needs no credentials but an app's public key. A presence channel takes users who may join
it, and the last attack is an app that publishes to its own channels as hard as it can. Numbers are
those at which a node was seen to suffer; `scale` makes them smaller for a smoke test.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import resource
import ssl
import time
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from cachecast_bench.attacker.clients import Client, Counts, Crowd
from cachecast_bench.dialects.base import HttpReplies, client_frame
from cachecast_bench.generator.connecting import client_context

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachecast_bench.dialects.base import Handshake
    from cachecast_bench.dialects.pusher import PusherDialect
    from cachecast_bench.generator.loop import Loop

_BLOCK_BYTES = 64 * 1024
_OTHER_DESCRIPTORS = 200
_MOST_DESCRIPTORS = 10_000


class Attack:
    """One way to do harm.

    Attributes:
        title: What is done, in a few words.
        counts: What it came to.
    """

    title: ClassVar[str] = ""

    def __init__(self, loop: Loop, dialect: PusherDialect, scale: float) -> None:
        self.counts = Counts()
        self._loop = loop
        self._dialect = dialect
        self._endpoint = dialect.endpoint
        self._scale = scale

    def prepare(self) -> None:
        """Bring everything into place that is no part of the attack itself."""

    def begin(self) -> None:
        """Attack; whatever goes on after this returns is turned by the loop."""
        raise NotImplementedError

    def end(self) -> None:
        """Leave."""
        raise NotImplementedError

    def _scaled(self, number: int) -> int:
        return max(1, round(number * self._scale))

    def _arrive(self, number: int) -> Handshake:
        del number
        _, data = yield from self._dialect.arrive()
        return data


class _CrowdAttack(Attack):
    """An attack by one crowd, which is there before it begins."""

    _crowd: Crowd

    @override
    def prepare(self) -> None:
        self._crowd = self._gather()
        self._crowd.fill()

    def _gather(self) -> Crowd:
        raise NotImplementedError

    @override
    def begin(self) -> None:
        for client in self._crowd.clients:
            self._strike(client)

    def _strike(self, client: Client) -> None:
        raise NotImplementedError

    @override
    def end(self) -> None:
        self._crowd.stop()


class PresenceJoin(_CrowdAttack):
    """Everybody joins one presence channel at once, so that everybody is told of everybody."""

    title = "10,000 users join one presence channel at once"
    _CHANNEL = "presence-hostile"

    @override
    def _gather(self) -> Crowd:
        self._greetings: dict[int, bytes] = {}
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        size = min(self._scaled(_MOST_DESCRIPTORS), most - _OTHER_DESCRIPTORS)
        return Crowd(self._loop, self.counts, self._endpoint, size, greet=self._greet)

    def _greet(self, number: int) -> Handshake:
        self._greetings[number], data = yield from self._dialect.arrive()
        return data

    @override
    def _strike(self, client: Client) -> None:
        user_id = f"user-{client.number}"
        greeting = self._greetings[client.number]
        client.say(iter([self._dialect.authorized(self._CHANNEL, greeting, user_id)]))


class ManyChannels(_CrowdAttack):
    """Few connections take all the subscriptions they may have, on channels that are counted."""

    title = "100 connections join 1,000 counted channels each"
    _CHANNELS = 1_000

    @override
    def _gather(self) -> Crowd:
        names = [f"hostile-{i:04}" for i in range(self._CHANNELS)]
        self._frames = b"".join(self._dialect.subscribe(name) for name in names)
        size = self._scaled(100)
        return Crowd(self._loop, self.counts, self._endpoint, size, greet=self._arrive)

    @override
    def _strike(self, client: Client) -> None:
        client.say(iter([self._frames]))


class _Returning(_CrowdAttack):
    """An attack by clients who come back, and go on, when they are cut off."""

    _SIZE: ClassVar[int]

    @override
    def prepare(self) -> None:
        self._is_on = False
        super().prepare()

    @override
    def _gather(self) -> Crowd:
        return Crowd(
            self._loop,
            self.counts,
            self._endpoint,
            self._scaled(self._SIZE),
            greet=self._arrive,
            on_client=self._on_client,
        )

    def _on_client(self, client: Client) -> None:
        if self._is_on:
            self._strike(client)

    @override
    def begin(self) -> None:
        self._is_on = True
        super().begin()


class SubscribeFlood(_Returning):
    """Subscribe, unsubscribe, and so on."""

    title = "100 connections subscribe and unsubscribe without end"
    _SIZE = 100

    @override
    def _strike(self, client: Client) -> None:
        channel = f"hostile-{client.number}"
        pair = self._dialect.subscribe(channel) + self._dialect.unsubscribe(channel)
        client.say(itertools.repeat(pair * (_BLOCK_BYTES // len(pair))))


class FragmentFlood(_Returning):
    """Messages that never end and carry nothing: each fragment costs the sender six bytes."""

    title = "10 connections send empty fragments of a message without end"
    _SIZE = 10
    _FIRST, _NEXT = b"\x01\x80\x00\x00\x00\x00", b"\x00\x80\x00\x00\x00\x00"
    _REST = _NEXT * (_BLOCK_BYTES // len(_NEXT))

    @override
    def _strike(self, client: Client) -> None:
        client.say(itertools.chain([self._FIRST], itertools.repeat(self._REST)))


class SlowReaders(_Returning):
    """Subscribers of everything that is cached, who do not read what they asked for."""

    title = "50 clients subscribe to 200 values of 10 KB each and do not read"
    _SIZE = 50
    _N_VALUES, _VALUE_BYTES, _RECEIVE_BUFFER = 200, 10_000, 4_096

    @override
    def prepare(self) -> None:
        channels = [f"cache-hostile-{i:03}" for i in range(self._N_VALUES)]
        self._frames = b"".join(self._dialect.subscribe(name) for name in channels)
        self._publish(channels)
        super().prepare()

    def _publish(self, channels: list[str]) -> None:
        """Give each channel its value, by a connection for each."""

        def publish(number: int) -> Handshake:
            count = HttpReplies()
            data = yield self._dialect.publish(channels[number], [b"x" * self._VALUE_BYTES])
            while not count(data):
                data = yield b""
            return b""

        crowd = Crowd(
            self._loop, Counts(), self._endpoint, len(channels), greet=publish, in_flight=8
        )
        crowd.fill()
        crowd.stop()

    @override
    def _gather(self) -> Crowd:
        return Crowd(
            self._loop,
            self.counts,
            self._endpoint,
            self._scaled(self._SIZE),
            greet=self._arrive,
            on_client=self._on_client,
            reads=False,
            receive_buffer=self._RECEIVE_BUFFER,
        )

    @override
    def _strike(self, client: Client) -> None:
        client.say(iter([self._frames]))


class _Waves(Attack):
    """Many connections at once, and once more every second: what each does is one send."""

    _SIZE: ClassVar[int]
    _INTERVAL_NS: ClassVar[int] = 1_000_000_000

    @override
    def prepare(self) -> None:
        self._crowds: list[Crowd] = []
        self._is_on = False
        # What TLS there is, is said by hand.
        self._raw = dataclasses.replace(self._endpoint, tls=False)
        self._words = self._opening()

    def _opening(self) -> list[bytes]:
        """Return what the clients say, in turns."""
        raise NotImplementedError

    def _greet(self, number: int) -> Handshake:
        yield self._words[number % len(self._words)]
        return b""

    @override
    def begin(self) -> None:
        self._is_on = True
        self._wave()

    def _wave(self) -> None:
        if not self._is_on:
            return
        for crowd in self._crowds:
            crowd.stop()
        size = self._scaled(self._SIZE)
        crowd = Crowd(self._loop, self.counts, self._raw, size, greet=self._greet, in_flight=size)
        self._crowds = [crowd]
        crowd.start()
        self._loop.call_at(time.monotonic_ns() + self._INTERVAL_NS, self._wave)

    @override
    def end(self) -> None:
        self._is_on = False
        for crowd in self._crowds:
            crowd.stop()


class TlsHandshakes(_Waves):
    """Greetings that make the server agree on keys and sign, and are not gone on with.

    One greeting serves for all: each is a new one to the server, and costs its sender nothing.
    """

    title = "2,000 TLS handshakes at once, every second"
    _SIZE = 2_000

    @override
    def _opening(self) -> list[bytes]:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        greeting = client_context().wrap_bio(incoming, outgoing)
        try:
            greeting.do_handshake()
        except ssl.SSLWantReadError:
            pass
        return [outgoing.read()]


class ConnectionFlood(_Waves):
    """Connections with nothing to say that is of use: noise, halves of requests, unsigned ones.

    Each answer ends its connection, and another one comes at once.
    """

    title = "500 connections at a time bring noise instead of requests, and come again"
    _SIZE = 500

    @override
    def _opening(self) -> list[bytes]:
        chance = random.Random(7)
        host = b"Host: hostile\r\n"
        return [
            chance.randbytes(256),
            b"GET / HTTP/1.1\r\n" + host,
            b"GET /app/no-such-key HTTP/1.1\r\n" + host + b"\r\n",
            b"POST /apps/no-such-app/events HTTP/1.1\r\n" + host + b"Content-Length: 2\r\n\r\n{}",
            b"POST /apps/1/events HTTP/9.9\r\n\r\n",
            client_frame(b"a frame before its handshake"),
        ]


class BusyChannels(_CrowdAttack):
    """An app that publishes to all of its channels at once, as fast as the node takes it."""

    title = "one app publishes to 1,000 channels of its own flat out"
    _N_CHANNELS, _N_LISTENERS, _N_PUBLISHERS, _BATCH = 1_000, 10, 32, 10

    @override
    def prepare(self) -> None:
        self._names = [f"hostile-{i:04}" for i in range(self._scaled(self._N_CHANNELS))]
        super().prepare()
        self._publishers = Crowd(
            self._loop,
            self.counts,
            self._endpoint,
            self._N_PUBLISHERS,
            greet=self._connect,
            on_client=self._on_publisher,
        )
        self._requests = [
            self._dialect.publish_events(
                [(name, b"x" * 256) for name in self._names[at : at + self._BATCH]]
            )
            for at in range(0, len(self._names), self._BATCH)
        ]

    def _connect(self, number: int) -> Handshake:
        del number
        yield from ()
        return b""

    def _on_publisher(self, client: Client) -> None:
        start = client.number * len(self._requests) // self._N_PUBLISHERS
        client.say(self._requests_from(start))

    def _requests_from(self, start: int) -> Iterator[bytes]:
        turned = self._requests[start:] + self._requests[:start]
        return itertools.cycle(turned)

    @override
    def _gather(self) -> Crowd:
        return Crowd(self._loop, self.counts, self._endpoint, self._N_LISTENERS, greet=self._arrive)

    @override
    def begin(self) -> None:
        super().begin()
        self._publishers.start()

    @override
    def _strike(self, client: Client) -> None:
        mine = self._names[client.number :: self._N_LISTENERS]
        client.say(iter([b"".join(self._dialect.subscribe(name) for name in mine)]))

    @override
    def end(self) -> None:
        self._publishers.stop()
        super().end()


ATTACKS: dict[str, type[Attack]] = {
    "presence_join": PresenceJoin,
    "many_channels": ManyChannels,
    "tls_handshakes": TlsHandshakes,
    "subscribe_flood": SubscribeFlood,
    "fragment_flood": FragmentFlood,
    "slow_readers": SlowReaders,
    "connection_flood": ConnectionFlood,
    "busy_channels": BusyChannels,
}
