"""Sealing: only what belongs here and now opens."""

from __future__ import annotations

from base64 import b64encode
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachecast.bus.seal import BrokenSealError, Seal
from cachecast.bus_config import read_keys
from cachecast.errors import ConfigError

OLD, NEW, OTHER = (bytes(range(start, start + 32)) for start in (0, 50, 100))
NOW_MS = 1_790_000_000_000


@given(text=st.binary(max_size=50), app=st.text(max_size=5), channel=st.text(max_size=5))
def test_what_is_sealed_opens_and_shows_nothing(text: bytes, app: str, channel: str) -> None:
    """On any node that has the key."""
    sealed = Seal([OLD]).seal(app, channel, NOW_MS, text)

    assert Seal([NEW, OLD]).open(app, channel, NOW_MS + 5, sealed) == text
    assert len(text) < 8 or text not in sealed


def test_a_new_key_seals_while_the_old_one_still_opens() -> None:
    """Three steps of a rotation, any two neighbours side by side."""
    steps = [Seal([OLD]), Seal([OLD, NEW]), Seal([NEW, OLD]), Seal([NEW])]

    for one, other in pairwise(steps):
        for writer, reader in ((one, other), (other, one)):
            assert reader.open("a", "c", NOW_MS, writer.seal("a", "c", NOW_MS, b"x")) == b"x"
    assert steps[0].fingerprints == steps[2].fingerprints[1:]


@pytest.mark.parametrize(
    ("app", "channel", "published_at_ms", "words"),
    [
        ("b", "c", NOW_MS, "another channel"),
        ("a", "d", NOW_MS, "another channel"),
        ("ac", "", NOW_MS, "another channel"),
        ("a", "c", NOW_MS + 60_000, "60 s away"),
        ("a", "c", NOW_MS - 60_000, "60 s away"),
    ],
)
def test_a_value_that_was_moved_is_not_served(
    app: str, channel: str, published_at_ms: int, words: str
) -> None:
    """Whoever owns the engine can neither swap channels nor bring back the past."""
    seal = Seal([OLD])
    sealed = seal.seal("a", "c", NOW_MS, b"x")

    with pytest.raises(BrokenSealError, match=words):
        seal.open(app, channel, published_at_ms, sealed)
    assert seal.n_broken == 1


@pytest.mark.parametrize("at", [0, 4, 30, -1])
def test_a_changed_byte_is_noticed(at: int) -> None:
    """Wherever it is."""
    sealed = bytearray(Seal([OLD]).seal("a", "c", NOW_MS, b"x"))
    sealed[at] ^= 1

    with pytest.raises(BrokenSealError):
        Seal([OLD]).open("a", "c", NOW_MS, bytes(sealed))


@pytest.mark.parametrize("data", [b"", b"abcd", b"plain json"])
def test_what_was_never_sealed_is_not_served(data: bytes) -> None:
    """Nor what is too short to be."""
    seal = Seal([OLD])
    for text in (data, seal.seal("a", "c", NOW_MS, b"x")[:4] + data):
        with pytest.raises(BrokenSealError):
            seal.open("a", "c", NOW_MS, text)


def test_keys_are_read_from_base64_or_hexadecimal() -> None:
    """As `openssl rand` and `base64` write them."""
    assert read_keys([b64encode(OLD).decode() + "\n", NEW.hex()]) == (OLD, NEW)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["secret"], "32 bytes"),
        ([""], "32 bytes"),
        ([OLD.hex()[:62]], "32 bytes"),
        (["é" * 44], "32 bytes"),
        (["0" * 64], "no random key"),
        ([OLD.hex(), b64encode(OLD).decode()], "twice"),
    ],
)
def test_a_wrong_key_is_refused_without_being_shown(texts: list[str], words: str) -> None:
    """The place says which one it is."""
    with pytest.raises(ConfigError, match=words) as caught:
        read_keys(texts)

    assert caught.value.field == f"bus.seal_key[{len(texts) - 1}]"
    assert not any(text and text in str(caught.value) for text in texts)


def test_a_seal_shows_fingerprints_only() -> None:
    """They tell nothing of the key."""
    assert repr(Seal([OLD])) == f"Seal({Seal([OLD]).fingerprints[0]})"
    assert OLD.hex()[:8] not in repr(Seal([OLD]))
