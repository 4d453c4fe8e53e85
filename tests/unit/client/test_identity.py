"""Signing in, again and again."""

import json

import pytest
import trio

from cachecast.errors import AuthError, RefusedError, SubscriptionError
from cachecast.protocol.auth import sign, signin_text

USER = '{"id":"u1","user_info":{"name":"A"}}'


async def signed_in(pusher, client, peer, user_data=USER):
    call = pusher.begin(client.sign_in, user_data)
    await peer.take("pusher:signin")
    await peer.send("pusher:signin_success", {"user_data": USER})
    await peer.subscribe("#server-to-user-u1")
    return await call.result()


async def test_signing_in_gives_the_users_own_channel(autojump_clock, pusher):
    """Signed with the secret; the channel is asked for after the success (protocol.md 2.12)."""
    async with pusher.connect(secret="app-secret") as client:
        peer = await pusher.accept()
        call = pusher.begin(client.sign_in, json.loads(USER))
        asked = await peer.take("pusher:signin")
        text = signin_text(peer.socket_id, USER)
        assert asked == {"auth": "app-key:" + sign(b"app-secret", text.encode()), "user_data": USER}
        assert client.user_id is None
        await peer.send("pusher:signin_success", {"user_data": USER})
        assert (await peer.subscribe("#server-to-user-u1"))["auth"] == ""
        channel = await call.result()
        await peer.send("hello", "1", "#server-to-user-u1")

        assert (await anext(channel)).name == "hello"
        assert client.user_id == "u1"


async def test_the_user_is_signed_in_again_before_the_users_channel(autojump_clock, pusher):
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        channel = await signed_in(pusher, client, peer)
        await peer.close(4200)
        peer = await pusher.accept()
        await peer.take("pusher:signin")
        assert client.user_id is None
        with trio.move_on_after(5) as scope:
            await peer.receive()
        assert scope.cancelled_caught  # nothing is asked for in the user's name yet
        await peer.send("pusher:signin_success", {"user_data": USER})
        await peer.subscribe("#server-to-user-u1")
        await peer.send("hello", "2", "#server-to-user-u1")

        assert (await anext(channel)).data == "2"
        assert client.user_id == "u1"


async def test_presence_without_channel_data_is_the_signed_in_user(autojump_clock, pusher):
    """And waits for the sign-in to be done (protocol.md 2.4)."""
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        sign_in = pusher.begin(client.sign_in, USER)
        presence = pusher.begin(client.subscribe, "presence-a")
        await peer.take("pusher:signin")
        with trio.move_on_after(5) as scope:
            await peer.receive()
        assert scope.cancelled_caught
        await peer.send("pusher:signin_success", {"user_data": USER})
        asked = {}
        for _ in range(2):
            data = await peer.take("pusher:subscribe")
            asked[data["channel"]] = data
            await peer.send("pusher_internal:subscription_succeeded", "{}", data["channel"])
        await sign_in.result()
        channel = await presence.result()

        assert "channel_data" not in asked["presence-a"]
        assert channel.my_id == "u1"


async def test_presence_without_anybody_is_refused_here(autojump_clock, pusher):
    async with pusher.connect(secret="s") as client:
        await pusher.accept()
        with pytest.raises(SubscriptionError, match="not signed in"):
            await client.subscribe("presence-a")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (None, "Invalid signature: Expected HMAC SHA256 hex digest of 1.1::user::{}, but got ff"),
        (None, "Sign-in is not enabled for this app"),
        (4009, "Invalid key in subscription auth data: 'app-key'"),
    ],
)
async def test_a_refused_sign_in_raises_and_the_client_goes_on(autojump_clock, pusher, code, text):
    """pusher:error is all there is (protocol.md 5.1); a channel asked for meanwhile is not hit."""
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        sign_in = pusher.begin(client.sign_in, USER)
        await peer.take("pusher:signin")
        other = pusher.begin(client.subscribe, "private-a")
        await peer.take("pusher:subscribe")
        await peer.error(code, text)
        with pytest.raises(AuthError) as caught:
            await sign_in.result()
        await trio.sleep(10)
        await peer.send("pusher_internal:subscription_succeeded", "{}", "private-a")
        await other.result()

        assert (caught.value.message, caught.value.close_code) == (text, code)
        await signed_in(pusher, client, peer)  # another attempt is allowed


async def test_soketi_closes_for_a_refused_sign_in(autojump_clock, pusher):
    """With 4009, after the error; pusher-js stops for good, and so does this client."""
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        call = pusher.begin(client.sign_in, USER)
        await peer.take("pusher:signin")
        await peer.close(4009, "Connection not authorized")
        with pytest.raises(RefusedError):
            await call.result()


async def test_a_refused_repetition_ends_the_users_channel(autojump_clock, pusher):
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        channel = await signed_in(pusher, client, peer)
        await peer.close(4200)
        peer = await pusher.accept()
        await peer.take("pusher:signin")
        await peer.error(None, "Invalid user_data: the user was blocked")
        with pytest.raises(SubscriptionError, match="blocked"):
            await anext(channel)
        texts = []
        while not any("Signing in again was refused" in text for text in texts):
            texts.append((await anext(client.events)).data)


async def test_an_authenticator_brings_its_own_user(autojump_clock, pusher):
    async def authenticate(socket_id):
        return {"auth": f"app-key:for-{socket_id}", "user_data": USER}

    async with pusher.connect(user_authenticator=authenticate) as client:
        peer = await pusher.accept()
        call = pusher.begin(client.sign_in)
        asked = await peer.take("pusher:signin")
        await peer.send("pusher:signin_success", json.dumps({"user_data": USER}))
        await peer.subscribe("#server-to-user-u1")
        await call.result()

        assert asked == {"auth": "app-key:for-1.1", "user_data": USER}


@pytest.mark.parametrize("user_data", ["", "[]", "{}", '{"id":""}', '{"id":7}', "no JSON"])
async def test_user_data_that_no_server_takes_is_not_sent(autojump_clock, pusher, user_data):
    """The id is a string and not empty, as pusher-js wants it (protocol.md 5.1)."""
    async with pusher.connect(secret="s") as client:
        await pusher.accept()
        with pytest.raises(AuthError, match="user_data"):
            await client.sign_in(user_data)
        assert client.statistics().messages_sent == 0


async def test_signing_in_needs_a_way_to(autojump_clock, pusher):
    async with pusher.connect() as client:
        await pusher.accept()
        with pytest.raises(AuthError, match="user_authenticator"):
            await client.sign_in(USER)
        with pytest.raises(AuthError, match="user_authenticator"):
            await client.sign_in()


async def test_there_is_one_user_a_client(autojump_clock, pusher):
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        await signed_in(pusher, client, peer)
        with pytest.raises(AuthError, match="already"):
            await client.sign_in('{"id":"u2"}')
        assert client.user_id == "u1"


async def test_a_cancelled_sign_in_is_not_repeated(autojump_clock, pusher):
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        with trio.move_on_after(1) as scope:
            await client.sign_in(USER)
        assert scope.cancelled_caught
        await peer.take("pusher:signin")
        await peer.send("pusher:signin_success", {"user_data": USER})
        await peer.send("pusher:ping")
        await peer.take("pusher:pong")
        assert client.user_id is None
        await peer.close(4200)
        peer = await pusher.accept()
        with trio.move_on_after(60) as scope:
            await peer.receive()

        assert scope.cancelled_caught
        assert client.user_id is None


async def test_signing_in_goes_through_a_reconnection(autojump_clock, pusher):
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        call = pusher.begin(client.sign_in, USER)
        await peer.take("pusher:signin")
        await peer.hang_up()
        peer = await pusher.accept()
        await peer.take("pusher:signin")
        await peer.send("pusher:signin_success", {"user_data": USER})
        await peer.subscribe("#server-to-user-u1")

        assert (await call.result()).name == "#server-to-user-u1"
