"""One WebSocket: Poller <-> frames <-> Session."""

from __future__ import annotations

from socket import SHUT_WR
from typing import TYPE_CHECKING, Final

from cachecast.protocol import frames
from cachecast.protocol.frames import FrameParser, close_frame, server_frame
from cachecast.server.tls import TlsSocket

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from cachecast.apps import App
    from cachecast.broker.clients import Clients
    from cachecast.protocol.codec import Codec
    from cachecast.protocol.session import Session
    from cachecast.server.poller import Poller

__all__ = ["RECV_BYTES", "WebSocket"]

#: Of one read, and so what one handler may be busy with: some thirty signed requests or a few
#: hundred small frames, one to two milliseconds. 64 KiB of pipelined publishes held everybody else
#: up for more than ten.
RECV_BYTES: Final = 16 * 1024


#: What a client that was told to go may still send before its connection is cut off. Enough for
#: whatever was on its way; a flood would be read for all of ``close_timeout_s``.
MAX_UNHEARD_BYTES: Final = 256 * 1024


class WebSocket:
    """A connection after its upgrade; the Transport of its session's Outbox.

    It is all there is for an idle client besides the session and the outbox: no task, no timer,
    no buffer.
    """

    __slots__ = (
        "_clients",
        "_parser",
        "_poller",
        "_session",
        "_sock",
        "_unheard",
        "fd",
        "send",
        "share",
    )

    def __init__(
        self, sock: socket.socket | TlsSocket, poller: Poller, clients: Clients, max_bytes: int
    ) -> None:
        self._sock = sock
        self._poller = poller
        self._clients = clients
        self._parser = FrameParser(max_bytes)
        self._session: Session | None = None
        self._unheard = 0
        self.fd = sock.fileno()
        self.share = poller.newcomers
        # The socket's own bound method: what the fan-out calls is the kernel's send and no more.
        self.send: Callable[[bytes], int] = sock.send

    @property
    def retries_same_bytes(self) -> bool:
        """See :class:`cachecast.channels.outbox.Transport`."""
        return isinstance(self._sock, TlsSocket)

    def open(self, app: App, codec: Codec, protocol: str | None, preface: bytes) -> None:
        """Begin the conversation; ``preface`` is the 101 response, sent with the first frame."""
        self.share = self._poller.share_of(app.id)
        self._poller.watch(self.fd, self)
        self._session = self._clients.open(app, codec, self, protocol, preface)

    # --- in

    def on_readable(self) -> None:
        """Read once and handle every message that is complete with it."""
        try:
            data = self._sock.recv(RECV_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or self._goes_on(data):
            self.abort()
            return
        self.feed(data)
        if isinstance(self._sock, TlsSocket) and self._session and self._sock.pending():
            self._poller.again(self.fd, self)

    def _goes_on(self, data: bytes) -> bool:
        """Whether a client that was told to go talks on and on instead."""
        if self._session is None or not self._session.outbox.is_finishing:
            return False
        self._unheard += len(data)
        return self._unheard > MAX_UNHEARD_BYTES

    def feed(self, data: bytes) -> None:
        """Handle bytes from the client."""
        session = self._session
        if session is None:
            return
        for opcode, payload in self._parser.feed(data):
            if opcode == frames.CLOSE:
                self._on_close(session, payload)
                return
            if session.outbox.is_finishing:
                continue
            if opcode == frames.PING:
                self._clients.touch(session)
                session.outbox.put(server_frame(frames.PONG, payload))
            elif opcode == frames.PONG:
                self._clients.touch(session)
            elif opcode != session.codec.opcode:
                self._finish(session, close_frame(1003, "This connection speaks another codec"))
            else:
                self._clients.receive(session, payload)
        violation = self._parser.violation
        if violation is not None and self._session is not None:
            self._finish(session, close_frame(violation.close_code, violation.message))

    def _on_close(self, session: Session, payload: bytes) -> None:
        if session.outbox.is_finishing:
            self.abort()
            return
        self._finish(session, close_frame(frames.close_code_of(payload)))
        # Nothing more will come; what is left to send is the answer.
        if self._session is not None and not session.outbox.waiting_bytes:
            self.abort()

    def _finish(self, session: Session, last: bytes) -> None:
        if not session.outbox.is_finishing:
            self._clients.finish(session, last)

    # --- out: what the Outbox calls

    def wait_writable(self) -> None:
        """Have the Poller watch for writability too."""
        self._poller.watch(self.fd, self, writes=True)

    def on_writable(self) -> None:
        """Flush what waits."""
        if self._session is not None:
            self._session.outbox.flush(self._clients.now())

    def on_drained(self) -> None:
        """Go back to watching for reads only; a closing client's answer is still read.

        After a broken frame there is no telling where its answer would begin: our side of the
        connection ends instead, and theirs follows.
        """
        session = self._session
        if session is None:
            return
        self._poller.watch(self.fd, self)
        if session.outbox.is_finishing and self._parser.violation is not None:
            try:
                self._sock.shutdown(SHUT_WR)
            except OSError:
                self.abort()

    def on_slow(self) -> None:
        """Close a client that does not follow."""
        if self._session is not None:
            self._clients.disconnect_slow(self._session)

    def on_broken(self) -> None:
        """The outbox found the socket broken, or gave a closing client enough time.

        In the midst of a fan-out, perhaps; what it leaves behind is tidied in its own app's time.
        """
        self._poller.abort_soon(self.fd, self)

    def abort(self) -> None:
        """Close the socket and forget everything; harmless twice."""
        session, self._session = self._session, None
        if session is None:
            return
        self._poller.remove(self.fd)
        self._sock.close()
        self._clients.close(session)
        session.outbox.discard()
