"""The memory-only check: every setting that would let a value out, and what mends it."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from cachecast.bus.faults import UnreachableError
from cachecast.bus.memory import SETTINGS, Finding, check_memory, judge, replicas_of
from cachecast.bus.resp import Connection
from cachecast.bus_config import Endpoint
from tests.unit.bus.fake_engine import fake_engine

REDIS = {
    "save": "",
    "appendonly": "no",
    "repl-diskless-sync": "yes",
    "repl-diskless-load": "disabled",
    "slowlog-max-len": "0",
    "slowlog-log-slower-than": "10000",
    "crash-log-enabled": "no",
    "maxmemory-policy": "noeviction",
}
VALKEY = REDIS | {
    "commandlog-slow-execution-max-len": "0",
    "commandlog-execution-slower-than": "10000",
    "commandlog-large-request-max-len": "0",
    "commandlog-request-larger-than": "1048576",
    "commandlog-large-reply-max-len": "128",
    "commandlog-reply-larger-than": "-1",
}
INFO = {"role": "master", "connected_slaves": "0", "rdb_saves": "0", "aof_enabled": "0"}


@pytest.mark.parametrize("config", [REDIS, VALKEY])
def test_an_engine_that_keeps_values_in_memory_only_passes(config: dict[str, str]) -> None:
    """A log may be empty, or switched off."""
    assert judge(config, INFO) == []


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("save", "3600 1 300 100", 'CONFIG SET save ""'),
        ("appendonly", "yes", "CONFIG SET appendonly no"),
        ("repl-diskless-sync", "no", "CONFIG SET repl-diskless-sync yes"),
        ("crash-log-enabled", "yes", "CONFIG SET crash-log-enabled no"),
        ("maxmemory-policy", "allkeys-lru", "CONFIG SET maxmemory-policy noeviction"),
        (
            "commandlog-slow-execution-max-len",
            "128",
            "CONFIG SET commandlog-slow-execution-max-len 0",
        ),
        ("commandlog-large-request-max-len", "1", "CONFIG SET commandlog-large-request-max-len 0"),
        ("commandlog-reply-larger-than", "5", "CONFIG SET commandlog-large-reply-max-len 0"),
    ],
)
def test_each_wrong_setting_is_found_with_its_remedy(name: str, value: str, remedy: str) -> None:
    """One finding, and no other."""
    (found,) = judge(VALKEY | {name: value}, INFO)

    assert found.remedy == remedy


def test_the_slow_log_of_redis_is_found_under_its_own_name() -> None:
    """Valkey has two names for it, and is told one."""
    (found,) = judge(REDIS | {"slowlog-max-len": "128"}, INFO)
    both = {"slowlog-max-len": "128", "commandlog-slow-execution-max-len": "128"}
    (other,) = judge(VALKEY | both, INFO)

    assert found.setting == "slowlog-max-len"
    assert other.setting == "commandlog-slow-execution-max-len"
    assert judge(REDIS | {"slowlog-max-len": "128", "slowlog-log-slower-than": "-1"}, INFO) == []


@pytest.mark.parametrize(
    ("info", "n"),
    [
        ({"role": "slave"}, 1),
        ({"connected_slaves": "1"}, 1),
        ({"rdb_saves": "1"}, 1),
        ({"rdb_bgsave_in_progress": "1"}, 1),
        ({"aof_enabled": "1"}, 1),
    ],
)
def test_what_was_done_and_what_replicas_do_counts_too(info: dict[str, str], n: int) -> None:
    """A BGSAVE by anybody; and a replica that loads by way of a file."""
    assert len(judge(REDIS, INFO | info)) == n
    assert judge(REDIS | {"repl-diskless-load": "swapdb"}, INFO | {"role": "slave"}) == []


def test_an_engine_that_hides_its_settings_is_not_believed() -> None:
    """An empty answer is what some proxies give."""
    (found,) = judge({}, INFO)

    assert "bus.seal_key" in str(found)


def test_a_finding_reads_as_a_sentence() -> None:
    """Where, what, why and what to do."""
    found = Finding("appendonly", "yes", "it writes.", "CONFIG SET appendonly no", "a:1")

    assert str(found) == (
        "The engine at a:1: appendonly is 'yes': it writes. CONFIG SET appendonly no"
    )


def pairs(config: dict[str, str]) -> bytes:
    parts = [part.encode() for pair in config.items() for part in pair]
    return b"%%%d\r\n" % len(config) + b"".join(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts)


def fields(info: dict[str, str]) -> bytes:
    text = "".join(f"{name}:{value}\r\n" for name, value in info.items()).encode()
    return b"$%d\r\n%b\r\n" % (len(text), text)


async def ask(replies: dict[bytes, bytes], **options: Any) -> list[Finding]:
    async with fake_engine(replies) as engine, trio.open_nursery() as nursery:
        connection = Connection(await trio.open_tcp_stream("127.0.0.1", engine.port))
        nursery.start_soon(connection.run)
        found = await check_memory(connection, "a:1", **options)
        nursery.cancel_scope.cancel()
    return found


async def test_an_engine_is_asked_for_all_settings() -> None:
    """And an answer that is fine gives no findings."""
    assert await ask({b"INFO": fields(INFO), b"CONFIG": pairs(VALKEY)}) == []
    assert len(SETTINGS) == len(set(SETTINGS)) == 14


@pytest.mark.parametrize(
    "reply",
    [
        b"-NOPERM User default has no permissions to run the 'config|get' command\r\n",
        b"-ERR unknown command 'CONFIG'\r\n",
    ],
)
async def test_where_config_is_forbidden_only_sealing_helps(reply: bytes) -> None:
    """Managed services forbid or rename it."""
    (found,) = await ask({b"INFO": fields(INFO), b"CONFIG": reply})

    assert "bus.seal_key" in found.remedy
    assert found.where == "a:1"


async def test_a_replica_that_cannot_be_asked_is_a_finding() -> None:
    """It may write what it gets, and nobody would know."""
    info = INFO | {
        "connected_slaves": "2",
        "slave0": "ip=10.0.0.6,port=6380,state=online",
        "slave1": "ip=10.0.0.7,port=6381,state=online",
        "slave2": "nonsense",
    }
    config = REDIS | {"repl-diskless-load": "swapdb"}
    asked: list[Endpoint] = []

    async def ask_replica(endpoint: Endpoint) -> list[Finding]:
        asked.append(endpoint)
        if endpoint.port == 6381:
            raise UnreachableError("It cannot be reached.")
        return []

    found = await ask({b"INFO": fields(info), b"CONFIG": pairs(config)}, ask_replica=ask_replica)

    assert asked == replicas_of(info) == [Endpoint("10.0.0.6", 6380), Endpoint("10.0.0.7", 6381)]
    assert [finding.value for finding in found] == ["10.0.0.7:6381"]
