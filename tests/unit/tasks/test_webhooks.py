"""Webhooks as a receiver and an operator see them, under a virtual clock.

Receivers are handlers behind httpx2's transport interface; what needs a socket is in
test_webhook_delivery.py.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import asynccontextmanager

import httpx2
import pusher
import pytest
import structlog
import trio
import trio.testing

from cachecast.apps import App, Webhook
from cachecast.events import AppEvent
from cachecast.metrics import AppCounters
from cachecast.tasks.webhooks import MAX_LANES, Webhooks


def occupied(channel):
    return AppEvent("channel_occupied", channel)


def vacated(channel):
    return AppEvent("channel_vacated", channel)


def added(channel, user_id):
    return AppEvent("member_added", channel, user_id=user_id)


def removed(channel, user_id):
    return AppEvent("member_removed", channel, user_id=user_id)


def miss(channel):
    return AppEvent("cache_miss", channel)


def client_event(channel, number):
    return AppEvent("client_event", channel, event="client-x", data=str(number))


class Receiver:
    """Servers of the app: remembers what came when, and answers as the test says.

    Attributes:
        requests: (seconds since start, host, events).
        accepted: events that were answered with 200, in that order.
        answer: called with host and events; returns a status, or an awaitable of one.
    """

    def __init__(self, answer=lambda host, events: 200):
        self.answer = answer
        self.requests = []
        self.accepted = []
        self.raw = []
        self.clients = []
        self.started_at = None

    def open_client(self):
        if self.started_at is None:
            self.started_at = trio.current_time()
        client = httpx2.AsyncClient(transport=httpx2.MockTransport(self._handle), timeout=None)
        self.clients.append(client)
        return client

    async def _handle(self, request):
        events = json.loads(request.content)["events"]
        self.raw.append(request)
        at = round(trio.current_time() - self.started_at, 6)
        self.requests.append((at, request.url.host, events))
        status = self.answer(request.url.host, events)
        if not isinstance(status, int):
            status = await status
        if status == 200:
            self.accepted += events
        return httpx2.Response(status)

    @property
    def told(self):
        """(seconds, name, channel or user) of every event of every request."""
        return [
            (at, event["name"], event.get("user_id", event["channel"]))
            for at, _, events in self.requests
            for event in events
        ]


def make_app(*hooks, **options):
    hooks = hooks or (Webhook(url="http://hook.test/"),)
    return App(**({"id": "1", "key": "app-key", "secret": "app-secret"} | options), webhooks=hooks)


@asynccontextmanager
async def running(receiver, *apps, **options):
    """Run Webhooks for some apps; yields it, with its counters as ``counters``."""
    counters = {app.id: AppCounters() for app in apps}
    webhooks = Webhooks(
        **({"unix_now": lambda: 1_000.0, "open_client": receiver.open_client,
            "jitter": lambda: 1.0} | options),
    )  # fmt: skip
    for app in apps:
        webhooks.serve(app, counters[app.id])
    webhooks.counters = {app_id: counter.webhooks for app_id, counter in counters.items()}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(webhooks.run)
        await trio.testing.wait_all_tasks_blocked()
        yield webhooks
        nursery.cancel_scope.cancel()


# --- filters


async def test_each_url_gets_what_it_asked_for(autojump_clock):
    """Filters by event and by channel prefix; empty filters let everything pass."""
    receiver = Receiver()
    app = make_app(
        Webhook(url="http://all.test/"),
        Webhook(url="http://miss.test/", events=("cache_miss",)),
        Webhook(url="http://private.test/", channel_prefixes=("private-", "presence-")),
    )
    async with running(receiver, app) as webhooks:
        for event in (miss("cache-a"), miss("private-cache-a"), added("presence-a", "7")):
            webhooks.notify("1", event)
        await webhooks.wait_flushed()

    told = Counter(
        (host, event["name"], event["channel"])
        for _, host, events in receiver.requests
        for event in events
    )
    assert told == Counter(
        [
            ("all.test", "cache_miss", "cache-a"),
            ("all.test", "cache_miss", "private-cache-a"),
            ("all.test", "member_added", "presence-a"),
            ("miss.test", "cache_miss", "cache-a"),
            ("miss.test", "cache_miss", "private-cache-a"),
            ("private.test", "cache_miss", "private-cache-a"),
            ("private.test", "member_added", "presence-a"),
        ]
    )
    assert webhooks.counters["1"] == Counter(delivered=7)


def test_wants_is_true_for_what_a_url_asks_for_and_for_its_counterpart():
    """Without the departures, a URL that asks for arrivals would hear of every reload."""
    app = make_app(Webhook(url="http://a.test/", events=("channel_occupied", "member_removed")))
    bare = App(id="2", key="k2", secret="s2")
    webhooks = Webhooks(unix_now=time.time)
    webhooks.serve(app, AppCounters())
    webhooks.serve(bare, AppCounters())

    wanted = ["channel_occupied", "channel_vacated", "member_added", "member_removed"]
    assert all(webhooks.wants("1", name) for name in wanted)
    assert not webhooks.wants("1", "cache_miss")
    assert not webhooks.wants("2", "channel_occupied")
    assert not webhooks.wants("3", "channel_occupied")


async def test_without_webhooks_nothing_is_opened_and_nothing_is_kept(autojump_clock):
    """No webhook configured is no cost."""
    receiver = Receiver()
    async with running(receiver, App(id="1", key="k", secret="s")) as webhooks:
        webhooks.notify("1", occupied("a"))

        assert webhooks.queued_events("1") == 0
        assert not receiver.clients
        with trio.fail_after(1):
            await webhooks.wait_flushed()


# --- batches


async def test_unbatched_is_one_event_for_each_request(autojump_clock):
    """Also when many wait for one channel."""
    receiver = Receiver()
    async with running(receiver, make_app()) as webhooks:
        for number in range(5):
            webhooks.notify("1", client_event("private-a", number))
        await trio.sleep(1)

    assert [len(events) for _, _, events in receiver.requests] == [1] * 5
    assert [at for at, _, _ in receiver.requests] == [0] * 5


async def test_a_batch_goes_out_after_250_ms(autojump_clock):
    """Counted from its first event; what comes later waits for the next."""
    receiver = Receiver()
    async with running(receiver, make_app(batches_webhooks=True)) as webhooks:
        webhooks.notify("1", client_event("private-a", 1))
        await trio.sleep(0.2)
        webhooks.notify("1", client_event("private-b", 2))
        await trio.sleep(0.1)
        webhooks.notify("1", client_event("private-a", 3))
        await trio.sleep(1)
        n_tasks = trio.lowlevel.current_statistics().tasks_living
        for number in range(5):
            webhooks.notify("1", client_event(f"private-{number}", 4))
        assert trio.lowlevel.current_statistics().tasks_living == n_tasks + 1, "one collects"
        await trio.sleep(1)

    assert [(at, [e["data"] for e in events]) for at, _, events in receiver.requests] == [
        (0.25, ["1", "2"]),
        (0.55, ["3"]),
        (1.55, ["4"] * 5),
    ]


async def test_a_batch_goes_out_at_20_events(autojump_clock):
    """At once, whichever channels they are of; the rest waits for its own 250 ms."""
    receiver = Receiver()
    async with running(receiver, make_app(batches_webhooks=True)) as webhooks:
        for number in range(45):
            webhooks.notify("1", client_event(f"private-{number % 7}", number))
        await trio.sleep(1)

    assert [(at, len(events)) for at, _, events in receiver.requests] == [
        (0, 20),
        (0, 20),
        (0.25, 5),
    ]


async def test_a_batch_counts_each_of_its_events(autojump_clock):
    """Counters are in events, not in requests."""
    receiver = Receiver(answer=lambda host, events: 500 if len(receiver.requests) < 3 else 200)
    async with running(receiver, make_app(batches_webhooks=True)) as webhooks:
        for number in range(3):
            webhooks.notify("1", client_event("private-a", number))
        assert webhooks.queued_events("1") == 3
        await trio.sleep(60)

        assert webhooks.counters["1"] == Counter(delivered=3, retried=6)
        assert webhooks.queued_events("1") == 0


# --- order


@pytest.mark.parametrize("batches", [False, True])
async def test_order_in_a_channel_survives_failures(batches, autojump_clock):
    """Every second request fails; each channel's events are accepted in order, none twice."""
    receiver = Receiver(answer=lambda host, events: 500 if len(receiver.requests) % 2 else 200)
    async with running(receiver, make_app(batches_webhooks=batches)) as webhooks:
        for number in range(120):
            webhooks.notify("1", client_event(f"private-{number % 3}", number))
            await trio.sleep(0.01)
        await webhooks.wait_flushed()

    for channel in range(3):
        data = [int(e["data"]) for e in receiver.accepted if e["channel"] == f"private-{channel}"]
        assert data == list(range(channel, 120, 3))


async def test_a_channel_whose_receiver_fails_does_not_stop_the_others(autojump_clock):
    """One channel is retried for five minutes; the others pass it by."""
    receiver = Receiver(answer=lambda host, events: 500 if "bad" in events[0]["channel"] else 200)
    async with running(receiver, make_app()) as webhooks:
        webhooks.notify("1", client_event("private-bad", 0))
        webhooks.notify("1", client_event("private-bad", 1))
        for number in range(100):
            webhooks.notify("1", client_event(f"private-{number}", number))
        await trio.sleep(1)

        assert len(receiver.accepted) == 100
        assert webhooks.queued_events("1") == 2

        await trio.sleep(700)

        assert webhooks.counters["1"]["failed"] == 2
        first_tries = [
            next(at for at, _, [event] in receiver.requests if event == client)
            for client in (
                {"name": "client_event", "channel": "private-bad", "event": "client-x", "data": n}
                for n in "01"
            )
        ]
        assert first_tries == [0, 300], "the second waits until the first was given up"


async def test_a_url_that_is_down_does_not_stop_the_others(autojump_clock):
    """Nor does an app's."""
    receiver = Receiver(answer=lambda host, events: 500 if host == "down.test" else 200)
    app = make_app(Webhook(url="http://down.test/"), Webhook(url="http://up.test/"))
    other = make_app(id="2", key="k2", secret="s2")
    async with running(receiver, app, other) as webhooks:
        for number in range(50):
            webhooks.notify("1", client_event(f"private-{number}", number))
            webhooks.notify("2", client_event(f"private-{number}", number))
        await trio.sleep(1)

        assert webhooks.counters["1"]["delivered"] == 50
        assert webhooks.counters["2"]["delivered"] == 50
        assert webhooks.queued_events("1") == 50


def make_tenant(number, n_urls=1):
    hooks = [Webhook(url=f"http://{number}-{url}.dead.test/") for url in range(n_urls)]
    return make_app(*hooks, id=f"dead-{number}", key=f"k{number}", secret="s")


async def never(host):
    await trio.sleep_forever()


async def trickle(host):
    """An answer that would come, a second too late."""
    await trio.sleep(5)
    return 200


@pytest.mark.parametrize("silence", [never, trickle])
@pytest.mark.parametrize(
    ("n_tenants", "n_urls", "first_s"),
    [(1, 60, 0.0), (4, 60, 0.0), (5, 60, 4.0), (24, 1, 0.0), (90, 1, 4.0), (200, 2, 12.0)],
)
@pytest.mark.slow
async def test_receivers_that_are_silent_cost_other_apps_little_once_and_then_nothing(
    silence, n_tenants, n_urls, first_s, autojump_clock
):
    """60 URLs of one tenant, or one of each of many: whoever answers is told at once."""
    receiver = Receiver(
        answer=lambda host, events: silence(host) if host.endswith(".dead.test") else 200
    )
    dead = [make_tenant(number, n_urls) for number in range(n_tenants)]
    async with running(receiver, *dead, make_app()) as webhooks:
        delays = []
        for second in range(60):
            for tenant in dead:
                for number in range(3):
                    webhooks.notify(tenant.id, client_event(f"private-{second}-{number}", number))
            await trio.sleep(0.5)
            at = trio.current_time()
            webhooks.notify("1", client_event(f"private-{second}", second))
            while webhooks.queued_events("1"):  # noqa: ASYNC110 - nothing announces it
                await trio.sleep(0.01)
            delays.append(trio.current_time() - at)
            await trio.sleep(0.5)

    assert delays[0] <= first_s + 0.1
    assert max(delays[1:]) <= 0.1


async def test_a_tenants_own_prompt_receiver_goes_before_its_silent_ones(autojump_clock):
    receiver = Receiver(answer=lambda host, events: 200 if host == "up.test" else never(host))
    hooks = [Webhook(url=f"http://{number}.test/") for number in range(60)]
    app = make_app(*hooks, Webhook(url="http://up.test/"))
    async with running(receiver, app) as webhooks:
        for number in range(60):
            webhooks.notify("1", client_event(f"private-{number}", number))
            await trio.sleep(1)

        at_once = [at for at, host, _ in receiver.requests if host == "up.test" and at > 15]
        assert len(at_once) >= 44


async def test_requests_to_one_url_are_bounded(autojump_clock):
    """However many channels wait, a slow receiver sees at most the lanes."""
    n_open = n_most = 0

    async def answer():
        nonlocal n_open, n_most
        n_open += 1
        n_most = max(n_most, n_open)
        await trio.sleep(1)
        n_open -= 1
        return 200

    receiver = Receiver(answer=lambda host, events: answer())
    async with running(receiver, make_app()) as webhooks:
        for number in range(100):
            webhooks.notify("1", client_event(f"private-{number}", number))
        await webhooks.wait_flushed()

    assert n_most == MAX_LANES
    assert webhooks.counters["1"]["delivered"] == 100


async def test_an_unknown_exception_stops_neither_its_lane_nor_the_others(autojump_clock):
    """A client that raises what nobody thought of is a failed try."""

    def answer(host, events):
        if events[0]["channel"] == "private-bad":
            raise LookupError("nobody thought of this")
        return 200

    receiver = Receiver(answer)
    async with running(receiver, make_app()) as webhooks:
        webhooks.notify("1", client_event("private-bad", 0))
        webhooks.notify("1", client_event("private-a", 0))
        await trio.sleep(400)
        webhooks.notify("1", client_event("private-b", 0))
        await trio.sleep(1)

        assert webhooks.counters["1"]["delivered"] == 2
        assert webhooks.counters["1"]["failed"] == 1


# --- the bound


async def test_a_full_queue_drops_the_oldest_and_counts_it(autojump_clock):
    """What waits stays bounded; the newest are sent in the end."""
    is_up = False
    receiver = Receiver(answer=lambda host, events: 200 if is_up else 500)
    async with running(receiver, make_app(max_queued_webhook_events=5)) as webhooks:
        webhooks.notify("1", client_event("private-a", 0))
        await trio.sleep(0.1)
        for number in range(1, 11):
            webhooks.notify("1", client_event("private-a", number))

        # One is under way, and nobody knows whether it arrived.
        assert webhooks.queued_events("1") == 1 + 5
        assert webhooks.counters["1"]["dropped"] == 5

        is_up = True
        await webhooks.wait_flushed()

    assert [e["data"] for e in receiver.accepted] == ["0", "6", "7", "8", "9", "10"]


async def test_losses_are_logged_at_most_once_a_minute_with_their_number(autojump_clock):
    """Each loss stands in exactly one line."""
    receiver = Receiver(answer=lambda host, events: 500)
    with structlog.testing.capture_logs() as logs:
        async with running(receiver, make_app(max_queued_webhook_events=1)) as webhooks:
            for number in range(100):
                webhooks.notify("1", client_event("private-a", number))
                webhooks.notify("1", client_event("private-a", number))
                await trio.sleep(1)
            await trio.sleep(120)
            webhooks.notify("1", client_event("private-a", number))
            await trio.sleep(120)
            n_dropped = webhooks.counters["1"]["dropped"]

    lines = [line for line in logs if line["event"].startswith("webhook queue full")]
    assert len(lines) == 4
    assert lines[-1]["lost"] == 1
    assert sum(line["lost"] for line in lines) == n_dropped > 190


# --- cache_miss


async def test_a_miss_is_acknowledged_when_accepted_or_given_up(autojump_clock):
    """The broker arms the channel's next one by it."""
    acknowledged = []
    receiver = Receiver(answer=lambda host, events: 500 if "bad" in events[0]["channel"] else 200)
    app = make_app(Webhook(url="http://a.test/", channel_prefixes=("cache-",)))
    async with running(
        receiver, app,
        on_miss_acknowledged=lambda *which: acknowledged.append((trio.current_time(), *which)),
    ) as webhooks:  # fmt: skip
        started = trio.current_time()
        for event in (miss("cache-a"), miss("cache-bad"), miss("private-cache-a")):
            webhooks.notify("1", event)
        await trio.sleep(400)

    assert [(round(at - started), *which) for at, *which in acknowledged] == [
        (0, "1", "cache-a"),
        (300, "1", "cache-bad"),
    ]


# --- the grace


async def test_a_departure_is_sent_after_three_seconds(autojump_clock):
    """Not earlier, so that a reload can be noticed."""
    receiver = Receiver()
    async with running(receiver, make_app()) as webhooks:
        webhooks.notify("1", removed("presence-a", "7"))
        webhooks.notify("1", vacated("presence-a"))
        assert webhooks.queued_events("1") == 2
        await trio.sleep(10)

    assert receiver.told == [(3, "member_removed", "7"), (3, "channel_vacated", "presence-a")]


@pytest.mark.parametrize("hook_events", [(), ("channel_occupied",), ("channel_vacated",)])
async def test_a_channel_that_is_back_in_time_is_not_mentioned(hook_events, autojump_clock):
    """Neither half is sent, also to a URL that asked for one half only."""
    receiver = Receiver()
    app = make_app(Webhook(url="http://a.test/", events=hook_events))
    async with running(receiver, app) as webhooks:
        for event in (vacated("a"), occupied("a")):
            assert webhooks.wants("1", event.name)
            webhooks.notify("1", event)
            await trio.sleep(2.9)
        await trio.sleep(10)

        assert receiver.told == []
        assert webhooks.queued_events("1") == 0


async def test_a_member_who_is_back_in_time_is_not_mentioned(autojump_clock):
    """The same user on the same channel; another user or channel is news."""
    receiver = Receiver()
    async with running(receiver, make_app()) as webhooks:
        webhooks.notify("1", removed("presence-a", "7"))
        await trio.sleep(1)
        webhooks.notify("1", added("presence-a", "8"))
        webhooks.notify("1", added("presence-b", "7"))
        webhooks.notify("1", added("presence-a", "7"))
        await trio.sleep(10)

    assert receiver.told == [(1, "member_added", "8"), (1, "member_added", "7")]
    assert receiver.requests[1][2][0]["channel"] == "presence-b"


async def test_who_comes_back_too_late_is_mentioned_twice(autojump_clock):
    """At 3.1 s both are sent, in order."""
    receiver = Receiver()
    async with running(receiver, make_app()) as webhooks:
        webhooks.notify("1", vacated("a"))
        await trio.sleep(3.1)
        webhooks.notify("1", occupied("a"))
        await trio.sleep(10)

    assert receiver.told == [(3, "channel_vacated", "a"), (3.1, "channel_occupied", "a")]


async def test_every_departure_has_its_own_grace(autojump_clock):
    """Also one that comes while others are held, and one that comes when none is."""
    receiver = Receiver()
    async with running(receiver, make_app()) as webhooks:
        for channel, pause_s in [("a", 1), ("b", 5), ("c", 5)]:
            webhooks.notify("1", vacated(channel))
            await trio.sleep(pause_s)

    assert [(at, channel) for at, _, channel in receiver.told] == [(3, "a"), (4, "b"), (9, "c")]


async def test_coming_and_going_within_the_grace_leaves_the_final_truth(autojump_clock):
    """Occupied, vacated, occupied, vacated: one of each, the last 3 s after the last."""
    receiver = Receiver()
    async with running(receiver, make_app()) as webhooks:
        for event in (occupied("a"), vacated("a"), occupied("a"), vacated("a")):
            webhooks.notify("1", event)
            await trio.sleep(0.5)
        await trio.sleep(10)

    assert receiver.told == [(0, "channel_occupied", "a"), (4.5, "channel_vacated", "a")]


async def test_nothing_overtakes_a_held_channel_vacated(autojump_clock):
    """A cache_miss from a channel that is declared empty later would be a riddle."""
    receiver = Receiver()
    async with running(receiver, make_app()) as webhooks:
        webhooks.notify("1", vacated("cache-a"))
        await trio.sleep(1)
        webhooks.notify("1", miss("cache-a"))
        webhooks.notify("1", miss("cache-b"))
        await trio.sleep(10)

    assert receiver.told == [
        (1, "cache_miss", "cache-b"),
        (3, "channel_vacated", "cache-a"),
        (3, "cache_miss", "cache-a"),
    ]


async def test_what_waited_behind_a_swallowed_departure_is_sent_at_once(autojump_clock):
    """The broker reports the miss of a new subscriber just before the channel's occupation."""
    receiver = Receiver()
    async with running(receiver, make_app()) as webhooks:
        webhooks.notify("1", vacated("cache-a"))
        await trio.sleep(1)
        webhooks.notify("1", miss("cache-a"))
        webhooks.notify("1", occupied("cache-a"))
        await trio.sleep(10)

    assert receiver.told == [(1, "cache_miss", "cache-a")]


async def test_other_users_do_not_wait_behind_a_held_member_removed(autojump_clock):
    """A busy presence channel is not delayed by whoever leaves it."""
    receiver = Receiver()
    async with running(receiver, make_app()) as webhooks:
        webhooks.notify("1", removed("presence-a", "7"))
        webhooks.notify("1", client_event("presence-a", 1))
        await trio.sleep(10)

    assert [name for _, name, _ in receiver.told] == ["client_event", "member_removed"]


async def test_thousands_of_departures_at_once_all_arrive(autojump_clock):
    """They come due together and are let go in several steps."""
    receiver = Receiver()
    async with running(receiver, make_app(batches_webhooks=True)) as webhooks:
        for number in range(2_000):
            webhooks.notify("1", vacated(f"a-{number}"))
        await trio.sleep(10)

    assert webhooks.counters["1"] == Counter(delivered=2_000)
    assert {at for at, _, _ in receiver.requests} == {3}


# --- the end


async def test_wait_flushed_does_not_wait_for_grace_or_window(autojump_clock):
    """At shutdown everything goes out at once, also what comes while it waits."""

    async def answer():
        await trio.sleep(0.1)
        return 200

    receiver = Receiver(answer=lambda host, events: answer())
    async with running(receiver, make_app(batches_webhooks=True)) as webhooks:
        webhooks.notify("1", removed("presence-a", "7"))
        webhooks.notify("1", vacated("presence-a"))
        webhooks.notify("1", client_event("private-b", 1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(webhooks.wait_flushed)
            await trio.sleep(0.05)
            webhooks.notify("1", vacated("private-b"))

        assert webhooks.queued_events("1") == 0

    assert max(at for at, _, _ in receiver.requests) < 0.2
    assert webhooks.counters["1"] == Counter(delivered=4)


async def test_wait_flushed_ends_the_window_of_a_batch_that_waits(autojump_clock):
    """A lane that already waits for more is told not to."""
    receiver = Receiver()
    async with running(receiver, make_app(batches_webhooks=True)) as webhooks:
        webhooks.notify("1", client_event("private-b", 1))
        await trio.sleep(0.1)
        await webhooks.wait_flushed()

    assert [at for at, _, _ in receiver.requests] == [0.1]


async def test_wait_flushed_can_be_bounded_and_leaves_the_grace_as_it_was(autojump_clock):
    """A receiver that is down does not hold up the stop longer than the caller allows."""
    receiver = Receiver(answer=lambda host, events: 500)
    async with running(receiver, make_app()) as webhooks:
        webhooks.notify("1", client_event("private-a", 1))
        with trio.move_on_after(5) as scope:
            await webhooks.wait_flushed()
        assert scope.cancelled_caught
        webhooks.notify("1", vacated("b"))
        await trio.sleep(1)

        assert not any(name == "channel_vacated" for _, name, _ in receiver.told)


async def test_a_flush_tries_everything_once_more_and_waits_for_no_retry(autojump_clock):
    """What was refused and waits, what waits behind it, and what its receiver takes now."""
    receiver = Receiver(answer=lambda host, events: 500)
    async with running(receiver, make_app()) as webhooks:
        for number in range(20):
            webhooks.notify("1", client_event(f"private-{number % 10}", number))
        await trio.sleep(100)
        n_before = len(receiver.requests)
        receiver.answer = lambda host, events: 200 if int(events[0]["data"]) % 2 else 500
        at = trio.current_time()
        with structlog.testing.capture_logs() as logs:
            await webhooks.flush(5)

    assert trio.current_time() == at
    assert len(receiver.requests) == n_before + 20
    assert webhooks.counters["1"]["delivered"] == webhooks.counters["1"]["failed"] == 10
    assert logs == [
        {"event": "webhook events lost at stop", "log_level": "warning", "app": "1", "lost": 10}
    ]


@pytest.mark.parametrize(("n_urls", "expected_s"), [(1, 4), (60, 5)])
async def test_a_flush_lasts_no_longer_than_there_is_hope(n_urls, expected_s, autojump_clock):
    """A receiver that never answers has one try, however many events wait; many have the limit."""
    receiver = Receiver(
        answer=lambda host, events: never(host) if host.endswith(".dead.test") else 200
    )
    async with running(receiver, make_tenant(0, n_urls), make_app()) as webhooks:
        await trio.sleep(1)
        for number in range(2_000):
            webhooks.notify("dead-0", client_event(f"private-{number % 100}", number))
            webhooks.notify("1", client_event(f"private-{number % 100}", number))
        at = trio.current_time()
        await webhooks.flush(5)
        await webhooks.flush(5)

        assert trio.current_time() - at == pytest.approx(expected_s)
        assert webhooks.counters["1"]["delivered"] == 2_000
        assert webhooks.counters["dead-0"].total() == n_urls * 2_000
        assert webhooks.queued_events("dead-0") == 0
        assert not webhooks.wants("1", "client_event")


async def test_cancellation_leaves_nothing_running_and_names_the_loss(autojump_clock):
    """Requests under way, pauses and graces end; the client is closed; the loss is logged."""

    async def hang():
        await trio.sleep_forever()

    receiver = Receiver(answer=lambda host, events: hang() if events[0]["data"] == "1" else 500)
    with structlog.testing.capture_logs() as logs:
        async with running(receiver, make_app()) as webhooks:
            n_tasks = trio.lowlevel.current_statistics().tasks_living
            webhooks.notify("1", client_event("private-a", 1))
            webhooks.notify("1", client_event("private-b", 2))
            webhooks.notify("1", vacated("c"))
            await trio.sleep(1.5)
            assert trio.lowlevel.current_statistics().tasks_living == n_tasks + 3

    # The task of run() itself is gone as well.
    assert trio.lowlevel.current_statistics().tasks_living == n_tasks - 1
    assert receiver.clients[0].is_closed
    assert [line for line in logs if line["event"] == "webhook events lost at stop"] == [
        {"event": "webhook events lost at stop", "log_level": "warning", "app": "1", "lost": 3}
    ]
    assert webhooks.counters["1"]["dropped"] == 3


async def test_an_idle_app_has_no_tasks(autojump_clock):
    """Lanes and the grace exist only while there is something to do."""
    receiver = Receiver()
    async with running(receiver, make_app()) as webhooks:
        n_tasks = trio.lowlevel.current_statistics().tasks_living
        for number in range(20):
            webhooks.notify("1", client_event(f"private-{number}", number))
            webhooks.notify("1", vacated(f"a-{number}"))
        await trio.sleep(10)

        assert webhooks.counters["1"]["delivered"] == 40
        assert trio.lowlevel.current_statistics().tasks_living == n_tasks


async def test_events_from_before_the_start_are_delivered(autojump_clock):
    """The broker may notify before the task has had its first turn."""
    receiver = Receiver()
    app = make_app()
    webhooks = Webhooks(unix_now=time.time, open_client=receiver.open_client)
    webhooks.serve(app, AppCounters())
    webhooks.notify("1", client_event("private-a", 1))
    webhooks.notify("1", vacated("a"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(webhooks.run)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()

    assert [name for _, name, _ in receiver.told] == ["client_event", "channel_vacated"]


async def test_pushers_own_library_validates_what_is_sent(autojump_clock):
    """The whole way from notify to the validator that receivers run."""
    receiver = Receiver()
    async with running(receiver, make_app(), unix_now=time.time) as webhooks:
        webhooks.notify("1", miss("cache-a"))
        await webhooks.wait_flushed()

    [request] = receiver.raw
    library = pusher.Pusher(app_id="1", key="app-key", secret="app-secret")
    valid = library.validate_webhook(
        request.headers["x-pusher-key"],
        request.headers["x-pusher-signature"],
        request.content.decode(),
    )
    assert valid["events"] == [{"name": "cache_miss", "channel": "cache-a"}]


async def test_a_courier_hears_when_an_event_is_done_with(autojump_clock):
    """When both URLs have it, or nobody wants it, or its counterpart has taken it back."""
    receiver = Receiver(lambda host, events: slowly(host))

    async def slowly(host):
        await trio.sleep(3 if host == "slow.test" else 1)
        return 200

    app = make_app(
        Webhook(url="http://quick.test/", events=("client_event", "channel_occupied")),
        Webhook(url="http://slow.test/", events=("client_event",)),
    )
    done = []
    async with running(receiver, app) as webhooks:
        webhooks.notify("1", client_event("a", 1), lambda: done.append("both have it"))
        webhooks.notify("1", miss("cache-a"), lambda: done.append("nobody wants it"))
        webhooks.notify("another", miss("cache-a"), lambda: done.append("no app of ours"))
        webhooks.notify("1", vacated("b"), lambda: done.append("taken back"))
        webhooks.notify("1", occupied("b"), lambda: done.append("taken back by"))
        assert done == ["nobody wants it", "no app of ours", "taken back", "taken back by"]
        await trio.sleep(2)
        webhooks.notify("1", vacated("c"), lambda: done.append("only its counterpart is wanted"))
        assert len(done) == 4
        await trio.sleep(6)

    assert done[4:] == ["both have it", "only its counterpart is wanted"]


async def test_what_comes_when_webhooks_have_ended_is_not_done_with(autojump_clock):
    """Another node is to deliver it."""
    app = make_app()
    done = []
    async with running(Receiver(), app) as webhooks:
        webhooks.notify("1", client_event("a", 1), lambda: done.append("in time"))
        await webhooks.flush(5)
        webhooks.notify("1", client_event("a", 2), lambda: done.append("too late"))
        webhooks.notify("another", client_event("a", 3), lambda: done.append("not ours"))

    assert done == ["in time"]


# --- other terms while it runs


async def test_what_waits_goes_on_when_the_terms_of_its_app_change(autojump_clock):
    """To a URL that stays on its new terms, to one that has gone as it was; new ones only later."""
    receiver = Receiver()
    stays, goes = Webhook(url="http://stays.test/"), Webhook(url="http://goes.test/")
    app = make_app(stays, goes)
    async with running(receiver, app) as webhooks:
        webhooks.notify("1", vacated("held"))
        webhooks.notify("1", miss("cache-a"))
        changed = Webhook(url="http://stays.test/", headers={"X-New": "1"}, events=("cache_miss",))
        comes = Webhook(url="http://comes.test/")
        newer = make_app(changed, comes, secret="other-secret")
        webhooks.serve(newer, AppCounters())
        webhooks.notify("1", miss("cache-b"))
        webhooks.notify("1", occupied("new"))
        await webhooks.wait_flushed()

    told = {(host, event["channel"]) for _, host, events in receiver.requests for event in events}
    assert told == {
        ("stays.test", "cache-a"), ("goes.test", "cache-a"),
        ("stays.test", "cache-b"), ("comes.test", "cache-b"),
        ("comes.test", "held"), ("comes.test", "new"),
    }  # fmt: skip
    by_url = {request.url.host: request.headers for request in receiver.raw}
    assert by_url["stays.test"]["X-New"] == "1"
    assert webhooks.counters["1"] == Counter(delivered=6)


async def test_a_retry_is_signed_with_the_key_that_there_is_by_then(autojump_clock):
    down = True
    receiver = Receiver(lambda host, events: 503 if down else 200)
    async with running(receiver, make_app()) as webhooks:
        webhooks.notify("1", miss("cache-a"))
        await trio.sleep(0.5)
        webhooks.serve(make_app(secret="other-secret"), AppCounters())
        down = False
        await webhooks.wait_flushed()

    first, *_, last = (request.headers["X-Pusher-Signature"] for request in receiver.raw)
    assert first != last


async def test_an_app_that_ends_has_what_waits_delivered_and_nothing_more(autojump_clock):
    receiver = Receiver()
    async with running(receiver, make_app()) as webhooks:
        webhooks.notify("1", vacated("held"))
        webhooks.notify("1", miss("cache-a"))
        webhooks.end_app("1")
        webhooks.end_app("1")
        assert not webhooks.wants("1", "cache_miss")
        done = []
        webhooks.notify("1", miss("cache-late"), lambda: done.append(True))
        assert done
        await trio.sleep(5)
        assert webhooks.queued_events("1") == 0

    assert [(at, channel) for at, _, channel in receiver.told] == [(0.0, "cache-a"), (3.0, "held")]
    assert webhooks.counters["1"] == Counter(delivered=2)


async def test_the_end_of_the_node_waits_for_apps_that_have_ended_too(autojump_clock):
    receiver = Receiver()
    async with running(receiver, make_app()) as webhooks:
        webhooks.notify("1", vacated("held"))
        webhooks.serve(App(id="1", key="k", secret="s"), AppCounters())  # without any
        await webhooks.flush(5.0)

    assert [channel for _, _, channel in receiver.told] == ["held"]


async def test_what_an_ended_app_loses_at_the_end_is_counted(autojump_clock):
    receiver = Receiver(lambda host, events: 503)
    with structlog.testing.capture_logs() as logs:
        async with running(receiver, make_app()) as webhooks:
            webhooks.notify("1", miss("cache-a"))
            await trio.sleep(1)
            webhooks.end_app("1")

    assert webhooks.counters["1"]["dropped"] == 1
    assert [entry["lost"] for entry in logs if entry["event"] == "webhook events lost at stop"] == [
        1
    ]


async def test_the_first_webhook_of_a_node_that_runs_is_served():
    """In real time: what it needs is opened in a thread, for others are served already."""
    told = trio.Event()
    receiver = Receiver(lambda host, events: told.set() or 200)
    receiver.started_at = trio.current_time()
    async with running(receiver) as webhooks:
        assert not receiver.clients
        webhooks.serve(make_app(), AppCounters())
        webhooks.notify("1", miss("cache-a"))
        await told.wait()
        await webhooks.flush(5.0)
        webhooks.serve(make_app(id="2"), AppCounters())  # too late
        assert not webhooks.wants("2", "cache_miss")


async def test_an_operator_sees_what_waits_and_why(autojump_clock):
    """Host and path of each URL, and nothing of it that may be secret."""
    answers = [500]
    receiver = Receiver(lambda host, events: answers[0])
    app = make_app(Webhook(url="http://u:s3cr3t@hook.test/path?token=s3cr3t"))
    async with running(receiver, app) as webhooks:
        assert webhooks.states("none") == []
        webhooks.notify("1", occupied("a"))
        webhooks.notify("1", occupied("b"))
        webhooks.notify("1", miss("a"))
        await trio.sleep(2.0)
        [url] = webhooks.states("1")
        assert (url.place, url.failure) == ("hook.test/path", "status 500")
        assert (url.n_waiting, url.n_under_way) == (1, 2)
        assert 1.9 <= url.failing_for_s <= 2.0
        answers[0] = 200
        await trio.sleep(60.0)
        [url] = webhooks.states("1")
        assert (url.n_waiting, url.n_under_way, url.failure) == (0, 0, None)
        assert url.failing_for_s is None
