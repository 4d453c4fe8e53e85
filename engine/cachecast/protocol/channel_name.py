"""The grammar of channel names: text -> :class:`ChannelName`.

The one idea: a name is read once, from its start, longest prefix first, and everybody else asks
the result. ``cache-private-x`` is a *public* cache channel and ``my-cache-x`` is no cache channel
at all; servers that search for ``cache-`` anywhere in the name get both wrong (protocol.md 2.1).
"""

from __future__ import annotations

import enum
import re
from functools import lru_cache

import msgspec

from cachecast.errors import BadChannelNameError

__all__ = [
    "MAX_LENGTH",
    "SERVER_TO_USER_PREFIX",
    "ChannelName",
    "Kind",
    "is_user_id",
    "parse_channel_name",
]

#: The longest name, in characters. Pusher documents 164, but every server library lets 200 through,
#: so 200 is what breaks nothing (protocol.md 2.2).
MAX_LENGTH = 200

SERVER_TO_USER_PREFIX = "#server-to-user-"

_ALLOWED = re.compile(r"[A-Za-z0-9_\-=@,.;]+", re.ASCII)


class Kind(enum.Enum):
    """What a subscriber must show, and what the channel can do."""

    PUBLIC = "public"
    PRIVATE = "private"
    ENCRYPTED = "private-encrypted"
    PRESENCE = "presence"
    SERVER_TO_USER = "server-to-user"


class ChannelName(msgspec.Struct, frozen=True, gc=False):
    """A valid channel name and what follows from it.

    Attributes:
        text: the whole name, prefixes included.
        kind: decided by the prefix.
        is_cache: whether the channel keeps its last published event.
    """

    text: str
    kind: Kind
    is_cache: bool = False

    @property
    def needs_auth(self) -> bool:
        """Whether a subscriber must show a signature."""
        return self.kind not in _UNSIGNED

    @property
    def is_presence(self) -> bool:
        """Whether the channel has a roster of members."""
        return self.kind is Kind.PRESENCE

    @property
    def is_encrypted(self) -> bool:
        """Whether the data is ciphertext that the server must relay byte for byte."""
        return self.kind is Kind.ENCRYPTED

    @property
    def allows_client_events(self) -> bool:
        """Whether clients may trigger events.

        Libraries refuse to send them on encrypted channels, the server need not (protocol.md 8).
        """
        return self.needs_auth

    @property
    def is_hidden(self) -> bool:
        """Whether the channel is the protocol's own, so that nobody counts it or is told of it.

        ``GET /channels`` leaves such channels out on hosted Pusher too (protocol.md 9.5).
        """
        return self.kind is Kind.SERVER_TO_USER

    @property
    def user_id(self) -> str:
        """The user of a ``#server-to-user-`` channel; empty for all other kinds."""
        if self.kind is Kind.SERVER_TO_USER:
            return self.text[len(SERVER_TO_USER_PREFIX) :]
        return ""


#: A tuple: members are compared by identity there, where a set would ask each for its hash.
_UNSIGNED = (Kind.PUBLIC, Kind.SERVER_TO_USER)

#: Longest prefix first: the first one that fits decides.
_PREFIXES: tuple[tuple[str, Kind, bool], ...] = (
    ("private-encrypted-cache-", Kind.ENCRYPTED, True),
    ("private-encrypted-", Kind.ENCRYPTED, False),
    ("private-cache-", Kind.PRIVATE, True),
    ("private-", Kind.PRIVATE, False),
    ("presence-cache-", Kind.PRESENCE, True),
    ("presence-", Kind.PRESENCE, False),
    ("cache-", Kind.PUBLIC, True),
)


def is_user_id(text: str) -> bool:
    """Whether ``#server-to-user-ID`` can name a user of that id, as far as characters go."""
    return _ALLOWED.fullmatch(text) is not None


@lru_cache(maxsize=8192)
def parse_channel_name(text: str, max_length: int = MAX_LENGTH) -> ChannelName:
    """Read a channel name.

    Args:
        text: the name as the client or the publisher gave it.
        max_length: the longest name that is taken, in characters.

    Raises:
        BadChannelNameError: empty, too long, or a character outside ``A-Z a-z 0-9 _-=@,.;``;
            also ``#`` names other than ``#server-to-user-ID``.
    """
    if not 0 < len(text) <= max_length:
        # The name is cut: a refusal must not be larger than what caused it.
        raise BadChannelNameError(
            f"Invalid channel name '{text[:64]}': "
            f"it has {len(text)} characters, allowed are 1 to {max_length}"
        )
    if text[0] == "#":
        user_id = text.removeprefix(SERVER_TO_USER_PREFIX)
        if user_id != text and is_user_id(user_id):
            return ChannelName(text, Kind.SERVER_TO_USER)
        raise BadChannelNameError(f"Invalid channel name '{text}'")
    if not _ALLOWED.fullmatch(text):
        raise BadChannelNameError(f"Invalid channel name '{text}'")
    for prefix, kind, is_cache in _PREFIXES:
        if text.startswith(prefix):
            return ChannelName(text, kind, is_cache)
    return ChannelName(text, Kind.PUBLIC)
