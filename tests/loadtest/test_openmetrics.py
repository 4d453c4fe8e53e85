"""A run that goes on as OpenMetrics: read by the official parser, and true."""

import os
import re
import subprocess
import sys
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as read_older

from cachecast_load.measures.histogram import Histogram
from cachecast_load.plan.model import Plan
from cachecast_load.plan.target import make_target
from cachecast_load.report.openmetrics import EDGES_S, expose, exposed_buckets
from cachecast_load.run.run import Run
from tests.loadtest.conftest import CREDENTIALS, ROOT, SECRET

URLS = ["ws://127.0.0.1:1", "ws://127.0.0.1:2"]


def samples(text, read=text_string_to_metric_families):
    return {
        (sample.name, *sorted(set(sample.labels.items()) - LABELS)): sample.value
        for family in read(text)
        for sample in family.samples
    }


LABELS = {("profile", "fanout")}


@pytest.fixture
def run():
    target = make_target(url=URLS, app_id="1", key="k", secret="do-not-show")
    run = Run(Plan("fanout"), target)
    run.start()
    recorder = run.station.session.recorder
    for latency in (900, 1_000, 40_000, 70_000_000):
        recorder.sockets[0].histograms["delivery"].record(latency)
    recorder.counts.update(publish_scheduled=5, publish_ok=4, publish_failed=1, frames=7)
    recorder.error('publish: "odd"\nkind \\ of', "example")
    recorder.gauges[0] = {"connected": 9, "connected.0": 5, "connected.1": 4, "missing": 2}
    health = {"cpu": 0.5, "starved": 0.1, "rss_bytes": 1e7, "fds": 9, "fd_limit": 99}
    run.collect("local", {**recorder.take(), "health": health}, run.now())
    return run


def test_the_page_is_what_was_measured(run):
    body, content_type = expose(run)
    found = samples(body.decode())
    mark = ("run", f"{run.mark:04x}")

    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert b"do-not-show" not in body
    assert found["cachecast_load_publishes_total", ("outcome", "failed"), mark] == 1
    assert found["cachecast_load_frames_received_total", mark] == 7
    assert found["cachecast_load_connected", mark] == 9
    assert found["cachecast_load_target_connected", mark, ("target", URLS[1])] == 4
    assert found["cachecast_load_phase", ("cachecast_load_phase", "idle"), mark] == 1
    assert found["cachecast_load_delivery_seconds_count", mark] == 4
    assert found["cachecast_load_delivery_seconds_sum", mark] == pytest.approx(70.0419)
    bucket = "cachecast_load_delivery_seconds_bucket"
    assert found[bucket, ("le", "0.001"), mark] == 2
    assert found[bucket, ("le", "60.0"), mark] == 3
    assert found[bucket, ("le", "+Inf"), mark] == 4
    kind = ("kind", 'publish: "odd"\nkind \\ of')
    assert found["cachecast_load_errors_total", kind, mark] == 1
    assert found["cachecast_load_generator_cpu_cores", ("process", "local"), mark] == 0.5


def test_who_only_reads_the_older_text_gets_it(run):
    body, content_type = expose(run, "text/plain;version=0.0.4")
    assert content_type.startswith("text/plain")
    assert any(
        name == "cachecast_load_publishes_total" for name, *_ in samples(body.decode(), read_older)
    )
    # As a Prometheus asks.
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"
    assert expose(run, accept)[1].startswith("application/openmetrics-text")


def test_a_run_that_has_not_begun_can_be_read(run):
    fresh = Run(Plan("fanout"), run.target)
    assert (
        samples(expose(fresh)[0].decode())["cachecast_load_connected", ("run", f"{fresh.mark:04x}")]
        == 0
    )


@given(st.lists(st.integers(0, 100_000_000), max_size=50))
def test_exposed_buckets_are_the_histogram_to_a_thousandth(values):
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    buckets, sum_s = exposed_buckets(histogram)

    assert [label for label, _ in buckets] == [*map(str, EDGES_S), "+Inf"]
    assert sum_s == pytest.approx(sum(values) / 1e6)
    for edge_s, (_, below) in zip(EDGES_S, buckets, strict=False):
        surely = sum(value <= edge_s * 1e6 for value in values)
        perhaps = sum(value <= edge_s * 1.001 * 1e6 for value in values)
        assert surely <= below <= perhaps
    assert buckets[-1][1] == len(values)


@pytest.mark.e2e
@pytest.mark.slow
def test_a_run_with_workers_is_watched_and_ended_when_its_objectives_are_lost(saboteur, tmp_path):
    """One event lost is one too many: no need to wait for the end, which is a minute away."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cachecast_load", "run", "fanout", "--target", saboteur(lose=1).url,
         *CREDENTIALS, "--subscribers", "20", "--rate", "20", "--duration", "120", "--workers", "2",
         "--live", "0", "--abort-on-fail=2", "--quiet", "--report", str(tmp_path)],
        env={**os.environ, "CACHECAST_LOADTEST_SECRET": SECRET},
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    said = next(line for line in process.stdout if "metrics while it runs" in line)
    url = re.search(r"http://127\.0\.0\.1:\d+/metrics", said)[0]
    found = {}
    end = time.monotonic() + 60
    while not any(name == "cachecast_load_delivery_seconds_count" for name, *_ in found):
        assert time.monotonic() < end
        with urlopen(url, timeout=30) as answer:
            found = samples(answer.read().decode())
        time.sleep(0.2)
    with pytest.raises(HTTPError, match="405"):
        urlopen(Request(url, method="POST"), timeout=30)
    rest, _ = process.communicate(timeout=100)

    processes = {dict(labels).get("process") for _, *labels in found}
    assert len(processes - {None}) <= 2
    assert "Traceback" not in rest
    assert re.search(
        r"ended early, after \d+ s of 120: delivery.lost == 0 can no longer hold: 1", rest
    )
    # 2 where this machine, and not the saboteur, limited the run.
    assert process.returncode == 1 or "generator" in rest, rest
