"""What is asyncio's own in asyncio's client; tests/sockets/test_asyncio_client.py shows the rest.

The server is a node on real sockets, in the same guest run.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from contextlib import asynccontextmanager

import pytest
import trio

from cachecast import client as trio_client
from cachecast.asyncio import client as asyncio_client
from cachecast.asyncio.client import connect
from cachecast.asyncio.guest import open_guest
from cachecast.client import ClientState
from cachecast.errors import AuthError, ConfigError, LimitError, RefusedError, SubscriptionError
from tests.sockets.node import APP_ID, KEY, SECRET, make_app, running

LIMIT_S = 60


def in_asyncio(test):
    @functools.wraps(test)
    def run(*args, **options):
        async def main():
            async with asyncio.timeout(LIMIT_S):
                await test(*args, **options)

        asyncio.run(main())

    return run


class Node:
    """The node, as asyncio sees it."""

    def __init__(self, guest, node):
        self.guest = guest
        self.node = node
        self.url = f"ws://127.0.0.1:{node.server.port}"

    def connect(self, **options):
        return connect(self.url, **{"key": KEY, "secret": SECRET, "random": lambda: 0.0} | options)

    async def publish(self, channel, data):
        await self.guest.run(self.node.broker.publish, APP_ID, channel, "tick", data)

    def close(self, code):
        """End the only connection."""
        (connection,) = self.node.broker.hubs[APP_ID].connections.values()
        self.node.broker.clients.disconnect(connection, code, "Go away")

    @property
    def channels(self):
        return self.node.broker.hubs[APP_ID].channels


@asynccontextmanager
async def node_of(*apps):
    async with (
        open_guest("test") as guest,
        guest.hold(functools.partial(running, *apps)) as node,
    ):
        yield Node(guest, node)


async def until(condition):
    while not condition():  # noqa: ASYNC110 - of another loop's doing; bounded by the test's limit
        await asyncio.sleep(0.001)


# --- the same face


#: What only Trio's connect() calls.
INNER = {"run", "close", "raise_if_untold"}


def face(kind):
    """Public names of a class, and how each is called."""
    names = {name for name in vars(kind) if not name.startswith("_")} - INNER
    return {name: _signature(getattr(kind, name)) for name in names}


def _signature(member):
    if isinstance(member, property):
        return "property"
    signature = inspect.signature(member)
    return [(p.name, p.kind, p.default) for p in signature.parameters.values()]


@pytest.mark.parametrize("name", ["Client", "Channel", "OwnEvents"])
def test_the_face_is_that_of_trios_client(name):
    ours, theirs = getattr(asyncio_client, name), getattr(trio_client, name)

    assert face(ours) == face(theirs)
    assert inspect.iscoroutinefunction(ours.__init__) is False
    for method in face(theirs):
        there = inspect.iscoroutinefunction(getattr(theirs, method))
        assert inspect.iscoroutinefunction(getattr(ours, method)) == there, method


def test_connect_takes_what_trios_takes():
    assert _signature(connect) == _signature(trio_client.connect)


# --- the other loop


@pytest.mark.parametrize("kind", ["trio", "none"])
def test_without_a_loop_of_asyncio_one_sentence_says_so(kind):
    async def enter():
        async with connect("ws://127.0.0.1:1", key=KEY):
            raise AssertionError("entered")

    run = {"trio": lambda: trio.run(enter), "none": lambda: enter().send(None)}[kind]
    with pytest.raises(RuntimeError, match=r"cachecast\.asyncio\.connect\(\) needs .*asyncio"):
        run()


@in_asyncio
async def test_two_clients_share_one_run_of_trio_and_leave_no_thread():
    before = set(threading.enumerate())
    async with node_of() as node, node.connect() as ann, node.connect() as bob:
        room = await ann.subscribe("private-room")
        assert (await bob.subscribe("private-room")).is_subscribed
        assert room.is_subscribed

    assert set(threading.enumerate()) <= before


@in_asyncio
async def test_functions_that_are_given_run_in_asyncio():
    tasks = []

    async def authorizer(socket_id, channel):
        tasks.append(asyncio.current_task())
        await asyncio.sleep(0)
        if channel == "private-secret":
            raise AuthError("not for you")
        return node.node.broker.authorize_channel(APP_ID, socket_id, channel)

    async def authenticator(socket_id):
        await asyncio.sleep(0)
        return node.node.broker.authenticate_user(APP_ID, socket_id, {"id": "ann"})

    async def dial(target):
        tasks.append(asyncio.current_task())
        return await asyncio.open_connection(target.host, target.port)

    options = {"authorizer": authorizer, "user_authenticator": authenticator, "dial": dial}
    async with node_of() as node, node.connect(secret=None, **options) as client:
        assert (await client.subscribe("private-room")).is_subscribed
        with pytest.raises(SubscriptionError) as caught:
            await client.subscribe("private-secret")
        assert isinstance(caught.value.__cause__, AuthError)
        assert (await client.sign_in()).name == "#server-to-user-ann"
        assert client.user_id == "ann"
    assert None not in tasks
    assert len(tasks) == 3


@in_asyncio
async def test_authorizer_that_waits_is_cancelled_with_the_subscription():
    asked, ended = asyncio.Event(), []

    async def authorizer(socket_id, channel):
        asked.set()
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            ended.append(channel)
            raise

    async with node_of() as node, node.connect(secret=None, authorizer=authorizer) as client:
        waiting = asyncio.create_task(client.subscribe("private-room"))
        await asked.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: ended == ["private-room"])


def verbs(client, channel):
    """Every way to ask something of a client, with what it would be asked."""
    return {
        "wait_connected": client.wait_connected,
        "subscribe": functools.partial(client.subscribe, "private-room"),
        "sign_in": functools.partial(client.sign_in, {"id": "ann"}),
        "trigger": functools.partial(channel.trigger, "client-a", 1),
        "unsubscribe": channel.unsubscribe,
        "events": client.events.__anext__,
        "iteration": channel.__anext__,
    }


VERBS = ["wait_connected", "subscribe", "sign_in", "trigger", "unsubscribe", "events", "iteration"]


@pytest.mark.parametrize("verb", VERBS)
@in_asyncio
async def test_a_verb_in_another_loop_or_in_trio_is_refused_in_one_sentence(verb):
    async with node_of() as node, node.connect() as client:
        channel = await client.subscribe("private-other")

        def elsewhere():
            return asyncio.run(verbs(client, channel)[verb]())

        with pytest.raises(RuntimeError, match="in the loop and thread that opened the client"):
            await asyncio.to_thread(elsewhere)
        with pytest.raises(RuntimeError, match=r"Trio runs here: use .* cachecast\.client"):
            await node.guest.run(verbs(client, channel)[verb])
        await node.publish("private-other", 1)
        assert (await anext(channel)).json() == 1  # which has done no harm


def test_a_client_that_is_closed_says_so_although_trio_has_ended_too():
    """In its own loop, and in a later one; the end of a guest run is nobody's business."""

    async def use():
        async with node_of() as node, node.connect() as client:
            channel = await client.subscribe("private-room")
        for verb, call in verbs(client, channel).items():
            if verb == "unsubscribe":
                await call()
            elif verb in ("events", "iteration"):
                with pytest.raises(StopAsyncIteration):
                    while True:  # what was pending comes first
                        await call()
            else:
                with pytest.raises(trio.ClosedResourceError):
                    await call()
        return client, channel

    async def use_later(client, channel):
        for call in verbs(client, channel).values():
            with pytest.raises(trio.ClosedResourceError):
                await call()

    asyncio.run(use_later(*asyncio.run(use())))


@in_asyncio
async def test_authorizer_whose_own_task_is_cancelled_has_failed():
    """And neither the connection nor whoever asked is cancelled with it."""

    async def authorizer(socket_id, channel):
        asyncio.current_task().cancel()
        await asyncio.sleep(1)

    async with node_of() as node, node.connect(secret=None, authorizer=authorizer) as client:
        with pytest.raises(SubscriptionError, match="The authorizer failed"):
            await client.subscribe("private-room")
        assert (await client.subscribe("room")).is_subscribed


# --- cancellation


@in_asyncio
async def test_a_cancelled_iteration_has_taken_nothing():
    async with node_of() as node, node.connect() as client:
        channel = await client.subscribe("private-room")
        for number in range(50):
            waiting = asyncio.create_task(anext(channel))
            await asyncio.sleep(0)
            await node.publish("private-room", number)
            if number % 2:
                await asyncio.sleep(0.001)
            waiting.cancel()
            got = await asyncio.gather(waiting, return_exceptions=True)
            if isinstance(got[0], BaseException):
                got = [await anext(channel)]
            assert got[0].json() == number


@in_asyncio
async def test_a_cancelled_subscription_leaves_nothing_behind():
    async with node_of() as node, node.connect() as client:
        await client.wait_connected()
        for timeout_s in (0, 0.0005, 0.001, 0.002):
            try:
                async with asyncio.timeout(timeout_s):
                    channel = await client.subscribe("private-room")
            except TimeoutError:
                await until(lambda: "private-room" not in node.channels)
            else:
                await channel.unsubscribe()
        assert (await client.subscribe("private-room")).is_subscribed


@in_asyncio
@pytest.mark.parametrize("verb", ["subscribe", "sign_in"])
async def test_what_came_in_the_step_of_the_cancellation_is_nobodys(verb):
    """The server's yes and the cancellation meet at every distance of a few steps."""
    name = {"subscribe": "private-room", "sign_in": "#server-to-user-ann"}[verb]
    wish = {"subscribe": "private-room", "sign_in": {"id": "ann"}}[verb]
    n_steps = n_done = 0
    async with node_of() as node:
        while n_done < 3:
            n_steps += 1
            async with node.connect() as client:
                await client.wait_connected()
                task = asyncio.create_task(getattr(client, verb)(wish))
                for _ in range(n_steps):
                    await asyncio.sleep(0)
                n_done += task.done()
                task.cancel()
                (got,) = await asyncio.gather(task, return_exceptions=True)
                if isinstance(got, asyncio.CancelledError):
                    await until(lambda: name not in node.channels)
                    assert client.statistics().subscriptions == 0
                    assert client.user_id is None
                    assert (await getattr(client, verb)(wish)).is_subscribed
                else:
                    assert got.is_subscribed


@in_asyncio
async def test_a_channel_that_somebody_has_survives_the_cancellation_of_another_call():
    async with node_of() as node, node.connect() as client:
        channel = await client.subscribe("private-room")
        for n_steps in range(6):
            task = asyncio.create_task(client.subscribe("private-room"))
            for _ in range(n_steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await node.publish("private-room", 1)
        assert (await anext(channel)).json() == 1


@in_asyncio
async def test_a_block_that_is_cancelled_closes_at_once():
    entered = asyncio.Event()

    async def listen():
        async with node.connect() as client:
            channel = await client.subscribe("private-room")
            entered.set()
            async for _ in channel:
                raise AssertionError("nothing was published")

    async with node_of() as node:
        task = asyncio.create_task(listen())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not node.node.broker.hubs[APP_ID].connections)


@in_asyncio
async def test_a_second_reader_is_refused():
    async with node_of() as node, node.connect() as client:
        channel = await client.subscribe("private-room")
        first = asyncio.create_task(anext(channel))
        await asyncio.sleep(0)
        with pytest.raises(trio.BusyResourceError):
            await anext(channel)
        await node.publish("private-room", 1)
        assert (await first).json() == 1


# --- events


@in_asyncio
async def test_a_slow_consumer_is_told_what_it_lost():
    async with node_of() as node, node.connect() as client:
        channel = await client.subscribe("private-room", max_queued=2)
        for number in range(5):
            await node.publish("private-room", number)
        await until(lambda: client.statistics().lost_events == 3)

        assert [(await anext(channel)).json() for _ in range(2)] == [0, 1]
        with pytest.raises(LimitError, match="3 events were lost"):
            await anext(channel)


@in_asyncio
async def test_a_reader_that_finds_much_lets_others_have_their_turn():
    """A thousand waiting events and a handler without an await must not stop a web server."""
    turns = []

    async def count():
        while True:
            turns.append(None)
            await asyncio.sleep(0)

    async with node_of() as node, node.connect() as client:
        channel = await client.subscribe("private-room")
        for number in range(500):
            await node.publish("private-room", number)
        await until(lambda: client.statistics().messages_received >= 502)
        counting = asyncio.create_task(count())
        assert [(await anext(channel)).json() for _ in range(500)] == list(range(500))
        assert len(turns) >= 5
        counting.cancel()


@in_asyncio
async def test_iteration_ends_with_the_channel_and_with_the_client():
    async def count(events):
        return len([event async for event in events if event.name == "tick"])

    async with node_of() as node:
        async with node.connect() as client:
            left, kept = await client.subscribe("a"), await client.subscribe("b")
            readers = [asyncio.create_task(count(events)) for events in (left, kept, client.events)]
            await asyncio.sleep(0)
            await node.publish("b", 1)
            await left.unsubscribe()
            assert await readers[0] == 0
            assert repr(kept) == "<Channel 'b' active>"
        assert await asyncio.gather(*readers) == [0, 1, 0]
        assert client.state is ClientState.CLOSED
        with pytest.raises(trio.ClosedResourceError):
            await client.subscribe("c")


# --- ends


@in_asyncio
async def test_what_was_triggered_arrives_although_the_block_fails():
    """As in Trio: an error ends the connection in the orderly way, and comes out as it is."""
    async with (
        node_of(make_app(allows_client_events=True)) as node,
        node.connect() as ann,
    ):
        heard = await ann.subscribe("private-room")
        with pytest.raises(ZeroDivisionError):
            async with node.connect() as bob:
                room = await bob.subscribe("private-room")
                for number in range(5):
                    await room.trigger("client-count", number)
                raise ZeroDivisionError
        assert [(await anext(heard)).json() for _ in range(5)] == list(range(5))


@in_asyncio
async def test_a_refusal_is_raised_on_leaving_if_nobody_was_told():
    async with node_of() as node:
        with pytest.raises(RefusedError) as caught:
            async with node.connect(key="nokey") as client:
                await until(lambda: client.state is ClientState.FAILED)
        assert caught.value.close_code == 4001
        with pytest.raises(ZeroDivisionError):  # which says more
            async with node.connect(key="nokey") as client:
                await until(lambda: client.state is ClientState.FAILED)
                raise ZeroDivisionError


@in_asyncio
async def test_arguments_that_cannot_work_are_named():
    with pytest.raises(ConfigError, match="url"):
        async with connect("http:/nowhere", key=KEY):
            raise AssertionError("entered")


@in_asyncio
async def test_a_service_may_start_before_its_broker():
    async with connect("ws://127.0.0.1:1", key=KEY) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.wait_connected()
        await until(lambda: client.last_ending is not None)
        assert "refused" in client.last_ending.text
        assert client.socket_id is None


@in_asyncio
async def test_a_connection_that_ends_is_replaced():
    async with node_of() as node, node.connect() as client:
        channel = await client.subscribe("cache-room")
        assert (await anext(channel)).is_cache_miss
        await node.publish("cache-room", 1)
        assert (await anext(channel)).json() == 1
        node.close(4200)
        assert (await anext(channel)).json() == 1  # once more, for only the cache knows
        assert client.last_ending.code == 4200
        assert client.statistics().connections == 2
