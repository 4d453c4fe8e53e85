"""The model as an engine: connections, order, and what happens when it goes."""

from __future__ import annotations

from typing import Any

import pytest

from cachecast.bus.calls import Facts, library
from cachecast.bus.faults import (
    DownError,
    EpochError,
    LostError,
    MissingFunctionError,
    ReplyError,
    UnfitError,
)
from cachecast.bus.functions import Functions
from cachecast.bus.model import Model, ModelConnection
from cachecast.bus.shards import Keys

TO = Functions(Keys())
FACTS = Facts(node="n", nonce="x", primaries=("a/0",))


class World:
    """A model with its clock."""

    def __init__(self) -> None:
        self.now_us = 1_790_000_000_000_000
        self.model = Model(lambda: self.now_us)
        self.seen: list[Any] = []

    def connect(self) -> ModelConnection:
        return self.model.connect(lambda *message: self.seen.append(message))

    def begin(self) -> tuple[int, str]:
        self.now_us += 1
        self.model.execute(TO.load().arguments)
        call = TO.hello(FACTS, seen_epoch=0, session="", lease_ms=3_000, grace_ms=0)
        greeting = call.read(self.model.execute(call.arguments))
        return greeting.epoch, greeting.session


def test_replies_and_messages_are_one_ordered_stream() -> None:
    """As on a real connection; the simulation decides when each step happens."""
    world = World()
    epoch, session = world.begin()
    connection, other = world.connect(), world.connect()
    topic = TO.keys.topic("7", "c")
    connection.subscribe((topic,), lambda _: world.seen.append("subscribed"))
    connection.send(("PING",), world.seen.append)
    event = TO.event("7", "c", b"x")
    other.send(TO.publish(epoch, session, 1, [event]).arguments, None)
    connection.send(("PING",), world.seen.append)

    assert connection.serve(2) == 2
    assert connection.hand_over(1) == 1
    assert world.seen == ["subscribed"]
    other.pump()
    connection.pump()
    assert [type(item) for item in world.seen] == [str, bytes, tuple, bytes]
    connection.unsubscribe((topic,))
    connection.pump()
    assert world.model.execute(("PUBLISH", topic, b"x")) == 0


def test_a_cut_loses_what_is_under_way_and_answers_who_waits() -> None:
    """What the engine has carried out stays done, what it has not is never done."""
    world = World()
    connection = world.connect()
    connection.subscribe((b"t",))
    connection.pump()
    world.model.execute(("PUBLISH", b"t", b"x"))
    connection.send(("PING",), world.seen.append)
    connection.serve()
    connection.send(("FUNCTION", "LOAD", library()), world.seen.append)
    fault = LostError("cut")

    connection.cut(fault)
    connection.cut(LostError("again"))

    assert world.seen == [fault, fault]
    assert world.model.libraries == set()
    assert connection.hand_over() == 0
    with pytest.raises(DownError):
        connection.send(("PING",), None)
    assert world.model.connections == []


def test_a_restart_loses_everything_and_a_flush_all_but_the_functions() -> None:
    """As a memory-only engine does."""
    world = World()
    epoch, session = world.begin()
    world.connect()
    world.model.flush()
    beat = TO.beat(epoch, session, 3_000).arguments
    assert isinstance(world.model.execute(beat), EpochError)

    world.model.restart("2")

    assert world.model.connections == []
    assert isinstance(world.model.execute(beat), MissingFunctionError)
    assert world.begin()[0] > epoch


def test_a_replica_has_what_was_there_when_it_was_copied() -> None:
    """What the primary did since is lost to it."""
    world = World()
    epoch, session = world.begin()
    replica = world.model.functions.snapshot()
    event = TO.event("7", "cache-x", b"x", lifetime_ms=1_000)
    world.model.execute(TO.publish(epoch, session, 1, [event]).arguments)

    world.model.fail_over(replica, "2")

    again = TO.hello(FACTS, seen_epoch=epoch, session=session, lease_ms=1, grace_ms=0)
    greeting = again.read(world.model.execute(again.arguments))
    assert greeting.epoch > epoch
    read = TO.read(greeting.epoch, [event.value])
    assert read.read(world.model.execute(read.arguments))[1] == (None,)


def test_it_understands_what_nodes_send_and_nothing_else() -> None:
    """A command that no node sends is a fault in the node."""
    world = World()
    assert TO.is_loaded().read(world.model.execute(TO.is_loaded().arguments)) is False
    world.begin()

    assert TO.is_loaded().read(world.model.execute(TO.is_loaded().arguments)) is True
    assert isinstance(world.model.execute(("FUNCTION", "LOAD", library())), ReplyError)
    assert isinstance(world.model.execute(("KEYS", "*")), UnfitError)
    assert world.model.execute(("TIME",)) == [b"1790000000", b"1"]
    assert world.model.execute(("EXISTS", b"a")) == 0
