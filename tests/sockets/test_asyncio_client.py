"""``cachecast.asyncio.connect`` does what the Trio client does: it passes that one's own tests.

Each test of test_own_client.py runs here in the guest run of an asyncio loop, node and all, and its
client is asyncio's, whose verbs are called over there. uvloop is tried as well.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - whose client this is
import inspect
from contextlib import asynccontextmanager

import pytest
import uvloop

from cachecast.asyncio.client import connect
from cachecast.asyncio.guest import open_guest
from tests.sockets import test_own_client

#: Real seconds for one of them, on a machine that may stand still for several.
LIMIT_S = 60


def cases():
    """Every test there, with each of its parameters."""
    for name, test in vars(test_own_client).items():
        if not name.startswith("test_"):
            continue
        marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
        if not marks:
            yield pytest.param(test, {}, id=name)
            continue
        names, rows = marks[0].args
        for row in rows:
            given = {names: row} if isinstance(names, str) else dict(zip(names, row, strict=True))
            yield pytest.param(test, given, id=f"{name}-{row}")


class Seen:
    """An object of asyncio's client, as Trio's would be."""

    def __init__(self, guest, thing):
        self._guest = guest
        self._thing = thing

    def __getattr__(self, name):
        if name.startswith("_"):
            return getattr(self._thing._client, name)
        value = getattr(self._thing, name)
        if inspect.iscoroutinefunction(value):
            return self._verb(value)
        return Seen(self._guest, value) if hasattr(value, "__anext__") else value

    def _verb(self, function):
        async def call(*args, **options):
            async def there():
                return await function(*args, **options)

            value = await self._guest.call_host(there)
            return Seen(self._guest, value) if hasattr(value, "__anext__") else value

        return call

    def __aiter__(self):
        return self

    async def __anext__(self):
        async def there():
            return await anext(self._thing, None)

        event = await self._guest.call_host(there)
        if event is None:
            raise StopAsyncIteration
        return event


def connector(guest):
    """Trio's ``connect``, made of asyncio's."""

    @asynccontextmanager
    async def connect_there(*args, **options):
        for name in ("authorizer", "user_authenticator"):
            if name in options:
                options[name] = as_coroutine(guest, options[name])
        block = connect(*args, **options)
        client = await guest.call_host(block.__aenter__)
        try:
            yield Seen(guest, client)
        finally:
            await guest.call_host(block.__aexit__, None, None, None)

    return connect_there


def as_coroutine(guest, function):
    async def call(*args):
        return await guest.run(function, *args)

    return call


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize(("test", "options"), list(cases()))
def test_asyncios_client_passes_the_tests_of_trios(test, options, loop, monkeypatch, tmp_path):
    if "tmp_path" in inspect.signature(test).parameters:
        options = options | {"tmp_path": tmp_path}
    test = inspect.unwrap(test)  # its limit is the one below

    async def main():
        async with asyncio.timeout(LIMIT_S), open_guest("test") as guest:
            monkeypatch.setattr(test_own_client, "connect", connector(guest))

            async def run():
                await test(**options)

            await guest.run(run)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
