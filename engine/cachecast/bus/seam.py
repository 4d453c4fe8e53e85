"""The seam to other nodes: what a node asks of all of them, and what they tell it.

Above it is everything that is a node's own business: connections, fan-out, sessions. Below it is
how nodes agree: :class:`~cachecast.bus.local.LocalBus` for a node that is alone, where all is done
at once, and the engine's bus for a cluster. One conformance suite tests both.

Whatever the nodes must agree on is answered by a :class:`Receipt`. A ``BusError`` in it says that
the other nodes cannot be reached: HTTP answers 503, and a client is closed with 4100, which brings
it back. A bus settles every receipt within its own limits, so nobody above needs a timer.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Protocol

import msgspec

from cachecast.protocol.channel_name import ChannelName
from cachecast.protocol.messages import Publication

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import trio

    from cachecast.bus.receipt import Receipt
    from cachecast.bus.succession import Follower, Giver
    from cachecast.channels.presence import PresenceRoster
    from cachecast.events import AppEvent
    from cachecast.metrics import EngineStatistics
    from cachecast.protocol.session import Member

__all__ = ["AppTerms", "Bus", "Entry", "Envelope", "Exit", "Node"]


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """A publication on its way to the nodes, out and in.

    Attributes:
        app_id: id of the app.
        name: name of the channel.
        publication: the event.
        is_server_side: whether it came from the HTTP API or the embedding API; only those are
            cached.
        published_at: time when it was published, in the broker's seconds, given by a bus that
            brings it from elsewhere; None: now.
        deadline: time from which a cached value must not be served, in the broker's seconds, given
            by such a bus; inf: by this node's own lifetimes. What counts is the earlier of both.
    """

    app_id: str
    name: ChannelName
    publication: Publication
    is_server_side: bool
    published_at: float | None = None
    deadline: float = inf


class Entry(msgspec.Struct, frozen=True, gc=False):
    """What entering a channel changed in the cluster.

    Attributes:
        is_occupied: whether the channel became occupied by the subscription.
        is_member_new: whether the subscription's user became a member by it.
        roster: members of the channel on all nodes, which the bus keeps up to date; None if it is
            no presence channel.
    """

    is_occupied: bool
    is_member_new: bool
    roster: PresenceRoster | None = None


class Exit(msgspec.Struct, frozen=True, gc=False):
    """What leaving a channel changed in the cluster; the reverse of :class:`Entry`."""

    is_vacated: bool
    is_member_gone: bool


class AppTerms(msgspec.Struct, frozen=True):
    """What the bus has to know of an app.

    Attributes:
        cache_ttl_s: seconds for which its values live.
        max_members: number of members of a presence channel at most.
        max_entries, max_bytes: number of the app's values, and of their bytes, at most, in the
            whole cluster.
        has_webhooks: whether this node can bring its events to somebody.
    """

    cache_ttl_s: float
    max_members: int
    max_entries: int = 1_000_000
    max_bytes: int = 256 * 1024 * 1024
    has_webhooks: bool = False


class Node(Protocol):
    """What a bus tells its node. Called in the bus's own task; nothing here yields or raises."""

    def deliver(self, envelope: Envelope) -> None:
        """A publication: cache it and fix its recipients, in one step."""

    def forget(self, app_id: str, channel: str) -> None:
        """The value of a channel is not kept up to date here any more: drop it."""

    def member_changed(self, app_id: str, channel: str, change: str, member: Member) -> None:
        """``member_added`` or ``member_removed`` of the cluster; the roster has it already."""

    def user_changed(self, app_id: str, user_id: str, change: str) -> None:
        """A watched user went ``online`` or ``offline`` in the whole cluster."""

    def count_changed(self, app_id: str, channel: str, count: int) -> None:
        """So many connections are subscribed to a channel in the whole cluster."""

    def crowd_eased(self, app_id: str, channel: str) -> None:
        """No other node is crowded there any more: ``Bus.is_crowded`` has turned False."""

    def end_user(self, app_id: str, user_id: str) -> None:
        """Disconnect all connections of this node that are signed in as a user."""

    def take_hook(self, app_id: str, event: AppEvent, receipt: Receipt[None]) -> None:
        """Bring an event to the app's webhooks, for this node is the app's courier.

        The receipt is fulfilled when the event has been delivered or given up everywhere.
        """

    def went_up(self) -> None:
        """The cluster can be reached; whatever is attached here is up to date."""

    def went_down(self, reason: str) -> None:
        """The cluster cannot be reached: nothing that is kept here may be given to anybody new."""


class Bus(Protocol):
    """How nodes agree.

    Attributes:
        is_shared: whether there may be other nodes. Where there are none the node's own hub, cache
            and rosters are the truth, and methods marked (shared) are never called.
    """

    is_shared: bool

    def statistics(self) -> tuple[EngineStatistics, ...]:
        """Numbers of each primary; none for a node that is alone."""

    async def start(self, node: Node, nursery: trio.Nursery) -> None:
        """Join the cluster, and from now on tell ``node`` what it must know.

        Its tasks live in ``nursery``, the broker's.

        Raises:
            BusError: the others cannot be reached.
            ConfigError: they must not be joined; says why.
        """

    async def aclose(self) -> None:
        """Leave the cluster: what this node held is announced gone.

        Nothing is told afterwards. Receipts that are open fail; so does what is asked from then on,
        and what is undone has no effect.
        """

    def serve_apps(self, terms: Mapping[str, AppTerms]) -> None:
        """The node serves these apps from now on, on these terms. Never yields.

        Args:
            terms: app id -> what the bus has to know of the app. What one that is missing has under
                way goes on, on its last terms.
        """

    # --- another process in the place of this one

    def giver(self) -> Giver | None:
        """What hands over what this node has in the cluster; None for a node that is alone."""

    def follower(self) -> Follower | None:
        """What takes over from the process that this one follows; None if it follows none."""

    # --- publications

    def publish(self, envelopes: Sequence[Envelope]) -> Receipt[None]:
        """Send events to all nodes, this one included, in order for each channel. Never yields.

        Done when all who subscribe from now on, anywhere, will find what was published. All or
        nothing, but for channels of several primaries.

        Faults:
            BusError: nothing was published, or, if it ``was_maybe_done``, it may have been.
        """

    def is_crowded(self, app_id: str, channel: str) -> bool:
        """Whether another node has more undelivered there than it may, so publishers wait. O(1)."""

    def note_crowded(self, app_id: str, channel: str, *, is_crowded: bool) -> None:
        """Tell the others that this node has, or has no more (shared). Never yields."""

    # --- channels

    def attach(self, app_id: str, name: ChannelName) -> Receipt[None]:
        """Make sure that a channel's publications arrive here and its value is up to date.

        When the receipt is fulfilled, in that same step, the cache of this node is the truth. Each
        one that is fulfilled must be followed by one ``detach``.
        """

    def detach(self, app_id: str, name: ChannelName) -> None:
        """Undo one ``attach``. Never yields."""

    def enter(self, app_id: str, name: ChannelName, member: Member | None) -> Receipt[Entry]:
        """Attach, and count a connection as a subscriber of the channel (shared).

        Args:
            app_id: id of the channel's app.
            name: name of the channel; one that ``is_hidden`` is attached and not counted.
            member: user whom the connection brings into a presence channel.

        Returns:
            Receipt of what it changed. Each one that is fulfilled must be followed by one
            ``leave``.

        Faults:
            SubscriptionError: the presence channel has its full number of members.
            BusError: see module.
        """

    def leave(self, app_id: str, name: ChannelName, member: Member | None) -> Receipt[Exit]:
        """Undo one ``enter`` (shared). Never fails; done when all nodes have it."""

    # --- users

    def sign_in(self, app_id: str, user_id: str) -> Receipt[None]:
        """Count a connection as one of a user's (shared).

        Each one that is fulfilled must be followed by one ``sign_out``.
        """

    def sign_out(self, app_id: str, user_id: str) -> None:
        """Undo one ``sign_in`` (shared). Never yields."""

    def watch(self, app_id: str, user_ids: Sequence[str]) -> Receipt[frozenset[str]]:
        """Be told of users; gives those of them who are online in the cluster (shared).

        Each one that is fulfilled must be followed by one ``unwatch``.
        """

    def unwatch(self, app_id: str, user_ids: Sequence[str]) -> None:
        """Undo one ``watch`` (shared). Never yields."""

    def terminate(self, app_id: str, user_id: str) -> Receipt[int]:
        """Have all nodes disconnect a user; gives how many connections it had (shared)."""

    # --- questions

    def note_miss(self, app_id: str, channel: str) -> Receipt[bool]:
        """Say that a subscriber found a channel empty; True if that is to be reported (shared)."""

    def rearm_miss(self, app_id: str, channel: str, after_s: float) -> None:
        """A report was taken: so long from now the channel may have another (shared).

        Never yields.
        """

    def read(self, app_id: str, channel: str) -> Receipt[Envelope | None]:
        """The value of a cache channel (shared)."""

    def channels(self, app_id: str, prefix: str) -> Receipt[Mapping[str, int]]:
        """Occupied channels with their numbers of subscriptions, collected in steps (shared)."""

    def users(self, app_id: str, channel: str) -> Receipt[Sequence[str]]:
        """Ids of the members of a presence channel, collected in steps (shared)."""

    def members(self, app_id: str, channel: str) -> Receipt[Sequence[Member]]:
        """The members of a presence channel, collected in steps (shared).

        One whose record cannot be read is there without ``user_info``.
        """

    def counts(self, app_id: str, channels: Sequence[str]) -> Receipt[Sequence[tuple[int, int]]]:
        """For each channel the number of subscriptions, and of members (shared)."""

    def total(self, gauge: str, app_id: str, mine: int) -> int:
        """The sum over all nodes of a number; as old as their last beats. O(1).

        Args:
            gauge: name of the number, ``connections`` for example.
            app_id: id of the app.
            mine: number that this node counts.
        """

    def hook(self, app_id: str, event: AppEvent) -> None:
        """Keep an event for the app's courier that the cluster does not see itself (shared)."""
