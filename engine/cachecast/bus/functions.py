"""Typed calls of the engine's functions: arguments -> :class:`Call`; its reply -> a result.

A call is data: what to send, and how to read the answer. So one and the same call goes to a real
engine by :class:`~cachecast.bus.resp.Connection`, with a callback or awaited, or to the model
(``model.py``), and tests compare what both say.

Two versions of nodes may run side by side while they speak the same :data:`PROTOCOL`: each brings a
library of its own, named after that number and a digest of the text.

Sizes: a call carries at most :data:`MAX_KEYS` keys; :func:`portions` cuts. What a node may send in
one call is bounded so that the engine stands still for a millisecond at most (figures in
DESIGN.md); the exception is a publish or batch at its own limits.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Final, TypeVar

from cachecast.bus.answers import (
    Beat,
    Collected,
    Entered,
    Greeting,
    Published,
    Termination,
    read_beat,
    read_collected,
    read_ended,
    read_entered,
    read_greeting,
    read_nothing,
    read_page,
    read_published,
    read_records,
    read_text,
    read_totals,
)
from cachecast.bus.calls import (
    MAX_BYTES,
    REAP_STEP,
    REMEMBER_MS,
    Call,
    Event,
    Facts,
    Rosters,
    library,
    library_name,
)
from cachecast.bus.record import Record, Version, pack_tail
from cachecast.bus.shards import Keys, shard_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cachecast.bus.resp import Reply

__all__ = ["MAX_NAMES", "Functions"]

#: Number of channels whose names in the engine are kept; building them takes longer than the rest
#: of a call.
MAX_NAMES: Final = 8192

_EPOCH: Final = Struct(">d")
_PAIR: Final = Struct(">dd")
_T = TypeVar("_T")


class Functions:
    """The calls of one primary.

    Every call but ``hello`` names the epoch that the node knows; if it is not the engine's, nothing
    is done and the answer is ``EpochError``. During a grace, those that could tell a falsehood
    answer ``GraceError``.
    """

    def __init__(self, keys: Keys, name: str | None = None) -> None:
        """Prepare the calls.

        Args:
            keys: names of keys on the primary.
            name: name of the library; by default ours.
        """
        self.keys = keys
        self.name = name or library_name()
        self._state = keys.of("state")
        self._ids = lru_cache(maxsize=2)(lambda session: keys.of(f"ids:{session}"))
        self._of_channel = lru_cache(maxsize=MAX_NAMES)(
            lambda *where: (keys.topic(*where), keys.value(*where), keys.miss(*where))
        )
        self._names = {function: f"{self.name}_{function}".encode() for function in _FUNCTIONS}

    def _call(
        self,
        function: str,
        keys: Sequence[bytes],
        arguments: Sequence[bytes | str | int],
        read: Callable[[Reply], _T],
    ) -> Call[_T]:
        return Call(
            (b"FCALL", self._names[function], len(keys) + 1, self._state, *keys, *arguments), read
        )

    # --- nodes

    def load(self) -> Call[None]:
        """Put the library into the engine; an error if it is there already."""
        return Call((b"FUNCTION", b"LOAD", library()), read_nothing)

    def is_loaded(self) -> Call[bool]:
        """Whether the library is in the engine, with this very text."""
        return Call((b"FUNCTION", b"LIST", b"LIBRARYNAME", self.name), bool)

    def hello(
        self, facts: Facts, *, seen_epoch: int, session: str, lease_ms: int, grace_ms: int
    ) -> Call[Greeting]:
        """Begin, or begin again, with the engine.

        Args:
            facts: facts of this node.
            seen_epoch: newest epoch of this primary that the node knows; 0 for none.
            session: the node's last one, which goes on if it still can; empty for none.
            lease_ms: milliseconds after which the node is dead unless it beats.
            grace_ms: milliseconds of a new epoch, for nodes to enter again what they know.

        The engine may refuse with ``MismatchError``.
        """
        return self._call(
            "hello",
            (),
            (
                seen_epoch, session, facts.node, facts.nonce, facts.protocol,
                ",".join(facts.primaries), ",".join(facts.seals), lease_ms, grace_ms,
                self.keys.topics, *facts.apps_with_webhooks,
            ),
            read_greeting,
        )  # fmt: skip

    def beat(
        self, epoch: int, session: str, lease_ms: int, gauges: Sequence[tuple[str, int]] = ()
    ) -> Call[Beat]:
        """Renew the lease, and say what this node counts, for limits that hold for all together.

        Args:
            epoch: epoch that the node knows, see class.
            session: session of the node; ``FencedError`` if it has ended.
            lease_ms: milliseconds from now after which the node is dead unless it beats.
            gauges: names and numbers, at most twenty: connections of an app, entries and bytes that
                it keeps. The sums are as old as the other nodes' last beats with the same name.
        """
        flat = [item for pair in gauges for item in pair]
        return self._call("beat", (), (_EPOCH.pack(epoch), session, lease_ms, *flat), read_beat)

    def reap(self, epoch: int, step: int = REAP_STEP) -> Call[tuple[int, bool]]:
        """Take back a part of what one dead session holds, and announce what is gone by it.

        Returns:
            Number of entries that were taken back; and whether there is more.
        """
        return self._call(
            "reap",
            (),
            (_EPOCH.pack(epoch), step, self.keys.topics),
            lambda reply: (reply[0], bool(reply[1])),
        )

    def retire(self, epoch: int, session: str) -> Call[bool]:
        """End a session now; others reap it. Gives whether there was one."""
        return self._call("retire", (), (_EPOCH.pack(epoch), session), bool)

    @staticmethod
    def ghost(epoch: int) -> str:
        """The session under which nodes enter, in a grace, what others were known to hold.

        At the end of the grace it is reaped like a dead node's: whoever nobody entered again is
        announced gone, once.
        """
        return f"{epoch}-0"

    # --- values

    def event(
        self, app_id: str, channel: str, payload: bytes, *, exclude: str = "", lifetime_ms: int = 0
    ) -> Event:
        """An event for ``publish``; kept as the channel's value if it has a lifetime."""
        topic, value, miss = self._of_channel(app_id, channel)
        if not lifetime_ms:
            return Event(topic, payload, exclude)
        return Event(topic, payload, exclude, value, miss, lifetime_ms, app_id)

    def publish(
        self, epoch: int, session: str, number: int, events: Sequence[Event]
    ) -> Call[Published]:
        """Give events their order, keep the values, and send all of them to all nodes.

        All or nothing; the events of one call have versions that follow each other.

        Args:
            epoch: epoch that the node knows, see class.
            session: session of the node.
            number: number of this call within the session, growing by one. If an answer never came
                the same call with the same number may be made again, on a new connection: it is
                done once. At most :data:`MAX_REMEMBERED` calls may be without an answer.
            events: events to publish, at least one.
        """
        keys: list[bytes] = [self._ids(session)]
        arguments: list[bytes | str | int] = [_EPOCH.pack(epoch), number]
        for event in events:
            kind = b"E"
            if event.value:
                kind = b"V"
                keys += (event.value, event.miss)
            tail = pack_tail(event.lifetime_ms, event.exclude, event.payload)
            arguments += (kind, event.topic, event.lifetime_ms, tail)
        return self._call("publish", keys, arguments, read_published)

    def read(
        self, epoch: int, values: Sequence[bytes]
    ) -> Call[tuple[int, tuple[Record | None, ...]]]:
        """Read values.

        Returns:
            The engine's clock in microseconds; and for each key, in order, the record or None. Of
            large values there may be fewer than asked for: ask again for the rest.
        """
        return self._call("read", values, (_EPOCH.pack(epoch), MAX_BYTES), read_records)

    def offer(self, epoch: int, copies: Sequence[tuple[bytes, Record, int]]) -> Call[int]:
        """Put copies back into an engine that has lost them; the newest of all offers stays.

        Args:
            epoch: epoch that the node knows, see class.
            copies: key, record, and the milliseconds of life that remain by this machine's
                CLOCK_BOOTTIME, rounded down; together at most :data:`MAX_BYTES` of records.

        Returns:
            Number of records that were newer than what was there; -1 if the grace is over and none
            was taken.
        """
        arguments: list[bytes | str | int] = [_EPOCH.pack(epoch)]
        for _, record, remains_ms in copies:
            arguments += (record.pack(), remains_ms)
        return self._call("offer", [key for key, _, _ in copies], arguments, int)

    def forget(self, epoch: int, values: Sequence[tuple[bytes, Version]]) -> Call[int]:
        """Free values that are still of the given order: an app is above its ceiling, say.

        Gives how many were freed.
        """
        versions = [_PAIR.pack(*order) for _, order in values]
        return self._call(
            "forget", [key for key, _ in values], (_EPOCH.pack(epoch), *versions), int
        )

    def free(self, values: Sequence[bytes]) -> Call[int]:
        """Have the engine free what has expired among at most 500 keys; gives how many live.

        It frees expired keys only when it meets them, and its own search falls behind at thousands
        a second.
        """
        return Call((b"EXISTS", *values), int)

    def note_miss(
        self, epoch: int, app_id: str, channel: str, remember_ms: int = REMEMBER_MS
    ) -> Call[bool]:
        """Say that a subscriber missed a value; gives whether that is to be reported.

        Args:
            epoch: epoch that the node knows, see class.
            app_id: id of the channel's app.
            channel: name of the channel.
            remember_ms: milliseconds for which further misses are not reported, unless there is a
                publish.
        """
        return self._call(
            "note_miss",
            (self.keys.value(app_id, channel), self.keys.miss(app_id, channel)),
            (_EPOCH.pack(epoch), remember_ms, app_id, channel),
            bool,
        )

    def rearm_miss(self, app_id: str, channel: str, after_ms: int) -> Call[int]:
        """Let a channel's miss be reported again so long from now; of none there is none to be."""
        return Call((b"PEXPIRE", self.keys.miss(app_id, channel), after_ms), int)

    # --- rosters

    def _place(self, kind: Rosters, app_id: str, name: str, field: str) -> tuple[int, bytes]:
        """Shard and key of a roster: it lies where its channel or user lies."""
        shard = shard_of(app_id, name or (field if kind == "o" else f"#server-to-user-{field}"))
        return shard, self.keys.in_shard(shard, kind, app_id, name)

    def enter(
        self,
        epoch: int,
        session: str,
        kind: Rosters,
        app_id: str,
        field: str,
        *,
        name: str = "",
        n: int = 1,
        info: bytes = b"",
        limit: int = 0,
        again: bool = False,
        wants_roster: bool = False,
    ) -> Call[Entered]:
        """Hold a field of a roster under this session, or hold another number of it.

        Whoever is the first is announced, and nobody in a grace. Send it on the connection that
        subscribes, after the topic's SUBSCRIBE: then roster and later news are in order.

        Args:
            epoch: epoch that the node knows, see class.
            session: session of the node, or :meth:`ghost`.
            kind: kind of the roster.
            app_id: id of the roster's app.
            field: id of the user, or name of the channel for ``o``.
            name: name of the presence channel, for ``m``.
            n: number of the node's connections that hold it.
            info: ``user_info``; the first one's is kept while the field is held.
            limit: number of fields at most; past it ``CrowdedError``. 0 for none.
            again: whether the node held it before the engine's epoch, or its session, changed.
            wants_roster: whether to give the roster too, for a node that does not have it.
        """
        shard, roster = self._place(kind, app_id, name, field)
        return self._call(
            "enter",
            (roster,),
            (
                _EPOCH.pack(epoch), session, self.keys.topics, kind, shard, app_id, name, field, n,
                limit, int(again), int(wants_roster), info,
            ),
            read_entered,
        )  # fmt: skip

    def leave(
        self, epoch: int, session: str, kind: Rosters, app_id: str, field: str, *, name: str = ""
    ) -> Call[tuple[bool, int]]:
        """Hold a field no more; if nobody else does, it is announced.

        Returns:
            Whether the session held it; and what others hold of it together.
        """
        shard, _ = self._place(kind, app_id, name, field)
        return self._call(
            "leave",
            (),
            (_EPOCH.pack(epoch), session, self.keys.topics, kind, shard, app_id, name, field),
            lambda reply: (bool(reply[0]), reply[1]),
        )

    def page(
        self, epoch: int, kind: Rosters, app_id: str, shard_or_name: int | str, cursor: str = "0",
        prefix: str = "",
    ) -> Call[tuple[str, dict[str, tuple[int, bytes]]]]:  # fmt: skip
        """A part of a roster.

        Args:
            epoch: epoch that the node knows, see class.
            kind: kind of the roster.
            app_id: id of the roster's app.
            shard_or_name: number of the shard for ``o`` and ``u``, the channel for ``m``.
            cursor: place to go on from: "0" to begin with, then what was given.
            prefix: beginning of the fields that are wanted; no others are given.

        Returns:
            The next cursor, "0" at the end; and field -> total and info. A field may come twice.
            Applied in order with the news of the topic, the parts make up the roster.
        """
        if isinstance(shard_or_name, int):
            roster = self.keys.in_shard(shard_or_name, kind, app_id)
        else:
            shard = shard_of(app_id, shard_or_name)
            roster = self.keys.in_shard(shard, kind, app_id, shard_or_name)
        return self._call("page", (roster,), (_EPOCH.pack(epoch), cursor, prefix), read_page)

    def look(
        self, epoch: int, kind: Rosters, app_id: str, fields: Sequence[str], *, name: str = ""
    ) -> Call[tuple[int, ...]]:
        """What all sessions hold of at most 100 fields: numbers of subscriptions; 0: nobody."""
        rosters = [self._place(kind, app_id, name, field)[1] for field in fields]
        return self._call("look", rosters, (_EPOCH.pack(epoch), *fields), read_totals)

    def sizes(self, epoch: int, app_id: str, channels: Sequence[str]) -> Call[tuple[int, ...]]:
        """How many members at most 100 presence channels have."""
        rosters = [
            self.keys.in_shard(shard_of(app_id, channel), "m", app_id, channel)
            for channel in channels
        ]
        return self._call("sizes", rosters, (_EPOCH.pack(epoch),), tuple)

    # --- users' ends, signals

    def terminate(self, epoch: int, app_id: str, user_id: str) -> Call[str]:
        """Have all nodes end a user's connections; gives the id of the entry."""
        return self._call(
            "terminate", (), (_EPOCH.pack(epoch), self.keys.topics, app_id, user_id), read_text
        )

    def ended(self, epoch: int, known: str = "") -> Call[tuple[str, tuple[Termination, ...]]]:
        """What was terminated after ``known``, at most 100; with "" only where the list stands.

        Args:
            epoch: epoch that the node knows, see class.
            known: newest id that the node has seen in this epoch.

        Returns:
            The newest id; and the entries. If the first one's ``previous`` is not ``known``, some
            were lost, and a node ends all users that it cannot be sure of.
        """
        return self._call("ended", (), (_EPOCH.pack(epoch), known), read_ended)

    def signal(self, text: bytes) -> Call[int]:
        """Tell all nodes something on the control topic, behind a ``b``."""
        return Call((b"PUBLISH", self.keys.control, b"b" + text), int)

    def mark(self, text: str) -> Call[int]:
        """Put a mark into the order of all messages, on the control topic, behind an ``m``."""
        return Call((b"PUBLISH", self.keys.control, b"m" + text.encode()), int)

    # --- webhooks

    def hook(self, epoch: int, app_id: str, body: bytes) -> Call[None]:
        """Keep an event for the app's courier that no function makes by itself: a client event."""
        return self._call("hook", (), (_EPOCH.pack(epoch), app_id, b"c" + body), read_nothing)

    def collect(
        self, epoch: int, session: str, app_id: str, lease_ms: int, after: str = ""
    ) -> Call[Collected]:
        """Become or stay the app's courier, and get events after an id.

        Bodies begin with o (occupied), v (vacated), x (cache miss), each followed by the channel;
        + or - (member; channel, NUL, user id); c (what ``hook`` was given).

        Args:
            epoch: epoch that the node knows, see class.
            session: session of the node.
            app_id: id of the app whose events are wanted.
            lease_ms: milliseconds for which nobody else gets any.
            after: id of the last event that is known; "" for all that are not settled.
        """
        start = f"({after}" if after else "-"
        return self._call(
            "collect",
            (),
            (_EPOCH.pack(epoch), session, app_id, lease_ms, MAX_BYTES, start),
            read_collected,
        )

    def settle(self, epoch: int, session: str, app_id: str, ids: Sequence[str]) -> Call[int]:
        """Say which events are done with; gives how many were there, -1 for who is no courier."""
        return self._call("settle", (), (_EPOCH.pack(epoch), session, app_id, *ids), int)


_FUNCTIONS: Final = (
    "publish", "read", "offer", "forget", "note_miss", "enter", "leave", "page", "look", "sizes",
    "hello", "beat", "reap", "retire", "terminate", "ended", "hook", "collect", "settle",
)  # fmt: skip
