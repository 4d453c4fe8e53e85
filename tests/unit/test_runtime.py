"""Whoever starts Cachecast in another loop is told so in one sentence."""

from __future__ import annotations

import asyncio  # noqa: TID251 - the loop that will not do

import pytest
import trio

from cachecast import App, BrokerConfig, open_broker, serve
from cachecast.client import connect
from cachecast.runtime import require_trio
from cachecast.testing import open_memory_network, open_test_broker

CONFIG = BrokerConfig(apps=(App(id="1", key="k", secret="s"),))


async def _enter(manager) -> None:
    async with manager:
        raise AssertionError("entered")


@pytest.mark.parametrize(
    ("what", "instead", "start"),
    [
        ("open_broker", "cachecast.asyncio", lambda: _enter(open_broker(CONFIG))),
        ("connect", "cachecast.asyncio", lambda: _enter(connect("ws://127.0.0.1:1", key="k"))),
        ("serve", "cachecast.asyncio", lambda: serve(None)),
        (
            "open_test_broker",
            "cachecast.testing.asyncio",
            lambda: _enter(open_test_broker(CONFIG)),
        ),
        (
            "open_memory_network",
            "cachecast.testing.asyncio",
            lambda: _enter(open_memory_network(None)),
        ),
    ],
)
def test_another_loop_is_refused_in_one_sentence(what, instead, start) -> None:
    """It died with an AttributeError inside Trio."""
    with pytest.raises(RuntimeError) as caught:
        asyncio.run(start())

    assert str(caught.value) == (
        f"{what}() needs Trio: start the program with trio.run(main), or use {instead} in one that "
        "starts with asyncio.run(main())"
    )
    assert caught.value.__suppress_context__


def test_no_loop_at_all_is_refused_and_trio_is_not() -> None:
    """The sentence fits both."""
    with pytest.raises(RuntimeError, match="needs Trio"):
        require_trio("f")

    async def main() -> None:
        require_trio("f")

    trio.run(main)
