"""What is sent to servers, as far as it can be checked without one."""

from __future__ import annotations

import hashlib
import hmac
import json
from urllib.parse import parse_qsl, urlsplit

import msgpack
import pytest

from cachecast_bench.dialects import Endpoint, open_dialect
from cachecast_bench.dialects.base import (
    HandshakeError,
    HttpReplies,
    PublishError,
    client_frame,
    server_frame,
)
from cachecast_bench.dialects.websocket import publish_record, split_records
from cachecast_bench.peers import PEERS, choose_peers
from cachecast_bench.scenarios.slope import fit_line

PUSHER = Endpoint("pusher", 6001, options={"app_id": "4242", "key": "k", "secret": "s"})


def unmasked(frame: bytes) -> bytes:
    """The payload of a client frame of less than 64 KiB."""
    at = 2 if frame[1] & 0x7F < 126 else 4
    mask, payload = frame[at : at + 4], frame[at + 4 :]
    return bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def drive(handshake, *answers: bytes):
    """Play a server that gives these answers; return what was sent and what is left over."""
    sent = [next(handshake)]
    for answer in answers:
        try:
            sent.append(handshake.send(answer))
        except StopIteration as stop:
            return sent, stop.value
    raise AssertionError("the handshake wants more")


def test_client_frames_are_masked():
    """RFC 6455 5.3; a server may close the connection otherwise."""
    frame = client_frame(b"hello")

    assert frame[0] == 0x81
    assert frame[1] == 0x80 | 5
    assert unmasked(frame) == b"hello"
    assert frame[6:] != b"hello"


def test_who_joins_a_presence_channel_has_signed_data():
    """Checked with code that shares nothing with the one that signs."""
    established = json.dumps({"data": json.dumps({"socket_id": "1.2"})}).encode()

    frame = open_dialect(PUSHER.to_json()).authorized("presence-x", established, "me")

    data = json.loads(unmasked(frame))["data"]
    signed = f"1.2:presence-x:{data['channel_data']}".encode()
    assert json.loads(data["channel_data"]) == {"user_id": "me"}
    assert data["auth"] == "k:" + hmac.new(b"s", signed, "sha256").hexdigest()


def test_a_batch_may_go_to_several_channels():
    """Each event has its own."""
    request = open_dialect(PUSHER.to_json()).publish_events([("a", b"1"), ("b", b"2")])
    head, body = request.split(b"\r\n\r\n")

    assert head.startswith(b"POST /apps/4242/batch_events?")
    assert [(one["channel"], one["data"]) for one in json.loads(body)["batch"]] == [
        ("a", "1"),
        ("b", "2"),
    ]


def test_a_publish_is_signed_as_the_protocol_says():
    """Checked with code that shares nothing with the one that signs."""
    request = open_dialect(PUSHER.to_json()).publish("news", [b"value"])
    head, body = request.split(b"\r\n\r\n")
    target = urlsplit(head.split()[1].decode())
    query = dict(parse_qsl(target.query))
    signature = query.pop("auth_signature")
    text = "&".join(f"{name}={query[name]}" for name in sorted(query))

    assert query["body_md5"] == hashlib.md5(body).hexdigest()
    expected = hmac.new(b"s", f"POST\n{target.path}\n{text}".encode(), "sha256").hexdigest()
    assert signature == expected
    assert json.loads(body) == {"name": "e", "channel": "news", "data": "value"}


def test_several_payloads_are_one_batch():
    """In the order they are to be published."""
    request = open_dialect(PUSHER.to_json()).publish("news", [b"a", b"b"])
    head, body = request.split(b"\r\n\r\n")

    assert b"/batch_events?" in head
    assert [item["data"] for item in json.loads(body)["batch"]] == ["a", "b"]


def test_msgpack_is_declared_and_sent():
    """The opt-in encoding of publishes."""
    endpoint = PUSHER.to_json()
    endpoint["options"] = {**endpoint["options"], "encoding": "msgpack"}
    head, body = open_dialect(endpoint).publish("news", [b"a"]).split(b"\r\n\r\n", 1)

    assert b"Content-Type: application/msgpack" in head
    assert msgpack.unpackb(body)["data"] == "a"


def test_joining_waits_for_success_and_hands_over_what_follows():
    """What came behind the success frame is the first delivery already."""
    established = b'{"event":"pusher:connection_established","data":"{\\"socket_id\\":\\"1.2\\"}"}'
    succeeded = b'{"event":"pusher_internal:subscription_succeeded","channel":"news","data":"{}"}'
    delivery = server_frame(b"the first")
    handshake = open_dialect(PUSHER.to_json()).join(["news"])

    sent, left = drive(
        handshake,
        b"HTTP/1.1 101 Switching Protocols\r\n",
        b"\r\n" + server_frame(established),
        server_frame(succeeded)[:20],
        server_frame(succeeded)[20:] + delivery,
    )

    assert b"GET /app/k?" in sent[0]
    assert any(b"pusher:subscribe" in unmasked(frame) for frame in sent[1:] if frame)
    assert left == delivery


def test_a_private_channel_is_authorized_with_the_socket_id_it_was_given():
    """HMAC over `socket_id:channel`, as the protocol's worked example."""
    established = b'{"event":"pusher:connection_established","data":"{\\"socket_id\\":\\"1.2\\"}"}'
    handshake = open_dialect(PUSHER.to_json()).join(["private-cache-news"])
    next(handshake)
    handshake.send(b"HTTP/1.1 101 x\r\n\r\n")

    frame = handshake.send(server_frame(established))

    expected = hmac.new(b"s", b"1.2:private-cache-news", "sha256").hexdigest()
    assert expected.encode() in bytes(byte ^ frame[4:8][i % 4] for i, byte in enumerate(frame[8:]))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 503 Service Unavailable\r\n\r\n",
        b"HTTP/1.1 101 x\r\n\r\n" + server_frame(b"\x0f\xa1no", 0x8),
        b"HTTP/1.1 101 x\r\n\r\n" + server_frame(b'{"event":"pusher:error","data":{}}'),
    ],
)
def test_a_refused_client_says_why(answer):
    """A refusal of HTTP, a close frame, an error frame."""
    handshake = open_dialect(PUSHER.to_json()).join(["news"])
    next(handshake)

    with pytest.raises(HandshakeError):
        handshake.send(answer)


def test_answers_are_counted_however_they_are_cut():
    """Several in one piece, one in many, bodies that look like heads."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\r\n\r\n"
    data = answer * 5
    for size in (1, 3, len(answer), len(data)):
        count = HttpReplies()

        assert sum(count(data[at : at + size]) for at in range(0, len(data), size)) == 5


def test_an_answer_that_is_a_refusal_ends_the_run():
    """Publishes that are refused must not count as fast ones."""
    with pytest.raises(PublishError, match="413"):
        HttpReplies()(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")


def test_records_of_the_control_connection_survive_any_cut():
    """The raw loop and the libraries read them."""
    data = publish_record("a", b"one") + publish_record("bb", b"") + publish_record("a", b"3" * 999)
    records, pending = [], b""
    for at in range(0, len(data), 7):
        complete, pending = split_records(pending + data[at : at + 7])
        records += complete

    assert records == [("a", b"one"), ("bb", b""), ("a", b"3" * 999)]
    assert pending == b""


def test_peers_are_chosen_by_name():
    """An unknown one is an error, not an omission."""
    assert [peer.name for peer in choose_peers("ws, nchan")] == ["ws", "nchan"]
    assert choose_peers("all") == list(PEERS.values())
    assert choose_peers("") == []
    with pytest.raises(KeyError):
        choose_peers("ws,nonsense")


def test_a_line_is_fitted_through_points():
    """Cost of a sweep: a start and a slope."""
    assert fit_line([(100, 520.0), (1_000, 5_020.0), (10_000, 50_020.0)]) == pytest.approx((5, 20))
    with pytest.raises(ValueError, match="two different points"):
        fit_line([(1, 1.0), (1, 2.0)])
