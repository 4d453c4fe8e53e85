"""End-to-end encryption: what publishers and subscribers do, and what the server never does.

The rule of this file: it is used by whoever owns the plaintext (``Broker.encrypt`` on behalf of a
publisher, the client on behalf of a subscriber). The path of a publication through the node does
not import it; there, ``private-encrypted-`` data is a string like any other.

Key: SHA-256 of the channel's name followed by the master key. Cipher: NaCl secretbox (XSalsa20
and Poly1305) with a nonce of 24 bytes. On the wire: the JSON ``{"nonce":B64,"ciphertext":B64}``
as a string. Source: protocol.md 8, which was read from Pusher's node, Go, Python and PHP
libraries; ``tests/unit/protocol/test_encryption.py`` compares with Pusher's own for Python.
"""

from __future__ import annotations

import base64
import binascii
from hashlib import sha256
from typing import Final

import msgspec
from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from cachecast.errors import AuthError, BadMessageError, ConfigError
from cachecast.protocol.json_text import mend_text

__all__ = ["KEY_BYTES", "NONCE_BYTES", "channel_key", "decrypt", "encrypt", "parse_key",
           "parse_master_key"]  # fmt: skip

KEY_BYTES: Final = SecretBox.KEY_SIZE
NONCE_BYTES: Final = SecretBox.NONCE_SIZE


class _Sealed(msgspec.Struct, gc=False):
    """What ``data`` of an encrypted event holds; the order is the libraries' own."""

    nonce: str
    ciphertext: str


def parse_master_key(text: str) -> bytes:
    """Read an ``encryption_master_key_base64`` as Pusher's libraries are configured with.

    Returns:
        32 bytes.

    Raises:
        ConfigError: not base64, or not of 32 bytes. The key itself is not in the text.
    """
    try:
        return parse_key(text)
    except BadMessageError as error:
        raise ConfigError(
            "encryption_master_key",
            f"must be the base64 of {KEY_BYTES} random bytes; {error.message}.",
            "Make one with: openssl rand -base64 32",
        ) from None


def parse_key(text: str) -> bytes:
    """Read a key from base64, for example an authorizer's ``shared_secret``.

    Returns:
        32 bytes.

    Raises:
        BadMessageError: not base64, or not of 32 bytes. The key itself is not in the text.
    """
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:  # binascii.Error is one; non-ASCII text gives a plain one
        raise BadMessageError("the key is not base64") from None
    if len(key) != KEY_BYTES:
        raise BadMessageError(f"the key has {len(key)} bytes instead of {KEY_BYTES}")
    return key


def channel_key(master_key: bytes, channel: str) -> bytes:
    """The key of one channel: what an authorizer gives away as ``shared_secret``.

    Knowing it reveals neither the master key nor another channel's key.

    Returns:
        32 bytes.
    """
    return sha256(channel.encode() + master_key).digest()


def encrypt(key: bytes, plaintext: str, nonce: bytes | None = None) -> str:
    """Seal ``plaintext`` for one channel.

    Args:
        key: the channel's key of :func:`channel_key`, 32 bytes.
        plaintext: encrypted as it is, but for half a surrogate pair, which becomes U+FFFD;
            libraries differ in whether they JSON-encode a string first, so that is the caller's
            decision (protocol.md 8).
        nonce: 24 bytes, never used twice with one key; None lets PyNaCl draw it from the
            system's randomness.

    Returns:
        The event's ``data``: JSON with ``nonce`` and ``ciphertext`` in base64.

    Raises:
        ValueError: the key or the nonce has the wrong length.
    """
    sealed = SecretBox(key).encrypt(mend_text(plaintext).encode(), nonce)
    return msgspec.json.encode(_Sealed(_base64(sealed.nonce), _base64(sealed.ciphertext))).decode()


def decrypt(key: bytes, data: str) -> str:
    """Open what :func:`encrypt`, or a Pusher library, has sealed.

    Args:
        key: the channel's key, 32 bytes.
        data: the event's ``data`` as it came.

    Raises:
        BadMessageError: ``data`` is not a sealed message at all; another key would not help.
        AuthError: it is sealed with another key, or was altered. A rotated key may be the
            reason, so the one to ask is the authorizer (protocol.md 8).
    """
    nonce, ciphertext = _open(data)
    try:
        plaintext = SecretBox(key).decrypt(ciphertext, nonce)
    except CryptoError:
        raise AuthError("Decryption failed: sealed with another key, or altered") from None
    try:
        return plaintext.decode()
    except UnicodeDecodeError:
        raise BadMessageError("Invalid encrypted data: the plaintext is not UTF-8") from None


def _open(data: str) -> tuple[bytes, bytes]:
    try:
        sealed = msgspec.json.decode(data, type=_Sealed)
        nonce = base64.b64decode(sealed.nonce, validate=True)
        ciphertext = base64.b64decode(sealed.ciphertext, validate=True)
    except (ValueError, RecursionError) as error:
        rule = "not base64" if isinstance(error, binascii.Error) else str(error)
        raise BadMessageError(f"Invalid encrypted data: {rule}") from None
    if len(nonce) != NONCE_BYTES:
        raise BadMessageError(
            f"Invalid encrypted data: the nonce has {len(nonce)} bytes instead of {NONCE_BYTES}"
        )
    return nonce, ciphertext


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
