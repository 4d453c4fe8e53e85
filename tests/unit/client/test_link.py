"""One connection: greeting, heartbeat, rubbish, and trio-websocket's traps."""

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.utilities import generate_accept_token

from cachecast.client import ClientState, connect
from cachecast.errors import RefusedError


@pytest.mark.parametrize(
    "first",
    ['{"event":"pusher:ping","data":{}}', "rubbish", '{"event":"pusher:connection_established"}'],
)
async def test_a_greeting_that_is_none_is_retried(autojump_clock, pusher, first):
    """connection_established must come first (1.4)."""
    async with pusher.connect() as client:
        peer = await pusher.accept(establish=False)
        await peer.socket.send_message(first)
        await pusher.accept()
        await client.wait_connected()

        assert client.statistics().connections == 1


async def test_a_first_error_without_a_code_waits_for_the_close_frame(autojump_clock, pusher):
    """Only there does it say whether to come back."""
    async with pusher.connect() as client:
        peer = await pusher.accept(establish=False)
        waiting = pusher.begin(client.wait_connected)
        await peer.error(None, "something is wrong")
        await peer.close(4004, "Application is over connection quota")
        with pytest.raises(RefusedError) as caught:
            await waiting.result()

        assert caught.value.close_code == 4004


async def test_a_server_that_never_greets_is_given_up_in_time(autojump_clock, pusher):
    async with pusher.connect() as client:
        await pusher.accept(establish=False)
        await pusher.accept()

        assert trio.current_time() - pusher.dialled[0][0] == pytest.approx(10.5)
        assert "no connection within 10 s" in client.last_ending.text


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "hung up during the handshake"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", "HTTP 404"),
        (b"\x16\x03\x01 no HTTP at all\r\n\r\n", ""),
    ],
)
async def test_a_server_that_speaks_no_websocket_is_retried(autojump_clock, pusher, answer, text):
    """And the reason can be read, at once rather than at the limit of the handshake."""
    async with pusher.connect() as client:
        _, stream = await pusher.accept_stream()
        await stream.receive_some()
        await stream.send_all(answer) if answer else None
        await stream.aclose()
        await pusher.accept()
        await client.wait_connected()

        assert trio.current_time() - pusher.dialled[0][0] < 2
        assert text in client.last_ending.text


async def test_silence_is_broken_by_a_ping_and_a_pong_keeps_the_connection(autojump_clock, pusher):
    """min(our 120 s, the server's announcement), then again (1.5)."""
    async with pusher.connect() as client:
        peer = await pusher.accept(activity_s=30)
        start = trio.current_time()
        for _ in range(3):
            assert await peer.receive() == {"event": "pusher:ping", "data": {}}
            await peer.send("pusher:pong", "{}")

        assert trio.current_time() - start == pytest.approx(90)
        await trio.sleep(1)
        assert client.statistics().connections == 1


async def test_our_own_limit_counts_where_the_server_announces_more(autojump_clock, pusher):
    async with pusher.connect(activity_s=20):
        peer = await pusher.accept(activity_s=120)
        start = trio.current_time()
        await peer.take("pusher:ping")

        assert trio.current_time() - start == pytest.approx(20)


async def test_any_message_counts_as_life(autojump_clock, pusher):
    async with pusher.connect():
        peer = await pusher.accept()
        start = trio.current_time()
        await trio.sleep(100)
        await peer.send("news", "{}")
        await peer.take("pusher:ping")

        assert trio.current_time() - start == pytest.approx(220)


async def test_no_pong_within_30_s_reconnects_at_once(autojump_clock, pusher):
    async with pusher.connect() as client:
        peer = await pusher.accept()
        start = trio.current_time()
        await peer.take("pusher:ping")
        await pusher.accept()

        assert trio.current_time() - start == pytest.approx(150)
        assert client.last_ending.is_pong_missing


async def test_pings_of_the_server_are_answered_on_both_layers(autojump_clock, pusher):
    async with pusher.connect():
        peer = await pusher.accept()
        await peer.send("pusher:ping", "{}")
        assert await peer.receive() == {"event": "pusher:pong", "data": {}}
        with trio.fail_after(1):
            await peer.socket.ping()


async def test_a_ping_after_our_close_stays_inside(autojump_clock, pusher):
    """trio-websocket's reader raises LocalProtocolError then."""
    async with pusher.connect() as client:
        _, stream = await pusher.accept_stream()
        raw = bytearray(await stream.receive_some())
        await stream.send_all(_handshake_answer(bytes(raw)))
        greeting = b'{"event":"pusher:connection_established","data":"{\\"socket_id\\":\\"1.1\\"}"}'
        await stream.send_all(bytes([0x81, len(greeting)]) + greeting)
        await client.wait_connected()
        pusher.begin(_ping_at_close, stream)

    assert client.state is ClientState.CLOSED


async def _ping_at_close(stream):
    await stream.receive_some()  # the Close frame
    await stream.send_all(b"\x89\x00")


def _handshake_answer(request):
    lines = request.split(b"\r\n")
    key = next(line for line in lines if line.lower().startswith(b"sec-websocket-key"))[19:]
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + generate_accept_token(key) + b"\r\n\r\n"
    )


@pytest.mark.parametrize(
    "frames",
    [
        b"\xff\xff\xff\xff",
        b"\x81\x85mask",  # servers must not mask
        b"\xc1\x00",  # a reserved bit
        b"\x81\x02\xff\xfe",  # not UTF-8
        b"\x89\x7e\x01\x00" + b"x" * 256,  # a ping may have 125 bytes
        b"\x88\x02\x00\x01",  # close code 1
        b"\x81\x7f\x7f\xff\xff\xff\xff\xff\xff\xff",  # 2^63 bytes announced
    ],
)
async def test_frames_that_are_none_cost_one_connection(autojump_clock, pusher, frames):
    async with pusher.connect() as client:
        peer = await pusher.accept()
        await client.wait_connected()
        await peer.stream.send_all(frames)
        await trio.testing.wait_all_tasks_blocked()
        await peer.hang_up()
        peer = await pusher.accept()
        channel = await pusher.subscribed(client, peer, "a")

        assert channel.is_subscribed


async def test_an_oversize_message_costs_one_connection(autojump_clock, pusher):
    """trio-websocket forgets to close the transport then."""
    async with pusher.connect(max_message_length=1000) as client:
        peer = await pusher.accept()
        await peer.send("big", "x" * 2000)
        await pusher.accept()
        await client.wait_connected()

        assert client.last_ending.code == 1009


def _play(answer, *, is_handshake):
    """One connection that says ``answer``, then one in order; whether the client came back."""

    async def main():
        give, take = trio.open_memory_channel(10)

        async def dial(target):
            ours, theirs = trio.testing.memory_stream_pair()
            await give.send(theirs)
            return ours

        async with connect("ws://h", key="k", dial=dial, random=lambda: 0.5) as client:
            stream = await take.receive()
            request = bytes(await stream.receive_some())
            if not is_handshake:
                await stream.send_all(_handshake_answer(request))
            await stream.send_all(answer)
            await trio.testing.wait_all_tasks_blocked()
            await stream.aclose()
            with trio.fail_after(60):
                await take.receive()
            return client.state

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


HTTP = st.builds(
    lambda start, headers, rest: start + b"\r\n" + headers + b"\r\n\r\n" + rest,
    st.sampled_from([b"HTTP/1.1 101 x", b"HTTP/1.1 200 OK", b"HTTP/1.0 400 x", b"HTTP/1.1 999 x"])
    | st.binary(max_size=20),
    st.sampled_from(
        [b"Upgrade: websocket\r\nConnection: Upgrade", b"Content-Length: 5", b"X: \xff",
         b"Transfer-Encoding: chunked", b"Upgrade: \xff\r\nConnection: \xff",
         b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: \xfc",
         b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: x"]
    )
    | st.binary(max_size=40),
    st.binary(max_size=20),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=1, max_size=60) | HTTP)
def test_no_answer_to_the_handshake_ends_the_client(answer):
    """Whatever a server, or a proxy before it, says: it costs that one connection."""
    assert _play(answer, is_handshake=True) is not ClientState.FAILED


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=1, max_size=60))
def test_no_bytes_after_the_handshake_end_the_client(answer):
    """Neither do frames that are none."""
    _play(answer, is_handshake=False)
