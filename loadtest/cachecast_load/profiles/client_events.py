"""client-events: subscribers talk to each other through the target, without the HTTP API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from cachecast_load.crowd.client import OPEN
from cachecast_load.crowd.profile import CLEAN, Defaults, Profile
from cachecast_load.crowd.schedule import Schedule
from cachecast_load.measures.ledger import Membership
from cachecast_load.net.reactor import now_us
from cachecast_load.plan import orders
from cachecast_load.plan.features import Feature
from cachecast_load.pusher import protocol as pusher
from cachecast_load.pusher.stamp import MAX_SEQ, Stamp, make_payload

if TYPE_CHECKING:
    from cachecast_load.crowd.block import Block
    from cachecast_load.crowd.client import Client
    from cachecast_load.plan.model import Plan
    from cachecast_load.plan.orders import Order


class ClientEvents(Profile):
    """One member of each private channel sends `client-` events, all others must get them.

    Pusher allows 10 a second for each connection; the default rate stays well below it. What
    comes back to its sender is counted as echoed.
    """

    name = "client-events"
    summary = "events from client to client: completeness, order, no echo"
    prefix = "private-"
    defaults: ClassVar[Defaults] = {"load": {"subscribers": 500, "channels": 50, "rate": 100.0}}
    unused: ClassVar[Mapping[str, str]] = {
        "channels_per_subscriber": "each subscriber has one channel",
        "distribution": "each channel has one sender",
    }
    slos = (*CLEAN, "client_events.echoed == 0", "client_events.refused == 0")

    @classmethod
    @override
    def features(cls, plan: Plan) -> dict[str, set[Feature]]:
        """Besides what a private channel has, events from client to client."""
        channels = super().features(plan)
        return {kind: found | {Feature.CLIENT_EVENTS} for kind, found in channels.items()}

    @override
    def published(self) -> list[int]:
        """Nothing goes through the HTTP API."""
        return []

    def is_sender(self, subscriber: int) -> bool:
        """The first subscriber of each channel sends."""
        return subscriber < self.channel_count()

    @override
    def subscriptions(self, subscriber: int) -> list[int]:
        """One channel each, so that every channel has one sender and equally many listeners."""
        return [self.base + subscriber % self.channel_count()]

    @override
    def subscribed(self, client: Client, channel: int, data: object) -> None:
        """Mark a sender's membership: it is owed nothing."""
        del data
        if self.is_sender(client.number):
            member: Membership = client.memberships[channel]
            member.subscriber = -1 - client.number

    @override
    def refused(self, client: Client, code: object, text: str) -> None:
        """Count refused events (rate, size, feature switched off)."""
        del code, text
        if self.is_sender(client.number) and client.memberships:
            client.tally.counts["client_events_refused"] += 1

    @override
    def ordered(self, block: Block, order: Order) -> None:
        """Send at this block's share of the rate: its senders over all senders."""
        state = self._state(block)
        if order.phase != orders.MEASURE:
            state.schedule.stop()
            return
        senders = [c for c in self.clients(block) if self.is_sender(c.number)]
        state.senders = senders
        rate = order.rate * len(senders) / self.channel_count()
        begin_us = max(now_us(), self.session.to_local(order.measure_us))
        state.schedule.set_rate(rate, begin_us, (block.index + 0.5) * block.share)

    def _state(self, block: Block) -> _Sending:
        state = self.__dict__.get("_sending")
        if state is None:
            state = self.__dict__["_sending"] = _Sending(self, block)
        return state


class _Sending:
    """The senders of one block, taken in turn."""

    def __init__(self, profile: ClientEvents, block: Block) -> None:
        self.profile = profile
        self.block = block
        self.senders: list[Client] = []
        self.schedule = Schedule(block.reactor, self._send)
        self._turn = 0
        self._seqs: dict[int, int] = {}

    def _send(self, intended_us: int) -> None:
        session, recorder = self.block.session, self.block.recorder
        client = self.senders[self._turn % len(self.senders)]
        self._turn += 1
        recorder.counts["publish_scheduled"] += 1
        recorder.histograms["publish_late"].record(now_us() - intended_us)
        channel = self.profile.subscriptions(client.number)[0]
        if client.state != OPEN or channel not in client.memberships:
            recorder.counts["publish_failed"] += 1
            recorder.error("client event: the sender is not subscribed", str(client.number))
            return
        seq = self._seqs.get(channel, 0)
        self._seqs[channel] = (seq + 1) & MAX_SEQ
        offset = session.offset_us
        sent_us = now_us() + offset
        # One connection keeps its order, so everything before has been answered for.
        stamp = Stamp(channel, seq, seq - 1, intended_us + offset, sent_us)
        payload = make_payload(session.mark, stamp, session.plan.load.payload_bytes)
        name = f"client-{session.plan.event_name}"
        channel_name = self.profile.channel_name(channel)
        client.send(pusher.client_event_message(channel_name, name, payload.decode()))
        via = len(session.target.apis) + client.socket
        recorder.publishes.append((channel, seq, sent_us, sent_us, via))
        recorder.counts["publish_ok"] += 1
