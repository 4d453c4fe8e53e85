"""Serve a connection that a host service's own trio-websocket server has accepted.

For services that have such a server already and want Pusher clients on one of its paths. It costs
two tasks and trio-websocket's 41 to 54 us a frame; ``serve`` is the fast way.

trio-websocket 0.12.2 has edges that this file contains. Its reader task, which
lives in the host's nursery, raises whenever it wants to say something after a Close has been sent,
so :func:`_calm` makes that impossible. A cancelled send leaves half a frame on the wire and
``aclose`` waits for ever for a peer that does not answer: so nothing here is cancelled but to end
the connection, and it always ends by force.
"""

from __future__ import annotations

from contextlib import suppress
from traceback import format_exc
from typing import TYPE_CHECKING, Final

import structlog
import trio
from trio_websocket import ConnectionClosed
from wsproto.events import CloseConnection
from wsproto.utilities import LocalProtocolError

from cachecast.errors import RemoteProtocolError
from cachecast.protocol import frames
from cachecast.protocol.wire import find_wire

if TYPE_CHECKING:
    from trio_websocket import WebSocketConnection
    from wsproto.events import Event

    from cachecast.broker import Broker
    from cachecast.channels.connection import Connection

__all__ = ["bridge"]

_log = structlog.get_logger("cachecast.server")

#: Exceptions by which a connection may end under our hands.
_ENDED: Final = (
    ConnectionClosed, LocalProtocolError, trio.BrokenResourceError, trio.ClosedResourceError
)  # fmt: skip


class _BridgedTransport:
    """The Transport of an Outbox whose bytes leave through trio-websocket.

    It takes one buffer at a time, so what does not fit waits in the Outbox under its policies.

    Attributes:
        scope: cancel scope around everything that serves the connection; cancelled to end it.
        is_closing: whether our Close is on its way.
    """

    retries_same_bytes = False

    def __init__(self, broker: Broker, socket: WebSocketConnection) -> None:
        self._clients = broker.clients
        self._socket = socket
        self._buffer = b""
        self._wants_flush = False
        self._wakeup = trio.Event()
        self._has_read = trio.Event()
        self.connection: Connection | None = None
        self.scope = trio.CancelScope()
        self.is_closing = False

    def send(self, data: bytes) -> int:
        if self._buffer:
            raise BlockingIOError
        self._buffer = data
        self._wakeup.set()
        return len(data)

    def wait_writable(self) -> None:
        self._wants_flush = True

    def on_drained(self) -> None:
        self._wants_flush = False

    def on_slow(self) -> None:
        if self.connection is not None:
            self._clients.disconnect_slow(self.connection)

    def on_broken(self) -> None:
        self.scope.cancel()

    async def write(self, connection: Connection, nursery: trio.Nursery) -> None:
        """Send what is put in until a Close has been exchanged; ``nursery`` waits for pongs."""
        try:
            while not self.is_closing:
                if not self._buffer:
                    self._wakeup = trio.Event()
                    await self._wakeup.wait()
                for opcode, payload in frames.split_frames(self._buffer):
                    if opcode == frames.PING:
                        nursery.start_soon(self._ping, connection)
                        continue
                    # Bounded by the heartbeat, as every closing connection is: on_broken ends it.
                    self.is_closing |= opcode == frames.CLOSE
                    await _send(self._socket, opcode, payload)
                self._buffer = b""
                if self._wants_flush:
                    connection.outbox.flush(self._clients.now())
                    self._has_read.set()
        except _ENDED:
            pass
        self.scope.cancel()

    async def _ping(self, connection: Connection) -> None:
        """Pings and pongs are between the libraries; only this call learns that one came back."""
        try:
            await self._socket.ping()
        except _ENDED:
            return
        self._clients.touch(connection)

    async def read(self, connection: Connection) -> None:
        """Hand over what the client says until it says no more."""
        outbox, wire = connection.outbox, connection.wire
        try:
            while True:
                message = await self._socket.get_message()
                if outbox.is_finishing:
                    continue
                if isinstance(message, str) != wire.codec.is_text:
                    text = "This connection speaks another codec"
                    self._clients.finish(connection, wire.goodbye(1003, text), 1003, text)
                else:
                    payload = message.encode() if isinstance(message, str) else message
                    self._clients.receive(connection, payload)
                while outbox.is_pacing and not outbox.is_finishing:
                    self._has_read = trio.Event()
                    await self._has_read.wait()
        except _ENDED:
            pass
        if not self.is_closing:  # else the writer waits for the client's Close
            self.scope.cancel()


async def _send(socket: WebSocketConnection, opcode: int, payload: bytes) -> None:
    """Send one of our frames as what it means; a Close waits for the client's."""
    if opcode == frames.CLOSE:
        await socket.aclose(frames.close_code_of(payload) or 1000, payload[2:].decode() or None)
    else:
        await socket.send_message(payload.decode() if opcode == frames.TEXT else payload)


async def bridge(
    broker: Broker,
    connection: WebSocketConnection,
    key: str,
    *,
    protocol: str | None = "7",
    origin: str | None = None,
    is_tls: bool = False,
) -> None:
    """Serve one accepted connection until it ends; returns then, whichever side ended it.

        async def handler(request):  # of trio_websocket.serve_websocket
            connection = await request.accept()
            await bridge(broker, connection, key="app-key")

    Args:
        broker: the broker that serves it, from ``open_broker``.
        connection: WebSocket accepted by the host; with the subprotocol ``cachecast.v1.msgpack`` it
            speaks msgpack. Closed when this returns. Keep its ``max_message_size`` at or below the
            broker's ``max_message_bytes``: what is larger has been received before we see it.
        key: key of the app, which the host read from the connection's path.
        protocol: value of ``protocol`` in the query.
        origin: value of the browser's ``Origin`` header.
        is_tls: whether the client came over TLS.

    If cancelled, the connection is closed by force.

    Raises:
        ExceptionGroup: of ``MemoryError``; whatever else goes wrong ends this connection only.
    """
    _, wire = find_wire(connection.subprotocol)
    _calm(connection)
    try:
        try:
            app = broker.clients.admit(key, protocol, origin, is_tls=is_tls)
        except RemoteProtocolError as error:
            with trio.move_on_after(broker.config.close_timeout_s), suppress(*_ENDED):
                for opcode, payload in frames.split_frames(wire.refusal(error)):
                    await _send(connection, opcode, payload)
            return
        transport = _BridgedTransport(broker, connection)
        client = transport.connection = broker.clients.open(app, wire, transport, protocol)
        try:
            with transport.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(transport.read, client)
                    nursery.start_soon(transport.write, client, nursery)
        except* MemoryError:
            raise  # nobody's own fault, see the Poller
        except* Exception:  # noqa: BLE001 - as in the Poller: one client ends only its own
            _log.error("connection failed", handler="bridge", traceback=format_exc())
        finally:
            closed = connection.closed  # by the client: what we close ourselves is forgotten before
            if closed is None:
                broker.clients.close(client)
            else:
                broker.clients.close(client, closed.code, "closed by the client")
            client.outbox.discard()
    finally:
        await _end(connection)


def _calm(connection: WebSocketConnection) -> None:
    """Keep trio-websocket's reader task from raising into the host's nursery.

    One Ping or oversized message that arrives after a Close was sent makes it send something
    that wsproto refuses (``LocalProtocolError``), and a broken stream makes its answer to a
    protocol error raise ``ConnectionClosed``; stock ``serve_websocket`` then ends the whole
    ``trio.run``. What cannot be said any more is not said.
    """
    send = connection._send  # noqa: SLF001 - all of it meets there, and 0.12.2 has no public seam

    async def calm_send(event: Event) -> None:
        try:
            await send(event)
        except LocalProtocolError:
            await trio.lowlevel.checkpoint()
        except ConnectionClosed:
            if not isinstance(event, CloseConnection):
                raise

    connection._send = calm_send  # type: ignore[method-assign]  # noqa: SLF001 - see above


async def _end(connection: WebSocketConnection) -> None:
    """Close by force, whatever state it is in; the host's own ``aclose`` then finds it closed.

    The messages that nobody reads any more are let go first: a reader task that waits to hand
    over one of them would never end.
    """
    with trio.CancelScope(shield=True):
        await connection._recv_channel.aclose()  # noqa: SLF001 - aclose() does it in no order
        await trio.aclose_forcefully(connection._stream)  # noqa: SLF001 - left open after a 1009
