"""Targets: what a user types, secrets that stay secret, and hosts one should ask about."""

import json
import subprocess
import sys

import pytest

from cachecast_load.target import (
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
    ],
)
def test_what_cannot_be_used_is_refused_with_a_remedy(options, words):
    with pytest.raises(TargetError) as caught:
        target(**options)
    assert words in str(caught.value)


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
        "from cachecast_load import running\n"
        "from cachecast_load.target import make_target\n"
        "target = make_target(url='wss://127.0.0.1:1', app_id='1', key='k', secret='hush',\n"
        "    headers=('Authorization: tok',), verify=False)\n"
        "class Popen:\n"
        "    def __init__(self, command, env, **_):\n"
        "        print(json.dumps([command, env]))\n"
        "running.subprocess.Popen = Popen\n"
        "running._start_worker(target, 5)\n"
    )
    monkeypatch.setenv("CACHECAST_LOADTEST_METRICS_URL", "not-for-workers")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    command, environment = json.loads(done.stdout.splitlines()[-1])

    assert not {"hush", "tok"} & set(" ".join(command).replace(":", " ").split())
    assert environment["CACHECAST_LOADTEST_SECRET"] == "hush"
    assert environment["CACHECAST_LOADTEST_HEADERS"] == "Authorization: tok"
    assert environment["CACHECAST_LOADTEST_INSECURE"] == "1"
    assert "CACHECAST_LOADTEST_METRICS_URL" not in environment
