"""A node's place in its cluster passes to another process, and no other node notices.

Both processes are one node: they call themselves alike and use the same session, so nothing is
entered or left by the change. What has to be exact is the instant of it, in the order of all that
is published. So the successor *follows* first: it subscribes to all that the running process hears,
and reads the values, while nobody is connected to it whom it could tell anything. Then it publishes
a *mark*, which each primary puts into the one order that both hear. What is before the mark is the
running process's, what is behind it waits in both until it is settled which of them is the node,
and is then heard by that one. Nothing is lost and nothing heard twice, whatever lies in between.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final

import trio

from cachecast.bus.calls import PROTOCOL
from cachecast.errors import UpgradeError
from cachecast.handover.state import BusPlace, BusState, SeatState, Topics
from cachecast.protocol.channel_name import parse_channel_name

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from cachecast.bus.engine_bus import EngineBus
    from cachecast.bus.half import Half
    from cachecast.bus.receipt import Receipt
    from cachecast.channels.presence import PresenceRoster

__all__ = ["Follower", "Giver"]

#: Seconds between two looks whether nothing is under way.
TICK_S: Final = 0.002

#: Seconds for what is under way at the engine to be answered, and for the mark to come.
IDLE_LIMIT_S: Final = 5.0
MARK_LIMIT_S: Final = 2.0

#: Seconds for the successor to read what has been attached since it began to follow.
FOLLOW_LIMIT_S: Final = 5.0


class Giver:
    """The running process's side; one for each try."""

    def __init__(self, bus: EngineBus) -> None:
        self._bus = bus
        self._mark = secrets.token_hex(8)
        self._told: list[tuple[set[tuple[str, str]], set[tuple[str, str]]]] = []

    def place(self) -> BusPlace:
        """What the successor follows by.

        Raises:
            UpgradeError: the other nodes cannot be reached.
        """
        bus = self._bus
        for half in bus.halves:
            if not half.seat.is_open:
                raise UpgradeError(
                    f"The other nodes cannot be reached, so nothing can be handed over: "
                    f"{half.seat.why_down()}"
                )
        self._told = [(set(), set()) for _ in bus.halves]
        facts = bus.facts
        return BusPlace(
            PROTOCOL,
            list(facts.primaries),
            facts.node,
            facts.nonce,
            self._mark,
            [(half.seat.epoch, half.seat.session) for half in bus.halves],
            self.rest(),
        )

    def rest(self) -> list[Topics]:
        """What is heard here and the successor has not been told of."""
        found = []
        for half, (channels, users) in zip(self._bus.halves, self._told, strict=True):
            rest = Topics(
                [one for one in half.values.channels if one not in channels],
                [one for one in half.attendance.watching.users if one not in users],
            )
            channels.update(rest.channels)
            users.update(rest.users)
            found.append(rest)
        return found

    async def wait_idle(self) -> None:
        """Wait until nobody waits for the engine; clients must not be listened to any more.

        Raises:
            UpgradeError: somebody still does after :data:`IDLE_LIMIT_S`.
        """
        with trio.move_on_after(IDLE_LIMIT_S):
            while not all(map(_is_idle, self._bus.halves)):  # noqa: ASYNC110 - nothing announces it
                await trio.sleep(TICK_S)
            for half in self._bus.halves:
                await half.couriers.finish()
            return
        raise UpgradeError(f"The engine did not answer within {IDLE_LIMIT_S:g} s.")

    def stop_at_mark(self) -> None:
        """Hear nothing behind the mark, until :meth:`go_on`. Never yields."""
        for half in self._bus.halves:
            half.stop_at(self._mark)

    async def wait_mark(self) -> None:
        """Wait until everything before the mark has been heard.

        Raises:
            UpgradeError: it does not come.
        """
        await _wait_marks(self._bus)

    @property
    def is_stopped(self) -> bool:
        """Whether what comes is still held back, at all primaries."""
        return all(half.is_stopped for half in self._bus.halves)

    def export(self, staying: Mapping[tuple[str, str], int]) -> BusState:
        """All of it in plain values. Never yields.

        Args:
            staying: app and channel of what subscribers within this process need, who cannot move,
                with their number.
        """
        return BusState(
            [
                SeatState(
                    half.seat.epoch,
                    half.seat.session,
                    half.publishing.number,
                    half.values.export(staying),
                    half.attendance.rosters.export(),
                    half.attendance.holdings.export(),
                    half.attendance.watching.export(),
                    half.attendance.endings.export(),
                    half.attendance.crowds.export(),
                    self._bus.ceilings.export(half.seat),
                    half.publishing.export(),
                )
                for half in self._bus.halves
            ],
            [half.gauges.export() for half in self._bus.halves],
        )

    def go_on(self) -> None:
        """The successor has failed: hear what was held back. Harmless at any time. Never yields."""
        for half in self._bus.halves:
            half.go_on()

    def let_go(self) -> None:
        """The successor is the node: say nothing more. Never yields."""
        self._bus.let_go()


class Follower:
    """The successor's side, once its bus has started."""

    def __init__(self, bus: EngineBus, place: BusPlace) -> None:
        self._bus = bus
        self._place = place
        for half in bus.halves:
            half.stop_at(place.mark)

    async def follow(self, topics: list[Topics]) -> None:
        """Hear the rest, publish the mark, and wait for it.

        Raises:
            UpgradeError: the engine does not answer.
            BusError: the engine refuses.
        """
        receipts: list[Receipt[Any]] = []
        for half, rest in zip(self._bus.halves, topics, strict=True):
            for app_id, channel in rest.channels:
                name = parse_channel_name(channel, len(channel))
                receipts.append(half.values.attach(app_id, name))
            by_app: dict[str, list[str]] = {}
            for app_id, user_id in rest.users:
                by_app.setdefault(app_id, []).append(user_id)
            watching = half.attendance.watching
            receipts += [watching.watch(app_id, users) for app_id, users in by_app.items()]
        with trio.move_on_after(FOLLOW_LIMIT_S) as limit:
            for receipt in receipts:
                await receipt.wait()
        if limit.cancelled_caught:
            raise UpgradeError(f"The engine did not answer within {FOLLOW_LIMIT_S:g} s.")
        for half in self._bus.halves:
            half.seat.command(half.seat.to.mark(self._place.mark), _ignore)
        await _wait_marks(self._bus)

    def restore(
        self,
        state: BusState,
        app_ids: Container[str],
        roster_of: Callable[[str, str], PresenceRoster | None],
    ) -> None:
        """Take over what the running process has at the engine. Never yields.

        Args:
            state: what it has.
            app_ids: ids of the apps that are served here; what is held for others is left.
            roster_of: function that gives the whole roster of an app's presence channel.

        Raises:
            UpgradeError: the engine has become another one meanwhile.
        """
        bus = self._bus
        for half, seat, gauges in zip(bus.halves, state.seats, state.gauges, strict=True):
            known = half.seat.epoch, half.seat.session
            if known != (seat.epoch, seat.session) or not half.is_stopped:
                raise UpgradeError("The link to the engine was lost meanwhile.")
            half.values.restore([one for one in seat.attached if one[0] in app_ids])
            attendance = half.attendance
            attendance.rosters.restore(
                [one for one in seat.places if one[0] in app_ids],
                seat.holdings,
                app_ids,
                roster_of,
            )
            attendance.watching.restore([one for one in seat.watched if one[0] in app_ids])
            attendance.endings.restore(seat.said)
            attendance.crowds.restore(seat.crowded)
            half.publishing.restore(seat.number, seat.recent)
            bus.ceilings.restore(half.seat, seat.kept)
            half.gauges.restore(gauges)

    def take_over(self) -> None:
        """This process is the node: hear what has come since the mark. Never yields."""
        self._bus.take_over()


def _is_idle(half: Half) -> bool:
    attendance = half.attendance
    return (
        half.seat.is_open
        and half.publishing.is_idle
        and not half.lateness.is_awaited
        and not attendance.lateness.is_awaited
        and not attendance.rosters.is_paging
        and not attendance.endings.is_reading
    )


async def _wait_marks(bus: EngineBus) -> None:
    with trio.move_on_after(MARK_LIMIT_S):
        while not all(half.is_stopped for half in bus.halves):  # noqa: ASYNC110 - once in a life
            await trio.sleep(TICK_S)
        return
    raise UpgradeError(f"The engine did not pass the mark on within {MARK_LIMIT_S:g} s.")


def _ignore(answer: object) -> None:
    """Whether it has come is seen where messages come."""
    del answer
