"""One occupied channel: recipients fixed, delivery in portions."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from cachecast.channels.channel import JOIN_BYTES, POINTER_BYTES, Channel
from cachecast.metrics import AppCounters
from cachecast.protocol.channel_name import parse_channel_name
from cachecast.protocol.messages import Publication
from cachecast.protocol.wire import (
    JSON_WEBSOCKET,
    MSGPACK_WEBSOCKET,
    DeflateWire,
    Encoded,
    Wire,
    compressing,
)
from tests.harness.lower import Client, framed


def _channel(name: str = "a") -> tuple[Channel, AppCounters]:
    counters = AppCounters()
    return Channel(parse_channel_name(name), counters), counters


def _event(text: str, channel: str = "a") -> Encoded:
    return Encoded(Publication(text, channel, text))


def _size(text: str, *wires: Wire) -> int:
    return sum(len(_event(text).on(wire)) for wire in wires or (JSON_WEBSOCKET,))


def _join(channel: Channel, n: int, **client: Any) -> list[Client]:
    clients = [Client(socket_id=f"1.{number}", **client) for number in range(n)]
    for client_ in clients:
        channel.add(client_.connection, None)
    return clients


def _events(client: Client) -> list[str]:
    return [message["event"] for message in client.heard]


def _deliver_all(channel: Channel, step: int = 10) -> int:
    done = 0
    while channel.has_queued:
        done += channel.deliver(step)[1]
    return done


def test_everyone_who_is_subscribed_gets_it_on_their_wire() -> None:
    """Encoded once for each wire; counted for each connection."""
    channel, counters = _channel()
    plain = _join(channel, 2)
    packed = _join(channel, 1, wire=MSGPACK_WEBSOCKET)

    channel.enqueue(_event("ev"))
    sends, done = channel.deliver(100)

    assert [_events(client) for client in plain + packed] == [["ev"]] * 3
    assert [client.socket.frames[0][0] for client in plain + packed] == [1, 1, 2]
    assert (sends, counters.deliveries) == (3, 3)
    assert done == _size("ev", JSON_WEBSOCKET, MSGPACK_WEBSOCKET) + 3 * POINTER_BYTES
    assert (channel.queued_bytes, channel.has_queued) == (0, False)


def test_recipients_are_those_of_the_moment_of_publishing() -> None:
    """Whoever comes later does not get it; whoever leaves before its turn does not either."""
    channel, _ = _channel()
    stays, leaves = _join(channel, 2)

    channel.enqueue(_event("one"))
    (newcomer,) = _join(channel, 1)
    channel.remove(leaves.connection)
    channel.enqueue(_event("two"))
    _deliver_all(channel)

    assert (_events(stays), _events(leaves), _events(newcomer)) == (["one", "two"], [], ["two"])


def test_whoever_leaves_and_comes_back_gets_only_what_came_after() -> None:
    """It is another subscription."""
    channel, _ = _channel()
    (client,) = _join(channel, 1)
    channel.enqueue(_event("one"))
    channel.remove(client.connection)
    channel.add(client.connection, None)
    channel.enqueue(_event("two"))

    _deliver_all(channel)

    assert _events(client) == ["two"]


def test_recipients_are_built_once_for_one_membership() -> None:
    """And anew after each change of it."""
    channel, _ = _channel()
    (client,) = _join(channel, 1)
    before = channel.recipients
    assert channel.recipients is before
    channel.remove(client.connection)

    assert channel.recipients is not before


@pytest.mark.parametrize("step", [1, 2, 3, 100])
def test_delivery_comes_in_portions_of_any_size(step: int) -> None:
    """At most so many sends a turn, nobody twice, nobody left out."""
    channel, _ = _channel()
    clients = _join(channel, 5) + _join(channel, 2, wire=MSGPACK_WEBSOCKET)
    channel.enqueue(_event("one"), clients[1].connection)
    channel.enqueue(_event("two"), clients[6].connection)
    channel.enqueue(_event("three"))
    turns = 0

    while channel.has_queued:
        assert channel.deliver(step)[0] <= step
        turns += 1

    assert turns <= 21 // step + 6
    for number, client in enumerate(clients):
        missed = {1: "one", 6: "two"}.get(number)
        assert _events(client) == [text for text in ("one", "two", "three") if text != missed]


def test_membership_may_change_in_the_middle_of_a_sweep() -> None:
    """Those ahead who leave are passed over; those who come wait for the next."""
    channel, _ = _channel()
    first, second, third = _join(channel, 3)
    channel.enqueue(_event("one"))
    channel.deliver(1)

    channel.remove(first.connection)
    channel.remove(second.connection)
    (newcomer,) = _join(channel, 1)
    _deliver_all(channel, 1)

    assert [_events(client) for client in (first, second, third, newcomer)] == [
        ["one"],
        [],
        ["one"],
        [],
    ]


def test_a_subscriber_that_is_closed_for_being_slow_leaves_in_mid_sweep() -> None:
    """The transport's answer comes from inside the loop and must not disturb it."""
    channel, _ = _channel()
    before, slow, after = (
        _join(channel, 1) + _join(channel, 1, room=0, max_bytes=5) + _join(channel, 1)
    )
    slow.outbox.put(b"it waits already")

    def close(event: str) -> None:
        if event == "on_slow":
            channel.remove(slow.connection)
            slow.outbox.discard()
            channel.enqueue(_event("gone"))

    slow.socket.on_event = close
    channel.enqueue(_event("one"))
    channel.enqueue(_event("two"))
    _deliver_all(channel)

    assert [_events(client) for client in (before, after)] == [["one", "two", "gone"]] * 2
    assert channel.queued_bytes == 0


def test_a_broken_socket_is_passed_over() -> None:
    """It costs only its own connection."""
    channel, _ = _channel()
    broken, well = _join(channel, 2)
    broken.socket.error = BrokenPipeError()

    channel.enqueue(_event("one"))
    _deliver_all(channel)

    assert broken.outbox.is_gone
    assert _events(well) == ["one"]


def test_what_waits_together_leaves_joined_in_one_send() -> None:
    """Frames are joined, never messages."""
    channel, counters = _channel()
    (client,) = _join(channel, 1)
    for number in range(10):
        channel.enqueue(_event(str(number)))

    sends, _ = channel.deliver(100)

    assert sends == 1
    assert _events(client) == [str(number) for number in range(10)]
    assert counters.deliveries == 10


def test_a_join_is_bounded_in_bytes() -> None:
    """The rest goes in another one."""
    channel, _ = _channel()
    (client,) = _join(channel, 1)
    frame = b"\x81\x7e\x27\x10" + bytes(10_000)
    for _ in range(7):
        channel.enqueue(framed(frame))

    used, _ = channel.deliver(100)

    # Three calls; of the 30,012 bytes that the first two join, each 8 KiB count as one more.
    assert used == 2 * (1 + 3) + (1 + 1)
    assert len(client.socket.taken) == 7 * len(frame)
    assert 3 * len(frame) <= JOIN_BYTES < 4 * len(frame)


def test_an_event_for_all_but_one_is_not_joined_with_one_for_all() -> None:
    """Nor a value that may be replaced with an event that may not."""
    channel, _ = _channel("private-cache-a")
    one, two = _join(channel, 2)
    channel.enqueue(_event("all"))
    channel.enqueue(_event("not one"), one.connection)
    channel.enqueue(_event("value"), deadline=10.0)
    channel.enqueue(_event("newer"), deadline=11.0)

    sends, _ = channel.deliver(100)

    assert sends == 2 + 1 + 2
    assert _events(one) == ["all", "value", "newer"]
    assert _events(two) == ["all", "not one", "value", "newer"]


def test_excluding_someone_who_is_not_there_excludes_nobody() -> None:
    """A socket id may belong to a connection without this channel."""
    channel, _ = _channel()
    (client,) = _join(channel, 1)

    channel.enqueue(_event("ev"), Client(socket_id="9.9").connection)
    _deliver_all(channel)

    assert _events(client) == ["ev"]


def test_a_slow_subscriber_gets_the_newest_value_of_a_cache_channel() -> None:
    """And all events of any other."""
    for name, events in (("cache-a", ["3"]), ("a", ["0", "1", "2", "3"])):
        channel, _ = _channel(name)
        (client,) = _join(channel, 1, room=0)
        for number in range(4):
            channel.enqueue(_event(str(number)), deadline=10.0 if name == "cache-a" else inf)
            channel.deliver(100)
        client.socket.room = inf
        client.outbox.flush(0.0)

        assert _events(client) == events


@pytest.mark.parametrize("names", ["value event", "event value", "value event value"])
def test_a_value_and_what_is_no_value_do_not_replace_each_other(names: str) -> None:
    """A member event or a client event on a cache channel takes no value's place."""
    channel, _ = _channel("presence-cache-x")
    (client,) = _join(channel, 1, room=0)
    for number, name in enumerate(names.split()):
        deadline = 10.0 if name == "value" else inf
        channel.enqueue(_event(f"{name} {number}", "presence-cache-x"), deadline=deadline)

    _deliver_all(channel)
    client.socket.room = inf
    client.outbox.flush(0.0)

    newest = {name: f"{name} {number}" for number, name in enumerate(names.split())}
    assert sorted(_events(client)) == sorted(newest.values())


def test_queued_bytes_are_what_waits_and_what_is_under_way() -> None:
    """Until the last subscriber has it."""
    channel, _ = _channel()
    _join(channel, 3)
    size = _size("ev") + 3 * POINTER_BYTES

    channel.enqueue(_event("ev"))
    assert channel.queued_bytes == size
    assert channel.deliver(2) == (2, 0)
    assert channel.queued_bytes == size
    assert channel.deliver(2) == (1, size)
    assert channel.queued_bytes == 0
    assert channel.deliver(2) == (0, 0)


def test_lists_of_recipients_are_charged_to_the_first_publication_that_needs_them() -> None:
    """Where members come and go each publication holds a list of its own, which has to be bounded
    like the frames are."""
    channel, _ = _channel()
    clients = _join(channel, 100)
    size = _size("ev")

    channel.enqueue(_event("ev"))
    channel.enqueue(_event("ev"))
    assert channel.queued_bytes == 2 * size + 100 * POINTER_BYTES
    channel.remove(clients[0].connection)
    channel.enqueue(_event("ev"))
    assert channel.queued_bytes == 3 * size + 199 * POINTER_BYTES
    _deliver_all(channel)
    assert channel.queued_bytes == 0


def test_bytes_of_announcements_are_told_from_those_of_publications() -> None:
    """Publishers wait for room, the protocol's own events have a bound of their own."""
    channel, _ = _channel()
    _join(channel, 2)
    channel.enqueue(_event("ev"))
    channel.enqueue(_event("said"), is_announcement=True)

    assert channel.announcement_bytes == _size("said")
    assert channel.queued_bytes > channel.announcement_bytes
    _deliver_all(channel)
    assert (channel.queued_bytes, channel.announcement_bytes) == (0, 0)


def test_a_publication_without_anyone_left_is_done_with() -> None:
    """Excluding the only one, or with nobody there."""
    channel, _ = _channel()
    channel.enqueue(_event("nobody"))
    (client,) = _join(channel, 1)
    channel.enqueue(_event("not you"), client.connection)

    size = channel.queued_bytes

    assert _deliver_all(channel) == size
    assert _events(client) == []


def test_only_a_presence_channel_has_a_roster() -> None:
    """And a channel shows its name and size."""
    assert _channel("presence-a")[0].roster is not None
    assert _channel("private-a")[0].roster is None
    assert repr(_channel("a")[0]) == "Channel(a, 0 subscriptions)"


# --- compression


class _Packing(DeflateWire):
    """A wire that counts what it compresses."""

    n = 0

    def pack(self, frame: bytes) -> bytes:
        self.n += 1
        return super().pack(frame)


def test_compressing_and_plain_subscribers_stand_in_one_channel() -> None:
    """Each gets its own bytes of the same event, compressed once for all."""
    channel, counters = _channel()
    packing = _Packing(JSON_WEBSOCKET, 12)
    plain = _join(channel, 3)
    packed = _join(channel, 3, wire=packing)
    others = _join(channel, 1, wire=compressing(MSGPACK_WEBSOCKET, 9))
    text = "tick" * 500

    channel.enqueue(_event(text))
    _deliver_all(channel, 2)

    assert [_events(client) for client in plain + packed + others] == [[text]] * 7
    sizes = [len(client.socket.taken) for client in plain + packed + others]
    assert max(sizes[3:]) < min(sizes[:3]) / 4
    assert [client.socket.taken[0] for client in plain + packed + others] == [
        0x81, 0x81, 0x81, 0xC1, 0xC1, 0xC1, 0xC2
    ]  # fmt: skip
    assert packing.n == 1
    assert counters.deliveries == 7


def test_what_is_compressed_leaves_joined_too() -> None:
    """Frame by frame, in the order of the publishes, large and small ones mixed."""
    channel, _ = _channel()
    (client,) = _join(channel, 1, wire=compressing(JSON_WEBSOCKET, 12))
    texts = ["a" * 1_000, "b", "c" * 2_000, "d"]

    for text in texts:
        channel.enqueue(_event(text))
    sends, _ = channel.deliver(100)

    assert sends == 1 + sum(len(_event(text).on(JSON_WEBSOCKET)) for text in texts) // 2_048
    assert _events(client) == texts
    assert [frame[0] & 0x40 for frame in client.socket.frames] == [0x40, 0, 0x40, 0]


def test_a_value_that_is_skipped_is_never_compressed() -> None:
    """Compressing waits for the turn of what it compresses, and takes a part of it."""
    channel, _ = _channel("cache-a")
    packing = _Packing(JSON_WEBSOCKET, 12)
    (client,) = _join(channel, 1, wire=packing)
    for number in range(5):
        channel.skip()
        channel.enqueue(_event(f"{number}" * 4_000, "cache-a"), deadline=9.0)
    assert packing.n == 0

    used, _ = channel.deliver(100)

    assert packing.n == 1
    assert used > 8_000 // 2_048
    assert [event[:1] for event in _events(client)] == ["4"]


def test_a_slow_subscriber_keeps_the_newest_compressed_value() -> None:
    """Conflation does not care what the bytes are."""
    channel, _ = _channel("cache-a")
    (client,) = _join(channel, 1, wire=compressing(JSON_WEBSOCKET, 12), room=0)
    for number in range(3):
        channel.enqueue(_event(f"{number}" * 1_000, "cache-a"), deadline=9.0)
        _deliver_all(channel)

    client.socket.room = inf
    client.outbox.flush(1.0)

    assert [event[:1] for event in _events(client)] == ["2"]
