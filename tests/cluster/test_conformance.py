"""The model and real engines give the same answers and publish the same messages.

What nodes do, in any order, with the clock turned, engines flushed and replaced: every call goes to
both, and both must say the same. So what a simulation shows on the model holds for an engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec.structs import replace

from cachecast.bus.answers import Collected, Greeting
from cachecast.bus.calls import Facts
from cachecast.bus.record import Record
from tests.cluster.sides import EngineSide, ModelSide

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.bus.calls import Call
    from cachecast.bus.functions import Functions
    from tests.cluster.engines import Server

APP = "4242"
CHANNELS = ("cache-a", "cache-b", "plain", "presence-c")
USERS = ("ann", "bob", "cid\n=,/")

nodes = st.integers(0, 2)
channels = st.sampled_from(CHANNELS)
users = st.sampled_from(USERS)


class Node:
    """What a node knows of the engine."""

    def __init__(self, number: int) -> None:
        self.facts = Facts(
            node=f"n{number}", nonce="x", primaries=("a/0",), apps_with_webhooks=(APP,)
        )
        self.epoch = 0
        self.session = ""
        self.number = 0


class Conformance(RuleBasedStateMachine):
    """Three nodes and two engines."""

    server: Server

    def __init__(self) -> None:
        super().__init__()
        self.sides = (ModelSide(), EngineSide(self.server))
        self.nodes = [Node(number) for number in range(3)]
        self.turned_us = 0
        self.n_faults = 0
        self.n_seen = 0
        self.records: dict[str, Record] = {}
        self.events: list[tuple[str, str]] = []
        self.ended: list[tuple[str, str]] = [("", "")]

    def teardown(self) -> None:
        for side in self.sides:
            side.close()

    def ask(self, make: Callable[[Functions], Call[Any]], *, is_sorted: bool = False) -> Any:
        """The answer of both."""
        model, engine = (side.execute(make(side.functions)) for side in self.sides)
        assert model == engine
        self.compare_messages(is_sorted=is_sorted)
        return model

    def compare_messages(self, *, is_sorted: bool = False) -> None:
        model, engine = (
            [_without_ids(message) for message in side.messages[self.n_seen :]]
            for side in self.sides
        )
        self.n_seen += len(model)
        assert (sorted(model) == sorted(engine)) if is_sorted else (model == engine)

    # --- time and engine

    @initialize()
    def all_come(self) -> None:
        for number in range(3):
            self.says_hello(number, is_first=True)
        self.turn(2_000_000)

    def turn(self, by_us: int) -> None:
        self.turned_us += by_us
        for side in self.sides:
            side.turn_clock(by_us)

    @precondition(lambda self: self.turned_us < 300_000_000)
    @rule(by_us=st.sampled_from([1, 1_000, 250_000, 1_600_000, 4_000_000]))
    def time_passes(self, by_us: int) -> None:
        self.turn(by_us)

    @precondition(lambda self: self.n_faults < 3)
    @rule(
        fault=st.sampled_from(["clock set back", "flushed", "replica took over"]),
        by_us=st.sampled_from([-1, -700_000]),
        is_mended=st.booleans(),
        is_grace_over=st.booleans(),
    )
    def engine_fails(self, fault: str, by_us: int, is_mended: bool, is_grace_over: bool) -> None:
        self.n_faults += 1
        for side in self.sides:
            if fault == "flushed":
                side.flush()
            elif fault == "replica took over":
                side.become_other()
        if fault == "flushed":
            # What a node knows of streams is of one epoch.
            self.ended, self.events = [("", "")], []
        if fault == "clock set back":
            self.turn(by_us)
        if is_mended:
            for number in range(3):
                self.says_hello(number, is_first=False)
            if is_grace_over:
                self.turn(1_500_000)

    # --- nodes

    @rule(number=nodes, is_first=st.booleans(), ahead=st.sampled_from([0, 0, 0, 7]))
    def says_hello(self, number: int, is_first: bool, ahead: int = 0) -> None:
        node = self.nodes[number]
        seen, session = (ahead, "") if is_first else (node.epoch + ahead, node.session)
        found = self.ask(
            lambda to: to.hello(
                node.facts, seen_epoch=seen, session=session, lease_ms=3_000, grace_ms=1_500
            )
        )
        if isinstance(found, Greeting):
            if found.is_new:
                node.number = 0
            node.epoch, node.session = found.epoch, found.session

    @rule(number=nodes, gauges=st.sampled_from([(), ((APP, 3),), ((APP, 1), ("7/x", 2))]))
    def beats(self, number: int, gauges: tuple[tuple[str, int], ...]) -> None:
        node = self.nodes[number]
        self.ask(lambda to: to.beat(node.epoch, node.session, 3_000, gauges))

    @rule(number=nodes)
    def reaps(self, number: int) -> None:
        node = self.nodes[number]
        self.ask(lambda to: to.reap(node.epoch), is_sorted=True)

    @rule(number=nodes)
    def retires(self, number: int) -> None:
        node = self.nodes[number]
        self.ask(lambda to: to.retire(node.epoch, node.session))

    # --- values

    @rule(
        number=nodes,
        names=st.lists(channels, min_size=1, max_size=3),
        exclude=st.sampled_from(["", "12.34"]),
        payload=st.binary(max_size=20),
        is_again=st.booleans(),
        life_ms=st.sampled_from([600_000, 1_000]),
    )
    def publishes(
        self, number: int, names: list[str], exclude: str, payload: bytes, is_again: bool,
        life_ms: int,
    ) -> None:  # fmt: skip
        node = self.nodes[number]
        node.number += not is_again
        lives = [life_ms if name.startswith("cache-") else 0 for name in names]
        self.ask(
            lambda to: to.publish(
                node.epoch,
                node.session,
                node.number,
                [
                    to.event(APP, name, payload, exclude=exclude, lifetime_ms=life)
                    for name, life in zip(names, lives, strict=True)
                ],
            )
        )

    @rule(number=nodes, names=st.lists(channels, max_size=3))
    def reads(self, number: int, names: list[str]) -> None:
        node = self.nodes[number]
        found = self.ask(
            lambda to: to.read(node.epoch, [to.keys.value(APP, name) for name in names])
        )
        if isinstance(found[0], int):
            for name, record in zip(names, found[1], strict=True):
                if record is not None:
                    self.records[name] = record

    @rule(
        number=nodes,
        remains_ms=st.sampled_from([400_000, 500_000, 0]),
        epochs=st.integers(-1, 1),
        versions=st.integers(-1, 1),
    )
    def offers(self, number: int, remains_ms: int, epochs: int, versions: int) -> None:
        node = self.nodes[number]
        copies = [
            (
                name,
                replace(record, epoch=record.epoch + epochs, version=record.version + versions),
            )
            for name, record in self.records.items()
        ]
        self.ask(
            lambda to: to.offer(
                node.epoch,
                [(to.keys.value(APP, name), record, remains_ms) for name, record in copies],
            )
        )

    @rule(number=nodes, versions=st.integers(0, 1))
    def forgets(self, number: int, versions: int) -> None:
        epoch, known = self.nodes[number].epoch, tuple(self.records.items())
        self.ask(
            lambda to: to.forget(
                epoch,
                [
                    (to.keys.value(APP, name), (record.epoch, record.version + versions))
                    for name, record in known
                ],
            )
        )

    @rule(number=nodes, name=channels)
    def notes_miss(self, number: int, name: str) -> None:
        node = self.nodes[number]
        self.ask(lambda to: to.note_miss(node.epoch, APP, name))

    # --- rosters

    @rule(
        number=nodes,
        user=users,
        info=st.sampled_from([b"", b"{}", b"\n=1,"]),
        limit=st.sampled_from([0, 2]),
        again=st.booleans(),
        wants=st.booleans(),
        is_ghost=st.sampled_from([False, False, False, True]),
    )
    def member_joins(
        self, number: int, user: str, info: bytes, limit: int, again: bool, wants: bool,
        is_ghost: bool,
    ) -> None:  # fmt: skip
        node = self.nodes[number]
        self.ask(
            lambda to: to.enter(
                node.epoch, to.ghost(node.epoch) if is_ghost else node.session, "m", APP, user,
                name="presence-c", info=info, limit=limit, again=again, wants_roster=wants,
            )
        )  # fmt: skip

    @rule(number=nodes, user=users)
    def member_leaves(self, number: int, user: str) -> None:
        node = self.nodes[number]
        self.ask(lambda to: to.leave(node.epoch, node.session, "m", APP, user, name="presence-c"))

    @rule(number=nodes, name=channels, n=st.integers(1, 3), again=st.booleans())
    def channel_is_occupied(self, number: int, name: str, n: int, again: bool) -> None:
        node = self.nodes[number]
        self.ask(lambda to: to.enter(node.epoch, node.session, "o", APP, name, n=n, again=again))

    @rule(number=nodes, name=channels)
    def channel_is_left(self, number: int, name: str) -> None:
        node = self.nodes[number]
        self.ask(lambda to: to.leave(node.epoch, node.session, "o", APP, name))

    @rule(number=nodes, user=users, comes=st.booleans())
    def user_signs_in_or_out(self, number: int, user: str, comes: bool) -> None:
        node = self.nodes[number]
        if comes:
            self.ask(lambda to: to.enter(node.epoch, node.session, "u", APP, user))
        else:
            self.ask(lambda to: to.leave(node.epoch, node.session, "u", APP, user))

    @rule(number=nodes, prefix=st.sampled_from(["", "a", "c"]))
    def rosters_are_read(self, number: int, prefix: str) -> None:
        epoch = self.nodes[number].epoch
        self.ask(lambda to: to.page(epoch, "m", APP, "presence-c", prefix=prefix))
        self.ask(lambda to: to.look(epoch, "o", APP, CHANNELS))
        self.ask(lambda to: to.look(epoch, "u", APP, USERS))
        self.ask(lambda to: to.look(epoch, "m", APP, USERS, name="presence-c"))
        self.ask(lambda to: to.sizes(epoch, APP, CHANNELS))

    # --- ends, webhooks

    @rule(number=nodes, user=users)
    def user_is_terminated(self, number: int, user: str) -> None:
        epoch = self.nodes[number].epoch
        found = self.both(lambda to: to.terminate(epoch, APP, user))
        if isinstance(found[0], str):
            self.ended.append(found)

    @rule(number=nodes, data=st.data())
    def terminations_are_read(self, number: int, data: st.DataObject) -> None:
        epoch = self.nodes[number].epoch
        known = data.draw(st.sampled_from(self.ended))
        answers = [
            side.execute(side.functions.ended(epoch, known[at]))
            for at, side in enumerate(self.sides)
        ]
        shapes = [
            [(entry.app_id, entry.user_id) for entry in found[1]]
            if isinstance(found[1], tuple)
            else found
            for found in answers
        ]
        assert shapes[0] == shapes[1]

    @rule(number=nodes)
    def client_event_is_hooked(self, number: int) -> None:
        epoch = self.nodes[number].epoch
        self.ask(lambda to: to.hook(epoch, APP, b"{}"))

    @rule(number=nodes, after=st.integers(0, 2), n_done=st.integers(0, 3))
    def courier_works(self, number: int, after: int, n_done: int) -> None:
        node = self.nodes[number]
        ids = self.events[after - 1] if 0 < after <= len(self.events) else ("", "")
        found = [
            side.execute(side.functions.collect(node.epoch, node.session, APP, 600_000, ids[at]))
            for at, side in enumerate(self.sides)
        ]
        if not isinstance(found[0], Collected):
            assert found[0] == found[1]
            return
        assert [body for _, body in found[0].events] == [body for _, body in found[1].events]
        assert (found[0].is_courier, found[0].n_lost) == (found[1].is_courier, found[1].n_lost)
        self.events = [(a[0], b[0]) for a, b in zip(found[0].events, found[1].events, strict=True)]
        done = self.events[:n_done]
        settled = [
            side.execute(
                side.functions.settle(
                    node.epoch, node.session, APP, [ids[at] for ids in done] or ["1-1"]
                )
            )
            for at, side in enumerate(self.sides)
        ]
        assert settled[0] == settled[1]

    def both(self, make: Callable[[Functions], Call[Any]]) -> tuple[Any, Any]:
        """The answers where they may differ in a stream's id only."""
        model, engine = (side.execute(make(side.functions)) for side in self.sides)
        assert type(model) is type(engine)
        if not isinstance(model, str):
            assert model == engine
        self.compare_messages()
        return model, engine


def _without_ids(message: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    topic, payload = message
    if topic.endswith(b"control") and payload.startswith(b"t"):
        payload = payload.split(b" ", 2)[2]
    return topic, payload


@pytest.mark.slow
def test_model_and_engine_say_the_same(server: Server) -> None:
    """Whatever nodes do, in whatever order."""

    class Machine(Conformance):
        pass

    Machine.server = server
    # A thousand of these are a minute; more by a longer night.
    n = min(settings().max_examples, 1_000)
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=n, stateful_step_count=60, deadline=None)
    )
