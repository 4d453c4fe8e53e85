"""docs/close-codes.md has every code with its text, and each of them happens."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
import trio.testing

from cachecast import BrokerConfig
from cachecast.protocol import frames
from cachecast.protocol.close_codes import CLOSE_CODES, reaction_to
from cachecast.testing import TEST_APP, MemoryNetwork, open_memory_network, open_test_broker
from tests.docs.pages import DOCS

PAGE = (DOCS / "close-codes.md").read_text()
ROWS = {
    int(code): (text, reaction)
    for code, text, reaction in re.findall(r"^\| (\d{4}) \| (.+?) \| (.+?) \|$", PAGE, re.MULTILINE)
}


def test_every_code_stands_there_with_its_text_and_what_clients_do() -> None:
    told = {code: (text, reaction.replace("`", "")) for code, (text, reaction) in ROWS.items()}
    for code, row in CLOSE_CODES.items():
        text, reaction = told[code]
        assert text == row.reason
        as_plural = re.sub(r"\breconnects\b", "reconnect", row.reaction.value)
        assert reaction == as_plural.replace("reports", "report")
    assert reaction_to(1006) == reaction_to(4100)


def test_every_code_has_a_remedy() -> None:
    headings = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
    assert [int(code) for line in headings for code in re.findall(r"\d{4}", line)] == [*CLOSE_CODES]


#: Code -> fields of the node, fields of the app, how to connect.
AT_ONCE: dict[int, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    4000: ({}, {"is_tls_only": True}, {}),
    4001: ({}, {}, {"path": "/app/nobody"}),
    4003: ({}, {"is_enabled": False}, {}),
    4004: ({}, {"max_connections": 1}, {}),
    4005: ({}, {}, {"path": "/other"}),
    4006: ({}, {}, {"protocol": "seven"}),
    4007: ({}, {}, {"protocol": "3"}),
    4008: ({"requires_protocol": True}, {}, {"protocol": None}),
    4009: ({}, {"allowed_origins": ("example.org",)}, {"origin": "https://evil.test"}),
    4100: ({"max_connections": 1}, {}, {}),
}


async def _at_once(network: MemoryNetwork, options: dict[str, Any]) -> int | None:
    network.open()  # takes the one place where there is only one
    return await network.open(**options).wait_closed()


async def _drained(network: MemoryNetwork) -> int | None:
    client = await network.connect()
    await network.server.drain(0.0, code=4200)
    return await client.wait_closed()


async def _without_pong(network: MemoryNetwork) -> int | None:
    client = await network.connect()
    client.answers_pings = False
    client.patience_s = 400
    return await client.wait_closed()


async def _silent_for_long(network: MemoryNetwork) -> int | None:
    client = await network.connect(protocol="4")
    client.answers_pings = False
    client.patience_s = 400
    return await client.wait_closed()


async def _reported(client: Any) -> int:
    while (message := await client.receive()).event != "pusher:error":
        pass
    assert not client.is_closed
    return int(message.json()["code"])


async def _too_many_client_events(network: MemoryNetwork) -> int:
    client = await network.connect()
    await client.subscribe("private-x")
    for _ in range(20):
        client.trigger("private-x", "client-a", {})
    return await _reported(client)


async def _watching_too_many(network: MemoryNetwork) -> int:
    client = await network.connect()
    await client.sign_in("ann", watchlist=[str(n) for n in range(101)])
    return await _reported(client)


async def _says(network: MemoryNetwork, opcode: int, payload: bytes, **options: Any) -> int | None:
    client = await network.connect(**options)
    client.send_frame(opcode, payload)
    return await client.wait_closed()


LATER = {
    4200: _drained,
    4201: _without_pong,
    4202: _silent_for_long,
    4301: _too_many_client_events,
    4302: _watching_too_many,
    1002: lambda network: _says(network, 0x3, b""),
    1003: lambda network: _says(network, frames.BINARY, b"x"),
    1007: lambda network: _says(network, frames.TEXT, b"\xff"),
    1009: lambda network: _says(network, frames.TEXT, b"x" * 70_000),
}


@pytest.mark.parametrize("code", [*AT_ONCE, *LATER])
async def test_a_code_happens(autojump_clock: trio.testing.MockClock, code: int) -> None:
    """In the way that its entry says."""
    node, app, options = AT_ONCE.get(code, ({}, {}, {}))
    node = {"max_inactivity_s": 300.0} | node  # not a day, of whose seconds each is a step
    config = BrokerConfig(apps=(msgspec.structs.replace(TEST_APP, **app),), **node)
    async with open_test_broker(config) as broker, open_memory_network(broker) as network:
        if code in AT_ONCE:
            assert await _at_once(network, options) == code
        else:
            assert await LATER[code](network) == code


def test_all_of_them_do() -> None:
    assert {*AT_ONCE, *LATER} >= set(CLOSE_CODES)
