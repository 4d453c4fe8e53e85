"""The WebSocket handshake: from an HTTP request to a conversation, or to a refusal that is heard.

A refusal needs a completed handshake: pusher-js gives no error at all for an HTTP 404 on the
upgrade (protocol.md 9.2), so whatever is wrong with app or path is said inside a WebSocket, as a
``pusher:error`` and as a close code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachecast.errors import RefusedError, RemoteProtocolError
from cachecast.protocol.auth import parse_query
from cachecast.protocol.frames import accept_token
from cachecast.protocol.wire import find_wire
from cachecast.server.handshake import find_key
from cachecast.server.tls import TlsSocket
from cachecast.server.websocket import WebSocket

if TYPE_CHECKING:
    from cachecast.broker.clients import Clients
    from cachecast.server.http import HttpConnection
    from cachecast.server.http_messages import Request
    from cachecast.server.listen import Server

__all__ = ["upgrade"]


def upgrade(server: Server, connection: HttpConnection, request: Request, rest: bytes) -> None:
    """Answer a valid handshake and begin the conversation, or say why there is none.

    Args:
        server: that the connection belongs to.
        connection: gives up its socket.
        request: that passed :func:`~cachecast.server.handshake.refuse_handshake`.
        rest: bytes that came behind the handshake.
    """
    headers = request.headers
    subprotocol, wire = find_wire(headers.get(b"sec-websocket-protocol", b"").decode("latin-1"))
    preface = _switching(headers[b"sec-websocket-key"], subprotocol)
    protocol = dict(parse_query(request.query)).get("protocol")
    origin = headers.get(b"origin")
    try:
        app = server.broker.clients.admit(
            _key(request.path, server.broker.clients),
            protocol,
            origin.decode("latin-1") if origin is not None else None,
            is_tls=server.is_secure(request),
        )
        server.room.check(app)
    except RemoteProtocolError as error:
        connection.linger(preface + wire.refusal(error))
        return
    websocket = WebSocket(
        connection.sock, server.poller, server.broker.clients, server.config.max_message_bytes
    )
    connection.release()
    websocket.open(app, wire, protocol, preface)
    if rest:
        websocket.feed(rest)
    if isinstance(connection.sock, TlsSocket) and connection.sock.pending():
        server.poller.again(websocket.fd, websocket)


def _key(path: str, clients: Clients) -> str:
    """The app key of a path.

    Raises:
        RefusedError: 4005; the path is none of ours. It is counted, as ``admit`` counts its own.
    """
    key = find_key(path)
    if key is None:
        error = RefusedError("Path not found", close_code=4005)
        clients.refusals["4005"] += 1
        clients.journal.refused("connection refused", error, app=None)
        raise error
    return key


def _switching(key: bytes, subprotocol: str | None) -> bytes:
    chosen = f"Sec-WebSocket-Protocol: {subprotocol}\r\n".encode() if subprotocol else b""
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept_token(key) + b"\r\n" + chosen + b"\r\n"
    )
