"""Whether a connection may exist: every reason for 4000 to 4009, and 4100 for a full node.

Source: Pusher's WebSocket protocol page, "Connection closure"; protocol.md 1.2, 9.2, 9.3, 9.5.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from engine.errors import RefusedError
from engine.protocol.close_codes import CLOSE_CODES

if TYPE_CHECKING:
    from engine.channels.hub import Hub

__all__ = ["check_app", "check_protocol_version", "find_app"]

_PROTOCOLS: Final = frozenset({4, 5, 6, 7})


def find_app(hub: Hub | None, key: str, cluster: str | None) -> Hub:
    """The app of a key, if it lives in this node's cluster.

    Raises:
        RefusedError: 4001 in hosted Pusher's words, which people search for.
    """
    if hub is None or hub.app.cluster not in {None, cluster}:
        raise RefusedError(
            f"App key {key[:64]} not in this cluster. Did you forget to specify the cluster?",
            close_code=4001,
        )
    return hub


def check_protocol_version(text: str | None) -> int | None:
    """The ``protocol`` of a connection's query; absent is fine (protocol.md 9.5).

    Raises:
        RefusedError: 4006 if it is no integer, 4007 if it is not 4 to 7.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise RefusedError("Invalid version string format", close_code=4006)
    if int(text[:9]) not in _PROTOCOLS:
        raise RefusedError(f"Unsupported protocol version {text[:9]}", close_code=4007)
    return int(text)


def check_app(hub: Hub, origin: str | None, *, is_tls: bool) -> None:
    """Whether the app takes the connection.

    Args:
        hub: of the app.
        origin: the browser's, None if absent.
        is_tls: whether the client came over TLS.

    Raises:
        RefusedError: 4000, 4003, 4009 for a foreign origin, or 4004.
    """
    app = hub.app
    if app.is_tls_only and not is_tls:
        raise RefusedError(CLOSE_CODES[4000].reason, close_code=4000)
    if not app.is_enabled:
        raise RefusedError(CLOSE_CODES[4003].reason, close_code=4003)
    if app.allowed_origins and not _is_allowed(origin, app.allowed_origins):
        raise RefusedError("Origin not allowed", close_code=4009)
    if app.max_connections is not None and len(hub.sessions) >= app.max_connections:
        raise RefusedError(
            f"{CLOSE_CODES[4004].reason} ({app.max_connections} connections)", close_code=4004
        )


def _is_allowed(origin: str | None, allowed: tuple[str, ...]) -> bool:
    """Whether a browser's origin is on the list; a client without one is no browser."""
    if origin is None:
        return True
    try:
        host = urlsplit(origin).hostname or ""
    except ValueError:  # an open bracket: no browser says that
        return False
    return any(fnmatchcase(host, pattern.lower()) for pattern in allowed)
