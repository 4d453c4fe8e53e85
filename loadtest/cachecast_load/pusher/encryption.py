"""End-to-end encrypted channels: NaCl secretbox under a key derived from a master key.

Key: SHA-256(channel name, then master key). Payload: the JSON text `{"nonce": base64,
"ciphertext": base64}`. Source: the official server libraries (protocol notes, 8).
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import cast

import nacl.exceptions
import nacl.secret
import nacl.utils


class DecryptionError(ValueError):
    """A received payload that does not open with the channel's key."""


class ChannelCipher:
    """Seals and opens the payloads of one channel.

    Args:
        key: the channel's 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._box = nacl.secret.SecretBox(key)
        self.shared_secret = base64.b64encode(key).decode()

    @classmethod
    def derive(cls, channel: str, master_key: bytes) -> ChannelCipher:
        """Build the cipher from a channel's full name and the master key's 32 bytes."""
        return cls(hashlib.sha256(channel.encode() + master_key).digest())

    @classmethod
    def from_shared_secret(cls, shared_secret: str) -> ChannelCipher:
        """Build the cipher from what an auth endpoint returns as `shared_secret`."""
        return cls(base64.b64decode(shared_secret))

    def seal(self, plain: bytes) -> str:
        """Return the text to publish as `data`."""
        sealed = self._box.encrypt(plain, nacl.utils.random(24))
        return json.dumps(
            {
                "nonce": base64.b64encode(sealed.nonce).decode(),
                "ciphertext": base64.b64encode(sealed.ciphertext).decode(),
            },
            separators=(",", ":"),
        )

    def open(self, data: object) -> bytes:
        """Return the plain bytes of a received `data` (already parsed from JSON).

        Raises:
            DecryptionError: not an encrypted payload, altered, or under another key.
        """
        try:
            # Whatever it is, using it as what it should be finds out.
            fields = cast("dict[str, str]", data)
            nonce = base64.b64decode(fields["nonce"], validate=True)
            ciphertext = base64.b64decode(fields["ciphertext"], validate=True)
            return self._box.decrypt(ciphertext, nonce)
        except (KeyError, TypeError, ValueError, nacl.exceptions.CryptoError) as error:
            raise DecryptionError(f"cannot decrypt: {error}") from error


def is_key(shared_secret: str) -> bool:
    """Whether a text is the key of a channel: 32 bytes in base64."""
    try:
        return len(base64.b64decode(shared_secret)) == nacl.secret.SecretBox.KEY_SIZE
    except ValueError:
        return False
