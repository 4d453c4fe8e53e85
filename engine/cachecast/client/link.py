"""One WebSocket connection, from the first byte to the last; a :class:`Link` is used once.

The rules of this file:

* One task writes, out of one bounded queue, and is never timed out inside a message: cancelling
  trio-websocket's ``send_message`` half way leaves half a frame on the wire, and the next message
  lands inside it. Whoever cancels the writer throws the connection away.
* The stream is ours. trio-websocket's ``aclose`` waits for ever for a peer that does not answer,
  and does not close the transport after an oversize message, so the last word is always
  ``aclose_forcefully``.
* Whatever goes wrong in here becomes an :class:`~cachecast.client.backoff.Ending`. trio-websocket's
  reader task lets through what a server can cause: wsproto's ``LocalProtocolError`` for a Ping
  after our Close, h11's for an answer that is no HTTP (seen in our tests). So
  that task has a nursery of its own, and all that comes out of it is taken for the server's doing.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final, NoReturn, Protocol, TypeVarTuple

import msgspec
import trio
import trio_websocket
import wsproto.utilities

from cachecast.client import wire
from cachecast.client.backoff import Ending
from cachecast.errors import BadMessageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from cachecast.client.target import Dial, Target
    from cachecast.client.wire import ServerMessage

__all__ = ["Link", "LinkHandler", "LinkSettings"]

Ts = TypeVarTuple("Ts")

#: Number of messages that may wait for the writer; a message more waits in its sender's own task.
MAX_OUTGOING: Final = 64

#: Number of messages that trio-websocket may read ahead of us; its 1 costs a task switch a message.
READ_AHEAD: Final = 64

#: Exceptions that a dial, a send or a receive of ours raises when a connection fails.
_FAILURES: Final = (
    trio_websocket.ConnectionClosed,
    trio_websocket.HandshakeError,
    wsproto.utilities.LocalProtocolError,  # a send while the library is closing
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    ssl.CertificateError,
    OSError,
    BadMessageError,  # instead of connection_established
)


class LinkSettings(msgspec.Struct, frozen=True):
    """What every connection of a client has in common.

    Attributes:
        headers: headers sent with the WebSocket handshake.
        activity_s: seconds of silence from the server after which we ping it, unless it announces
            less.
        pong_limit_s: seconds of silence after that ping which end the connection.
        handshake_limit_s: seconds for TCP, TLS, WebSocket and ``connection_established`` together.
        max_message_length: characters of a message from the server at most (trio-websocket's unit).
    """

    headers: Mapping[str, str]
    activity_s: float
    pong_limit_s: float
    handshake_limit_s: float
    max_message_length: int


class LinkHandler(Protocol):
    """Who listens to a link. All of it is called from the link's reading task and never yields."""

    def on_connected(self, link: Link) -> None:
        """The connection is established; ``link`` may be used until :meth:`on_disconnected`."""

    def on_message(self, message: ServerMessage) -> None:
        """A message that is none of the connection's own (those are pings and pongs)."""

    def on_bad_message(self, error: BadMessageError) -> None:
        """A message that could not be understood; the connection stays, as with pusher-js."""


class Link:
    """One connection: handshake, heartbeat, writer, reader, end.

    Attributes:
        socket_id: the server's name for the connection; empty until established.
        sent: number of messages handed to the socket.
        received: number of messages from the socket.
    """

    def __init__(
        self, target: Target, settings: LinkSettings, dial: Dial, handler: LinkHandler
    ) -> None:
        self.socket_id = ""
        self.sent = 0
        self.received = 0
        self._target = target
        self._settings = settings
        self._dial = dial
        self._handler = handler
        self._activity_s = settings.activity_s
        self._nursery: trio.Nursery | None = None
        self._stream: _WatchedStream | None = None
        self._is_closing = False
        self._is_closed = trio.Event()
        self._put, self._take = trio.open_memory_channel[str](MAX_OUTGOING)
        self._established_at: float | None = None
        self._ending: Ending | None = None
        self._last_error: wire.ErrorData | None = None

    # --- for the handler

    async def send(self, event: str, data: object, channel: str | None = None) -> None:
        """Hand a message to the writer; waits while :data:`MAX_OUTGOING` others wait.

        It has then not left yet, and does not if the connection ends first. If cancelled, it was
        not handed over.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: the connection has ended.
        """
        await self._put.send(wire.encode(event, data, channel))

    def offer(self, event: str, data: object) -> None:
        """Hand over a message if there is room, else drop it.

        For pings and pongs: where other messages wait to leave, those show just as well that we
        are alive (protocol.md 1.5, any message counts).
        """
        try:
            self._put.send_nowait(wire.encode(event, data))
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def start_soon(self, task: Callable[[*Ts], Awaitable[object]], *args: *Ts) -> None:
        """Run ``task`` for as long as the connection lives; it may not raise."""
        if self._nursery is not None:
            self._nursery.start_soon(task, *args)

    def request_close(self) -> None:
        """Let what waits leave, then close in an orderly way; :meth:`run` returns after that.

        Never yields. Whoever asks has to bound the wait, by cancelling :meth:`run`.
        """
        self._is_closing = True
        if self._established_at is None:
            self.abort()
        self._put.close()

    def abort(self) -> None:
        """End at once, without a Close frame. Never yields."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    # --- the life of it

    async def run(self) -> Ending:
        """Connect, serve until it ends, and say how. If cancelled, the transport is closed.

        Raises nothing but ``Cancelled`` and what the handler raised.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    await self._serve(nursery)
                finally:
                    # Also when cancelled: aclose_forcefully closes first and yields then.
                    if self._stream is not None:
                        await trio.aclose_forcefully(self._stream)
        except* _FAILURES as failures:
            if self._ending is None:
                self._ending = self._ending_of(failures)
        finally:
            self._nursery = None
            self._put.close()
            self._take.close()
        return self._ending or Ending(1006, "closed by this client", self._lived_s())

    async def _serve(self, nursery: trio.Nursery) -> NoReturn:
        with trio.move_on_after(self._settings.handshake_limit_s) as scope:
            socket = await self._open(nursery)
            await self._establish(socket)
        if scope.cancelled_caught:
            limit_s = self._settings.handshake_limit_s
            raise trio_websocket.HandshakeError(f"no connection within {limit_s:g} s")
        self._established_at = trio.current_time()
        nursery.start_soon(self._write, socket)
        nursery.start_soon(self._keep_alive, nursery)
        self._handler.on_connected(self)
        try:
            while True:
                self._receive(await socket.get_message())
        except trio_websocket.ConnectionClosed:
            if self._is_closing:
                # aclose() says so before the server has answered. Hanging up now could make the
                # kernel throw away what was sent last.
                await self._is_closed.wait()
            raise

    async def _open(self, nursery: trio.Nursery) -> trio_websocket.WebSocketConnection:
        target = self._target
        self._stream = stream = _WatchedStream(await self._dial(target))
        socket: trio_websocket.WebSocketConnection | None = None
        reader_nursery: trio.Nursery = await nursery.start(_contain)
        # wrap_client_stream waits for ever if the server hangs up instead of answering.
        async with trio.open_nursery() as race:
            race.start_soon(_cancel_at_end, stream, race.cancel_scope)
            socket = await trio_websocket.wrap_client_stream(
                reader_nursery,
                stream,  # type: ignore[arg-type]  # any Stream will do
                target.host_header,
                target.resource,
                extra_headers=[(k.encode(), v.encode()) for k, v in self._settings.headers.items()],
                message_queue_size=READ_AHEAD,
                max_message_size=self._settings.max_message_length,
            )
            race.cancel_scope.cancel()
        if socket is None:
            raise trio_websocket.HandshakeError("the server hung up during the handshake")
        return socket

    async def _establish(self, socket: trio_websocket.WebSocketConnection) -> None:
        """Wait for ``connection_established``, which must come first (protocol.md 1.4)."""
        message = self._decode(await socket.get_message())
        while message.event == "pusher:error":
            error = self._last_error = message.data_as(wire.ErrorData)
            if error.code is not None and error.code >= 4000:
                # pusher-js ends here too; a server may leave the Close frame out (1.6).
                self._ending = Ending(error.code, error.message or "")
                raise trio_websocket.ConnectionClosed(None)
            message = self._decode(await socket.get_message())
        if message.event != "pusher:connection_established":
            raise BadMessageError(f"Invalid handshake: {message.event[:64]} came first")
        data = message.data_as(wire.EstablishedData)
        self.socket_id = data.socket_id
        if data.activity_timeout is not None and data.activity_timeout > 0:
            self._activity_s = min(self._activity_s, data.activity_timeout)

    def _decode(self, payload: str | bytes) -> ServerMessage:
        self.received += 1
        return wire.decode(payload)

    def _receive(self, payload: str | bytes) -> None:
        try:
            message = self._decode(payload)
            self._last_error = None
            if message.event == "pusher:ping":
                self.offer("pusher:pong", {})
            elif message.event != "pusher:pong":
                if message.event == "pusher:error":
                    self._last_error = message.data_as(wire.ErrorData)
                self._handler.on_message(message)
        except BadMessageError as error:
            self._handler.on_bad_message(error)

    async def _write(self, socket: trio_websocket.WebSocketConnection) -> None:
        with self._take:  # once it is closed, whoever waits in send() learns of it
            async for text in self._take:
                await socket.send_message(text)
                self.sent += 1
        # Nothing more can come: somebody asked for an orderly end.
        await socket.aclose()
        self._is_closed.set()

    async def _keep_alive(self, nursery: trio.Nursery) -> None:
        """Ping after silence, give up without an answer (protocol.md 1.5).

        Any bytes are a sign of life; also WebSocket pings, which hosted Pusher sends.
        """
        stream, limit_s = self._stream, self._settings.pong_limit_s
        assert stream is not None
        while True:
            ping_at = stream.last_received_at + self._activity_s
            if trio.current_time() < ping_at:
                await trio.sleep_until(ping_at)
                continue
            chunks = stream.chunks
            self.offer("pusher:ping", {})
            with trio.move_on_after(limit_s):
                await stream.wait_more_than(chunks)
            if stream.chunks == chunks:
                text = f"no pong within {limit_s:g} s"
                self._ending = Ending(1006, text, self._lived_s(), is_pong_missing=True)
                nursery.cancel_scope.cancel()
                return

    # --- the end of it

    def _lived_s(self) -> float:
        if self._established_at is None:
            return 0.0
        return trio.current_time() - self._established_at

    def _ending_of(self, failures: BaseExceptionGroup[BaseException]) -> Ending:
        """The most telling of the failures; a Close frame's code comes first."""
        leaves = list(_leaves(failures))
        for failure in leaves:
            reason = getattr(failure, "reason", None)
            if isinstance(reason, trio_websocket.CloseReason) and reason.code >= 4000:
                return Ending(reason.code, reason.reason or "", self._lived_s())
        error = self._last_error
        if error is not None and error.code is not None and 4000 <= error.code < 4300:
            # Said before the end instead of in a Close frame, as for protocol < 6 (1.7).
            return Ending(error.code, error.message or "", self._lived_s())
        for failure in leaves:
            reason = getattr(failure, "reason", None)
            if isinstance(reason, trio_websocket.CloseReason):
                is_abrupt = reason.code == 1006  # RFC 6455 7.1.5: there was no Close frame
                text = "the connection was lost" if is_abrupt else "closed by the server"
                return Ending(int(reason.code), reason.reason or text, self._lived_s())
        return Ending(1006, _describe(leaves[0]), self._lived_s())


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _describe(failure: BaseException) -> str:
    if isinstance(failure, trio_websocket.ConnectionRejected):
        words = (failure.body or b"")[:500].decode("utf-8", "replace").strip()
        text = f"the server answered HTTP {failure.status_code} instead of a WebSocket"
        return f"{text}: {words}" if words else text
    # Trio puts the reason into the cause: an SSL error under a BrokenResourceError without a
    # text, the errors of all addresses under one OSError.
    text, cause = str(failure) or type(failure).__name__, failure.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = _leaves(cause)[0]
    return text if cause is None else f"{text}: {cause}"


async def _contain(*, task_status: trio.TaskStatus[trio.Nursery]) -> None:
    """Keep a nursery for trio-websocket's reader task, and translate whatever it raises.

    Raises:
        HandshakeError: the library failed at what the server sent; with its words.
    """
    try:
        async with trio.open_nursery() as nursery:
            task_status.started(nursery)
            await trio.sleep_forever()
    except* trio_websocket.HandshakeError:
        raise
    # Around one connection: nothing that a server sends may end more than that.
    except* Exception as failures:  # noqa: BLE001
        failure = _leaves(failures)[0]
        raise trio_websocket.HandshakeError(
            f"{type(failure).__name__}: {_describe(failure)}"
        ) from failure


async def _cancel_at_end(stream: _WatchedStream, scope: trio.CancelScope) -> None:
    await stream.ended.wait()
    scope.cancel()


class _WatchedStream(trio.abc.Stream):
    """The transport, which also knows when it was last heard of.

    Attributes:
        chunks: number of times that bytes came.
        last_received_at: time when bytes came last, or that of the beginning; seconds of Trio's
            clock.
        ended: event that is set once no more can come.

    (``typing.override`` needs Python 3.12.)
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.chunks = 0
        self.last_received_at = trio.current_time()
        self.ended = trio.Event()
        self._stream = stream
        self._came = trio.lowlevel.ParkingLot()

    async def wait_more_than(self, chunks: int) -> None:
        while self.chunks <= chunks:
            await self._came.park()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:  # type: ignore[explicit-override]
        try:
            data = await self._stream.receive_some(max_bytes)
        except trio.BrokenResourceError:
            self.ended.set()
            raise
        if data:
            self.chunks += 1
            self.last_received_at = trio.current_time()
            self._came.unpark_all()
        else:
            self.ended.set()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:  # type: ignore[explicit-override]
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:  # type: ignore[explicit-override]
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:  # type: ignore[explicit-override]
        await self._stream.aclose()
