"""What happens on a node, as it happens, for whoever watches.

Everybody who does something says so here, behind one check for None: ``feed.tap`` is a function
only while somebody watches, so a node that nobody looks at pays nothing. Nothing is said for a
single delivery; a publication is one happening, however many it goes to.

A watch is a filter and a bounded queue. Of each kind it takes :data:`SAMPLES` in a tenth of a
second and counts the rest: a flood of one kind hides no other, and what watching costs has a bound
but for the filter. What people said is left out, unless the operator has asked for it at start.
"""

from __future__ import annotations

from collections import Counter, deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

import msgspec

from cachecast.errors import CapacityError
from cachecast.protocol.json_text import mend_text
from cachecast.protocol.messages import as_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cachecast.channels.connection import Connection
    from cachecast.channels.hub import Hub
    from cachecast.events import AppEvent
    from cachecast.protocol.channel_name import ChannelName
    from cachecast.protocol.identity import Member

__all__ = ["KINDS", "Feed", "Happening", "Wanted", "Watch"]

#: Kinds of what happens.
KINDS: Final = (
    "connection", "subscription", "channel", "member", "cache", "event", "client_event", "api",
    "refusal",
)  # fmt: skip

#: Number of one kind that a watch takes within :data:`WINDOW_S`; the rest is counted.
SAMPLES: Final = 10
WINDOW_S: Final = 0.1

#: Number of happenings that wait for a watcher that does not read; then the oldest goes.
MAX_WAITING: Final = 1_000

#: Number of those who watch at the same time: pages, and some by the control socket.
MAX_WATCHES: Final = 24

#: Characters of a name or a payload that are shown; the rest is cut.
MAX_NAME: Final = 200
MAX_DATA: Final = 2_000

#: Event of an app -> its kind, and what it is called here.
_APP_EVENTS: Final = {
    "channel_occupied": ("channel", "occupied"),
    "channel_vacated": ("channel", "vacated"),
    "member_added": ("member", "added"),
    "member_removed": ("member", "removed"),
    "cache_miss": ("cache", "missed"),
    "client_event": ("client_event", "relayed"),
}


class Happening(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One thing that happened.

    Attributes:
        at: wall time, in seconds.
        kind: one of :data:`KINDS`.
        what: what happened, in a word or two.
        app: id of the app; None where it belongs to none.
        channel, socket_id, user_id: whom it concerns, as far as it is known.
        event: name of a published event.
        code: close code or HTTP status of a refusal or an end.
        text: why, in a sentence.
        n_bytes: size of a payload.
        data: the payload, where payloads are shown.
        worker: number of the worker where it happened; None where there is one process.
    """

    at: float
    kind: str
    what: str
    app: str | None = None
    channel: str | None = None
    socket_id: str | None = None
    user_id: str | None = None
    event: str | None = None
    code: int | None = None
    text: str | None = None
    n_bytes: int | None = None
    data: str | None = None
    worker: int | None = None


class Wanted(msgspec.Struct, frozen=True):
    """What somebody watches for; None and the empty set are everything.

    Attributes:
        kinds: kinds of what happens.
        app, socket_id, user_id: exact ids.
        channels: names; one that ends with ``*`` is a prefix.
    """

    kinds: frozenset[str] = frozenset()
    app: str | None = None
    channels: tuple[str, ...] = ()
    socket_id: str | None = None
    user_id: str | None = None

    def takes(
        self,
        kind: str,
        app: str | None,
        channel: str | None,
        socket_id: str | None,
        user_id: str | None,
    ) -> bool:
        """Whether something that happens is wanted."""
        return (
            (not self.kinds or kind in self.kinds)
            and (self.app is None or app == self.app)
            and (self.socket_id is None or socket_id == self.socket_id)
            and (self.user_id is None or user_id == self.user_id)
            and (not self.channels or (channel is not None and self._names(channel)))
        )

    def query(self) -> str:
        """The same as the query of a request to the inspector."""
        pairs = [("kind", kind) for kind in sorted(self.kinds)]
        pairs += [("channel", name) for name in self.channels]
        exact = {"app": self.app, "socket": self.socket_id, "user": self.user_id}
        pairs += [(name, value) for name, value in exact.items() if value is not None]
        return urlencode(pairs)

    def _names(self, channel: str) -> bool:
        return any(
            channel.startswith(name[:-1]) if name.endswith("*") else channel == name
            for name in self.channels
        )


class Watch:
    """What one watcher gets.

    Queue: :data:`MAX_WAITING` happenings; the oldest goes first, and is counted as left out.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self._waiting: deque[Happening] = deque()
        self._left_out: Counter[str] = Counter()
        self._window = 0.0
        self._taken: Counter[str] = Counter()

    def has_room(self, kind: str, now: float) -> bool:
        """Whether one more of a kind is taken now; if not, it is counted."""
        if not 0 <= now - self._window < WINDOW_S:
            self._window = now
            self._taken.clear()
        if self._taken[kind] >= SAMPLES:
            self._left_out[kind] += 1
            return False
        self._taken[kind] += 1
        return True

    def put(self, happening: Happening) -> None:
        """Keep it until :meth:`take`."""
        if len(self._waiting) >= MAX_WAITING:
            self._left_out[self._waiting.popleft().kind] += 1
        self._waiting.append(happening)

    def leave_out(self, kinds: Mapping[str, int]) -> None:
        """Count what somebody else has left out: kind -> number."""
        self._left_out.update(kinds)

    def take(self) -> tuple[list[Happening], dict[str, int]]:
        """What has happened since the last call, and how many of each kind were left out."""
        found = list(self._waiting), dict(self._left_out)
        self._waiting.clear()
        self._left_out.clear()
        return found


class Feed:
    """What happens on one node.

    Attributes:
        tap: function that takes what happens, see :meth:`_take`; None while nobody watches.
        shows_payloads: whether watchers see what was published.
    """

    __slots__ = ("_clock", "_unix_now", "_watches", "shows_payloads", "tap")

    def __init__(self, clock: Callable[[], float], unix_now: Callable[[], float]) -> None:
        """Make it, with nobody watching.

        Args:
            clock: function that gives the broker's seconds.
            unix_now: function that gives the wall time in seconds.
        """
        self.tap: Callable[..., None] | None = None
        self.shows_payloads = False
        self._clock = clock
        self._unix_now = unix_now
        self._watches: tuple[Watch, ...] = ()

    def watch(self, wanted: Wanted) -> Watch:
        """Begin to watch; :meth:`unwatch` ends it. Never yields.

        Raises:
            CapacityError: so many watch that one more is too much.
        """
        if len(self._watches) >= MAX_WATCHES:
            raise CapacityError(
                f"{MAX_WATCHES} watch this node already, which is the most: close one of them",
                http_status=503,
            )
        watch = Watch(wanted)
        self._watches += (watch,)
        self.tap = self._take
        return watch

    def unwatch(self, watch: Watch) -> None:
        """Watch no longer; harmless twice."""
        self._watches = tuple(other for other in self._watches if other is not watch)
        if not self._watches:
            self.tap = None

    @contextmanager
    def watching(self, wanted: Wanted) -> Iterator[Watch]:
        """Watch within a block; see :meth:`watch`."""
        watch = self.watch(wanted)
        try:
            yield watch
        finally:
            self.unwatch(watch)

    def _take(
        self,
        kind: str,
        what: str,
        app: str | None,
        channel: str | None = None,
        socket_id: str | None = None,
        user_id: str | None = None,
        *,
        event: str | None = None,
        code: int | None = None,
        text: str | None = None,
        data: str | msgspec.Raw | None = None,
    ) -> None:
        """Take something that happened; see :class:`Happening`. Never yields and never raises."""
        happening: Happening | None = None
        now = self._clock()
        for watch in self._watches:
            if watch.wanted.takes(kind, app, channel, socket_id, user_id) and watch.has_room(
                kind, now
            ):
                if happening is None:
                    payload = None if data is None else mend_text(as_text(data))
                    happening = Happening(
                        self._unix_now(), kind, what, app, _clip(channel), socket_id,
                        _clip(user_id), _clip(event), code, text,
                        None if payload is None else len(payload.encode()),
                        None if payload is None or not self.shows_payloads else payload[:MAX_DATA],
                    )  # fmt: skip
                watch.put(happening)

    def note_connection(
        self, what: str, connection: Connection, code: int | None = None, text: str | None = None
    ) -> None:
        """Say that a connection was opened or closed; free while nobody watches."""
        if self.tap is not None:
            session = connection.session
            user_id = None if session.user is None else session.user.id
            self.tap(
                "connection", what, session.app.id, None, session.socket_id, user_id,
                code=code, text=text,
            )  # fmt: skip

    def note_edge(
        self, what: str, connection: Connection, name: ChannelName, member: Member | None
    ) -> None:
        """Say that a subscription began or ended; free while nobody watches.

        Users' own channels are the protocol's business, and nobody is told of them.
        """
        if self.tap is not None and not name.is_hidden:
            session = connection.session
            user = session.user
            user_id = member.key if member else user.id if user else None
            self.tap("subscription", what, session.app.id, name.text, session.socket_id, user_id)

    def note_event(self, hub: Hub, event: AppEvent) -> None:
        """Say what webhooks are told of; to be called while somebody watches."""
        found = _APP_EVENTS.get(event.name)
        if self.tap is not None and found is not None:
            kind, what = found
            self.tap(
                kind, what, hub.app.id, event.channel, event.socket_id, event.user_id,
                event=event.event, data=event.data,
            )  # fmt: skip


def _clip(text: str | None) -> str | None:
    if text is None:
        return None
    return mend_text(text if len(text) <= MAX_NAME else text[:MAX_NAME] + "…")
