"""churn: people come, go and change rooms all the time while events flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from cachecast_load.crowd.client import OPEN
from cachecast_load.crowd.profile import Defaults, Profile

if TYPE_CHECKING:
    from cachecast_load.crowd.block import Block
    from cachecast_load.crowd.client import Client


class Churn(Profile):
    """On a fixed schedule a random subscriber reconnects, or leaves its channel for another.

    What was under way while someone joined or left is neither owed nor forbidden; everything
    between is.
    """

    name = "churn"
    summary = "reconnects and channel changes at a steady rate while publishing"
    defaults: ClassVar[Defaults] = {
        "load": {"subscribers": 500, "channels": 20, "rate": 100.0},
        "behaviour": {"churn_per_s": 50.0, "disconnect_share": 0.5},
    }

    @override
    def started(self, block: Block) -> None:
        """Begin to churn."""
        self._churning = block.every(
            self.plan.behaviour.churn_per_s, lambda _intended_us: self._disturb(block)
        )

    @override
    def draining(self, block: Block) -> None:
        """Let everybody settle."""
        del block
        self._churning.stop()

    def _disturb(self, block: Block) -> None:
        settled = [client for client in self.clients(block) if self.is_ready(client)]
        if not settled:
            return
        client = block.rng.choice(settled)
        if block.rng.random() < self.plan.behaviour.disconnect_share:
            client.leave()
            client.connect()
        else:
            self._change_channel(block, client)

    def _change_channel(self, block: Block, client: Client) -> None:
        left = block.rng.choice(sorted(client.memberships))
        others = [c for c in self.published() if c not in client.memberships]
        if client.state == OPEN and others:
            client.unsubscribe(left)
            self.authorize(client, block.rng.choice(others), self.channel_data(client))
