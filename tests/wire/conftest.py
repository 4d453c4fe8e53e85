"""Fixtures of the wire tests: everything on a virtual clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
import trio

from cachecast.broker import open_broker
from cachecast.config import BrokerConfig
from cachecast.testing import TEST_APP, open_memory_network
from tests.wire.transcript import Stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cachecast.testing import MemoryNetwork


@pytest.fixture
def app_fields() -> dict[str, object]:
    """Fields of the app that differ from ``TEST_APP``; parametrize it to set some."""
    return {}


@pytest.fixture
def config_fields() -> dict[str, object]:
    """Fields of the configuration; parametrize it to set some. Silence is hosted Pusher's."""
    return {"activity_timeout_s": 120.0}


@pytest.fixture
def cachecast_config(
    app_fields: dict[str, object], config_fields: dict[str, object]
) -> BrokerConfig:
    """One app, as the test wants it."""
    app = msgspec.structs.replace(TEST_APP, **app_fields)
    return BrokerConfig(apps=(app,), **config_fields)


@pytest.fixture
def stage(cachecast_network: MemoryNetwork) -> Stage:
    """Nobody is on it. Tests name ``autojump_clock`` themselves: pytest-trio looks only there."""
    return Stage(cachecast_network)


class SleepyStage(Stage):
    """A stage on a machine that can be suspended: the broker's clock goes on, Trio's stands still.

    So no task of the broker has run when the clock has jumped: the evictor is as late as can be.
    """

    def __init__(self, network: MemoryNetwork, machine: Machine) -> None:
        super().__init__(network)
        self.machine = machine


class Machine:
    """Seconds that it has slept."""

    def __init__(self) -> None:
        self.asleep = 0.0

    def now(self) -> float:
        return trio.current_time() + self.asleep

    def sleep_until(self, now: float) -> None:
        self.asleep = now - trio.current_time()


@pytest.fixture
async def sleepy(cachecast_config: BrokerConfig) -> AsyncIterator[SleepyStage]:
    """A stage on a machine that can be suspended."""
    machine = Machine()
    async with (
        open_broker(cachecast_config, clock=machine.now, unix_now=machine.now) as broker,
        open_memory_network(broker) as network,
    ):
        yield SleepyStage(network, machine)
