"""Who is there, agreed on by three nodes over a real engine that kills its clients, and dies.

The same checks as on the model (``tests/unit/bus/test_attendance.py``), in real time: rosters are
equal everywhere in the end, what a node's clients are told of members alternates, and webhooks hear
of each transition once.
"""

from __future__ import annotations

import random
import signal
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.lowlevel

from cachecast.bus.engine_bus import AppTerms, EngineBus
from cachecast.bus_config import BusConfig
from cachecast.protocol.session import Member
from tests.cluster.engines import ENGINES, Plain, serving
from tests.unit.bus.attending import APP, Crowd, name_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from cachecast.events import AppEvent
    from tests.cluster.engines import Server

ROOMS = ("presence-a", "presence-b", "plain")
USERS = tuple(f"u{number}" for number in range(6))


@pytest.fixture(params=ENGINES)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """An engine that keeps no value anywhere, or the nodes would not join."""
    options = ["--slowlog-max-len", "0", "--crash-log-enabled", "no"]
    if request.param == "valkey":
        for kind in ("request", "reply"):
            options += [f"--commandlog-large-{kind}-max-len", "0"]
    with serving(request.param, *options) as server:
        yield server


class Host(Crowd):
    """A node on a bus of its own."""

    def __init__(self, config: BusConfig, max_members: int) -> None:
        super().__init__()
        terms = AppTerms(60, max_members, has_webhooks=True)
        self.bus = EngineBus(config, {APP: terms}, now=time.monotonic)
        self.guests: list[Guest] = []
        self.waiting: set[Guest] = set()
        self.events: list[AppEvent] = []
        self.n_downs = 0

    def deliver(self, envelope: Any) -> None: ...

    def forget(self, app_id: str, channel: str) -> None: ...

    def went_down(self, reason: str) -> None:
        self.n_downs += 1

    def take_hook(self, app_id: str, event: AppEvent, receipt: Any) -> None:
        self.events.append(event)
        receipt.fulfil(None)

    def members(self, channel: str) -> set[str]:
        """As clients know them."""
        return self.rosters[channel]


class Guest:
    """A subscription."""

    def __init__(self, host: Host, channel: str, user: str) -> None:
        self.host, self.name = host, name_of(channel)
        self.member = Member(user) if self.name.is_presence else None
        self.is_in = False
        self.receipt = host.bus.enter(APP, self.name, self.member)
        host.waiting.add(self)
        self.receipt.when_done(self._take)

    def _take(self) -> None:
        self.host.waiting.discard(self)
        assert self.receipt.fault is None, self.receipt.fault
        roster = self.receipt.value.roster
        self.is_in = True
        self.host.guests.append(self)
        if roster is not None:
            known = set(roster.user_ids)
            assert self.host.rosters.setdefault(self.name.text, known) == known

    def leave(self) -> None:
        self.host.guests.remove(self)
        self.host.bus.leave(APP, self.name, self.member)
        if not any(guest.name == self.name for guest in self.host.guests):
            self.host.rosters.pop(self.name.text, None)


@asynccontextmanager
async def hosts(
    server: Server, prefix: str, *, max_members: int = 100
) -> AsyncIterator[list[Host]]:
    config = BusConfig(urls=(f"unix://{server.path}",), prefix=prefix)
    async with trio.open_nursery() as nursery:
        found = [Host(config, max_members) for _ in range(3)]
        for host in found:
            await host.bus.start(host, nursery)
        yield found
        for host in found:
            await host.bus.aclose()
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool], within_s: float = 15.0) -> None:
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - polled on purpose
            await trio.sleep(0.02)


async def settle(found: list[Host]) -> None:
    """Until nothing is on its way any more."""
    await until(lambda: all(half.seat.is_open for host in found for half in host.bus.halves))
    await until(lambda: not any(host.waiting for host in found))
    await until(
        lambda: (
            not any(
                half.attendance.holdings.n_unsettled for host in found for half in host.bus.halves
            )
        )
    )
    await trio.sleep(0.3)  # a barrier of every link is behind all news then


async def check(found: list[Host]) -> None:
    """Every node, and the engine, and whoever is there say the same."""
    guests = [guest for host in found for guest in host.guests]
    for channel in ROOMS:
        here = [guest for guest in guests if guest.name.text == channel]
        users = {guest.member.key for guest in here if guest.member is not None}
        assert set(await found[0].bus.users(APP, channel).wait()) == users
        ((n, n_members),) = await found[1].bus.counts(APP, [channel]).wait()
        assert (n, n_members) == (len(here), len(users))
        for host in found:
            if users and any(guest.host is host for guest in here):
                assert host.members(channel) == users
    occupied = await found[2].bus.channels(APP, "").wait()
    assert occupied == {
        channel: n
        for channel in ROOMS
        if (n := sum(guest.name.text == channel for guest in guests))
    }


def check_events(found: list[Host]) -> None:
    """Of each channel and member arrivals and departures alternate."""
    events = [event for host in found for event in host.events]
    assert sum(bool(host.events) for host in found) == 1  # the courier
    there: dict[tuple[str, str | None], bool] = {}
    for event in events:
        what = event.channel, event.user_id
        has_come = event.name in {"channel_occupied", "member_added"}
        assert there.get(what, False) != has_come, event
        there[what] = has_come
    guests = [guest for host in found for guest in host.guests]
    expected: set[tuple[str, str | None]] = {(guest.name.text, None) for guest in guests}
    expected |= {(g.name.text, g.member.key) for g in guests if g.member is not None}
    assert {what for what, is_in in there.items() if is_in} == expected


async def come_and_go(found: list[Host], chance: random.Random, n: int) -> None:
    for _ in range(n):
        host = chance.choice(found)
        if host.guests and chance.random() < 0.45:
            chance.choice(host.guests).leave()
        else:
            Guest(host, chance.choice(ROOMS), chance.choice(USERS))
        if chance.random() < 0.3:
            await trio.sleep(chance.random() * 0.01)


@pytest.mark.slow
async def test_three_nodes_agree_though_their_links_are_killed(server: Server) -> None:
    """Each transition is told once, whatever was on its way."""
    chance = random.Random(7)
    async with hosts(server, "agree:") as found:
        for _ in range(6):
            await come_and_go(found, chance, 60)
            with Plain(server.path) as plain:
                plain.must("CLIENT", "KILL", "TYPE", chance.choice(["pubsub", "normal"]))
            await come_and_go(found, chance, 10)
        await settle(found)
        await check(found)
        await until(lambda: sum(len(host.events) for host in found) > 20)
        await trio.sleep(1.5)
        check_events(found)
        assert sum(host.n_downs for host in found) >= 6


@pytest.mark.slow
async def test_a_restarted_engine_is_told_everything_again_and_nobody_notices(
    server: Server,
) -> None:
    """But for the events that it had not given to the courier, which are lost with it."""
    chance = random.Random(8)
    async with hosts(server, "again:") as found:
        await come_and_go(found, chance, 100)
        await settle(found)
        await check(found)
        await until(lambda: sum(len(host.events) for host in found) > 5)
        await trio.sleep(1)
        watched = found[0].bus.watch(APP, USERS)
        signed_in = [host.bus.sign_in(APP, user) for host, user in zip(found, USERS, strict=False)]
        for receipt in (watched, *signed_in):
            await receipt.wait()
        await trio.sleep(0.2)
        for host in found:
            host.take()
            host.events.clear()
        server.kill(signal.SIGKILL)
        server.process.wait()
        await trio.to_thread.run_sync(server.start)
        await until(lambda: all(host.n_downs for host in found))
        await settle(found)

        await check(found)
        for host in found:
            assert [told for told in host.take() if told[0] != "count"] == []
            assert host.events == []
        assert await found[1].bus.terminate(APP, USERS[2]).wait() == 1
        await until(lambda: all(("ended", USERS[2]) in host.told for host in found))


@pytest.mark.slow
async def test_a_roster_of_many_pages_is_whole_for_everybody(server: Server) -> None:
    """While members come and go on all nodes."""
    chance = random.Random(9)
    n = 700
    async with hosts(server, "many:", max_members=1_000) as found:
        for number in range(n):
            Guest(found[number % 2], ROOMS[0], f"m{number}")
        await settle(found)
        newcomers = [Guest(found[2], ROOMS[0], "new")]
        for _ in range(150):
            chance.choice(found[0].guests).leave()
            chance.choice(found[1].guests).leave()
            if chance.random() < 0.2:
                await trio.lowlevel.checkpoint()
        await settle(found)

        assert newcomers[0].is_in
        assert len(found[2].members(ROOMS[0])) == n + 1 - 300
        await check(found)
