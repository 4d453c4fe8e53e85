"""Cached values by the million, and what their expiry does to the loop.

Values are published in process as fast as the broker takes them, so they expire as fast as that
again. A ticker that wants to run every millisecond sees each pause of the loop; at each tick it
also looks how far the oldest value that is still held is past its deadline. Nothing is sampled
while values are published: only the time from the first deadline to the last one freed counts.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from array import array
from typing import TYPE_CHECKING, Any

import psutil
import trio

from cachecast import App, BrokerConfig, open_broker
from cachecast.cli.process import settle_garbage_collector
from cachecast_load.measures.histogram import Histogram

if TYPE_CHECKING:
    from cachecast import Broker

_APP = "4242"
_TICK_S = 0.001
_VALUE = "x" * 64
_PER_CHECKPOINT = 100
_GIVE_UP_S = 60.0
_SETTLE_S = 1.0
_MOST_TICKS = 300_000
_N_TRIED = 10_000
_LEAST_TTL_S = 3.0
_TTL_MARGIN = 3.0
"""A value of a full cache costs more than one of a small one, and a busy machine is slower."""


class Ticker:
    """Wants to run every millisecond and notes by how much it was late, and the evictor too.

    Notes go into arrays that were there before: an object of ours that was made while values are
    freed, and stays, would hold the block of memory that it happens to lie in.

    Attributes:
        n_ticks: So far.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._pauses_us = array("q", [0]) * _MOST_TICKS
        self._lags_us = array("q", [0]) * _MOST_TICKS
        self.n_ticks = 0

    async def run(self) -> None:
        """Tick until cancelled."""
        cache, clock = self._broker.cache, self._broker.clock
        while self.n_ticks < _MOST_TICKS:
            due = time.monotonic() + _TICK_S
            await trio.sleep(_TICK_S)
            self._pauses_us[self.n_ticks] = max(0, int((time.monotonic() - due) * 1e6))
            self._lags_us[self.n_ticks] = int(max(0.0, clock() - cache.next_deadline()) * 1e6)
            self.n_ticks += 1

    @property
    def pauses(self) -> Histogram:
        """How late each tick was."""
        return _histogram(self._pauses_us[: self.n_ticks])

    @property
    def lags(self) -> Histogram:
        """At each tick, how far the oldest value held was past its deadline."""
        return _histogram(self._lags_us[: self.n_ticks])


def _histogram(values_us: array[int]) -> Histogram:
    made = Histogram()
    for value in values_us:
        made.record(value)
    return made


async def measure(n_values: int) -> dict[str, Any]:
    """Publish `n_values` to as many cache channels, wait until all have expired.

    Raises:
        TimeoutError: Values are still held a minute after the last deadline.
    """
    process = psutil.Process()
    ttl_s = await _life_for(n_values)
    # As a server does when it starts: what is measured is its collector, not the interpreter's.
    settle_garbage_collector()
    async with open_broker(_config(n_values, ttl_s)) as broker:
        ticker = Ticker(broker)
        before = process.memory_info().rss
        started = time.monotonic()
        await _fill(broker, n_values)
        filled_s = time.monotonic() - started
        peak, tracked = process.memory_info().rss, broker.cache.n_bytes(_APP)
        held = broker.cache.n_entries(_APP)
        used = await _watch(broker, ticker)
        await trio.sleep(_SETTLE_S)
        gc.collect()
        after = process.memory_info().rss
        pauses, lags = ticker.pauses, ticker.lags
        return {
            "n_values": n_values,
            "n_held": held,
            "ttl_s": ttl_s,
            "filled_per_s": n_values / filled_s,
            "lag_p99_us": lags.percentile(99),
            "lag_max_us": lags.greatest,
            "pause_p99_us": pauses.percentile(99),
            "pause_max_us": pauses.greatest,
            "cpu_us_per_value": used / max(1, held) * 1e6,
            "rss_before": before,
            "rss_bytes": peak,
            "rss_after_bytes": after,
            "tracked_bytes": tracked,
            "tracked_after": broker.cache.n_bytes(_APP),
            "raw": {"pauses": pauses.to_wire(), "lags": lags.to_wire()},
        }


def _config(n_values: int, ttl_s: float) -> BrokerConfig:
    app = App(
        id=_APP,
        key="benchmark-key",
        secret="benchmark-secret",
        max_cache_entries=n_values,
        max_cache_bytes=n_values * 1024,
    )
    return BrokerConfig(
        apps=(app,),
        cache_ttl_s=ttl_s,
        max_cache_entries=n_values,
        max_cache_bytes=n_values * 1024,
    )


async def _life_for(n_values: int) -> float:
    """Return how long values must live so that all are published before the first one expires.

    Long enough, for otherwise they are not all held at once; not much longer, for nothing happens
    meanwhile.
    """
    n = min(n_values, _N_TRIED)
    async with open_broker(_config(n, 1_800.0)) as broker:
        started = time.monotonic()
        await _fill(broker, n)
        each_s = (time.monotonic() - started) / n
    return _LEAST_TTL_S + _TTL_MARGIN * n_values * each_s


async def _fill(broker: Broker, n_values: int) -> None:
    for i in range(n_values):
        broker.publish_nowait(_APP, f"cache-{i:07}", "tick", _VALUE)
        if i % _PER_CHECKPOINT == 0:
            await trio.lowlevel.checkpoint()


async def _watch(broker: Broker, ticker: Ticker) -> float:
    """Tick from just before the first deadline until nothing is held; return CPU seconds used."""
    await trio.sleep(max(0.0, broker.cache.next_deadline() - broker.clock() - 0.2))
    used = time.process_time()
    with trio.fail_after(_GIVE_UP_S + 1_800):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ticker.run)
            while broker.cache.n_entries(_APP):  # noqa: ASYNC110 - nothing in it sets an event
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    return time.process_time() - used


def main() -> None:
    """Measure with as many values as the argument says."""
    sample = trio.run(measure, int(sys.argv[1]))
    print(json.dumps({"sample": sample}))


if __name__ == "__main__":
    main()
