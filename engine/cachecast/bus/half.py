"""All that a node has of one primary: the seat, and the parts that hear of its steps.

The engine's messages come in here, by the topic that they stand on, and are given to the part that
they are for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachecast.bus.attendance import Attendance
from cachecast.bus.calls import MAX_BYTES, MAX_KEYS, Facts
from cachecast.bus.clock import EngineClock
from cachecast.bus.contents import Contents
from cachecast.bus.couriers import Couriers
from cachecast.bus.faults import DownError, LinkError
from cachecast.bus.functions import Functions
from cachecast.bus.gauges import Gauges
from cachecast.bus.lateness import Lateness
from cachecast.bus.memory import Finding
from cachecast.bus.primary import PrimarySeat
from cachecast.bus.publishing import Publishing
from cachecast.bus.resp import Limits
from cachecast.bus.shards import Keys
from cachecast.bus.values import Values
from cachecast.metrics import EngineStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cachecast.bus.calls import Call
    from cachecast.bus.record import Record
    from cachecast.bus.seal import Seal
    from cachecast.bus.seam import AppTerms, Node
    from cachecast.bus_config import Primary

__all__ = ["Half"]


class Half:
    """One primary's seat with its parts. ``on_change`` is called when it has opened or closed."""

    def __init__(
        self,
        primary: Primary,
        node: Node,
        facts: Facts,
        *,
        on_change: Callable[[], None],
        keys: Keys,
        limits: Limits,
        seal: Seal | None,
        lease_s: float,
        now: Callable[[], float],
        terms: Mapping[str, AppTerms],
        gauges: Gauges,
        random: Callable[[], float],
    ) -> None:
        self.primary = primary
        self.seat = seat = PrimarySeat(
            primary.name,
            Functions(keys),
            facts,
            EngineClock(),
            now=now,
            lease_s=lease_s,
            gauges=gauges,
            limits=limits,
        )
        self.contents = contents = Contents(seal, seat.engine_ms)
        self.lateness = Lateness(now)
        self.values = Values(seat, node, contents=contents, lateness=self.lateness, now=now)
        self.publishing = Publishing(seat, now=now)
        self.attendance = Attendance(
            seat,
            node,
            contents=contents,
            clock=now,
            max_members=lambda app_id: terms[app_id].max_members,
            has_webhooks=lambda app_id: terms[app_id].has_webhooks,
            attach=self.values.attach,
            detach=self.values.detach,
        )
        self.couriers = Couriers(seat, node, contents, facts.apps_with_webhooks, random=random)
        self.gauges = gauges
        self.findings: list[Finding] = []
        self._is_sealed = seal is not None
        self.is_deaf = False
        self._mark = b""
        self._held: list[tuple[bytes, bytes]] | None = None
        seat.parts = (self.values, self.publishing, self.attendance)
        seat.restore = self._offers
        seat.on_change = on_change
        self._topics = len(keys.topics)
        self._channels = keys.topics + b"c:"
        self._users = keys.topics + b"u:"

    @property
    def leak(self) -> Finding | None:
        """Why no value may be given to the engine; None if it may have them."""
        return self.findings[0] if self.findings and not self._is_sealed else None

    def hear(self, topic: bytes, payload: bytes) -> None:
        """Take a message of the engine, in order with the answers on its link."""
        if self.is_deaf:
            if self._held is not None:
                self._held.append((topic, payload))
            return
        attachment = self.values.by_topic.get(topic)
        kind = payload[:1]
        if attachment is not None and kind in {b"V", b"E"}:
            self.values.hear(attachment, payload)
            return
        try:
            if topic.startswith(self._channels):
                app_id, _, name = topic[len(self._channels) :].decode().partition("/")
                self.attendance.hear("c", app_id, name, payload)
            elif topic.startswith(self._users):
                app_id, _, name = topic[len(self._users) :].decode().partition("/")
                self.attendance.hear("u", app_id, name, payload)
            elif kind != b"m":
                self.attendance.hear("control", "", "", payload)
            elif payload[1:] == self._mark:
                self._mark, self._held, self.is_deaf = b"", [], True
        except (LinkError, ValueError):  # somebody else writes to our topics
            self.values.n_broken += 1

    def stop_at(self, mark: str) -> None:
        """Hold back what comes behind a mark, until :meth:`go_on`. Never yields."""
        self._mark = mark.encode()

    @property
    def is_stopped(self) -> bool:
        """Whether the mark has come, and what comes is held back."""
        return self._held is not None

    def go_on(self) -> None:
        """Hear what was held back, and what comes. Harmless at any time. Never yields."""
        held, self._held, self._mark = self._held, None, b""
        if held is not None:
            self.is_deaf = False
            for topic, payload in held:
                self.hear(topic, payload)

    def bring_webhooks(self, app_ids: Sequence[str]) -> None:
        """Bring events to the webhooks of these apps from now on. Never yields."""
        self.couriers.serve(app_ids)
        self.seat.announce(app_ids)

    def tick(self) -> None:
        """Four times a second."""
        self.lateness.expire()
        for part in self.seat.parts:
            part.tick()

    def end(self, fault: DownError) -> None:
        """Tell whoever still waits that there is nothing to wait for."""
        self.seat.close(fault)
        self.publishing.end(fault)
        self.lateness.stop()
        self.attendance.stop()

    def statistics(self) -> EngineStatistics:
        """See ``EngineStatistics``."""
        seat, values, publishing = self.seat, self.values, self.publishing
        return EngineStatistics(
            name=seat.name,
            is_up=seat.is_open,
            epoch=seat.epoch,
            nodes=seat.n_sessions,
            attached_channels=len(values.by_topic),
            unanswered_publishes=publishing.n_unanswered,
            latency_s=seat.latency_s,
            findings=len(self.findings),
            downs=seat.n_downs,
            epochs=seat.n_epochs,
            barriers=values.n_barriers,
            gaps=values.n_gaps,
            resyncs=values.n_resyncs,
            restored=seat.n_restored,
            refused_publishes=publishing.n_refused,
            repeated_publishes=publishing.n_repeated,
            late_answers=self.lateness.n_late + self.attendance.lateness.n_late,
            evicted_values=seat.n_evicted,
            overflows=seat.n_overflows,
            broken_records=values.n_broken + self.contents.n_broken,
            lost_webhook_events=self.couriers.n_lost,
        )

    def _offers(self) -> Iterator[Call[int]]:
        """The calls that put back what is known here into an engine that may have lost it."""
        if self.leak is not None:
            return
        seat, keys = self.seat, self.seat.to.keys
        copies: list[tuple[bytes, Record, int]] = []
        n_bytes = 0

        def known() -> Iterator[tuple[bytes, Record, float]]:
            for attachment, record, remains in self.values.copies():
                yield keys.value(attachment.app_id, attachment.name.text), record, remains
            yield from self.publishing.recent()

        for key, record, remains_s in known():
            size = len(record.payload) + 64
            if copies and (len(copies) == MAX_KEYS or n_bytes + size > MAX_BYTES):
                yield seat.to.offer(seat.epoch, copies)
                copies, n_bytes = [], 0
            copies.append((key, record, int(remains_s * 1000)))
            n_bytes += size
        if copies:
            yield seat.to.offer(seat.epoch, copies)
