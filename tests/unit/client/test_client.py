"""connect(), reconnection by the class of the close code, and how a client ends."""

import json
from itertools import pairwise

import pytest
import trio
import trio.testing
import trio_websocket

from cachecast.client import ClientState, connect
from cachecast.errors import ConfigError, RefusedError


async def test_a_value_arrives_with_the_words_of_the_readme():
    """Over real sockets on loopback, with nothing injected."""
    frames = [
        {"event": "pusher:connection_established",
         "data": '{"socket_id":"1.1","activity_timeout":120}'},
        {"event": "pusher_internal:subscription_succeeded", "channel": "cache-x", "data": "{}"},
        {"event": "tick", "channel": "cache-x", "data": '{"eur":1.08}'},
    ]  # fmt: skip
    paths = []

    async def serve(request):
        paths.append(request.path)
        socket = await request.accept()
        await socket.send_message(json.dumps(frames[0]))
        assert json.loads(await socket.get_message())["event"] == "pusher:subscribe"
        await socket.send_message(json.dumps(frames[1]))
        await socket.send_message(json.dumps(frames[2]))
        with pytest.raises(trio_websocket.ConnectionClosed):
            await socket.get_message()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(trio_websocket.serve_websocket, serve, "127.0.0.1", 0, None)
        async with connect(f"ws://127.0.0.1:{server.port}", key="app-key") as client:
            channel = await client.subscribe("cache-x")
            event = await anext(channel)
        nursery.cancel_scope.cancel()

    assert event.json() == {"eur": 1.08}
    assert paths[0].startswith("/app/app-key?protocol=7&client=cachecast&version=")


async def test_headers_reach_the_handshake(autojump_clock, pusher):
    async with pusher.connect(headers={"X-Trace": "7"}):
        peer = await pusher.accept()

        assert (b"x-trace", b"7") in peer.request.headers


async def test_entering_does_not_wait_and_waiting_does(autojump_clock, pusher):
    """A service may start before its broker."""
    pusher.refusing = 3
    async with pusher.connect() as client:
        assert client.state is ClientState.CONNECTING
        assert client.socket_id is None

        waiting = pusher.begin(client.wait_connected)
        peer = await pusher.accept()
        await waiting.result()

        assert client.state is ClientState.CONNECTED
        assert client.socket_id == peer.socket_id
        assert client.statistics().attempts == 4
        assert client.last_ending.text == "connection refused"


async def test_unreachable_server_is_tried_with_exponential_backoff_up_to_30_s(
    autojump_clock, pusher
):
    """Random is 0.5 here, so the limits 1, 2, 4, 8, 16, 30, 30 show as their halves."""
    pusher.refusing = 7
    async with pusher.connect():
        await pusher.accept()
    times = [at for at, _ in pusher.dialled]

    waits = [later - earlier for earlier, later in pairwise(times)]
    assert waits == pytest.approx([0.5, 1, 2, 4, 8, 15, 15])


@pytest.mark.parametrize("code", [4001, 4003, 4004, 4009, 4042, 4301, 4999])
async def test_a_code_that_forbids_return_stops_for_good(autojump_clock, pusher, code):
    """Every call that waits raises it, with code and text; nothing is dialled again."""
    async with pusher.connect() as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "a")
        iterating = pusher.begin(channel.__anext__)
        await peer.close(code, "No such app")

        with pytest.raises(RefusedError, match="No such app") as caught:
            await iterating.result()
        assert caught.value.close_code == code
        for call, *args in (
            [client.wait_connected],
            [client.subscribe, "b"],
            [client.sign_in, "{}"],
            [channel.__anext__],
            [_count, client.events],
        ):
            with pytest.raises(RefusedError) as caught:
                await call(*args)
            assert caught.value.close_code == code
        await trio.sleep(3600)
        assert client.state is ClientState.FAILED
        assert len(pusher.dialled) == 1


async def test_refusal_as_the_first_frame_stops_for_good(autojump_clock, pusher):
    """Servers send pusher:error and then close; pusher-js acts upon the first (1.6)."""
    async with pusher.connect() as client:
        peer = await pusher.accept(establish=False)
        waiting = pusher.begin(client.wait_connected)
        before = trio.current_time()
        await peer.error(4001, "App key app-key not in this cluster.")

        with pytest.raises(RefusedError, match="not in this cluster") as caught:
            await waiting.result()
        assert caught.value.close_code == 4001
        assert trio.current_time() == before  # not after the handshake's limit


async def test_a_refusal_nobody_heard_of_is_raised_on_leaving(autojump_clock, pusher):
    """A body that only sleeps must not take a refused connection for a quiet one."""
    with pytest.raises(RefusedError, match="4003") as caught:  # noqa: PT012 - leaving raises
        async with pusher.connect():
            peer = await pusher.accept()
            await peer.close(4003, "Application disabled")
            await trio.sleep(1)

    assert caught.value.close_code == 4003


async def test_4100_comes_back_after_a_second_or_more(autojump_clock, pusher):
    """Over capacity: never before 1 s, and later each time."""
    async with pusher.connect():
        for _ in range(3):
            peer = await pusher.accept()
            await peer.close(4100, "Over capacity")
        await pusher.accept()
    times = [at for at, _ in pusher.dialled]

    waits = [later - earlier for earlier, later in pairwise(times)]
    assert waits == pytest.approx([1.5, 2, 3])


@pytest.mark.parametrize("code", [4200, 4201, 4202, 4250])
async def test_42xx_comes_back_at_once(autojump_clock, pusher, code):
    async with pusher.connect():
        peer = await pusher.accept()
        before = trio.current_time()
        await peer.close(code, "Please reconnect immediately")
        await pusher.accept()

        assert trio.current_time() == before


async def test_42xx_again_and_again_backs_off(autojump_clock, pusher):
    """pusher-js reconnects 400 times a second to such a server (1.6); this client must not."""
    async with pusher.connect() as client:
        pusher.begin(_close_everything, pusher, 4200)
        await trio.sleep(60)

        assert client.statistics().attempts < 10


async def test_42xx_before_the_connection_is_established_backs_off(autojump_clock, pusher):
    async with pusher.connect() as client:
        pusher.begin(_close_everything, pusher, 4200, establish=False)
        await trio.sleep(60)

        assert client.statistics().attempts < 10


async def _close_everything(pusher, code, *, establish=True):
    while True:
        peer = await pusher.accept(establish=establish)
        await peer.close(code)


async def test_a_stable_connection_forgives_earlier_failures(autojump_clock, pusher):
    """4200 after ten seconds of life is obeyed at once, whatever was before."""
    async with pusher.connect():
        for _ in range(4):
            peer = await pusher.accept()
            await peer.close(1001)
        peer = await pusher.accept()
        await trio.sleep(10)
        before = trio.current_time()
        await peer.close(4200)
        await pusher.accept()

        assert trio.current_time() == before


async def test_the_reason_of_a_failed_attempt_can_be_read():
    """Over the real network: the system's own words, not just that all addresses failed."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    async with connect(f"ws://127.0.0.1:{port}", key="k") as client:
        while client.last_ending is None:
            await anext(client.events)

    assert "Connection refused" in client.last_ending.text


@pytest.mark.parametrize("way", ["1000", "1001", "1011", "abort"])
async def test_any_other_end_comes_back_with_backoff(autojump_clock, pusher, way):
    async with pusher.connect() as client:
        peer = await pusher.accept()
        before = trio.current_time()
        if way == "abort":
            await peer.hang_up()
        else:
            await peer.close(int(way))
        await pusher.accept()

        assert trio.current_time() - before == pytest.approx(0.5)
        assert client.last_ending.code == (1006 if way == "abort" else int(way))
        assert type(client.last_ending.code) is int


async def test_4000_tries_tls_once(autojump_clock, pusher):
    """As pusher-js does: at once, and with TLS from then on."""
    async with pusher.connect("ws://broker.test:80/prefix") as client:
        peer = await pusher.accept()
        await peer.close(4000, "reconnect using wss://")
        peer = await pusher.accept()

        assert peer.target.is_tls
        assert peer.target.port == 443
        assert peer.target.resource.startswith("/prefix/app/app-key?")
        waiting = pusher.begin(client.subscribe, "a")
        await peer.close(4000, "reconnect using wss://")
        with pytest.raises(RefusedError, match="wss://"):
            await waiting.result()


async def test_an_error_frame_stands_in_for_a_close_code(autojump_clock, pusher):
    """Protocols below 6, and Reverb, say it in a message and just hang up (1.5, 1.7)."""
    async with pusher.connect() as client:
        peer = await pusher.accept()
        waiting = pusher.begin(client.subscribe, "a")
        await peer.receive()
        await peer.error(4009, "You got disconnected by the app.")
        await peer.hang_up()

        with pytest.raises(RefusedError) as caught:
            await waiting.result()
        assert caught.value.close_code == 4009


async def test_an_old_error_frame_does_not(autojump_clock, pusher):
    """pusher:error on a connection that lives on is an event only (1.6)."""
    async with pusher.connect() as client:
        peer = await pusher.accept()
        await peer.error(4009, "something is wrong")
        await peer.send("pusher:pong", "{}")
        await peer.hang_up()
        await pusher.accept()
        await client.wait_connected()


# --- the end


async def test_what_was_triggered_leaves_before_the_connection_closes(autojump_clock, pusher):
    """Leaving the block right after trigger() must not lose the event."""
    async with pusher.connect(secret="s") as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "private-a")
        for i in range(20):
            await channel.trigger("client-n", i)
        reading = pusher.begin(_read_all, peer)

    got = await reading.result()
    assert [message["data"] for message in got] == list(range(20))
    assert peer.socket.closed.code == 1000


async def _read_all(peer):
    got = []
    try:
        while True:
            got.append(await peer.receive())
    except trio_websocket.ConnectionClosed:
        return got


async def test_leaving_takes_two_seconds_at_most(autojump_clock, pusher):
    """A server that does not answer the Close costs the grace and no more."""
    async with pusher.connect() as client:
        _, stream = await pusher.accept_stream()
        request = await trio_websocket.wrap_server_stream(pusher.nursery, stream)
        socket = await request.accept()
        await socket.send_message(
            '{"event":"pusher:connection_established","data":"{\\"socket_id\\":\\"1.1\\"}"}'
        )
        await client.wait_connected()
        for _ in range(socket._send_channel.statistics().max_buffer_size + 2):
            await client._conversation.link.send("x", "y")  # until its reader is stuck
        before = trio.current_time()

    assert trio.current_time() - before == pytest.approx(2)


async def test_leaving_ends_iteration_and_waiting_elsewhere(autojump_clock, pusher):
    """Tasks outside the block learn of the end; none hangs."""
    async with pusher.connect() as client:
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "a")
        iterating = pusher.begin(_count, channel)
        subscribing = pusher.begin(client.subscribe, "b")
        signing_in = pusher.begin(client.sign_in, '{"id":"u"}')
        await peer.receive()

    assert await iterating.result() == 0
    for call in (subscribing, signing_in):
        with pytest.raises(Exception, match=r"closed|unsubscribed|Signing in"):
            await call.result()
    with pytest.raises(trio.ClosedResourceError):
        await client.subscribe("c")
    with pytest.raises(trio.ClosedResourceError):
        await client.wait_connected()
    assert client.state is ClientState.CLOSED


async def _count(channel):
    return len([event async for event in channel])


async def test_leaving_between_two_attempts_is_immediate(autojump_clock, pusher):
    pusher.refusing = 100
    async with pusher.connect():
        await trio.sleep(40)
        before = trio.current_time()

    assert trio.current_time() == before


async def test_leaving_during_the_handshake_is_immediate(autojump_clock, pusher):
    async with pusher.connect():
        await pusher.accept(establish=False)
        before = trio.current_time()

    assert trio.current_time() == before


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
async def test_an_error_of_the_body_comes_out_as_it_is(autojump_clock, pusher, kind):
    """Not in an exception group: except ValueError, or KeyboardInterrupt, must catch it."""
    with pytest.raises(kind, match=r"^mine$"):  # noqa: PT012 - leaving raises
        async with pusher.connect():
            await pusher.accept()
            raise kind("mine")


@pytest.mark.parametrize("after_s", [0, 0.25, 0.6, 1, 2, 100])
async def test_cancelling_the_body_leaves_nothing_behind(autojump_clock, pusher, after_s):
    """At whatever stage: dialling, waiting, greeting, subscribing, connected."""
    n_tasks = trio.lowlevel.current_statistics().tasks_living
    pusher.refusing = 1
    with trio.move_on_after(after_s) as scope:
        async with pusher.connect(authorizer=_hang) as client, trio.open_nursery() as inner:
            inner.start_soon(client.subscribe, "private-a")
            peer = await pusher.accept(establish=False)
            await trio.sleep(0.5)
            await peer.establish()
            await trio.sleep_forever()

    assert scope.cancelled_caught
    await trio.testing.wait_all_tasks_blocked()
    # The server's own reader ends by itself, because the transport was closed.
    assert trio.lowlevel.current_statistics().tasks_living == n_tasks


class _CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when the run has made so many steps."""

    def __init__(self, scope, steps):
        self.scope = scope
        self.steps = steps

    def after_task_step(self, task):
        self.steps -= 1
        if self.steps == 0:
            self.scope.cancel()


class _Recorder:
    """Dials to a server that says yes to everything, and keeps both ends of each stream."""

    def __init__(self, nursery):
        self.nursery = nursery
        self.ours = []

    async def dial(self, target):
        ours, theirs = trio.testing.memory_stream_pair()
        self.ours.append(ours)
        self.nursery.start_soon(self.serve, theirs)
        return ours

    async def serve(self, stream):
        async with trio.open_nursery() as nursery:
            try:
                request = await trio_websocket.wrap_server_stream(nursery, stream)
                socket = await request.accept()
                greeting = json.dumps({"socket_id": "1.1"})
                await self.say(socket, "pusher:connection_established", greeting)
                while True:
                    await self.answer(socket, json.loads(await socket.get_message()))
            except trio_websocket.ConnectionClosed:
                nursery.cancel_scope.cancel()

    async def answer(self, socket, message):
        if message["event"] == "pusher:subscribe":
            channel = message["data"]["channel"]
            await self.say(socket, "pusher_internal:subscription_succeeded", "{}", channel)
            await self.say(socket, "tick", "1", channel)
        elif message["event"] == "pusher:signin":
            await self.say(socket, "pusher:signin_success", {})

    async def say(self, socket, event, data, channel=None):
        message = {"event": event, "data": data, "channel": channel}
        await socket.send_message(json.dumps(message))


def test_cancelling_at_every_single_step_leaves_nothing_behind():
    """Wherever it hits: nothing but Cancelled comes out, and every transport is closed.

    (That no task goes on is the nursery's promise.)
    """
    finished_at = None
    for steps in range(1, 2000):
        if trio.run(_cancelled_life, steps, clock=trio.testing.MockClock(autojump_threshold=0)):
            finished_at = steps
            break

    assert finished_at is not None
    assert finished_at > 100


async def _cancelled_life(steps):
    """Live through everything a client does; whether it ended before the cancellation."""
    is_done = False
    async with trio.open_nursery() as servers:
        recorder = _Recorder(servers)
        with trio.CancelScope() as scope:
            instrument = _CancelAtStep(scope, steps)
            trio.lowlevel.add_instrument(instrument)
            async with connect("ws://h", key="k", secret="s", dial=recorder.dial) as client:
                channel = await client.subscribe("private-cache-a")
                await anext(channel)
                await channel.trigger("client-x", 1)
                await client.sign_in('{"id":"u"}')
                await channel.unsubscribe()
            is_done = True
        trio.lowlevel.remove_instrument(instrument)
        for stream in recorder.ours:
            with pytest.raises(trio.ClosedResourceError):
                await stream.send_all(b"x")
        servers.cancel_scope.cancel()
    return is_done and not scope.cancel_called


async def _hang(socket_id, channel):
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"url": None}, "url"),
        ({"cluster": "eu"}, "url"),
        ({"url": "broker.test:6001"}, "url"),
        ({"url": "ftp://broker.test"}, "url"),
        ({"url": "ws://broker.test:99999"}, "url"),
        ({"key": ""}, "key"),
        ({"secret": "s", "authorizer": _hang}, "secret"),
        ({"secret": "s", "auth_endpoint": "http://x"}, "auth_endpoint"),
        ({"encryption_master_key": "c2hvcnQ="}, "encryption_master_key"),
    ],
)
async def test_arguments_that_cannot_work_are_named(autojump_clock, pusher, options, field):
    with pytest.raises(ConfigError) as caught:
        async with pusher.connect(**{"url": "ws://broker.test", **options}):
            pass

    assert caught.value.field == field
