"""One HTTP/1.1 connection: Poller <-> parser <-> a handler of requests, or an upgrade.

Responses leave in the order of their requests; a request that has to wait stops the reading of its
connection and nothing else.
"""

from __future__ import annotations

import ssl
from functools import partial
from socket import SHUT_WR
from time import perf_counter
from traceback import format_exc
from typing import TYPE_CHECKING, Final

import structlog

from cachecast.channels.outbox import Outbox
from cachecast.metrics import AppCounters
from cachecast.server.http_messages import Deferred, encode_response, text_response
from cachecast.server.http_parser import RequestParser
from cachecast.server.tls import TlsSocket
from cachecast.server.websocket import RECV_BYTES

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from cachecast.server.http_messages import Request, Response
    from cachecast.server.listen import Server
    from cachecast.server.poller import Share

__all__ = ["HttpConnection"]

#: Responses that may wait for a client before its next requests do.
MAX_WAITING_BYTES: Final = 256 * 1024

#: Answers to pipelined requests that are joined before they are handed over.
JOIN_BYTES: Final = 64 * 1024

#: Seconds of answering pipelined requests before others have their turn.
ANSWER_S: Final = 0.000_5

#: Responses of HTTP clients are nobody's deliveries.
_COUNTERS: Final = AppCounters()

_log = structlog.get_logger("cachecast.server")


class HttpConnection:
    """A connection until it is upgraded or closed; also the Transport of its Outbox.

    Attributes:
        wheel_slot: of the server's timeouts.
        sock: handed over to a WebSocket by an upgrade.
        share: of those who have not said who they are, until a request is verified; then that of
            the app whose secret signed it.
        app_id: of that app.
    """

    __slots__ = (
        "_handle",
        "_is_busy",
        "_is_closing",
        "_is_heard_out",
        "_is_parting",
        "_is_timed",
        "_out",
        "_out_bytes",
        "_outbox",
        "_parser",
        "_requests",
        "_server",
        "_watched",
        "app_id",
        "fd",
        "is_open",
        "send",
        "share",
        "sock",
        "wheel_slot",
    )

    def __init__(
        self,
        sock: socket.socket | TlsSocket,
        server: Server,
        handle: Callable[[Request], Response | Deferred],
        share: Share,
        *,
        can_upgrade: bool = True,
    ) -> None:
        """Take over an accepted socket.

        Args:
            sock: non-blocking, registered with the server's poller by the caller.
            server: owns poller, limits and timeouts.
            handle: answers a request.
            share: to begin with.
            can_upgrade: whether WebSockets may begin here; the admin address has none.
        """
        self.sock = sock
        self.fd = sock.fileno()
        self.send: Callable[[bytes], int] = sock.send
        self.is_open = True
        self.share = share
        self.app_id: str | None = None
        self.wheel_slot = 0
        self._server = server
        self._handle = handle
        self._outbox = Outbox(self, server.http_backlog, _COUNTERS, 1 << 62, 1e9)
        self._parser = RequestParser(server.config, can_upgrade=can_upgrade)
        self._requests = self._parser.requests
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._is_busy = False
        self._is_closing = False
        self._is_heard_out = False
        self._is_parting = False
        self._is_timed = True
        self._watched = (True, False)

    @property
    def retries_same_bytes(self) -> bool:
        """See :class:`cachecast.channels.outbox.Transport`."""
        return isinstance(self.sock, TlsSocket)

    # --- in

    def on_readable(self) -> None:
        """Read once and answer every request that is complete with it, or go on with answering."""
        if not self.is_open:  # upgraded or closed earlier in this turn of the Poller
            return
        if self._requests and not self._is_closing:
            self._answer()
            self._read_decrypted()
            return
        sock = self.sock
        try:
            if isinstance(sock, TlsSocket) and not sock.is_shaken and not sock.shake():
                return
            data = sock.recv(RECV_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
                # A client that does not trust the certificate, say; one that just left says less.
                clients = self._server.broker.clients
                clients.refusals["tls"] += 1
                clients.journal.note(
                    "TLS handshake failed", app=None, code=None, reason=error.reason or ""
                )
            self.abort()
            return
        if not data:
            self._on_end()
            return
        if not self._is_closing:
            self._take(data)

    def _take(self, data: bytes) -> None:
        self._is_heard_out = len(data) < RECV_BYTES
        self._parser.feed(data)
        n_body, room = self._parser.body_bytes, self._server.room
        if n_body or room.bodies:
            room.note_body(self, n_body)
            if self._is_closing:
                return
        if self._requests:
            self._is_timed = False  # the next request has a time limit of its own
        self._answer()
        self._read_decrypted()

    def _read_decrypted(self) -> None:
        """Come back for what TLS has decrypted already: the selector does not know of it."""
        sock = self.sock
        if isinstance(sock, TlsSocket) and self.is_open and self._watched[0] and sock.pending():
            self._server.poller.again(self.fd, self)

    def _on_end(self) -> None:
        """The client has said all it will; it may still want the answers."""
        if self._out:
            self._flush()
        if self._is_closing or not self._outbox.waiting_bytes:
            self.abort()
            return
        server = self._server
        self._is_closing = True
        self._watched = (False, True)
        server.poller.watch(self.fd, self, reads=False, writes=True)
        server.timeouts.schedule(self, server.now() + server.config.close_timeout_s)

    # --- out

    def _answer(self) -> None:
        """Answer complete requests in order, until one has to wait or the client must read."""
        self._answer_requests()
        if not self.is_open:
            return
        if not (self._requests or self._is_busy or self._is_closing):
            self._answer_parser()
        if self._is_closing:
            self._flush()
        elif self._out:
            # Answers leave together: a caller on this machine is then woken once for many of them
            # and not within the `send` of each, which costs more than the rest of that call.
            self._server.poller.at_end_of_turn(self, self._flush)
        self._watch()

    def _answer_requests(self) -> None:
        """The part of it that handles requests; many of them let others have a turn in between."""
        until = 0.0
        while (request := self._next()) is not None:
            if request.is_upgrade:
                self._server.upgrade(self, request, self._parser.rest)
                return
            answer = self._handle(request)
            if request.app_id is not self.app_id and request.app_id is not None:
                self._speak_for(request.app_id)
            if isinstance(answer, Deferred):
                self._is_busy = True
                self._is_heard_out = False
                self._server.nursery.start_soon(self._answer_later, answer, request)
                return
            self._write(answer, request)
            if self._out_bytes > JOIN_BYTES:
                self._flush()
            if self._requests:
                now = perf_counter()
                until = until or now + ANSWER_S
                if now > until and self.is_open:
                    self._server.poller.again(self.fd, self)
                    return

    def _speak_for(self, app_id: str) -> None:
        """From now on it is served in the turns of the app whose secret it has shown to know."""
        self.app_id = app_id
        server = self._server
        server.poller.move(self.fd, server.poller.share_of(app_id))
        server.room.note_verified(self)

    def _answer_parser(self) -> None:
        """Say what is due before a request is complete: a refusal, or that its body may come."""
        parser = self._parser
        if parser.refusal is not None:
            self._write(parser.refusal)
            parser.refusal = None
        elif parser.owes_continue:
            parser.owes_continue = False
            self._out.append(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _next(self) -> Request | None:
        """The next request, if its turn has come; on_drained asks again."""
        if not self._requests or self._is_busy or self._is_closing:
            return None
        most = MAX_WAITING_BYTES
        if self._requests[0].is_upgrade:
            self._flush()
            most = 1  # all answers before it go first
        if not self.is_open or self._outbox.waiting_bytes >= most:
            return None
        return self._requests.popleft()

    async def _answer_later(self, deferred: Deferred, request: Request) -> None:
        """Wait for an answer. If cancelled, which the server's end does, the client gets none."""
        response: Response | None = None
        try:
            response = await deferred.run()
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - it is logged
            # Around one client's connection, as in the Poller: a bug of ours that one request
            # finds must not end the nursery that all others live in.
            _log.error("request failed", path=request.path, traceback=format_exc())
        self._is_busy = False
        self._server.poller.guard(self, partial(self._go_on, response, request))

    def _go_on(self, response: Response | None, request: Request) -> None:
        if response is None:
            self.abort()
        elif self.is_open:
            self._write(response, request)
            self._answer()
            if isinstance(self.sock, TlsSocket) and self._watched[0]:
                self.on_readable()  # the selector does not know what is decrypted already

    def _write(self, response: Response, request: Request | None = None) -> None:
        """Queue a response; without a request it refuses one that was not understood."""
        if request is None:
            clients = self._server.broker.clients
            clients.refusals[f"http {response.status}"] += 1
            clients.journal.note(
                "HTTP request refused",
                app=None,
                code=response.status,
                reason=response.body.decode(errors="replace"),
            )
        keeps_alive = request is not None and request.keeps_alive
        keeps_alive = keeps_alive and not self._server.is_draining
        data = encode_response(response, self._server.date, keeps_alive=keeps_alive)
        if request is not None and request.method == "HEAD" and response.body:
            data = data[: -len(response.body)]
        self._out.append(data)
        self._out_bytes += len(data)
        self._is_closing = not keeps_alive
        self._is_parting = request is not None and not request.keeps_alive

    def _flush(self) -> None:
        """Hand over the answers that wait; harmless when none does, or the connection is gone."""
        data = b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        if not self._is_closing:
            if data:
                self._outbox.put(data)
        elif self._is_parting and self._is_heard_out and not self._parser.has_begun:
            self._part(data)
        else:
            self.linger(data)

    def refuse(self, response: Response) -> None:
        """Answer and close."""
        self._write(response)
        self._flush()

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a request and has nothing to send."""
        return not (
            self._parser.has_begun
            or self._is_busy
            or self._is_closing
            or self._outbox.waiting_bytes
        )

    def _part(self, last: bytes) -> None:
        """Send the last answer to a client that asked for the end, and close if that took all.

        All it said was read, and having asked it says no more (RFC 9112 9.6): nothing can come that
        would reset the connection over the answer. Most who ask come for one request each, and
        waiting for their end would cost as much as a fifth of it.
        """
        self._outbox.put(last)
        if not self.is_open:
            return
        if self._outbox.waiting_bytes:
            self.linger(b"")
            return
        sock = self.sock
        if isinstance(sock, TlsSocket):
            try:
                sock.shutdown(SHUT_WR)  # without TLS's goodbye the answer may have been cut short
            except OSError:
                pass
        self.abort()

    def linger(self, last: bytes) -> None:
        """Send last bytes, then wait a moment for the client's end.

        Closing at once would reset the connection while the client still sends, and the reset
        would overtake the answer.
        """
        self._is_closing = True
        self._parser.drop_body()
        server = self._server
        server.timeouts.schedule(self, server.now() + server.config.close_timeout_s)
        server.room.note_answered(self)
        if last:
            self._outbox.finish(last)

    def _watch(self) -> None:
        """Read on only when all that was read has been answered."""
        if not self.is_open or self._is_closing:
            return
        server, waiting = self._server, self._outbox.waiting_bytes
        reads = not (self._is_busy or self._requests)
        watched = (reads, waiting > 0)
        if watched != self._watched:
            if reads and isinstance(self.sock, TlsSocket):
                server.poller.again(self.fd, self)  # for what was decrypted before the pause
            self._watched = watched
            server.poller.watch(self.fd, self, reads=reads, writes=watched[1])
        if self._is_busy:
            server.timeouts.cancel(self)
            self._is_timed = False
        elif not self._parser.has_begun:
            server.timeouts.schedule(self, server.now() + server.config.idle_timeout_s)
        elif not self._is_timed:
            server.timeouts.schedule(self, server.now() + server.config.request_timeout_s)
            self._is_timed = True

    def on_timeout(self) -> None:
        """The server's wheel: the request, the silence or the goodbye took too long."""
        if self._parser.has_begun and not self._is_closing:
            self._write(text_response(408, "Request not complete in time"))
            self._flush()
        else:
            self.abort()

    # --- what the Outbox calls

    def wait_writable(self) -> None:
        """Have the Poller watch for writability too."""
        self._watched = (self._watched[0], True)
        self._server.poller.watch(self.fd, self, reads=self._watched[0], writes=True)

    def on_writable(self) -> None:
        """Flush what waits."""
        self._outbox.flush(self._server.now())

    def on_drained(self) -> None:
        """All answers have left: read on, or say that nothing more will come."""
        if not self._is_closing:
            self._answer()
            return
        self._watched = (True, False)
        self._server.poller.watch(self.fd, self)
        try:
            self.sock.shutdown(SHUT_WR)
        except OSError:
            self.abort()

    def on_slow(self) -> None:
        """The node has no room for what this client does not read; of its own it has little."""
        self.abort()

    def on_broken(self) -> None:
        """The outbox found the socket broken."""
        self.abort()

    def abort(self) -> None:
        """Close the socket and forget everything; harmless twice."""
        if self.is_open:
            self.release()
            self._server.poller.remove(self.fd)
            self.sock.close()

    def release(self) -> None:
        """Let go of the socket, which an upgrade takes over, and of all else."""
        self.is_open = False
        self._server.timeouts.cancel(self)
        self._server.room.leave(self)
        self._outbox.discard()
        self._parser.close()
