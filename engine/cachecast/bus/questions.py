"""What a node asks of the cluster and does not keep: values, lists, numbers.

A list of any length is collected in steps, each of which is one bounded call. What comes or goes
meanwhile may be in it or not; what was there all the time is in it once.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from cachecast.bus.calls import REMEMBER_MS, portions
from cachecast.bus.receipt import Receipt, join
from cachecast.bus.series import Series, ask_for
from cachecast.bus.shards import N_SHARDS, shard_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cachecast.bus.contents import Contents
    from cachecast.bus.faults import LinkError
    from cachecast.bus.record import Record
    from cachecast.bus.seat import Seat
    from cachecast.events import AppEvent
    from cachecast.protocol.identity import Member

    Page = tuple[str, dict[str, tuple[int, bytes]]]

__all__ = ["Questions"]

T = TypeVar("T")


class Questions:
    """Asks all seats of a node.

    Attributes:
        n_hooks_lost: number of events for webhooks that the engine could not be given.
    """

    def __init__(self, seats: Sequence[Seat], spread: Sequence[int], contents: Contents) -> None:
        """Ask nothing yet.

        Args:
            seats: seats of the node, one a primary, in their order.
            spread: numbers of seats, one for each shard.
            contents: packer of events.
        """
        self._seats = seats
        self._spread = spread
        self._contents = contents
        self.n_hooks_lost = 0

    def seat_of(self, app_id: str, channel: str) -> Seat:
        """The seat of a channel."""
        return self._seats[self._spread[shard_of(app_id, channel)]]

    def note_miss(self, app_id: str, channel: str, remember_ms: int = REMEMBER_MS) -> Receipt[bool]:
        """See ``Bus.note_miss``; remembered for so long at most. Never yields."""
        seat = self.seat_of(app_id, channel)
        return ask_for(seat.command, seat.to.note_miss(seat.epoch, app_id, channel, remember_ms))

    def rearm_miss(self, app_id: str, channel: str, after_s: float) -> None:
        """See ``Bus.rearm_miss``. Never yields."""
        seat = self.seat_of(app_id, channel)
        # Without an answer it is as if the report had not been taken yet.
        ask_for(seat.command, seat.to.rearm_miss(app_id, channel, int(after_s * 1000)))

    def read(self, app_id: str, channel: str) -> Receipt[Record | None]:
        """The record of a channel's value; None if it has none. Never yields."""
        seat = self.seat_of(app_id, channel)
        found = ask_for(
            seat.command, seat.to.read(seat.epoch, [seat.to.keys.value(app_id, channel)])
        )
        return join([found], lambda: found.value[1][0])

    def channels(self, app_id: str, prefix: str) -> Receipt[Mapping[str, int]]:
        """See ``Bus.channels``. Never yields."""
        answer: dict[str, int] = {}

        def scan(seat: Seat, shards: Sequence[int]) -> Receipt[None]:
            def take(at: tuple[int, str], page: Page) -> tuple[int, str] | None:
                cursor, fields = page
                answer.update((channel, total) for channel, (total, _) in fields.items())
                return None if cursor == "0" else (at[0], cursor)

            return Series(
                seat.command,
                [(shard, "0") for shard in shards],
                lambda at: seat.to.page(seat.epoch, "o", app_id, at[0], at[1], prefix),
                take,
            ).done

        return join(
            [
                scan(seat, [shard for shard in range(N_SHARDS) if self._spread[shard] == number])
                for number, seat in enumerate(self._seats)
            ],
            lambda: answer,
        )

    def users(self, app_id: str, channel: str) -> Receipt[Sequence[str]]:
        """See ``Bus.users``. Never yields."""
        found = self._scan_members(app_id, channel, lambda key, _: key)
        return join([found], lambda: list(found.value))

    def members(self, app_id: str, channel: str) -> Receipt[Sequence[Member]]:
        """See ``Bus.members``. Never yields."""
        read = partial(self._contents.read_member, app_id, channel)
        found = self._scan_members(app_id, channel, read)
        return join([found], lambda: list(found.value.values()))

    def _scan_members(
        self, app_id: str, channel: str, read: Callable[[str, bytes], T]
    ) -> Receipt[dict[str, T]]:
        """What ``read`` makes of each member's id and record, by id."""
        answer: dict[str, T] = {}
        seat = self.seat_of(app_id, channel)

        def take(_: str, page: Page) -> str | None:
            cursor, fields = page
            answer.update((key, read(key, text)) for key, (_, text) in fields.items())
            return None if cursor == "0" else cursor

        scanned = Series(
            seat.command,
            ["0"],
            lambda cursor: seat.to.page(seat.epoch, "m", app_id, channel, cursor),
            take,
        ).done
        return join([scanned], lambda: answer)

    def counts(self, app_id: str, channels: Sequence[str]) -> Receipt[Sequence[tuple[int, int]]]:
        """See ``Bus.counts``. Never yields."""
        subscriptions: dict[str, int] = {}
        members: dict[str, int] = {}

        def look(seat: Seat, names: list[str]) -> Receipt[None]:
            def take(part: Sequence[str], totals: tuple[int, ...]) -> None:
                subscriptions.update(zip(part, totals, strict=True))

            return Series(
                seat.command,
                portions(names),
                lambda part: seat.to.look(seat.epoch, "o", app_id, part),
                take,
            ).done

        def measure(seat: Seat, names: list[str]) -> Receipt[None]:
            def take(part: Sequence[str], sizes: tuple[int, ...]) -> None:
                members.update(zip(part, sizes, strict=True))

            return Series(
                seat.command,
                portions([name for name in names if name.startswith("presence-")]),
                lambda part: seat.to.sizes(seat.epoch, app_id, part),
                take,
            ).done

        by_seat = self._by_seat(app_id, channels)
        return join(
            [ask(*mine) for mine in by_seat for ask in (look, measure)],
            lambda: [(subscriptions[name], members.get(name, 0)) for name in channels],
        )

    def hook(self, app_id: str, event: AppEvent) -> None:
        """See ``Bus.hook``. Never yields."""

        def take(answer: LinkError | None) -> None:
            self.n_hooks_lost += answer is not None

        seat = self.seat_of(app_id, event.channel)
        body = self._contents.pack_event(app_id, event)
        seat.command(seat.to.hook(seat.epoch, app_id, body), take)

    def _by_seat(self, app_id: str, channels: Sequence[str]) -> list[tuple[Seat, list[str]]]:
        found: dict[int, list[str]] = {}
        for channel in dict.fromkeys(channels):
            found.setdefault(self._spread[shard_of(app_id, channel)], []).append(channel)
        return [(self._seats[number], part) for number, part in found.items()]
