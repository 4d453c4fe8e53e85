"""Whether a request is a WebSocket handshake, and what is missing if it should have been one.

The commonest fault of an installation is a proxy that does not pass an upgrade on. Its operator
sees no more than what is answered here, so it is said by name.
"""

from __future__ import annotations

from binascii import a2b_base64
from urllib.parse import unquote

from cachecast.server.http_messages import Request, Response, has_token

__all__ = ["find_key", "refuse_handshake", "refuse_without_upgrade"]


def find_key(path: str) -> str | None:
    """The app key of ``/any/prefix/app/KEY``, decoded once; None for any other path."""
    parts = path.rstrip("/").split("/")
    return unquote(parts[-1]) if len(parts) > 2 and parts[-2] == "app" else None


def refuse_handshake(request: Request) -> Response | None:
    """What is wrong with a handshake itself (RFC 6455 4.2.1), or None."""
    headers = request.headers
    if request.method != "GET":
        return _text(405, "A WebSocket handshake is a GET", "Allow: GET")
    if headers.get(b"sec-websocket-version") != b"13":
        return _text(
            426, "WebSocket version 13 is needed", "Sec-WebSocket-Version: 13", "Upgrade: websocket"
        )
    try:
        key = a2b_base64(headers.get(b"sec-websocket-key", b""), strict_mode=True)
    except ValueError:
        key = b""
    if len(key) != 16:
        return _text(400, "Sec-WebSocket-Key must be 16 bytes in base64")
    return None


def refuse_without_upgrade(request: Request) -> Response:
    """How to answer a request for a WebSocket's path that asks for no upgrade, or cannot."""
    if request.method not in {"GET", "HEAD"}:
        return _text(405, "A WebSocket handshake is a GET", "Allow: GET")
    headers = request.headers
    missing = [
        f"{line} ({_said(headers, name)})"
        for name, token, line in (
            (b"upgrade", b"websocket", "Upgrade: websocket"),
            (b"connection", b"upgrade", "Connection: Upgrade"),
        )
        if not has_token(headers, name, token)
    ]
    if request.is_1_0:
        missing.append("HTTP/1.1 (it came as HTTP/1.0)")
    return _text(
        426,
        f"Only WebSockets are served here, and this request lacks {' and '.join(missing)}. If a "
        "WebSocket client sent it, most likely a proxy did not pass it on: it must speak HTTP/1.1 "
        "to this server and set both headers, Upgrade: websocket and Connection: Upgrade.",
        "Upgrade: websocket",
        "Connection: Upgrade",
    )


def _said(headers: dict[bytes, bytes], name: bytes) -> str:
    value = headers.get(name)
    return "no such header came" if value is None else f"it says {value[:64].decode('latin-1')!r}"


def _text(status: int, text: str, *headers: str) -> Response:
    return Response(status, f"{text}\n".encode(), "text/plain; charset=utf-8", headers)
