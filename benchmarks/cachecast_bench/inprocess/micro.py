"""The price of single calls: encode, decode, sign, verify, and `Broker.publish` in process.

Each call is timed in batches that take at least 20 ms, several times; the median of the batches is
what a report shows, and all of them are kept. The garbage collector is off meanwhile, as in
`timeit`, so that a collection that earlier work has caused does not hit one of them.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import trio

from cachecast import App, BrokerConfig, open_broker
from cachecast.protocol import auth, frames
from cachecast.protocol.codec import JSON, MSGPACK
from cachecast.protocol.messages import Publication
from cachecast.protocol.wire import JSON_WEBSOCKET, MSGPACK_WEBSOCKET
from cachecast_bench.dialects.base import client_frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast import Broker

_BATCH_S = 0.02
_SECRET = b"benchmark-secret"
_DATA = '{"price":1.0842,"volume":1200,"at":"2026-01-01T00:00:00Z"}' + "x" * 198
_PUBLICATION = Publication(channel="cache-prices", event="tick", data=_DATA)
_SUBSCRIBE = b'{"event":"pusher:subscribe","data":{"auth":"","channel":"cache-prices"}}'
_BODY = json.dumps({"name": "tick", "channel": "cache-prices", "data": _DATA}).encode()
_PATH = "/apps/4242/events"


def measure(call: Callable[[], object], batches: int) -> dict[str, Any]:
    """Time `call`; return microseconds a call, the median of batches and the best of them."""
    n, elapsed = 1, 0.0
    while elapsed < _BATCH_S:
        n *= 2
        elapsed = _time(call, n)
    gc.collect()
    gc.disable()
    try:
        samples = [_time(call, n) / n * 1e6 for _ in range(batches)]
    finally:
        gc.enable()
    middle = statistics.median(samples)
    return {
        "us_per_call": middle,
        "best_us": min(samples),
        "calls_per_s": 1e6 / middle,
        "raw": {"us": samples, "calls_a_batch": n},
    }


def _time(call: Callable[[], object], n: int) -> float:
    started = time.perf_counter()
    for _ in range(n):
        call()
    return time.perf_counter() - started


def calls() -> dict[str, Callable[[], object]]:
    """Return every call that is measured, by name."""
    parser = frames.FrameParser(65_536)
    masked = client_frame(_SUBSCRIBE)
    packed = MSGPACK.event(_PUBLICATION)
    params = [("auth_key", "benchmark-key"), ("auth_version", "1.0"), ("body_md5", "0" * 32)]
    text = auth.request_text("POST", _PATH, params)
    token = f"benchmark-key:{auth.sign(_SECRET, b'1.1:private-a')}"

    def parse(data: bytes) -> object:
        parser.feed(data)
        return parser.take()

    return {
        "encode JSON frame": lambda: JSON_WEBSOCKET.event(_PUBLICATION),
        "encode msgpack frame": lambda: MSGPACK_WEBSOCKET.event(_PUBLICATION),
        "parse client frame": lambda: parse(masked),
        "decode subscribe": lambda: JSON.decode(_SUBSCRIBE),
        "decode msgpack": lambda: MSGPACK.decode(packed),
        "sign request": lambda: auth.sign(_SECRET, text.encode()),
        "verify subscription": lambda: auth.verify_client(
            token, "1.1:private-a", "key:signature", lambda _: _SECRET
        ),
    }


async def publish(n_subscribed: int, seconds: float) -> dict[str, Any]:
    """Call `Broker.publish` for `seconds`, with a consumer in process if `n_subscribed`.

    Returns:
        events_per_s and cpu_us_per_event.
    """
    app = App(id="4242", key="benchmark-key", secret=_SECRET.decode())
    async with open_broker(BrokerConfig(apps=(app,))) as broker, trio.open_nursery() as nursery:
        for i in range(n_subscribed):
            await nursery.start(_consume, broker, f"publish-{i:02}")
        n, started, used = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - started < seconds:
            for i in range(100):
                await broker.publish("4242", f"publish-{i % 32:02}", "tick", _DATA)
            n += 100
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - used
        nursery.cancel_scope.cancel()
    return {
        "events_per_s": n / wall_s,
        "cpu_us_per_event": cpu_s / n * 1e6,
        "target_cpu": cpu_s / wall_s,
        "raw": {"n": n, "wall_s": wall_s, "cpu_s": cpu_s},
    }


async def _consume(
    broker: Broker, channel: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    async with broker.subscribe("4242", channel) as events:
        task_status.started()
        async for _ in events:
            continue


def main() -> None:
    """Measure what the first argument names ("codec" or "publish") with the second's effort."""
    what, effort = sys.argv[1], float(sys.argv[2])
    if what == "codec":
        document = {name: measure(call, int(effort)) for name, call in calls().items()}
    else:
        document = {
            "nobody": trio.run(publish, 0, effort),
            "subscribed": trio.run(publish, 32, effort),
        }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
