"""The memory-only check on real engines: as they are installed, and after each remedy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from cachecast.bus.memory import check_memory
from cachecast.bus.resp import Connection
from tests.cluster.engines import ENGINES, Plain, Server, binary_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachecast.bus.memory import Finding


@pytest.fixture(params=ENGINES)
def bare(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with the settings that it comes with."""
    with Server(binary_of(request.param), "--port", "0") as server:
        yield server


async def findings(server: Server) -> list[Finding]:
    connection = Connection(await trio.open_unix_socket(str(server.path)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        await connection.call("HELLO", 3)
        found = await check_memory(connection, "it")
        nursery.cancel_scope.cancel()
    return found


async def test_every_remedy_mends_what_it_is_given_for(bare: Server) -> None:
    """Typed as they stand there; then the engine passes."""
    before = await findings(bare)
    assert {"save", "crash-log-enabled"} < {finding.setting for finding in before}
    with Plain(bare.path) as plain:
        for finding in before:
            words = finding.remedy.split(" ")
            assert words[:2] == ["CONFIG", "SET"]
            plain.must(*("" if word == '""' else word for word in words))

    assert await findings(bare) == []


async def test_a_save_by_anybody_is_found(bare: Server) -> None:
    """However the settings stand, now."""
    with Plain(bare.path) as plain:
        plain.must("CONFIG", "SET", "save", "")
        plain.must("SET", "a", "1")
        plain.must("SAVE")

    assert "rdb_saves" in {finding.setting for finding in await findings(bare)}


async def test_every_log_of_commands_that_an_engine_has_is_found(bare: Server) -> None:
    """A new version may bring another one."""
    with Plain(bare.path) as plain:
        logs = plain.must("CONFIG", "GET", "slowlog-max-len", "commandlog-*max-len")
        for name in logs:
            plain.must("CONFIG", "SET", name, 128)

    found = {finding.setting.encode() for finding in await findings(bare)}

    assert found & set(logs) == set(logs) - (
        {b"slowlog-max-len"} if b"commandlog-slow-execution-max-len" in logs else set()
    )
