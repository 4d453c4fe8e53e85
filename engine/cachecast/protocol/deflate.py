"""permessage-deflate (RFC 7692): what is agreed on, and each message compressed by itself.

Neither side carries its window over to its next message (``no_context_takeover``). So a compressed
message is the same bytes for everybody, and a connection holds nothing for it: what one side would
have to remember is 10 to 40 KiB, and could not move to another process.

What clients send is inflated under two limits: no byte beyond the largest message is ever made, and
beyond :data:`FREE_BYTES` no more than :data:`MAX_RATIO` times what came.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

from cachecast.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LEAST_BYTES", "WINDOWS", "Agreement", "agree", "deflate", "inflate"]

#: Bytes below which a message is not worth compressing: what is saved of 200 bytes of JSON is 30,
#: in a packet whose headers take 66.
LEAST_BYTES: Final = 256

#: Sizes of window, as powers of two, and the memory that zlib takes for each: the first that a
#: client takes is used. A fresh window of 32 KiB costs 60 us, whatever is compressed; one of 4 KiB
#: with this memory costs 2, and makes 10 KiB of JSON no larger (2026-11).
WINDOWS: Final = {12: 5, 9: 3}

#: The level: 10 KiB take 32 us and become 27 % of it; at zlib's own default 63 us and 25 %.
LEVEL: Final = 3

#: Bytes of an inflated message for which no ratio counts, and how many times what came a larger one
#: may be. JSON becomes two to twelve times smaller, the best that a bomb can do is a thousand. To
#: read so many bytes takes 0.2 ms, which ``messages_per_s`` bounds as it bounds all messages.
FREE_BYTES: Final = 64 * 1024
MAX_RATIO: Final = 100

#: What ends each message and is not sent (RFC 7692 7.2.1).
_TAIL: Final = b"\x00\x00\xff\xff"

#: Characters of offers; nobody has as many to make.
MAX_OFFERED: Final = 1_000

_EXTENSION: Final = "permessage-deflate"
_NO_TAKEOVER: Final = ("server_no_context_takeover", "client_no_context_takeover")

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - a word of RFC 9110
#: What is in quotes separates nothing; quotes that never end go on to the end.
_QUOTED: Final = r'"(?:[^"\\]|\\.)*+\\?(?:"|$)'
#: An offer, and its name or a parameter of it (RFC 6455 9.1).
_OFFERS: Final = re.compile(rf'(?:[^,"]|{_QUOTED})+')
_PARTS: Final = re.compile(rf'(?:[^;"]|{_QUOTED})+')
_PARAMETER: Final = re.compile(rf'({_TOKEN})(?:[ \t]*=[ \t]*(?:({_TOKEN})|"({_TOKEN})"))?')
_BITS: Final = re.compile(r"[89]|1[0-5]")


class Agreement(NamedTuple):
    """What both sides do.

    Attributes:
        header: value of ``Sec-WebSocket-Extensions`` in the answer.
        window_bits: size of our window, as a power of two; one of :data:`WINDOWS`.
    """

    header: str
    window_bits: int


def agree(offered: str) -> Agreement | None:
    """Take the first offer that can be taken, which is the one that the client likes best.

    Args:
        offered: value of ``Sec-WebSocket-Extensions`` in the request.

    Returns:
        None where there is none; the connection is one without compression then.
    """
    if len(offered) > MAX_OFFERED:
        return None
    for offer in _OFFERS.findall(offered):
        parameters = _read(offer)
        if parameters is None:
            continue
        largest = parameters.get("server_max_window_bits")
        for bits in WINDOWS:
            if largest is None or bits <= int(largest):
                # Said only if it was asked for: some clients refuse what they have not offered.
                said = () if largest is None else (f"server_max_window_bits={bits}",)
                return Agreement("; ".join((_EXTENSION, *_NO_TAKEOVER, *said)), bits)
    return None


def _read(offer: str) -> dict[str, str | None] | None:
    """Parameters of an offer; None if it is another extension's, or breaks a rule of 7.1."""
    name, *parts = _PARTS.findall(offer) or [""]
    if name.strip(" \t") != _EXTENSION or offer.count(";") > len(parts):
        return None
    parameters: dict[str, str | None] = {}
    for name, value in _named(parts):
        if name in parameters or not _is_valid(name, value):
            return None
        parameters[name] = value
    return parameters


def _named(parts: list[str]) -> Iterator[tuple[str, str | None]]:
    for part in parts:
        found = _PARAMETER.fullmatch(part.strip(" \t"))
        yield ("", None) if found is None else (found[1], found[2] or found[3])


def _is_valid(name: str, value: str | None) -> bool:
    if name in _NO_TAKEOVER:
        return value is None
    if value is None:
        return name == "client_max_window_bits"  # which may be the client's to choose
    is_window = name in {"client_max_window_bits", "server_max_window_bits"}
    return is_window and _BITS.fullmatch(value) is not None


def deflate(message: bytes, window_bits: int) -> bytes:
    """The data of a compressed message, for all who have agreed on this window."""
    memory = WINDOWS[window_bits]
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, -window_bits, memory)
    return (packer.compress(message) + packer.flush(zlib.Z_SYNC_FLUSH))[: -len(_TAIL)]


def inflate(data: bytes, max_bytes: int) -> bytes:
    """The message in the data of a compressed one.

    Args:
        data: data of the message, all fragments of it.
        max_bytes: size of the largest message.

    Raises:
        RemoteProtocolError: 1009, it is larger, or many times larger than what came; 1007, it is no
            compressed data.
    """
    most = min(max_bytes, max(FREE_BYTES, MAX_RATIO * len(data)))
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # One byte more tells a message of that size from a larger one.
        message = unpacker.decompress(data + _TAIL, most + 1)
    except zlib.error:
        raise RemoteProtocolError("Message is not compressed data", close_code=1007) from None
    if len(message) > most:
        said = (
            f"Message larger than {max_bytes} bytes"
            if most == max_bytes
            else f"Message larger than {most} bytes and {MAX_RATIO} times what it was compressed to"
        )
        raise RemoteProtocolError(said, close_code=1009)
    # Who cannot flush ends a block for good (7.2.3.4); behind it stands an empty one at most.
    if unpacker.eof and unpacker.unused_data not in {_TAIL, b"\x00" + _TAIL}:
        raise RemoteProtocolError("Compressed data goes on behind its end", close_code=1007)
    return message
