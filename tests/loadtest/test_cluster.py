"""Runs against several targets: joined or not, ones that differ, ones that die."""

import json
import re
import socket

import pytest

from cachecast_load.plan.target import make_target
from cachecast_load.run import scrape
from tests.cluster.engines import serving
from tests.loadtest.conftest import CREDENTIALS, run_command, start_engine
from tests.loadtest.test_engine import assert_clean

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PLAN = """
[load]
subscribers = 60
rate = 40
channels = 5
duration_s = 1.5
[limits]
grace_s = 0.3
[behaviour]
members_per_channel = 20
"""

#: What a node asks of an engine, so that no value leaves its memory.
SETTINGS = ("--crash-log-enabled", "no", "--slowlog-max-len", "0")


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN)
    return tmp_path / "plan.toml"


@pytest.fixture(scope="module")
def pair():
    """Two engines that know nothing of each other, by their URLs."""
    servers = [start_engine() for _ in range(2)]
    yield [server.url for server in servers]
    for server in servers:
        server.end()


@pytest.fixture(scope="module")
def twice(pair):
    """One engine by two addresses: nodes that are joined as well as can be."""
    return [pair[0], pair[0].replace("127.0.0.1", "127.1")]


@pytest.fixture(scope="module")
def joined():
    """Two nodes on one bus, by their URLs."""
    with serving("redis", *SETTINGS) as engine:
        servers = [start_engine("--bus", f"unix://{engine.path}") for _ in range(2)]
        yield [server.url for server in servers]
        for server in servers:
            server.end()


@pytest.fixture
def run_several(tmp_path, plan):
    """Run a profile against several URLs; returns `Finished`."""

    def call(profile, urls, *arguments, **environment):
        targets = [word for url in urls for word in ("--target", url)]
        return run_command(
            tmp_path, "run", profile, *targets, *CREDENTIALS, "--report", tmp_path, "--quiet",
            "--plan", plan, *arguments, **environment,
        )  # fmt: skip

    return call


def dead_url():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"ws://127.0.0.1:{free.getsockname()[1]}"


def assert_not_joined(done, urls):
    """All of what had to cross is lost, nothing else is, and the report says so in words."""
    assert done.code == 1 or done.was_disturbed, done.out
    ways = done.result["nodes"]["ways"]
    for way in ways:
        crosses = way["from"].partition("://")[2] != way["to"].partition("://")[2]
        assert way["lost"] == (way["owed"] if crosses else 0), ways
    assert len(ways) == len(urls) ** 2
    assert done.figures["delivery.lost"] == sum(way["lost"] for way in ways) > 0
    says = done.result["nodes"]["says"]
    assert "do not pass events on to each other" in says[-1]
    a, b = urls
    pattern = f"nothing of what went in at {a} reached the subscribers at {b}"
    assert pattern.replace("ws://", "http://", 1) in done.out
    if done.code == 1:
        assert says[-1] in done.result["verdict"]["reasons"]


@pytest.mark.parametrize("options", [(), ("--workers", 2), ("--kind", "cache-")])
def test_nodes_that_are_not_joined_lose_what_should_cross(run_several, pair, options):
    """The mutant of this feature: a ledger that a node without a bus gets past proves nothing."""
    assert_not_joined(run_several("fanout", pair, *options), pair)


def test_rosters_of_nodes_that_are_not_joined_are_wrong(run_several, pair):
    done = run_several("presence", pair)
    assert_not_joined(done, pair)
    assert done.figures["presence.wrong"] >= 60
    wrong = [entry["figures"]["presence.wrong"] for entry in done.result["nodes"]["targets"]]
    assert sum(wrong) == done.figures["presence.wrong"]
    assert min(wrong) >= 20  # some came back elsewhere


def test_client_events_do_not_cross_either(run_several, pair):
    done = run_several("client-events", pair)
    assert done.figures["delivery.lost"] > 0
    crossing = [way for way in done.result["nodes"]["ways"] if way["from"] != way["to"]]
    assert all(way["lost"] == way["owed"] for way in crossing)
    assert sum(way["lost"] for way in crossing) == done.figures["delivery.lost"]


@pytest.mark.parametrize("profile", ["fanout", "mixed", "client-events", "reconnect-storm"])
def test_nodes_that_are_joined_lose_nothing(run_several, joined, profile):
    done = run_several(profile, joined)
    assert_clean(done)
    ways = done.result["nodes"]["ways"]
    assert [way["lost"] for way in ways] == [0] * len(ways)
    assert len(ways) >= 4


def test_a_roster_is_one_over_all_nodes(run_several, joined):
    done = run_several("presence", joined)
    assert_clean(done)
    assert done.figures["presence.checked"] == 60


def test_workers_behind_one_port_lose_nothing(run_several, new_engine):
    done = run_several("mixed", [new_engine("--workers", 2).url], "--workers", 2)
    assert_clean(done)


def test_one_target_by_two_names_is_as_good_as_two_joined_ones(run_several, twice):
    done = run_several("mixed", twice)
    assert_clean(done)
    nodes = done.result["nodes"]
    assert [way["lost"] for way in nodes["ways"]] == [0] * len(nodes["ways"])
    assert len(nodes["ways"]) >= 4
    connects = [entry["counts"]["connects"] for entry in nodes["targets"]]
    assert sum(connects) == done.result["counts"]["connects"]
    assert max(connects) < 2 * min(connects)


def test_publishers_use_the_api_urls_that_are_named(run_several, pair):
    one, other = pair
    done = run_several("fanout", [one], "--api-url", other.replace("ws", "http", 1))
    assert done.figures["delivery.lost"] == done.figures["delivery.expected"] > 0
    # One and one, as ever: nothing is to be told apart.
    assert done.result["nodes"] == {"targets": [], "apis": [], "ways": [], "says": []}


def test_several_targets_may_come_from_the_environment_and_the_plan(run_several, twice, plan):
    plan.write_text(f"{PLAN}\n[target]\nurl = 'ws://127.0.0.1:1'\napi_url = '{twice[0]}'\n")
    done = run_several("fanout", [], CACHECAST_LOADTEST_TARGET=",".join(twice))
    assert done.result["target"]["sockets"] == twice
    assert done.result["target"]["apis"] == [twice[0].replace("ws", "http", 1)]
    assert len(done.result["nodes"]["ways"]) == 2
    plan.write_text(f"{PLAN}\n[target]\nurl = {json.dumps(twice)}\n")
    done = run_several("fanout", [], "--duration", 0.5)
    assert done.result["target"]["sockets"] == twice


def test_the_one_of_three_that_is_unreachable_is_named(run_several, twice):
    good, again = twice
    bad = dead_url()
    done = run_several("fanout", [good, bad, again])
    assert done.code == 2
    (reason,) = done.result["verdict"]["reasons"]
    assert reason == f"{bad}: connection refused (the other 2 of 3 targets can be used)"
    api = dead_url().replace("ws", "http", 1)
    done = run_several("fanout", [good], "--api-url", good, "--api-url", api)
    assert done.code == 2
    (reason,) = done.result["verdict"]["reasons"]
    assert re.match(f"HTTP API at {api}: connection refused .the other 1 of 2 API URLs", reason)


def test_targets_that_differ_are_said(run_several, new_engine):
    urls = [new_engine("--cache-ttl", ttl).url for ttl in (30, 90)]
    done = run_several("cache-join", urls, "--duration", 1)
    apis = [url.replace("ws", "http", 1) for url in urls]
    assert (
        f"the targets differ: the lifetime of cached values is 30 s at {apis[0]}, 90 s at {apis[1]}"
        in done.out
    )
    assert done.result["plan"]["behaviour"]["ttl_s"] == 30


@pytest.mark.parametrize("where", ["next", "same"])
def test_whoever_loses_a_node_comes_back_on_another_as_behind_a_balancer(
    run_several, saboteur, pair, plan, where
):
    plan.write_text(PLAN + 'backoff = "at once"\n')
    urls = [saboteur(die_after=60).url, pair[0]]
    done = run_several("fanout", urls, "--reconnect-to", where)
    bad, good = done.result["nodes"]["targets"]
    assert bad["figures"]["closed.unexpected"] == 30
    assert good["figures"]["closed.unexpected"] == 0
    assert good["counts"]["connects"] == (60 if where == "next" else 30) or done.was_disturbed
    assert bool(bad["figures"]["connect.failed"]) == (where == "same")
    assert good["figures"]["connect.failed"] == 0


def test_metrics_of_several_nodes_are_added_up_or_not_believed(saboteur):
    pages = [
        saboteur(conflate_metrics=count).url.replace("ws", "http", 1) + "/metrics"
        for count in (3, 4)
    ]

    def sample(*urls):
        return scrape.sample(
            make_target(url="ws://h", app_id="1", key="k", secret="s", metrics_url=urls)
        )

    assert sample(*pages) == {"conflated": 7.0}
    nowhere = dead_url().replace("ws", "http", 1)
    with pytest.raises(scrape.ScrapeError, match=f"the metrics at {nowhere}: .*refused"):
        sample(pages[0], nowhere)
