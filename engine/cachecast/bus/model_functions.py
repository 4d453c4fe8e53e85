"""What ``library.lua`` does, said in Python; there stands what each function is for.

Methods are named like the functions, take bytes, and return what the engine would reply.
"""

from __future__ import annotations

from copy import deepcopy
from math import inf
from struct import Struct
from typing import TYPE_CHECKING, Final, Literal

from cachecast.bus.model_data import (
    Entry,
    Holders,
    Refusal,
    StreamIds,
    Strings,
    difference,
    flat,
    order,
    pack_holders,
)
from cachecast.bus.record import read_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.bus.resp import Reply

__all__ = ["ModelFunctions"]

_PAIR: Final = Struct(">dd")
_DOUBLE: Final = Struct(">d")

_N_SLOTS: Final = 4096
_MAX_HOOKS: Final = 10_000
_MAX_ENDED: Final = 1_000


class ModelFunctions:
    """The data of one primary and the functions on it; ``Model`` says what its attributes are."""

    def __init__(
        self, now_us: Callable[[], int], publish: Callable[[bytes, bytes], int], run_id: str
    ) -> None:
        """Begin with nothing; see ``Model``."""
        self.now_us = now_us
        self.publish_message = publish
        self.run_id = run_id
        self.strings = Strings(now_us)
        self._epoch = self._last = self._version = self._grace = 0
        self._run = ""
        self._sessions: dict[str, int] = {}
        self._nodes: dict[str, tuple[str, ...]] = {}
        self._held: dict[str, set[Entry]] = {}
        self._ids: dict[bytes, dict[int, tuple[int, int]]] = {}
        self._calm: tuple[int, int] | None = None
        self._rosters: dict[bytes, dict[bytes, tuple[Holders, bytes]]] = {}
        self._gauges: dict[bytes, dict[str, int]] = {}
        self._ended: list[tuple[bytes, bytes, bytes, bytes]] = []
        self._hooked: set[str] = set()
        self._hooks: dict[str, list[tuple[bytes, bytes]]] = {}
        self._lost: dict[str, int] = {}
        self._ids_of = StreamIds()
        self._root = ""

    def snapshot(self) -> ModelFunctions:
        """A copy, as a replica has it; what is done here afterwards is lost to it."""
        kept = (self.now_us, self.publish_message)
        return deepcopy(self, {id(thing): thing for thing in kept})

    def empty_copy(self) -> ModelFunctions:
        """The same engine without its data."""
        return ModelFunctions(self.now_us, self.publish_message, self.run_id)

    # --- the first step of every function

    def _open(self, keys: list[bytes], epoch: bytes, *, during_grace: bool = False) -> int:
        now = self.now_us()
        self._root = keys[0].decode().removesuffix("state")
        if not self._epoch or epoch != _DOUBLE.pack(self._epoch) or now < self._last:
            raise Refusal("EPOCH say hello again")
        if now < self._grace and not during_grace:
            raise Refusal(f"GRACE {-(-(self._grace - now) // 1000)}")
        return now

    def _require_lease(self, session: str, now: int) -> None:
        if self._sessions.get(session, -1) < 0 or self._sessions[session] * 1000 < now:
            raise Refusal("FENCED say hello again")

    def _add_hook(self, app: str, body: bytes) -> None:
        if app not in self._hooked:
            return
        events = self._hooks.setdefault(app, [])
        if len(events) >= _MAX_HOOKS:
            self._lost[app] = self._lost.get(app, 0) + 1
            del events[0]
        events.append((self._ids_of.next(f"hooks:{app}", self.now_us()), body))

    # --- values

    def _held_value(self, key: bytes) -> bytes | None:
        """What was stored in this epoch."""
        value = self.strings.get(key)
        return value[8:] if value and value[:8] == _DOUBLE.pack(self._epoch) else None

    def publish(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """Sequence, keep and send."""
        epoch, number = args[0], int(args[1])
        now = self._open(keys, epoch)
        ring = self._ids.setdefault(keys[1], {})
        if (done := ring.get(number % _N_SLOTS)) is not None:
            if done[0] == number:
                return [done[1], 1]
            if done[0] > number:
                return [0, 2]
        first = version = max(now, self._version + 1)
        values = iter(keys[2:])
        for at in range(2, len(args), 4):
            kind, topic, lifetime, tail = args[at : at + 4]
            record = epoch + _PAIR.pack(version, now) + tail
            message = kind + record
            if kind == b"V":
                value, miss = next(values), next(values)
                previous = (self._held_value(value) or bytes(16))[:16]
                self.strings.set(value, epoch + record, int(lifetime))
                self.strings.drop(miss)
                message = kind + previous + record
            self.publish_message(topic, message)
            version += 1
        ring[number % _N_SLOTS] = number, first
        self._last, self._version = now, version - 1
        return [first, 0]

    def _alive(self, key: bytes, now: int) -> bytes | None:
        record = self._held_value(key)
        return record if record and now < read_record(record).deadline_us else None

    def read(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """Read values."""
        now, room = self._open(keys, args[0]), int(args[1])
        answer: list[Reply] = [now]
        for key in keys[1:]:
            record = self._alive(key, now)
            answer.append(record)
            room -= len(record) + 8 if record else 0
            if room <= 0:
                break
        return answer

    def offer(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """Take a copy back."""
        now = self._open(keys, args[0], during_grace=True)
        if now >= self._grace:
            return -1
        taken = 0
        for key, data, remains in zip(keys[1:], args[1::2], args[2::2], strict=True):
            held = self._held_value(key)
            record, life_ms = read_record(data), int(remains)
            if life_ms <= 0 or (held and read_record(held).order >= record.order):
                continue
            published = now - (record.lifetime_ms - life_ms) * 1000
            self.strings.set(
                key, args[0] + data[:16] + _DOUBLE.pack(published) + data[24:], life_ms
            )
            taken += 1
        return taken

    def forget(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """Free values that are still these."""
        self._open(keys, args[0])
        n = 0
        for key, version in zip(keys[1:], args[1:], strict=True):
            if (self.strings.get(key) or b"")[8:24] == version:
                self.strings.drop(key)
                n += 1
        return n

    def note_miss(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """Mark a miss."""
        now = self._open(keys, args[0])
        _, value, miss = keys
        if self._alive(value, now) is not None or self.strings.get(miss) == args[0]:
            return 0
        self.strings.set(miss, args[0], int(args[1]))
        self._add_hook(args[2].decode(), b"x" + args[3])
        return 1

    # --- rosters

    def _roster_key(self, entry: Entry) -> bytes:
        kind, shard, app, name, _ = entry
        return f"{self._root}{shard}:{kind}:{app}{'/' + name if name else ''}".encode()

    def _announce(
        self, topics: bytes, entry: Entry, sign: Literal["+", "-", "="], total: int, info: bytes
    ) -> None:
        kind, _, app, name, field = entry
        mark = sign.encode()
        if kind == "m":
            body = len(field).to_bytes(2, "big") + field + info if sign == "+" else field
            self.publish_message(topics + f"c:{app}/{name}".encode(), mark + body)
            self._add_hook(app, mark + name.encode() + b"\0" + field)
        elif kind == "u":
            self.publish_message(topics + f"u:{app}/".encode() + field, mark)
        else:
            self.publish_message(topics + f"c:{app}/".encode() + field, b"#%d" % total)
            if sign != "=":
                self._add_hook(app, (b"o" if sign == "+" else b"v") + field)

    def _drop(self, topics: bytes, session: str, entry: Entry) -> tuple[int, int]:
        roster = self._rosters.get(self._roster_key(entry), {})
        field = entry[4]
        if field not in roster:
            return 0, 0
        holders, info = roster[field]
        found = holders.pop(session, None) is not None
        total = sum(holders.values())
        if found and not holders:
            del roster[field]
            self._announce(topics, entry, "-", 0, info)
        elif found and entry[0] == "o":
            self._announce(topics, entry, "=", total, info)
        return int(found), total

    def enter(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """Hold a field."""
        epoch, name, topics, *place, field, n, limit, again, wants, info = args
        now = self._open(keys, epoch, during_grace=again == b"1")
        session = name.decode()
        if again == b"1" and now >= self._grace and session.endswith("-0"):
            return [0, 0, 0]
        self._require_lease(session, now)
        kind, shard, app, channel = (part.decode() for part in place)
        entry = (kind, shard, app, channel, field)
        roster = self._rosters.setdefault(keys[1], {})
        is_first = field not in roster
        if is_first and again != b"1" and 0 < int(limit) <= len(roster):
            raise Refusal(f"CROWDED {int(limit)}")
        holders, info = roster.setdefault(field, ({}, info))
        holders[session] = int(n)
        total = sum(holders.values())
        self._held.setdefault(session, set()).add(entry)
        if now >= self._grace and (is_first or kind == "o"):
            self._announce(topics, entry, "+" if is_first else "=", total, info)
        answer: list[Reply] = [int(is_first), total, len(roster)]
        return [*answer, b"0", flat(roster.items())] if wants == b"1" else answer

    def leave(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """Hold it no more."""
        now = self._open(keys, args[0])
        session, topics, field = args[1].decode(), args[2], args[7]
        self._require_lease(session, now)
        kind, shard, app, name = (part.decode() for part in args[3:7])
        entry = (kind, shard, app, name, field)
        self._held.get(session, set()).discard(entry)
        return list(self._drop(topics, session, entry))

    def page(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """A part of a roster."""
        self._open(keys, args[0])
        roster = self._rosters.get(keys[1], {})
        return [b"0", flat(item for item in roster.items() if item[0].startswith(args[2]))]

    def look(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """Fields of rosters."""
        self._open(keys, args[0])
        return [
            pack_holders(*roster[field])
            if field in (roster := self._rosters.get(key, {}))
            else None
            for key, field in zip(keys[1:], args[1:], strict=True)
        ]

    def sizes(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """Sizes of rosters."""
        self._open(keys, args[0])
        return [len(self._rosters.get(key, {})) for key in keys[1:]]

    # --- nodes

    def hello(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """Begin a session."""
        self._root = keys[0].decode().removesuffix("state")
        seen, session = int(args[0]), args[1].decode()
        facts = tuple(part.decode() for part in args[2:7])
        lease_ms, grace_ms, topics = int(args[7]), int(args[8]), args[9]
        now = self.now_us()
        is_fresh = (
            not self._epoch or self._run != self.run_id or seen > self._epoch or now < self._last
        )
        if not is_fresh:
            self._compare(facts, session, now)
        self.publish_message(topics + b"control", b"h" + args[2])
        self._version = max(now, self._version + 1)
        if is_fresh:
            self._begin(seen, now, grace_ms)
        is_known = not is_fresh and session.partition("-")[0] == str(self._epoch)
        is_new = not is_known or self._sessions.get(session, -1) < 0 or session not in self._nodes
        if is_new:
            for old, its_facts in self._nodes.items():
                if not is_fresh and its_facts[:2] == facts[:2] and old in self._sessions:
                    self._sessions[old] = -1
            session = f"{self._epoch}-{self._version}"
            self._nodes[session] = facts
        self._sessions[session] = now // 1000 + lease_ms
        self._hooked.update(app.decode() for app in args[10:])
        self._last = now
        remains = max(0, -(-(self._grace - now) // 1000))
        return [
            self._epoch, now, remains, session.encode(), int(is_new), len(self._sessions),
        ]  # fmt: skip

    def _begin(self, seen: int, now: int, grace_ms: int) -> None:
        self._epoch = max(seen + 1, self._epoch + 1, now)
        self._grace = now + grace_ms * 1000
        self._run = self.run_id
        self._calm = now // 1000, -(-self._grace // 1000)
        self._hooked.clear()
        for session in (*self._sessions, f"{self._epoch}-0"):
            self._sessions[session] = -(-self._grace // 1000)

    def _compare(self, facts: tuple[str, ...], session: str, now: int) -> None:
        for other, its_facts in self._nodes.items():
            is_alive = self._sessions.get(other, -1) * 1000 >= now
            if other == session or not is_alive or not other.startswith(f"{self._epoch}-"):
                continue
            if why := difference(facts, its_facts):
                raise Refusal(f"MISMATCH {why}")

    def beat(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """Renew a lease."""
        now = self._open(keys, args[0], during_grace=True)
        session, lease_ms, ms = args[1].decode(), int(args[2]), now // 1000
        if self._sessions.get(session, -1) < 0:
            raise Refusal("FENCED say hello again")
        self._sessions[session] = ms + lease_ms
        if self._calm is None or ms - self._calm[0] > lease_ms / 2:
            self._calm = ms, ms + lease_ms
        else:
            self._calm = ms, self._calm[1]
        self._last = now
        answer = [now, len(self._sessions), int(now >= self._grace and self._has_dead(ms))]
        for name, n in zip(args[3::2], args[4::2], strict=True):
            gauge = self._gauges.setdefault(name, {})
            gauge[session] = int(n)
            self._held.setdefault(session, set()).add(("g", "0", "-", "", name))
            answer.append(sum(gauge.values()))
        return answer

    def _has_dead(self, ms: int) -> bool:
        not_before = self._calm[1] if self._calm else inf
        return any(end < 0 or (end < ms and ms >= not_before) for end in self._sessions.values())

    def reap(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """Take back what a dead session holds."""
        now = self._open(keys, args[0])
        step, topics, ms = int(args[1]), args[2], now // 1000
        if not self._sessions:
            return [0, 0]
        end, session = min((end, session) for session, end in self._sessions.items())
        if end >= ms or (end >= 0 and (self._calm is None or ms < self._calm[1])):
            return [0, 0]
        self._sessions[session] = -1
        held = self._held.get(session, set())
        # Who leaves is announced before what was vacated by it.
        entries = sorted(held, key=lambda entry: (entry[0] == "o", entry))[:step]
        held.difference_update(entries)
        for entry in entries:
            if entry[0] == "g":
                self._gauges[entry[4]].pop(session, None)
            else:
                self._drop(topics, session, entry)
        if len(entries) < step:
            del self._sessions[session]
            self._nodes.pop(session, None)
            self._held.pop(session, None)
            self._ids.pop(f"{self._root}ids:{session}".encode(), None)
        return [len(entries), int(self._has_dead(ms))]

    def retire(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """End a session."""
        self._open(keys, args[0], during_grace=True)
        session = args[1].decode()
        if self._sessions.get(session, -1) < 0:
            return 0
        self._sessions[session] = -1
        return 1

    # --- users' ends, webhooks

    def terminate(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """End a user's connections."""
        self._open(keys, args[0], during_grace=True)
        _, topics, app, user = args
        previous = self._ended[-1][0] if self._ended else b"0-0"
        new = self._ids_of.next("ended", self.now_us())
        self._ended = [*self._ended, (new, previous, app, user)][-_MAX_ENDED:]
        self.publish_message(topics + b"control", b"t%b %b %b/%b" % (new, previous, app, user))
        return new

    def ended(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """Newest id, and users whose connections were ended."""
        self._open(keys, args[0], during_grace=True)
        newest = self._ended[-1][0] if self._ended else b"0-0"
        if not args[1]:
            return [newest]
        after = [list(entry) for entry in self._ended if order(entry[0]) > order(args[1])]
        return [newest, *after[:100]]

    def hook(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """Keep an event."""
        self._open(keys, args[0])
        self._add_hook(args[1].decode(), args[2])
        return 1

    def collect(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """Give events to the courier."""
        now = self._open(keys, args[0])
        _, session, app, lease_ms, max_bytes, start = args
        self._require_lease(session.decode(), now)
        courier = keys[0].removesuffix(b"state") + b"courier:" + app
        if (self.strings.get(courier) or session) != session:
            return [0, 0]
        self.strings.set(courier, session, int(lease_ms))
        events = self._hooks.get(app.decode(), [])
        if start != b"-":
            events = [event for event in events if order(event[0]) > order(start[1:])]
        answer: list[Reply] = [1, self._lost.pop(app.decode(), 0)]
        room = int(max_bytes)
        for at in range(0, min(len(events), 200), 20):
            answer += [list(event) for event in events[at : at + 20]]
            room -= sum(len(body) for _, body in events[at : at + 20])
            if room <= 0:
                break
        return answer

    def settle(self, keys: list[bytes], args: list[bytes]) -> Reply:
        """Forget events."""
        self._open(keys, args[0])
        _, session, app, *ids = args
        if self.strings.get(keys[0].removesuffix(b"state") + b"courier:" + app) != session:
            return -1
        events = self._hooks.get(app.decode(), [])
        left = [event for event in events if event[0] not in ids]
        self._hooks[app.decode()] = left
        return len(events) - len(left)
