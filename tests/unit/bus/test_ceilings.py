"""What a node has published is freed in time, and an app's ceilings hold for all nodes together."""

from __future__ import annotations

import trio
from structlog.testing import capture_logs

from cachecast.bus import ceilings as ceilings_module
from cachecast.bus.engine_bus import AppTerms
from tests.unit.bus.meeting import APP, meeting


async def _count(node, n, first=0):
    found = 0
    for at in range(first, first + n):
        found += (await node.bus.read(APP, f"cache-{at}").wait()) is not None
    return found


async def test_values_are_asked_for_when_their_time_is_over(autojump_clock):
    async with meeting() as place:
        node = await place.join(terms=AppTerms(5, 100))
        for n in range(20):
            await node.publish(f"cache-{n}", "v").wait()
        await node.publish("cache-0", "again").wait()
        assert node.bus.total("cache_entries", APP, 20) == 20
        await trio.sleep(6)

        assert node.bus.ceilings.n_freed == 20
        assert node.bus.ceilings.n_evicted == 0


async def test_the_oldest_values_of_all_nodes_go_when_an_app_has_too_many(autojump_clock):
    async with meeting() as place:
        terms = AppTerms(60, 100, max_entries=30)
        a, b = await place.join("a", terms=terms), await place.join("b", terms=terms)
        for n in range(30):
            await (a, b)[n % 2].publish(f"cache-{n}", "v").wait()
        await trio.sleep(1)
        assert await _count(a, 30) == 30
        for n in range(30, 50):
            await (a, b)[n % 2].publish(f"cache-{n}", "v").wait()
        await trio.sleep(2)

        assert 28 <= await _count(a, 50) <= 30
        assert await _count(b, 20, first=30) == 20, "the newest stay"
        assert a.bus.ceilings.n_evicted > 0
        assert b.bus.ceilings.n_evicted > 0
        assert a.bus.statistics()[0].evicted_values == a.bus.ceilings.n_evicted


async def test_that_a_ceiling_ends_values_is_said_in_the_log_once_a_minute(autojump_clock):
    """With the app whose ceiling it is: an operator may raise it."""
    async with meeting() as place:
        node = await place.join(terms=AppTerms(600, 100, max_entries=10))
        with capture_logs() as logs:
            for n in range(80):
                await node.publish(f"cache-{n}", "v").wait()
                await trio.sleep(1)

        said = [(line["log_level"], line["app"]) for line in logs if "ceiling" in line["event"]]
        assert said == [("warning", APP)] * 2


async def test_bytes_count_too(autojump_clock):
    async with meeting() as place:
        node = await place.join(terms=AppTerms(60, 100, max_bytes=20_000))
        for n in range(50):
            await node.publish(f"cache-{n}", "v" * 1000).wait()
        await trio.sleep(2)

        assert 10 <= await _count(node, 50) <= 20


async def test_only_so_many_are_followed(autojump_clock, monkeypatch):
    monkeypatch.setattr(ceilings_module, "MAX_FOLLOWED", 5)
    async with meeting() as place:
        node = await place.join(terms=AppTerms(5, 100))
        for n in range(9):
            await node.publish(f"cache-{n}", "v").wait()
        await trio.sleep(6)

        assert node.bus.ceilings.n_freed == 5
