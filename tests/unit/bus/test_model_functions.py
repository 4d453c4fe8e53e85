"""What only the model can be asked: the rest is held against real engines in ``tests/cluster``."""

from __future__ import annotations

from cachecast.bus.calls import Facts
from cachecast.bus.functions import Functions
from cachecast.bus.model import Model
from cachecast.bus.shards import Keys

TO = Functions(Keys())


def test_values_and_marks_are_freed_by_its_clock() -> None:
    """A turned clock is enough; nothing waits in a test."""
    now_us = 1_790_000_000_000_000
    model = Model(lambda: now_us)
    model.libraries.add(TO.name)
    facts = Facts(node="n", nonce="x", primaries=("a/0",), apps_with_webhooks=("7",))
    hello = TO.hello(facts, seen_epoch=0, session="", lease_ms=3_000, grace_ms=0)
    greeting = hello.read(model.execute(hello.arguments))
    event = TO.event("7", "cache-x", b"x", lifetime_ms=1_000)
    model.execute(TO.publish(greeting.epoch, greeting.session, 1, [event]).arguments)
    miss = TO.note_miss(greeting.epoch, "7", "cache-x", remember_ms=5_000).arguments

    assert model.execute(TO.free([event.value]).arguments) == 1
    assert model.execute(miss) == 0
    now_us += 2_000_000
    assert model.execute(TO.free([event.value]).arguments) == 0
    assert [model.execute(miss), model.execute(miss)] == [1, 0]
    now_us += 6_000_000
    assert model.execute(miss) == 1
