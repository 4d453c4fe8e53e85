"""The HTTP transports of pusher-js: ``xhr_streaming``, ``xhr_polling`` and ``sockjs``.

For clients whose networks let no WebSocket through. A client makes up a session and receives by
requests for it, ``xhr_streaming`` or ``xhr``, and sends by others, ``xhr_send``. The first one that
receives begins the session. A session's path is its name: it belongs to the app whose key stands
there, and who does not know it whole cannot reach it. That nobody can guess it is the client's part
(pusher-js draws 50 bits); there are no cookies, so no other page's requests can carry it.

SockJS's own client names no app in its paths, but in the first message that it sends.
"""

from __future__ import annotations

from functools import partial
from secrets import randbits
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from cachecast.errors import (
    BadMessageError,
    BadRequestError,
    CapacityError,
    RefusedError,
    RemoteProtocolError,
)
from cachecast.handover.state import ReceiverState
from cachecast.protocol.auth import parse_query
from cachecast.protocol.sockjs import (
    OPEN,
    PRELUDE,
    find_place,
    read_callback,
    read_form,
    read_introduction,
    read_messages,
    script,
)
from cachecast.protocol.wire import JSON_SOCKJS
from cachecast.server.cors import is_preflight, share
from cachecast.server.crossing import Crossing
from cachecast.server.http_messages import Response, Upgrade, text_response
from cachecast.server.http_messages import encode_head as encode_head_of
from cachecast.server.http_session import HEARTBEAT_S, MAX_INBOX, HttpSession, unknown
from cachecast.server.receiver import Poll, ScriptPoll, Streaming

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from cachecast.apps import App
    from cachecast.broker import Broker
    from cachecast.channels.connection import Connection
    from cachecast.handover.state import HttpSessionState
    from cachecast.protocol.sockjs import Place
    from cachecast.server.common import Common
    from cachecast.server.crossing import Ways
    from cachecast.server.http_messages import Later, Request
    from cachecast.server.receiver import Receiver
    from cachecast.server.tls import TlsSocket

__all__ = ["Transports"]

#: Characters of a streamed response past which pusher-js begins another one by itself.
PUSHER_MAX_BYTES: Final = 256 * 1024

#: Bytes of one past which it is ended, and SockJS's own client begins another.
SOCKJS_MAX_BYTES: Final = 128 * 1024

#: Number of sessions at most that have not said yet which app they want.
MAX_NAMELESS: Final = 1_000

#: How many times larger a message is in a request: JSON in a string of JSON, all of it escaped.
JSON_GROWTH: Final = 2

#: Nothing in between may keep, change or compress what is streamed; nginx passes it on as it comes.
_STREAMED: Final = (
    "Cache-Control: no-store, no-transform",
    "X-Accel-Buffering: no",
)

#: Type of the body. Not text/plain, of which browsers hold back the beginning to guess what it is.
_TYPE: Final = "application/javascript; charset=utf-8"

#: Answers to what has been handled; a form's frame hears only of an answer with a body.
_DONE: Final = Response(204, b"", "text/plain; charset=utf-8")
_FORM_DONE: Final = Response(200, b"ok", "text/plain; charset=utf-8")

STILL_OPEN: Final = "Another connection still open"

_PREFLIGHT: Final = (
    "Access-Control-Allow-Methods: GET, POST",
    "Access-Control-Allow-Headers: Content-Type",
    "Access-Control-Max-Age: 7200",
)


class Adopt(Protocol):
    """Serves an HTTP connection; see :meth:`cachecast.server.listen.Front.adopt`."""

    def __call__(
        self,
        sock: socket.socket | TlsSocket,
        *,
        is_tls: bool,
        request: Request | None = None,
        is_known: bool = False,
    ) -> object:
        """Answer a request that has been read, and those that follow."""


class Transports:
    """The sessions of a server, and the answers to all requests that are for one.

    Attributes:
        crossing: the ways to the other workers of the node; None where there are none.
    """

    def __init__(
        self,
        broker: Broker,
        common: Common,
        adopt: Adopt,
    ) -> None:
        """Make it.

        Args:
            broker: the broker that is served.
            common: what the server's connections have in common.
            adopt: function that serves an HTTP connection.
        """
        self._broker = broker
        self._common = common
        self._adopt = adopt
        self.crossing: Crossing | None = None
        self._sessions: dict[str, HttpSession] = {}
        self._nameless: dict[HttpSession, None] = {}

    def __len__(self) -> int:
        """Sessions."""
        return len(self._sessions)

    def join(self, ways: Ways) -> Crossing:
        """Be one of several workers, of whom each holds a part of all sessions.

        Args:
            ways: the ways to them.

        Returns:
            What the caller has to run.
        """
        self.crossing = Crossing(ways, self._common.poller, self._take)
        return self.crossing

    def _take(self, sock: socket.socket, request: Request, *, is_tls: bool) -> None:
        """Go on with a connection that another worker has accepted."""
        if self._common.room.make_place():
            self._adopt(sock, is_tls=is_tls, request=request)
        else:
            sock.close()

    def answer(self, request: Request, *, is_tls: bool) -> Response | Later | Upgrade | None:
        """Answer a request; None if it is for something else.

        Args:
            request: request whose path nothing else is at.
            is_tls: whether the client came over TLS.
        """
        place = find_place(request.path)
        if place is None:
            return None
        shared = _sharing(request)
        if is_preflight(request):
            return Response(204, b"", "", shared + _PREFLIGHT)
        method = "GET" if place.kind in {"info", "jsonp"} else "POST"
        if request.method != method:
            response = text_response(405, f"This path takes {method}")
            response.headers = (f"Allow: {method}", *shared)
            return response
        if place.kind == "info":
            return self._info(shared)
        if self.crossing is not None:
            number = self.crossing.find_other(place.session)
            if number is not None:
                return self._pass_on(self.crossing, number, request, shared, is_tls=is_tls)
        if place.kind.endswith("send"):
            answer: Response | Later | Upgrade = self._send(place, request, is_tls=is_tls)
        else:
            answer = self._receive(place, request, shared, is_tls=is_tls)
        return answer if isinstance(answer, Upgrade) else share(answer, shared)

    def _pass_on(
        self,
        crossing: Crossing,
        number: int,
        request: Request,
        shared: tuple[str, ...],
        *,
        is_tls: bool,
    ) -> Response | Upgrade:
        """Leave a request to the worker that holds its session."""
        if not crossing.has_room(number):
            response = text_response(503, "The worker of this session is too busy, try again")
            response.headers = ("Retry-After: 1", *shared)
            return response

        def take(sock: socket.socket | TlsSocket, _: bytes) -> None:
            crossing.pass_on(number, request, sock, is_tls=is_tls)

        return Upgrade(b"", take)

    def _info(self, shared: tuple[str, ...]) -> Response:
        """What SockJS's own client wants to know first."""
        body = msgspec.json.encode(
            {
                "websocket": False,
                "cookie_needed": False,
                "origins": ["*:*"],
                "entropy": randbits(32),
                "server_heartbeat_interval": int(1000 * HEARTBEAT_S),
            }
        )
        headers = ("Cache-Control: no-store", *shared)
        return Response(200, body, "application/json; charset=utf-8", headers)

    # --- receiving

    def _receive(
        self, place: Place, request: Request, shared: tuple[str, ...], *, is_tls: bool
    ) -> Response | Upgrade:
        if place.kind == "jsonp" and read_callback(request.query) is None:
            return text_response(400, "The parameter c must name a function of the page")
        session = self._sessions.get(place.session)
        if session is not None:
            if session.is_receiving:
                return _refuse(place, request, JSON_SOCKJS.goodbye(2010, STILL_OPEN))
            return self._upgrade(session, place, request, shared, session.attach, is_tls=is_tls)
        if place.key is None:
            return self._receive_nameless(place, request, shared, is_tls=is_tls)
        try:
            app = self._admit(place.key, request.query, request, is_tls=is_tls)
        except _SwitchedOffError as error:
            return text_response(403, error.message)
        except RemoteProtocolError as error:
            return _refuse(place, request, OPEN + JSON_SOCKJS.refusal(error))
        session = HttpSession(self._broker, self._common, self._forget, place.session)
        protocol = parse_query(request.query).named.get("protocol")

        def begin(receiver: Receiver) -> None:
            self._sessions[place.session] = session
            session.attach(receiver)
            if not session.is_over:
                session.open(app, protocol, OPEN)

        return self._upgrade(session, place, request, shared, begin, is_tls=is_tls)

    def _receive_nameless(
        self, place: Place, request: Request, shared: tuple[str, ...], *, is_tls: bool
    ) -> Response | Upgrade:
        """Begin a session whose client has not said yet which app it wants."""
        if self._common.is_draining or self._is_full:
            return _refuse(place, request, OPEN + JSON_SOCKJS.refusal(_full()))
        if len(self._nameless) >= MAX_NAMELESS:
            next(iter(self._nameless)).abort()
        session = HttpSession(self._broker, self._common, self._forget, place.session)
        session.is_sockjs = True

        def begin(receiver: Receiver) -> None:
            self._sessions[place.session] = session
            self._nameless[session] = None
            self._common.expire_after(self._common.config.request_timeout_s, session)
            session.attach(receiver)
            session.greet()

        return self._upgrade(session, place, request, shared, begin, is_tls=is_tls)

    def _upgrade(
        self,
        session: HttpSession,
        place: Place,
        request: Request,
        shared: tuple[str, ...],
        begin: Callable[[Receiver], None],
        *,
        is_tls: bool,
    ) -> Upgrade:
        """Give a request's socket to its session, by ``begin``."""
        keeps_alive = request.keeps_alive and not self._common.is_draining
        is_stream = place.kind == "xhr_streaming"  # whose end is that of the connection
        terms = ReceiverState(
            place.kind,
            _STREAMED + shared,
            keeps_alive and not is_stream,
            (read_callback(request.query) or "") if place.kind == "jsonp" else "",
            is_tls,
        )

        def take(sock: socket.socket | TlsSocket, _: bytes) -> None:
            begin(self._open_receiver(sock, session, terms))

        return Upgrade(b"", take)

    def _open_receiver(
        self, sock: socket.socket | TlsSocket, session: HttpSession, terms: ReceiverState
    ) -> Receiver:
        common, share = self._common, session.share

        def encode_head() -> bytes:
            return encode_head_of(200, common.date, _TYPE, terms.headers, terms.keeps_alive)

        if terms.kind == "xhr_streaming":
            preface, room = b"", terms.room
            if room is None:
                preface = encode_head() + b"\r\n" + PRELUDE
                most = SOCKJS_MAX_BYTES if session.is_sockjs else PUSHER_MAX_BYTES
                room = most + 1 - len(PRELUDE)
            return Streaming(
                sock, common, share, terms, preface=preface, room=room, ends=session.is_sockjs
            )
        resume = None
        if terms.keeps_alive:
            resume = partial(self._adopt, is_tls=terms.is_tls, is_known=True)
        kind = ScriptPoll if terms.kind == "jsonp" else Poll
        return kind(sock, common, share, terms, encode_head=encode_head, resume=resume)

    # --- handing over

    def can_move(self) -> dict[Connection, HttpSession]:
        """The sessions that another process can go on with. O(sessions).

        Of a worker too: the next one gets its place among the others, and their key.
        """
        sessions = self._sessions.values()
        return {s.connection: s for s in sessions if s.connection is not None and s.can_move}

    def restore(
        self, app_id: str, state: HttpSessionState, sock: socket.socket | None
    ) -> HttpSession:
        """Go on with a session that another process began, and the request that receives for it.

        Its ``restore`` comes behind. Nothing is sent.
        """
        session = HttpSession(self._broker, self._common, self._forget, state.path)
        session.is_sockjs = state.is_sockjs
        session.share = self._common.poller.share_of(app_id)
        self._sessions[state.path] = session
        if sock is not None and state.receiver is not None:
            receiver = self._open_receiver(sock, session, state.receiver)
            self._common.poller.add(receiver.fd, receiver)
            session.attach(receiver)
        return session

    # --- ending

    def _forget(self, session: HttpSession) -> None:
        self._sessions.pop(session.path, None)
        self._nameless.pop(session, None)

    def end_nameless(self) -> None:
        """Close those who have not said yet which app they want. O(such sessions), never yields."""
        for session in list(self._nameless):
            session.abort()

    def abort(self) -> None:
        """End all sessions, also those that have no socket, without a word. Never yields."""
        for session in list(self._sessions.values()):
            session.abort()

    # --- sending

    def _send(self, place: Place, request: Request, *, is_tls: bool) -> Response | Later:
        session = self._sessions.get(place.session)
        if session is None:
            clients = self._broker.clients
            clients.refusals["http 404"] += 1
            clients.journal.note(
                "HTTP request refused",
                app=None,
                code=404,
                reason="No such session here",
                route=place.kind,
            )
            return unknown()
        try:
            is_form = place.kind == "jsonp_send"
            most = MAX_INBOX * JSON_GROWTH * self._common.config.max_message_bytes
            body = read_form(request.body) if is_form else request.body
            messages = read_messages(body, most)
        except BadRequestError as error:
            session.fault()
            return text_response(error.http_status, error.message.rstrip("\n"))
        done = _FORM_DONE if is_form else _DONE
        if session.connection is not None:
            return session.take(messages, done)
        if not messages:
            return done
        return self._introduce(session, messages, request, done, is_tls=is_tls)

    def _introduce(
        self,
        session: HttpSession,
        messages: list[bytes],
        request: Request,
        done: Response,
        *,
        is_tls: bool,
    ) -> Response | Later:
        """The first message of SockJS's own client: begin the conversation that it wants."""
        try:
            key, query = read_introduction(messages[0])
            app = self._admit(key, query, request, is_tls=is_tls)
        except _SwitchedOffError as error:
            session.abort()
            return text_response(403, error.message)
        except BadMessageError as error:
            session.refuse(RefusedError(error.message, close_code=4005))
            return done
        except RemoteProtocolError as error:
            session.refuse(error)
            return done
        self._nameless.pop(session, None)
        session.open(app, parse_query(query).named.get("protocol"))
        return session.take(messages[1:], done) if len(messages) > 1 else done

    # --- who is served

    @property
    def _is_full(self) -> bool:
        """Whether there may be no further session: it needs no open file while nobody receives."""
        room = self._common.room
        return room.is_full or len(self._sessions) >= room.max_clients

    def _admit(self, key: str, query: str, request: Request, *, is_tls: bool) -> App:
        """The app of a new session.

        Raises:
            RemoteProtocolError: it may not exist; as for a WebSocket, or because the app has these
                transports switched off.
        """
        clients = self._broker.clients
        hub = clients.find_hub(key)
        if hub is not None and not hub.app.allows_http_transports:
            hub.counters.refusals["http 403"] += 1
            switched_off = _SwitchedOffError(
                f"App {hub.app.id} has its HTTP transports switched off (allows_http_transports)"
            )
            clients.journal.refused("connection refused", switched_off, app=hub.app.id)
            raise switched_off
        origin = request.headers.get(b"origin")
        app = clients.admit(
            key,
            parse_query(query).named.get("protocol"),
            origin.decode("latin-1") if origin is not None else None,
            is_tls=is_tls,
        )
        if self._is_full:
            self._broker.hubs[app.id].counters.refusals["4100"] += 1
            raise _full()
        return app


class _SwitchedOffError(RefusedError):
    """The app has these transports switched off. Said in HTTP: a client tries WebSockets again."""


def _full() -> CapacityError:
    return CapacityError("Over capacity, reconnect later")


def _sharing(request: Request) -> tuple[str, ...]:
    """The headers that let any page read an answer: which pages may connect, the app says.

    SockJS's own client sends its requests with credentials, of which nothing is read.
    """
    origin = request.headers.get(b"origin")
    if origin is None:
        return ()
    text = origin.decode("latin-1")
    return (
        f"Access-Control-Allow-Origin: {text}",
        "Access-Control-Allow-Credentials: true",
        "Vary: Origin",
    )


def _refuse(place: Place, request: Request, body: bytes) -> Response:
    """A whole answer to who wants to receive and may not."""
    if place.kind == "jsonp":  # one line each: the goodbye
        callback = read_callback(request.query)
        assert callback is not None
        body = script(callback, body.splitlines()[-1])
    return Response(200, body, _TYPE, _STREAMED)
