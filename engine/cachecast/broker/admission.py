"""Who may be served: every reason for 4000 to 4009, and for the HTTP API's 400, 403 and 404.

Both sides ask the same questions (is the app here, in this cluster, over TLS, switched on) and get
the same answers, each with its close code and its status. A client hears them at once; a caller of
the HTTP API only once its signature has been verified, for nobody else shall learn that much.

Source: Pusher's WebSocket protocol page, "Connection closure"; protocol.md 1.2, 9.2, 9.3, 9.5.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from math import inf
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from cachecast.apps import ORIGINS_WITHOUT_HOST
from cachecast.errors import AuthError, BadRequestError, RefusedError
from cachecast.protocol.close_codes import CLOSE_CODES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cachecast.apps import App
    from cachecast.channels.connection import Connection
    from cachecast.channels.hub import Hub

__all__ = [
    "check_app",
    "check_protocol_version",
    "check_request",
    "find_app",
    "find_hub",
    "find_own_hub",
    "find_secret",
    "note_signature",
    "refusal_of",
]

_PROTOCOLS: Final = frozenset({4, 5, 6, 7})


# --- over HTTP, and embedded


def find_hub(hubs: Mapping[str, Hub], app_id: str) -> Hub:
    """The app that a path names.

    Raises:
        BadRequestError: 404; there is none.
    """
    hub = hubs.get(app_id)
    if hub is None:
        raise _unknown(app_id)
    return hub


def find_own_hub(hubs: Mapping[str, Hub], app_id: str, cluster: str | None) -> Hub:
    """The app that the embedding program names.

    Raises:
        BadRequestError: 404; there is none, or it lives in another cluster.
    """
    hub = hubs.get(app_id)
    if hub is None or _is_foreign(hub.app, cluster):
        raise _unknown(app_id)
    return hub


def find_secret(hub: Hub, by_key: Callable[[str], Hub | None], key: str | None) -> bytes | None:
    """The secret that a request to an app is to be verified with; None if nobody has the key.

    Raises:
        AuthError: 400; the key is another app's.
    """
    if key is None:
        return None
    secret = hub.app.secret_of(key)
    if secret is None and by_key(key) is not None:
        raise AuthError("Not authorized for that app", http_status=400)
    return secret


def check_request(hub: Hub, cluster: str | None, *, is_tls: bool) -> None:
    """Whether a verified request may be served.

    Raises:
        RefusedError: 403; see :func:`check_app` for the reasons.
    """
    app = hub.app
    if _is_foreign(app, cluster):
        raise _foreign(f"App {app.id}")
    _check_access(app, is_tls=is_tls, advice="use https://")


def _unknown(app_id: str) -> BadRequestError:
    return BadRequestError(f"Unknown app {app_id[:64]!r}\n", http_status=404)


# --- on both sides


def _is_foreign(app: App, cluster: str | None) -> bool:
    """Whether an app lives in another cluster, which what is published to it must not leave."""
    return app.cluster is not None and app.cluster != cluster


def _foreign(who: str) -> RefusedError:
    """In hosted Pusher's words, which people search for."""
    text = f"{who} not in this cluster. Did you forget to specify the cluster?"
    return RefusedError(text, close_code=4001)


def refusal_of(app: App, cluster: str | None) -> tuple[int, str] | None:
    """Code and reason by which an app's clients are closed when it is served no more.

    None if it is served. Those who came before TLS was asked for, or who come from an origin that
    is no longer allowed, stay: a client that was let in does not lose its channels to a rule about
    newcomers.
    """
    if _is_foreign(app, cluster):
        return 4001, _foreign(f"App {app.id}").message
    if not app.is_enabled:
        return 4003, CLOSE_CODES[4003].reason
    return None


def _check_access(app: App, *, is_tls: bool, advice: str) -> None:
    if app.is_tls_only and not is_tls:
        text = f"Application only accepts SSL connections, {advice}"
        raise RefusedError(text, close_code=4000)
    if not app.is_enabled:
        raise RefusedError(CLOSE_CODES[4003].reason, close_code=4003)


# --- over a WebSocket


def find_app(hub: Hub | None, key: str, cluster: str | None) -> Hub:
    """The app of a key, if it lives in this node's cluster.

    Raises:
        RefusedError: 4001 in hosted Pusher's words, which people search for.
    """
    if hub is None or _is_foreign(hub.app, cluster):
        raise _foreign(f"App key {key[:64]}")
    return hub


def check_protocol_version(text: str | None, *, is_required: bool = False) -> int | None:
    """The ``protocol`` of a connection's query; absent is fine (protocol.md 9.5).

    Raises:
        RefusedError: 4006 if it is no integer, 4007 if it is not 4 to 7, 4008 if it is required
            and absent.
    """
    if text is None:
        if is_required:
            raise RefusedError(CLOSE_CODES[4008].reason, close_code=4008)
        return None
    if not (text.isascii() and text.removeprefix("-").isdigit()):
        raise RefusedError("Invalid version string format", close_code=4006)
    if int(text[:9]) not in _PROTOCOLS:
        raise RefusedError(f"Unsupported protocol version {text[:9]}", close_code=4007)
    return int(text)


def check_app(hub: Hub, origin: str | None, *, is_tls: bool) -> None:
    """Whether the app takes the connection.

    Args:
        hub: hub of the app.
        origin: value of the browser's ``Origin`` header, None if absent.
        is_tls: whether the client came over TLS.

    Raises:
        RefusedError: 4000, 4003, 4009 for a foreign origin, or 4004.
    """
    app = hub.app
    _check_access(app, is_tls=is_tls, advice="reconnect using wss://")
    if app.allowed_origins and not _is_allowed(origin, app.allowed_origins):
        raise RefusedError("Origin not allowed", close_code=4009)
    _check_quota(hub)


def note_signature(hub: Hub, connection: Connection) -> None:
    """Authorize a connection that has shown a signature (protocol.md 1.8).

    Raises:
        RefusedError: 4004; those who were faster have used up the app's quota.
    """
    if connection in hub.unauthorized:
        _check_quota(hub)
        hub.unauthorized.discard(connection)
        connection.authorize_by = inf


def _check_quota(hub: Hub) -> None:
    """Whether the app may have one connection more.

    Those that still owe a signature do not count, or whoever has the public key could keep all
    others out (Pusher's "Authorized connections" page). They are counted once they show one.
    """
    limit = hub.app.max_connections
    if limit is None:
        return
    if hub.sum_connections(len(hub.connections) - len(hub.unauthorized)) >= limit:
        raise RefusedError(f"{CLOSE_CODES[4004].reason} ({limit} connections)", close_code=4004)


def _is_allowed(origin: str | None, allowed: tuple[str, ...]) -> bool:
    """Whether a browser's origin is on the list; a client without one is no browser."""
    if origin is None:
        return True
    if origin in ORIGINS_WITHOUT_HOST and origin in allowed:
        return True
    try:
        host = urlsplit(origin).hostname or ""
    except ValueError:  # an open bracket: nothing that a browser sends
        return False
    named = (pattern for pattern in allowed if pattern not in ORIGINS_WITHOUT_HOST)
    return any(fnmatchcase(host, pattern.lower()) for pattern in named)
