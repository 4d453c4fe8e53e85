"""Asking for channels: refusals, giving up, and asking again after a reconnection."""

import json

import pytest
import trio
import trio.testing

from cachecast.errors import AuthError, BadChannelNameError, SubscriptionError


async def refused(pusher, call):
    with pytest.raises(SubscriptionError) as caught:
        await call.result()
    return caught.value


async def test_a_refusal_that_names_its_channel(autojump_clock, pusher):
    """subscription_error, as this server and soketi send it, with all it says."""
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        call = pusher.begin(client.subscribe, "private-a")
        await peer.take("pusher:subscribe")
        await peer.error(None, "too many members")
        data = {"type": "LimitReached", "error": "too many members", "status": 4100}
        await peer.send("pusher:subscription_error", data, "private-a")

        error = await refused(pusher, call)
        assert (error.message, error.kind, error.status) == (
            "too many members", "LimitReached", 4100,
        )  # fmt: skip
        assert client.statistics().subscriptions == 0


async def test_hosted_pushers_refusal_names_the_channel_in_its_text(autojump_clock, pusher):
    """There is no subscription_error on the hosted service (protocol.md 2.9)."""
    text = "Invalid signature: Expected HMAC SHA256 hex digest of 1.1:private-a, but got ff"
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        first = pusher.begin(client.subscribe, "private-b")
        await peer.take("pusher:subscribe")
        second = pusher.begin(client.subscribe, "private-a")
        await peer.take("pusher:subscribe")
        await peer.error(None, text)

        assert (await refused(pusher, second)).message == text
        await peer.send("pusher_internal:subscription_succeeded", "{}", "private-b")
        await first.result()


async def test_a_refusal_without_a_name_is_the_oldest_signed_ones(autojump_clock, pusher):
    """Hosted Pusher answers in the order of asking, and public channels need no key."""
    text = "Invalid key in subscription auth data: 'app-key'"
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        calls = []
        for name in ("public", "private-a", "private-b"):
            calls.append(pusher.begin(client.subscribe, name))
            await peer.take("pusher:subscribe")
        await peer.error(None, text)

        assert (await refused(pusher, calls[1])).message == text
        for name in ("public", "private-b"):
            await peer.send("pusher_internal:subscription_succeeded", "{}", name)
        await calls[0].result()
        await calls[2].result()


async def test_a_refusal_without_a_name_waits_for_one_that_has_it(autojump_clock, pusher):
    """A server that answers out of order must not fail the wrong channel."""
    text = "Invalid key in subscription auth data: 'app-key'"
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        calls = []
        for name in ("private-a", "private-b"):
            calls.append(pusher.begin(client.subscribe, name))
            await peer.take("pusher:subscribe")
        await peer.error(None, text)
        data = {"type": "AuthError", "error": text, "status": 401}
        await peer.send("pusher:subscription_error", data, "private-b")
        await refused(pusher, calls[1])
        await trio.sleep(10)
        await peer.send("pusher_internal:subscription_succeeded", "{}", "private-a")
        await calls[0].result()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (4301, "Client event rejected due to rate limit"),
        (4301, "Too many client events on channel a"),
        (None, "Cannot broadcast client event (connection not subscribed to channel a)"),
        (None, "Unsupported event received on socket: x"),
        (4302, "Watchlist limit reached"),
    ],
)
async def test_errors_about_other_things_refuse_nothing(autojump_clock, pusher, code, text):
    async with pusher.connect() as client:
        peer = await pusher.accept()
        call = pusher.begin(client.subscribe, "a")
        await peer.take("pusher:subscribe")
        await peer.error(code, text)
        await trio.sleep(10)
        await peer.send("pusher_internal:subscription_succeeded", "{}", "a")
        await call.result()

        assert client.statistics().errors == 1


async def test_a_refusing_authorizer_is_the_cause(autojump_clock, pusher):
    """The server is not even asked."""

    async def refuse(socket_id, channel):
        raise AuthError("not yours", http_status=403)

    async with pusher.connect(authorizer=refuse) as client:
        await pusher.accept()
        with pytest.raises(SubscriptionError, match="not yours") as caught:
            await client.subscribe("private-a")
        assert caught.value.status == 403
        assert isinstance(caught.value.__cause__, AuthError)
        statistics = client.statistics()
        assert (statistics.messages_sent, statistics.subscriptions) == (0, 0)


async def test_a_failing_authorizer_concerns_its_own_channel_only(autojump_clock, pusher):
    """Whatever it raises; at the first time the caller is there to decide."""

    async def fail(socket_id, channel):
        raise KeyError("bug of the user's")

    async with pusher.connect(authorizer=fail) as client:
        peer = await pusher.accept()
        with pytest.raises(SubscriptionError, match="KeyError") as caught:
            await client.subscribe("private-a")
        assert isinstance(caught.value.__cause__.__cause__, KeyError)
        await pusher.subscribed(client, peer, "b")


async def test_names_outside_the_grammar_are_not_sent(autojump_clock, pusher):
    async with pusher.connect() as client:
        await pusher.accept()
        for name in ("", "with space", "x" * 201, "#internal"):
            with pytest.raises(BadChannelNameError):
                await client.subscribe(name)
        with pytest.raises(SubscriptionError, match="sign_in"):
            await client.subscribe("#server-to-user-u1")


async def test_subscribing_twice_gives_the_same_subscription(autojump_clock, pusher):
    async with pusher.connect() as client:
        peer = await pusher.accept()
        calls = [pusher.begin(client.subscribe, "a") for _ in range(2)]
        await peer.subscribe("a")
        first, second = [await call.result() for call in calls]
        third = await client.subscribe("a")
        await peer.send("tick", "1", "a")

        assert (await anext(second)).data == "1"
        assert first._subscription is second._subscription is third._subscription


async def test_everything_is_subscribed_to_again_after_a_reconnection(autojump_clock, pusher):
    """Freshly signed for the new socket; the cached value is delivered again."""
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        cached = await pusher.subscribed(client, peer, "private-cache-a")
        await pusher.subscribed(client, peer, "presence-b", user_id="1")
        await peer.send("tick", "1", "private-cache-a")
        assert (await anext(cached)).data == "1"
        await peer.close(4200)
        peer = await pusher.accept()
        asked = {}
        for _ in range(2):
            data = await peer.take("pusher:subscribe")
            asked[data["channel"]] = data
        roster = json.dumps({"presence": {"ids": ["1", "9"], "hash": {"1": None, "9": 1}}})
        await peer.send("pusher_internal:subscription_succeeded", "{}", "private-cache-a")
        await peer.send("tick", "1", "private-cache-a")
        await peer.send("pusher_internal:subscription_succeeded", roster, "presence-b")

        assert (await anext(cached)).data == "1"
        presence = await client.subscribe("presence-b")
        assert sorted(presence.members) == ["1", "9"]
        assert set(asked) == {"private-cache-a", "presence-b"}
        assert client.statistics().connections == 2


async def test_an_authorizer_in_trouble_is_asked_again_after_a_reconnection(autojump_clock, pusher):
    """It often restarts with the server; nobody is there to subscribe again."""
    answers = ["ok", OSError("refused"), OSError("refused"), "ok"]
    asked = []

    async def authorize(socket_id, channel):
        asked.append(socket_id)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"auth": "app-key:sig"}

    async with pusher.connect(authorizer=authorize) as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "private-a")
        await peer.close(4200)
        peer = await pusher.accept()
        await peer.subscribe("private-a")
        await peer.send("tick", "1", "private-a")

        assert (await anext(channel)).data == "1"
        assert asked == ["1.1", "1.2", "1.2", "1.2"]


async def test_an_authorizer_in_trouble_for_long_ends_the_channel(autojump_clock, pusher):
    is_broken = False

    async def authorize(socket_id, channel):
        if is_broken:
            raise OSError("refused")
        return {"auth": "app-key:sig"}

    async with pusher.connect(authorizer=authorize) as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "private-a")
        is_broken = True
        await peer.close(4200)
        await pusher.accept()
        with pytest.raises(SubscriptionError, match="OSError: refused"):
            await anext(channel)


async def test_subscribing_goes_through_a_reconnection(autojump_clock, pusher):
    async with pusher.connect() as client:
        peer = await pusher.accept()
        call = pusher.begin(client.subscribe, "a")
        await peer.take("pusher:subscribe")
        await peer.hang_up()
        peer = await pusher.accept()
        await peer.subscribe("a")
        await call.result()


async def test_a_cancelled_call_before_the_request_leaves_nothing(autojump_clock, pusher):
    """The authorizer's task ends with it."""
    cancelled = trio.Event()

    async def authorize(socket_id, channel):
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with pusher.connect(authorizer=authorize) as client:
        await pusher.accept()
        await client.wait_connected()
        with trio.move_on_after(1) as scope:
            await client.subscribe("private-a")
        assert scope.cancelled_caught
        with trio.fail_after(1):
            await cancelled.wait()

        assert client.statistics().subscriptions == 0


async def test_a_cancelled_call_after_the_request_is_undone_once_answered(autojump_clock, pusher):
    """Not before: Pusher refuses to unsubscribe while in progress (protocol.md 2.8, 2.9)."""
    async with pusher.connect() as client:
        peer = await pusher.accept()
        with trio.move_on_after(1):
            await client.subscribe("a")
        await peer.take("pusher:subscribe")
        with trio.move_on_after(5) as scope:
            await peer.receive()
        assert scope.cancelled_caught
        await peer.send("pusher_internal:subscription_succeeded", "{}", "a")

        assert await peer.take("pusher:unsubscribe") == {"channel": "a"}
        assert client.statistics().subscriptions == 0


async def test_changing_ones_mind_keeps_the_request_that_is_due(autojump_clock, pusher):
    async with pusher.connect() as client:
        peer = await pusher.accept()
        with trio.move_on_after(1):
            await client.subscribe("a")
        await peer.take("pusher:subscribe")
        call = pusher.begin(client.subscribe, "a")
        await trio.sleep(1)
        await peer.send("pusher_internal:subscription_succeeded", "{}", "a")
        channel = await call.result()
        await peer.send("tick", "1", "a")

        assert (await anext(channel)).data == "1"


async def test_what_was_given_up_is_not_asked_for_again(autojump_clock, pusher):
    async with pusher.connect() as client:
        peer = await pusher.accept()
        with trio.move_on_after(1):
            await client.subscribe("a")
        await peer.hang_up()
        peer = await pusher.accept()
        with trio.move_on_after(60) as scope:
            await peer.receive()

        assert scope.cancelled_caught
        assert client.statistics().subscriptions == 0


async def test_a_cancelled_call_does_not_take_a_channel_from_its_reader(autojump_clock, pusher):
    """A second subscribe() that is cancelled between two connections must not end the first."""
    async with pusher.connect() as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "a")
        await peer.hang_up()
        await trio.sleep(0.1)
        with trio.move_on_after(0.1) as scope:
            await client.subscribe("a")
        assert scope.cancelled_caught
        peer = await pusher.accept()
        await peer.subscribe("a")
        await peer.send("tick", "1", "a")

        assert (await anext(channel)).data == "1"


async def test_events_of_an_earlier_subscription_are_not_delivered(autojump_clock, pusher):
    """Left and joined again at once: what was still on its way belongs to the past."""
    async with pusher.connect() as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "cache-a")
        await channel.unsubscribe()
        await peer.take("pusher:unsubscribe")
        call = pusher.begin(client.subscribe, "cache-a")
        await peer.take("pusher:subscribe")
        await peer.send("tick", "old", "cache-a")
        await peer.send("pusher_internal:subscription_succeeded", "{}", "cache-a")
        await peer.send("tick", "new", "cache-a")

        assert (await anext(await call.result())).data == "new"


async def test_unsubscribing_between_two_connections(autojump_clock, pusher):
    async with pusher.connect() as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "a")
        await peer.hang_up()
        await trio.sleep(0.1)
        await channel.unsubscribe()
        await pusher.accept()

        assert [event async for event in channel] == []
        assert client.statistics().subscriptions == 0


async def test_many_channels_at_once(autojump_clock, pusher):
    """More requests than the writer's queue holds."""
    names = [f"private-{n}" for n in range(300)]
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        calls = [pusher.begin(client.subscribe, name) for name in names]
        for _ in names:
            name = (await peer.take("pusher:subscribe"))["channel"]
            await peer.send("pusher_internal:subscription_succeeded", "{}", name)
        for call in calls:
            await call.result()

        assert client.statistics().subscriptions == 300


@pytest.mark.parametrize("data", ["no JSON", "[]", "{}", '{"user_id":[]}', None])
async def test_channel_data_of_an_authorizer_that_names_nobody(autojump_clock, pusher, data):
    """Presence needs to know who we are; with no channel_data it is the signed-in user."""

    async def authorize(socket_id, channel):
        return {"auth": "app-key:sig", "channel_data": data}

    async with pusher.connect(authorizer=authorize) as client:
        await pusher.accept()
        with pytest.raises(SubscriptionError, match=r"channel_data|not signed in"):
            await client.subscribe("presence-a")
        assert client.statistics().messages_sent == 0


async def test_answers_nobody_waits_for_change_nothing(autojump_clock, pusher):
    """A second success, and a refusal of what was never asked for."""
    async with pusher.connect() as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "a")
        await peer.send("pusher_internal:subscription_succeeded", "{}", "a")
        await peer.send("pusher_internal:subscription_succeeded", "{}", "b")
        await peer.send("pusher:subscription_error", {"error": "no"}, "a")
        await peer.send("tick", "1", "a")

        assert (await anext(channel)).data == "1"
        assert client.statistics().subscriptions == 1


async def test_a_user_given_for_a_channel_without_members_is_not_sent(autojump_clock, pusher):
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        pusher.begin(client.subscribe, "private-a", user_id="1")

        assert "channel_data" not in await peer.subscribe("private-a")


@pytest.mark.parametrize("is_connected", [True, False])
async def test_what_a_call_brought_to_nobody_is_undone(autojump_clock, pusher, is_connected):
    """As where another loop waits for the call, and is told to stop in the same step."""
    async with pusher.connect() as client:
        peer = await pusher.accept()
        subscriptions = client._conversation.subscriptions
        calls = [pusher.begin(client._conversation.subscribe, "a", None, None) for _ in range(2)]
        await peer.subscribe("a")
        (first, second) = [await call.result() for call in calls]
        assert first is second

        subscriptions.release(first)
        assert subscriptions.find("a") is first  # the other call has it
        if is_connected:
            subscriptions.release(second)
            assert await peer.take("pusher:unsubscribe") == {"channel": "a"}
        else:
            await peer.hang_up()
            await trio.testing.wait_all_tasks_blocked()
            subscriptions.release(second)
        assert subscriptions.find("a") is None
