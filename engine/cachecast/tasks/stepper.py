"""The task that does what takes many steps: one of an app at a time, apps in rotation.

Two hundred lists of a hundred thousand channels at once would be two hundred steps between two
turns of everybody else, if each was a task; and each would be one.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NoReturn

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Stepper"]


class Stepper:
    """Owns the order of steps; :meth:`run` is its task.

    What waits here is bounded by those who ask, of whom each waits for an answer.
    """

    def __init__(self) -> None:
        self._works: dict[str, deque[Callable[[], bool]]] = {}
        self._line: deque[str] = deque()
        self._wakeup = trio.Event()

    def add(self, app_id: str, step: Callable[[], bool]) -> None:
        """Have a function called until it returns True, after those of the app that came before.

        Never yields.

        Args:
            app_id: id of the app whose turns it takes.
            step: function that does a bounded part of the work and does not raise.
        """
        works = self._works.get(app_id)
        if works is None:
            works = self._works[app_id] = deque()
            self._line.append(app_id)
        works.append(step)
        self._wakeup.set()

    async def run(self) -> NoReturn:
        """Do all steps, for ever. If cancelled, the rest is not done."""
        while True:
            if self._line:
                await trio.lowlevel.checkpoint()
            else:
                self._wakeup = trio.Event()
                await self._wakeup.wait()
            self.take_step()

    def take_step(self) -> None:
        """Do one step; synchronous so that tests can."""
        app_id = self._line.popleft()
        works = self._works[app_id]
        if works[0]():
            works.popleft()
        if works:
            self._line.append(app_id)
        else:
            del self._works[app_id]
