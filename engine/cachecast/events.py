"""What happens in an app: the seven events that webhooks and an embedder's hooks are told of."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["AppEvent", "AppEventName"]

AppEventName = Literal[
    "channel_occupied",
    "channel_vacated",
    "member_added",
    "member_removed",
    "client_event",
    "cache_miss",
    "subscription_count",
]


class AppEvent(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One event; encoded, it is what stands in a webhook's body (protocol.md 7).

    Attributes:
        name: one of :data:`AppEventName`.
        channel: the channel where it happened.
        user_id: id of the user of ``member_added`` and ``member_removed``, and of a
            ``client_event`` on a presence channel; else None.
        event, data, socket_id: what a ``client_event`` says, and who said it; ``data`` is always a
            string.
        subscription_count: number of subscribers in the event of that name; 0 is a value.
    """

    name: str
    channel: str
    user_id: str | None = None
    event: str | None = None
    data: str | None = None
    socket_id: str | None = None
    subscription_count: int | None = None

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Leave out what users said: an event must not carry it into a log."""
        return f"AppEvent({self.name!r}, {self.channel!r})"
