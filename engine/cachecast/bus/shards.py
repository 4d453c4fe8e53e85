"""Where things lie: (app, channel) -> shard -> primary, and the names of keys and topics.

A channel belongs to one of 64 *virtual shards* for good. Rendezvous hashing gives every shard a
primary: when a primary is added, only the shards that move to it change place, and no others.

Names, with P = the configured prefix and "cc:", S = the shard, D = the database:

    P state, P run, ...            what concerns a primary as a whole; see ``library.lua``
    P S:v:APP/CHANNEL              value of a cache channel
    P S:x:APP/CHANNEL              its miss has been reported
    P S:m:APP/CHANNEL              members of a presence channel
    P S:o:APP                      occupied channels
    P S:u:APP                      users who are signed in
    P D:c:APP/CHANNEL              topic of a channel
    P D:u:APP/USER                 topic of who watches a user
    P D:control                    topic of the nodes themselves

An app id has no "/" (``apps.py``), so that no two of these are the same. Topics contain the
database because pub/sub ignores SELECT.
"""

from __future__ import annotations

from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Final
from zlib import crc32

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["N_SHARDS", "Keys", "shard_of", "spread"]

#: Number of shards, fixed for good: another number would move nearly every channel.
N_SHARDS: Final = 64


def shard_of(app_id: str, channel: str) -> int:
    """The virtual shard of a channel, or of a user under any name that is no channel's."""
    return crc32(f"{app_id}/{channel}".encode()) % N_SHARDS


def spread(names: Sequence[str]) -> tuple[int, ...]:
    """Which primary each shard lies on.

    Args:
        names: names of the primaries, at least one, as :attr:`~cachecast.bus_config.Primary.name`
            has them.

    Returns:
        Index in ``names`` of each shard's primary.
    """

    def weight(shard: int, name: str) -> bytes:
        return blake2b(f"{shard} {name}".encode(), digest_size=16).digest()

    return tuple(
        max(range(len(names)), key=lambda index: weight(shard, names[index]))
        for shard in range(N_SHARDS)
    )


class Keys(msgspec.Struct, frozen=True, dict=True):
    """The names on one primary.

    Attributes:
        prefix: prefix of the keys, as configured.
        database: number of the database.
    """

    prefix: str = ""
    database: int = 0

    @cached_property
    def root(self) -> str:
        """What every key and topic of ours begins with; keys of others are left alone."""
        return f"{self.prefix}cc:"

    @cached_property
    def topics(self) -> bytes:
        """What every topic begins with."""
        return f"{self.root}{self.database}:".encode()

    @cached_property
    def control(self) -> bytes:
        """The topic of the nodes themselves."""
        return self.topics + b"control"

    def of(self, name: str) -> bytes:
        """A key that concerns the primary as a whole."""
        return f"{self.root}{name}".encode()

    def in_shard(self, shard: int, kind: str, app_id: str, channel: str = "") -> bytes:
        """A key of a shard."""
        tail = f"{app_id}/{channel}" if channel else app_id
        return f"{self.root}{shard}:{kind}:{tail}".encode()

    def value(self, app_id: str, channel: str) -> bytes:
        """Of a cache channel's value."""
        return self.in_shard(shard_of(app_id, channel), "v", app_id, channel)

    def miss(self, app_id: str, channel: str) -> bytes:
        """Of the mark that a channel's miss was reported."""
        return self.in_shard(shard_of(app_id, channel), "x", app_id, channel)

    def topic(self, app_id: str, channel: str) -> bytes:
        """Of a channel."""
        return self.topics + f"c:{app_id}/{channel}".encode()

    def user_topic(self, app_id: str, user_id: str) -> bytes:
        """Of whether a user is online."""
        return self.topics + f"u:{app_id}/{user_id}".encode()
