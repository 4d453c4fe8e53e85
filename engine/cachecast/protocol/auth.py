"""HMAC signatures: subscriptions, sign-in, HTTP API requests, webhook bodies.

The rule of this file: bytes that were signed are never parsed before they were verified, and are
verified as they came. Comparisons take constant time. Texts are hosted Pusher's where known
(protocol.md 2.9 and 6.2), because people search the web for them.

Source: Pusher's "Generating authentication strings" and "HTTP API, authentication" pages.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import md5, sha256
from operator import itemgetter
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote_plus

import msgspec

from cachecast.errors import AuthError, clip

if TYPE_CHECKING:
    import hashlib

__all__ = [
    "MAX_CLOCK_SKEW_S",
    "Query",
    "SecretOf",
    "parse_query",
    "quote_part",
    "request_text",
    "sign",
    "sign_request",
    "signin_text",
    "subscription_text",
    "verify_client",
    "verify_request",
]

#: RFC 2104: what a key's bytes are XORed with.
_INNER_PAD: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD: Final = bytes(byte ^ 0x5C for byte in range(256))

#: Key -> secret of the app at hand, or None if the key is not one of its keys. May raise
#: :class:`~cachecast.errors.AuthError` where more can be said of the key.
SecretOf = Callable[[str], bytes | None]

#: A request is expired when |server - given| reaches this; 599 s pass (the reference verifier).
MAX_CLOCK_SKEW_S: Final = 600


def sign(secret: bytes, text: bytes) -> str:
    """HMAC-SHA256 as lower-case hex.

    RFC 2104 by hand, over hash states that have taken the key in already: 0.7 us instead of the
    1.8 us of ``hmac.digest``, which sets the key up anew each time (2026-11), and every publish
    pays it.
    """
    inner, outer = _keyed(secret)
    inner = inner.copy()
    inner.update(text)
    outer = outer.copy()
    outer.update(inner.digest())
    return outer.hexdigest()


@lru_cache(maxsize=1024)
def _keyed(secret: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
    """The inner and outer hash of a key; of as many keys as a node plausibly serves."""
    block = (secret if len(secret) <= 64 else sha256(secret).digest()).ljust(64, b"\0")
    return sha256(block.translate(_INNER_PAD)), sha256(block.translate(_OUTER_PAD))


def subscription_text(socket_id: str, channel: str, channel_data: str | None = None) -> str:
    """What a subscription's signature covers.

    ``channel_data`` counts whenever it is non-empty, for private channels too: pusher-js's own
    authorizer signs it there (protocol.md 2.4).
    """
    text = f"{socket_id}:{channel}"
    return f"{text}:{channel_data}" if channel_data else text


def signin_text(socket_id: str, user_data: str) -> str:
    """What a sign-in's signature covers; the double colons are Pusher's."""
    return f"{socket_id}::user::{user_data}"


def verify_client(auth: str | None, text: str, expected: str, secret_of: SecretOf) -> None:
    """Verify ``auth`` of a subscription or a sign-in.

    Args:
        auth: ``KEY:HEX`` as the client sent it.
        text: what must have been signed.
        expected: that text in words, for the error.
        secret_of: finds the secret of an active key.

    Raises:
        AuthError: malformed, unknown key or wrong signature; the connection stays.
    """
    key, colon, signature = (auth or "").partition(":")
    if not colon:
        raise AuthError("Invalid format: auth must have the format key:signature")
    secret = secret_of(key)
    if secret is None:
        raise AuthError(f"Invalid key in subscription auth data: '{key[:64]}'")
    if not _equal(sign(secret, text.encode("utf-8", "surrogatepass")), signature):
        raise AuthError(
            f"Invalid signature: Expected HMAC SHA256 hex digest of {clip(expected)}, "
            f"but got {signature[:128]}"
        )


class Query(msgspec.Struct, frozen=True, gc=False):
    """The parameters of a query.

    Attributes:
        pairs: all of them, in the order given.
        named: value by name; of a parameter that is given twice, the last.
    """

    pairs: list[tuple[str, str]]
    named: dict[str, str]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Query:
        """Parameters that are decoded already."""
        pairs = list(pairs)
        return cls(pairs, dict(pairs))


def parse_query(query: str) -> Query:
    """Percent-decode a query string, names in lower case.

    Libraries differ in what they encode (PHP encodes commas, Python sends them raw), so the
    signed text is built from decoded values (6.2). Names are signed in lower case, and so they are
    read: ``AUTH_KEY`` is ``auth_key``, as for the reference verifier.
    """
    parts = [part.partition("=") for part in query.split("&") if part]
    if "%" in query or "+" in query:
        pairs = [(unquote_plus(key).lower(), unquote_plus(value)) for key, _, value in parts]
    else:
        pairs = [(key.lower(), value) for key, _, value in parts]
    return Query(pairs, dict(pairs))


def request_text(method: str, path: str, params: list[tuple[str, str]]) -> str:
    """What an HTTP request's signature covers.

    Args:
        method: upper case.
        path: raw, as in the request line.
        params: decoded, names in lower case; ``auth_signature`` is left out here.
    """
    # By key only: elements of an array (``channels[]``) are signed in the order they were given.
    pairs = sorted(params, key=itemgetter(0))
    signed = [f"{key}={value}" for key, value in pairs if key != "auth_signature"]
    return f"{method}\n{path}\n{'&'.join(signed)}"


def quote_part(text: str) -> str:
    """Percent-encode one part of a path that is to be signed, and no more of it than must be.

    Some proxies, nginx among them, write the path anew when they take a prefix off. What may stand
    in a path (RFC 3986 3.3) they leave as it is; encoded, it would not arrive as it was signed.
    """
    return quote(text, safe="!$&'()*+,;=:@")


def sign_request(
    key: str, secret: bytes, method: str, path: str, params: Mapping[str, str], body: bytes,
    unix_now: float,
) -> dict[str, str]:  # fmt: skip
    """The query parameters of a signed request, ``params`` included; names in lower case."""
    signed = {
        **{name.lower(): value for name, value in params.items()},
        "auth_key": key,
        "auth_timestamp": str(int(unix_now)),
        "auth_version": "1.0",
    }
    if body:
        signed["body_md5"] = md5(body, usedforsecurity=False).hexdigest()
    text = request_text(method, path, list(signed.items()))
    signed["auth_signature"] = sign(secret, text.encode())
    return signed


def verify_request(
    method: str,
    path: str,
    query: Query,
    body: bytes,
    secret: bytes | None,
    unix_now: float,
    *,
    tail: str = "",
) -> None:
    """Verify an HTTP API request: key, version, timestamp, signature, then the body's MD5.

    ``body_md5`` is part of the signed text whenever it is given, also for an empty body: Pusher's
    Python library sends it on GETs. A body without ``body_md5`` is refused, for nothing would
    protect it.

    Args:
        method: upper case.
        path: raw, as it was received.
        query: from :func:`parse_query`.
        body: the bytes that came.
        secret: of its ``auth_key``, None if nobody has that key.
        unix_now: seconds.
        tail: of the path, where a proxy has left a prefix in front that the signer did not know
            of: a signature over it counts as well.

    Raises:
        AuthError: status 401, with a text that says what to compare; 400 for an unknown key.
    """
    params, given = query.pairs, query.named
    if "auth_key" not in given:
        raise AuthError("Missing parameter: auth_key")
    if secret is None:
        raise AuthError("Unknown auth_key", http_status=400)
    if "auth_version" not in given:
        raise AuthError("Version required")
    if given["auth_version"] != "1.0":
        raise AuthError("Version not supported")
    _check_timestamp(given.get("auth_timestamp"), unix_now)
    signature = given.get("auth_signature")
    if signature is None:
        raise AuthError("Missing parameter: auth_signature")
    text = request_text(method, path, params)
    if not _is_signed(text, secret, signature) and not (
        tail and _is_signed(request_text(method, tail, params), secret, signature)
    ):
        shown = clip(text.replace("\n", "\\n"))
        either = f" (or the same with {tail} for the path)" if tail else ""
        raise AuthError(
            f'Invalid signature: you should have sent HmacSHA256Hex("{shown}", '
            f'your_secret_key){either}, but you sent "{signature[:128]}"'
        )
    digest = given.get("body_md5")
    if digest is None:
        if body:
            raise AuthError("Missing parameter: body_md5")
    elif not _equal(md5(body, usedforsecurity=False).hexdigest(), digest):
        raise AuthError("Invalid body_md5: it is not the MD5 of the body that arrived")


def _is_signed(text: str, secret: bytes, signature: str) -> bool:
    return _equal(sign(secret, text.encode("utf-8", "surrogatepass")), signature)


def _check_timestamp(given: str | None, unix_now: float) -> None:
    if given is None:
        raise AuthError("Timestamp required")
    # isdigit alone would let other scripts' digits through, and int() underscores and signs.
    if not (given.isascii() and given.isdigit() and len(given) <= 12):
        raise AuthError("Invalid auth_timestamp: it must be whole seconds since 1970")
    if abs(unix_now - int(given)) >= MAX_CLOCK_SKEW_S:
        raise AuthError(
            f"Timestamp expired: Given timestamp ({_iso(int(given))}) not within "
            f"{MAX_CLOCK_SKEW_S}s of server time ({_iso(int(unix_now))})"
        )


def _iso(unix: int) -> str:
    try:
        return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError):
        return str(unix)


def _equal(expected: str, given: str) -> bool:
    # compare_digest refuses non-ASCII text, so bytes.
    return hmac.compare_digest(expected.encode(), given.encode("utf-8", "surrogatepass"))
