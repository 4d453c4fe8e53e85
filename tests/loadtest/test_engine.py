"""Every profile against a real engine in its own process: sane figures and a clean ledger."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from cachecast_load.profiles import PROFILES
from tests.e2e.conftest import require_chromium
from tests.loadtest.conftest import ROOT, chosen

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PLAN = """
[load]
subscribers = 60
rate = 40
duration_s = 2
[limits]
grace_s = 0.4
[behaviour]
joins_per_s = 15
churn_per_s = 20
hold_s = 0.1
ttl_s = 3
members_per_channel = 20
"""
FAULTS = ("lost", "doubled", "reordered", "stale", "altered", "misrouted", "foreign")


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN)
    return tmp_path / "plan.toml"


def assert_clean(done):
    """No fault of any kind. INVALID is allowed: the machine of a test may be busy."""
    assert done.code == 0 or done.was_disturbed, done.out
    failed = [slo["rule"] for slo in done.result["slos"] if slo["outcome"] == "fail"]
    if done.was_disturbed:
        # Too little happened; and a roster is compared at a time by which all should have come.
        failed = [rule for rule in failed if not rule.endswith(" > 0")]
        failed = [rule for rule in failed if not rule.startswith("presence.wrong ")]
    assert failed == [], done.out
    assert [f for f in FAULTS if done.figures.get(f"delivery.{f}")] == []


@pytest.fixture(scope="module")
def profile_runs(request, begin, engine):
    return {
        case["profile"]: begin(case["profile"], engine.url, PLAN, *_extra(case["profile"]))
        for case in chosen(request, test_every_profile_is_clean)
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_clean(profile_runs, profile):
    done = profile_runs[profile].result()
    assert_clean(done)
    if done.was_disturbed:
        return
    if profile not in ("cache-join", "cache-expiry"):
        assert done.figures["delivery.expected"] > 50
        assert 0 < done.figures["delivery.p50_ms"] < 10_000  # milliseconds, whatever the machine
    if profile.startswith("cache-"):
        assert done.figures["cache.hits"] > 10
        assert 0 < done.figures["first_value.p50_ms"] < 10_000


def _extra(profile):
    if profile == "soak":
        # Its drift needs twenty seconds, and is judged in the unit tests.
        return ["--slo", "delivery.lost == 0"]
    return {
        "many-channels": ["--channels", 20],
        "client-events": ["--channels", 6],
        # As long as the lifetime takes.
        "cache-expiry": ["--duration", 0],
    }.get(profile, [])


def test_the_cache_deadline_is_exact(run, engine, plan):
    done = run("cache-expiry", engine.url, "--plan", plan, "--duration", 0)
    assert done.figures["cache.false_misses"] == done.figures["cache.expired_served"] == 0
    # The pair closest to the deadline is too close to call.
    assert done.figures["cache.hits"] == pytest.approx(30, abs=3) or done.was_disturbed
    assert done.figures["cache.hits"] + done.figures["cache.misses"] == 60


def test_the_cache_lifetime_is_asked_from_the_target(run, engine, plan):
    plan.write_text(PLAN.replace("ttl_s = 3\n", "").replace("duration_s = 2\n", ""))
    done = run("cache-expiry", engine.url, "--plan", plan)
    assert "measures for 5.5 s, for a value lives for 3 s there" in done.result["run"]["notes"]
    assert done.result["plan"]["behaviour"]["ttl_s"] == 3


@pytest.fixture(scope="module")
def kind_runs(request, begin, engine):
    return {
        case["kind"]: begin("cache-join", engine.url, PLAN, "--kind", case["kind"])
        for case in chosen(request, test_cache_joins_work_on_every_kind_of_cache_channel)
    }


@pytest.mark.parametrize("kind", ["private-cache-", "private-encrypted-cache-", "presence-cache-"])
def test_cache_joins_work_on_every_kind_of_cache_channel(kind_runs, kind):
    assert_clean(kind_runs[kind].result())


def test_the_strict_client_agrees(run, engine, plan):
    assert_clean(run("mixed", engine.url, "--plan", plan, "--strict"))


def test_two_workers_make_one_whole_run(run, engine, plan):
    options = ["--workers", 2, "--rate", 20]
    done = run("fanout", engine.url, "--plan", plan, *options)
    assert_clean(done)
    assert done.figures["connect.count"] == 60
    # One channel has one publisher; the other worker only listens.
    expected = done.result["counts"]["publish_ok"] * 60
    assert done.figures["delivery.expected"] == done.figures["delivery.count"] == expected
    assert set(done.result["generator"]) != {"local"}
    assert len(done.result["generator"]) == 2


def test_a_shape_is_followed_and_drawn(run, engine, plan):
    text = PLAN + '[shape]\nkind = "steps"\nto = 120\nsteps = 3\n'
    plan.write_text(text)
    done = run("fanout", engine.url, "--plan", plan, "--duration", 3)
    assert_clean(done)
    stages = [round(level) for _, _, level in done.result["stages"]]
    assert stages == [80, 120] or (done.was_disturbed and {*stages} <= {80, 120})


def test_a_ramp_of_subscribers_is_followed(run, engine, plan):
    text = PLAN + '[shape]\nkind = "ramp"\nof = "subscribers"\nto = 120\n'
    plan.write_text(text)
    done = run("fanout", engine.url, "--plan", plan, "--duration", 3)
    assert_clean(done)
    assert 110 <= done.figures["connect.count"] <= 120 or done.was_disturbed


def test_the_knee_finder_brackets_an_objective(run, engine, plan):
    text = PLAN + '[shape]\nkind = "knee"\nto = 80\nsteps = 2\nperiod_s = 1.5\n'
    plan.write_text(text + '[slo]\nrules = ["delivery.p99_ms <= 400", "publish.failed == 0"]\n')
    done = run("fanout", engine.url, "--plan", plan)
    knee = done.result["knee"]
    assert [trial["level"] for trial in knee["trials"]] in ([40, 80], [40], [40, 20])
    assert knee["sentence"] in done.out


def test_conflation_is_the_targets_word(run, new_engine, plan):
    """Slow readers of a cache channel end with the newest value, and nobody healthy feels it."""
    server = new_engine("--admin-port", "0")
    done = run("slow-readers", server.url, "--plan", plan, "--payload", 4096, "--rate", 100)
    assert_clean(done)
    assert done.figures["slow.last_value_missing"] == 0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(*arguments, prefix=(), **environment):
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", *map(str, arguments)],
        env={**os.environ, "CACHECAST_LOADTEST_SECRET": "app-secret", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_workers_with_other_clocks_agree_within_their_error(engine, tmp_path):
    """A worker in a time namespace of its own is a worker on another machine."""
    other_clock = ["unshare", "--time", "--monotonic", "5000", "--fork"]
    if subprocess.run([*other_clock, "true"], capture_output=True, check=False).returncode:
        pytest.skip("time namespaces are not to be had here")
    options = ["--target", engine.url, "--app-id", "4242", "--key", "app-key"]
    port = ["--master-port", free_port()]
    workers = [start("cachecast_load", "run", "--worker", *port, *options, prefix=prefix)
               for prefix in (other_clock, [])]  # fmt: skip
    master = start(
        "cachecast_load", "run", "fanout", "--master", "--expect-workers", 2, *port, *options,
        "--subscribers", 40, "--duration", 2, "--report", tmp_path,
    )  # fmt: skip
    out, _ = master.communicate(timeout=80)
    for worker in workers:
        worker.communicate(timeout=60)
    result = json.loads((tmp_path / "result.json").read_text())

    assert result["figures"]["delivery.lost"] == 0, out
    # Of 5,000,000 ms between the clocks, and however long a probe was held up, this much is left.
    assert 0 < result["run"]["clock_error_ms"] < 5_000
    assert -1 < result["figures"]["delivery.min_ms"] < 10_000
    assert result["histograms"]["delivery"]["negative"] == 0
    assert "may the generators' clocks differ" in out


def test_a_locustfile_for_people_who_know_locust(engine, tmp_path, plan):
    process = start(
        "locust", "-f", "loadtest/locustfile.py", "--headless", "--lt-profile", "fanout",
        "--lt-plan", plan, "--lt-report", tmp_path, "--lt-key", "app-key", "--lt-app-id", "4242",
        "--csv", tmp_path / "locust", CACHECAST_LOADTEST_TARGET=engine.url,
        GITHUB_STEP_SUMMARY=str(tmp_path / "job.md"),
    )  # fmt: skip
    out, _ = process.communicate(timeout=60)

    assert "Traceback" not in out
    assert "app-secret" not in out
    result = json.loads((tmp_path / "result.json").read_text())
    assert process.returncode == result["verdict"]["exit_code"], out
    assert result["figures"]["delivery.lost"] == 0
    # The same run is in Locust's own statistics.
    assert "event delivered" in (tmp_path / "locust_stats.csv").read_text()
    assert "--lt-profile fanout" in (tmp_path / "job.md").read_text()


def test_locusts_page_shows_our_figures(engine):
    web_port = free_port()
    process = start(
        "cachecast_load", "ui", "fanout", "--target", engine.url, "--app-id", "4242",
        "--key", "app-key",
        "--subscribers", 20, "--duration", 2, "--web-port", web_port, "--autostart",
    )  # fmt: skip
    try:
        page = f"http://127.0.0.1:{web_port}"
        _poll(f"{page}/stats/requests", lambda text: {"verdict", "delivery.lost"} < _figures(text))
        charts = _poll(f"{page}/loadtest", lambda text: "<svg" in text and text)
        assert "fanout" in charts
        first = _poll(f"{page}/loadtest/result.json", _finished)
        assert first["figures"]["delivery.lost"] == 0
        # The button of Locust's page starts another run, with a mark of its own.
        with urlopen(f"{page}/swarm", data=b"user_count=1&spawn_rate=1") as answer:
            assert json.load(answer)["success"]
        again = _poll(
            f"{page}/loadtest/result.json",
            lambda text: _finished(text) and json.loads(text)["run"]["run"] != first["run"]["run"],
        )
        assert again
    finally:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert "Traceback" not in out, out


def test_somebody_sets_values_on_the_page_starts_looks_and_stops(engine, tmp_path):
    chromium, web_port = require_chromium(), free_port()
    process = start(
        "cachecast_load", "ui", "fanout", "--target", engine.url, "--app-id", "4242",
        "--key", "app-key", "--subscribers", 20, "--rate", 5, "--duration", 300,
        "--web-port", web_port,
    )  # fmt: skip
    try:
        page = f"http://127.0.0.1:{web_port}"
        _poll(page, lambda text: "templateArgs" in text)
        done = subprocess.run(
            [sys.executable, "-m", "tests.loadtest.locust_page", chromium, page, str(tmp_path)],
            capture_output=True, text=True, timeout=200, check=False, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)
        result = _poll(f"{page}/loadtest/result.json", _finished)
        metrics = urlopen(f"{page}/loadtest/metrics").read().decode()
    finally:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)

    assert "Traceback" not in out, out
    assert seen["complaints"] == []
    assert seen["form"] == {"userCount": "20", "spawnRate": "1000", "rate": "5"}
    assert "raise max_rate" in seen["refused"]
    assert "30 of 30 subscribers" in seen["strip"]
    assert seen["canvases"] >= 3
    # The chart of users in Locust's own report shows subscribers, too.
    assert 30 in [row["user_count"][1] for row in seen["history"]]
    assert (result["plan"]["load"]["subscribers"], result["plan"]["load"]["rate"]) == (30, 15)
    assert "stopped on the page" in " ".join(result["run"]["notes"])
    assert result["figures"]["delivery.lost"] == 0
    assert seen["badge"] == result["verdict"]["outcome"] != "FAIL"
    assert seen["report"] == "Load test: fanout"
    assert metrics.endswith("# EOF\n")


def test_the_plan_of_a_day_is_run(command, engine, tmp_path):
    """As it ships, but in seconds: people come and go, bursts and all."""
    done = command(
        "run", "--plan", "production", "--duration", 12, "--subscribers", 80, "--rate", 60,
        "--target", engine.url, "--app-id", "4242", "--key", "app-key", "--report", tmp_path,
        "--quiet",
    )  # fmt: skip
    assert done.code == 0 or done.was_disturbed, done.out
    assert [fault for fault in FAULTS if done.figures[f"delivery.{fault}"]] == []
    levels = [level for _, of, level in done.result["stages"] if of == "subscribers"]
    assert min(levels) < 30 < 70 < max(levels)
    assert {of for _, of, _ in done.result["stages"]} == {"rate", "subscribers"}


def _figures(text):
    """Return the names in our tab of Locust's page."""
    (tab,) = json.loads(text)["extended_stats"]
    return {row["figure"] for row in tab["data"]}


def _finished(text):
    """Return the result if it is a finished run's."""
    result = json.loads(text)
    return result if result and result["verdict"]["exit_code"] is not None else None


def _poll(url, test, timeout=60):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        try:
            with urlopen(url) as answer:
                found = test(answer.read().decode())
            if found:
                return found
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"{url} never showed what was awaited")


def test_a_lost_worker_makes_the_run_invalid(engine, tmp_path):
    process = start(
        "cachecast_load", "run", "fanout", "--target", engine.url, "--app-id", "4242", "--key",
        "app-key", "--subscribers", 20, "--duration", 40, "--workers", 2, "--report", tmp_path,
    )  # fmt: skip
    for line in process.stdout:
        if " measure " in line:
            break
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(children[0]), signal.SIGKILL)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2, out
    assert "was lost" in out


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("when", ["starting", "measuring"])
def test_workers_end_with_their_master_however_it_ends(engine, when, number):
    process = start(
        "cachecast_load", "run", "fanout", "--target", engine.url, "--app-id", "4242", "--key",
        "app-key", "--subscribers", 20, "--duration", 40, "--workers", 4,
    )  # fmt: skip
    if when == "measuring":
        for line in process.stdout:
            if " measure " in line:
                break
    children: list[str] = []
    end = time.monotonic() + 30
    while len(children) < 4 and time.monotonic() < end:
        found = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
        )
        children = found.stdout.split()
    assert len(children) == 4

    process.send_signal(number)

    process.communicate(timeout=60)
    while any(map(_runs, children)) and time.monotonic() < end:
        time.sleep(0.05)
    alive = [pid for pid in children if _runs(pid)]
    for pid in alive:
        os.kill(int(pid), signal.SIGKILL)
    assert not alive


def _runs(pid):
    try:
        with Path(f"/proc/{pid}/stat").open() as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
