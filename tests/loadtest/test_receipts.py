"""What many receive alike is entered together, and to the same effect as one by one."""

import json
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from cachecast_load.crowd.block import Block
from cachecast_load.crowd.client import OPEN, Client
from cachecast_load.measures.ledger import Membership
from cachecast_load.net.reactor import Reactor
from cachecast_load.plan.model import Load, Plan
from cachecast_load.plan.target import make_target
from cachecast_load.profiles import profile_class
from cachecast_load.pusher.stamp import Stamp, make_payload
from cachecast_load.run.station import open_session

CLIENTS, CHANNELS, SIZE = 4, 2, 60


def framed(message):
    text = json.dumps(message).encode()
    return (
        b"\x81"
        + (bytes([len(text)]) if len(text) < 126 else b"\x7e" + len(text).to_bytes(2))
        + text
    )


class Crowd:
    """Clients that are connected and subscribed as far as they know, without a socket."""

    def __init__(self, *, memoize, targets):
        urls = [f"ws://127.0.0.{number + 1}:9" for number in range(targets)]
        target = make_target(url=urls, app_id="1", key="k", secret="s")
        plan = Plan("fanout", load=Load(subscribers=CLIENTS, channels=CHANNELS, payload_bytes=SIZE))
        self.session = open_session(plan, target, 7)
        self.session.offset_us = 5_000
        profile = profile_class("fanout")(plan, self.session)
        self.reactor = Reactor()
        self.block = Block(self.session, profile, self.reactor, 0)
        self.block.memoize = memoize
        self.clients = [Client(number, self.block, profile) for number in range(CLIENTS)]
        for client in self.clients:
            client.state = OPEN
            client.wire._open = True
            client.socket = client.number % targets
            client.tally = self.session.recorder.sockets[client.socket]
        self.names = [profile.channel_name(channel) for channel in range(CHANNELS)]
        for number in range(CLIENTS):
            for channel in range(CHANNELS):
                self.join(number, channel, 0)

    def join(self, number, channel, now_us):
        client, name = self.clients[number], self.names[channel]
        if channel not in client.memberships:
            client.subscribe(channel)
            client.pending[name] = (channel, now_us)  # and not by the real clock
            event = {"event": "pusher_internal:subscription_succeeded", "channel": name}
            client.arrived(framed({**event, "data": "{}"}), now_us)

    def chunk(self, events):
        out = b""
        for channel, seq, behind in events:
            at_us = 1_000_000 + 777 * seq
            stamp = Stamp(channel, seq, seq - behind, at_us, at_us + 160)
            payload = make_payload(self.session.mark, stamp, SIZE).decode()
            out += framed({"event": "lt", "channel": self.names[channel], "data": payload})
        return out

    def do(self, steps):
        """Take every step and return all that is known in the end."""
        clock = count(1_000_000, 37_003)
        for step, number, events in steps:
            client = self.clients[number]
            if step == "leave":
                client._end_membership(events[0][0])
            elif step == "join":
                self.join(number, events[0][0], next(clock))
            elif step == "ask":
                self.session.receipts.settle()  # as `Client.subscribe` does
                client.asks[events[0][0]] = next(clock)
            elif step == "settle":
                self.session.receipts.settle()
            elif step == "in two":
                data = self.chunk(events)
                client.arrived(data[:20], next(clock))
                client.arrived(data[20:], next(clock))
            else:
                client.arrived(self.chunk(events), next(clock))
        self.session.receipts.settle()
        self.reactor.close()
        seen = [
            [member.to_wire() for _, member in sorted(client.memberships.items())]
            for client in self.clients
        ]
        taken = self.session.recorder.take()
        for membership in taken["memberships"]:
            membership[Membership.__slots__.index("until_us")] = 0  # by the real clock
        return seen, taken


events = st.lists(
    st.tuples(st.integers(0, CHANNELS - 1), st.integers(0, 6), st.integers(1, 3)),
    min_size=1,
    max_size=3,
)
kinds = st.sampled_from(["receive"] * 6 + ["leave", "join", "ask", "settle", "in two"])


@st.composite
def sweeps(draw):
    """Return steps: mostly one chunk after another, each at several clients in a row."""
    steps = []
    for chunk in draw(st.lists(events, max_size=6)):
        who = draw(st.lists(st.integers(0, CLIENTS - 1), min_size=1, max_size=8))
        steps += [(draw(kinds), number, chunk) for number in who]
    return steps


@settings(max_examples=200)
@given(sweeps(), st.integers(1, 2))
def test_who_receives_the_same_is_judged_as_if_each_was_read_alone(steps, targets):
    together = Crowd(memoize=True, targets=targets).do(steps)
    alone = Crowd(memoize=False, targets=targets).do(steps)
    assert together == alone


def test_a_row_is_held_and_entered_before_a_timer_can_see_it():
    crowd = Crowd(memoize=True, targets=1)
    member = crowd.clients[1].memberships[0]
    data = crowd.chunk([(0, 0, 1)])
    seen = []
    crowd.session.recorder.take()
    crowd.reactor.call_later(0, lambda: seen.append(member.received))
    crowd.clients[0].arrived(data, 1_000_000)
    crowd.clients[1].arrived(data, 1_000_050)
    assert member.received == 0
    crowd.reactor.turn(0)
    assert seen == [1]
    assert crowd.session.recorder.take()["counts"]["frames"] == 2
    crowd.reactor.close()


def test_nothing_is_held_where_everything_is_to_be_checked_strictly():
    crowd = Crowd(memoize=False, targets=1)
    data = crowd.chunk([(0, 0, 1)])
    for client in crowd.clients:
        client.arrived(data, 1_000_000)
        assert client.memberships[0].received == 1
    crowd.reactor.close()
