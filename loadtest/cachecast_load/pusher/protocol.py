"""The Pusher Channels protocol as a client and a publisher speak it; text in, text out, no I/O.

Written from Pusher's public documentation and independent of the engine on purpose: a harness that
shares a bug with its target cannot see it. Channel kinds: docs "Channels" and "Cache channels";
signatures: docs "Auth signatures"; publishing: docs "HTTP API reference".
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from typing_extensions import override

PROTOCOL = 7
CLIENT_NAME = "cachecast-loadtest"
CLIENT_VERSION = "1"
MAX_CHANNEL_NAME = 164

# What a client does after each class of close code (docs "WebSocket protocol", Closing
# connections).
STOP, BACK_OFF, AT_ONCE = "stop", "back off", "at once"

_CACHE_PREFIXES = ("cache-", "private-cache-", "private-encrypted-cache-", "presence-cache-")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who we are to the target. `repr` never shows the secret."""

    app_id: str
    key: str
    secret: str

    @override
    def __repr__(self) -> str:
        return f"Credentials(app_id={self.app_id!r}, key={self.key!r}, secret=...)"


def is_cache_channel(name: str) -> bool:
    """Whether the target keeps the channel's last event. Prefixes are anchored."""
    return name.startswith(_CACHE_PREFIXES)


def needs_auth(name: str) -> bool:
    """Whether subscribing needs a signature."""
    return name.startswith(("private-", "presence-"))


def socket_path(prefix: str, key: str) -> str:
    """Return path and query of the WebSocket URL."""
    path = f"{prefix.rstrip('/')}/app/{quote(key, safe='')}"
    return f"{path}?protocol={PROTOCOL}&client={CLIENT_NAME}&version={CLIENT_VERSION}"


def sign(secret: str, text: str) -> str:
    """Return the lower-case hex HMAC-SHA256 of `text`."""
    return hmac.digest(secret.encode(), text.encode(), hashlib.sha256).hex()


def subscribe_auth(
    credentials: Credentials, socket_id: str, channel: str, channel_data: str | None = None
) -> str:
    """Return `auth` for a private or presence subscription."""
    text = f"{socket_id}:{channel}"
    if channel_data is not None:
        text += f":{channel_data}"
    return f"{credentials.key}:{sign(credentials.secret, text)}"


def subscribe_message(channel: str, auth: str = "", channel_data: str | None = None) -> bytes:
    """Return the `pusher:subscribe` message."""
    data = {"auth": auth, "channel": channel}
    if channel_data is not None:
        data["channel_data"] = channel_data
    return _compact({"event": "pusher:subscribe", "data": data})


def unsubscribe_message(channel: str) -> bytes:
    """Return the `pusher:unsubscribe` message."""
    return _compact({"event": "pusher:unsubscribe", "data": {"channel": channel}})


def client_event_message(channel: str, name: str, data: str) -> bytes:
    """Return a client event; `name` begins with `client-`."""
    return _compact({"event": name, "channel": channel, "data": data})


PING = b'{"event":"pusher:ping","data":{}}'
PONG = b'{"event":"pusher:pong","data":{}}'


def read_json(text: bytes | str) -> Any:  # noqa: ANN401 - whatever the peer says
    """Return what a peer's JSON says.

    Raises:
        ValueError: It is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def read_message(payload: bytes) -> dict[str, Any]:
    """Return a received message with `data` decoded where it is JSON inside a string.

    Raises:
        ValueError: it is not a JSON object with a text `event`.
    """
    message = read_json(payload)
    if not isinstance(message, dict) or not isinstance(message.get("event"), str):
        raise ValueError("a message without an event")  # noqa: TRY004 - the peer's fault
    data = message.get("data")
    if isinstance(data, str):
        try:
            message["data"] = read_json(data)
        except ValueError:
            pass  # plain text is allowed
    return message


def after_close(code: int) -> str:
    """Return what a client must do after a close code: `STOP`, `BACK_OFF` or `AT_ONCE`."""
    if 4000 <= code <= 4099 or 4300 <= code <= 4399:
        return STOP
    return AT_ONCE if 4200 <= code <= 4299 else BACK_OFF


def presence_data(user_id: str) -> str:
    """Return the `channel_data` of a presence subscription."""
    return json.dumps({"user_id": user_id, "user_info": {"n": user_id}}, separators=(",", ":"))


def event_body(channel: str, name: str, data: str) -> bytes:
    """Return the body of `POST /apps/ID/events` for one channel."""
    return _compact({"name": name, "channels": [channel], "data": data})


def meant_status(status: int, body: bytes) -> int:
    """Return the HTTP status that an answer of the HTTP API means.

    There are servers (soketi) that answer 200 to whatever they refuse, and say in the body what it
    should have been.
    """
    if not 200 <= status < 300 or b'"error"' not in body:
        return status
    try:
        answer = read_json(body)
    except ValueError:
        return status
    if not isinstance(answer, dict) or "error" not in answer:
        return status
    code = answer.get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 400


def signed_target(
    credentials: Credentials,
    method: str,
    path: str,
    body: bytes,
    unix_now: int,
    query: dict[str, str] | None = None,
    prefix: str = "",
) -> str:
    """Return path and query of a signed HTTP API request.

    Args:
        credentials: key and secret of the app.
        method: `GET` or `POST`.
        path: from `/apps/` on, as it goes into the request line.
        body: the exact bytes that will be sent, empty for GET.
        unix_now: wall time in seconds; the target allows 600 s of difference.
        query: further parameters, unescaped.
        prefix: that the target is reached under. It is not signed, as no library does that knows
            only the API's paths: a proxy may take it off.
    """
    params = {
        **(query or {}),
        "auth_key": credentials.key,
        "auth_timestamp": str(unix_now),
        "auth_version": "1.0",
    }
    if body:
        params["body_md5"] = hashlib.md5(body, usedforsecurity=False).hexdigest()
    ordered = sorted((name.lower(), value) for name, value in params.items())
    plain = "&".join(f"{name}={value}" for name, value in ordered)
    signature = sign(credentials.secret, f"{method}\n{path}\n{plain}")
    escaped = "&".join(f"{name}={quote(value, safe=',')}" for name, value in ordered)
    return f"{prefix}{path}?{escaped}&auth_signature={signature}"


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
