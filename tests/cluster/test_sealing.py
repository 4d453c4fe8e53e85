"""What docs/data-handling.md says of an engine: what it sees of sealed values, and what else.

All keys, all commands (MONITOR) and all messages (PSUBSCRIBE) are searched for each plain text.
"""

from __future__ import annotations

import os
import threading
from base64 import b64encode
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from cachecast import App, BrokerConfig, Webhook, open_broker, serve
from cachecast.bus.faults import LinkError
from cachecast.bus_config import BusConfig
from cachecast.client import connect
from tests.cluster.engines import ENGINES, MEMORY_ONLY, Plain, Server, binary_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from cachecast import Broker

pytestmark = pytest.mark.slow

KEY = b64encode(os.urandom(32)).decode()

#: Nobody listens there: what waits for it stays in the engine.
APP = App(
    id="4242", key="app-key", secret="app-secret", allows_client_events=True,
    webhooks=(Webhook(url="http://127.0.0.1:9/"),),
)  # fmt: skip


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Server]:
    """It saves to disk, which is why values are sealed."""
    with Server(
        binary_of(request.param), "--port", "0", *MEMORY_ONLY, "--save", "3600 1"
    ) as server:
        yield server


class Spy:
    """Everything that passes through an engine or stays there."""

    def __init__(self, engine: Server) -> None:
        self.engine = engine
        self.heard = bytearray()
        self._taps = [Plain(engine.path, 60.0) for _ in range(2)]
        for tap, words in zip(self._taps, ((b"MONITOR",), (b"PSUBSCRIBE", b"*")), strict=True):
            threading.Thread(target=self._listen, args=(tap, words), daemon=True).start()  # noqa: TID251

    def _listen(self, tap: Plain, words: tuple[bytes, ...]) -> None:
        import hiredis  # noqa: PLC0415

        tap._socket.sendall(hiredis.pack_command(words))
        try:
            while data := tap._socket.recv(65536):
                self.heard += data
        except OSError:
            pass

    def held(self) -> bytes:
        """All keys with what they hold."""
        found: list[Any] = []
        readers: dict[bytes, Callable[[bytes], tuple[Any, ...]]] = {
            b"string": lambda key: ("GET", key),
            b"hash": lambda key: ("HGETALL", key),
            b"set": lambda key: ("SMEMBERS", key),
            b"zset": lambda key: ("ZRANGE", key, 0, -1),
            b"stream": lambda key: ("XRANGE", key, "-", "+"),
        }
        with Plain(self.engine.path) as plain:
            for key in plain.must("KEYS", "*"):
                kind = plain.must("TYPE", key)
                held = plain.execute(readers[kind](key))
                if not isinstance(held, LinkError):
                    found.append((key, held))
        return _escaped(repr(found))

    def everything(self) -> bytes:
        return _escaped(bytes(self.heard).decode("latin-1")) + self.held()

    def close(self) -> None:
        for tap in self._taps:
            tap._socket.shutdown(2)
            tap.close()


def _escaped(text: str) -> bytes:
    """MONITOR writes a quote as ``\\"``, and so does repr: neither may hide a text."""
    return text.replace("\\", "").encode()


@asynccontextmanager
async def node(engine: Server, *keys: str) -> AsyncIterator[tuple[Broker, str]]:
    config = BrokerConfig(
        apps=(APP,), bus=BusConfig(urls=(f"unix://{engine.path}",), seal_key=keys)
    )
    async with open_broker(config) as broker, trio.open_nursery() as nursery:
        server = await nursery.start(serve, broker, "127.0.0.1:0")
        yield broker, f"ws://127.0.0.1:{server.port}"
        nursery.cancel_scope.cancel()


async def live(engine: Server, *keys: str) -> tuple[bytes, bytes]:
    """All that people write, by two nodes; gives what the engine heard and held, and held."""
    spy = Spy(engine)
    try:
        async with node(engine, *keys) as (one, url), node(engine, *keys) as (_, other):
            with trio.fail_after(25):
                async with (
                    connect(url, key=APP.key, secret=APP.secret) as ann,
                    connect(other, key=APP.key, secret=APP.secret) as bob,
                ):
                    mine = await bob.sign_in({"id": "seen-user", "user_info": {"n": "hid-signin"}})
                    room = await ann.subscribe(
                        "presence-seen-room", user_id="seen-ann", user_info={"name": "hid-info"}
                    )
                    await bob.subscribe(
                        "presence-seen-room", user_id="seen-bob", user_info={"name": "hid-other"}
                    )
                    prices = await bob.subscribe("cache-seen-prices")
                    await one.publish(APP.id, "cache-seen-prices", "hid-event", "hid-value")
                    await hear(prices, "hid-event")
                    await one.send_to_user(APP.id, "seen-user", "hid-note", "hid-message")
                    await hear(mine, "hid-note")
                    await room.trigger("client-hid-whisper", {"text": "hid-client"})
                    while b"hooks" not in spy.held() or len(spy.heard) < 1000:  # noqa: ASYNC110
                        await trio.sleep(0.05)
                    await trio.sleep(0.3)
                    return spy.everything(), spy.held()
    finally:
        spy.close()
    raise AssertionError


async def hear(channel: Any, name: str) -> None:
    async for event in channel:
        if event.name == name:
            return


async def test_what_people_write_is_sealed_in_every_key_command_and_message(engine: Server) -> None:
    """Values, events to users, members' user_info, client events, and those as webhook payloads."""
    told, held = await live(engine, KEY)

    hidden = {
        b"hid-event", b"hid-value", b"hid-note", b"hid-message", b"hid-info", b"hid-other",
        b"hid-whisper", b"hid-client", b"hid-signin", KEY.encode(),
    }  # fmt: skip
    assert [text for text in hidden if text in told] == []
    assert b"hooks:4242" in held


async def test_channels_users_and_apps_stay_visible(engine: Server) -> None:
    """By them the engine orders, spreads and counts."""
    told, held = await live(engine, KEY)

    assert b"cache-seen-prices" in held
    assert b"presence-seen-room" in held
    assert b"seen-ann" in held
    assert b"seen-user" in told
    assert b"4242" in held


async def test_without_a_key_this_search_finds_them() -> None:
    """Else the test above would prove nothing."""
    options = (*MEMORY_ONLY, "--slowlog-max-len", "0", "--crash-log-enabled", "no")
    with Server(binary_of("redis"), "--port", "0", *options) as server:
        told, held = await live(server)

    for text in (b"hid-value", b"hid-info", b"hid-message", b"hid-client"):
        assert text in told, text
    assert b"hid-value" in held
