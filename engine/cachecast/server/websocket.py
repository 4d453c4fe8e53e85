"""One WebSocket: Poller <-> frames <-> Connection."""

from __future__ import annotations

from socket import SHUT_WR
from time import perf_counter
from typing import TYPE_CHECKING, Final

from cachecast.protocol import frames
from cachecast.protocol.frames import server_frame
from cachecast.server.poller import RECV_BYTES
from cachecast.server.tls import TlsSocket, has_decrypted

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from cachecast.apps import App
    from cachecast.broker.clients import Clients
    from cachecast.channels.connection import Connection
    from cachecast.handover.state import ClientState, ParserState
    from cachecast.protocol.frames import FrameParser
    from cachecast.protocol.wire import Wire
    from cachecast.server.poller import Poller

__all__ = ["WebSocket"]

#: Seconds that one handler may be busy before others get their turn. 16 KiB are some thirty signed
#: requests or a few hundred subscriptions, which take many times that.
HANDLER_S: Final = 0.001

#: Opcodes of frames that bring no message and cost as much.
_NO_MESSAGE: Final = frozenset({frames.PONG, frames.CONTINUATION})

#: Bytes that a client that was told to go may still send before its connection is cut off. Enough
#: for whatever was on its way; a flood would be read for all of ``close_timeout_s``.
MAX_UNHEARD_BYTES: Final = 256 * 1024


class WebSocket:
    """A connection after its upgrade; the Transport of its connection's Outbox.

    It is all there is for an idle client besides the connection and the outbox: no task, no timer,
    no buffer. What has been read is handled message by message until time is up, or until the
    client must read before more of what it asks for is answered (``Outbox.is_pacing``); the rest
    waits in the parser, and nothing more is read before it has been handled.
    """

    __slots__ = (
        "_clients",
        "_connection",
        "_is_behind",
        "_parser",
        "_poller",
        "_sock",
        "_unheard",
        "fd",
        "send",
        "share",
    )

    def __init__(
        self, sock: socket.socket | TlsSocket, poller: Poller, clients: Clients, parser: FrameParser
    ) -> None:
        self._sock = sock
        self._poller = poller
        self._clients = clients
        self._parser = parser
        self._connection: Connection | None = None
        self._is_behind = False
        self._unheard = 0
        self.fd = sock.fileno()
        self.share = poller.newcomers
        # The socket's own bound method: what the fan-out calls is the kernel's send and no more.
        self.send: Callable[[bytes], int] = sock.send

    @property
    def retries_same_bytes(self) -> bool:
        """See :class:`cachecast.channels.outbox.Transport`."""
        return isinstance(self._sock, TlsSocket)

    def open(self, app: App, wire: Wire, protocol: str | None, preface: bytes) -> None:
        """Begin the conversation; ``preface`` is the 101 response, sent with the first frame."""
        self.share = self._poller.share_of(app.id)
        self._poller.watch(self.fd, self)
        self._connection = self._clients.open(app, wire, self, protocol, preface)

    # --- handing over

    @property
    def connection(self) -> Connection | None:
        """The conversation; None once it has ended."""
        return self._connection

    @property
    def can_move(self) -> bool:
        """Whether another process can go on with it: TLS cannot, and who is told to go need not."""
        connection = self._connection
        is_open = connection is not None and not connection.outbox.is_finishing
        return is_open and not isinstance(self._sock, TlsSocket)

    def export(self) -> tuple[int, ParserState | None, bool]:
        """Family of addresses, what is here, and if it is behind; of one that :attr:`can_move`."""
        assert not isinstance(self._sock, TlsSocket)
        return self._sock.family, self._parser.export(), self._is_behind

    def restore(self, connection: Connection, state: ClientState) -> None:
        """Go on with the socket of a conversation that another process began."""
        self.share = self._poller.share_of(connection.session.app.id)
        self._poller.add(self.fd, self)
        self._connection = connection
        if state.parser is not None:
            self._parser.restore(state.parser)
        if state.outbox is not None:
            connection.outbox.restore(state.outbox)
        if connection.outbox.is_pacing and state.is_behind:
            self._pause()
        elif state.is_behind:
            self._is_behind = True
            self._poller.again(self.fd, self)

    def let_go(self) -> Connection | None:
        """Another process has it: close the descriptor, which ends nothing; gives what it was."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._poller.remove(self.fd)
            self._sock.close()
        return connection

    # --- in

    def on_readable(self) -> None:
        """Go on with what was read, or read once more."""
        connection = self._connection
        if connection is None:
            return
        if connection.outbox.is_pacing:
            self._pause()
        elif self._is_behind:
            self._handle(connection)
        else:
            self._read(connection)

    def _read(self, connection: Connection) -> None:
        try:
            data = self._sock.recv(RECV_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if connection.outbox.is_finishing:
            self._unheard += len(data)
        if not data or self._unheard > MAX_UNHEARD_BYTES:
            self.abort()  # it has gone, or was told to go and talks on and on instead
            return
        self._parser.feed(data)
        self._handle(connection)

    def feed(self, data: bytes) -> None:
        """Handle bytes from the client."""
        if self._connection is not None:
            self._parser.feed(data)
            self._handle(self._connection)

    def _handle(self, connection: Connection) -> None:
        """Handle messages until there is none, time is up or the client must read first."""
        until = perf_counter() + HANDLER_S
        take = self._parser.take
        while (message := take()) is not None:
            self._on_message(connection, *message)
            if self._connection is None:
                return
            if connection.outbox.is_pacing:
                self._pause()
                return
            if perf_counter() >= until:
                self._is_behind = True
                self._poller.again(self.fd, self)
                return
        self._is_behind = False
        violation = self._parser.violation
        if violation is not None:
            self._finish(connection, violation.close_code, violation.message)
        elif has_decrypted(self._sock):
            self._poller.again(self.fd, self)

    def _pause(self) -> None:
        """Read and handle nothing before the client has read; :meth:`on_writable` goes on."""
        self._is_behind = True
        self._poller.watch(self.fd, self, reads=False, writes=True)

    def _on_message(self, connection: Connection, opcode: int, payload: bytes) -> None:
        if opcode == frames.CLOSE:
            self._on_close(connection, payload)
        elif connection.outbox.is_finishing:
            pass
        elif opcode == frames.PING:
            self._clients.touch(connection)
            connection.outbox.put(server_frame(frames.PONG, payload), is_asked=True)
        elif opcode in _NO_MESSAGE:
            self._clients.touch(connection)
        elif (opcode == frames.TEXT) != connection.wire.codec.is_text:
            self._finish(connection, 1003, "This connection speaks another codec")
        else:
            self._clients.receive(connection, payload)

    def _on_close(self, connection: Connection, payload: bytes) -> None:
        if connection.outbox.is_finishing:
            self.abort()
            return
        code = frames.close_code_of(payload)
        self._clients.finish(
            connection, connection.wire.goodbye(code), code, "closed by the client"
        )
        # Nothing more will come; what is left to send is the answer.
        if self._connection is not None and not connection.outbox.waiting_bytes:
            self.abort()

    def _finish(self, connection: Connection, code: int | None, message: str) -> None:
        if not connection.outbox.is_finishing:
            self._clients.finish(connection, connection.wire.goodbye(code, message), code, message)

    # --- out: what the Outbox calls

    def wait_writable(self) -> None:
        """Have the Poller watch for writability too."""
        self._poller.watch(self.fd, self, writes=True)

    def on_writable(self) -> None:
        """Flush what waits, and go on with what the client asked for meanwhile."""
        connection = self._connection
        if connection is None:
            return
        outbox = connection.outbox
        outbox.flush(self._clients.now())
        if self._is_behind and outbox.waiting_bytes and not outbox.is_pacing:
            self._poller.watch(self.fd, self, writes=True)
            self._poller.again(self.fd, self)

    def on_drained(self) -> None:
        """Go back to watching for reads only; a closing client's answer is still read.

        After a broken frame there is no telling where its answer would begin: our side of the
        connection ends instead, and theirs follows.
        """
        connection = self._connection
        if connection is None:
            return
        self._poller.watch(self.fd, self)
        if self._is_behind:
            self._poller.again(self.fd, self)
        if connection.outbox.is_finishing and self._parser.violation is not None:
            try:
                self._sock.shutdown(SHUT_WR)
            except OSError:
                self.abort()

    def on_slow(self) -> None:
        """Close a client that does not follow."""
        if self._connection is not None:
            self._clients.disconnect_slow(self._connection)

    def on_broken(self) -> None:
        """The outbox found the socket broken, or gave a closing client enough time.

        In the midst of a fan-out, perhaps; what it leaves behind is tidied in its own app's time.
        """
        self._poller.abort_soon(self.fd, self)

    def abort(self) -> None:
        """Close the socket and forget everything; harmless twice."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._poller.remove(self.fd)
        self._sock.close()
        self._clients.close(connection)
        connection.outbox.discard()
