"""The form of the state: what is said is read as it was said."""

from __future__ import annotations

from math import inf

import msgspec
import pytest

from cachecast.handover.state import (
    AppState,
    Callers,
    Channels,
    ChannelState,
    Clients,
    ClientState,
    Failed,
    Hello,
    HttpState,
    Message,
    NodeState,
    OutboxState,
    ParserState,
    Seats,
    SessionState,
    Taken,
    TellState,
    UserState,
    Values,
    WebhookState,
)

USER = UserState("u", "{}", b"{}", ("v",), True)
OUTBOX = OutboxState(
    b"h", True, inf, 1, [(1, b"f", inf, True), ("c", b"v", 5.0, False)], False, 3, None
)
CLIENT = ClientState(
    SessionState("1.1", 2.0, USER, (3.0, 4.0), None, [5.0]), [0], "json", True, 2,
    ParserState(b"r", None, 1), False, OUTBOX, 6.0, inf, True,
)  # fmt: skip
APP = AppState(
    "1", [ChannelState("presence-a", [0], [(7, None)], [("u", b"{}")], -inf, True)],
    [("u", [0])], (1.0, 2.0), [("cache-a", inf)], {"publishes": 1, "refusals": {"4009": 2}},
    WebhookState([TellState(b"{}", ["http://a"], 1.0, False)], [(b"{}", 1.0, [b"{}"])]),
)  # fmt: skip


@pytest.mark.parametrize(
    "message",
    [
        Hello([1], "1.0", 5.0, ["1"]),
        Seats([("clients", "127.0.0.1:6001")]),
        Values("1", [("cache-a", b"frame", 1.0, 2.0)]),
        Channels("1", ["presence-a"]),
        Clients("1", [CLIENT]),
        Callers([HttpState(None, 2, True)]),
        NodeState([APP], {"4009": 1}, [("1", 0)], 10.0),
        Taken(1),
        Failed("why"),
    ],
)
def test_every_message_is_read_as_it_was_said(message):
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=Message) == message
