"""Replicas are asked one by one, each for a bounded time, and what they refuse is a LinkError."""

from __future__ import annotations

import pytest
import trio

from cachecast.bus.faults import CredentialsError, UnreachableError
from cachecast.bus.replicas import ask_replica
from cachecast.bus_config import Endpoint, Primary
from tests.unit.bus.fake_engine import fake_engine

PRIMARY = Primary((Endpoint("127.0.0.1", 1),))


async def test_one_that_refuses_us_raises_that_and_no_group() -> None:
    async with fake_engine({b"HELLO": b"-NOAUTH HELLO must be called\r\n"}) as engine:
        with pytest.raises(CredentialsError, match="wants a password"):
            await ask_replica(PRIMARY, None, Endpoint("127.0.0.1", engine.port))


async def test_one_that_is_gone_cannot_be_reached() -> None:
    with pytest.raises(UnreachableError, match="cannot be reached"):
        await ask_replica(PRIMARY, None, Endpoint("127.0.0.1", 1))


async def test_one_that_says_nothing_does_not_use_up_the_others_time() -> None:
    async def say_nothing(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, say_nothing, [listener])
        with trio.fail_after(4), pytest.raises(Exception, match=r"answer|heard"):
            await ask_replica(PRIMARY, None, Endpoint("127.0.0.1", port))
        nursery.cancel_scope.cancel()
