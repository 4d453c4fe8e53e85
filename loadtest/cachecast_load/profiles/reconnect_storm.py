"""reconnect-storm: a part of the connections vanishes at one instant, and all of it comes back."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from cachecast_load.crowd.client import OPEN
from cachecast_load.crowd.profile import CLEAN, Defaults, Profile

if TYPE_CHECKING:
    from cachecast_load.crowd.block import Block
    from cachecast_load.crowd.client import Client

_AT_ONCE = 8


class ReconnectStorm(Profile):
    """Drops `drop_share` of the connections by RST, all processes at the same moment.

    The dropped reconnect at once (a thundering herd), or with `backoff = "jitter"` spread over
    `backoff_max_s` as well-behaved SDKs do. `recover` is measured from the drop until a client's
    subscriptions are confirmed again; the others' delivery latency shows what the storm did to
    them.
    """

    name = "reconnect-storm"
    summary = "a share of the connections drops at once: time to recover, effect on the others"
    defaults: ClassVar[Defaults] = {
        "load": {"subscribers": 500, "channels": 50, "rate": 50.0, "duration_s": 20.0},
        "behaviour": {"drop_share": 0.2, "drop_at": 0.4, "drops": 1},
    }
    slos = (*CLEAN, "recover.unrecovered == 0", "recover.count > 0")

    @override
    def started(self, block: Block) -> None:
        """Plan the drops: the first at `drop_at`, the others evenly after it."""
        behaviour, duration_s = self.plan.behaviour, self.plan.measured_s
        first_s = behaviour.drop_at * duration_s
        gap_s = (duration_s - first_s) / max(behaviour.drops, 1)
        for number in range(behaviour.drops):
            block.at_measure(first_s + number * gap_s, self._drop, block, number)

    def _drop(self, block: Block, number: int) -> None:
        chosen = [c for c in self.clients(block) if self._is_chosen(number, c.number)]
        self._drop_some(block, chosen)

    def _is_chosen(self, drop: int, subscriber: int) -> bool:
        rng = random.Random(f"{self.plan.seed}/drop/{drop}/{subscriber}")
        return rng.random() < self.plan.behaviour.drop_share

    def _drop_some(self, block: Block, clients: list[Client]) -> None:
        """Drop a few and go on in the next turn: a herd must not hold up our own publishes."""
        for client in clients[:_AT_ONCE]:
            if client.state != OPEN:
                continue
            client.drop()
            if self.plan.behaviour.backoff == "jitter":
                delay_s = block.rng.uniform(0.0, self.plan.behaviour.backoff_max_s)
                block.reactor.call_later(delay_s, self.reconnect, client)
            else:
                client.connect()
        if len(clients) > _AT_ONCE:
            block.reactor.call_later(0, self._drop_some, block, clients[_AT_ONCE:])

    @override
    def finishing(self, block: Block) -> None:
        """Count who did not come back."""
        for client in self.clients(block):
            if client.dropped_us:
                client.tally.counts["unrecovered"] += 1
                client.tally.error("recover: not back at the end", f"subscriber {client.number}")
