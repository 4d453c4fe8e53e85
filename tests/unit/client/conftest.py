"""A scripted Pusher server in memory: real trio-websocket on both ends, virtual time between.

It says what protocol.md has hosted Pusher say, frame by frame, and only when the test tells it to.
Tests take ``autojump_clock`` themselves, for pytest-trio looks for a clock only there.
"""

import json

import pytest
import trio
import trio.testing
import trio_websocket

from cachecast.client import connect

#: Virtual seconds after which a test has hung; costs no real time.
HUNG_AFTER_S = 1_000_000


class Call:
    """A call that runs beside the test, with its result or exception."""

    def __init__(self):
        self.done = trio.Event()
        self.scope = trio.CancelScope()
        self._value = None
        self._error = None

    async def run(self, function, args, options):
        with self.scope:
            try:
                self._value = await function(*args, **options)
            except Exception as error:  # noqa: BLE001 - given to whoever asks for the result
                self._error = error
        self.done.set()

    async def result(self):
        await self.done.wait()
        if self._error is not None:
            raise self._error
        return self._value


class Peer:
    """The server's end of one connection."""

    def __init__(self, stream, target, socket, socket_id):
        self.stream = stream
        self.target = target
        self.socket = socket
        self.socket_id = socket_id

    async def send(self, event, data=None, channel=None, **more):
        message = {"event": event, **more}
        if channel is not None:
            message["channel"] = channel
        if data is not None:
            message["data"] = data
        await self.socket.send_message(json.dumps(message))

    async def establish(self, activity_s=120):
        data = {"socket_id": self.socket_id, "activity_timeout": activity_s}
        await self.send("pusher:connection_established", json.dumps(data))

    async def receive(self):
        return json.loads(await self.socket.get_message())

    async def take(self, event):
        message = await self.receive()
        assert message["event"] == event, message
        return message["data"]

    async def subscribe(self, channel, data="{}"):
        """Expect a subscription and accept it."""
        asked = await self.take("pusher:subscribe")
        assert asked["channel"] == channel
        await self.send("pusher_internal:subscription_succeeded", data, channel)
        return asked

    async def error(self, code, message):
        await self.send("pusher:error", {"code": code, "message": message})

    async def close(self, code, reason=None):
        await self.socket.aclose(code, reason)

    async def hang_up(self):
        await self.stream.aclose()


class Script:
    """Where clients dial to."""

    def __init__(self, nursery):
        self.nursery = nursery
        self.dialled = []
        self.refusing = 0
        self._give, self._take = trio.open_memory_channel(100)

    async def dial(self, target):
        self.dialled.append((trio.current_time(), target))
        await trio.lowlevel.checkpoint()
        if self.refusing:
            self.refusing -= 1
            raise ConnectionRefusedError("connection refused")
        ours, theirs = trio.testing.memory_stream_pair()
        self._give.send_nowait((target, theirs))
        return ours

    def connect(self, url="ws://broker.test:6001", **options):
        options = {"key": "app-key", "dial": self.dial, "random": lambda: 0.5, **options}
        return connect(url, **options)

    async def accept_stream(self):
        """The next connection, before its WebSocket handshake."""
        return await self._take.receive()

    async def accept(self, *, establish=True, activity_s=120):
        """The next connection, after it."""
        target, stream = await self.accept_stream()
        request = await trio_websocket.wrap_server_stream(self.nursery, stream)
        socket = await request.accept()
        peer = Peer(stream, target, socket, f"1.{len(self.dialled)}")
        peer.request = request
        if establish:
            await peer.establish(activity_s)
        return peer

    def begin(self, function, *args, **options):
        call = Call()
        self.nursery.start_soon(call.run, function, args, options)
        return call

    async def subscribed(self, client, peer, name, data="{}", **options):
        """A channel that client and server agree on."""
        call = self.begin(client.subscribe, name, **options)
        await peer.subscribe(name, data)
        return await call.result()


async def _watch():
    await trio.sleep(HUNG_AFTER_S)
    raise AssertionError("the test hangs: nothing has been due for a long time")


@pytest.fixture
async def pusher(nursery, autojump_clock):
    nursery.start_soon(_watch)
    yield Script(nursery)
    nursery.cancel_scope.cancel()
