"""Servers with other habits, and auth endpoints that decide for themselves: said, never blamed."""

import base64

import pytest

from tests.loadtest.conftest import chosen
from tests.loadtest.saboteur import MASTER_KEY

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PLAN = """
[load]
subscribers = 20
channels = 4
rate = 20
duration_s = 1
[limits]
grace_s = 0.4
ready_timeout_s = 20
[behaviour]
joins_per_s = 15
churn_per_s = 10
hold_s = 0.1
ttl_s = {ttl_s}
members_per_channel = 10
"""
SHORT = PLAN.format(ttl_s=60)
UNTOLD = PLAN.format(ttl_s=0)
TWO_S = PLAN.format(ttl_s=2)


def untimed(plan):
    """Without a duration: cache-expiry takes the time that values live."""
    return plan.replace("duration_s = 1\n", "")


def failed(done):
    return [slo["rule"] for slo in done.result["slos"] if slo["outcome"] == "fail"]


def assert_clean(done):
    assert done.code == 0 or done.was_disturbed, done.out
    rules = failed(done)
    if done.was_disturbed:
        rules = [rule for rule in rules if not rule.endswith(" > 0")]
    assert rules == [], done.out


# --- what a target does not support ---------------------------------------------------------------


@pytest.fixture(scope="module")
def poor_runs(request, begin, module_saboteur):
    tests = (
        test_a_profile_whose_point_the_target_lacks_is_invalid_and_says_what_is_missing,
        test_a_profile_that_can_do_without_says_what_it_did_without,
    )
    return {
        (case["profile"], case["lacks"]): begin(
            case["profile"],
            module_saboteur(lacks=[case["lacks"]], ttl=60).url,
            (untimed if case["profile"] == "cache-expiry" else str)(
                UNTOLD if case["lacks"] == "lifetime" else SHORT
            ),
            *case["options"],
        )
        for test in tests
        for case in chosen(request, test)
    }


@pytest.mark.parametrize(
    ("profile", "lacks", "options", "words"),
    [
        ("cache-join", "cache", [], "the target does not keep the last value of cache- channels"),
        ("cache-expiry", "cache_miss", [], "the target does not send pusher:cache_miss"),
        ("presence", "rosters", [], "the target does not send the roster of presence- channels"),
        ("client-events", "client_events", [], "does not pass client events on (pusher:error 4301"),
        ("client-events", "client_events_told", [], "the target does not pass client events on"),
        ("encrypted", "encrypted", [], "the target does not take subscriptions to private-encryp"),
        ("fanout", "cache", ["--kind", "cache-"], "the target does not keep the last value"),
    ],
)
def test_a_profile_whose_point_the_target_lacks_is_invalid_and_says_what_is_missing(
    poor_runs, profile, lacks, options, words
):
    done = poor_runs[profile, lacks].result()
    assert done.code == 2, done.out
    assert words in done.result["verdict"]["reasons"][0]
    assert failed(done) == []


@pytest.mark.parametrize(
    ("profile", "lacks", "options", "words"),
    [
        ("cache-join", "cache_miss", [], "not supported: pusher:cache_miss"),
        ("mixed", "rosters", [], "not supported: rosters of presence- channels"),
        ("mixed", "cache", [], "not supported: cache channels"),
        ("cache-join", "lifetime", [], "not supported: info=cache"),
        ("fanout", "rosters", ["--kind", "presence-"], "not supported: rosters"),
        ("fanout", "channels_api", [], "not supported: GET"),
    ],
)
def test_a_profile_that_can_do_without_says_what_it_did_without(
    poor_runs, profile, lacks, options, words
):
    done = poor_runs[profile, lacks].result()
    assert_clean(done)
    notes = [note for note in done.result["run"]["notes"] if words in note]
    assert len(notes) == 1, done.result["run"]["notes"]
    assert notes[0].endswith(")")
    assert done.figures["delivery.received"] > 0
    assert words in done.out


# --- lifetimes of cached values -------------------------------------------------------------------


@pytest.fixture(scope="module")
def expiry_runs(begin, module_saboteur):
    return {
        ttl_s: begin("cache-expiry", module_saboteur(ttl=ttl_s).url, untimed(plan))
        for ttl_s, plan in ((5, TWO_S), (1, TWO_S), (2, UNTOLD))
    }


def test_cache_expiry_says_how_old_the_values_were_that_it_saw(expiry_runs):
    done = expiry_runs[5].result()
    assert "cache.expired_served == 0" in failed(done), done.out
    assert 2000 < done.figures["cache.oldest_value_ms"] < 5000
    text = " ".join(done.result["verdict"]["reasons"])
    assert "values live longer than 2 s here: one was served at an age of" in text or done.code == 2


def test_cache_expiry_says_how_young_the_value_was_that_it_missed(expiry_runs):
    done = expiry_runs[1].result()
    assert "cache.false_misses == 0" in failed(done), done.out
    assert 1000 < done.figures["cache.youngest_miss_ms"] < 2000
    text = " ".join(done.result["verdict"]["reasons"])
    assert "not every value lives for 2 s here: one was gone at" in text or done.code == 2


def test_a_run_that_lasts_as_long_as_values_live_says_so(expiry_runs):
    done = expiry_runs[2].result()
    assert_clean(done)
    notes = " ".join(done.result["run"]["notes"])
    assert "measures for 4.5 s, for a value lives for 2 s there" in notes


# --- errors that come as 200 ----------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"secret": "not-the-secret"}, {}])
def test_an_error_inside_of_a_200_is_an_error(run, saboteur, tmp_path, options):
    """As soketi answers: with a wrong secret nothing would arrive, and nobody would know why."""
    (tmp_path / "plan.toml").write_text(SHORT)
    faults = {} if options else {"publish_status": 413}
    server = saboteur(errors_as_ok=True, **faults)
    done = run("fanout", server.url, "--plan", tmp_path / "plan.toml", **options)
    assert done.code == 2 if options else done.code in (1, 2), done.out
    assert ("check --secret" if options else "413") in done.out


# --- auth endpoints -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def granted_runs(request, begin, module_saboteur):
    runs = {}
    for case in chosen(request, test_identities_are_those_that_the_auth_endpoint_grants):
        server = module_saboteur(own_users=case["users"], auth_body=case["body"], ttl=60)
        endpoint = server.url.replace("ws", "http", 1) + "/auth"
        options = ["--auth-endpoint", endpoint, "--auth-body", case["body"]]
        options += ["--workers", case["workers"]] if case["workers"] else []
        runs[tuple(case.values())] = begin(case["profile"], server.url, SHORT, *options)
    return runs


@pytest.mark.parametrize(
    ("profile", "users", "body", "workers"),
    [
        ("presence", "each", "form", 0),
        ("presence", "one", "json", 0),
        ("presence", "each", "json", 2),
        ("mixed", "each", "form", 0),
    ],
)
def test_identities_are_those_that_the_auth_endpoint_grants(
    granted_runs, profile, users, body, workers
):
    done = granted_runs[profile, users, body, workers].result()
    assert_clean(done)
    assert done.figures["presence.checked"] > 0 or done.was_disturbed


def test_a_member_that_is_missing_is_found_whoever_chose_its_id(run, saboteur, tmp_path):
    (tmp_path / "plan.toml").write_text(SHORT)
    server = saboteur(own_users="each", lose_member=5)
    endpoint = server.url.replace("ws", "http", 1) + "/auth"
    options = ["--plan", tmp_path / "plan.toml", "--auth-endpoint", endpoint]
    done = run("presence", server.url, *options)
    assert done.figures["presence.wrong"] > 0, done.out


def test_keys_come_from_the_auth_endpoint(run, saboteur, tmp_path):
    (tmp_path / "plan.toml").write_text(SHORT)
    server = saboteur()
    endpoint = server.url.replace("ws", "http", 1) + "/auth"
    key = base64.b64encode(MASTER_KEY).decode()
    options = ["--plan", tmp_path / "plan.toml", "--auth-endpoint", endpoint]
    assert_clean(run("encrypted", server.url, *options, "--encryption-key", key))


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"no_keys": True}, "no shared_secret"),
        ({"own_keys": True}, "--encryption-key"),
    ],
)
def test_keys_that_cannot_be_used_end_the_run_before_it_begins(run, saboteur, faults, words):
    server = saboteur(**faults)
    endpoint = server.url.replace("ws", "http", 1) + "/auth"
    done = run("encrypted", server.url, "--auth-endpoint", endpoint, "--duration", 1)
    assert done.code == 2, done.out
    assert words in done.result["verdict"]["reasons"][0]
