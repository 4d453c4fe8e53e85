"""What a subscriber makes of a server that lies: each lie gets its own name."""

from __future__ import annotations

import ssl
from concurrent.futures import ThreadPoolExecutor

import pytest

from cachecast_bench.certificate import temporary_certificate
from cachecast_bench.dialects import Endpoint
from cachecast_bench.dialects.base import client_frame, server_frame, split_frames
from cachecast_bench.dialects.centrifugo import CentrifugoDialect
from cachecast_bench.generator.connecting import client_context
from cachecast_bench.generator.stream import MARK_SIZE, Group, Stream, payload_of
from cachecast_bench.generator.subscriber import JoinedSubscriber, Subscriber

SIZE = 64


def frame(payload: bytes) -> bytes:
    """A delivery as an honest server frames it."""
    return server_frame(b'{"event":"e","channel":"c","data":"%s"}' % payload)


class Client:
    """A subscriber at one end of a wire, and the server at the other."""

    def __init__(self, wire, *, n_channels=1, is_ordered=True):
        self.server, sock = wire
        self.streams = [Stream(f"c{i}", i) for i in range(n_channels)]
        self.group = Group("all")
        self.group.streams = self.streams
        for stream in self.streams:
            stream.begin(1, SIZE, is_ordered=is_ordered)
        self.subscriber = Subscriber(sock, self.group, self.streams, has_constant_frames=True)
        self.subscriber.is_probe = True

    def publish(self, count, *, channel=0, line=0):
        """Publish to a channel; return the frames that an honest server delivers."""
        return [frame(self.streams[channel].append(0, line)) for _ in range(count)]

    def deliver(self, *pieces):
        """Let the server write, and the subscriber read after each piece."""
        for piece in pieces:
            self.server.sendall(piece)
            self.subscriber.on_readable()

    @property
    def failures(self):
        """What the ledger says, without the zeros; what has not come is lost."""
        ledger = self.group.ledger.to_json()
        ledger["lost"] += self.subscriber.n_missing
        return {name: count for name, count in ledger.items() if count}


@pytest.fixture
def client(wire):
    """A subscriber of one channel with one publisher."""
    return Client(wire)


def test_honest_deliveries_are_counted_and_nothing_is_wrong(client):
    """One frame a read, several in one, and frames cut anywhere."""
    frames = client.publish(20)
    stream = b"".join(frames)

    client.deliver(frames[0], frames[1], b"".join(frames[2:10]))
    client.deliver(*(stream[i : i + 7] for i in range(len(b"".join(frames[:10])), len(stream), 7)))

    assert client.group.n_delivered == 20
    assert client.failures == {}
    assert len(client.group.delays_ns) == 20


def test_after_the_first_frame_deliveries_are_verified_by_comparison_alone(client):
    """The fast path is taken: otherwise the generator would be the bottleneck."""
    frames = client.publish(100)

    client.deliver(frames[0], *frames[1:])

    assert client.group.n_parsed == 1
    assert client.group.n_bytes == sum(map(len, frames[1:]))


def test_a_message_left_out_is_lost(client):
    """The gap is one message, not everything after it."""
    frames = client.publish(10)

    client.deliver(*frames[:4], *frames[5:])

    assert client.failures == {"lost": 1}
    assert client.group.n_delivered == 9


def test_what_never_comes_at_the_end_is_lost_too(client):
    """There is no later message that would show the gap."""
    frames = client.publish(10)

    client.deliver(*frames[:7])

    assert client.failures == {"lost": 3}


def test_the_newest_message_once_more_is_doubled(client):
    """Also in the middle of a read."""
    frames = client.publish(6)

    client.deliver(frames[0], frames[1], frames[1], b"".join([*frames[2:5], frames[4], frames[5]]))

    assert client.failures == {"doubled": 2}


def test_two_messages_swapped_are_reordered_and_not_lost(client):
    """The late one arrives after all."""
    frames = client.publish(6)

    client.deliver(*frames[:2], frames[3], frames[2], *frames[4:])

    assert client.failures == {"reordered": 1}


def test_an_old_value_after_a_fresh_one_is_stale(client):
    """It had been seen before; nobody should see it again."""
    frames = client.publish(6)

    client.deliver(*frames, frames[1])

    assert client.failures == {"stale": 1}


def test_a_changed_byte_is_corruption(client):
    """Even one in the padding, which no sequence number would show."""
    frames = client.publish(4)
    wrong = frames[2].replace(b"xx", b"xy", 1)

    client.deliver(frames[0], frames[1], wrong, frames[3])

    assert client.failures == {"corrupted": 1}


def test_a_message_of_another_step_is_foreign(client):
    """Something was still on its way when the step began, or came from another channel."""
    frames = client.publish(2)

    client.deliver(frames[0], frame(payload_of(9, 0, 0, SIZE)), frame(payload_of(1, 7, 0, SIZE)))
    client.deliver(frames[1])

    assert client.failures == {"foreign": 2}


def test_a_ping_is_answered_and_does_not_disturb_the_count(client):
    """RFC 6455 5.5.2: the answer carries the same data."""
    frames = client.publish(3)

    client.deliver(frames[0], b"".join([frames[1], server_frame(b"are you there", 0x9)]), frames[2])

    pong = client.server.recv(100)
    assert pong == client_frame(b"are you there", 0xA)
    assert client.failures == {}


def test_a_ping_of_the_protocol_is_answered_as_the_dialect_says(wire):
    """Centrifugo closes a client that leaves its empty object unanswered for eight seconds."""
    server, sock = wire
    subscriber = JoinedSubscriber(sock, Group("all"), [Stream("c", 0)])
    subscriber.answer = CentrifugoDialect(Endpoint("centrifugo", 1)).answer

    server.sendall(server_frame(b"{}\n"))
    subscriber.on_readable()

    assert server.recv(100) == client_frame(b"{}")
    assert subscriber.group.ledger.n_failures == 0


def test_it_returns_to_comparison_after_a_failure(client):
    """One lost message must not make the generator slow for the rest of a run."""
    frames = client.publish(50)

    client.deliver(*frames[:10], *frames[11:])

    assert client.failures == {"lost": 1}
    assert client.group.n_parsed < 5


def test_a_new_step_forgets_the_old_one(client):
    """Its stream begins at the first message again, with another size."""
    client.deliver(*client.publish(3))
    client.streams[0].begin(2, 200)
    client.group.begin()
    client.subscriber.begin()

    client.deliver(*client.publish(5))

    assert client.failures == {}
    assert client.group.n_delivered == 5


def test_who_was_away_may_miss_messages_but_not_see_old_ones(client):
    """Leaving and coming back: a jump ahead is fine once, a step back is stale."""
    frames = client.publish(10)
    client.deliver(*frames[:3])
    client.subscriber.leave()
    client.deliver(frames[3])
    client.subscriber.come_back()

    client.deliver(*frames[6:10])

    assert client.subscriber.n_holes == 0
    client.deliver(frames[4])
    assert client.group.ledger.stale == 1


def test_a_closed_connection_is_reported(client):
    """Whoever holds the subscriber is told, once."""
    closed = []
    client.subscriber.on_closed = closed.append
    client.server.close()

    client.subscriber.on_readable()

    assert closed == [client.subscriber]


def test_several_publishers_may_be_interleaved_in_any_order_that_is_the_same_for_all(wire):
    """The server chooses; the first delivery of a message gives it its place."""
    client = Client(wire, is_ordered=False)
    first = client.publish(3, line=0)
    second = client.publish(3, line=1)

    client.deliver(second[0], first[0], second[1], first[1], first[2], second[2])

    assert client.failures == {}
    assert client.group.n_delivered == 6


def test_of_each_publisher_the_order_must_be_kept(wire):
    """Its later message before its earlier one is reordering, whoever else publishes."""
    client = Client(wire, is_ordered=False)
    first = client.publish(3, line=0)
    second = client.publish(1, line=1)

    client.deliver(first[0], second[0], first[2], first[1])

    assert client.failures == {"reordered": 1}


def test_a_second_subscriber_is_held_to_the_order_of_the_first(wire):
    """Two subscribers that see two orders: one of them was served wrongly."""
    client = Client(wire, is_ordered=False)
    first, second = client.publish(2, line=0), client.publish(2, line=1)
    client.deliver(first[0], second[0], first[1], second[1])
    client.subscriber.begin()

    client.deliver(second[0], first[0], first[1], second[1])

    assert client.group.ledger.reordered == 1


def test_several_channels_on_one_connection_are_checked_each_for_itself(wire):
    """Their order among each other is nobody's promise."""
    client = Client(wire, n_channels=2)
    one, two = client.publish(3, channel=0), client.publish(3, channel=1)

    client.deliver(two[0], one[0], one[1], two[2], one[2])

    assert client.failures == {"lost": 1}
    assert client.group.n_delivered == 5


@pytest.mark.parametrize("cut", [1, 5, MARK_SIZE, 100])
def test_messages_that_are_joined_and_split_by_frames_are_found(wire, cut):
    """A server may pack the stream into frames as it likes."""
    server, sock = wire
    stream = Stream("c", 0)
    stream.begin(1, SIZE)
    group = Group("all")
    group.streams = [stream]
    subscriber = JoinedSubscriber(sock, group, [stream])
    inner = b"".join(b"MSG %s\r\n" % stream.append(0) for _ in range(10))

    for at in range(0, len(inner), cut):
        server.sendall(server_frame(inner[at : at + cut]))
        subscriber.on_readable()

    assert group.n_delivered == 10
    assert subscriber.n_missing == 0
    assert group.ledger.n_failures == 0


@pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
def test_frames_of_every_length_are_taken_apart(size):
    """RFC 6455 5.2: lengths of 7, 16 and 64 bits; an incomplete frame waits."""
    data = server_frame(b"a" * size) + server_frame(b"b") + b"\x81"

    frames, consumed = split_frames(data)

    assert [end - start for _, start, end in frames] == [size, 1]
    assert consumed == len(data) - 1


def test_all_tls_records_that_have_come_are_read_at_once(wire):
    """The selector tells once of what the kernel has, and never of what OpenSSL holds."""
    with temporary_certificate() as certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.cert, certificate.key)
    server, sock = wire
    sock.setblocking(True)
    client = Client((None, sock))
    with ThreadPoolExecutor(1) as other:
        shaken = other.submit(context.wrap_socket, server, server_side=True)
        secured = client_context().wrap_socket(sock)
        server = shaken.result(20)
    secured.setblocking(False)
    reader = Subscriber(secured, client.group, client.streams, has_constant_frames=True)

    for piece in client.publish(50):
        server.sendall(piece)
    reader.on_readable()

    assert (client.group.n_delivered, reader.n_missing) == (50, 0)
    server.close()
    secured.close()
