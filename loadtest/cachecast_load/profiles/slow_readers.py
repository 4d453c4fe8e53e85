"""slow-readers: some subscribers read slowly or not at all. What do the healthy ones feel?"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from cachecast_load.crowd.client import OPEN
from cachecast_load.crowd.profile import CLEAN, Defaults, Profile

if TYPE_CHECKING:
    from cachecast_load.crowd.block import Block
    from cachecast_load.crowd.client import Client

_RECEIVE_BUFFER = 4096
_SIP_S = 0.1


class SlowReaders(Profile):
    """`slow_share` of the subscribers stop reading (or sip `slow_bytes_per_s`) once subscribed.

    Only the healthy ones are owed everything and enter the latencies. A slow one may be closed
    (then `slow.closed` counts it) or may miss events (`slow.missed`); on a cache channel it must
    end with the newest value once it reads again, if its connection lived.
    """

    name = "slow-readers"
    summary = "some subscribers stop reading: effect on the healthy ones, closes, conflation"
    prefix = "cache-"
    defaults: ClassVar[Defaults] = {
        "load": {"subscribers": 200, "channels": 1, "rate": 200.0, "payload_bytes": 4096},
        "behaviour": {"slow_share": 0.1, "slow_bytes_per_s": 0},
    }
    slos = (*CLEAN, "slow.last_value_missing == 0")

    @override
    def is_slow(self, subscriber: int) -> bool:
        """Spread the slow ones evenly over the numbers."""
        share = self.plan.behaviour.slow_share
        return int((subscriber + 1) * share) > int(subscriber * share)

    @override
    def welcomed(self, client: Client) -> None:
        """Subscribe; who is slow is marked before its first event."""
        client.is_slow = self.is_slow(client.number)
        super().welcomed(client)

    @override
    def added(self, client: Client) -> None:
        """A slow reader gets a small receive window, so that its backlog is the target's."""
        if self.is_slow(client.number):
            client.connect(receive_buffer=_RECEIVE_BUFFER)
        else:
            super().added(client)

    @override
    def started(self, block: Block) -> None:
        """The slow ones stop reading."""
        for client in self.clients(block):
            if client.is_slow and client.connection is not None:
                client.connection.hold_reading()
                if self.plan.behaviour.slow_bytes_per_s:
                    self._sip(block, client)

    def _sip(self, block: Block, client: Client) -> None:
        if block.is_finished or client.connection is None or client.memory == "resumed":
            return
        client.connection.read_some(max(1, int(self.plan.behaviour.slow_bytes_per_s * _SIP_S)))
        block.reactor.call_later(_SIP_S, self._sip, block, client)

    @override
    def draining(self, block: Block) -> None:
        """Everybody reads again: what is left must come, and the newest value with it."""
        for client in self.clients(block):
            if client.is_slow and client.connection is not None:
                client.memory = "resumed"
                client.connection.resume_reading()

    @override
    def closed(self, client: Client, code: int, *, was_open: bool) -> None:
        """A slow reader that was closed stays away; the healthy come back."""
        if not client.is_slow:
            super().closed(client, code, was_open=was_open)

    @override
    def finishing(self, block: Block) -> None:
        """Compare the last value of each living slow reader with what the healthy ones saw."""
        newest: dict[int, int] = {}
        clients = self.clients(block)
        for client in clients:
            for channel, member in client.memberships.items():
                if not client.is_slow:
                    newest[channel] = max(newest.get(channel, -1), member.newest)
        for client in clients:
            for channel, member in client.memberships.items():
                is_behind = client.state == OPEN and member.newest < newest.get(channel, -1)
                if client.is_slow and self.is_cache(channel) and is_behind:
                    client.tally.counts["slow_last_value_missing"] += 1
                    text = f"{member.newest} of {newest[channel]}"
                    client.tally.error("slow reader: newest value missing", text)
