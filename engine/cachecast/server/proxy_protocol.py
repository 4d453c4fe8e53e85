"""The PROXY protocol: what a balancer says of its client before the client's first byte.

Both versions, after HAProxy's ``proxy-protocol.txt``: 1 is a line of text, 2 is binary. Addresses
are checked for form and let go, for nothing here keeps an address. What is kept is whether the
client came by TLS, which version 2 can say.
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final, NamedTuple

__all__ = ["MAX_HEADER_BYTES", "BadHeaderError", "Header", "read_header"]

#: Bytes of a header of version 2 at most. Its additions, a client certificate's name for example,
#: are of no use here; the protocol wants 536 to be taken.
MAX_HEADER_BYTES: Final = 4096

#: Bytes of the longest line of version 1, its end included.
_MAX_LINE_BYTES: Final = 107

_LINE: Final = b"PROXY "
_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_HEAD_BYTES: Final = 16

#: Family and transport -> bytes of its addresses. Nothing is said of the other families.
_ADDRESS_BYTES: Final = {0x11: 12, 0x21: 36, 0x31: 216}
_UNSPECIFIED: Final = 0x00

_ADDITION_HEAD_BYTES: Final = 3
_TLS_ADDITION: Final = 0x20
_CLIENT_TLS: Final = 0x01


class BadHeaderError(Exception):
    """No header of the PROXY protocol, or one that cannot be; says what is wrong."""


class Header(NamedTuple):
    """A whole header.

    Attributes:
        size: number of its bytes.
        is_tls: whether the client came to the balancer by TLS, as far as that says so.
    """

    size: int
    is_tls: bool


def read_header(data: bytes) -> Header | None:
    """The header at the beginning of ``data``; None if all of it belongs to one that goes on.

    Raises:
        BadHeaderError: there is none, or a faulty one.
    """
    if data.startswith(_SIGNATURE[: len(data)]):
        return _read_binary(data) if len(data) >= _HEAD_BYTES else None
    if data.startswith(_LINE[: len(data)]):
        return _read_line(data)
    raise BadHeaderError("no PROXY header")


def _read_line(data: bytes) -> Header | None:
    line, end, _ = data[:_MAX_LINE_BYTES].partition(b"\r\n")
    if not end:
        if len(data) >= _MAX_LINE_BYTES:
            raise BadHeaderError(f"a PROXY line longer than {_MAX_LINE_BYTES} bytes")
        return None
    family, *parts = line.decode("latin-1").removeprefix("PROXY ").split(" ")
    if family != "UNKNOWN":  # of which the rest may be anything
        kind = {"TCP4": IPv4Address, "TCP6": IPv6Address}.get(family)
        if kind is None or len(parts) != 4:
            raise BadHeaderError("a PROXY line of another form")
        try:
            for address in parts[:2]:
                kind(address)
        except AddressValueError:
            raise BadHeaderError("a PROXY line with a faulty address") from None
        if not all(_is_port(text) for text in parts[2:]):
            raise BadHeaderError("a PROXY line with a faulty port")
    return Header(len(line) + len(end), is_tls=False)


def _is_port(text: str) -> bool:
    is_number = text.isascii() and text.isdecimal() and len(text) <= 5
    return is_number and int(text) <= 65_535 and str(int(text)) == text


def _read_binary(data: bytes) -> Header | None:
    version, command = divmod(data[12], 16)
    family, size = data[13], _HEAD_BYTES + int.from_bytes(data[14:16], "big")
    if version != 2 or command > 1:
        raise BadHeaderError("a PROXY header of another version or command")
    if size > MAX_HEADER_BYTES:
        raise BadHeaderError(f"a PROXY header of {size} bytes, above {MAX_HEADER_BYTES}")
    is_said = command == 1 and family != _UNSPECIFIED  # else it is the balancer's own connection
    if is_said and family not in _ADDRESS_BYTES:
        raise BadHeaderError("a PROXY header of what is no stream")
    if is_said and size - _HEAD_BYTES < _ADDRESS_BYTES[family]:
        raise BadHeaderError("a PROXY header too short for its addresses")
    if len(data) < size:
        return None
    if not is_said:
        return Header(size, is_tls=False)
    return Header(size, _is_tls(data[_HEAD_BYTES + _ADDRESS_BYTES[family] : size]))


def _is_tls(additions: bytes) -> bool:
    """Whether one of the additions says that the client came by TLS."""
    is_tls = False
    while additions:
        if len(additions) < _ADDITION_HEAD_BYTES:
            raise BadHeaderError("a PROXY header with half an addition")
        end = _ADDITION_HEAD_BYTES + int.from_bytes(additions[1:3], "big")
        if len(additions) < end:
            raise BadHeaderError("a PROXY header with half an addition")
        if additions[0] == _TLS_ADDITION and end > _ADDITION_HEAD_BYTES:
            is_tls = bool(additions[_ADDITION_HEAD_BYTES] & _CLIENT_TLS)
        additions = additions[end:]
    return is_tls
