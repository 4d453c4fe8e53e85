"""``bus check`` on real engines: what it says, and that it leaves everything as it was."""

from __future__ import annotations

import json
import os
from base64 import b64encode
from typing import TYPE_CHECKING

import pytest
import trio
from click.testing import CliRunner, Result

from cachecast.bus.inspection import inspect
from cachecast.bus_config import BusConfig
from cachecast.cli import cachecast
from tests.cluster.engines import ENGINES, MEMORY_ONLY, Plain, Server, binary_of
from tests.cluster.nodes import free_port, serving_node

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: What only reads.
READS = {
    "hello", "info", "config", "ping", "function", "get", "hgetall", "zrange", "time", "monitor",
    "client", "select",
}  # fmt: skip

STRICT = (*MEMORY_ONLY, "--crash-log-enabled", "no", "--slowlog-max-len", "0")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Server]:
    """An engine that a node takes."""
    with Server(binary_of(request.param), "--port", "0", *STRICT) as server:
        make_ready(server)
        yield server


def make_ready(server: Server) -> None:
    with Plain(server.path) as plain:
        for name in plain.must("CONFIG", "GET", "commandlog-*-max-len"):
            plain.must("CONFIG", "SET", name, 0)


def check(server: Server, *options: str) -> Result:
    return CliRunner().invoke(cachecast, ["bus", "check", "--bus", f"unix://{server.path}", *options])


def test_an_engine_that_nobody_has_used_is_fine_and_stays_as_it_is(engine: Server) -> None:
    with Plain(engine.path) as plain:
        heard: list[bytes] = []
        with Plain(engine.path) as watcher:
            watcher.must("MONITOR")
            result = check(engine)
            plain.must("PING")
            while b'"PING"' not in (heard[-1] if heard else b""):
                heard.append(watcher._next())
                if len(heard) > 200:
                    break
        assert (plain.must("DBSIZE"), plain.must("FUNCTION", "LIST")) == (0, [])
    assert result.exit_code == 0, result.output
    assert "none: no node has been here" in result.output
    assert "values stay in memory only" in result.output
    commands = {line.split(b'"')[1].decode().lower() for line in heard if b'"' in line}
    assert commands <= READS


async def test_nodes_are_told_with_their_sessions_and_whether_the_keys_are_the_same(
    engine: Server, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_bytes(b64encode(os.urandom(32)))
    async with serving_node(engine):
        (report,) = await inspect(BusConfig(urls=(f"unix://{engine.path}",)))
        (other,) = await inspect(
            BusConfig(urls=(f"unix://{engine.path}",), seal_key_file=str(key))
        )

    assert report.obstacles() == []
    assert report.functions
    (node,) = report.nodes
    assert node.is_alive
    assert node.has_same_seals
    assert node.session.startswith(f"{report.epoch}-")
    assert "cannot read each other's values" in other.obstacles()[0]
    assert report.p99_ms is not None
    assert report.p50_ms is not None
    assert 0 < report.p50_ms <= report.p99_ms


@pytest.mark.parametrize(
    ("setting", "value"), [("save", "60 1"), ("appendonly", "yes"), ("maxmemory-policy", "allkeys-lru")]
)
def test_what_would_refuse_a_node_is_exit_code_1_with_the_command_that_mends_it(
    engine: Server, setting: str, value: str
) -> None:
    with Plain(engine.path) as plain:
        plain.must("CONFIG", "SET", setting, value)

    result = check(engine)

    assert result.exit_code == 1
    told = " ".join(result.output.split())
    assert f"{setting} is '{value}'" in told
    assert f"CONFIG SET {setting}" in told
    assert all(len(line) <= 80 or "/" in line for line in result.output.splitlines())


def test_values_that_are_sealed_may_leave_the_memory(engine: Server, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b64encode(os.urandom(32)))
    with Plain(engine.path) as plain:
        plain.must("CONFIG", "SET", "save", "60 1")

    result = check(engine, "--bus-seal-key-file", str(key))

    assert result.exit_code == 0
    assert "but sealed" in result.output


def test_an_engine_that_was_restarted_has_no_epoch_any_more(engine: Server) -> None:
    trio.run(_visit, engine)
    with Plain(engine.path) as plain:
        plain.must("SET", "cc:run", "another")

    assert "over: the engine was restarted" in check(engine).output


async def _visit(engine: Server) -> None:
    async with serving_node(engine):
        pass


def test_an_engine_that_is_gone_is_exit_code_2_in_json_too(engine: Server) -> None:
    engine.kill()
    engine.process.wait()

    result = check(engine, "--json")

    assert result.exit_code == 2
    told = json.loads(result.output)
    assert told["exit_code"] == 2
    assert "Is it running" in told["primaries"][0]["fault"]


def test_no_password_is_shown_whatever_is_wrong_with_it(engine: Server) -> None:
    with Plain(engine.path) as plain:
        plain.must("CONFIG", "SET", "requirepass", "right-one")

    result = CliRunner().invoke(
        cachecast,
        ["bus", "check", "--bus", f"unix://{engine.path}"],
        env={"CACHECAST_BUS_PASSWORD": "hunter2-wrong"},
    )
    missing = check(engine)

    assert (result.exit_code, missing.exit_code) == (1, 1)
    assert "refuses user or password" in " ".join(result.output.split())
    assert "wants a password" in " ".join(missing.output.split())
    assert "hunter2" not in result.output


async def test_a_replica_that_refuses_us_is_a_finding_and_ends_nothing(engine: Server) -> None:
    """Its refusal came out of a nursery in a group, which nobody looked for."""
    port, other = free_port(), free_port()
    binary = engine.options[0]
    local = ("--bind", "127.0.0.1")
    with (
        Server(binary, "--port", str(port), *local, *STRICT) as primary,
        Server(
            binary, "--port", str(other), *local, *STRICT,
            "--replicaof", "127.0.0.1", str(port), "--replica-announce-ip", "127.0.0.1",
        ) as replica,
    ):  # fmt: skip
        make_ready(primary)
        with Plain(replica.path) as plain:
            plain.must("CONFIG", "SET", "requirepass", "other")
        with trio.fail_after(20):
            while True:
                with Plain(primary.path) as plain:
                    if b"state=online" in plain.must("INFO", "replication"):
                        break
                await trio.sleep(0.1)
        (report,) = await inspect(BusConfig(urls=(f"valkey://127.0.0.1:{port}",)))

    assert report.fault == ""
    assert any("wants a password" in str(finding) for finding in report.findings)
