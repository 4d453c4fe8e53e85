"""Attaching: no value is lost between subscribing and reading, and nothing runs over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cachecast.bus.attach import WINDOW, attach
from cachecast.bus.calls import MAX_KEYS, Facts
from cachecast.bus.faults import EpochError, GraceError, LostError
from cachecast.bus.functions import Functions
from cachecast.bus.model import Model
from cachecast.bus.record import read_value
from cachecast.bus.shards import Keys

if TYPE_CHECKING:
    from cachecast.bus.record import Record

TO = Functions(Keys())


class World:
    """A publisher and a subscriber on the model."""

    def __init__(self, grace_ms: int = 0) -> None:
        self.model = Model(lambda: 1_790_000_000_000_000)
        self.model.libraries.add(TO.name)
        facts = Facts(node="n", nonce="x", primaries=("a/0",))
        call = TO.hello(facts, seen_epoch=0, session="", lease_ms=1, grace_ms=grace_ms)
        greeting = call.read(self.model.execute(call.arguments))
        self.epoch, self.session, self.number = greeting.epoch, greeting.session, 0
        self.link = self.model.connect(self.hear)
        self.held: dict[bytes, Record] = {}
        self.orders: list[tuple[int, int]] = []
        self.seen: list[tuple[int, Record | None]] = []
        self.ends: list[Any] = []

    def publish(self, channel: str, payload: bytes = b"x") -> None:
        self.number += 1
        event = TO.event("7", channel, payload, lifetime_ms=1_000)
        call = TO.publish(self.epoch, self.session, self.number, [event])
        call.read(self.model.execute(call.arguments))

    def hear(self, topic: bytes, payload: bytes) -> None:
        self.take(topic, read_value(payload)[1])

    def take(self, topic: bytes, record: Record | None) -> None:
        if record and (topic not in self.held or record.order > self.held[topic].order):
            self.held[topic] = record
            self.orders.append(record.order)

    def attach(self, channels: list[str]) -> None:
        def on_record(index: int, record: Record | None) -> None:
            self.seen.append((index, record))
            self.take(TO.keys.topic("7", channels[index]), record)

        pairs = [("7", channel) for channel in channels]
        attach(self.link, TO, self.epoch, pairs, on_record, self.ends.append)


@given(st.lists(st.sampled_from(["publish", "serve", "hand over", "attach"]), max_size=15))
@example(["attach", "serve", "publish"])
@example(["publish", "attach", "serve", "serve", "publish", "hand over", "hand over"])
def test_however_it_interleaves_the_subscriber_ends_with_the_newest(steps: list[str]) -> None:
    """And what it sees only grows."""
    world = World()
    topic = TO.keys.topic("7", "cache-x")
    is_attached = False
    for step in ["publish", *steps, "attach", "pump all"]:
        if step == "publish":
            world.publish("cache-x", b"%d" % world.number)
        elif step == "attach" and not is_attached:
            world.attach(["cache-x"])
            is_attached = True
        elif step == "serve":
            world.link.serve(1)
        elif step == "hand over":
            world.link.hand_over(1)
        else:
            world.link.pump()

    assert world.held[topic].payload == b"%d" % (world.number - 1)
    assert world.orders == sorted(world.orders)
    assert world.ends == [None]


def test_many_channels_are_read_a_few_parts_at_a_time() -> None:
    """The engine's output buffer for a subscriber is small."""
    world = World()
    n = MAX_KEYS * (WINDOW + 2) + 1
    channels = [f"cache-{number}" for number in range(n)]
    world.publish("cache-3")
    world.attach(channels)

    assert len(world.link.requests) == 2 * WINDOW
    world.link.pump()

    assert [index for index, _ in world.seen] == list(range(n))
    assert [index for index, record in world.seen if record] == [3]
    assert len(world.link.topics) == n
    assert world.ends == [None]


def test_large_values_come_by_further_calls() -> None:
    """A read gives what fits."""
    world = World()
    channels = [f"cache-{number}" for number in range(9)]
    for channel in channels:
        world.publish(channel, b"x" * 100_000)
    world.attach(channels)
    world.link.pump()

    assert [index for index, record in world.seen if record] == list(range(9))
    assert world.ends == [None]


def test_nothing_to_attach_is_done_at_once() -> None:
    """The owner need not ask."""
    world = World()
    world.attach([])

    assert world.ends == [None]


@pytest.mark.parametrize("kind", [EpochError, GraceError, LostError])
def test_a_fault_ends_it_once(kind: type[Exception]) -> None:
    """Its owner says hello, waits, or attaches again; records that follow are nobody's."""
    world = World(grace_ms=1_000 if kind is GraceError else 0)
    channels = [f"cache-{number}" for number in range(MAX_KEYS * WINDOW)]
    if kind is EpochError:
        world.model.flush()
    world.attach(channels)
    if kind is LostError:
        world.link.cut(LostError("cut"))
    world.link.pump()

    assert [type(end) for end in world.ends] == [kind]
    assert world.seen == []


def test_a_connection_that_is_gone_is_a_fault_too() -> None:
    """No exception reaches who attaches."""
    world = World()
    world.link.cut(LostError("cut"))
    world.attach(["cache-x"])

    assert [str(end) for end in world.ends] == ["There is no link to the engine: cut"]


def test_an_owner_that_ends_the_connection_hears_one_end() -> None:
    """From within a record's callback."""
    world = World()
    for channel in ("cache-0", "cache-1", "cache-2"):
        world.publish(channel, b"x" * 200_000)
    pairs = [("7", f"cache-{number}") for number in range(3)]
    attach(
        world.link,
        TO,
        world.epoch,
        pairs,
        lambda index, _: world.link.cut(LostError("enough")) if index == 1 else None,
        world.ends.append,
    )
    world.link.pump()

    assert len(world.ends) == 1
    assert "enough" in str(world.ends[0])
