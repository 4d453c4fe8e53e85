"""Hub, presence, channels, cache and outboxes together, against a model of who must see what.

Every publication has a number that grows. Whoever is subscribed sees exactly what was published
while it was, in order and once; a slow one sees, of a cache channel, a part of it that ends with
the newest. The cached value comes first to a newcomer, in the same step, as the broker does it. Who
asks for more than it reads is answered when it has read, as a transport does it.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from math import inf
from typing import Any

import pytest
from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cachecast.channels import waiting
from cachecast.channels.cache import CACHED_WIRE, CacheStore
from cachecast.channels.hub import Hub
from cachecast.channels.outbox import Backlog
from cachecast.errors import SubscriptionError
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.messages import Publication
from cachecast.protocol.session import Member
from cachecast.protocol.wire import JSON_WEBSOCKET, MSGPACK_WEBSOCKET, Encoded
from tests.harness.lower import Client, make_app

pytestmark = pytest.mark.slow

NAMES = {
    text: parse_channel_name(text)
    for text in ("plain", "cache-value", "presence-room", "presence-cache-room")
}
TTL_S = 1_800.0
MAX_MEMBERS = 2


_busy_names = st.sampled_from(["plain", "plain", "cache-value", "cache-value", *NAMES])


@dataclass
class Seat:
    """One subscription, as the model sees it."""

    member: Member | None
    #: Numbers that this subscription is to see.
    owed: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Visitor:
    """A connection and what the model knows of it."""

    client: Client
    seats: dict[str, Seat] = field(default_factory=dict)
    #: How often it may have seen what, over all its subscriptions.
    allowed: dict[str, Counter[int]] = field(default_factory=dict)
    is_slow: bool = False
    #: What it asked to join, and as whom, while it had not read what it asked for before.
    requests: deque[tuple[str, str]] = field(default_factory=deque)

    def owe(self, text: str, number: int) -> None:
        self.seats[text].owed.append(number)
        self.allowed.setdefault(text, Counter())[number] += 1


class DeliveryMachine(RuleBasedStateMachine):
    """Clients that come, go, read and do not read; publishers that do not care."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(waiting, "PACE_BYTES", 100)
        self.patch.setattr(waiting, "RESUME_BYTES", 50)

    def teardown(self) -> None:
        self.patch.undo()

    @initialize()
    def node_starts(self) -> None:
        self.ready: deque[Hub] = deque()
        self.hub = Hub(make_app(max_presence_members=MAX_MEMBERS), self.ready, 0.0)
        self.cache = CacheStore(1_000, 10**9)
        self.cache.add_app("3", TTL_S, 1_000, 10**9, self.hub.counters)
        self.backlog = Backlog()
        self.number = 0
        self.visitors: list[Visitor] = []
        #: Channel -> the number and deadline of the last server-side publication.
        self.last: dict[str, tuple[int, float]] = {}
        #: Numbers that were cached; the others are client events and the like.
        self.values: set[int] = set()
        self.now = 0.0
        for wire, room in ((JSON_WEBSOCKET, inf), (MSGPACK_WEBSOCKET, 30), (JSON_WEBSOCKET, 0)):
            visitor = self._connect(room, wire)
            for text in ("cache-value", "plain"):
                self._subscribe(visitor, text, "u")

    def _someone(self, data: st.DataObject) -> Visitor:
        return data.draw(st.sampled_from(self.visitors))

    # --- what clients do

    @precondition(lambda self: len(self.visitors) < 5)
    @rule(
        room=st.sampled_from([inf, inf, 0, 10]),
        wire=st.sampled_from([JSON_WEBSOCKET, JSON_WEBSOCKET, MSGPACK_WEBSOCKET]),
    )
    def client_connects(self, room: float, wire: Any) -> None:
        self._connect(room, wire)

    def _connect(self, room: float, wire: Any) -> Visitor:
        client = Client(
            self.hub.app,
            "1.1",
            wire,
            room=room,
            backlog=self.backlog,
            counters=self.hub.counters,
            max_bytes=10**9,
        )
        visitor = Visitor(client, is_slow=room < inf)
        self.visitors.append(visitor)
        return visitor

    @precondition(lambda self: self.visitors)
    @rule(data=st.data(), text=st.sampled_from(list(NAMES)), user=st.sampled_from(["u", "v", "w"]))
    def late_joiner_subscribes(self, data: st.DataObject, text: str, user: str) -> None:
        self._ask(self._someone(data), text, user)

    @precondition(lambda self: self.visitors)
    @rule(data=st.data(), user=st.sampled_from(["u", "v", "w"]))
    def late_joiner_subscribes_to_everything(self, data: st.DataObject, user: str) -> None:
        visitor = self._someone(data)
        for text in NAMES:
            self._ask(visitor, text, user)

    def _ask(self, visitor: Visitor, text: str, user: str) -> None:
        visitor.requests.append((text, user))
        self._answer(visitor)

    def _answer(self, visitor: Visitor) -> None:
        """What a transport does: one request after the other, until it must be read."""
        while visitor.requests:
            if visitor.client.outbox.is_pacing:
                event("a request waits for its client to read")
                return
            text, user = visitor.requests.popleft()
            if text not in visitor.seats:
                self._subscribe(visitor, text, user)

    def _subscribe(self, visitor: Visitor, text: str, user: str) -> None:
        name = NAMES[text]
        member = Member(user) if name.is_presence else None
        users = self._users(text)
        try:
            joined = self.hub.subscribe(visitor.client.connection, name, member)
        except SubscriptionError:
            event("presence channel full")
            assert member is not None
            assert user not in users
            assert len(users) == MAX_MEMBERS
            return

        assert joined.is_occupied is not any(text in other.seats for other in self.visitors)
        assert joined.is_member_new is (member is not None and user not in users)
        visitor.seats[text] = Seat(member)
        if name.is_cache:
            self._replay(visitor, text)

    def _users(self, text: str) -> set[str]:
        members = [visitor.seats[text].member for visitor in self.visitors if text in visitor.seats]
        return {member.key for member in members if member is not None}

    def _replay(self, visitor: Visitor, text: str) -> None:
        entry = self.cache.get("3", text, self.now)
        number, deadline = self.last.get(text, (0, 0.0))
        assert (entry is not None) is (deadline > self.now)
        if entry is not None:
            frame = entry.on(visitor.client.connection.wire)
            visitor.client.outbox.put(frame, text, entry.deadline, is_asked=True)
            visitor.owe(text, number)
            event("cached value replayed")

    @precondition(lambda self: any(visitor.seats for visitor in self.visitors))
    @rule(data=st.data())
    def member_leaves(self, data: st.DataObject) -> None:
        visitor = data.draw(st.sampled_from([v for v in self.visitors if v.seats]))
        self._leave(visitor, data.draw(st.sampled_from(sorted(visitor.seats))))

    def _leave(self, visitor: Visitor, text: str) -> None:
        seat = visitor.seats.pop(text)
        left = self.hub.unsubscribe(visitor.client.connection, text)

        assert left.is_vacated is not any(text in other.seats for other in self.visitors)
        gone = seat.member is not None and seat.member.key not in self._users(text)
        assert left.is_member_gone is gone

    @precondition(lambda self: any(visitor.seats for visitor in self.visitors))
    @rule(data=st.data())
    def page_is_reloaded(self, data: st.DataObject) -> None:
        """The same connection leaves and comes back at once."""
        visitor = data.draw(st.sampled_from([v for v in self.visitors if v.seats]))
        for text, seat in list(visitor.seats.items()):
            self._leave(visitor, text)
            self.hub.subscribe(visitor.client.connection, NAMES[text], seat.member)
            visitor.seats[text] = Seat(seat.member)
            if NAMES[text].is_cache:
                self._replay(visitor, text)

    @precondition(lambda self: len(self.visitors) > 2)
    @rule(data=st.data())
    def client_disconnects(self, data: st.DataObject) -> None:
        visitor = self._someone(data)
        visitor.client.outbox.discard()
        for text in list(visitor.seats):
            self._leave(visitor, text)
        self.visitors.remove(visitor)

    @precondition(lambda self: self.visitors)
    @rule(data=st.data(), room=st.sampled_from([0, 1, 60, 500, inf]))
    def client_reads(self, data: st.DataObject, room: float) -> None:
        visitor = self._someone(data)
        visitor.is_slow |= room < inf  # values may be replaced while they wait for it
        visitor.client.socket.room = room
        visitor.client.outbox.flush(self.now)
        self._answer(visitor)

    # --- what publishers do

    @rule(data=st.data(), text=_busy_names, is_server_side=st.booleans())
    def publisher_publishes(self, data: st.DataObject, text: str, is_server_side: bool) -> None:
        self.number += 1
        excluded = data.draw(st.sampled_from([None, *self.visitors]))
        name, number = NAMES[text], self.number
        publication = Publication("ev", text, str(number))
        encoded = Encoded(publication)
        deadline = inf
        if name.is_cache and is_server_side:
            deadline = self.cache.put("3", text, encoded.on(CACHED_WIRE), self.now).deadline
            self.last[text] = (number, deadline)
            self.values.add(number)
        channel = self.hub.channels.get(text)
        if channel is not None:
            self.hub.enqueue(
                channel, encoded, excluded.client.connection if excluded else None, deadline
            )
        for visitor in self.visitors:
            if text in visitor.seats and visitor is not excluded:
                visitor.owe(text, number)

    @rule(data=st.data(), text=_busy_names)
    def membership_changes_between_two_publications(self, data: st.DataObject, text: str) -> None:
        self.publisher_publishes(data, text, is_server_side=True)
        if any(visitor.seats for visitor in self.visitors):
            self.page_is_reloaded(data)
        self.publisher_publishes(data, text, is_server_side=True)

    @rule(max_sends=st.integers(1, 3))
    def fanout_takes_a_turn(self, max_sends: int) -> None:
        if not self.ready:
            return
        sends, _ = self.ready.popleft().deliver(max_sends)
        assert sends <= max_sends

    @rule(seconds=st.sampled_from([1.0, 1_799.0, 1_800.0]))
    def time_passes(self, seconds: float) -> None:
        self._fan_out_everything()
        self._everybody_reads()
        self.now += seconds
        self.cache.evict(self.now, 10**6)

    # --- what must be true in the end

    def _fan_out_everything(self) -> None:
        while self.ready:
            self.fanout_takes_a_turn(100)

    def _everybody_reads(self) -> None:
        for visitor in self.visitors:
            visitor.client.socket.room = inf
            while visitor.client.outbox.waiting_bytes or visitor.requests:
                visitor.client.outbox.flush(self.now)
                self._answer(visitor)

    @rule()
    def everything_arrives(self) -> None:
        self._fan_out_everything()
        self._everybody_reads()

        assert self.hub.undelivered_bytes == 0
        for visitor in self.visitors:
            seen = _seen(visitor.client)
            for text, seat in visitor.seats.items():
                n_expected = 1 if NAMES[text].is_cache and visitor.is_slow else len(seat.owed)
                expected = seat.owed[-n_expected:] if n_expected else []
                got = seen.get(text, [])
                assert got[-n_expected:] == expected or not expected
                if NAMES[text].is_cache:
                    newest = max((n for n in seat.owed if n in self.values), default=None)
                    assert newest is None or newest in got

    @invariant()
    def nobody_sees_what_was_not_for_it_nor_anything_twice_nor_old_after_new(self) -> None:
        for visitor in getattr(self, "visitors", []):
            if visitor.client.outbox.waiting_bytes:
                continue
            for text, numbers in _seen(visitor.client).items():
                assert Counter(numbers) <= visitor.allowed.get(text, Counter())
                # A replay may bring a value after a client event that is younger.
                for is_value in (True, False):
                    of_kind = [n for n in numbers if (n in self.values) is is_value]
                    assert of_kind == sorted(of_kind)

    @invariant()
    def the_hub_is_what_the_model_is(self) -> None:
        if not hasattr(self, "hub"):
            return
        occupied = {text for visitor in self.visitors for text in visitor.seats}
        assert set(self.hub.channels) == occupied
        assert self.hub.n_subscriptions == sum(len(visitor.seats) for visitor in self.visitors)
        for text in occupied:
            roster = self.hub.channels[text].roster
            if roster is not None:
                assert set(roster.user_ids) == self._users(text)
        queued = sum(channel.queued_bytes for channel in self.hub.ready)
        assert self.hub.undelivered_bytes == queued

    @invariant()
    def every_byte_that_waits_is_counted_once(self) -> None:
        outboxes = [visitor.client.outbox for visitor in getattr(self, "visitors", [])]
        held = [outbox._waiting for outbox in outboxes if outbox._waiting is not None]
        if hasattr(self, "backlog"):
            assert self.backlog.n_bytes == sum(
                one.n_bytes + waiting.ITEM_BYTES * len(one.items) for one in held
            )
            assert len(self.backlog) == len(held)


def _seen(client: Client) -> dict[str, list[int]]:
    """Channel -> the numbers that arrived, in order."""
    seen: dict[str, list[int]] = {}
    for message in client.heard:
        seen.setdefault(message["channel"], []).append(int(message["data"]))
    return seen


TestDelivery = DeliveryMachine.TestCase
