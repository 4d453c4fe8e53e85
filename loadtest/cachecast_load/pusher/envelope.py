"""The envelope: all of a received event but its payload.

A stamp proves the bytes of a payload. Whether an SDK would hand them to anybody is decided by what
is around them: the message must be JSON, and name its event and its channel, and its data must be
the payload and nothing else. All events of a channel have the same envelope, so it is read once
and compared from then on.
"""

from __future__ import annotations

from collections.abc import Callable

from cachecast_load.pusher.protocol import read_json
from cachecast_load.pusher.stamp import Stamp

ALTERED, MISROUTED = "altered", "misrouted"
# A target that puts a number of its own into each event has no two alike.
_MAX_KNOWN = 10_000


class Envelopes:
    """Envelopes that were found right.

    Args:
        mark: What every payload begins with.
        size: Length of a payload in bytes.
        event: Name of the events that are published; those of clients are `client-` and it.
    """

    __slots__ = ("_events", "_known", "_mark", "_size")

    def __init__(self, mark: bytes, size: int, event: str) -> None:
        self._mark = mark
        self._size = size
        self._events = (event, f"client-{event}")
        self._known: dict[bytes, int] = {}

    def fault(self, message: bytes, stamp: Stamp, channel_name: Callable[[int], str]) -> str:
        """Return what is wrong around a payload whose stamp is right: a fault's name, or nothing.

        Args:
            message: All of it, as it was received.
            stamp: The stamp in it.
            channel_name: Channel number -> name.
        """
        start = message.find(self._mark)
        around = message[:start] + message[start + self._size :]
        if self._known.get(around) == stamp.channel:
            return ""
        payload = message[start : start + self._size]
        fault = self._read(message, payload, channel_name(stamp.channel))
        if not fault:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[around] = stamp.channel
        return fault

    def _read(self, message: bytes, payload: bytes, channel: str) -> str:
        try:
            event = read_json(message)
        except ValueError:
            return ALTERED
        if not isinstance(event, dict) or event.get("event") not in self._events:
            return ALTERED
        if event.get("channel") != channel:
            return MISROUTED
        return "" if event.get("data") == payload.decode("ascii", "replace") else ALTERED
