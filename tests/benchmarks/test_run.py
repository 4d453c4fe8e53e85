"""The whole tool, from the command line to the file, against the raw loop."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time

import psutil
import pytest

from cachecast_bench.result import load
from cachecast_bench.scenarios import load_scenario

LIMIT_S = 110
"""A quick run takes six seconds on a machine of its own; others may be at work on this one."""


def run(*arguments: str) -> tuple[int, str]:
    """Run the tool; return its exit code and what it printed."""
    command = [sys.executable, "-m", "cachecast_bench", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=LIMIT_S)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.e2e
@pytest.mark.slow
def test_a_quick_run_against_the_raw_loop_delivers_everything(tmp_path):
    """Real processes and sockets: every delivery is checked, none is wrong, all is in the file."""
    file = tmp_path / "result.json"
    picture = tmp_path / "result.svg"
    options = ["--subscribers", "20", "--repeats", "1", "--without-engine"]

    code, output = run(
        "run", "fanout", "--quick", *options, "--json", str(file), "--plot", str(picture)
    )

    # A busy machine may make the numbers INVALID, but never the deliveries wrong.
    assert code in {0, 2}, output
    (scenario,) = load(file).scenarios
    assert [(row.target, row.case["mode"]) for row in scenario.rows] == [
        ("raw loop", "paced"),
        ("raw loop", "flat"),
    ]
    assert sum(len(row.samples) for row in scenario.rows) == 2
    for row in scenario.rows:
        assert set(row.samples[0].ledger.values()) == {0}
        assert row.samples[0].metrics["deliveries_per_s"] > 0
    assert picture.read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.e2e
@pytest.mark.slow
def test_a_storm_waits_for_the_cached_value_of_the_engine(tmp_path):
    """To connect and subscribe alone is less than the scenario promises."""
    file = tmp_path / "result.json"

    code, output = run(
        "run", "storm", "--quick", "--subscribers", "20", "--repeats", "1", "--json", str(file)
    )

    assert code in {0, 2}, output
    (scenario,) = load(file).scenarios
    rows = {(row.target, row.case["kind"]): row for row in scenario.rows}
    for kind in ("public", "authorized"):
        (sample,) = rows["cachecast", kind].samples
        assert sample.metrics["with_value"]
        assert sample.raw["connect"]["n_connected"] == 20
    assert not rows["raw loop", "public"].samples[0].metrics["with_value"]


@pytest.mark.e2e
@pytest.mark.slow
def test_four_workers_hold_clients_and_a_publish_reaches_all_of_them(tmp_path):
    """The node, its engine and the processes that hold its clients, for real."""
    file = tmp_path / "result.json"
    picture = tmp_path / "result.svg"

    code, output = run("run", "held", "--quick", "--json", str(file), "--plot", str(picture))

    assert code in {0, 2}, output
    (scenario,) = load(file).scenarios
    (row,) = scenario.rows
    assert row.case == {"connections": 400}
    (sample,) = row.samples
    assert set(sample.ledger.values()) == {0}
    assert sum(sample.raw["by_worker"]) == 400
    assert min(sample.metrics["rss_engine_bytes"], sample.metrics["rss_parent_bytes"]) > 1 << 20
    assert {figure.name for figure in scenario.figures} == set(load_scenario("held").figures)
    assert picture.read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.e2e
@pytest.mark.slow
def test_an_interrupted_run_is_invalid_also_in_its_file(tmp_path):
    """What was measured is kept, and nobody takes it for the whole."""
    file = tmp_path / "result.json"
    command = [sys.executable, "-m", "cachecast_bench", "run", "fanout", "--without-engine"]
    started = subprocess.Popen([*command, "--json", str(file)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + LIMIT_S
        while not _has_generator(started.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        started.send_signal(signal.SIGINT)
        assert started.wait(LIMIT_S) == 2
    finally:
        started.kill()

    (scenario,) = load(file).scenarios
    assert "interrupted" in scenario.problems[-1].text


def _has_generator(pid):
    """Whether the run itself has begun; it asks git and others for the environment before."""
    lines = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            lines.append(" ".join(child.cmdline()))
    return any("cachecast_bench.generator" in line for line in lines)


@pytest.mark.e2e
@pytest.mark.slow
def test_a_requirement_that_is_not_measured_fails_the_run(tmp_path):
    """Exit code 1, unless the machine made the run INVALID, which is 2."""
    options = ["--subscribers", "20", "--repeats", "1", "--without-engine"]

    code, output = run(
        "run", "fanout", "--quick", *options, "--require", "fanout.ratio_to_raw_loop>=1"
    )

    assert code in {1, 2}, output
    assert "not measured" in output


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "nonsense"],
        ["run", "fanout", "--require", "fanout"],
        ["run", "fanout", "--peers", "nonsense"],
        ["run", "fanout", "--subscribers", "many"],
        ["run", "fanout", "--subscribers", "0"],
        ["run", "fanout", "--bytes", "21"],
        ["run", "fanout", "--require", "fanout.ratio_to_limt>=1"],
        ["run", "fanout", "--json", "/nowhere/result.json"],
        ["run", "fanout", "--plot", "result.pdf"],
    ],
)
def test_what_cannot_be_understood_is_refused_before_anything_is_started(arguments):
    """Exit code 3, as the load test's, in a sentence."""
    code, output = run(*arguments)

    assert code == 3
    assert "Traceback" not in output
    assert "Error" in output


def test_a_file_that_is_no_result_is_refused(tmp_path):
    """By show and by compare, in one line."""
    file = tmp_path / "result.json"
    file.write_text(json.dumps({}), encoding="utf-8")

    for arguments in (["show", str(file)], ["compare", str(file), str(file)]):
        code, output = run(*arguments)

        assert code == 3
        assert "not a result" in output
