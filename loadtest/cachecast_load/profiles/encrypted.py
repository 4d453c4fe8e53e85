"""encrypted: end-to-end encrypted channels; every payload is opened and its stamp checked."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from cachecast_load.crowd.profile import CLEAN, Defaults, Profile
from cachecast_load.pusher.encryption import ChannelCipher, DecryptionError
from cachecast_load.pusher.stamp import StampError, read_stamp

if TYPE_CHECKING:
    from cachecast_load.crowd.client import Client
    from cachecast_load.crowd.session import Session


class Encrypted(Profile):
    """The target must relay ciphertext byte for byte; one changed bit fails to open."""

    name = "encrypted"
    summary = "end-to-end encrypted channels: relayed and cached byte for byte"
    prefix = "private-encrypted-"
    defaults: ClassVar[Defaults] = {"load": {"subscribers": 200, "channels": 10, "rate": 50.0}}
    slos = (*CLEAN, "crypto.failed == 0")

    @override
    def encode(self, channel: int, payload: bytes) -> str:
        """Seal the payload with the channel's key."""
        return self._cipher(channel).seal(payload)

    @override
    def other_event(self, client: Client, message: dict[str, Any], now_us: int) -> None:
        """Open an event; what does not open is the target's fault or a wrong key."""
        tally = client.tally
        channel = self.channel_number(message["channel"])
        if channel not in client.memberships:
            tally.counts["unstamped"] += 1
            return
        try:
            stamp = read_stamp(self._cipher(channel).open(message.get("data")), client.block.mark)
        except (DecryptionError, StampError) as error:
            tally.counts["crypto_failed"] += 1
            tally.error("encrypted payload does not open", str(error))
            return
        if stamp is None:
            tally.counts["unstamped"] += 1
        elif message["event"] != self.plan.event_name:
            tally.counts["altered"] += 1
            tally.error("delivery: altered", f"it was named {message['event'][:100]}")
        elif stamp.channel != channel:
            tally.counts["misrouted"] += 1
        else:
            client.observe(stamp, now_us)

    @override
    def granted(self, client: Client, channel: int, grant: dict[str, Any]) -> None:
        """Use the key the auth endpoint handed out, as an SDK does."""
        super().granted(client, channel, grant)
        if "shared_secret" in grant:
            self._ciphers[channel] = ChannelCipher.from_shared_secret(grant["shared_secret"])

    def _cipher(self, channel: int) -> ChannelCipher:
        cipher = self._ciphers.get(channel)
        if cipher is None:
            cipher = master_cipher(self.session, self.channel_name(channel))
            self._ciphers[channel] = cipher
        return cipher

    @cached_property
    def _ciphers(self) -> dict[int, ChannelCipher]:
        return {}


def master_cipher(session: Session, channel: str) -> ChannelCipher:
    """Return a channel's cipher under the master key; the run has its own where none was given.

    Args:
        session: What holds the master key.
        channel: Full name of the channel.
    """
    key = session.target.encryption_key
    if key is None:
        text = f"{session.target.credentials.secret}/{session.run}"
        key = hashlib.sha256(text.encode()).digest()
    return ChannelCipher.derive(channel, key)
