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

from benchmarks.histogram import Histogram
from engine import App, BrokerConfig, open_broker

if TYPE_CHECKING:
    from engine import Broker

_APP = "4242"
_TICK_S = 0.001
_VALUE = "x" * 64
_PER_CHECKPOINT = 100
_GIVE_UP_S = 60.0


class Ticker:
    """Wants to run every millisecond and notes by how much it was late, and the evictor too.

    It notes in arrays: a histogram's few thousand numbers, made while values are freed, would lie
    scattered over the memory that becomes free and keep all of it from going back to the system.

    Attributes:
        pauses_ns: How late each tick was.
        lags_ns: At each tick, how far the oldest value held was past its deadline.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.pauses_ns = array("q")
        self.lags_ns = array("q")

    async def run(self) -> None:
        """Tick until cancelled."""
        cache, clock = self._broker.cache, self._broker.clock
        while True:
            due = time.monotonic() + _TICK_S
            await trio.sleep(_TICK_S)
            self.pauses_ns.append(max(0, int((time.monotonic() - due) * 1e9)))
            self.lags_ns.append(int(max(0.0, clock() - cache.next_deadline()) * 1e9))


async def measure(n_values: int, ttl_s: float) -> dict[str, Any]:
    """Publish `n_values` to as many cache channels, wait until all have expired.

    Raises:
        TimeoutError: Values are still held a minute after the last deadline.
    """
    process = psutil.Process()
    app = App(
        id=_APP,
        key="benchmark-key",
        secret="benchmark-secret",
        max_cache_entries=n_values,
        max_cache_bytes=n_values * 1024,
    )
    config = BrokerConfig(
        apps=(app,),
        cache_ttl_s=ttl_s,
        max_cache_entries=n_values,
        max_cache_bytes=n_values * 1024,
    )
    async with open_broker(config) as broker:
        before = process.memory_info().rss
        started = time.monotonic()
        await _fill(broker, n_values)
        filled_s = time.monotonic() - started
        peak, tracked = process.memory_info().rss, broker.cache.n_bytes(_APP)
        held = broker.cache.n_entries(_APP)
        ticker, used = await _watch(broker)
        gc.collect()
        after = process.memory_info().rss
        pauses, lags = Histogram(), Histogram()
        pauses.extend_ns(ticker.pauses_ns)
        lags.extend_ns(ticker.lags_ns)
        return {
            "n_values": n_values,
            "n_held": held,
            "filled_per_s": n_values / filled_s,
            "lag_p99_us": lags.percentile(99),
            "lag_max_us": lags.max_us,
            "pause_p99_us": pauses.percentile(99),
            "pause_max_us": pauses.max_us,
            "cpu_us_per_value": used / max(1, held) * 1e6,
            "rss_before": before,
            "rss_bytes": peak,
            "rss_after_bytes": after,
            "tracked_bytes": tracked,
            "tracked_after": broker.cache.n_bytes(_APP),
            "raw": {"pauses": pauses.to_json(), "lags": lags.to_json()},
        }


async def _fill(broker: Broker, n_values: int) -> None:
    for i in range(n_values):
        broker.publish_nowait(_APP, f"cache-{i:07}", "tick", _VALUE)
        if i % _PER_CHECKPOINT == 0:
            await trio.lowlevel.checkpoint()


async def _watch(broker: Broker) -> tuple[Ticker, float]:
    """Tick from just before the first deadline until nothing is held; return CPU seconds used."""
    ticker = Ticker(broker)
    # What was published is alive and will stay so for a while: the collector need not look at it,
    # and a server would have frozen its start-up objects as well.
    gc.collect()
    gc.freeze()
    await trio.sleep(max(0.0, broker.cache.next_deadline() - broker.clock() - 0.2))
    used = time.process_time()
    with trio.fail_after(_GIVE_UP_S + 1_800):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ticker.run)
            while broker.cache.n_entries(_APP):  # noqa: ASYNC110 - nothing in it sets an event
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    return ticker, time.process_time() - used


def main() -> None:
    """Measure with as many values and as long a life as the arguments say."""
    sample = trio.run(measure, int(sys.argv[1]), float(sys.argv[2]))
    print(json.dumps({"sample": sample}))


if __name__ == "__main__":
    main()
