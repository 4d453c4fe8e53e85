"""Sealing: what leaves a node is encrypted, so that engine, disks and operator never see it.

SecretBox (XSalsa20-Poly1305) with a random nonce. Inside, before the text, stand app, channel and
the time of sealing, and all are checked when it is opened: a value cannot be moved to another
channel, nor served again long after its time by whoever owns the engine.

    sealed   first four bytes of the key's fingerprint, nonce and ciphertext
    inside   lengths of app and channel >HH, sealed at >q (ms of the engine's clock), app, channel,
             text

Keys are a list, for rotation: the first one seals, all of them open. Visible stay app ids, channel
names, user ids, versions and sizes.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct
from typing import TYPE_CHECKING, Final

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from cachecast.bus.faults import LinkError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BrokenSealError", "Seal"]

#: Milliseconds by which the engine's "published at" may differ from the sealer's idea of its clock.
#: That idea is bounded to milliseconds; a publish may wait for its answer and be asked again.
TOLERANCE_MS: Final = 30_000

_HEAD: Final = Struct(">HHq")
_MARK_BYTES: Final = 4


class BrokenSealError(LinkError):
    """A value that none of our keys opens, or that is not what it says it is: it is not served."""


class Seal:
    """The keys of a cluster.

    Attributes:
        fingerprints: fingerprints of the keys, the one that seals first: for ``Facts.seals``. They
            tell nothing of the keys.
        n_broken: number of values that did not open.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        """Take the keys over.

        Args:
            keys: keys of 32 bytes each, at least one; see
                :meth:`cachecast.bus_config.BusConfig.keys`.
        """
        prints = [blake2b(key, digest_size=8, person=b"cachecast").digest() for key in keys]
        self.fingerprints = tuple(found.hex() for found in prints)
        self._mark = prints[0][:_MARK_BYTES]
        self._box = SecretBox(keys[0])
        self._boxes = {
            found[:_MARK_BYTES]: SecretBox(key) for found, key in zip(prints, keys, strict=True)
        }
        self.n_broken = 0

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Show fingerprints only."""
        return f"Seal({', '.join(self.fingerprints)})"

    def seal(self, app_id: str, channel: str, now_ms: int, text: bytes) -> bytes:
        """Encrypt.

        Args:
            app_id: id of the app.
            channel: name of the channel that the text belongs to; for webhooks and users a name of
                the seam's own.
            now_ms: milliseconds of the engine's clock, as the node knows it.
            text: bytes that nobody else shall see.
        """
        app, name = app_id.encode(), channel.encode()
        inside = _HEAD.pack(len(app), len(name), now_ms) + app + name + text
        return self._mark + bytes(self._box.encrypt(inside))

    def open(self, app_id: str, channel: str, published_at_ms: int | None, sealed: bytes) -> bytes:
        """Decrypt and check.

        Args:
            app_id: id of the app that it was read for.
            channel: name of the channel that it was read for.
            published_at_ms: milliseconds that the engine says of it; None for what is kept for
                hours and has no time: who is a member.
            sealed: bytes that ``seal`` made on some node.

        Raises:
            BrokenSealError: it does not open, belongs elsewhere, or is of another time.
        """
        try:
            inside = self._boxes[sealed[:_MARK_BYTES]].decrypt(sealed[_MARK_BYTES:])
        except KeyError:
            return self._refuse(
                "It was sealed with a key that is not in bus.seal_key, or not at all."
            )
        except (CryptoError, ValueError, TypeError):
            return self._refuse("It does not open: it was changed.")
        n_app, n_name, sealed_at_ms = _HEAD.unpack_from(inside)
        start = _HEAD.size + n_app + n_name
        if inside[_HEAD.size : start] != (app_id + channel).encode() or n_app != len(
            app_id.encode()
        ):
            return self._refuse("It was sealed for another channel.")
        away_ms = 0 if published_at_ms is None else abs(published_at_ms - sealed_at_ms)
        if away_ms > TOLERANCE_MS:
            return self._refuse(
                f"It was sealed {away_ms / 1000:.0f} s away from when the engine says that it was "
                "published."
            )
        return inside[start:]

    def _refuse(self, why: str) -> bytes:
        self.n_broken += 1
        raise BrokenSealError(f"A sealed value is not served. {why}")
