r"""JSON that comes from outside, where half a surrogate pair is no fault.

JavaScript cuts strings between the halves of an emoji (``"…😀".slice(0, n)``) and writes what is
left as ``"\ud83d"``. RFC 8259 section 8.2 allows that; UTF-8, in which everything goes out, has no
form for it, and msgspec refuses it. So here it becomes U+FFFD, as in every decoder that replaces
what it cannot show (protocol.md 9.5).

Nobody pays for it who sends whole characters: the text is looked at again only after reading or
writing it has failed. What was signed is verified as it came, and mended when it is read.
"""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["REPLACING", "mend_text", "read_json", "write_json"]

T = TypeVar("T")

#: ``errors=`` of a UTF-8 decoder that puts U+FFFD for half a character: half a surrogate pair, or
#: what is left where a string was cut between bytes. What msgpack's strings are read with. Bytes
#: that are no part of any character are still refused: that is no text.
REPLACING: Final = "cachecast.replacing"

_IN_NO_CHARACTER: Final = frozenset(b"\xc0\xc1" + bytes(range(0xF5, 0x100)))

#: Half a pair as three bytes, as encoders write it that know no better.
_HALF_IN_UTF8: Final = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")

_HALF: Final = re.compile("[\ud800-\udfff]")

#: Half a pair as an escape: a first half that no second follows, or a second that follows no first.
#: Two backslashes have been taken out before, so that every one left begins an escape.
_HALF_ESCAPED: Final = re.compile(
    rb"\\u(?i:d[89ab][0-9a-f]{2})(?!\\u(?i:d[c-f][0-9a-f]{2}))"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u(?i:d[c-f][0-9a-f]{2})"
)

#: Stands for two backslashes meanwhile; JSON has no raw control characters.
_TWO_BACKSLASHES: Final = b"\0"


def read_json(decode: Callable[[bytes | str], T], text: bytes | str) -> T:
    """Read JSON, with U+FFFD for half a surrogate pair.

    Args:
        decode: ``decode`` of a msgspec decoder.
        text: JSON, UTF-8 if it is bytes.

    Raises:
        msgspec.ValidationError: it is of another shape than the decoder's type.
        ValueError: it is not JSON; the base of all that msgspec raises here.
        RecursionError: nested too deeply.
    """
    try:
        return decode(text)
    except msgspec.DecodeError:
        raw = text.encode() if isinstance(text, str) else bytes(text)
        mended = _mend_escapes(raw)
        if mended == raw:
            raise
    return decode(mended)


def write_json(value: object) -> bytes:
    """Encode a value as JSON, with U+FFFD for half a surrogate pair in its strings.

    Raises:
        TypeError: it has no JSON form.
        RecursionError: nested too deeply.
    """
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_mend_value(msgspec.to_builtins(value)))


def mend_text(text: str) -> str:
    """A string that UTF-8 can say: U+FFFD for half a surrogate pair."""
    try:
        text.encode()  # faster than a search for what is hardly ever there
    except UnicodeEncodeError:
        return _HALF.sub("\ufffd", text)
    return text


def _mend_escapes(raw: bytes) -> bytes:
    if b"\\u" not in raw or _TWO_BACKSLASHES in raw:
        return raw
    text = _HALF_ESCAPED.sub(rb"\\ufffd", raw.replace(rb"\\", _TWO_BACKSLASHES))
    return text.replace(_TWO_BACKSLASHES, rb"\\")


def _mend_value(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can say
    match value:
        case str():
            return mend_text(value)
        case dict():
            return {_mend_value(key): _mend_value(item) for key, item in value.items()}
        case list() | tuple():
            return [_mend_value(item) for item in value]
        case _:
            return value


def _replace(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    if error.object[error.start] in _IN_NO_CHARACTER:
        raise error
    half = _HALF_IN_UTF8.match(error.object, error.start)
    return "\ufffd", half.end() if half else error.end


codecs.register_error(REPLACING, _replace)
