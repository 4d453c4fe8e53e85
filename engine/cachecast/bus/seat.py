"""What a node has at one primary: an epoch, a session, and two links to ask by.

What is asked by :meth:`Seat.ask` is in order with the messages that the node hears: a call's
answer is handed over behind every message that was published before it was carried out. What need
not be in order goes by :meth:`Seat.command`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from cachecast.bus.faults import EpochError, FencedError, GraceError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cachecast.bus.calls import Call
    from cachecast.bus.faults import LinkError
    from cachecast.bus.functions import Functions
    from cachecast.errors import EngineError

__all__ = ["Seat", "is_passing"]

T = TypeVar("T")


class Seat(Protocol):
    """A node's place at one primary.

    Attributes:
        to: calls of the primary.
        epoch: epoch of the primary, as the node knows it.
        session: session under which the node holds things.
        is_open: whether the node has said hello, no grace is on, and what is kept here is up to
            date.
    """

    to: Functions
    epoch: int
    session: str
    is_open: bool

    def ask(self, call: Call[T], on_done: Callable[[T | LinkError], None]) -> None:
        """Call on the link that brings the messages. Never yields, never raises.

        ``on_done`` is called once, later than this. The seat looks at faults itself and says hello
        again where they ask for it.
        """

    def command(self, call: Call[T], on_done: Callable[[T | LinkError], None]) -> None:
        """Call on the other link; see :meth:`ask`."""

    def subscribe(self, topics: Sequence[bytes]) -> None:
        """Hear topics, from before whatever is asked next. Never yields, never raises."""

    def unsubscribe(self, topics: Sequence[bytes]) -> None:
        """Hear them no more. Never yields, never raises."""


def is_passing(fault: EngineError) -> bool:
    """Whether the same call may be made again once the seat is open again."""
    return isinstance(fault, (UnavailableError, EpochError, FencedError, GraceError))
