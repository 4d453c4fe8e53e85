"""Half a surrogate pair: allowed by RFC 8259, said by JavaScript, and unknown to UTF-8."""

from __future__ import annotations

import itertools
import json
import re

import msgspec
import pytest

from cachecast.protocol.json_text import REPLACING, mend_text, read_json, write_json

decode = msgspec.json.Decoder().decode


def test_every_half_becomes_one_replacement_and_nothing_else_changes() -> None:
    """Held against the standard library, which reads halves as they are."""
    parts = (rb"\ud83d", rb"\uDE00", "é".encode(), rb"\\", rb"\u0041", rb"\"", b"ud83d")
    for n in range(1, 5):
        for chosen in itertools.product(parts, repeat=n):
            text = b'{"%b":"%b"}' % (chosen[0], b"".join(chosen))
            expected = {
                re.sub("[\ud800-\udfff]", "\ufffd", key): re.sub("[\ud800-\udfff]", "\ufffd", value)
                for key, value in json.loads(text).items()
            }

            assert read_json(decode, text) == read_json(decode, text.decode()) == expected


@pytest.mark.parametrize(
    "text",
    [b"", b"{", rb'"\ud83d', rb'"\UD83D"', rb'"\ud83"', b'"\xff"', b'"\xed\xa0\xbd"',
     b'"\\\0\\ud83d"', b"[" * 50_000],
)  # fmt: skip
def test_what_is_no_json_stays_refused(text: bytes) -> None:
    """Only halves are mended, and a text with other faults is no better without them."""
    with pytest.raises((ValueError, RecursionError)):
        read_json(decode, text)


def test_another_shape_is_a_fault_of_its_own() -> None:
    """It is told as such, whatever halves there are."""
    with pytest.raises(msgspec.ValidationError):
        read_json(msgspec.json.Decoder(int).decode, rb'"\ud83d"')


def test_what_python_holds_is_written() -> None:
    """Keys, values, and whatever else has a JSON form."""
    value = {"a\ud83d": ("\ude00b", 1.5, None), "c": [{"d": "é😀"}]}

    assert json.loads(write_json(value)) == {
        "a\ufffd": ["\ufffdb", 1.5, None],
        "c": [{"d": "é😀"}],
    }
    with pytest.raises(TypeError):
        write_json(object())


@pytest.mark.parametrize(
    ("text", "mended"),
    [("a", "a"), ("é😀", "é😀"), ("a\ud83d", "a\ufffd"), ("\ude00\ud83d", "\ufffd" * 2)],
)
def test_a_string_gets_replacements(text: str, mended: str) -> None:
    """One for each half."""
    assert mend_text(text) == mended


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"a\xed\xa0\xbd", "a\ufffd"),
        (b"\xed\xb8\x80b", "\ufffdb"),
        (b"\xf0\x9f\x98", "\ufffd"),
        (b"\x98\x80b", "\ufffd" * 2 + "b"),
        (b"\xe9t\xe9", "\ufffdt\ufffd"),
    ],
)
def test_bytes_of_half_a_character_get_a_replacement(raw: bytes, text: str) -> None:
    """Half a pair, or what is left where a string was cut between bytes."""
    assert raw.decode("utf-8", REPLACING) == text


@pytest.mark.parametrize("raw", [b"\xff", b"a\xfe", b"\xc0\x80", b"\xf5\x80\x80\x80"])
def test_bytes_of_no_character_are_no_text(raw: bytes) -> None:
    """Binary in a string's clothes is not half of anything."""
    with pytest.raises(UnicodeDecodeError):
        raw.decode("utf-8", REPLACING)
