"""Nodes that meet over the model of an engine: the bus is real, down to the bytes of its links."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from cachecast.bus.engine_bus import AppTerms, EngineBus
from cachecast.bus.seam import Envelope
from cachecast.bus_config import BusConfig
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.messages import Publication
from tests.cluster.simulation.network import NODE, Engine, Network, dialled_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cachecast.bus.receipt import Receipt

APP = "app"
TTL_S = 60.0


class Witness:
    """A node that writes down what it is told."""

    def __init__(self, bus: EngineBus) -> None:
        self.bus = bus
        self.delivered: list[tuple[str, str]] = []
        self.values: dict[str, tuple[str, float, float]] = {}
        self.told: list[tuple[Any, ...]] = []

    def deliver(self, envelope: Envelope) -> None:
        channel, data = envelope.name.text, str(envelope.publication.data)
        self.delivered.append((channel, data))
        if envelope.published_at is not None:
            self.values[channel] = data, envelope.published_at, envelope.deadline

    def forget(self, app_id: str, channel: str) -> None:
        self.values.pop(channel, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def tell(*arguments: Any) -> None:
            self.told.append((name, *arguments))

        return tell

    def said(self, name: str) -> list[tuple[Any, ...]]:
        return [told[1:] for told in self.told if told[0] == name]

    def publish(self, channel: str, *values: str, exclude: str | None = None) -> Receipt[None]:
        return self.bus.publish([envelope(channel, value, exclude) for value in values])

    @property
    def seat(self):
        return self.bus.halves[0].seat

    @property
    def kept(self):
        return self.bus.halves[0].values


def envelope(channel: str, data: str, exclude: str | None = None) -> Envelope:
    publication = Publication("tick", channel, data, None, exclude)
    return Envelope(APP, parse_channel_name(channel), publication, is_server_side=True)


class Meeting:
    """An engine, or several, and whoever has joined."""

    def __init__(self, nursery: trio.Nursery, engines: tuple[str, ...]) -> None:
        self.nursery = nursery
        self.network = Network(random.Random(1))
        self.network.lag_s = {"messages": 0.002, "commands": 0.002}
        self.engines = {name: Engine(self.network) for name in engines}
        self.engine = self.engines[engines[0]]

    def bus(self, name: str = "n", terms: AppTerms | None = None, **more: Any) -> EngineBus:
        NODE.set(name)  # for the tasks that are started by its start
        return EngineBus(
            BusConfig(urls=tuple(f"valkey://{engine}" for engine in self.engines)),
            {APP: terms or AppTerms(TTL_S, 100)},
            now=trio.current_time,
            random=lambda: 0.5,
            **more,
        )

    async def join(self, name: str = "n", **more: Any) -> Witness:
        witness = Witness(self.bus(name, **more))
        await witness.bus.start(witness, self.nursery)
        return witness


@asynccontextmanager
async def meeting(*engines: str) -> AsyncIterator[Meeting]:
    """Where nodes can meet; virtual time must be on."""
    names = engines or ("one",)
    async with trio.open_nursery() as nursery:
        found = Meeting(nursery, names)
        with dialled_to(found.engines):
            nursery.start_soon(found.network.run)
            yield found
            nursery.cancel_scope.cancel()


async def up(*witnesses: Witness) -> None:
    """Wait until they say that they are up."""
    with trio.fail_after(30):
        await trio.sleep(0.05)  # until they know that something ended
        seats = [half.seat for one in witnesses for half in one.bus.halves]
        while not all(seat.is_open for seat in seats):  # noqa: ASYNC110 - polled on purpose
            await trio.sleep(0.01)
