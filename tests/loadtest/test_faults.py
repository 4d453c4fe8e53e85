"""Bad input and faults: a clear line with counts, never a traceback, never a hang."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import trustme

from tests.loadtest.conftest import CREDENTIALS, ROOT, chosen

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SHORT = "[load]\nsubscribers = 20\nrate = 20\nduration_s = 2\n"
#: For targets that will never answer; one that does may need longer on a busy machine.
IMPATIENT = "[limits]\nconnect_timeout_s = 1\nready_timeout_s = 2\npublish_timeout_s = 1\n"


PATIENT = "[limits]\ngrace_s = 0.4\n"


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "plan.toml").write_text(SHORT + PATIENT)
    return tmp_path / "plan.toml"


@pytest.fixture
def impatient_plan(tmp_path):
    (tmp_path / "plan.toml").write_text(SHORT + IMPATIENT)
    return tmp_path / "plan.toml"


@pytest.fixture(scope="module")
def refused_runs(request, begin, module_saboteur):
    return {
        case["words"]: begin(
            "fanout",
            module_saboteur(**case["faults"]).url,
            SHORT + IMPATIENT,
            *case["options"],
        )
        for case in chosen(request, test_a_target_that_cannot_be_tested_is_invalid_with_a_reason)
    }


@pytest.mark.parametrize(
    ("faults", "options", "words"),
    [
        ({}, ["--key", "wrong"], "check --key"),
        ({"refuse_upgrade": 503}, [], "HTTP 503 instead of 101"),
        ({"garbage": True}, [], "protocol: "),
        ({"silent": True}, [], "not established within 1 s"),
        ({"close_code": 4100}, [], "the saboteur closes"),
        ({"close_code": 4009}, [], "authorized connections"),
    ],
)
def test_a_target_that_cannot_be_tested_is_invalid_with_a_reason(
    refused_runs, faults, options, words
):
    done = refused_runs[words].result()
    assert done.code == 2, done.out
    assert words in done.out
    assert words in done.result["verdict"]["reasons"][0]


def test_a_wrong_secret_is_named(run, saboteur, plan):
    done = run("fanout", saboteur().url, "--plan", plan, secret="not-the-secret")
    assert done.code == 2
    assert "check --secret" in done.out


def test_an_unreachable_host_is_named(run, plan):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        done = run("fanout", f"ws://127.0.0.1:{free.getsockname()[1]}", "--plan", plan)
    assert done.code == 2
    assert "connection refused" in done.out


def test_a_target_that_dies_is_a_failure_with_counts(run, saboteur, plan):
    done = run("fanout", saboteur(die_after=300).url, "--plan", plan)
    assert done.code == 1 or done.was_disturbed, done.out
    assert done.figures["closed.unexpected"] == 20
    assert done.figures["publish.failed"] > 0
    assert "connection refused" in done.out


@pytest.fixture(scope="module")
def closed_runs(request, begin, module_saboteur):
    return {
        case["code"]: begin(
            "fanout", module_saboteur(close_code=case["code"], close_at=60).url, SHORT + PATIENT
        )
        for case in chosen(request, test_closes_are_counted_by_their_code)
    }


@pytest.mark.parametrize("code", [1001, 4001, 4100, 4200, 4301])
def test_closes_are_counted_by_their_code(closed_runs, code):
    done = closed_runs[code].result()
    assert done.result["closes"] == {str(code): 1}
    assert done.figures["closed.unexpected"] == 1
    error = next(e for e in done.result["errors"] if e["kind"].startswith("closed"))
    assert "the saboteur closes" in error["examples"][0]
    # A refusal is final; every other class brings the client back.
    comes_back = code not in (4001, 4301)
    connects = done.result["counts"]["connects"]
    assert connects == 20 + comes_back or (done.was_disturbed and connects == 20)


def test_refused_publishes_are_counted_with_their_status(run, saboteur, plan):
    done = run("fanout", saboteur(publish_status=413).url, "--plan", plan)
    assert done.code in (1, 2)
    assert "413" in done.out


def test_refused_subscriptions_are_counted(run, saboteur, impatient_plan):
    done = run("private", saboteur(subscribe_error=True).url, "--plan", impatient_plan)
    assert done.figures["subscribe.failed"] == 20
    assert "Invalid signature" in done.out


def test_late_events_are_late_and_nothing_else(run, saboteur, plan):
    done = run("fanout", saboteur(late_events=0.3).url, "--plan", plan)
    assert done.figures["delivery.min_ms"] >= 300
    assert done.figures["delivery.lost"] == 0


def test_tls_is_spoken_and_a_strangers_certificate_is_refused(run, tls_engine, tmp_path):
    url, authority = tls_engine
    done = run(
        "fanout", url, "--subscribers", 20, "--rate", 10, "--duration", 2, "--ca-file", authority
    )
    assert done.figures["delivery.lost"] == 0
    assert done.figures["delivery.received"] > 200 or done.was_disturbed
    refused = run("fanout", url, "--subscribers", 20)
    assert refused.code == 2
    assert "TLS: " in refused.out
    assert "certificate" in refused.out
    careless = run("fanout", url, "--subscribers", 5, "--duration", 1, "--insecure")
    assert careless.figures["delivery.lost"] == 0
    assert careless.result["target"]["verify"] is False


@pytest.fixture
def tls_engine(tmp_path, new_engine):
    """Start an engine with a test authority's certificate; returns its URL and the authority."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = new_engine("--tls-cert", tmp_path / "cert.pem", "--tls-key", tmp_path / "key.pem")
    return server.url, tmp_path / "ca.pem"


def interrupted(url, tmp_path, profile, *arguments):
    """Run a profile and interrupt it while it measures; returns its exit code and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cachecast_load", "run", profile, "--target", url,
         "--app-id", "4242", "--key", "app-key", "--subscribers", "20",
         "--report", str(tmp_path), *arguments],
        env={**os.environ, "CACHECAST_LOADTEST_SECRET": "app-secret"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    for line in process.stdout:
        if "measure" in line and line.split()[0] not in ("0", "1", "measures"):
            process.send_signal(signal.SIGINT)
            break
    rest, _ = process.communicate(timeout=50)  # it was to last for sixty seconds
    assert "Traceback" not in rest
    assert (tmp_path / "report.html").exists()
    return process.returncode, rest


def test_one_interrupt_reports_what_was_measured(saboteur, tmp_path):
    arguments = ["--rate", "20", "--duration", "60"]
    code, rest = interrupted(saboteur().url, tmp_path, "fanout", *arguments)

    assert "ended early" in rest
    assert code in (0, 2), rest


def test_an_interrupt_before_anything_could_fail_is_no_failure(saboteur, tmp_path):
    code, rest = interrupted(saboteur().url, tmp_path, "cache-expiry", "--ttl", "60")

    assert code == 2, rest
    # On a machine that stands still the generator is the reason, and comes first.
    assert "no cache channel was joined: cannot say whether" in rest or "the generator" in rest
    assert "does not hold" not in rest


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "name a profile"),
        (["run", "fan-out", "--target", "ws://127.0.0.1:1"], "did you mean fanout"),
        (["run", "fanout"], "--target is missing"),
        (["run", "fanout", "--target", "127.0.0.1"], "write ws://"),
        (["run", "fanout", "--nonsense"], "No such option"),
        (["run", "fanout", "--target", "ws://8.8.8.8", "--app-id", "1", "--key", "k"], "--yes"),
        (["run", "fanout", "--slo", "delivery.p99 <= 5"], "delivery.p99_ms"),
        (["run", "fanout", "--rate", "1e9"], "raise max_rate"),
        (["run", "--plan", "/no/such/plan.toml"], "No such file"),
        (["compare", "/no/such"], "two results"),
        (["show", "/no/such"], "no such file"),
    ],
)
def test_mistakes_at_the_command_line_end_in_a_sentence_and_three(command, arguments, words):
    done = command(*arguments)
    assert done.code == 3, done.out
    assert words in done.out


@pytest.mark.parametrize(
    ("words", "remedy"),
    [(["ui"], "give another --web-host or --web-port"), (["run"], "give another address, or port")],
)
def test_an_address_that_is_taken_is_named_with_a_remedy(command, saboteur, words, remedy):
    url = saboteur().url
    port = url.rpartition(":")[2]
    option = {"ui": "--web-port", "run": "--live"}[words[0]]
    done = command(*words, "fanout", "--target", url, *CREDENTIALS, option, port)
    assert done.code == 3, done.out
    assert f":{port}: Address already in use; {remedy}" in done.out


def test_locusts_own_options_are_not_ignored_without_a_word():
    done = subprocess.run(
        [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "-t", "5"],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "-t says nothing here: --lt-duration" in done.stderr


def test_the_secret_is_kept_out_of_the_reported_command(run, saboteur, plan):
    done = run("fanout", saboteur().url, "--plan", plan, "--secret=app-secret")
    assert "--secret=..." in done.result["run"]["command"]


def test_a_stall_at_the_end_of_a_run_is_in_its_latencies(run, saboteur, plan):
    """Whoever is waited for cannot hide: not by being asked less, not by the end of the run."""
    plan.write_text(SHORT + "[limits]\ngrace_s = 0.4\n")
    # Grace and silence would be over by the time it goes on.
    done = run("fanout", saboteur(stall_at=600, stall_s=4).url, "--plan", plan)
    assert done.figures["delivery.lost"] == 0
    assert done.figures["delivery.received"] == done.result["counts"]["publish_ok"] * 20
    assert done.figures["delivery.max_ms"] > 3_500


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--master"], "belong together"),
        (["--expect-workers", "2"], "belong together"),
        (["--also-slo", "server.rss_growth <= 1.05"], "--metrics-url"),
        (["--report", "/proc/no/such"], "--report /proc/no/such"),
        (["--header", "Host: x"], "set by the load test itself"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(run, options, words):
    done = run("fanout", "ws://127.0.0.1:1", *options)
    assert done.code == 3
    assert words in done.out


def test_figures_of_the_target_that_cannot_be_had_end_the_run_before_it_begins(run, saboteur):
    url = saboteur().url
    metrics = url.replace("ws", "http", 1) + "/metrics"
    options = ["--metrics-url", metrics, "--also-slo", "server.cpu_mean <= 1"]
    done = run("fanout", url, *options)
    assert done.code == 2
    assert "tells nothing from which to know it" in done.out


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("target = 3", "[target] must be a table"),
        ("[target]\nurl = 'ws://127.0.0.1:1'\nverify = 'no'", "verify must be true or false"),
        ("[target]\nheaders = 'A: b'", "a list of 'Name: value' texts"),
        ("[target]\nhost = 'x'", "has no field 'host'"),
        ("[target]\nurl = ['ws://127.0.0.1:1', 2]", "url must be a text, or a list of texts"),
        (
            "[target]\nurl = ['ws://127.0.0.1:1', 'ws://127.0.0.1:1']\napp_id = '1'\nkey = 'k'",
            "ws://127.0.0.1:1 is given twice",
        ),
    ],
)
def test_a_plans_target_is_checked(command, tmp_path, table, words):
    (tmp_path / "plan.toml").write_text(f"profile = 'fanout'\n{table}\n")
    done = command("run", "--plan", tmp_path / "plan.toml")
    assert done.code == 3, done.out
    assert words in done.out
