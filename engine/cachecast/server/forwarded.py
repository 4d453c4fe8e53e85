"""What a trusted proxy says of the connection behind it: ``X-Forwarded-Proto``, ``Forwarded``.

Each proxy adds itself at the end of such a list, so the first element is about the client. What
cannot be read counts as nothing said, and nothing said as plain.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["is_forwarded_tls"]

_TLS: Final = frozenset({b"https", b"wss"})

#: Pattern of ``name=value`` of RFC 7239 section 4, lenient in white space, and of what stands
#: behind it.
_PAIR: Final = re.compile(
    rb"[\s;]*([!#$%&'*+.^_`|~0-9a-z-]+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s\",;]+))\s*(;|,|$)"
)


def is_forwarded_tls(headers: dict[bytes, bytes]) -> bool:
    """Whether the client's own connection was TLS, in the words of a proxy that is trusted.

    ``X-Forwarded-Proto`` counts before ``Forwarded``: proxies that set the one pass the other on
    as a client made it up.
    """
    proto = headers.get(b"x-forwarded-proto")
    if proto is None:
        proto = _forwarded_proto(headers.get(b"forwarded", b"").lower())
    first = next((part for item in proto.split(b",") if (part := item.strip())), b"")
    return first.lower() in _TLS


def _forwarded_proto(value: bytes) -> bytes:
    """``proto`` of the first element, empty if it has none."""
    at = len(value) - len(value.lstrip(b" \t,"))
    while (pair := _PAIR.match(value, at)) is not None:
        name, quoted, token, end = pair.groups()
        if name == b"proto":
            return token if quoted is None else re.sub(rb"\\(.)", rb"\1", quoted)
        if end != b";":
            break
        at = pair.end()
    return b""
