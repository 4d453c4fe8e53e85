"""What clients of a cluster asked, were answered and heard: the record that is judged.

Times are seconds of one monotonic clock, that of the process in which all clients live. Of every
action only an interval is known, so each of them is written down on the side on which it is
certain: *started* and *asked* before anything was sent, *answered*, *confirmed* and *heard* after
it had been received.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

__all__ = ["MISS", "Disturbance", "History", "Listening", "Loss", "Publication"]

#: What is heard in place of an id where the channel was empty.
MISS = "<miss>"


@dataclass(slots=True)
class Publication:
    """One event.

    Attributes:
        id: unlike all others of the history.
        channel: its name.
        node: through which it was published.
        started: before it was sent.
        answered: when the publisher was told that it is done; inf if it never was.
        is_refused: whether the publisher was told that nothing was published. One that is neither
            answered nor refused may have been published.
        sender: the client whose client event it is, which does not hear it.
    """

    id: str
    channel: str
    node: str
    started: float
    answered: float = inf
    is_refused: bool = False
    sender: str = ""


@dataclass(slots=True)
class Listening:
    """One subscription of one client.

    Attributes:
        who: the client.
        node: on which it is.
        channel: its name.
        asked: before the subscription was sent.
        confirmed: when its success had been heard; inf if it was not.
        ended: before it was taken back, or when its connection was seen to be closed.
        user: whom it brings into a presence channel.
        heard: ids, or a miss, with the time of each, in order.
        roster: the members that it was confirmed with.
        news: time, "+" or "-" and user, in order.
    """

    who: str
    node: str
    channel: str
    asked: float
    confirmed: float = inf
    ended: float = inf
    user: str = ""
    heard: list[tuple[str, float]] = field(default_factory=list)
    roster: frozenset[str] = frozenset()
    news: list[tuple[float, str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Disturbance:
    """A time in which a node may have been cut off; events may pass it by.

    Attributes:
        start, end: of it, with the time that coming back may take.
        nodes: that it met; empty: all of them.
    """

    start: float
    end: float
    nodes: frozenset[str] = frozenset()


@dataclass(slots=True)
class Loss:
    """A time in which the engine forgot everything, or the latest of it.

    What it may really forget is what no living node has.

    Attributes:
        start, end: from before the first moment at which it may have forgotten to after the grace
            in which nodes bring back what they know.
        absent: nodes that were not there all that time and may bring back nothing.
    """

    start: float
    end: float
    absent: frozenset[str] = frozenset()


@dataclass
class History:
    """All of it.

    Attributes:
        publications, listenings: in the order in which they began.
        disturbances, losses: what the engine, links and nodes went through.
        deaths: nodes that were killed, and when: what they knew died with them.
        ttl_s: how long a value lives, by channel.
        end: when it ended and all that was on its way had arrived.
    """

    publications: list[Publication] = field(default_factory=list)
    listenings: list[Listening] = field(default_factory=list)
    disturbances: list[Disturbance] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    deaths: list[tuple[str, float]] = field(default_factory=list)
    ttl_s: dict[str, float] = field(default_factory=dict)
    end: float = inf

    def is_calm(self, node: str, start: float, end: float) -> bool:
        """Whether nothing disturbed a node between two times."""
        return not any(
            one.start <= end and start <= one.end and (not one.nodes or node in one.nodes)
            for one in self.disturbances
        )
