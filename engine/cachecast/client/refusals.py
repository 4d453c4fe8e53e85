"""Which subscription a ``pusher:error`` is about; sans-I/O.

Hosted Pusher answers a refused subscription with ``pusher:error``, code null, and a text: no
channel, and no ``subscription_error`` (protocol.md 2.9). Most of its texts name the channel, some
only the fault. Our own server, soketi and others send ``pusher:subscription_error`` with the
channel as well, before or after.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["find_channel", "is_about_sign_in", "is_nameless_refusal"]

#: Texts that name a channel for another reason than a refused subscription.
_OTHERS = (
    "Cannot broadcast",
    "Client event",
    "Invalid client event",
    "No current subscription",
    "The data content",
    "To send client events",
    "Unsupported event",
)

#: Texts of refusals that name no channel.
_NAMELESS = ("Invalid key", "Invalid format", "Invalid signature", "Invalid channel",
             "Invalid auth", "Missing parameter")  # fmt: skip

_SIGN_IN = re.compile(r"::user::|user_data|user id|sign[- ]?in\b|signed in", re.IGNORECASE)

#: Characters that cannot stand in a channel name; they separate the words of a text (protocol.md
#: 2.2).
_SEPARATORS = re.compile(r"[^A-Za-z0-9_\-=@,.;#]+")


def find_channel(text: str, channels: Iterable[str]) -> str | None:
    """The first of ``channels`` that a refusal names; None if it names none.

    The first word counts, since ``channel_data``, which follows the channel in the text about a
    wrong signature, may hold anything.
    """
    if text.startswith(_OTHERS):
        return None
    known = set(channels)
    for word in _SEPARATORS.split(text):
        for candidate in (word, word.rstrip(",.;")):
            if candidate in known:
                return candidate
    return None


def is_about_sign_in(text: str) -> bool:
    """Whether a text speaks of signing in rather than of a channel.

    "Missing parameter: data.channel_data ... unless the connection is signed in" does not.
    """
    return "channel_data" not in text and _SIGN_IN.search(text) is not None


def is_nameless_refusal(text: str) -> bool:
    """Whether a text refuses a subscription without saying which."""
    return text.startswith(_NAMELESS)
