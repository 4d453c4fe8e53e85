"""The task that calls the embedder's hooks: plain async callables, told what happens in an app.

Hooks hear the same events as webhooks, at once and without the 3 s grace. They run one after the
other, each within a time limit, so a hook that hangs or fails delays the others and harms nobody
else. The queue is bounded in events; when it is full the oldest is dropped and counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from traceback import format_exc
from typing import TYPE_CHECKING, Final, NoReturn

import structlog
import trio

if TYPE_CHECKING:
    from cachecast.events import AppEvent

__all__ = ["Hook", "Hooks"]

#: Function that is called with the app's id and the event.
Hook = Callable[[str, "AppEvent"], Awaitable[None]]

MAX_QUEUED_EVENTS: Final = 10_000

#: Seconds that one hook may take for one event.
HOOK_LIMIT_S: Final = 30.0

_log = structlog.get_logger("cachecast.hooks")


class Hooks:
    """Who wants to be called for what.

    Attributes:
        dropped: number of events that a full queue lost since start.
    """

    def __init__(self, on_miss_done: Callable[[str, str], None]) -> None:
        """Make it empty.

        Args:
            on_miss_done: function called with app id and channel once the hooks for a
                ``cache_miss`` have returned, which arms the next one.
        """
        self._hooks: dict[str, list[Hook]] = {}
        self._queue: deque[tuple[str, AppEvent]] = deque()
        self._wakeup = trio.Event()
        self._on_miss_done = on_miss_done
        self.dropped = 0

    def add(self, name: str, hook: Hook) -> None:
        """Call ``hook`` for every event of that name from now on."""
        self._hooks.setdefault(name, []).append(hook)

    def wants(self, name: str) -> bool:
        """Whether any hook asked for the event."""
        return name in self._hooks

    def notify(self, app_id: str, event: AppEvent) -> None:
        """Queue an event. Never yields."""
        if event.name not in self._hooks:
            return
        if len(self._queue) >= MAX_QUEUED_EVENTS:
            lost_app_id, lost = self._queue.popleft()
            self.dropped += 1
            if lost.name == "cache_miss":
                # Nobody will hear of it, so the next one may be told.
                self._on_miss_done(lost_app_id, lost.channel)
        self._queue.append((app_id, event))
        self._wakeup.set()

    async def run(self) -> NoReturn:
        """Call hooks for ever."""
        while True:
            await self._wakeup.wait()
            self._wakeup = trio.Event()
            while self._queue:
                app_id, event = self._queue.popleft()
                for hook in self._hooks.get(event.name, ()):
                    await self._call(hook, app_id, event)
                if event.name == "cache_miss":
                    self._on_miss_done(app_id, event.channel)
            await trio.lowlevel.checkpoint()

    async def _call(self, hook: Hook, app_id: str, event: AppEvent) -> None:
        try:
            with trio.fail_after(HOOK_LIMIT_S):
                await hook(app_id, event)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - it is logged
            # The embedder's code may fail in any way; that must not stop the node. It stands
            # beside a webhook delivery, the other place that calls foreign code.
            _log.error("hook failed", app=app_id, event_name=event.name, traceback=format_exc())
