"""The checker itself: it accuses what is wrong, and nothing that can be explained."""

from __future__ import annotations

from math import inf

import pytest

from tests.cluster.proof.checker import check, count_near
from tests.cluster.proof.history import (
    MISS,
    Disturbance,
    History,
    Listening,
    Loss,
    Publication,
)
from tests.cluster.proof.verdict import Violation, excerpt

CACHE, PLAIN, ROOM = "cache-a", "a", "presence-a"


def _published(channel=CACHE, until=6, **changes):
    """v1 to v5, one every ten seconds, each answered after a second."""
    return [
        Publication(f"v{n}", channel, "n1", 10.0 * n, 10.0 * n + 1, **changes)
        for n in range(1, until)
    ]


def _history(*listenings, publications=None, **fields):
    publications = _published() if publications is None else publications
    return History(publications, list(listenings), **({"end": 100.0} | fields))


def _listening(asked, *heard, who="A", channel=CACHE, **fields):
    confirmed = fields.pop("confirmed", asked + 0.5)
    node = fields.pop("node", "n2")
    return Listening(who, node, channel, asked, confirmed, heard=list(heard), **fields)


def _rest(first, delay=2.0):
    return [(f"v{n}", 10 * n + delay) for n in range(first, 6)]


def _rules(history):
    return {violation.rule for violation in check(history)}


@pytest.mark.parametrize(
    "listening",
    [
        _listening(5, (MISS, 6), *_rest(1)),
        _listening(12, ("v1", 13), *_rest(2)),
        _listening(10.5, (MISS, 11), *_rest(1)),  # beside v1: before it
        _listening(10.5, ("v1", 11), *_rest(2)),  # or after it
        _listening(22, ("v2", 23), ("v3", 32), ended=35),
        _listening(12, confirmed=inf),
        _listening(12, ("v1", 12.5), ended=23.5),
    ],
)
def test_what_can_be_explained_is_not_accused(listening):
    assert check(_history(listening)) == []


@pytest.mark.parametrize(
    ("rule", "listening"),
    [
        ("order", _listening(5, (MISS, 6), ("v2", 22), ("v1", 23), ended=24)),
        ("twice", _listening(12, ("v1", 13), ("v2", 22), ("v2", 23), *_rest(3))),
        ("stale", _listening(32, ("v2", 33), ("v3", 34), ended=35)),
        ("miss", _listening(12, (MISS, 13), *_rest(2))),
        ("miss", _listening(12, ("v1", 13), (MISS, 22), *_rest(2))),
        ("gap", _listening(12, ("v1", 13), *_rest(3))),
        ("gap", _listening(12, ("v1", 13), ("v2", 22))),
        ("gap", _listening(12, ("v1", 13), ("v2", 22), ended=50)),
        ("silence", _listening(60)),
        ("unknown", _listening(55, ("v5", 55.2), ("v9", 57))),
        ("unknown", _listening(5, (MISS, 6), ("v1", 7), *_rest(2))),
    ],
)
def test_each_fault_is_found(rule, listening):
    assert rule in _rules(_history(listening))


def test_what_anybody_has_seen_counts_as_much_as_an_answer():
    # v2 was never answered; B heard it all the same before A subscribed.
    publications = _published(until=3)
    publications[1].answered = inf
    witness = _listening(12, ("v1", 12.5), ("v2", 20.5), who="B", ended=22)
    late = _listening(20.6, ("v1", 20.7), who="A", ended=21)

    assert _rules(_history(witness, late, publications=publications)) == {"stale"}
    early = _listening(20.4, ("v1", 20.7), who="A", ended=21)
    assert check(_history(witness, early, publications=publications)) == []


def test_a_publication_that_was_never_answered_may_come_or_not():
    publications = _published(until=3)
    publications[1].answered = inf

    for heard in ([("v1", 12.5)], [("v1", 12.5), ("v2", 21)]):
        assert check(_history(_listening(12, *heard), publications=publications)) == []


def test_a_publication_that_was_refused_is_not_heard():
    publications = _published(until=3)
    publications[1].answered, publications[1].is_refused = inf, True
    heard = _listening(12, ("v1", 12.5), ("v2", 21))

    assert _rules(_history(heard, publications=publications)) == {"refused"}
    assert check(_history(_listening(12, ("v1", 12.5)), publications=publications)) == []


def test_two_subscribers_hear_one_order():
    publications = [Publication(name, PLAIN, "n1", 10, 20) for name in ("x", "y")]
    one = _listening(5, ("x", 15), ("y", 16), who="A", channel=PLAIN)
    same = _listening(5, ("x", 15), ("y", 16), who="B", channel=PLAIN)
    other = _listening(5, ("y", 15), ("x", 16), who="B", channel=PLAIN)

    assert check(_history(one, same, publications=publications)) == []
    assert _rules(_history(one, other, publications=publications)) == {"order"}


def test_three_orders_contradict_each_other_though_no_two_do():
    publications = [Publication(name, CACHE, "n1", 10, 20) for name in "xyz"]
    rings = [
        _listening(5, (MISS, 6), (pair[0], 15), (pair[1], 16), who=pair, ended=17)
        for pair in ("xy", "yz", "zx")
    ]

    assert check(_history(*rings[:2], publications=publications)) == []
    (violation,) = check(_history(*rings, publications=publications))
    assert violation.rule == "order"
    assert all(who in violation.text for who in ("xy", "yz", "zx"))


def test_a_value_that_was_found_stands_behind_all_that_had_been_known():
    # x and y were sent side by side, and C heard y after x: so A must find y.
    publications = [Publication(name, CACHE, "n1", 10, 11) for name in "xy"]
    witness = _listening(5, (MISS, 6), ("x", 11.2), ("y", 11.3), who="C", ended=13)
    wrong = _listening(12, ("x", 12.1), who="A", ended=12.5)
    right = _listening(12, ("y", 12.1), who="A", ended=12.5)

    assert check(_history(witness, right, publications=publications)) == []
    assert _rules(_history(witness, wrong, publications=publications)) == {"stale"}


def test_a_plain_channel_promises_its_order_only():
    publications = _published(PLAIN)

    assert (
        check(_history(_listening(12, *_rest(2), channel=PLAIN), publications=publications)) == []
    )
    late = _listening(12, ("v1", 13), *_rest(2), channel=PLAIN)
    assert check(_history(late, publications=publications)) == []
    old = _listening(12, ("v2", 22), ("v1", 23), *_rest(3), channel=PLAIN)
    assert _rules(_history(old, publications=publications)) == {"order"}
    missing = _listening(12, *_rest(3), channel=PLAIN)
    assert _rules(_history(missing, publications=publications)) == {"gap"}


def test_a_client_event_does_not_come_back_and_is_no_value():
    publications = [Publication("e", PLAIN, "n2", 20, sender="A")]
    sender = _listening(12, who="A", channel=PLAIN)
    other = _listening(12, ("e", 21), who="B", channel=PLAIN)

    assert check(_history(sender, other, publications=publications)) == []
    echo = _listening(12, ("e", 21), who="A", channel=PLAIN)
    assert _rules(_history(echo, other, publications=publications)) == {"sender"}
    deaf = _listening(12, who="C", channel=PLAIN)
    assert _rules(_history(other, deaf, publications=publications)) == {"gap"}


# --- deadlines


def test_a_value_is_served_until_its_deadline_and_not_past_it():
    fields = {"publications": _published(until=2), "ttl_s": {CACHE: 20.0}}

    assert check(_history(_listening(28, ("v1", 29)), **fields)) == []
    assert check(_history(_listening(30.5, ("v1", 31)), **fields)) == []
    assert _rules(_history(_listening(31.5, ("v1", 32)), **fields)) == {"deadline"}
    assert check(_history(_listening(31.5, (MISS, 32)), **fields)) == []
    assert check(_history(_listening(28, (MISS, 29.5)), **fields)) == []  # clocks are bounds
    assert _rules(_history(_listening(27, (MISS, 28)), **fields)) == {"miss"}


# --- what was cut off, and what was forgotten


def test_who_was_cut_off_may_miss_what_passed_and_must_end_with_the_newest():
    cut = [Disturbance(15, 35, frozenset({"n2"}))]
    skipped = _listening(12, ("v1", 13), *_rest(4))

    assert check(_history(skipped, disturbances=cut)) == []
    assert _rules(_history(skipped, disturbances=[Disturbance(15, 35, frozenset({"n3"}))])) == {
        "gap"
    }
    lost = _listening(12, ("v1", 13), ("v2", 22))
    until_the_end = [Disturbance(15, 99)]
    assert _rules(_history(lost, disturbances=until_the_end)) == {"gap"}
    plain = _listening(12, ("v2", 22), channel=PLAIN)
    publications = _published(PLAIN)
    assert check(_history(plain, publications=publications, disturbances=until_the_end)) == []


def test_being_cut_off_excuses_nothing_that_is_old():
    cut = [Disturbance(0, 99)]

    assert _rules(_history(_listening(32, ("v2", 33), ended=34), disturbances=cut)) == {"stale"}
    assert _rules(_history(_listening(12, (MISS, 13), ended=14), disturbances=cut)) == {"miss"}


def test_what_no_living_node_had_may_be_forgotten():
    loss = [Loss(30, 33)]
    missing = _listening(35, (MISS, 36), ended=37)
    publications = _published(until=3)

    assert check(_history(missing, publications=publications, losses=loss)) == []
    holder = _listening(15, ("v1", 16), ("v2", 22), who="B")
    assert _rules(_history(holder, missing, publications=publications, losses=loss)) == {"miss"}
    dead = [Loss(30, 33, frozenset({"n2"}))]
    assert check(_history(holder, missing, publications=publications, losses=dead)) == []
    gone = _listening(15, ("v1", 16), ("v2", 22), who="B", ended=31)
    assert check(_history(gone, missing, publications=publications, losses=loss)) == []


def test_what_was_published_just_now_is_brought_back_by_its_node():
    publications = [*_published(until=2), Publication("v2", CACHE, "n1", 28.8, 28.9)]
    missing = _listening(35, (MISS, 36), ended=37)

    assert _rules(_history(missing, publications=publications, losses=[Loss(29, 31)])) == {"miss"}
    dead = [Loss(29, 31, frozenset({"n1"}))]
    assert check(_history(missing, publications=publications, losses=dead)) == []
    killed = {"losses": [Loss(29, 31)], "deaths": [("n1", 28.95)]}
    assert check(_history(missing, publications=publications, **killed)) == []
    older = _listening(35, ("v1", 36), ended=37)
    assert _rules(_history(older, publications=publications, losses=[Loss(29, 31)])) == {"stale"}


# --- rosters


def _member(user, asked, ended=inf, roster=(), news=(), node="n2", **fields):
    return Listening(
        user, node, ROOM, asked, asked + 0.5, ended, user, [], frozenset({user, *roster}),
        list(news), **fields,
    )  # fmt: skip


def test_members_that_come_and_go_once_are_not_accused():
    a = _member("A", 10, news=[(20.2, "+", "B"), (40.2, "-", "B")])
    b = _member("B", 20, ended=40, roster="A", node="n3")

    assert check(_history(a, b, publications=[])) == []


@pytest.mark.parametrize(
    ("rule", "news", "roster"),
    [
        ("transition", [(20.2, "+", "B"), (20.4, "+", "B")], ()),
        ("transition", [(20.2, "+", "B"), (30, "-", "B"), (31, "-", "B")], ()),
        ("transition", [(20.2, "+", "B"), (30, "-", "B"), (31, "+", "B")], ()),  # never left
        ("transition", [], ()),
        ("roster", [], ()),
        ("roster", [(20.2, "+", "B"), (50, "+", "C")], ()),
        ("roster", [(20.2, "+", "B")], "C"),
        ("roster", [(20.2, "+", "B"), (30, "-", "B")], ()),
    ],
)
def test_each_fault_of_a_roster_is_found(rule, news, roster):
    a = _member("A", 10, roster=roster, news=news)
    b = _member("B", 20, roster="A", node="n3")

    assert rule in _rules(_history(a, b, publications=[]))


def test_a_node_that_was_cut_off_may_tell_of_members_who_come_again():
    a = _member("A", 10, news=[(20.2, "+", "B"), (30, "-", "B"), (31, "+", "B")])
    b = _member("B", 20, roster="A", node="n3")
    cut = [Disturbance(25, 32, frozenset({"n3"}))]

    assert check(_history(a, b, publications=[], disturbances=cut)) == []


def test_whoever_left_without_a_word_is_in_nobodys_roster_at_the_end():
    a = _member("A", 10, news=[(20.2, "+", "B")])
    b = _member("B", 20, ended=40, roster="A", node="n3")

    assert _rules(_history(a, b, publications=[])) == {"roster"}


# --- what is told


def test_subscriptions_beside_a_publish_from_another_node_are_counted():
    near = _listening(10.015, ("v1", 10.1), ended=11)
    same = _listening(10.015, ("v1", 10.1), node="n1", ended=11)
    far = _listening(10.025, ("v1", 10.1), ended=11)
    refused = _listening(10.015, confirmed=inf)
    history = _history(near, same, far, refused)
    history.publications.append(Publication("w", "cache-b", "n3", 50, 51))

    assert count_near(history, 0.02) == 1


def test_an_excerpt_shows_what_happened_around_it():
    witness = _listening(31.8, ("v3", 32.2), who="B", ended=33)
    history = _history(
        _listening(32, ("v2", 32.1), ended=33), witness, disturbances=[Disturbance(0, 40)]
    )
    (violation,) = check(history)

    assert str(violation).startswith("[stale] cache-a at 32.100 s: A: v2 is stale")
    lines = excerpt(history, violation)
    assert [line.split(maxsplit=1)[1] for line in lines] == [
        "disturbed until 40.000: all nodes",
        "n2: B subscribes",
        "n2: *A subscribes",
        "n2: *A hears v2",
        "n2: B hears v3",
        "n2: B is confirmed",
    ]


def test_an_excerpt_is_short():
    many = [_listening(12 + n / 1000, ("v1", 12.5), who=f"c{n}", ended=13) for n in range(100)]

    assert len(excerpt(_history(*many), Violation("x", CACHE, "", 12.2))) == 40
