"""One run of a simulated world: a seed decides everything in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio._core._run as trio_run
from trio.testing import MockClock

from tests.cluster.simulation.scenario import play
from tests.cluster.simulation.world import open_world

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.cluster.proof.verdict import Violation
    from tests.cluster.simulation.world import World

__all__ = ["run"]


def run(seed: int, faults: Sequence[str]) -> tuple[World, list[Violation]]:
    """Play a world and judge it.

    Args:
        seed: of the world, and of the order in which Trio runs tasks that are ready at once.
        faults: names of those that may happen.
    """

    async def main() -> tuple[World, list[Violation]]:
        async with open_world(seed) as world:
            await play(world, list(faults))
            return world, await world.finish()

    before = trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
    trio_run._r.seed(seed)
    try:
        return trio.run(main, clock=MockClock(autojump_threshold=0))
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = before
