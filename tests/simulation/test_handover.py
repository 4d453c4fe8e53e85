"""What clients hear is the same whether the process behind them was replaced or not, to the byte.

The stories are those of the broker's state machine. Each is played twice, once with another process
wherever the story says so; and what every client received is compared.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule
from trio.testing import MockClock

import cachecast.broker.clients
from tests.simulation.test_broker_machine import BrokerMachine
from tests.simulation.world import TTL_S, open_world

if TYPE_CHECKING:
    from collections.abc import Iterator


class HandoverMachine(BrokerMachine):
    """Plays each story twice.

    Whole seconds pass in it, for the tasks of a process look once a second from its start on, and
    are compared where both look at the same instant.
    """

    @rule(seconds=st.sampled_from([1.0, 3.0, 10.0, TTL_S - 1.0, TTL_S]))
    def time_passes(self, seconds: float) -> None:  # type: ignore[explicit-override]  # Python 3.12
        super().time_passes(seconds)

    def machine_sleeps(self, seconds: float) -> None:  # type: ignore[explicit-override]
        super().time_passes(seconds)

    def teardown(self) -> None:
        """Play and compare."""
        self.another_process_takes_over()  # at least once
        self.story += self.story[: len(self.story) // 2]
        with pytest.MonkeyPatch.context() as patch:
            heard = []
            for is_replaced in (False, True):
                numbers: Iterator[int] = count(1)
                patch.setattr(
                    cachecast.broker.clients, "_new_socket_id", lambda of=numbers: f"1.{next(of)}"
                )
                heard.append(
                    trio.run(self._play, is_replaced, clock=MockClock(autojump_threshold=0))
                )
            assert heard[0] == heard[1]

    async def _play(self, is_replaced: bool) -> list[tuple[bytes, int | None]]:
        async with open_world(is_replaced=is_replaced) as world:
            for step in self.story:
                result = step(world)
                if result is not None:
                    await result
                await world.settle()  # which of two tasks is first is a matter of chance
            for player in world.players:
                player.client.start_reading()
            await world.settle()
            return [(client.received, client.close_code) for client in world.everybody]


HandoverMachine.TestCase.settings = settings(stateful_step_count=40, max_examples=15)
TestHandoverMachine = HandoverMachine.TestCase
