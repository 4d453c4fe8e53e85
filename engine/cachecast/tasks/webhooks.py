"""Webhooks: what happens in an app, told to the app's own servers, in order.

The idea: *choosing* what to send is synchronous and small, *sending* it is slow and may fail. So
:meth:`Webhooks.notify` only sorts an event into queues, and tasks that exist only while there is
something to do take it from there. An app without webhooks costs one failed dict lookup.

**Order.** What is kept is the order within a channel, for each URL, also across retries. An event
waits behind the earlier ones of its channel; channels do not wait for each other, except for a
free *lane*: a URL has at most :data:`MAX_LANES` requests under way, and a lane has the channels of
its batch to itself until the outcome is known. (Not a lane for each hash of a channel's name: two
channels would block each other by accident, and batches would come out eight times as small.)

**Grace.** A page that reloads leaves and comes back. So ``channel_vacated`` and
``member_removed`` are held for ``GRACE_S``, and if their ``channel_occupied`` or
``member_added`` arrives within it, nobody is told of either (protocol.md 7). What follows a held
event:

- Behind a held ``channel_vacated`` every later event of that channel waits, at most 3 s. A
  ``cache_miss`` at t=1 thus arrives after the ``channel_vacated`` of t=0, not as news from a
  channel that is then declared empty; if somebody came back, it is sent at that moment.
- Behind a held ``member_removed`` nothing waits. The only event that contradicts it, the user's
  own ``member_added``, cancels it; holding back what other users do would delay a busy presence
  channel, where somebody is always leaving, by 3 s for ever.

**Queues.** One for each app: bound, unit, policy and counter are in the docstring of
:class:`~cachecast.tasks.webhook_queue.AppQueue`. HTTP is in
:mod:`cachecast.tasks.webhook_delivery`.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec
import structlog
import trio

from cachecast.metrics import Durations
from cachecast.tasks.webhook_delivery import (
    CLOSE_GRACE_S,
    LOG_INTERVAL_S,
    Courier,
    open_client,
)
from cachecast.tasks.webhook_queue import AppQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx2

    from cachecast.apps import App
    from cachecast.events import AppEvent
    from cachecast.handover.state import WebhookState
    from cachecast.metrics import AppCounters
    from cachecast.tasks.webhook_queue import UrlQueue
    from cachecast.tracing import Tracing

__all__ = ["WebhookUrl", "Webhooks"]

#: Number of requests under way to one URL. With one, a channel whose receiver fails would stop all
#: others for five minutes; with very many, a receiver that comes back would be overrun. Browsers
#: settled on 6 connections to a host for the same reason; 8 make 160 events/s at 50 ms an answer.
MAX_LANES: Final = 8

#: Seconds between two looks at whether the last request has ended.
PAUSE_TICK_S: Final = 0.01

_log = structlog.get_logger("cachecast.webhooks")


class WebhookUrl(msgspec.Struct, frozen=True):
    """How one URL fares.

    Attributes:
        place: host and path, without what may be secret.
        n_waiting: events that wait for a request.
        n_under_way: events of requests under way, and of those that wait to be tried again.
        failure: why the last try failed; None if it was accepted or none was made.
        failing_for_s: seconds since the first failure behind the last success.
    """

    place: str
    n_waiting: int
    n_under_way: int
    failure: str | None
    failing_for_s: float | None


class Webhooks:
    """Takes the events of all apps and brings them to their URLs."""

    def __init__(
        self,
        *,
        unix_now: Callable[[], float],
        on_miss_acknowledged: Callable[[str, str], None] = lambda _app_id, _channel: None,
        open_client: Callable[[], httpx2.AsyncClient] = open_client,
        jitter: Callable[[], float] = random.random,
        tracing: Tracing | None = None,
    ) -> None:
        """Make it, without any app; nothing is opened before :meth:`run`.

        Args:
            unix_now: function that gives the wall time in seconds, for ``time_ms``.
            on_miss_acknowledged: function called with app id and channel, once for each
                ``cache_miss``: when the first URL has accepted it, or when the last was given up or
                dropped. Not called if no URL's filters let it pass. May be called from inside
                :meth:`notify` of another event, whose arrival made the queue overflow.
            open_client: function that makes the HTTP client, which is closed at the end of
                :meth:`run`.
            jitter: function that draws a number from 0 to 1, for the pauses between tries.
            tracing: what begins a span for each try; None for no spans.
        """
        self._queues: dict[str, AppQueue] = {}
        #: Of apps that have been removed, or have no webhooks any more: what they still wait for.
        self._ending: list[AppQueue] = []
        self._has_any = trio.Event()
        self._on_miss_acknowledged = on_miss_acknowledged
        self._unix_now = unix_now
        self._open_client = open_client
        self._jitter = jitter
        self._tracing = tracing
        self.delays = Durations()
        self._courier: Courier | None = None
        self._nursery: trio.Nursery | None = None
        self._n_flushing = 0
        self._is_paused = False
        self._life = trio.CancelScope()
        self._is_over = trio.Event()
        self._failed_before: dict[AppQueue, int] = {}

    def serve(self, app: App, counters: AppCounters) -> None:
        """Bring an app's events to its webhooks, if it has any, on these terms. Never yields.

        Args:
            app: an app that is new here, or on other terms.
            counters: counters of the app; ``webhooks`` counts events as ``delivered``, ``retried``
                (each try but the first), ``failed`` and ``dropped``, once for each URL.
        """
        queue = self._queues.get(app.id)
        if not app.webhooks:
            self.end_app(app.id)
        elif queue is not None:
            queue.serve(app)
            self._start_tasks(queue)
        elif not self._is_over.is_set():
            acknowledge = partial(self._on_miss_acknowledged, app.id)
            self._queues[app.id] = AppQueue(app, counters, acknowledge)
            self._has_any.set()

    def end_app(self, app_id: str) -> None:
        """Take no more events of an app; those that wait are sent all the same. Never yields."""
        queue = self._queues.pop(app_id, None)
        if queue is not None:
            self._ending.append(queue)

    def _all(self) -> list[AppQueue]:
        """Queues in which something may wait."""
        self._ending = [queue for queue in self._ending if queue.n_queued]
        return [*self._queues.values(), *self._ending]

    def wants(self, app_id: str, name: str) -> bool:
        """Whether an event of that name is worth :meth:`notify`. O(1).

        True also if only its counterpart is asked for: a URL that hears of ``channel_occupied``
        alone would otherwise be told of every reload.
        """
        queue = self._queues.get(app_id)
        return queue is not None and name in queue.names

    def notify(
        self, app_id: str, event: AppEvent, on_done: Callable[[], object] | None = None
    ) -> None:
        """Queue an event. Never yields, never blocks; O(URLs of the app).

        Args:
            app_id: id of the app in which it happened.
            event: what happened.
            on_done: function called once, when every URL that wants it has accepted it, or it was
                given up, dropped or taken back by its counterpart. It is not called for what is
                lost at the end of :meth:`run`, or comes behind it.
        """
        queue = self._queues.get(app_id)
        if self._is_over.is_set():
            return
        if queue is not None and event.name in queue.names:
            queue.add(event, trio.current_time(), on_done, has_grace=not self._n_flushing)
            self._start_tasks(queue)
        elif on_done is not None:
            on_done()

    def queued_events(self, app_id: str) -> int:
        """Events that are held, waiting or under way, once for each URL they are waiting for."""
        queue = self._queues.get(app_id)
        return 0 if queue is None else queue.n_queued

    def states(self, app_id: str) -> list[WebhookUrl]:
        """Each URL of an app, for an operator; nothing of it is secret. Needs Trio's clock."""
        queue = self._queues.get(app_id)
        if queue is None:
            return []
        now = trio.current_time()
        under_way = Counter(item.urls_queue for item in queue.under_way)
        return [
            WebhookUrl(
                url.endpoint.place,
                url.n_waiting,
                under_way[url],
                url.endpoint.failure,
                None if url.endpoint.failure is None else now - url.endpoint.failing_since,
            )
            for url in queue.urls
        ]

    async def run(self) -> NoReturn:
        """Deliver for ever. Before there is any webhook it does nothing and opens nothing.

        Starts in its own nursery: for each URL up to :data:`MAX_LANES` lanes, for each app one
        task for the grace and one for the losses, each only while there is something for it to
        do. If cancelled, what was not delivered is lost, counted and logged.
        """
        if self._has_any.is_set():
            client = self._open_client()
        else:
            await self._has_any.wait()
            # In a thread, for others are served already.
            client = await trio.to_thread.run_sync(self._open_client, abandon_on_cancel=True)
        self._courier = Courier(client, self._unix_now, self._jitter, self.delays, self._tracing)
        try:
            with self._life:
                await self._run_nursery()
        finally:
            self._report_unsent()
            self._queues.clear()
            self._ending.clear()
            self._is_over.set()
            with trio.move_on_after(CLOSE_GRACE_S, shield=True):
                await client.aclose()
        await trio.sleep_forever()

    async def flush(self, within_s: float) -> None:
        """Deliver what waits, within so many seconds, and end: nothing is taken or queued any more.

        Every event has one try more, also those that wait for their next one. It does not last
        longer than that: what fails then is lost, counted and logged, and so is what is left when
        the time is over. If cancelled, :meth:`run` goes on, but without further tries.
        """
        if self._courier is not None and (queues := self._all()):
            self._failed_before = {queue: queue.outcomes["failed"] for queue in queues}
            self._courier.begin_last_chance()
            with trio.move_on_after(within_s):
                await self.wait_flushed()
            self._life.cancel()
            await self._is_over.wait()
        await trio.lowlevel.checkpoint()

    async def wait_flushed(self) -> None:
        """Wait until nothing is queued; from now on and until then no grace and no batch window.

        Retries keep their pauses, so a receiver that is down can make this last for minutes: the
        caller bounds it with a cancel scope. If cancelled, the grace is back for new events. Only
        while :meth:`run` runs does anything become less.
        """
        self._n_flushing += 1
        try:
            for queue in self._all():
                while queue.held:
                    queue.release(inf, trio.current_time())
                    self._start_tasks(queue)
                    await trio.lowlevel.checkpoint()
                for url in queue.urls:
                    url.filled.set()
            while any(queue.n_queued for queue in self._all()):
                for queue in self._all():
                    if queue.n_queued:
                        await queue.emptied.park()
            await trio.lowlevel.checkpoint()
        finally:
            self._n_flushing -= 1

    # --- handing over

    async def pause(self, within_s: float) -> None:
        """Begin no further request, and wait until none is under way, so many seconds at most.

        Events are taken and kept meanwhile. :meth:`go_on` ends it; so does being cancelled.
        """
        self._is_paused = True
        try:
            with trio.move_on_after(within_s):
                while any(  # noqa: ASYNC110 - nothing announces it, nor should it
                    queue.n_in_flight for queue in self._queues.values()
                ):
                    await trio.sleep(PAUSE_TICK_S)
            await trio.lowlevel.checkpoint()
        except BaseException:
            self.go_on()
            raise

    def go_on(self) -> None:
        """Make requests again. Never yields."""
        self._is_paused = False
        for queue in self._queues.values():
            self._start_tasks(queue)

    def export(self, app_id: str) -> WebhookState | None:
        """What an app's webhooks have not been told; None if it has none. Never yields."""
        queue = self._queues.get(app_id)
        return None if queue is None else queue.export(trio.current_time())

    def restore(self, app_id: str, state: WebhookState) -> int:
        """Tell what another process has not told any more. Never yields.

        Returns:
            Number of events that nobody here is to be told, for the app has no webhooks any more.
        """
        queue = self._queues.get(app_id)
        if queue is None:
            return len(state.waiting) + len(state.held)
        queue.restore(state, trio.current_time())
        self._start_tasks(queue)
        return 0

    def let_go(self) -> None:
        """Another process has what waits: forget it, requests under way included. Never yields."""
        self._queues.clear()
        self._life.cancel()

    async def _run_nursery(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for queue in self._all():
                    self._start_tasks(queue)
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def _report_unsent(self) -> None:
        for queue in self._all():
            queue.outcomes["dropped"] += queue.n_queued
            lost = queue.n_queued
            if queue in self._failed_before:
                lost += queue.outcomes["failed"] - self._failed_before[queue]
            if lost:
                _log.warning("webhook events lost at stop", app=queue.app.id, lost=lost)

    def _start_tasks(self, queue: AppQueue) -> None:
        """Start what the state of a queue asks for and does not have yet."""
        if self._nursery is None:
            return
        for url in queue.urls:
            self._start_lane(queue, url)
        if queue.held and not queue.has_grace_task:
            queue.has_grace_task = True
            self._nursery.start_soon(self._run_grace, queue)
        if queue.n_unreported and not queue.has_loss_task:
            queue.has_loss_task = True
            self._nursery.start_soon(self._run_loss_log, queue)

    def _start_lane(self, queue: AppQueue, url: UrlQueue) -> None:
        is_full = url.is_choosing or url.n_lanes >= MAX_LANES
        if self._nursery is None or self._is_paused or not url.ready or is_full:
            return
        url.n_lanes += 1
        due = url.begin_choosing(at_once=self._n_flushing > 0)
        self._nursery.start_soon(self._run_lane, queue, url, due)

    async def _run_lane(self, queue: AppQueue, url: UrlQueue, due: float) -> None:
        """Send batch after batch while anything is ready. Entered with the right to choose.

        Nothing is ever left lying: whatever becomes ready has a lane that is choosing, or starts
        one, or all lanes are under way, and each of those looks again when it is done.
        """
        assert self._courier is not None
        while True:
            with trio.move_on_at(due):
                await url.filled.wait()
            batch = queue.take(url)
            self._start_lane(queue, url)
            events = [item.event for item in batch]
            if events:
                is_accepted = await self._courier.deliver(url.endpoint, events, queue.outcomes)
                url.finish(batch)
                queue.settle(batch, is_accepted=is_accepted)
            if url.is_choosing or not url.ready or self._is_paused:
                break
            due = url.begin_choosing(at_once=self._n_flushing > 0)
        url.n_lanes -= 1

    async def _run_grace(self, queue: AppQueue) -> None:
        """Let departures go as their grace ends, until nothing is held."""
        while True:
            await trio.sleep_until(queue.next_release_at())
            now = trio.current_time()
            queue.release(now, now)
            self._start_tasks(queue)
            if not queue.held:
                break
        queue.has_grace_task = False

    async def _run_loss_log(self, queue: AppQueue) -> None:
        """Log losses at most once a minute, and none twice; ends after a minute without any."""
        while True:
            lost, queue.n_unreported = queue.n_unreported, 0
            _log.warning("webhook queue full, oldest dropped", app=queue.app.id, lost=lost)
            await trio.sleep(LOG_INTERVAL_S)
            if not queue.n_unreported:
                break
        queue.has_loss_task = False
