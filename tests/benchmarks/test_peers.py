"""Every server among the peers that is here starts, fans out, and gives late ones their value.

soketi is always here in CI; which of the others are depends on the machine.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cachecast_bench.bench import Bench
from cachecast_bench.dialects import Endpoint
from cachecast_bench.dialects.base import HttpReplies, PublishError, server_frame
from cachecast_bench.dialects.centrifugo import CentrifugoDialect
from cachecast_bench.machine import choose_cores
from cachecast_bench.peers import PEERS
from cachecast_bench.peers.soketi import Soketi
from cachecast_bench.result import ScenarioResult
from cachecast_bench.scenarios.steps import connect, paced
from cachecast_bench.scenarios.storm import publish_once

PACKAGE = Path(__file__).parents[1] / "targets" / "node_modules" / "@soketi" / "soketi"
CLOSING = {"soketi", "sockudo"}
SERVERS = ("nchan", "mosquitto", "nats", "centrifugo", "sockudo")
HERE = ["soketi", *(name for name in SERVERS if PEERS[name].why_missing() is None)]


@pytest.fixture(autouse=True)
def soketi_of_the_tests(monkeypatch):
    """Take the package that the load test's targets have."""
    if PACKAGE.exists():
        monkeypatch.setenv("SOKETI", str(PACKAGE))


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("name", HERE)
async def test_a_peer_fans_out_and_gives_late_ones_the_value(name):
    peer = PEERS[name]
    missing = peer.why_missing()
    if missing and os.environ.get("CI") == "true":
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)
    bench = Bench(choose_cores(), quick=True)
    result = ScenarioResult("fanout")
    async with bench.stages([peer], result) as (stage,):
        await connect(bench, stage, 5)
        sample = await bench.sample(
            stage, plan="main", seconds=0.3, warmup_s=0.1, plans=[paced(stage, 50.0)], size=256
        )
        assert set(sample.ledger.values()) == {0}
        assert sample.metrics["deliveries_per_s"] > 0
        endpoint = stage.running.endpoint
        if endpoint.keeps_values:
            await publish_once(stage, "cache-late")
            late = {"channels": ["cache-late"], "crew": "late", "wait_for_value": True}
            report = await connect(bench, stage, 3, **late)
            assert report["n_connected"] == 3
    assert endpoint.closes_after_answer == (name in CLOSING)
    assert ("closes after each answer" in bench.configurations[name]) == (name in CLOSING)
    assert result.problems == []


def test_a_substitute_below_soketi_is_named(tmp_path, monkeypatch):
    package = tmp_path / "node_modules" / "@soketi" / "soketi"
    below = tmp_path / "node_modules" / "uWebSockets.js"
    for folder in (package / "bin", below):
        folder.mkdir(parents=True)
    (package / "bin" / "server.js").write_text("")
    asked = '"uWebSockets.js": "https://example.test/uWebSockets.js.git#v20.10.0"'
    (package / "package.json").write_text(f'{{"version": "1.6.1", "dependencies": {{{asked}}}}}')
    monkeypatch.delenv("SOKETI", raising=False)
    monkeypatch.setenv("NODE_PATH", str(tmp_path / "node_modules"))

    (below / "package.json").write_text('{"name": "uWebSockets.js", "version": "20.10.0"}')
    assert Soketi().version() == "1.6.1"

    (below / "package.json").write_text('{"name": "@other/uws", "version": "20.30.0"}')
    assert Soketi().version() == "1.6.1, on @other/uws 20.30.0 in place of uWebSockets.js v20.10.0"


@pytest.mark.parametrize("body", [b'{"error":"no","code":401}', b'{"error":{"code":102}}'])
def test_an_error_that_comes_as_200_ends_the_run_too(body):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    with pytest.raises(PublishError, match="error"):
        HttpReplies()(head + body)


def test_a_value_that_comes_with_centrifugos_confirmation_has_come():
    """And it is asked for in the namespace that keeps one."""
    dialect = CentrifugoDialect(Endpoint("centrifugo", 1, options={"api_key": "k"}))
    assert b'"channel":"cache:storm"' in dialect.publish("cache-storm", [b"x"])
    assert b'"channel":"plain"' in dialect.publish("plain", [b"x"])

    joining = dialect.join(["cache-storm"], wait_for=b"mark")
    next(joining)
    joining.send(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
    joining.send(server_frame(b'{"id":1,"connect":{}}'))
    confirmation = b'{"id":2,"subscribe":{"publications":[{"data":"mark"}],"recovered":true}}'
    with pytest.raises(StopIteration):
        joining.send(server_frame(confirmation))
