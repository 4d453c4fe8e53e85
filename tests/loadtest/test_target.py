"""Targets: what a user types, secrets that stay secret, and hosts one should ask about."""

import json
import subprocess
import sys

import pytest

from cachecast_load.plan.target import (
    TargetError,
    make_target,
    parse_endpoint,
    public_hosts,
    read_secret,
)


def target(**options):
    return make_target(**({"url": "ws://h", "app_id": "1", "key": "k", "secret": "s"} | options))


def test_urls_are_taken_apart():
    endpoint = parse_endpoint("wss://example.test/prefix/")
    assert (endpoint.host, endpoint.port, endpoint.tls) == ("example.test", 443, True)
    assert endpoint.url("ws") == "wss://example.test:443/prefix"
    assert parse_endpoint("ws://[::1]:6001").host_header == "[::1]:6001"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "localhost:6001"}, "ws://127.0.0.1:6001"),
        ({"url": "ftp://h"}, "no scheme"),
        ({"url": "ws://"}, "names no host"),
        ({"url": "ws://h:99999"}, "not a URL"),
        ({"url": "ws://me:pw@h"}, "--key and --secret"),
        ({"app_id": ""}, "--app-id is missing"),
        ({"secret": ""}, "--secret is missing"),
        ({"headers": ("nonsense",)}, "Name: value"),
        ({"headers": ("A: b\r\nC: d",)}, "Name: value"),
        ({"headers": ("Host: elsewhere",)}, "set by the load test itself"),
        ({"headers": ("@/no/such/file",)}, "cannot be read"),
        ({"url": "ws://h?x=1"}, "not a base URL"),
        ({"ca_file": "/no/such/file"}, "no such file"),
        ({"secret": "@/no/such/file"}, "cannot be read"),
        ({"encryption_key": "c2hvcnQ="}, "32 bytes"),
        ({"encryption_key": "***"}, "not base64"),
        ({"auth_endpoint": "nowhere"}, "no scheme"),
        ({"url": ""}, "--target is missing"),
        ({"url": ["ws://h", "ws://h:80"]}, "--target ws://h:80 is given twice"),
        ({"url": "ws://h,http://h:80/"}, "--target ws://h:80 is given twice"),
        ({"api_url": ["http://h", "http://h"]}, "--api-url http://h:80 is given twice"),
        ({"url": "ws://a:1,b:2"}, "names several hosts; each needs a URL of its own"),
        ({"url": ["ws://a", "b:2"]}, "'b:2' has no scheme"),
        ({"url": [f"ws://h:{port}" for port in range(1, 102)]}, "more than 100"),
        ({"metrics_url": ["http://a/m", "b/m"]}, "'b/m' has no scheme"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_remedy(options, words):
    with pytest.raises(TargetError) as caught:
        target(**options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        ["ws://a:1", "wss://b:2/x"],
        "ws://a:1,wss://b:2/x",
        " ws://a:1, wss://b:2/x,",
        ["ws://a:1\nwss://b:2/x", ""],
        "http://a:1 https://b:2/x",
    ],
)
def test_several_targets_may_be_a_list_or_a_text_and_of_mixed_schemes(given):
    made = target(url=given)
    assert made.socket_urls == ["ws://a:1", "wss://b:2/x"]
    # Where no API is named, each node has its own.
    assert made.api_urls == ["http://a:1", "https://b:2/x"]
    assert made.entrances == [*made.api_urls, *made.socket_urls]
    assert made.hosts() == ["a", "b"]


def test_one_url_stays_as_it_is():
    made = target(url="ws://h:1/a,b", api_url="http://api/")
    assert made.socket_urls == ["ws://h:1/a,b"]
    assert made.api_urls == ["http://api:80"]


def test_hosted_pusher_has_its_api_under_another_name():
    hosted = target(url="wss://ws-eu.pusher.com")
    assert hosted.api_urls == ["https://api-eu.pusher.com:443"]
    assert target(url="wss://ws-eu.pusher.com.example.test").api_urls[0].startswith("https://ws-eu")
    assert target(url="wss://ws-eu.pusher.com", api_url="http://h").api_urls == ["http://h:80"]


def test_without_the_api_only_the_key_is_needed():
    made = target(app_id="", secret="", needs_api=False)
    assert (made.credentials.app_id, made.credentials.secret) == ("", "")
    with pytest.raises(TargetError, match="--key is missing"):
        target(key="", needs_api=False)


def test_metrics_of_several_nodes_are_kept_in_order_and_each_once():
    urls = ["http://a/m", "http://b/m?x=1,2", "http://a/m"]
    assert target(metrics_url=urls).metrics_urls == ("http://a/m", "http://b/m?x=1,2")


def test_a_worker_must_know_several_targets_by_the_masters_names_and_order():
    several = target(url=["ws://a:1", "ws://b:2"])
    several.require_same(["ws://a:1", "ws://b:2"], ["http://a:1", "http://b:2"])
    for theirs in (["ws://b:2", "ws://a:1"], ["ws://a:1"]):
        with pytest.raises(TargetError, match="give both the same, in the same order"):
            several.require_same(theirs, several.api_urls)
    with pytest.raises(TargetError, match="its --api-url are"):
        several.require_same(several.socket_urls, ["http://c:3"])
    # One and one may be the same by two names.
    target(url="ws://inside:1").require_same(["ws://outside:1"], ["http://outside:1"])


def test_a_secret_may_come_from_a_file(tmp_path):
    (tmp_path / "secret").write_text("from-file\n")
    assert read_secret(f"@{tmp_path / 'secret'}") == "from-file"
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(TargetError, match="empty"):
        read_secret(f"@{tmp_path / 'empty'}")


def test_headers_may_come_from_a_file(tmp_path):
    (tmp_path / "headers").write_text("A: 1\n\nB: 2\n")
    assert target(headers=(f"@{tmp_path / 'headers'}", "C: 3")).headers == (
        ("A", "1"), ("B", "2"), ("C", "3"),
    )  # fmt: skip


def test_an_odd_app_id_is_escaped():
    assert target(app_id="a/b c").api_path("channels", "x") == "/apps/a%2Fb%20c/channels/x"
    assert target(url="ws://h/prefix").api_path("events") == "/apps/1/events"
    # As a proxy writes it that takes a prefix off, or the signature would break.
    assert target().api_path("users", "u@b,c;d=e#") == "/apps/1/users/u@b,c;d=e%23"


def test_a_target_never_shows_its_secrets():
    made = target(secret="hush", headers=("Authorization: Bearer tok",))
    for text in (repr(made.credentials), str(made.describe())):
        assert "hush" not in text
        assert "tok" not in text
    assert made.describe()["headers"] == ["Authorization"]


def test_loopback_and_private_hosts_are_near_and_others_are_not():
    assert public_hosts(target(url="ws://127.0.0.1:1", api_url="http://10.1.2.3")) == []
    assert public_hosts(target(url="ws://localhost:1")) == []
    assert public_hosts(target(url="ws://127.0.0.1", metrics_url="http://8.8.8.8/metrics")) == [
        "8.8.8.8"
    ]
    with pytest.raises(TargetError, match=r"does-not-exist.invalid cannot be resolved"):
        public_hosts(target(url="ws://does-not-exist.invalid"))


def test_what_workers_are_told_is_on_no_command_line(monkeypatch):
    """Other users of a machine can read every command line, but not an environment."""
    program = (
        "import json, subprocess, sys\n"
        "from cachecast_load.swarm import workers\n"
        "from cachecast_load.plan.target import make_target\n"
        "target = make_target(url=['wss://127.0.0.1:1', 'ws://127.0.0.1:2'],\n"
        "    app_id='1', key='k', secret='hush',\n"
        "    headers=('Authorization: tok',), verify=False)\n"
        "class Popen:\n"
        "    def __init__(self, command, env, **_):\n"
        "        print(json.dumps([command, env]))\n"
        "workers.subprocess.Popen = Popen\n"
        "workers._start(target, 5)\n"
    )
    monkeypatch.setenv("CACHECAST_LOADTEST_METRICS_URL", "not-for-workers")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    command, environment = json.loads(done.stdout.splitlines()[-1])

    assert not {"hush", "tok"} & set(" ".join(command).replace(":", " ").split())
    assert environment["CACHECAST_LOADTEST_SECRET"] == "hush"
    assert environment["CACHECAST_LOADTEST_HEADERS"] == "Authorization: tok"
    assert environment["CACHECAST_LOADTEST_TARGET"] == "wss://127.0.0.1:1,ws://127.0.0.1:2"
    assert environment["CACHECAST_LOADTEST_INSECURE"] == "1"
    assert "CACHECAST_LOADTEST_METRICS_URL" not in environment
