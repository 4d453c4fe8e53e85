"""Encrypted channels: opening, key rotation, and what cannot be opened."""

import base64

import pytest
import trio

from cachecast.errors import SubscriptionError
from cachecast.protocol.encryption import channel_key, encrypt

NAME = "private-encrypted-cache-a"
OLD = channel_key(b"o" * 32, NAME)
NEW = channel_key(b"n" * 32, NAME)


class Backend:
    """An authorizer whose key can be rotated."""

    def __init__(self):
        self.key = OLD
        self.asked = 0
        self.may_answer = trio.Event()
        self.may_answer.set()

    async def __call__(self, socket_id, channel):
        self.asked += 1
        await self.may_answer.wait()
        if self.key is None:
            raise OSError("refused")
        return {"auth": "app-key:sig", "shared_secret": base64.b64encode(self.key).decode()}


async def test_data_arrives_in_clear_and_the_secret_does_not_leave(autojump_clock, pusher):
    """shared_secret is for the subscriber only (protocol.md 8)."""
    async with pusher.connect(authorizer=Backend()) as client:
        peer = await pusher.accept()
        call = pusher.begin(client.subscribe, NAME)
        asked = await peer.subscribe(NAME)
        channel = await call.result()
        await peer.send("tick", encrypt(OLD, '{"eur":1.08}'), NAME)

        assert (await anext(channel)).json() == {"eur": 1.08}
        assert set(asked) == {"auth", "channel"}


async def test_a_rotated_key_is_asked_for_once_and_the_order_is_kept(autojump_clock, pusher):
    """Events that come while the backend is asked wait behind the one that needs the key."""
    backend = Backend()
    async with pusher.connect(authorizer=backend) as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, NAME)
        backend.key = NEW
        backend.may_answer = trio.Event()
        for n in range(5):
            await peer.send("tick", encrypt(NEW, str(n)), NAME)
        await trio.sleep(5)
        backend.may_answer.set()
        got = [(await anext(channel)).data for _ in range(5)]

    assert got == ["0", "1", "2", "3", "4"]
    assert backend.asked == 2
    assert client.statistics().undecryptable_events == 0


async def test_a_value_cached_before_the_rotation_is_reported_and_the_next_arrives(
    autojump_clock, pusher
):
    """It cannot be read by anybody with the new key (protocol.md 8)."""
    backend = Backend()
    backend.key = NEW
    async with pusher.connect(authorizer=backend) as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, NAME)
        await peer.send("tick", encrypt(OLD, "cached"), NAME)
        await peer.send("tick", encrypt(NEW, "live"), NAME)

        assert (await anext(channel)).data == "live"
        assert client.statistics().undecryptable_events == 1
        await anext(client.events)
        report = await anext(client.events)
        assert (report.name, report.channel) == ("pusher:error", NAME)
        assert "tick could not be decrypted" in report.json()["message"]


async def test_rubbish_does_not_make_the_client_hammer_its_backend(autojump_clock, pusher):
    """Whoever publishes could otherwise make every subscriber ask as often as he likes."""
    backend = Backend()
    async with pusher.connect(authorizer=backend) as client:
        peer = await pusher.accept()
        await pusher.subscribed(client, peer, NAME)
        for _ in range(100):
            await peer.send("tick", encrypt(NEW, "rubbish"), NAME)
            await trio.sleep(0.1)

    assert backend.asked <= 3
    assert client.statistics().undecryptable_events == 100


async def test_what_is_not_sealed_at_all_asks_nobody(autojump_clock, pusher):
    backend = Backend()
    async with pusher.connect(authorizer=backend) as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, NAME)
        await peer.send("tick", "plain text", NAME)
        await peer.send("tick", encrypt(OLD, "sealed"), NAME)

        assert (await anext(channel)).data == "sealed"
        assert backend.asked == 1
        assert client.statistics().undecryptable_events == 1


async def test_a_backend_in_trouble_loses_what_needed_it(autojump_clock, pusher):
    backend = Backend()
    async with pusher.connect(authorizer=backend) as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, NAME)
        backend.key = None
        await peer.send("tick", encrypt(NEW, "lost"), NAME)
        await trio.sleep(120)
        await peer.send("pusher:pong")
        backend.key = NEW
        await peer.send("tick", encrypt(NEW, "found"), NAME)

        assert (await anext(channel)).data == "found"
        assert client.statistics().undecryptable_events == 1


async def test_what_waits_for_a_key_is_bounded(autojump_clock, pusher):
    backend = Backend()
    async with pusher.connect(authorizer=backend) as client:
        peer = await pusher.accept()
        await pusher.subscribed(client, peer, NAME, max_queued=10)
        backend.may_answer = trio.Event()
        for _ in range(25):
            await peer.send("tick", encrypt(NEW, "x"), NAME)
        await peer.send("pusher:ping")
        await peer.receive()

        assert client.statistics().undecryptable_events == 15


async def test_a_reconnection_while_the_backend_is_asked(autojump_clock, pusher):
    """What waited is counted as lost; the renewed subscription brings the key."""
    backend = Backend()
    async with pusher.connect(authorizer=backend) as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, NAME)
        backend.key = NEW
        backend.may_answer = trio.Event()
        await peer.send("tick", encrypt(NEW, "waiting"), NAME)
        await trio.sleep(1)
        await peer.close(4200)
        await trio.sleep(1)
        backend.may_answer.set()
        peer = await pusher.accept()
        await peer.subscribe(NAME)
        await peer.send("tick", encrypt(NEW, "cached"), NAME)

        assert (await anext(channel)).data == "cached"
        assert client.statistics().undecryptable_events == 1


async def test_a_master_key_serves_where_no_authorizer_gives_a_secret(autojump_clock, pusher):
    async def authorize(socket_id, channel):
        return {"auth": "app-key:sig"}

    master_key = base64.b64encode(b"o" * 32).decode()
    async with pusher.connect(authorizer=authorize, encryption_master_key=master_key) as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, NAME)
        await peer.send("tick", encrypt(OLD, "1"), NAME)

        assert (await anext(channel)).data == "1"


async def test_without_any_key_the_subscription_is_refused_here(autojump_clock, pusher):
    async with pusher.connect(secret="s") as client:
        await pusher.accept()
        with pytest.raises(SubscriptionError, match="shared_secret"):
            await client.subscribe(NAME)


async def test_with_a_secret_there_is_nobody_to_ask_again(autojump_clock, pusher):
    async with pusher.connect(secret="s", encryption_master_key=b"o" * 32) as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, NAME)
        await peer.send("tick", encrypt(NEW, "rotated"), NAME)
        await peer.send("tick", encrypt(OLD, "ours"), NAME)

        assert (await anext(channel)).data == "ours"
        assert client.statistics().undecryptable_events == 1
