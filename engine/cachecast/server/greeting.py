"""A connection of a trusted balancer until it has said whose it is, by the PROXY protocol.

Only what belongs to the header is taken from the socket: what follows is TLS's or HTTP's, and they
read the socket themselves. So it is looked at first (``MSG_PEEK``) and then taken, which costs one
more call of the system for a connection and nothing for a message.
"""

from __future__ import annotations

from socket import MSG_PEEK
from typing import TYPE_CHECKING, Protocol

from cachecast.server.proxy_protocol import MAX_HEADER_BYTES, BadHeaderError, read_header

if TYPE_CHECKING:
    import socket

    from cachecast.server.common import Common
    from cachecast.server.http_messages import Response

__all__ = ["Greeting"]


class _Begin(Protocol):
    def __call__(self, sock: socket.socket, *, is_behind_tls: bool) -> None: ...


class Greeting:
    """Reads the header, and hands the socket on.

    Attributes:
        wheel_slot: place in the wheel of the server's timeouts; the wheel's own.
        fd: descriptor of the socket.
        share: the Poller's share of newcomers.
        app_id: None; it has shown no signature.
        is_idle: False; it is due.
    """

    __slots__ = ("_begin", "_common", "_has_ended", "_said", "_sock", "fd", "share", "wheel_slot")

    app_id: str | None = None
    is_idle = False

    def __init__(self, sock: socket.socket, common: Common, begin: _Begin) -> None:
        """Wait for the header; it has the time that a request has.

        Args:
            sock: accepted socket, non-blocking.
            common: what all connections of the server have in common.
            begin: function that serves the socket from then on.
        """
        self.fd = sock.fileno()
        self.share = common.poller.newcomers
        self.wheel_slot = 0
        self._sock = sock
        self._common = common
        self._begin = begin
        self._said = b""
        self._has_ended = False
        common.poller.meet(self.fd, self)
        common.room.enter(self, is_admin=False)
        common.expire_after(common.config.request_timeout_s, self)

    def on_readable(self) -> None:
        """Take what there is of the header; go on with the connection behind it."""
        if self._has_ended:
            return
        try:
            seen = self._sock.recv(MAX_HEADER_BYTES - len(self._said), MSG_PEEK)
            if not seen:
                self.abort()  # a balancer that looks whether somebody listens
                return
            header = read_header(self._said + seen)
            of_header = len(seen) if header is None else header.size - len(self._said)
            self._said += self._sock.recv(of_header)
        except BlockingIOError:
            return
        except BadHeaderError as error:
            self._refuse(str(error))
            return
        except OSError:
            self.abort()
            return
        if header is not None:
            self._release()
            try:
                self._begin(self._sock, is_behind_tls=header.is_tls)
            except OSError:
                self._sock.close()  # gone between two calls

    def on_writable(self) -> None:
        """Never watched for."""

    def on_timeout(self) -> None:
        """The header took too long."""
        self._refuse("no whole PROXY header in time")

    def refuse(self, response: Response) -> None:
        """Close; who speaks another protocol would not understand an answer."""
        del response
        self.abort()

    def abort(self) -> None:
        """Close the socket and forget everything; harmless twice."""
        if not self._has_ended:
            self._release()
            self._sock.close()

    def _refuse(self, reason: str) -> None:
        self._common.note_proxy_fault(reason)
        self.abort()

    def _release(self) -> None:
        self._has_ended = True
        self._common.timeouts.cancel(self)
        self._common.room.leave(self)
        self._common.poller.remove(self.fd)
