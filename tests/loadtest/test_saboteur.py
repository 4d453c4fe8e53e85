"""Against a server that lies in known amounts: the report must find exactly these amounts."""

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SERIAL = """
[limits]
grace_s = 0.4
[load]
publish_connections = 1
subscribers = 40
rate = 20
duration_s = 3
"""
FAULTS = ("lost", "doubled", "reordered", "stale", "altered", "misrouted", "foreign")


@pytest.fixture
def plan(tmp_path):
    """Write a plan that publishes one after the other, so that every order is a promised one."""

    def write(text=SERIAL):
        (tmp_path / "plan.toml").write_text(text)
        return tmp_path / "plan.toml"

    return write


def found(done):
    return {f: done.figures[f"delivery.{f}"] for f in FAULTS if done.figures[f"delivery.{f}"]}


def test_an_honest_server_is_found_without_fault(run, saboteur, plan):
    done = run("fanout", saboteur().url, "--plan", plan())
    assert found(done) == {}
    assert done.figures["delivery.expected"] == done.figures["delivery.received"] > 1000
    assert done.code in (0, 2), done.out


@pytest.mark.parametrize("strict", [False, True])
def test_every_kind_of_fault_is_found_in_exactly_its_amount(run, saboteur, plan, strict):
    server = saboteur(lose=7, double=3, reorder=5, stale=4, alter=2, misroute=6)
    options = ["--strict"] if strict else []
    done = run("fanout", server.url, "--plan", plan(), *options)

    assert server.faults() == {
        "lose": 7, "double": 3, "reorder": 5, "stale": 4, "alter": 2, "misroute": 6
    }  # fmt: skip
    # What was altered or sent to a wrong channel was not delivered either.
    assert found(done) == {
        "lost": 7 + 2 + 6,
        "doubled": 3,
        "reordered": 5,
        "stale": 4,
        "altered": 2,
        "misrouted": 6,
    }
    assert done.code in (1, 2)
    assert "never got" in done.result["ledger"]["examples"]["lost"][0]


def test_delayed_events_are_late_in_the_histogram_and_not_lost(run, saboteur, plan):
    server = saboteur(delay=9, delay_s=0.5)
    done = run("fanout", server.url, "--plan", plan())
    histogram = done.result["histograms"]["delivery"]
    late = sum(count for low, _, count in histogram["bars"] if low >= 400_000)

    assert server.faults() == {"delay": 9}
    assert late >= 9  # and those that the machine held up
    assert done.figures["delivery.lost"] == 0
    assert done.figures["delivery.max_ms"] >= 500


def test_old_values_and_false_misses_of_the_cache_are_counted(run, saboteur, plan):
    server = saboteur(old_value=6, false_miss=4)
    text = "[load]\npublish_connections = 1\nrate = 20\nchannels = 5\nduration_s = 4\n"
    text += "[behaviour]\nmiss_share = 0.0\nhold_s = 0.2\n"
    done = run("cache-join", server.url, "--plan", plan(text))

    faults = server.faults()
    assert faults == {"old_value": 6, "false_miss": 4} or done.was_disturbed
    assert done.figures["cache.stale"] == faults["old_value"]
    assert done.figures["cache.false_misses"] == faults["false_miss"]
    joins = 50 * done.result["run"]["measured_s"]
    joined = done.figures["cache.hits"] + done.figures["cache.misses"]
    assert joined == pytest.approx(joins, abs=15) or done.was_disturbed
    assert done.code in (1, 2)


def test_values_past_their_lifetime_are_counted(run, saboteur):
    server = saboteur(ttl=2, expired=True)
    done = run("cache-expiry", server.url, "--ttl", 2, "--subscribers", 20)
    # The pair closest to the deadline is too close to call; no early joiner may be blamed.
    assert 8 <= done.figures["cache.expired_served"] <= 10 or done.was_disturbed
    assert done.figures["cache.false_misses"] == 0


def test_conflated_updates_are_told_from_lost_ones_by_the_targets_own_counter(run, saboteur, plan):
    text = SERIAL + '[behaviour]\nchannel_kind = "cache-"\n'
    server = saboteur(lose=7, conflate_metrics=0)
    metrics = server.url.replace("ws", "http", 1) + "/metrics"
    done = run("fanout", server.url, "--plan", plan(text), "--metrics-url", metrics)
    assert (done.figures["delivery.lost"], done.figures["delivery.conflated"]) == (7, 0)

    done = run("fanout", server.url, "--plan", plan('conflation = "allowed"' + text))
    assert (done.figures["delivery.lost"], done.figures["delivery.conflated"]) == (0, 0)


def test_a_roster_that_misses_members_is_wrong(run, saboteur, plan):
    server = saboteur(lose_member=3)
    text = "[load]\nsubscribers = 40\nduration_s = 1\n[behaviour]\ndrop_share = 0.0\n"
    done = run("presence", server.url, "--plan", plan(text))
    assert server.faults() == {"lose_member": 3}
    missing = sum(error["count"] for error in done.result["errors"])
    assert done.figures["presence.wrong"] == missing
    # One subscriber may have missed several.
    assert 1 <= missing <= 3 or (missing == 0 and done.was_disturbed)
    assert done.figures["presence.checked"] == 40


def test_echoed_client_events_are_counted(run, saboteur):
    server = saboteur(echo=5)
    done = run(
        "client-events", server.url, "--subscribers", 40, "--channels", 4, "--rate", 20,
        "--duration", 3,
    )  # fmt: skip
    assert done.figures["client_events.echoed"] == server.faults()["echo"] == 5
    assert done.figures["delivery.lost"] == 0


def test_an_auth_endpoint_signs_subscriptions(run, saboteur):
    server = saboteur()
    endpoint = server.url.replace("ws", "http", 1) + "/auth"
    done = run(
        "private", server.url, "--auth-endpoint", endpoint, "--subscribers", 40, "--duration", 2
    )
    assert done.figures["auth.count"] == 40
    assert found(done) == {}


def test_an_auth_endpoint_that_refuses_is_reported(run, saboteur, plan):
    server = saboteur(auth_status=403)
    endpoint = server.url.replace("ws", "http", 1) + "/auth"
    text = "[load]\nsubscribers = 10\nduration_s = 1\n[limits]\nready_timeout_s = 1\n"
    done = run("private", server.url, "--auth-endpoint", endpoint, "--plan", plan(text))
    assert done.figures["subscribe.failed"] == 10
    assert "auth endpoint: HTTP 403" in done.out
    assert done.code in (1, 2)


def test_whole_payloads_in_frames_that_no_sdk_would_hand_out_are_no_deliveries(run, saboteur, plan):
    server = saboteur(rename=3, lengthen=4, cut=5, bury=6)
    done = run("fanout", server.url, "--plan", plan())
    assert sum(server.faults().values()) == 18
    assert found(done) == {"altered": 18, "lost": 18}
    assert done.code in (1, 2)


NONSENSE = [
    "[" * 20_000,
    '{"event":"x","channel":"CHANNEL","data":"' + "[" * 20_000 + '"}',
    "null",
    '{"event":1}',
    '{"event":"\\ud800","channel":"\\ud800","data":' + "9" * 5_000 + "}",
    '{"event":"pusher:error","data":{"code":[{"a":1}],"message":"\\ud800\\u001b[2J</script>"}}',
    '{"event":"pusher_internal:subscription_succeeded","channel":["a"]}',
    '{"event":"pusher_internal:member_added","channel":"CHANNEL","data":{"user_id":{"a":1}}}',
    '{"event":"pusher:connection_established","data":"{}"}',
    '{"event":"pusher:cache_miss"}',
]


def test_nonsense_between_the_events_is_told_and_hides_none_of_them(run, saboteur, plan):
    done = run("fanout", saboteur(says=NONSENSE).url, "--plan", plan())
    assert found(done) == {}
    assert done.figures["delivery.received"] > 1000
    kinds = {error["kind"]: error["count"] for error in done.result["errors"]}
    assert kinds["protocol: not a Pusher message"] == 4 * 40
    assert done.code in (0, 2), done.out


@pytest.mark.parametrize("roster", [{"ids": None}, {"ids": ["u0", "u0"]}])
def test_a_roster_of_another_shape_is_wrong_and_not_the_end(run, saboteur, plan, roster):
    text = "[load]\nsubscribers = 10\nduration_s = 1\n[behaviour]\ndrop_share = 0.0\n"
    done = run("presence", saboteur(roster=roster).url, "--plan", plan(text))
    assert done.figures["presence.wrong"] >= 9, done.out
    assert done.code in (1, 2)


@pytest.mark.parametrize("secret", ["!!", "AAAA"])
def test_an_auth_endpoint_whose_keys_are_none_is_reported(run, saboteur, plan, secret):
    server = saboteur(grant={"shared_secret": secret})
    endpoint = server.url.replace("ws", "http", 1) + "/auth"
    text = "[load]\nsubscribers = 10\nduration_s = 1\n[limits]\nready_timeout_s = 1\n"
    done = run("encrypted", server.url, "--auth-endpoint", endpoint, "--plan", plan(text))
    assert "a shared_secret that is no key" in done.out


def test_a_value_and_then_a_miss_for_the_same_subscription_is_a_false_miss(run, saboteur, plan):
    both = '{"event":"pusher:cache_miss","channel":"CHANNEL","data":"{}"}'
    text = "[load]\nrate = 20\nchannels = 5\nduration_s = 2\nsubscribers = 40\n"
    text += "[behaviour]\nmiss_share = 0.0\nhold_s = 0.2\njoins_per_s = 20\n"
    done = run("cache-join", saboteur(says=[both]).url, "--plan", plan(text))
    assert done.figures["cache.hits"] > 20
    assert done.figures["cache.false_misses"] == done.figures["cache.hits"]
    assert done.code in (1, 2)
