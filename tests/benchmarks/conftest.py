"""What the tests of the benchmark tool share: results made by hand, and a pair of sockets."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from cachecast_bench.result import Figure, Result, Row, Sample, ScenarioResult

if TYPE_CHECKING:
    from collections.abc import Iterator

MACHINE = {
    "cpu": "a processor",
    "n_cores": 2,
    "memory_bytes": 1 << 30,
    "hypervisor": True,
    "kernel": "Linux 6",
    "python": "CPython 3.11",
    "commit": "0123456789ab",
}


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connected pair: the server's end, and the client's, which does not block."""
    server, client = socket.socketpair()
    client.setblocking(False)
    with server, client:
        yield server, client


@pytest.fixture
def make_result():
    """Return a function that makes a result with one figure of these samples."""

    def make(samples=(1.0, 1.1, 1.2), *, better="higher", quick=False, **machine) -> Result:
        row = Row(
            {"subscribers": 10_000, "bytes": 4096, "mode": "paced"},
            "trio-websocket",
            [_sample(value) for value in samples],
        )
        words = "what it means, in one line"
        figure = Figure("ratio_to_raw_loop", "", better, words, list(samples))
        scenario = ScenarioResult("fanout", [row], [figure], [], ["a note"])
        return Result(
            environment={**MACHINE, **machine},
            command=["cachecast", "bench", "run", "fanout"],
            started_at="2026-01-01T00:00:00+00:00",
            quick=quick,
            duration_s=12.5,
            targets={"cachecast": "cachecast serve"},
            scenarios=[scenario],
        )

    return make


def _sample(value: float) -> Sample:
    metrics = {
        "deliveries_per_s": 1_000_000.0 * value,
        "cpu_us_per_delivery": 5.0 * value,
        "p50_us": 1_234_567,
        "p99_us": 99_999,
        "p999_us": 100_000,
        "max_us": 12_345_678,
        "generator_cpu": 0.5,
    }
    return Sample(metrics)
