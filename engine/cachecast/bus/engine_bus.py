"""The bus of a cluster: this node, and an engine of one or several primaries.

Each channel lies on one primary. Of each primary the node has a *seat*, with what is kept there:
values, publishes under way, who attends. This file only finds the seat and puts answers together.
"""

from __future__ import annotations

import random
import secrets
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
import trio

from cachecast.bus.calls import FORGET_MS, PROTOCOL, REMEMBER_MS, Facts
from cachecast.bus.ceilings import Ceilings
from cachecast.bus.dial import tls_context
from cachecast.bus.faults import DownError, LinkError, SetupError, UnfitError
from cachecast.bus.functions import MAX_NAMES
from cachecast.bus.gauges import Gauges
from cachecast.bus.half import Half
from cachecast.bus.link import Link
from cachecast.bus.memory import check_memory
from cachecast.bus.publishing import all_of
from cachecast.bus.questions import Questions
from cachecast.bus.receipt import Receipt, join
from cachecast.bus.replicas import ask_replica
from cachecast.bus.resp import Connection, Limits
from cachecast.bus.seam import AppTerms, Envelope
from cachecast.bus.shards import Keys, shard_of, spread
from cachecast.bus.succession import Follower, Giver
from cachecast.errors import ConfigError, UpgradeError
from cachecast.metrics import EngineStatistics

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping, Sequence

    from cachecast.bus.seal import Seal
    from cachecast.bus.seam import Entry, Exit, Node
    from cachecast.bus_config import BusConfig, Primary
    from cachecast.events import AppEvent
    from cachecast.handover.state import BusPlace
    from cachecast.protocol.channel_name import ChannelName
    from cachecast.protocol.session import Member

__all__ = ["AppTerms", "EngineBus"]

#: Seconds that joining the cluster may take, the grace of a new epoch included.
START_LIMIT_S: Final = 15.0

#: Seconds between two looks whether values still stay in memory, and those that one look may take.
MEMORY_CHECK_S: Final = 60.0
MEMORY_LIMIT_S: Final = 5.0

#: Seconds between two looks at what is due.
TICK_S: Final = 0.25

#: Seconds of an outage after which nobody new waits for its end.
OUTAGE_S: Final = 5.0

_log = structlog.get_logger("cachecast.bus")


class EngineBus:
    """See :class:`~cachecast.bus.seam.Bus`.

    Attributes:
        is_shared: whether there may be other nodes: True.
        halves: parts of the bus, one a primary, in their order.
        ceilings: what this node has published and is alive, held to the limits.
    """

    is_shared = True

    def __init__(
        self,
        config: BusConfig,
        terms: Mapping[str, AppTerms],
        *,
        now: Callable[[], float],
        seal: Seal | None = None,
        node_id: str | None = None,
        place: BusPlace | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        """Prepare it; nothing is opened before :meth:`start`.

        Args:
            config: addresses of the engine and how it is reached; checked.
            terms: app id -> what the bus has to know of the app.
            now: function that gives the broker's seconds, which go on while the machine sleeps.
            seal: the cluster's keys; None for none.
            node_id: id of this node; drawn if it is not given.
            place: place of a running process, which this one is to take: it follows until then.
            random: function that draws evenly in 0 <= x < 1, for the waits between attempts.

        Raises:
            ConfigError: a file that it names cannot be used.
        """
        self._config = config
        self._terms = dict(terms)
        self._lifetimes_ms = {id_: int(its.cache_ttl_s * 1000) for id_, its in terms.items()}
        self._now = now
        self._seal = seal
        self._random = random
        self._primaries = config.primaries()
        self._tls: ssl.SSLContext | None = None
        if any(endpoint.is_tls for primary in self._primaries for endpoint in primary.endpoints):
            self._tls = tls_context(config.tls_ca)
        self._spread = spread([primary.name for primary in self._primaries])
        self._place = place
        self._follower: Follower | None = None
        #: Whether the session is this process's: no other one's that it follows, or that has it.
        self._is_owner = place is None
        self.facts = Facts(
            node=node_id or (place.node if place else secrets.token_hex(6)),
            nonce=place.nonce if place else secrets.token_hex(8),
            primaries=tuple(primary.name for primary in self._primaries),
            seals=() if seal is None else seal.fingerprints,
            apps_with_webhooks=tuple(id_ for id_, its in terms.items() if its.has_webhooks),
        )
        self._gauges = Gauges()
        self.ceilings = Ceilings(
            {id_: (its.max_entries, its.max_bytes) for id_, its in terms.items()}, self.total, now
        )
        self._node: Node | None = None
        self._is_up = False
        self._life = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._is_over = trio.Event()
        self.halves: list[Half] = []
        self._half = lru_cache(maxsize=MAX_NAMES)(self._find_half)

    # --- living

    async def start(self, node: Node, nursery: trio.Nursery) -> None:
        """Join the cluster; see ``Bus``. Its tasks live in ``nursery`` until :meth:`aclose`.

        Raises:
            BusError: the engine cannot be reached.
            ConfigError: it must not be used, or other nodes refuse to work with this one.
        """
        self._node = node
        limits = Limits(
            silence_s=self._config.silence_s,
            max_pending=self._config.max_pending,
            max_unsent_bytes=self._config.max_unsent_bytes,
        )
        for number, primary in enumerate(self._primaries):
            half = Half(
                primary, node, self.facts, on_change=self.note_change,
                keys=Keys(self._config.prefix, primary.database), limits=limits, seal=self._seal,
                lease_s=self._config.lease_s, now=self._now, terms=self._terms,
                gauges=Gauges() if number else self._gauges, random=self._random,
            )  # fmt: skip
            half.seat.attach_links(
                self._link(primary, limits, half, None),
                self._link(primary, limits, half, half.hear),
            )
            half.seat.approve = partial(self._approve, half)
            half.publishing.on_kept = partial(self.ceilings.note, half.seat)
            self.halves.append(half)
        if self._place is not None:
            self._follow(self._place)
        seats = [half.seat for half in self.halves]
        self._questions = Questions(seats, self._spread, self.halves[0].contents)
        nursery.start_soon(self._run)
        fault: LinkError | None = None
        with trio.move_on_after(START_LIMIT_S):
            while fault is None and not self._is_up:
                await trio.sleep(0.02)
                fault = next((seat.first_fault() for seat in seats if seat.first_fault()), None)
        if self._is_up and self._place is not None:
            self._follower = Follower(self, self._place)
        if self._is_up:
            return
        await self.aclose()
        if isinstance(fault, SetupError):
            raise ConfigError("bus", str(fault)) from None
        names = " and ".join(primary.name for primary in self._primaries)
        why = fault or f"It was not let in within {START_LIMIT_S:g} s."
        raise DownError(
            f"This node cannot join the others by {names}. {why} `cachecast bus check` tells more."
        )

    def _follow(self, place: BusPlace) -> None:
        if place.protocol != PROTOCOL:
            raise UpgradeError(
                f"This version speaks version {PROTOCOL} of the protocol between nodes, the "
                f"running process version {place.protocol}. Stop all nodes of one version first."
            )
        if tuple(place.primaries) != self.facts.primaries:
            raise UpgradeError(
                f"bus.urls has changed ({', '.join(place.primaries)} before): a running node "
                "cannot move to another engine; restart instead."
            )
        for half, seat, topics in zip(self.halves, place.seats, place.topics, strict=True):
            half.seat.take_place(*seat)
            half.values.follow(topics.channels)
            half.attendance.watching.follow(topics.users)

    def giver(self) -> Giver | None:
        """See ``Bus``."""
        return Giver(self)

    def follower(self) -> Follower | None:
        """See ``Bus``."""
        return self._follower

    def take_over(self) -> None:
        """The process that this one follows has given way: be the node. Never yields."""
        self._is_owner = True
        assert self._nursery is not None
        for half in self.halves:
            self._nursery.start_soon(half.couriers.run)
            half.go_on()
            half.tick()

    def let_go(self) -> None:
        """Another process is the node now: say nothing more. Never yields.

        What was asked last is still sent, until :meth:`aclose`.
        """
        self._is_owner = False
        for half in self.halves:
            half.is_deaf = True
            half.couriers.stop()
            half.seat.let_go()

    def serve_apps(self, terms: Mapping[str, AppTerms]) -> None:
        """See ``Bus``."""
        for app_id, its in self._terms.items():
            if app_id not in terms and its.has_webhooks:
                self._terms[app_id] = msgspec.structs.replace(its, has_webhooks=False)
        # In place, for all parts look into it.
        self._terms.update(terms)
        for app_id, its in terms.items():
            self._lifetimes_ms[app_id] = int(its.cache_ttl_s * 1000)
            self.ceilings.limit(app_id, its.max_entries, its.max_bytes)
        with_webhooks = tuple(id_ for id_, its in self._terms.items() if its.has_webhooks)
        for half in self.halves:
            half.bring_webhooks(with_webhooks)

    def _link(
        self,
        primary: Primary,
        limits: Limits,
        half: Half,
        on_message: Callable[[bytes, bytes], None] | None,
    ) -> Link:
        return Link(
            primary,
            random=self._random,
            limits=limits,
            name=f"cachecast-{self.facts.node}",
            tls=self._tls,
            sentinel_username=self._config.sentinel_username,
            sentinel_password=self._config.sentinel_password,
            on_message=on_message,
            on_down=half.seat.drop,
        )

    async def _run(self) -> None:
        try:
            with self._life:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    for half in self.halves:
                        nursery.start_soon(half.seat.run)
                        if self._is_owner:
                            nursery.start_soon(half.couriers.run)
                    nursery.start_soon(self._run_checks)
                    while True:
                        await trio.sleep(TICK_S)
                        if self._is_owner:
                            for half in self.halves:
                                half.tick()
                            self.ceilings.tick()
        finally:
            self._is_over.set()

    async def aclose(self) -> None:
        """Leave the cluster; see ``Bus``."""
        try:
            for half in self.halves:
                half.is_deaf = True
                if half.seat.is_open and self._is_owner:
                    await half.couriers.finish()
                    await half.seat.retire()
        finally:
            self._life.cancel()
            for half in self.halves:
                half.end(DownError("This node has left the cluster."))
        await self._is_over.wait()

    def note_change(self) -> None:
        """A seat has opened or closed."""
        is_up = all(half.seat.is_open for half in self.halves)
        if is_up == self._is_up or self._life.cancel_called:
            return
        self._is_up = is_up
        if not is_up:
            for half in self.halves:
                half.go_on()  # behind it there would be a gap
        assert self._node is not None
        if is_up:
            self._node.went_up()
        else:
            closed = next(half.seat for half in self.halves if not half.seat.is_open)
            self._node.went_down(closed.why_down())

    # --- values stay in memory

    async def _approve(self, half: Half) -> None:
        await self._check(half)
        if half.leak is not None and not half.seat.epoch:
            raise UnfitError(" ".join(str(finding) for finding in half.findings[:3]))

    async def _run_checks(self) -> None:
        while True:
            await trio.sleep(MEMORY_CHECK_S)
            for half in self.halves:
                if half.seat.is_open:
                    try:
                        await self._check(half)
                    except LinkError:
                        continue  # its end is heard elsewhere

    async def _check(self, half: Half) -> None:
        connection = half.seat.commands
        if not isinstance(connection, Connection):
            return
        with trio.move_on_after(MEMORY_LIMIT_S) as scope:
            half.findings = await check_memory(
                connection, half.primary.name, partial(ask_replica, half.primary, self._tls)
            )
        if scope.cancelled_caught:
            raise DownError(f"The engine {half.primary.name} did not tell its settings in time.")
        for finding in half.findings:
            _log.warning("values may leave the engine's memory", finding=str(finding))

    # --- publications

    def _find_half(self, app_id: str, channel: str) -> Half:
        return self.halves[self._spread[shard_of(app_id, channel)]]

    def publish(self, envelopes: Sequence[Envelope]) -> Receipt[None]:
        """See ``Bus``. Never yields."""
        if len(envelopes) == 1:
            only = envelopes[0]
            return self._publish(self._half(only.app_id, only.name.text), envelopes)
        parts: dict[Half, list[Envelope]] = {}
        for envelope in envelopes:
            parts.setdefault(self._half(envelope.app_id, envelope.name.text), []).append(envelope)
        if len(parts) == 1:
            return self._publish(next(iter(parts)), envelopes)
        refused = [half for half in parts if not half.seat.is_open and half.seat.is_away]
        if refused:  # rather nothing than half of it
            return Receipt.failed(DownError(f"Nothing was published. {refused[0].seat.why_down()}"))
        return all_of([self._publish(half, part) for half, part in parts.items()])

    def _publish(self, half: Half, envelopes: Sequence[Envelope]) -> Receipt[None]:
        events = []
        to, contents, lifetimes_ms = half.seat.to, half.contents, self._lifetimes_ms
        for envelope in envelopes:
            app_id, name, publication = envelope.app_id, envelope.name, envelope.publication
            is_value = name.is_cache and envelope.is_server_side
            events.append(
                to.event(
                    app_id,
                    name.text,
                    contents.pack_publication(app_id, publication),
                    exclude=publication.exclude or "",
                    lifetime_ms=lifetimes_ms[app_id] if is_value else 0,
                )
            )
        if half.findings and half.leak is not None and any(event.value for event in events):
            return Receipt.failed(
                DownError(f"No value is published while it could leave memory. {half.leak}")
            )
        return half.publishing.publish(events)

    def is_crowded(self, app_id: str, channel: str) -> bool:
        """See ``Bus``."""
        return self._half(app_id, channel).attendance.crowds.is_crowded(app_id, channel)

    def note_crowded(self, app_id: str, channel: str, *, is_crowded: bool) -> None:
        """See ``Bus``."""
        self._half(app_id, channel).attendance.crowds.note(app_id, channel, is_crowded=is_crowded)

    # --- channels and users

    def attach(self, app_id: str, name: ChannelName) -> Receipt[None]:
        """See ``Bus``."""
        half = self._half(app_id, name.text)
        refusal = self._refusal(half)
        return refusal or half.values.attach(app_id, name)

    def detach(self, app_id: str, name: ChannelName) -> None:
        """See ``Bus``."""
        self._half(app_id, name.text).values.detach(app_id, name)

    def enter(self, app_id: str, name: ChannelName, member: Member | None) -> Receipt[Entry]:
        """See ``Bus``."""
        half = self._half(app_id, name.text)
        refusal = self._refusal(half)
        return refusal or half.attendance.rosters.enter(app_id, name, member)

    def leave(self, app_id: str, name: ChannelName, member: Member | None) -> Receipt[Exit]:
        """See ``Bus``."""
        return self._half(app_id, name.text).attendance.rosters.leave(app_id, name, member)

    def _refusal(self, half: Half) -> Receipt[Any] | None:
        """The failed receipt of those for whom waiting is in vain; None if they may wait."""
        seat = half.seat
        since = seat.down_since
        if since is not None and self._now() - since >= OUTAGE_S:
            return Receipt.failed(
                DownError(f"The other nodes cannot be reached. {seat.why_down()}")
            )
        return None

    def _of_user(self, app_id: str, user_id: str) -> Half:
        return self._half(app_id, f"#server-to-user-{user_id}")

    def sign_in(self, app_id: str, user_id: str) -> Receipt[None]:
        """See ``Bus``."""
        half = self._of_user(app_id, user_id)
        return self._refusal(half) or half.attendance.watching.sign_in(app_id, user_id)

    def sign_out(self, app_id: str, user_id: str) -> None:
        """See ``Bus``."""
        self._of_user(app_id, user_id).attendance.watching.sign_out(app_id, user_id)

    def watch(self, app_id: str, user_ids: Sequence[str]) -> Receipt[frozenset[str]]:
        """See ``Bus``."""
        parts = self._by_half(app_id, user_ids)
        found = [half.attendance.watching.watch(app_id, part) for half, part in parts.items()]
        watched = join(found, lambda: frozenset[str]().union(*(part.value for part in found)))

        def undo() -> None:
            if watched.fault is not None:
                for (half, part), receipt in zip(parts.items(), found, strict=True):
                    if receipt.fault is None:
                        half.attendance.watching.unwatch(app_id, part)

        watched.when_done(undo)
        return watched

    def unwatch(self, app_id: str, user_ids: Sequence[str]) -> None:
        """See ``Bus``."""
        for half, part in self._by_half(app_id, user_ids).items():
            half.attendance.watching.unwatch(app_id, part)

    def _by_half(self, app_id: str, user_ids: Sequence[str]) -> dict[Half, list[str]]:
        parts: dict[Half, list[str]] = {}
        for user_id in user_ids:
            parts.setdefault(self._of_user(app_id, user_id), []).append(user_id)
        return parts

    def terminate(self, app_id: str, user_id: str) -> Receipt[int]:
        """See ``Bus``."""
        return self._of_user(app_id, user_id).attendance.endings.terminate(app_id, user_id)

    # --- questions

    def statistics(self) -> tuple[EngineStatistics, ...]:
        """See ``Bus``."""
        return tuple(half.statistics() for half in self.halves)

    def note_miss(self, app_id: str, channel: str) -> Receipt[bool]:
        """See ``Bus``."""
        remember_ms = REMEMBER_MS if self._terms[app_id].has_webhooks else FORGET_MS
        return self._questions.note_miss(app_id, channel, remember_ms)

    def rearm_miss(self, app_id: str, channel: str, after_s: float) -> None:
        """See ``Bus``."""
        self._questions.rearm_miss(app_id, channel, after_s)

    def read(self, app_id: str, channel: str) -> Receipt[Envelope | None]:
        """See ``Bus``."""
        half, found = self._half(app_id, channel), self._questions.read(app_id, channel)
        return join([found], lambda: half.values.envelope_of(app_id, channel, found.value))

    def channels(self, app_id: str, prefix: str) -> Receipt[Mapping[str, int]]:
        """See ``Bus``."""
        return self._questions.channels(app_id, prefix)

    def users(self, app_id: str, channel: str) -> Receipt[Sequence[str]]:
        """See ``Bus``."""
        return self._questions.users(app_id, channel)

    def members(self, app_id: str, channel: str) -> Receipt[Sequence[Member]]:
        """See ``Bus``."""
        return self._questions.members(app_id, channel)

    def counts(self, app_id: str, channels: Sequence[str]) -> Receipt[Sequence[tuple[int, int]]]:
        """See ``Bus``."""
        return self._questions.counts(app_id, channels)

    def total(self, gauge: str, app_id: str, mine: int) -> int:
        """See ``Bus``."""
        return self._gauges.total(gauge, app_id, mine) if self._is_owner else mine

    def hook(self, app_id: str, event: AppEvent) -> None:
        """See ``Bus``."""
        self._questions.hook(app_id, event)
