"""The secretbox helpers, with Pusher's own Python library as independent witness."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.secret import SecretBox
from pusher import crypto as witness

from cachecast.errors import AuthError, BadMessageError, ConfigError
from cachecast.protocol.encryption import (
    NONCE_BYTES,
    channel_key,
    decrypt,
    encrypt,
    parse_key,
    parse_master_key,
)

MASTER_KEY = bytes(range(32))
CHANNEL = "private-encrypted-cache-prices"
KEY = channel_key(MASTER_KEY, CHANNEL)
NONCE = b"n" * NONCE_BYTES


def test_channel_key_is_the_one_that_pushers_library_derives():
    """Authorizers written with Pusher's libraries must give our subscribers the same key."""
    expected = witness.generate_shared_secret(CHANNEL.encode(), MASTER_KEY)

    assert expected == channel_key(MASTER_KEY, CHANNEL)


def test_sealed_data_equals_what_pushers_library_seals():
    """Key, nonce and plaintext fix the ciphertext; the field order is the captured one."""
    expected = witness.encrypt(CHANNEL, '{"eur":1.08}', MASTER_KEY, NONCE)

    sealed = encrypt(KEY, '{"eur":1.08}', NONCE)

    assert expected == json.loads(sealed)
    assert sealed.startswith('{"nonce":"')


@given(st.text())
def test_what_was_sealed_can_be_opened(plaintext):
    """Any text survives, the empty one and other planes of Unicode too."""
    assert plaintext == decrypt(KEY, encrypt(KEY, plaintext))


def test_a_nonce_is_never_used_twice():
    """The same text sealed twice must not look the same on the wire."""
    assert encrypt(KEY, "tick") != encrypt(KEY, "tick")


def test_another_key_is_an_auth_error():
    """This is the class that makes the client ask its authorizer again."""
    other = channel_key(MASTER_KEY, "private-encrypted-other")

    with pytest.raises(AuthError, match="another key"):
        decrypt(other, encrypt(KEY, "tick"))


def test_altered_ciphertext_is_an_auth_error():
    """One flipped bit must not come out as plaintext."""
    sealed = json.loads(encrypt(KEY, "tick"))
    raw = bytearray(base64.b64decode(sealed["ciphertext"]))
    raw[-1] ^= 1
    sealed["ciphertext"] = base64.b64encode(raw).decode()

    with pytest.raises(AuthError):
        decrypt(KEY, json.dumps(sealed))


def _sealed(nonce: bytes = NONCE, ciphertext: str = "AAAA") -> str:
    return json.dumps({"nonce": base64.b64encode(nonce).decode(), "ciphertext": ciphertext})


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ("", "truncated"),
        ("tick", "malformed"),
        ("[]", "Expected `object`"),
        ('{"nonce":"AAAA"}', "missing required field `ciphertext`"),
        ('{"nonce":1,"ciphertext":"AAAA"}', "Expected `str`"),
        (_sealed(ciphertext="%%%"), "not base64"),
        (_sealed(ciphertext="\u00fc"), "ASCII"),
        (_sealed(nonce=b"short"), "nonce has 5 bytes instead of 24"),
        ("[" * 100_000, "Expected `object`"),
    ],
)
def test_what_is_not_sealed_at_all_is_a_bad_message(data, fault):
    """Asking for another key would not help here, so it is another class than a wrong key."""
    with pytest.raises(BadMessageError, match=fault):
        decrypt(KEY, data)


def test_too_short_a_ciphertext_is_an_auth_error():
    """Poly1305's tag alone has 16 bytes; less cannot be verified."""
    with pytest.raises(AuthError):
        decrypt(KEY, _sealed())


def test_plaintext_that_is_no_utf8_is_a_bad_message():
    """Only a publisher that holds the key can cause it, and no other key would help."""
    box = SecretBox(KEY).encrypt(b"\xff\xfe", NONCE)
    data = _sealed(ciphertext=base64.b64encode(box.ciphertext).decode())

    with pytest.raises(BadMessageError, match="UTF-8"):
        decrypt(KEY, data)


def test_master_key_is_read_from_base64():
    """As ``openssl rand -base64 32`` prints it."""
    assert parse_master_key(base64.b64encode(MASTER_KEY).decode()) == MASTER_KEY


@pytest.mark.parametrize(
    ("text", "fault"),
    [("not base64!", "not base64"), ("c2hvcnQ=", "5 bytes"), ("\u00fc", "base64")],
)
def test_a_bad_master_key_is_a_configuration_error_without_the_key(text, fault):
    """The error names the rule and the remedy and keeps the secret out of logs."""
    with pytest.raises(ConfigError, match=fault) as caught:
        parse_master_key(text)

    assert "openssl rand" in caught.value.remedy
    assert text not in str(caught.value)


def test_a_bad_shared_secret_is_a_bad_message():
    """It comes from an authorizer at run time, not from a configuration."""
    with pytest.raises(BadMessageError, match="5 bytes instead of 32"):
        parse_key("c2hvcnQ=")


@pytest.mark.parametrize(("key", "nonce"), [(b"short", NONCE), (KEY, b"short")])
def test_wrong_lengths_never_seal(key, nonce):
    """A truncated key must not weaken anything silently."""
    with pytest.raises((ValueError, TypeError)):
        encrypt(key, "tick", nonce)
