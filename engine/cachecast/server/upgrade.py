"""The WebSocket handshake: from an HTTP request to a conversation, or to a refusal that is heard.

A refusal needs a completed handshake: pusher-js gives no error at all for an HTTP 404 on the
upgrade (protocol.md 9.2), so whatever is wrong with app or path is said inside a WebSocket, as a
``pusher:error`` and as a close code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachecast.errors import CapacityError, RefusedError, RemoteProtocolError
from cachecast.protocol.auth import parse_query
from cachecast.protocol.deflate import agree
from cachecast.protocol.frames import accept_token
from cachecast.protocol.wire import compressing, find_wire
from cachecast.server.handshake import find_key, refuse_handshake
from cachecast.server.http_messages import Upgrade
from cachecast.server.tls import has_decrypted
from cachecast.server.websocket import WebSocket

if TYPE_CHECKING:
    import socket

    from cachecast.broker import Broker
    from cachecast.broker.clients import Clients
    from cachecast.protocol.deflate import Agreement
    from cachecast.server.common import Common
    from cachecast.server.http_messages import Request, Response
    from cachecast.server.tls import TlsSocket

__all__ = ["upgrade"]


def upgrade(
    broker: Broker, common: Common, request: Request, *, is_tls: bool
) -> Upgrade | Response:
    """Answer a handshake: with a conversation, with the reason why there is none, or in HTTP.

    Args:
        broker: the broker that admits clients.
        common: what the server's connections have in common.
        request: request that asks for a WebSocket.
        is_tls: whether the client came over TLS.
    """
    refusal = refuse_handshake(request)
    if refusal is not None:
        return refusal
    clients, headers = broker.clients, request.headers
    subprotocol, wire = find_wire(headers.get(b"sec-websocket-protocol", b"").decode("latin-1"))
    key, agreement = headers[b"sec-websocket-key"], None
    protocol = parse_query(request.query).named.get("protocol")
    origin = headers.get(b"origin")
    try:
        app = clients.admit(
            _key(request.path, clients),
            protocol,
            origin.decode("latin-1") if origin is not None else None,
            is_tls=is_tls,
        )
        if common.room.is_full:
            broker.hubs[app.id].counters.refusals["4100"] += 1
            raise CapacityError("Over capacity, reconnect later")
    except RemoteProtocolError as error:
        return Upgrade(_switching(key, subprotocol, None) + wire.refusal(error))
    if app.compresses:
        agreement = agree(headers.get(b"sec-websocket-extensions", b"").decode("latin-1"))
        if agreement is not None:
            wire = compressing(wire, agreement.window_bits)
    switching = _switching(key, subprotocol, agreement)

    def begin(sock: socket.socket | TlsSocket, rest: bytes) -> None:
        parser = wire.parser(common.config.max_message_bytes)
        websocket = WebSocket(sock, common.poller, clients, parser)
        websocket.open(app, wire, protocol, switching)
        if rest:
            websocket.feed(rest)
        if has_decrypted(sock):
            common.poller.again(websocket.fd, websocket)

    return Upgrade(switching, begin)


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


def _switching(key: bytes, subprotocol: str | None, agreement: Agreement | None) -> bytes:
    chosen = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
    if agreement is not None:
        chosen += f"Sec-WebSocket-Extensions: {agreement.header}\r\n"
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept_token(key) + b"\r\n" + chosen.encode() + b"\r\n"
    )
