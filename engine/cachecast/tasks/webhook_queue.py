"""What was told and not yet sent: the grace, the order within a channel, the bound.

Everything here is synchronous and takes ``now``: each call is one step that no other task can
see half done. :mod:`cachecast.tasks.webhooks` says what is promised and runs the tasks.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from math import inf
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from cachecast.apps import WEBHOOK_EVENTS
from cachecast.events import AppEvent
from cachecast.handover.state import TellState, WebhookState
from cachecast.tasks.webhook_delivery import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cachecast.apps import App
    from cachecast.metrics import AppCounters

__all__ = ["GRACE_S", "AppQueue", "UrlQueue"]

#: Seconds that a departure is held back (protocol.md 7).
GRACE_S: Final = 3.0

#: Most events in one request of an app that ``batches_webhooks``, and seconds after which fewer go.
MAX_BATCH_EVENTS: Final = 20
BATCH_WINDOW_S: Final = 0.25

#: Number of held events that one step lets go before it yields; a few microseconds each. Ten
#: thousand clients that were disconnected at once come due at once.
MAX_RELEASES_PER_STEP: Final = 256

#: Event of an arrival -> event of the departure that it makes untrue.
_DEPARTURE_OF: Final = {"channel_occupied": "channel_vacated", "member_added": "member_removed"}
_DEPARTURES: Final = frozenset(_DEPARTURE_OF.values())

#: Event of an arrival or a departure -> both. Whoever asks for one has to do with the other:
#: without it, half of a page reload would be sent.
_PAIR_OF: Final = {name: pair for pair in _DEPARTURE_OF.items() for name in pair}


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(AppEvent).decode


class _Told:
    """What was told, on its way to one URL or several: its outcome is that of all of them.

    Attributes:
        event: what happened.
        n_open: number of URLs for which it is under way or waits.
        is_acknowledged: whether a ``cache_miss`` was acknowledged: once, by the first URL that
            takes it; if none does, by the last for which it is given up or dropped.
    """

    __slots__ = ("_on_done", "event", "is_acknowledged", "n_open")

    def __init__(self, event: AppEvent, on_done: Callable[[], object] | None) -> None:
        self.event = event
        self.n_open = 0
        self.is_acknowledged = False
        self._on_done = on_done

    def end(self) -> None:
        """Say that it is done with."""
        if self._on_done is not None:
            self._on_done()


class _Item:
    """One event for one URL."""

    __slots__ = ("queued_at", "told", "urls_queue")

    def __init__(self, told: _Told, urls_queue: UrlQueue, queued_at: float) -> None:
        self.told = told
        self.urls_queue = urls_queue
        self.queued_at = queued_at

    @property
    def event(self) -> AppEvent:
        """What happened."""
        return self.told.event


class _Held:
    """A departure in its grace, and what waits behind it."""

    __slots__ = ("followers", "held_at", "told")

    def __init__(self, told: _Told, held_at: float) -> None:
        self.told = told
        self.held_at = held_at
        self.followers: list[_Told] = []


class UrlQueue:
    """What waits for one URL, by channel. Synchronous; bounded by its :class:`AppQueue`.

    Attributes:
        endpoint: the URL and its app.
        ready: channel -> events that may be sent now, longest-waiting channel first; never an empty
            queue.
        busy: channel that a lane has to itself -> events that have come since.
        n_ready: number of events in ``ready``.
        n_lanes: number of tasks, at most ``MAX_LANES`` of webhooks.py.
        is_choosing: whether one of the tasks is about to take a batch. Only one at a time does, or
            batches would be torn apart.
        filled: event that is set when the task that chooses need not wait any longer.
    """

    __slots__ = (
        "busy", "endpoint", "filled", "is_choosing", "max_batch", "n_lanes", "n_ready", "ready",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint, max_batch: int = 1) -> None:
        self.endpoint = endpoint
        self.max_batch = max_batch
        self.ready: OrderedDict[str, deque[_Item]] = OrderedDict()
        self.busy: dict[str, deque[_Item]] = {}
        self.n_ready = 0
        self.n_lanes = 0
        self.is_choosing = False
        self.filled = trio.Event()

    def put(self, item: _Item) -> None:
        """Append an event to what waits for its channel."""
        channel = item.event.channel
        behind = self.busy.get(channel)
        if behind is not None:
            behind.append(item)
            return
        self.ready.setdefault(channel, deque()).append(item)
        self.n_ready += 1
        if self.n_ready >= self.max_batch:
            self.filled.set()

    @property
    def n_waiting(self) -> int:
        """Events that wait here, behind others of their channel or for a lane; O(busy channels)."""
        return self.n_ready + sum(len(queue) for queue in self.busy.values())

    def begin_choosing(self, *, at_once: bool) -> float:
        """Reserve the next batch. Returns when to stop waiting for more of it."""
        self.is_choosing = True
        self.filled = trio.Event()
        if at_once or self.n_ready >= self.max_batch:
            self.filled.set()
        first = next(iter(self.ready.values()))[0]
        return first.queued_at + BATCH_WINDOW_S

    def take(self) -> list[_Item]:
        """Take the next batch, in order of time; its channels are busy until :meth:`finish`."""
        self.is_choosing = False
        batch: list[_Item] = []
        while self.ready and len(batch) < self.max_batch:
            channel, queue = self.ready.popitem(last=False)
            self.n_ready -= len(queue)
            while queue and len(batch) < self.max_batch:
                batch.append(queue.popleft())
            self.busy[channel] = queue
        # Stable, so events of one instant stay in the order in which they were told.
        batch.sort(key=lambda item: item.queued_at)
        return batch

    def finish(self, batch: Sequence[_Item]) -> None:
        """Make the batch's channels ready again if more has come for them."""
        for channel in {item.event.channel: None for item in batch}:
            queue = self.busy.pop(channel)
            if queue:
                self.ready[channel] = queue
                self.n_ready += len(queue)

    def drop_first(self, channel: str) -> None:
        """Forget the event that has waited longest in a channel."""
        queue = self.busy.get(channel)
        if queue is not None:
            queue.popleft()
            return
        queue = self.ready[channel]
        queue.popleft()
        self.n_ready -= 1
        if not queue:
            del self.ready[channel]


class AppQueue:
    """Everything of one app that was told and not yet sent. Synchronous: ``now`` comes in.

    Bound: ``App.max_queued_webhook_events``. Unit: an event for one URL; a held event and each
    that waits behind it counts once. Policy: the longest-waiting goes first, whichever URL or
    grace it waits for. Counter: ``webhooks["dropped"]``. Events of requests under way are
    gone from the queue and cannot be dropped, since nobody knows whether they arrived; they are
    at most ``MAX_LANES`` batches for each URL besides.

    Attributes:
        app: the app whose events it holds.
        names: names of the events that some URL asks for, and of their counterparts.
        urls: queues, one for each URL.
        held: (name, channel, user id) -> departure in its grace, oldest first.
        items: events that wait in the queues of URLs, longest-waiting first.
        under_way: events of requests under way, longest-waiting first.
        n_unreported: number of events lost since the last line in the log.
        emptied: parking lot where ``Webhooks.wait_flushed`` waits.
    """

    def __init__(
        self, app: App, counters: AppCounters, acknowledge_miss: Callable[[str], None]
    ) -> None:
        self.outcomes = counters.webhooks
        self.urls: list[UrlQueue] = []
        self.serve(app)
        self.held: OrderedDict[tuple[str, str, str | None], _Held] = OrderedDict()
        self.items: OrderedDict[_Item, None] = OrderedDict()
        self.under_way: dict[_Item, None] = {}
        self.n_unreported = 0
        self.has_grace_task = False
        self.has_loss_task = False
        self.emptied = trio.lowlevel.ParkingLot()
        self._n_followers = 0
        self._acknowledge_miss = acknowledge_miss

    def serve(self, app: App) -> None:
        """Go by other terms of the same app from now on. Never yields.

        What waits for a URL that stays is sent on its new terms; what waits for one that has gone
        is still sent there, as far as its receiver takes it.
        """
        self.app = app
        before = {url.endpoint.url: url for url in self.urls}
        self.urls = []
        for hook in app.webhooks:
            url = before.pop(hook.url, None)  # of two alike the second begins anew
            if url is None:
                url = UrlQueue(Endpoint(app, hook))
            url.endpoint.serve(app, hook)
            url.max_batch = MAX_BATCH_EVENTS if app.batches_webhooks else 1
            self.urls.append(url)
        wanted: set[str] = {name for hook in app.webhooks for name in hook.events or WEBHOOK_EVENTS}
        self.names = frozenset(name for event in wanted for name in _PAIR_OF.get(event, (event,)))

    @property
    def n_waiting(self) -> int:
        """What the bound applies to."""
        return len(self.items) + len(self.held) + self._n_followers

    @property
    def n_in_flight(self) -> int:
        """Events of requests under way."""
        return len(self.under_way)

    @property
    def n_queued(self) -> int:
        """Everything not yet delivered, given up or dropped."""
        return self.n_waiting + self.n_in_flight

    def add(
        self,
        event: AppEvent,
        now: float,
        on_done: Callable[[], object] | None = None,
        *,
        has_grace: bool,
    ) -> None:
        """Sort an event in: it is held, or swallows a held one, or waits its turn.

        Args:
            event: what happened.
            now: time when it happened, in seconds of Trio's clock.
            on_done: function called once it is done with: see ``Webhooks.notify``.
            has_grace: whether a departure is held back; False while flushing, when it is sent like
                any other event.
        """
        told = _Told(event, on_done)
        if not self._concerns_any(event) or self._swallows(event, now):
            told.end()
        else:
            self._place(told, now, has_grace=has_grace)
        self._trim(now)
        self._wake_if_empty()

    def next_release_at(self) -> float:
        """When the oldest grace ends; minus infinity if nothing is held."""
        for held in self.held.values():
            return held.held_at + GRACE_S
        return -inf

    def release(self, held_until: float, now: float) -> None:
        """Queue departures whose grace ends by ``held_until``, at most a step's worth."""
        for _ in range(MAX_RELEASES_PER_STEP):
            if not self.held or self.next_release_at() > held_until:
                break
            _, held = self.held.popitem(last=False)
            self._enqueue(held.told, now)
            self._enqueue_followers(held, now)
        self._trim(now)
        self._wake_if_empty()

    def take(self, urls_queue: UrlQueue) -> list[_Item]:
        """Take the URL's next batch; it is in flight until :meth:`settle`."""
        batch = urls_queue.take()
        for item in batch:
            del self.items[item]
            self.under_way[item] = None
        return batch

    def settle(self, batch: Sequence[_Item], *, is_accepted: bool) -> None:
        """Note the outcome of a batch."""
        for item in batch:
            del self.under_way[item]
            self._close(item.told, is_accepted=is_accepted)
        self._wake_if_empty()

    # --- handing over

    def export(self, now: float) -> WebhookState:
        """All that was told and is not done with, requests under way included.

        Whoever takes it sends those once more: nobody knows whether they arrived.

        Args:
            now: the present, in seconds of Trio's clock, which no other process shares.
        """
        waiting: dict[_Told, tuple[list[str], float]] = {}
        for item in (*self.under_way, *self.items):
            urls, _ = waiting.setdefault(item.told, ([], now - item.queued_at))
            urls.append(item.urls_queue.endpoint.url)
        return WebhookState(
            [
                TellState(_encode(told.event), urls, age_s, told.is_acknowledged)
                for told, (urls, age_s) in waiting.items()
            ],
            [
                (
                    _encode(held.told.event),
                    now - held.held_at,
                    [_encode(told.event) for told in held.followers],
                )
                for held in self.held.values()
            ],
        )

    def restore(self, state: WebhookState, now: float) -> None:
        """Take over what another process was told, before anything is told here.

        What was for a URL that there is no more is dropped, and counted.
        """
        for waiting in state.waiting:
            told = _Told(_decode(waiting.event), None)
            told.is_acknowledged = waiting.is_acknowledged
            left = list(waiting.urls)
            for url in self.urls:
                if url.endpoint.url in left:
                    left.remove(url.endpoint.url)
                    told.n_open += 1
                    item = _Item(told, url, now - waiting.age_s)
                    self.items[item] = None
                    url.put(item)
            self.outcomes["dropped"] += len(left)
            self.n_unreported += len(left)
        for event, age_s, followers in state.held:
            told = _Told(_decode(event), None)
            held = _Held(told, now - age_s)
            held.followers = [_Told(_decode(follower), None) for follower in followers]
            self._n_followers += len(followers)
            self.held[told.event.name, told.event.channel, told.event.user_id] = held
        self._trim(now)

    def _concerns_any(self, event: AppEvent) -> bool:
        names = _PAIR_OF.get(event.name, (event.name,))
        return any(url.endpoint.wants(name, event.channel) for url in self.urls for name in names)

    def _swallows(self, event: AppEvent, now: float) -> bool:
        """Whether it is an arrival whose departure is still held; both are forgotten then."""
        departure = _DEPARTURE_OF.get(event.name)
        if departure is None:
            return False
        held = self.held.pop((departure, event.channel, event.user_id), None)
        if held is None:
            return False
        held.told.end()
        self._enqueue_followers(held, now)
        return True

    def _place(self, told: _Told, now: float, *, has_grace: bool) -> None:
        event = told.event
        vacated = self.held.get(("channel_vacated", event.channel, None))
        # Without grace, too, a departure must not overtake those that still wait for theirs.
        if event.name in _DEPARTURES and (has_grace or self.held):
            key = (event.name, event.channel, event.user_id)
            if key in self.held:
                told.end()
            else:
                self.held[key] = _Held(told, now)
        elif vacated is not None:
            vacated.followers.append(told)
            self._n_followers += 1
        else:
            self._enqueue(told, now)

    def _enqueue(self, told: _Told, now: float) -> None:
        event = told.event
        urls = [url for url in self.urls if url.endpoint.wants(event.name, event.channel)]
        told.n_open = len(urls)
        for url in urls:
            item = _Item(told, url, now)
            self.items[item] = None
            url.put(item)
        if not urls:
            told.end()

    def _enqueue_followers(self, held: _Held, now: float) -> None:
        self._n_followers -= len(held.followers)
        for told in held.followers:
            self._enqueue(told, now)

    def _trim(self, now: float) -> None:
        """Drop the longest-waiting until the bound holds. Ends: each turn ends a grace or drops."""
        while self.n_waiting > self.app.max_queued_webhook_events:
            self.outcomes["dropped"] += 1
            self.n_unreported += 1
            held = next(iter(self.held.values()), None)
            item = next(iter(self.items), None)
            if held is not None and (item is None or held.held_at < item.queued_at):
                self.held.popitem(last=False)
                held.told.end()
                self._enqueue_followers(held, now)
            elif item is not None:
                del self.items[item]
                item.urls_queue.drop_first(item.event.channel)
                self._close(item.told, is_accepted=False)

    def _close(self, told: _Told, *, is_accepted: bool) -> None:
        told.n_open -= 1
        is_last = told.n_open == 0
        is_miss = told.event.name == "cache_miss"
        if is_miss and not told.is_acknowledged and (is_accepted or is_last):
            told.is_acknowledged = True
            self._acknowledge_miss(told.event.channel)
        if is_last:
            told.end()

    def _wake_if_empty(self) -> None:
        if not self.n_queued:
            self.emptied.unpark_all()
