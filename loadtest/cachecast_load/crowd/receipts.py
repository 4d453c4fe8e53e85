"""Receiving at the rate of a fan-out: what many subscribers get alike is understood once.

All subscribers of a channel get the same bytes, one soon after the other. So what the last chunk
meant is remembered; who gets the very same bytes is held until the row ends, which is before a
timer, another chunk or another greenlet can see anything of it; then all of the row are entered
into ledger and histograms together. Nothing is sampled: each has its own time of receipt and its
own entry in the ledger.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from cachecast_load.measures.ledger import observe_by_all
from cachecast_load.measures.recorder import Recorder, Tally
from cachecast_load.pusher.stamp import Stamp

if TYPE_CHECKING:
    from cachecast_load.crowd.client import Client


class Receipts:
    """The newest chunk of this process, and who received it.

    Args:
        recorder: where it is entered.
    """

    __slots__ = ("_data", "_held", "_recorder", "_stamps")

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._data = b""
        self._stamps: list[Stamp] = []
        self._held: dict[Client, int] = {}

    def hold(self, client: Client, data: bytes, now_us: int) -> bool:
        """Take a chunk that is the same as the last; False where it has to be read by itself."""
        held = self._held
        if data != self._data or client in held:
            return False
        held[client] = now_us
        return True

    def remember(self, data: bytes, stamps: list[Stamp]) -> None:
        """Keep what a chunk of whole frames, all of them our events, meant."""
        self._data = data
        self._stamps = stamps

    def settle(self) -> None:
        """Enter what the held clients received."""
        held = self._held
        if not held:
            return
        self._held = {}
        self._recorder.counts["frames"] += len(held) * len(self._stamps)
        offset_us = next(iter(held)).block.offset_us
        times: defaultdict[Tally, list[int]] = defaultdict(list)
        for client, at_us in held.items():
            times[client.tally].append(at_us)
        for stamp in self._stamps:
            try:
                members = [client.memberships[stamp.channel] for client in held]
            except KeyError:  # somebody has left
                for client, at_us in held.items():
                    client.observe(stamp, at_us)
                continue
            observe_by_all(members, stamp.seq, stamp.floor, stamp.sent_us)
            for tally, at in times.items():
                tally.histograms["delivery"].record_since(stamp.intended_us - offset_us, at)
                tally.histograms["service"].record_since(stamp.sent_us - offset_us, at)
