"""Another wire, whole in this file: lines of tab-separated text over a plain socket.

Nothing in the engine knows of it. All that the protocol has must work on it all the same, beside
WebSockets of both codecs: every kind of channel, replay, presence, client events, sign-in, pings,
goodbyes, and what happens to clients that are slow.
"""

from __future__ import annotations

import json
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
import trio.testing

from cachecast.errors import BadMessageError, RemoteProtocolError
from cachecast.protocol import auth
from cachecast.protocol.messages import ClientMessage
from cachecast.protocol.wire import Wire
from cachecast.testing import TEST_APP

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cachecast.broker import Broker
    from cachecast.channels.connection import Connection
    from cachecast.protocol.messages import Control, Publication


# --- the wire


class TextCodec:
    """``EVENT TAB CHANNEL TAB DATA [TAB USER_ID]``, data and user id as JSON."""

    is_text = True

    def decode(self, payload: bytes) -> ClientMessage:
        event, channel, data = [*payload.decode(errors="replace").split("\t"), "", ""][:3]
        if not event:
            raise BadMessageError("Invalid line: it must begin with an event")
        return ClientMessage(event, channel or None, msgspec.Raw(data.encode()))

    def control(self, message: Control) -> bytes:
        return self._line(message.event, message.channel, message.data)

    def event(self, publication: Publication) -> bytes:
        return self._line(
            publication.event, publication.channel, publication.data, publication.user_id
        )

    def _line(
        self, event: str, channel: str | None, data: object, user_id: str | int | None = None
    ) -> bytes:
        fields = [event.encode(), (channel or "").encode(), msgspec.json.encode(data)]
        if user_id is not None:
            fields.append(msgspec.json.encode(user_id))
        return b"\t".join(fields)


class LineWire(Wire):
    """A message a line."""

    def frame(self, payload: bytes) -> bytes:
        return payload.replace(b"\n", b" ") + b"\n"

    def goodbye(self, code: int | None, reason: str = "") -> bytes:
        return f"bye\t{code}\t{reason}\n".encode()


LINES = LineWire(TextCodec())


# --- its two ends


class Served:
    """The server's end: the Transport of an Outbox, and the task that reads."""

    retries_same_bytes = False

    def __init__(self, broker: Broker, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.broker = broker
        self.sock = sock
        self.send = sock.send
        self.scope = trio.CancelScope()
        self.connection: Connection | None = None
        self.is_full = trio.Event()

    async def serve(self) -> None:
        clients = self.broker.clients
        try:
            app = clients.admit(TEST_APP.key, "7", None, is_tls=False)
        except RemoteProtocolError as error:
            self.sock.send(LINES.refusal(error))
            self.sock.close()
            return
        connection = self.connection = clients.open(app, LINES, self)
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, connection)
                    nursery.start_soon(self._read, connection)
        finally:
            clients.close(connection)
            connection.outbox.discard()
            self.sock.close()

    async def _read(self, connection: Connection) -> None:
        buffer = b""
        while True:
            await trio.lowlevel.wait_readable(self.sock)
            data = self.sock.recv(65_536)
            if not data:
                self.scope.cancel()
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                while connection.outbox.is_pacing:  # noqa: ASYNC110 - a toy
                    await trio.sleep(0.1)
                if not connection.outbox.is_finishing:
                    self.broker.clients.receive(connection, line)

    async def _write(self, connection: Connection) -> None:
        while True:
            await self.is_full.wait()
            await trio.lowlevel.wait_writable(self.sock)
            connection.outbox.flush(self.broker.clock())

    def wait_writable(self) -> None:
        self.is_full.set()

    def on_drained(self) -> None:
        self.is_full = trio.Event()
        if self.connection is not None and self.connection.outbox.is_finishing:
            self.scope.cancel()

    def on_slow(self) -> None:
        if self.connection is not None:
            self.broker.clients.disconnect_slow(self.connection)

    def on_broken(self) -> None:
        self.scope.cancel()


class LineClient:
    """The client's end; what it has not read is in the kernel."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.buffer = b""
        self.is_closed = False
        self.socket_id = ""

    def say(self, event: str, data: object = None, channel: str = "") -> None:
        self.sock.send(f"{event}\t{channel}\t{json.dumps(data)}\n".encode())

    def subscribe(self, channel: str, member: dict[str, Any] | None = None) -> None:
        data: dict[str, Any] = {"channel": channel}
        if member is not None:
            data["channel_data"] = json.dumps(member)
        text = auth.subscription_text(self.socket_id, channel, data.get("channel_data"))
        self.say("pusher:subscribe", data | {"auth": sign(text)})

    async def hear(self) -> list[str]:
        """The lines that have arrived; ``pusher:`` and ``pusher_internal:`` are cut off."""
        await trio.testing.wait_all_tasks_blocked()
        while not self.is_closed:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                break
            self.is_closed = not data
            self.buffer += data
            await trio.testing.wait_all_tasks_blocked()
        *lines, self.buffer = self.buffer.split(b"\n")
        short = [line.decode().replace("pusher_internal:", "").replace("pusher:", "")
                 for line in lines]  # fmt: skip
        if short and short[0].startswith("connection_established"):
            self.socket_id = json.loads(short.pop(0).split("\t")[2])["socket_id"]
        return short


def sign(text: str) -> str:
    pair = TEST_APP.key_pairs[-1]
    return f"{pair.key}:{auth.sign(pair.secret.encode(), text.encode())}"


@asynccontextmanager
async def line_clients(broker: Broker, n: int) -> AsyncIterator[list[LineClient]]:
    """So many clients, connected."""
    clients: list[LineClient] = []
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(n):
                ours, theirs = socket.socketpair()
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
                nursery.start_soon(Served(broker, ours).serve)
                clients.append(LineClient(theirs))
                await clients[-1].hear()
            yield clients
            nursery.cancel_scope.cancel()
    finally:
        for client in clients:
            client.sock.close()


# --- the protocol on it


async def test_every_kind_of_channel_replays_and_presence_beside_websockets(autojump_clock, stage):
    plain, packed = await stage.enter("A"), await stage.enter("M", speaks_msgpack=True)
    async with line_clients(stage.broker, 1) as (client,):
        await stage.broker.publish(stage.app_id, "cache-x", "tick", {"n": 1})
        await plain.subscribe("presence-x", user_id=1, user_info={"name": "\u00e4"})

        for channel in ("cache-x", "cache-y", "private-x"):
            client.subscribe(channel)
        assert await client.hear() == [
            "subscription_succeeded\tcache-x\t{}",
            'tick\tcache-x\t"{\\"n\\":1}"',
            "subscription_succeeded\tcache-y\t{}",
            "cache_miss\tcache-y\t{}",
            "subscription_succeeded\tprivate-x\t{}",
        ]
        client.subscribe("presence-x", {"user_id": 2})
        assert await client.hear() == [
            'subscription_succeeded\tpresence-x\t{"presence":{"ids":[1,2],'
            '"hash":{"1":{"name": "\u00e4"},"2":{}},"count":2}}'.replace(": ", ":")
        ]
        assert plain.messages[-1].json() == {"user_id": 2}

        await packed.subscribe("private-x")
        packed.trigger("private-x", "client-hi", {"a": [1, None]})
        plain.trigger("presence-x", "client-hi", "text")
        await stage.broker.publish(stage.app_id, ["presence-x", "cache-y"], "tick", "now")
        await plain.subscribe("private-x")
        client.say("client-ho", {"b": 1}, "private-x")

        assert sorted(await client.hear()) == [
            'client-hi\tpresence-x\t"text"\t1',
            'client-hi\tprivate-x\t{"a":[1,null]}',
            'tick\tcache-y\t"now"',
            'tick\tpresence-x\t"now"',
        ]
        for other in (plain, packed):
            assert (other.messages[-1].event, other.messages[-1].json()) == ("client-ho", {"b": 1})

        client.say("pusher:unsubscribe", {"channel": "presence-x"})
        await client.hear()
        assert plain.messages[-1].event == "pusher_internal:member_removed"


async def test_each_wire_that_somebody_listens_on_gets_its_own_bytes_once(autojump_clock, stage):
    plain = await stage.enter("A")
    async with line_clients(stage.broker, 3) as clients:
        for client in [plain, *clients]:
            await client.subscribe("x") if client is plain else client.subscribe("x")
        await trio.testing.wait_all_tasks_blocked()
        channel = stage.broker.hubs[stage.app_id].channels["x"]

        assert [len(edges) for edges in channel.recipients.by_wire.values()] == [1, 3]


async def test_signing_in_watching_and_being_told_to_go(autojump_clock, stage):
    async with line_clients(stage.broker, 2) as (client, other):
        text = '{"id":"u","watchlist":["v"]}'
        signature = sign(auth.signin_text(client.socket_id, text))
        client.say("pusher:signin", {"auth": signature, "user_data": text})
        signed_in, watched = await client.hear()
        assert json.loads(signed_in.split("\t")[2]) == {"user_data": text}
        assert watched.endswith('{"events":[{"name":"offline","user_ids":["v"]}]}')

        text = '{"id":"v"}'
        signature = sign(auth.signin_text(other.socket_id, text))
        other.say("pusher:signin", {"auth": signature, "user_data": text})
        assert (await client.hear())[0].endswith('[{"name":"online","user_ids":["v"]}]}')
        await stage.broker.send_to_user(stage.app_id, "u", "note", 1)
        assert await client.hear() == []  # it has not subscribed to its own channel
        client.say("pusher:subscribe", {"channel": "#server-to-user-u"})
        await client.hear()
        await stage.broker.send_to_user(stage.app_id, "u", "note", 1)
        assert await client.hear() == ['note\t#server-to-user-u\t"1"']

        assert await stage.broker.terminate(stage.app_id, "u") == 1
        text = "You got disconnected by the app."
        assert await client.hear() == [
            f'error\t\t{{"code":4009,"message":"{text}"}}',
            f"bye\t4009\t{text}",
        ]
        assert client.is_closed
        assert stage.broker.clients.n_sessions == 1


async def test_what_is_wrong_is_answered_and_ten_faults_end_it(autojump_clock, stage):
    async with line_clients(stage.broker, 1) as (client,):
        client.say("nonsense")
        client.say("pusher:ping", {})
        assert await client.hear() == [
            'error\t\t{"code":null,"message":"Unsupported event received on socket: nonsense"}',
            "pong\t\t{}",
        ]
        client.sock.send(b"\t\n" * 10)
        heard = await client.hear()
        assert heard[0].endswith('"Invalid line: it must begin with an event"}')
        assert heard[-1] == "bye\t4009\tToo many invalid messages: 10 within 10 seconds"


async def test_silence_is_asked_about_and_ended(autojump_clock, stage):
    async with line_clients(stage.broker, 2) as (silent, alive):
        await trio.sleep(121)
        assert [await one.hear() for one in (silent, alive)] == [["ping\t\t{}"]] * 2
        alive.say("pusher:pong")
        await trio.sleep(32)
        assert (await silent.hear())[-1] == "bye\t4201\tPong reply not received"
        assert await alive.hear() == []


@pytest.mark.parametrize("app_fields", [{"max_pending_bytes": 20_000, "max_event_bytes": 10_000}])
async def test_slow_ones_get_the_newest_value_or_have_to_go(autojump_clock, stage):
    async with line_clients(stage.broker, 2) as (cached, plain):
        cached.subscribe("cache-x")
        plain.subscribe("x")
        await cached.hear()
        await plain.hear()
        for n in range(100):
            await stage.broker.publish(
                stage.app_id, ["cache-x", "x"], "tick", f"{n:02}" + "x" * 9_000
            )
            await trio.testing.wait_all_tasks_blocked()

        values = [int(line.split("\t")[2][1:3]) for line in await cached.hear()]
        assert values == sorted(values)
        assert values[-1] == 99
        assert len(values) < 100
        assert stage.broker.statistics().apps[0].conflated > 0
        assert (await plain.hear())[-1].startswith("bye\t4100\tSlow consumer")


async def test_what_a_slow_one_asked_for_is_paced(autojump_clock, stage):
    names = [f"cache-{n}" for n in range(60)]
    for name in names:
        await stage.broker.publish(stage.app_id, name, "tick", "x" * 9_000)
    async with line_clients(stage.broker, 1) as (client,):
        for name in names:
            client.subscribe(name)
        await trio.sleep(20)
        assert stage.broker.statistics().outbox_bytes < 100_000
        heard = []
        for _ in range(300):
            heard += await client.hear()
            await trio.sleep(0.1)

        assert sum(line.startswith("tick") for line in heard) == 60


async def test_a_node_that_ends_refuses_with_a_goodbye(autojump_clock, stage):
    stage.broker.clients.is_draining = True
    ours, theirs = socket.socketpair()
    await Served(stage.broker, ours).serve()
    assert theirs.recv(1_000).endswith(b"bye\t4100\tOver capacity, reconnect later\n")
    theirs.close()
