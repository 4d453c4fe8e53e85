"""The queues of webhook events: order, grace, bound, and that nothing is lost or counted twice."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import partial
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachecast.apps import App, Webhook
from cachecast.events import AppEvent
from cachecast.metrics import AppCounters
from cachecast.tasks.webhook_queue import GRACE_S, MAX_RELEASES_PER_STEP, AppQueue


def make_queue(*hooks, acknowledge_miss=lambda channel: None, **options):
    hooks = hooks or (Webhook(url="http://a.test/"),)
    app = App(id="1", key="k", secret="s", webhooks=hooks, **options)
    return AppQueue(app, AppCounters(), acknowledge_miss)


def client_event(channel, number):
    return AppEvent("client_event", channel, data=str(number))


def take_all(queue, url):
    """What the URL would be sent from now on, batch after batch."""
    sent = []
    while url.ready:
        batch = queue.take(url)
        sent += [item.event for item in batch]
        url.finish(batch)
        queue.settle(batch, is_accepted=True)
    return sent


def names(events):
    return [event.name for event in events]


def test_a_channel_is_taken_by_one_lane_at_a_time():
    """While one of its events is under way, the channel gives out no other; a second one does."""
    queue = make_queue()
    for event in (client_event("a", 1), client_event("a", 2), client_event("b", 3)):
        queue.add(event, 0.0, has_grace=True)
    url = queue.urls[0]

    first, second = queue.take(url), queue.take(url)

    assert [[item.event.data for item in batch] for batch in (first, second)] == [["1"], ["3"]]
    assert not url.ready

    url.finish(first)

    assert [item.event.data for item in queue.take(url)] == ["2"]


def test_a_batch_is_in_order_of_time_across_channels():
    """Channels take turns in the queue, but the receiver reads a chronicle."""
    queue = make_queue(batches_webhooks=True)
    for at, channel in enumerate("abab"):
        queue.add(client_event(channel, at), float(at), has_grace=True)

    batch = queue.take(queue.urls[0])

    assert [item.event.data for item in batch] == ["0", "1", "2", "3"]


def test_followers_count_for_the_bound_and_survive_the_loss_of_what_they_wait_for():
    """The longest-waiting goes, even if it is held; what waited behind it is sent."""
    queue = make_queue(max_queued_webhook_events=2)
    queue.add(AppEvent("channel_vacated", "a"), 0.0, has_grace=True)
    queue.add(AppEvent("cache_miss", "a"), 1.0, has_grace=True)

    assert queue.n_waiting == 2
    assert not queue.items

    queue.add(client_event("b", 1), 2.0, has_grace=True)

    assert queue.n_waiting == 2
    assert queue.outcomes["dropped"] == 1
    assert not queue.held
    assert sorted(names(take_all(queue, queue.urls[0]))) == ["cache_miss", "client_event"]


def test_many_followers_and_urls_do_not_break_the_bound():
    """Swallowing a departure turns each follower into one event for each URL; still bounded."""
    hooks = [Webhook(url=f"http://{host}.test/") for host in "abc"]
    queue = make_queue(*hooks, max_queued_webhook_events=4)
    queue.add(AppEvent("channel_vacated", "a"), 0.0, has_grace=True)
    for _ in range(3):
        queue.add(AppEvent("subscription_count", "a"), 0.0, has_grace=True)

    queue.add(AppEvent("channel_occupied", "a"), 1.0, has_grace=True)

    assert queue.n_waiting == 4
    assert queue.outcomes["dropped"] == 9 - 4


def test_the_end_of_a_grace_does_not_break_the_bound():
    """A held event becomes one for each URL."""
    hooks = [Webhook(url=f"http://{host}.test/") for host in "abc"]
    queue = make_queue(*hooks, max_queued_webhook_events=2)
    queue.add(AppEvent("channel_vacated", "a"), 0.0, has_grace=True)
    queue.release(GRACE_S, GRACE_S)

    assert queue.n_waiting == 2
    assert queue.outcomes["dropped"] == 1


def test_a_second_departure_of_the_same_kind_changes_nothing():
    """A repeated channel_vacated neither prolongs the grace nor is sent twice."""
    queue = make_queue()
    queue.add(AppEvent("channel_vacated", "a"), 0.0, has_grace=True)
    queue.add(AppEvent("channel_vacated", "a"), 2.0, has_grace=True)

    assert queue.next_release_at() == GRACE_S

    queue.release(inf, GRACE_S)

    assert names(take_all(queue, queue.urls[0])) == ["channel_vacated"]


def test_one_step_lets_go_a_bounded_number():
    """Ten thousand graces that end together must not stop the loop."""
    queue = make_queue()
    for number in range(MAX_RELEASES_PER_STEP + 1):
        queue.add(AppEvent("channel_vacated", f"a-{number}"), 0.0, has_grace=True)

    queue.release(GRACE_S, GRACE_S)

    assert len(queue.held) == 1


def test_departures_do_not_overtake_held_ones_when_the_grace_is_switched_off():
    """While flushing, a departure still goes behind those that are not released yet."""
    queue = make_queue()
    queue.add(AppEvent("member_removed", "presence-a", user_id="1"), 0.0, has_grace=True)
    queue.add(AppEvent("channel_vacated", "presence-a"), 0.0, has_grace=False)

    queue.release(inf, 0.0)

    assert names(take_all(queue, queue.urls[0])) == ["member_removed", "channel_vacated"]


@pytest.mark.parametrize(
    ("outcomes", "acknowledged_after"),
    [((True, False), 1), ((False, True), 2), ((False, False), 2)],
)
def test_a_miss_is_acknowledged_once_by_the_first_url_or_the_last(outcomes, acknowledged_after):
    """The first acceptance counts; without one, the end of the last delivery."""
    acknowledged = []
    queue = make_queue(
        Webhook(url="http://a.test/"), Webhook(url="http://b.test/"),
        acknowledge_miss=acknowledged.append,
    )  # fmt: skip
    queue.add(AppEvent("cache_miss", "cache-a"), 0.0, has_grace=True)
    seen = []
    for url, is_accepted in zip(queue.urls, outcomes, strict=True):
        queue.settle(queue.take(url), is_accepted=is_accepted)
        seen.append(list(acknowledged))

    expected = [["cache-a"] if n >= acknowledged_after else [] for n in (1, 2)]
    assert seen == expected


def test_a_dropped_miss_is_acknowledged():
    """Or the channel would be silent for good."""
    acknowledged = []
    queue = make_queue(acknowledge_miss=acknowledged.append, max_queued_webhook_events=1)
    queue.add(AppEvent("cache_miss", "cache-a"), 0.0, has_grace=True)
    queue.add(AppEvent("cache_miss", "cache-b"), 0.0, has_grace=True)

    assert acknowledged == ["cache-a"]


_STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("tell"),
            st.sampled_from(
                ["channel_occupied", "channel_vacated", "member_added", "member_removed"]
                + ["client_event", "cache_miss"] * 2
            ),
            st.sampled_from("ab"),
        ),
        st.tuples(st.just("take"), st.integers(0, 1), st.just("")),
        st.tuples(st.just("finish"), st.integers(0, 7), st.just("")),
        st.tuples(st.just("pass"), st.integers(0, 4), st.just("")),
    ),
    max_size=60,
)


@given(steps=_STEPS, bound=st.integers(1, 8), batches=st.booleans())
def test_whatever_happens_order_bound_and_accounts_hold(steps, bound, batches):
    """For each URL and channel what is taken is in order; queues agree with each other."""
    queue = make_queue(
        Webhook(url="http://a.test/"), Webhook(url="http://b.test/"),
        max_queued_webhook_events=bound, batches_webhooks=batches,
    )  # fmt: skip
    now, number = 0.0, 0
    done = Counter()
    taken = defaultdict(list)
    under_way = []
    for step, what, channel in steps:
        if step == "tell":
            number += 1
            user_id = "7" if what.startswith("member") else None
            event = AppEvent(what, channel, user_id=user_id, data=str(number))
            queue.add(event, now, partial(done.update, [number]), has_grace=True)
        elif step == "take":
            url = queue.urls[what]
            batch = queue.take(url)
            busy = {(id(u), item.event.channel) for u, b in under_way for item in b}
            assert not busy & {(id(url), item.event.channel) for item in batch}
            for item in batch:
                taken[what, item.event.channel].append(item.event)
            under_way.append((url, batch))
        elif step == "finish" and under_way:
            url, batch = under_way.pop(what % len(under_way))
            url.finish(batch)
            queue.settle(batch, is_accepted=True)
        elif step == "pass":
            now += what
            queue.release(now, now)
        assert queue.n_waiting <= bound
        for url in queue.urls:
            assert all(url.ready.values())
            assert url.n_ready == sum(map(len, url.ready.values()))
        waiting = sum(len(q) for u in queue.urls for q in (*u.ready.values(), *u.busy.values()))
        assert waiting == len(queue.items)
        assert queue.n_in_flight == sum(len(batch) for _, batch in under_way)

    for events in taken.values():
        # Departures of members are late by design; everything else keeps its order, and each
        # kind keeps it among its own.
        rest = [int(e.data) for e in events if e.name != "member_removed"]
        removed = [int(e.data) for e in events if e.name == "member_removed"]
        assert rest == sorted(rest)
        assert removed == sorted(removed)
        assert max(Counter(rest + removed).values()) == 1
    open_ = {int(item.event.data) for item in queue.items}
    open_ |= {int(item.event.data) for _, batch in under_way for item in batch}
    for held in queue.held.values():
        open_ |= {int(told.event.data) for told in (held.told, *held.followers)}
    assert set(done) == set(range(1, number + 1)) - open_
    assert max(done.values(), default=1) == 1


def _app(hooks):
    return App(id="1", key="k", secret="s", webhooks=hooks)


def test_what_waits_is_told_by_another_process_in_its_order() -> None:
    """What is under way first, once more; departures keep what is left of their grace."""
    hooks = tuple(Webhook(url=f"http://{name}.test/") for name in "abc")
    before = AppQueue(_app(hooks), AppCounters(), lambda _: None)
    for number, at in enumerate((1.0, 2.0)):
        before.add(AppEvent("cache_miss", f"cache-{number}"), at, has_grace=True)
    batch = before.take(before.urls[0])
    before.add(AppEvent("channel_vacated", "a"), 3.0, has_grace=True)
    before.add(AppEvent("cache_miss", "a"), 4.0, has_grace=True)
    state = before.export(5.0)

    counters = AppCounters()
    after = AppQueue(_app(hooks[:2]), counters, lambda _: None)
    after.restore(state, 105.0)

    assert counters.webhooks["dropped"] == 2  # those for a URL that there is no more
    assert after.next_release_at() == 103.0 + 3.0
    assert after.n_waiting == before.n_queued - 2
    url = after.urls[0]
    assert [item.event for item in after.take(url)] == [item.event for item in batch]
    assert [item.event.channel for item in after.take(url)] == ["cache-1"]
    after.release(inf, 106.0)
    assert [item.event.name for item in after.take(url)] == ["channel_vacated"]
