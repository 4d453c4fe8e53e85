"""One response by which an HTTP session receives: a stream, or the answer to a poll.

It has the socket of its request to itself, as a WebSocket has, so what is written goes straight
into the kernel and what the kernel does not take waits in the session's Outbox, under its policies.
No task, no timer and no buffer belong to one that waits.
"""

from __future__ import annotations

from socket import SHUT_WR
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from cachecast.protocol.sockjs import script
from cachecast.server.poller import RECV_BYTES
from cachecast.server.tls import TlsSocket, has_decrypted

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from cachecast.handover.state import ReceiverState
    from cachecast.server.common import Common
    from cachecast.server.poller import Share

__all__ = ["Owner", "Poll", "Receiver", "ScriptPoll", "Streaming"]

#: Bytes that a client may say behind its request before it is cut off: it has nothing to say there.
MAX_UNHEARD_BYTES: Final = 64 * 1024


class Owner(Protocol):
    """The session that a response belongs to."""

    def on_writable(self) -> None:
        """The response takes bytes again."""

    def on_complete(self) -> None:
        """The response is complete, and no more can be written to it."""

    def on_lost(self) -> None:
        """The client has gone."""


class Receiver:
    """The response while it is written; a Handler of the Poller.

    Attributes:
        terms: what it was asked for, in plain values.
        owner: the session; None once that has done with it.
        share: the Poller's share that it belongs to.
        wheel_slot: place in the wheel of the server's timeouts; the wheel's own.
    """

    __slots__ = (
        "_common",
        "_is_done",
        "_sock",
        "_unheard",
        "fd",
        "owner",
        "share",
        "terms",
        "wheel_slot",
    )

    def __init__(
        self,
        sock: socket.socket | TlsSocket,
        common: Common,
        share: Share,
        terms: ReceiverState,
    ) -> None:
        """Take over the socket of a request, which the Poller knows already."""
        self.terms = terms
        self._sock = sock
        self._common = common
        self._unheard = 0
        self._is_done = False
        self.fd = sock.fileno()
        self.share = share
        self.owner: Owner | None = None
        self.wheel_slot = 0

    @property
    def is_tls(self) -> bool:
        """Whether it must be given the same bytes again, see ``channels.outbox.Transport``."""
        return isinstance(self._sock, TlsSocket)

    @property
    def family(self) -> int:
        """Family of the socket's addresses."""
        assert not isinstance(self._sock, TlsSocket)
        return self._sock.family

    @property
    def can_move(self) -> bool:
        """Whether another process can go on with it: nothing is half written, without TLS."""
        return not self.is_tls

    def export(self) -> ReceiverState:
        """The same again, for another process."""
        return self.terms

    def begin(self, owner: Owner) -> None:
        """Belong to a session."""
        self.owner = owner
        self._common.poller.watch(self.fd, self)
        if has_decrypted(self._sock):
            self._common.poller.again(self.fd, self)

    def send(self, data: bytes) -> int:
        """Write what the kernel takes; how many bytes of ``data`` that were.

        Raises:
            BlockingIOError: it takes nothing.
            OSError: the connection is broken.
        """
        raise NotImplementedError

    def watch(self, *, writes: bool) -> None:
        """Have ``on_writable`` called, or not any more."""
        self._common.poller.watch(self.fd, self, writes=writes)

    def on_readable(self) -> None:
        """A client that receives says nothing; only its end is of interest."""
        try:
            data = self._sock.recv(RECV_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._unheard += len(data)
        if not data or self._unheard > MAX_UNHEARD_BYTES:
            self.abort()
        elif has_decrypted(self._sock):
            self._common.poller.again(self.fd, self)

    def on_writable(self) -> None:
        """The kernel takes bytes again."""
        if self.owner is not None:
            self.owner.on_writable()

    def end(self) -> None:
        """End the response and the connection, for which the client's end is waited a moment."""
        self.owner = None
        try:
            self._sock.shutdown(SHUT_WR)
        except OSError:
            self.abort()
            return
        self.leave()

    def leave(self) -> None:
        """The session has done with it; the client ends the connection, or it is ended soon."""
        self.owner = None
        self.watch(writes=False)
        self._common.expire_after(self._common.config.close_timeout_s, self)

    def on_timeout(self) -> None:
        """The client has not ended it."""
        self.abort()

    def abort(self) -> None:
        """Close the socket and forget everything; harmless twice."""
        if self._is_done:
            return
        self._is_done = True
        owner, self.owner = self.owner, None
        self._common.timeouts.cancel(self)
        self._common.poller.remove(self.fd)
        self._sock.close()
        if owner is not None:
            owner.on_lost()


class Streaming(Receiver):
    """A response that goes on until it is full.

    It is cut exactly where pusher-js begins another one by itself: behind the first line by which
    it has more than so many characters. What comes after that would be lost.
    """

    __slots__ = ("_ends", "_preface", "_room")

    def __init__(
        self,
        sock: socket.socket | TlsSocket,
        common: Common,
        share: Share,
        terms: ReceiverState,
        *,
        preface: bytes,
        room: int,
        ends: bool,
    ) -> None:
        """Make it.

        Args:
            sock: socket of the request.
            common: what the server's connections have in common.
            share: the Poller's share of its app.
            terms: what it was asked for.
            preface: head of the response, and what comes in front of the first line.
            room: number of bytes that make it full.
            ends: whether the server ends it then; else the client does.
        """
        super().__init__(sock, common, share, terms)
        self._preface = preface
        self._room = room
        self._ends = ends

    @property
    def can_move(self) -> bool:  # type: ignore[explicit-override]  # needs Python 3.12
        """See :meth:`Receiver.can_move`."""
        return super().can_move and not self._preface

    def export(self) -> ReceiverState:  # type: ignore[explicit-override]
        """See :meth:`Receiver.export`."""
        return msgspec.structs.replace(self.terms, room=self._room)

    def begin(self, owner: Owner) -> None:  # type: ignore[explicit-override]  # needs Python 3.12
        """Send the head at once: a browser waits for it."""
        super().begin(owner)
        try:
            self._send_preface()
        except BlockingIOError:
            self.watch(writes=True)
        except OSError:
            self._common.poller.abort_soon(self.fd, self)

    def _send_preface(self) -> None:
        while self._preface:
            self._preface = self._preface[self._sock.send(self._preface) :]

    def send(self, data: bytes) -> int:  # type: ignore[explicit-override]
        """See :meth:`Receiver.send`; what is more than may be is not taken."""
        if self._preface:
            self._send_preface()
        is_last = len(data) >= self._room
        if is_last:
            data = data[: data.index(b"\n", max(self._room - 1, 0)) + 1]
        sent = self._sock.send(data)
        self._room -= sent
        if is_last and sent == len(data):
            owner = self.owner
            if self._ends:
                self.end()
            else:
                self.leave()
            if owner is not None:
                owner.on_complete()
        return sent


class Poll(Receiver):
    """The answer to a poll: complete with the first bytes that there are to say.

    Its length is said in front of it, so the connection can be used for the next request.
    """

    __slots__ = ("_encode_head", "_left", "_resume")

    def __init__(
        self,
        sock: socket.socket | TlsSocket,
        common: Common,
        share: Share,
        terms: ReceiverState,
        *,
        encode_head: Callable[[], bytes],
        resume: Callable[[socket.socket | TlsSocket], object] | None,
    ) -> None:
        """Make it.

        Args:
            sock: socket of the request.
            common: what the server's connections have in common.
            share: the Poller's share of its app.
            terms: what it was asked for.
            encode_head: function that gives the head of a response but for its length.
            resume: function that takes the socket back for further requests; None ends it.
        """
        super().__init__(sock, common, share, terms)
        self._encode_head = encode_head
        self._resume = resume
        self._left = 0

    @property
    def can_move(self) -> bool:  # type: ignore[explicit-override]  # needs Python 3.12
        """See :meth:`Receiver.can_move`."""
        return super().can_move and not (self._left or self._unheard)

    def send(self, data: bytes) -> int:  # type: ignore[explicit-override]
        """See :meth:`Receiver.send`. What is offered first is the whole of the answer."""
        if self._left:
            sent = self._sock.send(data[: self._left])
            self._left -= sent
        else:
            head = b"%bContent-Length: %d\r\n\r\n" % (self._encode_head(), len(data))
            sent = self._sock.send(head + data) - len(head)
            if sent <= 0:
                # What it has promised could be replaced in the Outbox. No client of this world has
                # a window of so few bytes.
                raise ConnectionAbortedError
            self._left = len(data) - sent
        if not self._left:
            self._complete()
        return sent

    def _complete(self) -> None:
        """Nothing more belongs to it."""
        owner, self.owner = self.owner, None
        if self._resume is None or self._unheard:
            self.end()
        else:
            self._is_done = True
            self._resume(self._sock)
        if owner is not None:
            owner.on_complete()


class ScriptPoll(Poll):
    """The answer to a poll as a script, which calls a function of the page with one line.

    What the kernel does not take of a line waits here, and no other is taken meanwhile.
    """

    __slots__ = ("_rest",)

    def __init__(
        self,
        sock: socket.socket | TlsSocket,
        common: Common,
        share: Share,
        terms: ReceiverState,
        *,
        encode_head: Callable[[], bytes],
        resume: Callable[[socket.socket | TlsSocket], object] | None,
    ) -> None:
        """Make it; see :class:`Poll`."""
        super().__init__(sock, common, share, terms, encode_head=encode_head, resume=resume)
        self._rest = b""

    @property
    def can_move(self) -> bool:  # type: ignore[explicit-override]
        """See :meth:`Receiver.can_move`."""
        return super().can_move and not self._rest

    def send(self, data: bytes) -> int:  # type: ignore[explicit-override]  # needs Python 3.12
        """Write the first line; see :meth:`Receiver.send`.

        Its end counts as taken when all of it is: till then the Outbox has it, and breaks off if
        what it is the end of expires.
        """
        size = 1
        if not self._rest:
            size = data.index(b"\n") + 1
            body = script(self.terms.callback, data[:size])
            self._rest = b"%bContent-Length: %d\r\n\r\n%b" % (self._encode_head(), len(body), body)
            try:
                sent = self._sock.send(self._rest)
            except BlockingIOError:
                self._rest = b""
                raise
            self._rest = self._rest[sent:]
            if self._rest:
                return size - 1
        else:
            self._rest = self._rest[self._sock.send(self._rest) :]
            if self._rest:
                raise BlockingIOError
        self._complete()
        return size
