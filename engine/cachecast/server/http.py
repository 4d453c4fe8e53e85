"""One HTTP/1.1 connection: Poller <-> parser <-> a handler of requests.

Responses leave in the order of their requests; a request that has to wait stops the reading of its
connection and nothing else. A handler answers with a response, with one that comes later, with one
that comes in parts, or with what the connection becomes.

What a connection is doing is one :class:`State`, and :data:`NEXT` says what may follow.
"""

from __future__ import annotations

from enum import IntEnum
from functools import partial
from math import inf
from socket import SHUT_WR
from time import perf_counter
from traceback import format_exc
from typing import TYPE_CHECKING, Final

import structlog

from cachecast.channels.outbox import Outbox
from cachecast.metrics import AppCounters
from cachecast.server.http_messages import Later, Response, Upgrade, encode_response, text_response
from cachecast.server.http_parser import RequestParser
from cachecast.server.poller import RECV_BYTES
from cachecast.server.streaming import Body, Stream
from cachecast.server.tls import TlsSocket, fault_of, has_decrypted

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from cachecast.server.common import Common
    from cachecast.server.http_messages import Request
    from cachecast.server.poller import Share

__all__ = ["NEXT", "HttpConnection", "State"]


class State(IntEnum):
    """What a connection is doing. From ``PARTING`` on no request is answered any more."""

    READING = 0  # a request has begun, or the first one is due
    IDLE = 1  # nothing has begun; or the client must read before its next request is answered
    BUSY = 2  # a request is answered later; nothing is read meanwhile
    STREAMING = 3  # the body of a response comes in parts
    PARTING = 4  # the last answer, after which the connection is closed at once
    CLOSING = 5  # the last answer is on its way
    LINGERING = 6  # all has been said; the client's end is waited for
    GONE = 7  # closed, or handed over by an upgrade


READING, IDLE, BUSY, STREAMING, PARTING, CLOSING, LINGERING, GONE = State

#: State -> states that may follow it.
NEXT: Final[dict[State, frozenset[State]]] = {
    READING: frozenset({IDLE, CLOSING, GONE}),
    IDLE: frozenset({READING, BUSY, STREAMING, PARTING, CLOSING, GONE}),
    BUSY: frozenset({IDLE, GONE}),
    STREAMING: frozenset({IDLE, CLOSING, GONE}),
    PARTING: frozenset({CLOSING, GONE}),
    CLOSING: frozenset({LINGERING, GONE}),
    LINGERING: frozenset({GONE}),
    GONE: frozenset(),
}

#: Forms of an answer to a request.
Answer = Response | Later | Stream | Upgrade

#: Bytes of responses that may wait for a client before its next requests do.
MAX_WAITING_BYTES: Final = 256 * 1024

#: Bytes of answers to pipelined requests that are joined before they are handed over.
JOIN_BYTES: Final = 64 * 1024

#: Seconds of answering pipelined requests before others have their turn.
ANSWER_S: Final = 0.000_5

#: Counters that nobody reads: responses of HTTP clients are nobody's deliveries.
_COUNTERS: Final = AppCounters()

_log = structlog.get_logger("cachecast.server")


class HttpConnection:
    """A connection until it is upgraded or closed; also the Transport of its Outbox.

    Attributes:
        wheel_slot: place in the wheel of the server's timeouts; the wheel's own.
        sock: the connection's socket; handed over by an upgrade.
        share: the Poller's share of those who have not said who they are, until a request is
            verified; then that of the app whose secret signed it.
        app_id: id of the app whose secret signed a request; None before that.
        state: what the connection is doing.
    """

    __slots__ = (
        "_body",
        "_common",
        "_deadline",
        "_handle",
        "_last_read",
        "_on_gone",
        "_out",
        "_out_bytes",
        "_outbox",
        "_parser",
        "_requests",
        "_watched",
        "app_id",
        "fd",
        "send",
        "share",
        "sock",
        "state",
        "wheel_slot",
    )

    def __init__(
        self,
        sock: socket.socket | TlsSocket,
        common: Common,
        handle: Callable[[Request], Answer],
        share: Share,
        *,
        can_upgrade: bool = True,
    ) -> None:
        """Take over an accepted socket.

        Args:
            sock: connected socket, non-blocking, registered with the poller by the caller.
            common: what all connections of the server have in common.
            handle: function that answers a request.
            share: the Poller's share that it belongs to in the beginning.
            can_upgrade: whether WebSockets may begin here; the admin address has none.
        """
        self.sock = sock
        self.fd = sock.fileno()
        self.send: Callable[[bytes], int] = sock.send
        self.share = share
        self.app_id: str | None = None
        self.wheel_slot = 0
        self.state = READING
        self._common = common
        self._handle = handle
        self._outbox = Outbox(self, common.backlog, _COUNTERS, 1 << 62, 1e9)
        self._parser = RequestParser(common.config, can_upgrade=can_upgrade)
        self._requests = self._parser.requests
        self._body: Body | None = None
        self._on_gone: Callable[[], None] | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._deadline = inf  # of the first value in there to expire
        # Bytes of the last read: of one that was not full nothing is left.
        self._last_read = 0
        self._watched = (True, False)

    def _go(self, state: State) -> None:
        """The one place where the state changes; the tests compare it with the table."""
        self.state = state

    @property
    def retries_same_bytes(self) -> bool:
        """See :class:`cachecast.channels.outbox.Transport`."""
        return isinstance(self.sock, TlsSocket)

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request and has nothing to send."""
        waits = self.state <= IDLE and not self._parser.has_begun
        return waits and not self._outbox.waiting_bytes

    # --- handing over

    @property
    def can_move(self) -> bool:
        """Whether another process can go on with it: it waits for a request, without TLS."""
        is_plain = not isinstance(self.sock, TlsSocket)
        return is_plain and self.is_idle and not self._requests and not self._out

    @property
    def is_asked(self) -> bool:
        """Whether a request has begun, is being answered, or may come in the next moment.

        Not while the answer is a stream: that may last for days, and nobody waits for its end.
        """
        return self.state < STREAMING and not self.is_idle

    def restore(self, app_id: str | None, request: Request | None = None) -> None:
        """Go on with a connection whose last request was that app's, and one that has been read."""
        if app_id is not None:
            self._speak_for(app_id)
        self._go(IDLE)
        self._common.expire_after(self._common.config.idle_timeout_s, self)
        if request is not None:
            self._requests.append(request)
            self._answer()

    def handle_by(self, handle: Callable[[Request], Answer]) -> None:
        """Have further requests answered by another function."""
        self._handle = handle

    # --- in

    def on_readable(self) -> None:
        """Read once and answer every request that is complete with it, or go on with answering."""
        if self.state is GONE:  # upgraded or closed earlier in this turn of the Poller
            return
        if self.state is BUSY and (self._on_gone is None or self._requests):
            # Only who talks on costs two calls of the selector, and not who is answered soon.
            self._watched = (False, self._watched[1])
            self._common.poller.watch(self.fd, self, reads=False, writes=self._watched[1])
            return
        if self._requests and self.state < PARTING:
            self._answer()
            self._read_decrypted()
            return
        try:
            data = self.sock.recv(RECV_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            fault = fault_of(error)
            if fault is not None:
                self._common.note_tls_fault(fault)
            self.abort()
            return
        if not data:
            self._on_end()
        elif self.state < PARTING:
            self._take(data)

    def _take(self, data: bytes) -> None:
        self._last_read = len(data)
        self._parser.feed(data)
        n_body, room = self._parser.body_bytes, self._common.room
        if n_body or room.bodies:
            room.note_body(self, n_body)
        if self._requests and self.state is READING:
            self._go(IDLE)  # the next request has a time limit of its own
        self._answer()
        if isinstance(self.sock, TlsSocket):
            self._read_decrypted()

    def _read_decrypted(self) -> None:
        """Come back for what TLS has decrypted already: the selector does not know of it."""
        if self._watched[0] and self.state is not GONE and has_decrypted(self.sock):
            self._common.poller.again(self.fd, self)

    def _on_end(self) -> None:
        """The client has said all it will; it may still want the answers."""
        if self._out:
            self._flush()
        if self.state > IDLE or not self._outbox.waiting_bytes:
            self.abort()
            return
        self._go(CLOSING)
        self._watched = (False, True)
        self._common.poller.watch(self.fd, self, reads=False, writes=True)
        self._common.expire_after(self._common.config.close_timeout_s, self)

    # --- out

    def _answer(self) -> None:
        """Answer complete requests in order, until one has to wait or the client must read."""
        self._answer_requests()
        if self.state <= IDLE and not self._requests:
            self._answer_parser()
        if self.state >= PARTING:
            if self._out:
                self._flush()
            return
        if self._out:
            # Together: a caller on this machine is woken once, and not within the `send` of each.
            self._common.poller.at_end_of_turn(self, self._flush)
        if self.state is not BUSY or self._watched[1]:
            self._settle()

    def _answer_requests(self) -> None:
        """The part of it that handles requests; many of them let others have a turn in between."""
        until = 0.0
        while self._requests and (request := self._next()) is not None:
            answer = self._handle(request)
            if request.app_id is not self.app_id and request.app_id is not None:
                self._speak_for(request.app_id)
            if isinstance(answer, Response):
                # Behind an offer to upgrade there is no telling where the next request begins.
                self._write(answer, None if request.is_upgrade else request)
            else:
                self._answer_otherwise(answer, request)
                if self.state > IDLE:
                    return
            if self._out_bytes > JOIN_BYTES:
                self._flush()
            if self._requests:
                now = perf_counter()
                until = until or now + ANSWER_S
                if now > until and self.state is IDLE:
                    self._common.poller.again(self.fd, self)
                    return

    def _answer_otherwise(self, answer: Later | Stream | Upgrade, request: Request) -> None:
        if isinstance(answer, Later):
            self._go(BUSY)
            self._on_gone = answer.on_gone
            self._last_read = RECV_BYTES  # it may talk on meanwhile
            answer.line(partial(self._attempt, answer, request))
        elif isinstance(answer, Stream):
            self._stream(answer, request)
        elif answer.begin is None:
            self.linger(answer.switching)
        elif not request.is_upgrade and (self._requests or self._parser.has_begun or self._out):
            self.abort()  # what comes behind or before it would be lost: nobody pipelines these
        else:
            rest = self._parser.rest
            self._release()
            answer.begin(self.sock, rest)

    def _next(self) -> Request | None:
        """The next request, if its turn has come; on_drained asks again."""
        if self.state > IDLE:
            return None
        most = MAX_WAITING_BYTES
        if self._requests[0].is_upgrade:
            if self._out:
                self._flush()
            most = 1  # all answers before it go first
        if self.state is GONE or self._outbox.waiting_bytes >= most:
            return None
        return self._requests.popleft()

    def _speak_for(self, app_id: str) -> None:
        """From now on it is served in the turns of the app whose secret it has shown to know."""
        self.app_id = app_id
        common = self._common
        common.poller.move(self.fd, common.poller.share_of(app_id))
        common.room.note_verified(self)

    def _answer_parser(self) -> None:
        """Say what is due before a request is complete: a refusal, or that its body may come."""
        parser = self._parser
        if parser.refusal is not None:
            self._write(parser.refusal)
            parser.refusal = None
        elif parser.owes_continue:
            parser.owes_continue = False
            self._out.append(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _attempt(self, later: Later, request: Request) -> bool:
        """Try to answer what had to wait; True if that is over. A bug ends this connection only."""
        if self._common.has_ended:
            return True
        try:
            response = later.attempt()
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - it is logged
            _log.error("request failed", path=request.path, traceback=format_exc())
            self.abort()
            return True
        if response is None:
            return False
        if self.state is BUSY:
            self._common.poller.guard(self, partial(self._go_on, response, request))
        return True

    def _go_on(self, response: Response, request: Request) -> None:
        self._go(IDLE)
        self._on_gone = None
        self._write(response, request)
        if self._requests and self.state is IDLE:  # in the turns of its share
            self._flush()
            self._common.poller.again(self.fd, self)
        else:
            self._answer()

    def _write(self, response: Response, request: Request | None = None) -> None:
        """Queue a response; without a request it refuses one that was not understood."""
        common = self._common
        if request is None:
            common.note_refusal(response.status, response.body.decode(errors="replace"))
            keeps_alive = asked_for_end = False
        else:
            asked_for_end = not request.keeps_alive
            keeps_alive = request.keeps_alive and not common.is_draining
        data = encode_response(response, common.date, keeps_alive=keeps_alive)
        if request is not None and request.method == "HEAD" and response.body:
            data = data[: -len(response.body)]
        self._out.append(data)
        self._out_bytes += len(data)
        self._deadline = min(self._deadline, response.deadline)
        if not keeps_alive:
            is_heard_out = self._last_read < RECV_BYTES and not self._parser.has_begun
            self._go(PARTING if asked_for_end and is_heard_out else CLOSING)

    def _flush(self) -> None:
        """Hand over the answers that wait; harmless when none does, or the connection is gone."""
        data = b"".join(self._out)
        deadline, self._deadline = self._deadline, inf
        self._out.clear()
        self._out_bytes = 0
        if not data:
            return
        if self.state < PARTING:
            self._outbox.put(data, None, deadline)
        elif self.state is PARTING:
            self._part(data)
        elif self.state is CLOSING:
            self.linger(data)

    def refuse(self, response: Response) -> None:
        """Answer and close."""
        if self.state > IDLE:  # another answer has begun
            self.abort()
            return
        self._write(response)
        self._flush()

    def _part(self, last: bytes) -> None:
        """Send the last answer to a client that asked for the end, and close if that took all.

        All it said was read, and having asked it says no more (RFC 9112 9.6): nothing can reset it
        over the answer. Waiting for its end would cost as much as a fifth of a request.
        """
        self._outbox.put(last)
        if self.state is GONE:
            return
        if self._outbox.waiting_bytes:
            self.linger(b"")
            return
        if isinstance(self.sock, TlsSocket):
            try:
                self.sock.shutdown(SHUT_WR)  # else the answer may look as if cut short
            except OSError:
                pass
        self.abort()

    def linger(self, last: bytes) -> None:
        """Send last bytes, then wait for the client's end, lest a reset overtake the answer."""
        if self.state is not CLOSING:
            self._go(CLOSING)
        self._parser.drop_body()
        common = self._common
        common.expire_after(common.config.close_timeout_s, self)
        common.room.note_answered(self)
        self._outbox.finish(last)

    def _settle(self) -> None:
        """Read on when all that was read has been answered; give the next request its time."""
        common, waiting = self._common, self._outbox.waiting_bytes
        reads = not self._requests
        if self.state is BUSY:
            reads = self._watched[0]  # until there is something to read
        elif self.state is STREAMING:
            reads = reads and self._parser.refusal is None
        elif self.state <= IDLE:
            if not (reads and self._parser.has_begun):
                if self.state is READING:
                    self._go(IDLE)
                common.expire_after(common.config.idle_timeout_s, self)
            elif self.state is IDLE:
                self._go(READING)
                common.expire_after(common.config.request_timeout_s, self)
        watched = (reads, waiting > 0)
        if watched != self._watched:
            if reads and isinstance(self.sock, TlsSocket):
                common.poller.again(self.fd, self)  # for what was decrypted before the pause
            self._watched = watched
            common.poller.watch(self.fd, self, reads=reads, writes=watched[1])

    def on_timeout(self) -> None:
        """The server's wheel: the request, the silence or the goodbye took too long."""
        if self.state is BUSY:
            return  # it is we who are waited for; its time begins anew with the answer
        if self.state is READING and self._parser.has_begun:
            self.refuse(text_response(408, "Request not complete in time"))
        else:
            self.abort()

    # --- a body in parts

    def _stream(self, stream: Stream, request: Request) -> None:
        common = self._common
        keeps_alive = request.keeps_alive and not request.is_1_0 and not common.is_draining
        if request.method != "HEAD" and not common.room.begin_stream(self):
            self._write(text_response(503, "This node has no room for a stream"), request)
            return
        self._out.append(stream.encode_head(request, common.date, keeps_alive=keeps_alive))
        self._last_read = RECV_BYTES  # it may talk on meanwhile
        if request.method == "HEAD":
            if not keeps_alive:
                self._go(CLOSING)
            return
        self._flush()
        if self.state is GONE:
            return
        self._go(STREAMING)
        common.timeouts.cancel(self)
        if self._outbox.waiting_bytes:
            common.expire_after(common.config.idle_timeout_s, self)
        self._body = Body(
            stream.source, self, is_chunked=not request.is_1_0, keeps_alive=keeps_alive
        )
        self._body.begin()

    @property
    def has_room(self) -> bool:
        """Whether a part of a body may be written."""
        return self._outbox.waiting_bytes < MAX_WAITING_BYTES

    def put_part(self, data: bytes, key: str | None, deadline: float) -> None:
        """Send a part of a body; see :meth:`Body.write`."""
        self._outbox.put(data, key, deadline)

    def end_stream(self, last: bytes, *, keeps_alive: bool) -> None:
        """Send the end of a body."""
        self._body = None
        if not keeps_alive or self._common.is_draining:
            self.linger(last)
            return
        self._outbox.put(last)
        if self.state is STREAMING:
            self._go(IDLE)
            if self.app_id is not None:
                self._common.room.note_verified(self)
            self._settle()
            if self._requests or self._parser.refusal is not None:
                self._common.poller.again(self.fd, self)

    def cut_stream(self) -> None:
        """End the connection in the midst of a body."""
        self._body = None
        self.abort()

    # --- what the Outbox calls

    def wait_writable(self) -> None:
        """Have the Poller watch for writability too."""
        self._watched = (self._watched[0], True)
        self._common.poller.watch(self.fd, self, reads=self._watched[0], writes=True)
        if self.state is STREAMING:
            self._common.expire_after(self._common.config.idle_timeout_s, self)

    def on_writable(self) -> None:
        """Flush what waits."""
        self._outbox.flush(self._common.now())
        if self.state is STREAMING and self._outbox.waiting_bytes:  # it has taken some
            self._common.expire_after(self._common.config.idle_timeout_s, self)

    def on_drained(self) -> None:
        """All answers have left: read on, or say that nothing more will come."""
        if self.state < PARTING:
            body = self._body
            if body is None:
                self._answer()
                return
            self._common.timeouts.cancel(self)
            self._settle()
            body.on_room()
            return
        self._go(LINGERING)
        self._watched = (True, False)
        self._common.poller.watch(self.fd, self)
        try:
            self.sock.shutdown(SHUT_WR)
        except OSError:
            self.abort()

    def on_slow(self) -> None:
        """The node has no room for what this client does not read; of its own it has little."""
        self.on_broken()

    def on_broken(self) -> None:
        """The outbox found the socket broken."""
        if self._body is None:
            self.abort()
        else:  # its source may be in the midst of writing, and hears of it in a turn
            self._common.poller.abort_soon(self.fd, self)

    def abort(self) -> None:
        """Close the socket and forget everything; harmless twice."""
        if self.state is not GONE:
            body, self._body = self._body, None
            on_gone = self._on_gone if body is None else body.on_gone
            self._release()
            self._common.poller.remove(self.fd)
            self.sock.close()
            if on_gone is not None:
                self._common.poller.guard(self, on_gone)

    def _release(self) -> None:
        """Let go of the socket, which an upgrade takes over, and of all else."""
        self._go(GONE)
        self._common.timeouts.cancel(self)
        self._common.room.leave(self)
        self._outbox.discard()
        self._parser.close()
