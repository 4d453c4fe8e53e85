"""The RESP3 connection: order, callbacks, bounds and silence, against a peer made of bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from cachecast.bus.faults import (
    BacklogError,
    DownError,
    EpochError,
    GarbageError,
    LinkError,
    LostError,
    SilentError,
    SlowError,
)
from cachecast.bus.resp import Connection, Limits, has_unread

if TYPE_CHECKING:
    from trio.testing import MockClock

PONG = b"+PONG\r\n"


class Peer:
    """A connection that runs, and the engine's end of its stream."""

    def __init__(self, **options: Any) -> None:
        ours, self.stream = memory_stream_pair()
        self.messages: list[tuple[bytes, bytes]] = []
        self.fault: LinkError | None = None
        options.setdefault("is_unread", lambda: False)
        options.setdefault("on_message", lambda *message: self.messages.append(message))
        self.connection = Connection(ours, **options)

    async def run(self) -> None:
        self.fault = await self.connection.run()

    async def say(self, data: bytes) -> None:
        await self.stream.send_all(data)
        await wait_all_tasks_blocked()


def message(topic: bytes, payload: bytes) -> bytes:
    return b">3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
        len(topic),
        topic,
        len(payload),
        payload,
    )


async def test_replies_and_messages_are_handed_over_in_the_order_of_the_stream(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The barrier rests on that: what was published before the answer is there before it."""
    seen: list[Any] = []
    peer = Peer(on_message=lambda *parts: seen.append(parts))
    nursery.start_soon(peer.run)
    for number in range(3):
        peer.connection.send(("GET", number), seen.append)

    await peer.say(b":1\r\n" + message(b"t", b"a") + b":2\r\n" + message(b"t", b"b") + b":3\r\n")

    assert seen == [1, (b"t", b"a"), 2, (b"t", b"b"), 3]
    nursery.cancel_scope.cancel()


async def test_a_reply_in_pieces_is_handed_over_once_it_is_whole(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Bytes come as the network likes."""
    seen: list[Any] = []
    peer = Peer()
    nursery.start_soon(peer.run)
    peer.connection.send(("GET", "a"), seen.append)

    for byte in b"$3\r\nabc\r\n":
        assert seen == []
        await peer.say(bytes([byte]))

    assert seen == [b"abc"]
    nursery.cancel_scope.cancel()


async def test_calls_of_one_turn_leave_together_and_in_order(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Pipelining costs nothing but the order of `send`."""
    peer = Peer()
    nursery.start_soon(peer.run)
    for number in range(3):
        peer.connection.send(("GET", number), None)
    await wait_all_tasks_blocked()

    data = await peer.stream.receive_some()

    assert data == b"".join(b"*2\r\n$3\r\nGET\r\n$1\r\n%d\r\n" % number for number in range(3))
    nursery.cancel_scope.cancel()


async def test_an_error_reply_reaches_callback_and_awaiter_as_its_type(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Who calls needs no text to decide by."""
    seen: list[Any] = []
    peer = Peer()
    nursery.start_soon(peer.run)
    peer.connection.send(("GET", "a"), seen.append)

    async def call() -> None:
        with pytest.raises(EpochError):
            await peer.connection.call("GET", "b")
        seen.append("raised")

    nursery.start_soon(call)
    await wait_all_tasks_blocked()
    await peer.say(b"-EPOCH say hello again\r\n-EPOCH say hello again\r\n")

    assert isinstance(seen[0], EpochError)
    assert seen[1] == "raised"
    nursery.cancel_scope.cancel()


async def test_a_cancelled_call_leaves_the_others_their_own_answers(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Its reply comes all the same, is nobody else's, and wakes nobody."""
    peer = Peer()
    nursery.start_soon(peer.run)
    seen: list[Any] = []

    async def give_up() -> None:
        with trio.move_on_after(0.1):
            await peer.connection.call("GET", "a")
        await trio.sleep(0.9)
        seen.append(trio.current_time())

    async def call() -> None:
        seen.append(await peer.connection.call("GET", "b"))

    began = trio.current_time()
    nursery.start_soon(give_up)
    await trio.sleep(0.2)
    nursery.start_soon(call)
    await wait_all_tasks_blocked()
    await peer.say(b"$1\r\na\r\n$1\r\nb\r\n")
    await trio.sleep(0.9)

    assert seen == [b"b", began + 1.0]
    nursery.cancel_scope.cancel()


async def test_subscribing_is_confirmed_once_for_all_topics(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """RESP3 confirms each topic by a push, and refuses all by one reply."""
    seen: list[Any] = []
    peer = Peer()
    nursery.start_soon(peer.run)
    peer.connection.subscribe((b"a", b"b"), lambda reply: seen.append(("subscribed", reply)))
    peer.connection.send(("PING",), seen.append)
    peer.connection.unsubscribe((b"a",), lambda reply: seen.append(("left", reply)))
    peer.connection.subscribe((b"c",), lambda reply: seen.append(type(reply)))
    peer.connection.send(("PING",), seen.append)

    await peer.say(b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n" + message(b"a", b"1"))
    assert seen == []
    await peer.say(b">3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n+PONG\r\n")
    await peer.say(b">3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:1\r\n")
    await peer.say(b"-LOADING it\r\n+PONG\r\n")

    assert seen[:3] == [("subscribed", None), b"PONG", ("left", None)]
    assert issubclass(seen[3], LinkError)
    assert seen[4] == b"PONG"
    assert peer.messages == [(b"a", b"1")]
    nursery.cancel_scope.cancel()


async def test_the_end_of_the_stream_answers_all_that_waits(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Nobody waits for an answer that cannot come; and it may have been done."""
    seen: list[Any] = []
    peer = Peer()
    nursery.start_soon(peer.run)
    peer.connection.send(("GET", "a"), seen.append)
    await wait_all_tasks_blocked()

    await peer.stream.aclose()
    await wait_all_tasks_blocked()

    assert isinstance(peer.fault, LostError)
    assert seen == [peer.fault]
    assert peer.fault.was_maybe_done
    with pytest.raises(DownError):
        peer.connection.send(("GET", "a"), None)
    assert not DownError("").was_maybe_done


async def test_cancelling_answers_all_that_waits(autojump_clock: MockClock) -> None:
    """However it ends."""
    seen: list[Any] = []
    peer = Peer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        peer.connection.send(("GET", "a"), seen.append)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert isinstance(seen[0], LostError)


async def test_a_connection_that_ended_before_it_ran_says_so(autojump_clock: MockClock) -> None:
    """The owner may give up while it starts."""
    peer = Peer()
    fault = LostError("enough")
    peer.connection.end(fault)
    peer.connection.end(LostError("too late"))

    assert await peer.connection.run() is fault


async def test_silence_ends_the_connection_a_second_after_something_was_asked(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A beat is sent each quarter of a second, so nothing else must be asked for it."""
    peer = Peer()
    nursery.start_soon(peer.run)

    await trio.sleep(1.2)
    assert peer.fault is None
    await trio.sleep(0.5)

    assert isinstance(peer.fault, SilentError)


async def test_what_has_arrived_is_read_before_anybody_is_called_silent(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A process that stood still finds the answers in its socket."""
    arrived = [True]
    peer = Peer(is_unread=lambda: arrived[0])
    nursery.start_soon(peer.run)

    await trio.sleep(5)
    assert peer.fault is None
    arrived[0] = False
    await trio.sleep(0.3)

    assert isinstance(peer.fault, SilentError)


async def test_a_process_that_stood_still_asks_before_it_judges(
    nursery: trio.Nursery, mock_clock: MockClock
) -> None:
    """It heard nothing for a minute because it asked nothing."""
    peer = Peer()
    nursery.start_soon(peer.run)
    await wait_all_tasks_blocked()
    mock_clock.jump(60)
    await peer.stream.receive_some()
    mock_clock.jump(0.9)
    await wait_all_tasks_blocked()

    assert peer.fault is None
    mock_clock.jump(0.3)
    await wait_all_tasks_blocked()
    assert isinstance(peer.fault, SilentError)


async def test_an_engine_that_answers_beats_lives_for_ever(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """And is beaten no oftener than it answers."""
    peer = Peer()
    nursery.start_soon(peer.run)
    for _ in range(100):
        await peer.stream.receive_some()
        await peer.stream.send_all(PONG)

    assert 24 < trio.current_time() < 26
    assert peer.fault is None
    nursery.cancel_scope.cancel()


async def test_an_answer_that_is_late_for_too_long_ends_the_connection(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Messages show that the engine lives, and that is not enough for those who wait."""
    peer = Peer()
    nursery.start_soon(peer.run)
    peer.connection.send(("GET", "a"), None)
    for _ in range(10):
        await trio.sleep(0.6)
        if peer.fault is None:
            await peer.stream.send_all(message(b"t", b"a"))

    assert isinstance(peer.fault, SlowError)


async def test_calls_past_the_bound_are_refused_and_counted(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The unit is calls; those that wait are answered."""
    seen: list[Any] = []
    peer = Peer(limits=Limits(max_pending=2))
    nursery.start_soon(peer.run)
    peer.connection.send(("GET", "a"), seen.append)
    peer.connection.send(("GET", "b"), seen.append)

    with pytest.raises(BacklogError, match="2 calls"):
        peer.connection.send(("GET", "c"), seen.append)
    await peer.say(b":1\r\n:2\r\n")

    assert seen == [1, 2]
    assert peer.connection.n_refused == 1
    peer.connection.send(("GET", "d"), None)
    nursery.cancel_scope.cancel()


async def test_bytes_past_the_bound_are_refused_and_counted(autojump_clock: MockClock) -> None:
    """One call that is larger than the bound may go alone; what is written makes room."""
    peer = Peer(limits=Limits(max_unsent_bytes=1000))
    peer.connection.send(("SET", "a", b"x" * 2000), None)

    with pytest.raises(BacklogError, match="1000 bytes"):
        peer.connection.send(("SET", "a", b"x"), None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        await wait_all_tasks_blocked()

        assert peer.connection.n_unsent_bytes == 0
        assert peer.connection.n_pending == 1
        peer.connection.send(("SET", "a", b"x"), None)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x50",
        b"$99999999999999999999\r\n",
        b"*3\r\n:x\r\n",
        b"+a reply that nobody asked for\r\n",
    ],
)
async def test_garbage_ends_the_connection(
    garbage: bytes, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """It is out of step, so no later answer could be trusted."""
    peer = Peer()
    nursery.start_soon(peer.run)
    await peer.say(garbage)

    assert isinstance(peer.fault, GarbageError)


async def test_a_reply_without_end_is_garbage(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read has a bound."""
    monkeypatch.setattr("cachecast.bus.resp.MAX_REPLY_BYTES", 1000)
    peer = Peer()
    nursery.start_soon(peer.run)
    await peer.say(b"$100000\r\n" + b"x" * 2000)

    assert isinstance(peer.fault, GarbageError)


async def test_what_the_engine_says_before_it_hangs_up_is_the_reason(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """As when it has too many clients."""
    peer = Peer()
    nursery.start_soon(peer.run)
    await peer.say(b"-ERR max number of clients reached\r\n")

    assert isinstance(peer.fault, LostError)
    assert "max number of clients" in str(peer.fault)


async def test_a_callback_may_end_the_connection(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Nothing is handed over afterwards."""
    seen: list[Any] = []
    peer = Peer()
    nursery.start_soon(peer.run)
    peer.connection.send(("GET", "a"), lambda _: peer.connection.end(LostError("enough")))
    peer.connection.send(("GET", "b"), seen.append)
    await peer.say(b":1\r\n:2\r\n")

    assert seen == [peer.fault]
    assert str(peer.fault) == "enough"


async def test_a_socket_tells_whether_something_waits_to_be_read() -> None:
    """The kernel is asked, without reading."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listeners[0]:
        port = listeners[0].socket.getsockname()[1]
        async with (
            await trio.open_tcp_stream("127.0.0.1", port) as client,
            await listeners[0].accept() as server,
        ):
            assert not has_unread(client)
            await server.send_all(b"x")
            await trio.lowlevel.wait_readable(client.socket)
            assert has_unread(client)
            assert await client.receive_some() == b"x"
            assert not has_unread(client)
    assert not has_unread(memory_stream_pair()[0])
