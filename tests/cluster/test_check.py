"""``cachecast bus check`` beside real engines: what it says, and that it changes nothing."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager

import pytest
import trio
from click.testing import CliRunner

from cachecast.apps import App
from cachecast.broker import open_broker
from cachecast.bus.check import check_primary
from cachecast.bus_config import BusConfig
from cachecast.cli import cachecast
from cachecast.config import BrokerConfig
from cachecast.errors import ConfigError
from tests.cluster.engines import MEMORY_ONLY, Plain, Server, binary_of

FIT = (*MEMORY_ONLY, "--maxmemory-policy", "noeviction", "--slowlog-max-len", "0")
KEY = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"


@pytest.fixture(params=["redis", "valkey"])
def server(request):
    options = [*FIT, "--crash-log-enabled", "no"]
    if request.param == "valkey":
        options += [
            "--commandlog-large-request-max-len", "0", "--commandlog-large-reply-max-len", "0",
        ]  # fmt: skip
    with Server(binary_of(request.param), *options) as server:
        yield server


def _check(*arguments):
    result = CliRunner().invoke(cachecast, ["bus", "check", *arguments])
    if isinstance(result.exception, ConfigError):  # the command line's own way to say it
        return 1, str(result.exception)
    return result.exit_code, result.output


def _words(text):
    return " ".join(text.split())


def test_an_engine_that_is_fit_is_said_to_be_and_is_left_as_it_was(server):
    code, text = _check("--bus", f"unix://{server.path}")

    assert code == 0, text
    assert "a node can work with it" in text
    assert "no node has joined" in text
    assert max(len(line) for line in text.splitlines()) <= 80
    with Plain(server.path) as plain:
        assert plain.must("DBSIZE") == 0
        assert plain.must("FUNCTION", "LIST") == []


def test_what_would_keep_a_node_from_starting_is_named_with_its_remedy(server):
    with Plain(server.path) as plain:
        plain.must("CONFIG", "SET", "appendonly", "yes")
        plain.must("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        code, text = _check("--bus", f"unix://{server.path}")
        plain.must("CONFIG", "SET", "appendonly", "no")

    assert code == 1
    assert "CONFIG SET appendonly no" in _words(text)
    assert "CONFIG SET maxmemory-policy noeviction" in _words(text)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "would refuse it" in text


def test_everything_is_there_as_json_too(server):
    code, text = _check("--bus", f"unix://{server.path}", "--json")

    (found,) = json.loads(text)
    assert code == 0
    assert found["version"]
    assert found["latency_p50_ms"] > 0
    assert found["lag_ms"] > 0
    assert found["nodes"] == {}


def test_nobody_there_is_another_exit_code_than_a_refusal(server, tmp_path):
    assert _check("--bus", f"unix://{tmp_path}/none")[0] == 2
    code, text = _check()
    assert code == 1
    assert "names no engine" in text
    del server


def test_a_wrong_password_and_no_password_are_told_apart(server, tmp_path):
    secret = tmp_path / "password"
    secret.write_text("wrong\n")
    with Plain(server.path) as plain:
        plain.must("CONFIG", "SET", "requirepass", "right")
        code, text = _check("--bus", f"unix://{server.path}")
        assert (code, "wants a password" in _words(text)) == (1, True), text
        code, text = _check("--bus", f"unix://{server.path}", "--bus-password-file", str(secret))
        assert (code, "refuses user or password" in _words(text)) == (1, True), text
        assert "wrong" not in text
        secret.write_text("right\n")
        code, text = _check("--bus", f"unix://{server.path}", "--bus-password-file", str(secret))
        assert code == 0, text


def test_sealing_makes_an_engine_that_saves_acceptable_and_is_said(server, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    with Plain(server.path) as plain:
        plain.must("CONFIG", "SET", "save", "60 1000")
    code, text = _check("--bus", f"unix://{server.path}", "--bus-seal-key-file", str(keys))

    assert code == 0, text
    assert "are sealed" in text
    assert KEY not in text


@asynccontextmanager
async def _node(server, **bus):
    app = App(id="1", key="k", secret="s")
    config = BrokerConfig(apps=(app,), bus=BusConfig(urls=(f"unix://{server.path}",), **bus))
    async with open_broker(config) as broker:
        yield broker


async def _checked(server, *more):
    config = BusConfig(urls=(f"unix://{server.path}", *more))
    return await check_primary(config.primaries()[0], config, None)


async def test_nodes_are_told_with_their_sessions(server):
    async with _node(server):
        found = await _checked(server)
        told = await trio.to_thread.run_sync(_check, "--bus", f"unix://{server.path}")

    (node,) = found.nodes
    assert found.fault == ""
    assert found.has_own_library
    assert found.sessions[node].startswith(f"{found.epoch}-")
    assert told[0] == 0
    assert found.sessions[node] in told[1]
    assert max(len(line) for line in told[1].splitlines()) <= 80


async def test_other_urls_than_those_of_the_nodes_are_a_refusal(server):
    async with _node(server):
        found = await _checked(server, "redis://127.0.0.1:1")

    assert "the same bus.urls in the same order" in found.fault


async def test_after_a_restart_the_epoch_is_over_and_its_nodes_are_nobodys(server):
    async with _node(server):
        with Plain(server.path) as plain:
            plain.must("SET", "cc:run", "of another process")
        found = await _checked(server)

    assert found.is_over
    assert found.nodes == {}
