"""The load test and `cachecast bench` measure one workload and must agree.

They share no code: another client, another publisher, another clock source, another histogram,
another ledger. Both publish 100 events of 256 bytes a second to one channel with 300 subscribers,
on a schedule, over signed HTTP, and count a delivery from its planned time.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SUBSCRIBERS = 300
# The benchmark paces 30,000 deliveries a second.
RATE = 30_000 / SUBSCRIBERS
# Of what the schedule asks for: edges of the measured stretch, and a machine that stands still.
RATE_ERROR = 0.1
# What neither tool says of itself: the kernel's scheduling of the reader, in ms.
FLOOR_MS = 1.0


@dataclass
class Measured:
    """What one tool says of one run: rates per second, and the median delay with its own error."""

    publishes: float
    deliveries: float
    median_ms: float
    error_ms: float


@pytest.fixture
def harness(run, new_engine, tmp_path):
    """Measure once with the load test."""
    url = new_engine().url

    def measure():
        done = run(
            "fanout", url, "--subscribers", SUBSCRIBERS, "--rate", RATE, "--payload", 256,
            "--duration", 3,
        )  # fmt: skip
        figures = done.figures
        assert done.code in (0, 2), done.out
        assert figures["delivery.received"] == figures["delivery.expected"]
        publishes = done.result["counts"]["publish_ok"]
        assert figures["delivery.expected"] == publishes * SUBSCRIBERS
        own_ms = figures["publish_late.p90_ms"] + figures["loop_lag.p90_ms"]
        return Measured(
            figures["publish.per_s"], figures["delivery.per_s"], figures["delivery.p50_ms"], own_ms
        )

    return measure


def benchmark(path):
    """Measure twice with the benchmark; one `Measured` for each repeat."""
    done = subprocess.run(
        [
            sys.executable, "-m", "cachecast_bench", "run", "fanout", "--quick", "--repeats", "2",
            "--subscribers", str(SUBSCRIBERS), "--json", str(path),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )  # fmt: skip
    assert done.returncode in (0, 2), done.stdout + done.stderr
    (scenario,) = json.loads(path.read_text())["scenarios"]
    (row,) = (
        row
        for row in scenario["rows"]
        if row["target"] == "cachecast" and row["case"]["mode"] == "paced"
    )
    return [
        Measured(
            sample["publishes_per_s"],
            sample["deliveries_per_s"],
            sample["p50_us"] / 1000,
            sample["late_p99_us"] / 1000,
        )
        for sample in (one["metrics"] for one in row["samples"])
    ]


def test_both_tools_say_the_same_of_the_same_workload(harness, tmp_path):
    ours = [harness()]
    theirs = benchmark(tmp_path / "benchmark.json")
    ours.append(harness())

    for measured in (*ours, *theirs):
        assert measured.publishes == pytest.approx(RATE, rel=RATE_ERROR)
        assert measured.deliveries == pytest.approx(RATE * SUBSCRIBERS, rel=RATE_ERROR)
    # Ranges of the medians, each as wide as the tool itself says that it may be wrong.
    low, high = interval(ours)
    assert low <= interval(theirs)[1], (ours, theirs)
    assert interval(theirs)[0] <= high, (ours, theirs)


def interval(runs):
    """Return the least and the greatest median that the runs allow."""
    return (
        min(run.median_ms - run.error_ms for run in runs) - FLOOR_MS,
        max(run.median_ms + run.error_ms for run in runs) + FLOOR_MS,
    )
