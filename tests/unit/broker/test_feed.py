"""What watchers get: their filters, the samples, the bounds, and what they never see."""

from __future__ import annotations

import msgspec
import pytest

from cachecast.broker.feed import MAX_DATA, MAX_WAITING, MAX_WATCHES, SAMPLES, Feed, Wanted
from cachecast.errors import CapacityError
from cachecast.testing import open_test_broker


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def feed(clock):
    return Feed(clock, lambda: 1_700_000_000.0)


def test_nothing_is_taken_while_nobody_watches(feed):
    assert feed.tap is None
    first, second = feed.watch(Wanted()), feed.watch(Wanted())
    feed.unwatch(first)
    assert feed.tap is not None
    feed.unwatch(second)
    feed.unwatch(second)
    assert feed.tap is None


def test_of_each_kind_some_are_taken_and_the_rest_is_counted(feed, clock):
    watch = feed.watch(Wanted())
    for _ in range(3):
        for _ in range(SAMPLES + 7):
            feed.tap("event", "published", "1", "c")
        feed.tap("refusal", "refused", "1")
        clock.now += 0.1
    happenings, left_out = watch.take()
    assert [said.kind for said in happenings].count("event") == 3 * SAMPLES
    assert [said.kind for said in happenings].count("refusal") == 3
    assert left_out == {"event": 21}
    assert watch.take() == ([], {})


def test_who_does_not_read_loses_the_oldest_and_is_told_how_many(feed, clock):
    watch = feed.watch(Wanted())
    for number in range(MAX_WAITING + 5):
        clock.now += 0.1
        feed.tap("api", str(number), "1")
    happenings, left_out = watch.take()
    assert len(happenings) == MAX_WAITING
    assert happenings[0].what == "5"
    assert left_out == {"api": 5}


def test_so_many_watch_and_no_more(feed):
    for _ in range(MAX_WATCHES):
        feed.watch(Wanted())
    with pytest.raises(CapacityError, match="which is the most"):
        feed.watch(Wanted())


@pytest.mark.parametrize(
    ("wanted", "is_taken"),
    [
        (Wanted(), True),
        (Wanted(kinds=frozenset({"event"})), True),
        (Wanted(kinds=frozenset({"api"})), False),
        (Wanted(app="1"), True),
        (Wanted(app="2"), False),
        (Wanted(channels=("d", "c-1")), True),
        (Wanted(channels=("c-*",)), True),
        (Wanted(channels=("c-",)), False),
        (Wanted(socket_id="1.2"), True),
        (Wanted(socket_id="1.3"), False),
        (Wanted(user_id="u"), True),
        (Wanted(user_id="v"), False),
    ],
)
def test_a_filter_lets_through_what_it_names(feed, wanted, is_taken):
    watch = feed.watch(wanted)
    feed.tap("event", "published", "1", "c-1", "1.2", "u")
    assert bool(watch.take()[0]) is is_taken


@pytest.mark.parametrize("shows", [False, True])
def test_payloads_are_shown_if_and_only_if_the_operator_asked_for_it(feed, shows):
    feed.shows_payloads = shows
    watch = feed.watch(Wanted())
    feed.tap("event", "published", "1", "c" * 1_000, data="é" * 10_000)
    [said], _ = watch.take()
    assert said.n_bytes == 20_000
    assert said.data == ("é" * MAX_DATA if shows else None)
    assert len(said.channel) == 201


async def test_every_refusal_says_why_and_quotes_nobody(autojump_clock):
    async with open_test_broker() as broker:
        watch = broker.feed.watch(Wanted(kinds=frozenset({"refusal"})))
        broker.clients.journal.note(
            "refused", app="1", code=4009, reason="Invalid signature: Expected HMAC s3cr3t",
            socket_id="1.2",
        )  # fmt: skip
        [said], _ = watch.take()
        assert (said.text, said.code, said.socket_id) == ("Invalid signature", 4009, "1.2")


def test_half_a_character_harms_nobody(feed):
    """An embedder's strings are not looked at before; what is told must go into JSON."""
    watch = feed.watch(Wanted())
    feed.shows_payloads = True
    feed.tap("event", "published", "1", "c\ud83d", None, "u\udc00", event="e\ud83d", data="d\ud83d")
    [said], _ = watch.take()
    assert msgspec.json.encode(said)
    assert (said.channel, said.user_id, said.event, said.data) == (
        "c\ufffd", "u\ufffd", "e\ufffd", "d\ufffd",
    )  # fmt: skip
