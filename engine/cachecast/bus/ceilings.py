"""What this node has published and is still alive in the engine: freed in time, and kept in bounds.

An engine frees expired keys only when it meets them, and its own search falls behind at thousands a
second. So the node that published a value asks for it once its time is over, 500 keys in a call.

An app's ceilings (entries, bytes) hold for the whole cluster. Each node says with its beat what it
has published; where the sum is above a ceiling each takes back the oldest of its own, in
proportion, and waits until the others' numbers tell of theirs. That is exact to a second, with one
exception that errs to the small side: a channel that two nodes publish to is counted by both until
the older value's time is over.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from cachecast.bus.calls import portions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cachecast.bus.calls import Event
    from cachecast.bus.primary import PrimarySeat
    from cachecast.bus.record import Version

    KeptState = tuple[str, list[tuple[bytes, int, int, int, float]]]

__all__ = ["Ceilings"]

#: Number of keys that are asked for in one call, and of calls in a quarter of a second: 10,000 keys
#: a second.
KEYS_PER_CALL: Final = 500
CALLS_PER_TICK: Final = 5

#: Number of values that are taken back at once: a hundred calls.
MAX_EVICTED: Final = 10_000

#: Number of ticks after which the sums tell of what all have taken back.
TICKS_BETWEEN: Final = 4

#: Bytes of a value in the engine besides its record: key, object, expiry.
OVERHEAD_BYTES: Final = 150

#: Number of values that are followed; past it the oldest is left to the engine and to its time.
MAX_FOLLOWED: Final = 1_000_000

#: Number of values of an app that another process goes on to follow; older ones are left to the
#: engine, too.
MAX_EXPORTED: Final = 100_000

#: Seconds after a value's deadline by this node's clock: by the engine's it is over then, too.
AFTER_S: Final = 0.1


#: Seconds between two lines of the log about an app's ceiling.
LOG_INTERVAL_S: Final = 60.0

_log = structlog.get_logger("cachecast.bus")


class _Kept(msgspec.Struct, frozen=True, gc=False):
    """A value that this node has published.

    Attributes:
        order: version of the value; the larger is newer.
        size: number of bytes that the value takes in the engine.
        deadline: time from which the value does not exist, in the broker's seconds.
    """

    order: Version
    size: int
    deadline: float


class _Account:
    """What of an app is alive, the oldest first: all of it lives equally long."""

    __slots__ = ("log_at", "max_bytes", "max_entries", "n_bytes", "pause", "values")

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self.pause = 0
        self.log_at = 0.0
        self.values: OrderedDict[tuple[PrimarySeat, bytes], _Kept] = OrderedDict()


class Ceilings:
    """The accounts of all apps.

    Attributes:
        n_freed: number of keys that the engine was asked for at their end.
        n_evicted: number of values that were taken back.
    """

    def __init__(
        self,
        limits: Mapping[str, tuple[int, int]],
        total: Callable[[str, str, int], int],
        now: Callable[[], float],
    ) -> None:
        """Open empty accounts.

        Args:
            limits: app id -> most entries and bytes.
            total: function that gives a sum over all nodes, see ``Bus.total``.
            now: function that gives the broker's seconds.
        """
        self._accounts = {app_id: _Account(*both) for app_id, both in limits.items()}
        self._total = total
        self._now = now
        self.n_freed = 0
        self.n_evicted = 0

    def limit(self, app_id: str, max_entries: int, max_bytes: int) -> None:
        """Hold an app, which may be new, to other limits from the next tick on. Never yields."""
        account = self._accounts.get(app_id)
        if account is None:
            self._accounts[app_id] = _Account(max_entries, max_bytes)
        else:
            account.max_entries, account.max_bytes = max_entries, max_bytes

    def note(self, seat: PrimarySeat, event: Event, order: Version, sent: float) -> None:
        """A value has been taken by the engine. Never yields."""
        account = self._accounts[event.app_id]
        key = seat, event.value
        before = account.values.pop(key, None)
        if before is not None:
            account.n_bytes -= before.size
        elif len(account.values) >= MAX_FOLLOWED:
            account.n_bytes -= account.values.popitem(last=False)[1].size
        size = len(event.payload) + len(event.value) + OVERHEAD_BYTES
        account.values[key] = _Kept(order, size, sent + event.lifetime_ms / 1000)
        account.n_bytes += size

    def export(self, seat: PrimarySeat) -> list[KeptState]:
        """What lives at one primary, by app; the newest of very many. O(that)."""
        return [
            (app_id, [
                (key, *kept.order, kept.size, kept.deadline)
                for (owner, key), kept in list(account.values.items())[-MAX_EXPORTED:]
                if owner is seat
            ])
            for app_id, account in self._accounts.items()
        ]  # fmt: skip

    def restore(self, seat: PrimarySeat, state: Sequence[KeptState]) -> None:
        """Follow what another process published. Never yields."""
        for app_id, values in state:
            account = self._accounts.get(app_id)
            if account is None:
                continue  # nobody here serves it; the engine frees them at their time
            for key, epoch, version, size, deadline in values:
                account.values[seat, key] = _Kept((epoch, version), size, deadline)
                account.n_bytes += size

    def tick(self) -> None:
        """Four times a second: free what is over, take back what is too much. Never yields."""
        for app_id, account in self._accounts.items():
            self._free(account)
            mine, mine_bytes = len(account.values), account.n_bytes
            entries = self._total("cache_entries", app_id, mine)
            n_bytes = self._total("cache_bytes", app_id, mine_bytes)
            share = max(
                _share(entries - account.max_entries, mine, entries),
                _share(n_bytes - account.max_bytes, mine, n_bytes),
            )
            if account.pause:
                account.pause -= 1
            elif share:
                self._evict(account, min(share, MAX_EVICTED))
                account.pause = TICKS_BETWEEN
                if self._now() >= account.log_at:
                    account.log_at = self._now() + LOG_INTERVAL_S
                    _log.warning(
                        "cached values taken back before their time, at a ceiling of the app",
                        app=app_id,
                        taken_back_since_start=self.n_evicted,
                    )

    def _free(self, account: _Account) -> None:
        before = self._now() - AFTER_S
        over: dict[PrimarySeat, list[bytes]] = {}
        for _ in range(KEYS_PER_CALL * CALLS_PER_TICK):
            if not account.values or next(iter(account.values.values())).deadline > before:
                break
            (seat, key), kept = account.values.popitem(last=False)
            account.n_bytes -= kept.size
            over.setdefault(seat, []).append(key)
        for seat, keys in over.items():
            for part in portions(keys, KEYS_PER_CALL):
                self.n_freed += len(part)
                seat.command(seat.to.free(part), _ignore)

    def _evict(self, account: _Account, n: int) -> None:
        found: dict[PrimarySeat, list[tuple[bytes, Version]]] = {}
        for _ in range(min(n, len(account.values))):
            (seat, key), kept = account.values.popitem(last=False)
            account.n_bytes -= kept.size
            found.setdefault(seat, []).append((key, kept.order))
        for seat, values in found.items():
            self._forget(seat, values)

    def _forget(self, seat: PrimarySeat, values: Sequence[tuple[bytes, Version]]) -> None:
        for part in portions(values):
            self.n_evicted += len(part)
            seat.n_evicted += len(part)
            seat.command(seat.to.forget(seat.epoch, part), _ignore)


def _share(excess: int, mine: int, total: int) -> int:
    """How many of its own a node takes back, rounded up: of entries that are equally large."""
    return -(-excess * mine // total) if excess > 0 and total > 0 else 0


def _ignore(answer: object) -> None:
    """What did not arrive goes at its time."""
    del answer
