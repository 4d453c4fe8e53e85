"""What the functions promise, by example: on the model, on Redis 7.0 and on Valkey 9.1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from cachecast.bus.answers import Entered, Greeting, Published
from cachecast.bus.calls import Facts
from cachecast.bus.faults import (
    CrowdedError,
    EpochError,
    FencedError,
    GraceError,
    LinkError,
    MismatchError,
)
from cachecast.bus.functions import Functions
from cachecast.bus.record import NO_VERSION, read_news, read_record, read_value
from tests.cluster.engines import ENGINES, Server, serving
from tests.cluster.sides import EngineSide, ModelSide, library_with_clock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachecast.bus.calls import Call
    from cachecast.bus.record import Record

APP = "4242"
LEASE_MS = 3_000
GRACE_MS = 1_500
LIFE_MS = 600_000


@pytest.fixture(scope="module", params=["model", *ENGINES])
def where(request: pytest.FixtureRequest) -> Iterator[Server | None]:
    if request.param == "model":
        yield None
        return
    with serving(request.param) as server:
        yield server


@pytest.fixture
def engine(where: Server | None) -> Iterator[ModelSide | EngineSide]:
    side = ModelSide() if where is None else EngineSide(where)
    yield side
    side.close()


class Node:
    """A node, as far as its engine knows it."""

    def __init__(self, engine: ModelSide | EngineSide, name: str = "a", **facts: Any) -> None:
        self.engine, self.to = engine, engine.functions
        self.facts = Facts(**{"node": name, "nonce": "1", "primaries": ("p/0",), **facts})
        self.epoch, self.session, self.number = 0, "", 0

    def ask(self, call: Call[Any]) -> Any:
        found = self.engine.execute(call)
        if found is MismatchError:
            raise MismatchError("")
        if isinstance(found, tuple) and found and isinstance(found[0], type):
            if found[0] is GraceError:
                raise GraceError(found[1], found[2])
            if issubclass(found[0], LinkError):
                raise found[0](found[1])
        return found

    def hello(self, *, seen: int | None = None) -> Greeting:
        found = self.ask(
            self.to.hello(
                self.facts,
                seen_epoch=self.epoch if seen is None else seen,
                session=self.session,
                lease_ms=LEASE_MS,
                grace_ms=GRACE_MS,
            )
        )
        self.epoch, self.session = found.epoch, found.session
        return found

    def publish(self, channel: str, payload: bytes, life_ms: int = LIFE_MS) -> Published:
        self.number += 1
        event = self.to.event(APP, channel, payload, lifetime_ms=life_ms)
        return self.ask(self.to.publish(self.epoch, self.session, self.number, [event]))

    def read(self, channel: str) -> Record | None:
        return self.ask(self.to.read(self.epoch, [self.to.keys.value(APP, channel)]))[1][0]

    def join(self, user: str, **options: Any) -> Any:
        options = {"name": "presence-x", "info": b"{}", **options}
        return self.ask(self.to.enter(self.epoch, self.session, "m", APP, user, **options))

    def leave(self, user: str) -> Any:
        return self.ask(self.to.leave(self.epoch, self.session, "m", APP, user, name="presence-x"))

    def roster(self) -> set[str]:
        return set(self.ask(self.to.page(self.epoch, "m", APP, "presence-x"))[1])

    def beat(self) -> Any:
        return self.ask(self.to.beat(self.epoch, self.session, LEASE_MS))

    def reap(self) -> int:
        n = 0
        while (found := self.ask(self.to.reap(self.epoch, 2)))[0] or found[1]:
            n += found[0]
        return n


def together(engine: ModelSide | EngineSide, *names: str, **facts: Any) -> list[Node]:
    """Nodes whose grace is over, and who are alive."""
    nodes = [Node(engine, name, **facts) for name in names]
    for node in nodes:
        node.hello()
    engine.turn_clock(GRACE_MS * 1000)
    for node in nodes:
        node.beat()
    engine.turn_clock(1000)
    return nodes


def news_of(engine: ModelSide | EngineSide) -> list[tuple[bool, str]]:
    return [
        read_news(payload)[:2]
        for topic, payload in engine.messages
        if b"presence-x" in topic and payload[:1] in {b"+", b"-"}
    ]


# --- values


def test_a_value_carries_all_that_a_node_must_know_of_it(engine: ModelSide | EngineSide) -> None:
    """Read later, or received: the same record."""
    (node,) = together(engine, "a")
    event = node.to.event(APP, "cache-x", b"\0payload", exclude="1.2", lifetime_ms=5_000)
    published = node.ask(node.to.publish(node.epoch, node.session, 1, [event]))

    record = node.read("cache-x")

    assert record is not None
    assert record.order == (node.epoch, published.version)
    assert record.published_at_us == engine.now_us
    assert (record.lifetime_ms, record.exclude, record.payload) == (5_000, "1.2", b"\0payload")
    topic, message = engine.messages[-1]
    assert topic.endswith(b"c:4242/cache-x")
    assert read_value(message) == (NO_VERSION, record)
    assert read_record(record.pack()) == record


def test_versions_grow_though_the_clock_stands(engine: ModelSide | EngineSide) -> None:
    """And each message names the value before it."""
    (node,) = together(engine, "a")
    first, second = node.publish("cache-x", b"1"), node.publish("cache-x", b"2")

    previous, record = read_value(engine.messages[-1][1])

    assert second.version > first.version
    assert previous == (node.epoch, first.version)
    assert record.version == second.version


def test_events_of_a_batch_follow_each_other_and_plain_ones_are_not_kept(
    engine: ModelSide | EngineSide,
) -> None:
    """One call, one step."""
    (node,) = together(engine, "a")
    events = [
        node.to.event(APP, "cache-x", b"1", lifetime_ms=LIFE_MS),
        node.to.event(APP, "plain", b"2"),
        node.to.event(APP, "cache-y", b"3", lifetime_ms=LIFE_MS),
    ]
    found = node.ask(node.to.publish(node.epoch, node.session, 1, events))

    kinds = [payload[:1] for _, payload in engine.messages[-3:]]
    assert kinds == [b"V", b"E", b"V"]
    assert read_record(engine.messages[-2][1], 1).version == found.version + 1
    assert node.read("plain") is None
    last = node.read("cache-y")
    assert last is not None
    assert last.version == found.version + 2


def test_nobody_reads_a_value_in_the_instant_of_its_deadline(
    engine: ModelSide | EngineSide,
) -> None:
    """To the microsecond, however late the engine frees it."""
    (node,) = together(engine, "a")
    node.publish("cache-x", b"1", 2_000)
    engine.turn_clock(2_000_000 - 1)
    assert node.read("cache-x") is not None

    engine.turn_clock(1)

    assert node.read("cache-x") is None


def test_a_publish_that_is_asked_again_is_done_once(engine: ModelSide | EngineSide) -> None:
    """And says the same version; one that is long past says that nobody knows."""
    (node,) = together(engine, "a")
    first = node.publish("cache-x", b"1")
    node.publish("cache-x", b"2")
    n = len(engine.messages)

    def again(number: int) -> Published:
        event = node.to.event(APP, "cache-x", b"1", lifetime_ms=LIFE_MS)
        return node.ask(node.to.publish(node.epoch, node.session, number, [event]))

    assert again(1) == Published(first.version, is_repeat=True)
    assert len(engine.messages) == n
    assert not again(1 + 4096).is_repeat
    assert again(1).is_unknown
    assert node.read("cache-x") is not None


def test_a_miss_is_reported_once_until_there_was_a_value(engine: ModelSide | EngineSide) -> None:
    """By whichever node; and never while there is one."""
    a, b = together(engine, "a", "b", apps_with_webhooks=(APP,))
    note = a.to.note_miss

    assert a.ask(note(a.epoch, APP, "cache-x"))
    assert not b.ask(note(b.epoch, APP, "cache-x"))
    a.publish("cache-x", b"1", 2_000)
    assert not b.ask(note(b.epoch, APP, "cache-x"))
    engine.turn_clock(2_000_000)
    assert b.ask(note(b.epoch, APP, "cache-x"))

    found = a.ask(a.to.collect(a.epoch, a.session, APP, 60_000))
    assert [body for _, body in found.events] == [b"xcache-x"] * 2


def test_a_miss_that_is_to_be_reported_again_later_is_not_yet(
    engine: ModelSide | EngineSide,
) -> None:
    """While subscribers keep missing; of a channel without a miss there is nothing to tell."""
    (node,) = together(engine, "a", apps_with_webhooks=(APP,))

    assert node.ask(node.to.rearm_miss(APP, "cache-x", 200)) == 0
    assert node.ask(node.to.note_miss(node.epoch, APP, "cache-x"))
    assert node.ask(node.to.rearm_miss(APP, "cache-x", 10_000)) == 1
    assert not node.ask(node.to.note_miss(node.epoch, APP, "cache-x"))


def test_a_miss_is_reported_again_by_an_engine_that_lost_the_value(
    engine: ModelSide | EngineSide,
) -> None:
    """A mark of an earlier epoch says nothing."""
    (node,) = together(engine, "a")
    assert node.ask(node.to.note_miss(node.epoch, APP, "cache-x"))
    engine.become_other()
    node.hello()
    engine.turn_clock(GRACE_MS * 1000)

    assert node.ask(node.to.note_miss(node.epoch, APP, "cache-x"))


def test_a_value_is_forgotten_only_if_it_is_still_that_one(
    engine: ModelSide | EngineSide,
) -> None:
    """Whoever frees the oldest must not free what was published meanwhile."""
    (node,) = together(engine, "a")
    first = node.publish("cache-x", b"1")
    key = node.to.keys.value(APP, "cache-x")
    other = node.to.keys.value(APP, "cache-y")
    second = node.publish("cache-x", b"2")

    def forget(version: int) -> int:
        order = (node.epoch, version)
        return node.ask(node.to.forget(node.epoch, [(key, order), (other, order)]))

    assert forget(first.version) == 0
    assert node.read("cache-x") is not None
    assert forget(second.version) == 1
    assert node.read("cache-x") is None


def test_two_libraries_work_side_by_side(where: Server | None) -> None:
    """Nodes of two versions, during an upgrade, on the same data."""
    if where is None:
        return  # the model has one text
    side = EngineSide(where)
    name, text = library_with_clock()
    side.plain.must("FUNCTION", "LOAD", "REPLACE", text.replace(name, f"{name}_2"))
    (node,) = together(side, "a")
    node.publish("cache-x", b"1")

    node.to = Functions(node.to.keys, f"{name}_2")
    assert not node.hello().is_new
    record = node.read("cache-x")
    side.close()

    assert record is not None
    assert record.payload == b"1"


def test_large_values_are_read_in_parts(engine: ModelSide | EngineSide) -> None:
    """A read gives a quarter of a megabyte and the rest another time."""
    (node,) = together(engine, "a")
    for number in range(4):
        node.publish(f"cache-{number}", b"x" * 150_000)
    keys = [node.to.keys.value(APP, f"cache-{number}") for number in range(4)]

    _, first = node.ask(node.to.read(node.epoch, keys))
    _, second = node.ask(node.to.read(node.epoch, keys[len(first) :]))

    assert (len(first), len(second)) == (2, 2)


def test_keys_of_strangers_are_left_alone_and_do_no_harm(
    engine: ModelSide | EngineSide,
) -> None:
    """Even where somebody else put a list in the place of a value."""
    if isinstance(engine, ModelSide):
        return  # it has no other data
    (node,) = together(engine, "a")
    plain = engine.plain
    plain.must("SET", f"{engine.prefix}theirs", "1")
    plain.must("RPUSH", node.to.keys.value(APP, "cache-x"), "1")
    plain.must("SET", node.to.keys.value(APP, "cache-y"), "short")

    assert node.read("cache-x") is None
    assert node.read("cache-y") is None
    node.publish("cache-x", b"1")
    assert node.read("cache-x") is not None
    assert plain.must("GET", f"{engine.prefix}theirs") == b"1"
    left = set(plain.must("KEYS", f"{engine.prefix}*"))
    assert {key for key in left if not key.startswith(f"{engine.prefix}cc:".encode())} == {
        f"{engine.prefix}theirs".encode()
    }


# --- epochs


def fail(engine: ModelSide | EngineSide, how: str) -> None:
    if how == "flush":
        engine.flush()
    elif how == "failover":
        engine.become_other()
    else:
        engine.turn_clock(-1)


@pytest.mark.parametrize("how", ["flush", "failover", "clock"])
def test_an_engine_that_is_not_the_same_does_nothing_until_hello(
    engine: ModelSide | EngineSide, how: str
) -> None:
    """Whatever it lost: its nodes hear EPOCH, and a new one begins above all."""
    (node,) = together(engine, "a")
    node.publish("cache-x", b"1")
    fail(engine, how)
    if how == "failover":
        # Nobody has a connection to it that is not new, and a new one begins with hello.
        Node(engine, "z").hello()
    old = node.epoch
    n = len(engine.messages)

    for attempt in (
        lambda: node.publish("cache-x", b"2"),
        lambda: node.read("cache-x"),
        node.beat,
        lambda: node.join("ann"),
        node.reap,
    ):
        with pytest.raises(EpochError):
            attempt()

    assert len(engine.messages) == n
    greeting = node.hello()
    assert greeting.epoch > old
    assert greeting.is_new


def test_who_knows_more_than_the_engine_begins_a_new_epoch(
    engine: ModelSide | EngineSide,
) -> None:
    """A node that outlived two engines meets one that a newcomer greeted first."""
    (node,) = together(engine, "a")
    found = Node(engine, "b").hello(seen=node.epoch + 5)

    assert found.epoch > node.epoch + 5
    with pytest.raises(EpochError):
        node.beat()


def test_a_new_epoch_waits_for_those_who_know(engine: ModelSide | EngineSide) -> None:
    """Reads, publishes and misses hear how long; beats and offers do not wait."""
    node = Node(engine)
    greeting = node.hello()
    assert greeting.grace_ms == GRACE_MS
    engine.turn_clock(500_000)

    for attempt in (
        lambda: node.publish("cache-x", b"2"),
        lambda: node.read("cache-x"),
        lambda: node.ask(node.to.note_miss(node.epoch, APP, "cache-x")),
        lambda: node.join("ann"),
        lambda: node.leave("ann"),
    ):
        with pytest.raises(GraceError) as caught:
            attempt()
        assert caught.value.wait_s == 1.0
    node.beat()
    engine.turn_clock(1_000_000)
    node.publish("cache-x", b"2")


def test_the_newest_offer_is_restored_with_its_own_order_and_the_life_that_remains(
    engine: ModelSide | EngineSide,
) -> None:
    """Whoever comes first; and the engine's own copy of an earlier epoch counts for nothing."""
    a, b = together(engine, "a", "b")
    a.publish("cache-x", b"old")
    old = a.read("cache-x")
    a.publish("cache-x", b"new")
    new = a.read("cache-x")
    a.publish("cache-y", b"nobody has it")
    assert old is not None
    assert new is not None
    engine.become_other()
    engine.turn_clock(-3_600_000_000)
    a.hello()
    b.hello()
    key = a.to.keys.value(APP, "cache-x")

    assert a.ask(a.to.offer(a.epoch, [(key, old, LIFE_MS - 1000)])) == 1
    assert b.ask(b.to.offer(b.epoch, [(key, new, LIFE_MS - 900)])) == 1
    assert a.ask(a.to.offer(a.epoch, [(key, old, LIFE_MS - 1000)])) == 0
    assert a.ask(a.to.offer(a.epoch, [(a.to.keys.value(APP, "cache-z"), old, 0)])) == 0
    offered_at = engine.now_us
    engine.turn_clock(GRACE_MS * 1000)

    found = a.read("cache-x")
    assert found is not None
    assert (found.order, found.payload) == (new.order, b"new")
    assert found.deadline_us == offered_at + (LIFE_MS - 900) * 1000
    assert a.read("cache-y") is None
    assert a.ask(a.to.offer(a.epoch, [(key, replace(new, epoch=a.epoch), LIFE_MS)])) == -1


def test_a_later_epoch_beats_a_larger_version(engine: ModelSide | EngineSide) -> None:
    """A clock that was set back makes smaller versions of newer values."""
    (node,) = together(engine, "a")
    node.publish("cache-x", b"1")
    record = node.read("cache-x")
    assert record is not None
    engine.flush()
    node.hello()
    key = node.to.keys.value(APP, "cache-x")
    later = replace(record, epoch=record.epoch + 1, version=record.version - 1, payload=b"2")

    for copy in (record, later, record):
        node.ask(node.to.offer(node.epoch, [(key, copy, LIFE_MS)]))
    engine.turn_clock(GRACE_MS * 1000)

    found = node.read("cache-x")
    assert found is not None
    assert found.payload == b"2"


def test_what_follows_a_restored_value_names_it_as_the_one_before(
    engine: ModelSide | EngineSide,
) -> None:
    """So that a node that holds it does not see a gap."""
    (node,) = together(engine, "a")
    node.publish("cache-x", b"1")
    record = node.read("cache-x")
    assert record is not None
    engine.flush()
    node.hello()
    node.ask(node.to.offer(node.epoch, [(node.to.keys.value(APP, "cache-x"), record, 1_000)]))
    engine.turn_clock(GRACE_MS * 600)
    engine.turn_clock(GRACE_MS * 400)
    node.number = 0
    node.publish("cache-x", b"2")

    assert read_value(engine.messages[-1][1])[0] == record.order


# --- who may join


@pytest.mark.parametrize(
    "facts",
    [
        {"node": "a"},
        {"protocol": 2},
        {"primaries": ("p/0", "q/0")},
        {"primaries": ("q/0",)},
        {"seals": ("aa",)},
    ],
)
def test_nodes_that_do_not_agree_refuse_each_other(
    engine: ModelSide | EngineSide, facts: dict[str, Any]
) -> None:
    """Until the other one's lease has ended."""
    together(engine, "a")
    other = (
        Node(engine, **{"name": "b", "nonce": "2", **facts})
        if "node" not in facts
        else Node(engine, "a", nonce="2")
    )

    with pytest.raises(MismatchError):
        other.hello()
    engine.turn_clock(LEASE_MS * 1000)
    engine.turn_clock(1000)
    assert other.hello().is_new


def test_a_refusal_says_in_what_nodes_differ(where: Server | None) -> None:
    """Both sides, and what to do."""
    if where is None:
        return  # the model says it in fewer words
    side = EngineSide(where)
    together(side, "a", seals=("k1",))
    words = []
    for facts in (
        {"node": "a", "seals": ("k1",)},
        {"protocol": 2},
        {"primaries": ("q/0",)},
        {"seals": ("k2", "k3")},
    ):
        given = {"node": "b", "nonce": "2", "primaries": ("p/0",), "seals": ("k1",), **facts}
        call = side.functions.hello(
            Facts(**given), seen_epoch=0, session="", lease_ms=1, grace_ms=1
        )
        words.append(str(side.plain.execute(call.arguments)))
    side.close()

    assert "Another node calls itself a." in words[0]
    assert "speaks version 2" in words[1]
    assert "node a version 1" in words[1]
    assert "primaries q/0, node a p/0" in words[2]
    assert "k2,k3 here and k1 there" in words[3]


@pytest.mark.parametrize(
    ("mine", "its", "is_fine"),
    [
        (("k1",), ("k1", "k2"), True),
        (("k2", "k1"), ("k1", "k2"), True),
        (("k2", "k1"), ("k1",), False),
        (("k2",), ("k2", "k1"), True),
        ((), ("k1",), False),
    ],
)
def test_seal_keys_are_rotated_in_three_steps(
    engine: ModelSide | EngineSide, mine: tuple[str, ...], its: tuple[str, ...], is_fine: bool
) -> None:
    """A new key goes to the end everywhere, then to the front, then the old one goes."""
    together(engine, "a", seals=its)
    other = Node(engine, "b", seals=mine)
    if is_fine:
        other.hello()
    else:
        with pytest.raises(MismatchError):
            other.hello()


def test_hello_again_keeps_the_session_and_a_lost_answer_costs_nothing(
    engine: ModelSide | EngineSide,
) -> None:
    """A session that the node never heard of holds nothing, and goes."""
    (node,) = together(engine, "a")
    node.join("ann")
    session = node.session
    assert not node.hello().is_new
    assert node.session == session
    node.session = ""

    assert node.hello().is_new
    node.join("ann")
    node.reap()

    assert node.roster() == {"ann"}
    assert news_of(engine) == [(True, "ann")]


# --- members and nodes


def test_a_member_comes_and_goes_once_for_all_nodes(engine: ModelSide | EngineSide) -> None:
    """However many nodes it is connected to."""
    a, b = together(engine, "a", "b", apps_with_webhooks=(APP,))
    first = a.join("ann", info=b'{"n":1}', wants_roster=True)
    second = b.join("ann", info=b'{"n":2}', wants_roster=True)
    again = b.join("ann")
    a.leave("ann")
    b.leave("ann")
    b.leave("ann")

    assert (first.is_first, first.fields) == (True, {"ann": b'{"n":1}'})
    assert (second.is_first, second.fields) == (False, {"ann": b'{"n":1}'})
    assert not again.is_first
    assert news_of(engine) == [(True, "ann"), (False, "ann")]
    found = a.ask(a.to.collect(a.epoch, a.session, APP, 60_000))
    assert [body for _, body in found.events] == [b"+presence-x\0ann", b"-presence-x\0ann"]


def test_a_full_channel_takes_only_those_who_are_there(engine: ModelSide | EngineSide) -> None:
    """Another connection of a member is no new member."""
    a, b = together(engine, "a", "b")
    a.join("ann", limit=1)

    with pytest.raises(CrowdedError):
        b.join("bob", limit=1)
    b.join("ann", limit=1)
    assert a.ask(a.to.sizes(a.epoch, APP, ["presence-x", "presence-y"])) == (1, 0)


def test_a_channel_is_occupied_and_vacated_once_and_counted_exactly(
    engine: ModelSide | EngineSide,
) -> None:
    """Numbers of nodes add up."""
    a, b = together(engine, "a", "b", apps_with_webhooks=(APP,))

    def holds(node: Node, n: int) -> int:
        if n:
            return node.ask(node.to.enter(node.epoch, node.session, "o", APP, "c", n=n)).total
        return node.ask(node.to.leave(node.epoch, node.session, "o", APP, "c"))[1]

    totals = [holds(a, 1), holds(b, 3), holds(a, 2), holds(a, 0), holds(b, 0)]

    assert totals == [1, 4, 5, 3, 0]
    told = [payload for topic, payload in engine.messages if topic.endswith(b"/c")]
    assert told == [b"#1", b"#4", b"#5", b"#3", b"#0"]
    found = a.ask(a.to.collect(a.epoch, a.session, APP, 60_000))
    assert [body for _, body in found.events] == [b"oc", b"vc"]
    assert a.ask(a.to.look(a.epoch, "o", APP, ["c", "d"])) == (0, 0)


def test_a_dead_node_loses_what_only_it_held_and_is_fenced(
    engine: ModelSide | EngineSide,
) -> None:
    """In steps; what others hold too stays."""
    a, b = together(engine, "a", "b")
    for user in ("ann", "bob", "cid"):
        a.join(user)
    b.join("cid")
    for _ in range(10):
        engine.turn_clock(400_000)
        found = b.beat()

    assert found.has_dead
    assert b.reap() == 3
    assert b.roster() == {"cid"}
    assert sorted(news_of(engine)[3:]) == [(False, "ann"), (False, "bob")]
    for attempt in (a.beat, lambda: a.join("ann")):
        with pytest.raises(FencedError):
            attempt()
    assert a.hello().is_new
    a.join("ann")
    assert news_of(engine)[-1] == (True, "ann")


def test_members_leave_before_their_channel_is_vacated(engine: ModelSide | EngineSide) -> None:
    """Also where both are taken back in many steps; the receiver of webhooks relies on it."""
    a, b = together(engine, "a", "b", apps_with_webhooks=(APP,))
    for user in range(7):
        a.join(f"user-{user}")
    a.ask(a.to.enter(a.epoch, a.session, "o", APP, "presence-x"))
    a.ask(a.to.retire(a.epoch, a.session))

    assert b.reap() == 8

    found = b.ask(b.to.collect(b.epoch, b.session, APP, 60_000))
    kinds = [body[:1] for _, body in found.events]
    assert kinds == [b"+"] * 7 + [b"o"] + [b"-"] * 7 + [b"v"]


def test_a_node_is_fenced_as_soon_as_reaping_it_has_begun(
    engine: ModelSide | EngineSide,
) -> None:
    """It must not renew a lease of which half is gone."""
    a, b = together(engine, "a", "b")
    for user in ("ann", "bob", "cid"):
        a.join(user)
    for _ in range(10):
        engine.turn_clock(400_000)
        b.beat()
    while (step := b.ask(b.to.reap(b.epoch, 1))) == (0, True):
        pass  # the ghost of the first grace, which holds nothing
    assert step == (1, True)

    with pytest.raises(FencedError):
        a.beat()
    assert b.beat().has_dead


def test_an_engine_that_stood_still_declares_nobody_dead(engine: ModelSide | EngineSide) -> None:
    """All leases have ended then; those who live beat first."""
    a, b = together(engine, "a", "b")
    a.join("ann")
    engine.turn_clock(60_000_000)

    assert not b.beat().has_dead
    for _ in range(3):
        assert b.ask(b.to.reap(b.epoch)) == (0, False)
    a.beat()
    assert a.roster() == {"ann"}
    assert news_of(engine) == [(True, "ann")]


def test_after_a_failover_those_whom_nobody_entered_again_are_announced_gone_once(
    engine: ModelSide | EngineSide,
) -> None:
    """Within the grace nothing is announced, not even those who are there again."""
    a, b = together(engine, "a", "b")
    for user in ("ann", "bob"):
        a.join(user)
    engine.become_other()
    a.hello()
    b.hello()
    a.join("ann", again=True)
    assert news_of(engine)[2:] == []
    for _ in range(4):
        assert not a.beat().has_dead
        engine.turn_clock(GRACE_MS * 250)
    engine.turn_clock(2_000)
    assert b.beat().has_dead

    a.reap()

    assert a.roster() == {"ann"}
    assert news_of(engine)[2:] == [(False, "bob")]


def test_after_a_restart_a_ghost_remembers_whom_only_the_dead_node_held(
    engine: ModelSide | EngineSide,
) -> None:
    """The engine is empty, and b knows a's members from its roster."""
    a, b = together(engine, "a", "b")
    a.join("ann")
    b.join("bob")
    engine.flush()
    b.hello()
    ghost = b.to.ghost(b.epoch)
    for session, user in ((b.session, "bob"), (ghost, "ann"), (ghost, "bob")):
        b.ask(b.to.enter(b.epoch, session, "m", APP, user, name="presence-x", again=True))
    for _ in range(12):
        engine.turn_clock(400_000)
        b.beat()

    # One that comes when the grace is over changes nothing, and is no fault of the node's session.
    late = b.to.enter(b.epoch, ghost, "m", APP, "cid", name="presence-x", again=True)
    assert b.ask(late) == Entered(is_first=False, total=0, n_fields=0)
    b.reap()

    assert b.roster() == {"bob"}
    assert news_of(engine) == [(True, "ann"), (True, "bob"), (False, "ann")]


def test_a_node_that_says_goodbye_is_reaped_at_once(engine: ModelSide | EngineSide) -> None:
    """An orderly end waits for no lease."""
    a, b = together(engine, "a", "b")
    a.join("ann")
    assert a.ask(a.to.retire(a.epoch, a.session))
    assert not a.ask(a.to.retire(a.epoch, "nobody"))

    assert b.beat().has_dead
    assert b.reap() == 1
    assert news_of(engine) == [(True, "ann"), (False, "ann")]


def test_what_nodes_count_adds_up_and_is_forgotten_with_them(
    engine: ModelSide | EngineSide,
) -> None:
    """For limits that hold for all nodes together."""
    a, b = together(engine, "a", "b")

    def beat(node: Node, n: int) -> tuple[int, ...]:
        return node.ask(
            node.to.beat(node.epoch, node.session, LEASE_MS, ((f"{APP}/bytes", n), ("7", 0)))
        ).gauges

    assert beat(a, 5) == (5, 0)
    assert beat(b, 2) == (7, 0)
    assert beat(a, 4) == (6, 0)
    a.ask(a.to.retire(a.epoch, a.session))
    b.reap()
    assert beat(b, 2) == (2, 0)


def test_users_are_online_on_whichever_node(engine: ModelSide | EngineSide) -> None:
    """Those who watch them hear the first and the last."""
    a, b = together(engine, "a", "b")
    for node in (a, b):
        node.ask(node.to.enter(node.epoch, node.session, "u", APP, "ann"))
    assert a.ask(a.to.look(a.epoch, "u", APP, ["ann", "bob"])) == (2, 0)
    for node in (a, b):
        node.ask(node.to.leave(node.epoch, node.session, "u", APP, "ann"))

    topic = a.to.keys.user_topic(APP, "ann").removeprefix(a.to.keys.prefix.encode())
    assert [payload for where, payload in engine.messages if where == topic] == [b"+", b"-"]


# --- ends and webhooks


def test_terminations_are_told_and_kept_for_those_who_missed_them(
    engine: ModelSide | EngineSide,
) -> None:
    """A node that sees a hole knows that it does not know all."""
    (node,) = together(engine, "a")
    ids = [node.ask(node.to.terminate(node.epoch, APP, user)) for user in ("ann", "bob/=", "cid")]

    newest, entries = node.ask(node.to.ended(node.epoch, ids[0]))

    assert newest == ids[2]
    assert [(entry.id, entry.previous, entry.user_id) for entry in entries] == [
        (ids[1], ids[0], "bob/="),
        (ids[2], ids[1], "cid"),
    ]
    assert node.ask(node.to.ended(node.epoch)) == (ids[2], ())
    told = [payload for topic, payload in engine.messages if topic.endswith(b"control")][-1]
    assert told == f"t{ids[2]} {ids[1]} {APP}/cid".encode()


def test_one_courier_gets_the_events_until_its_lease_ends(
    engine: ModelSide | EngineSide,
) -> None:
    """In order, and again whatever was not settled."""
    a, b = together(engine, "a", "b", apps_with_webhooks=(APP,))
    for body in (b"1", b"2", b"3"):
        a.ask(a.to.hook(a.epoch, APP, body))
    a.ask(a.to.hook(a.epoch, "no webhooks", b"x"))

    mine = a.ask(a.to.collect(a.epoch, a.session, APP, 60_000))
    its = b.ask(b.to.collect(b.epoch, b.session, APP, 60_000))
    ids = [id_ for id_, _ in mine.events]
    assert a.ask(a.to.settle(a.epoch, a.session, APP, ids[:1])) == 1
    assert b.ask(b.to.settle(b.epoch, b.session, APP, ids[1:])) == -1
    rest = a.ask(a.to.collect(a.epoch, a.session, APP, 60_000))
    later = a.ask(a.to.collect(a.epoch, a.session, APP, 60_000, ids[1]))

    assert [body for _, body in mine.events] == [b"c1", b"c2", b"c3"]
    assert (its.is_courier, its.events) == (False, ())
    assert [body for _, body in rest.events] == [b"c2", b"c3"]
    assert [body for _, body in later.events] == [b"c3"]


@pytest.mark.slow
def test_events_past_the_bound_are_lost_the_oldest_first_and_counted(
    engine: ModelSide | EngineSide,
) -> None:
    """The stream is bounded, and says what it lost."""
    (node,) = together(engine, "a", apps_with_webhooks=(APP,))
    for number in range(10_003):
        node.engine.execute(node.to.hook(node.epoch, APP, b"%d" % number))

    found = node.ask(node.to.collect(node.epoch, node.session, APP, 60_000))

    assert (found.n_lost, found.events[0][1]) == (3, b"c3")
    assert len(found.events) == 200
    assert node.ask(node.to.collect(node.epoch, node.session, APP, 60_000)).n_lost == 0


def test_a_roster_of_hundreds_comes_in_pages(engine: ModelSide | EngineSide) -> None:
    """None of which stops the engine for long."""
    (node,) = together(engine, "a")
    names = {f"user-{number}" for number in range(700)}
    for name in sorted(names):
        node.join(name, info=b"x" * 100)
    found = node.join("user-0", wants_roster=True)
    seen, cursor = set(found.fields), found.cursor
    while cursor not in {"", "0"}:
        cursor, fields = node.ask(node.to.page(node.epoch, "m", APP, "presence-x", cursor))
        seen |= set(fields)

    assert seen == names
    assert found.n_fields == 700
    if isinstance(engine, EngineSide):
        assert len(found.fields) < 400
