"""What a parent and its workers say to each other; msgpack on a socket that is theirs alone.

They are of one release, for the parent starts its own program, but for the time of an upgrade.
"""

from __future__ import annotations

from typing import Final

import msgspec

from cachecast.config import FileConfig
from cachecast.errors import BusError, ConfigError, EngineError
from cachecast.metrics import Family
from cachecast.server.crossing import Ways
from cachecast.server.entrance import InspectorTerms

__all__ = [
    "FROM_PARENT",
    "FROM_WORKER",
    "WORDS_VERSION",
    "Ask",
    "Beat",
    "Brief",
    "Failed",
    "Gave",
    "Give",
    "Order",
    "Ready",
    "Refused",
    "Reload",
    "Reloaded",
    "Report",
]

#: Number of this form. Whoever changes it raises it: a parent of a new version takes over workers
#: of an old one only if they have the same.
WORDS_VERSION: Final = 1


class _Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all."""


class Brief(_Message, frozen=True):
    """The parent's first words. They hold the apps' secrets, which is why they come this way.

    Attributes:
        number: number of the worker, from 1.
        config: configuration that it serves; limits are its share.
        listeners: descriptors of its listening sockets.
        ways: ways to the other workers.
        seat: descriptor of the socket over which it gets connections of operators.
        inspector: terms on which people look into it; None if nobody may.
        line: descriptor of a line to the worker that it replaces; None if there is none.
    """

    number: int
    config: FileConfig
    listeners: tuple[int, ...]
    ways: Ways
    seat: int | None = None
    inspector: InspectorTerms | None = None
    line: int | None = None

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Leave the configuration out."""
        return f"Brief({self.number})"


class Order(_Message, frozen=True):
    """The parent was sent a signal of this number: end as a node of one process would."""

    number: int


class Reload(_Message, frozen=True):
    """The parent wants the worker to serve by another configuration.

    Attributes:
        serial: number of the change.
        config: the worker's share of the whole of it.
    """

    serial: int
    config: FileConfig

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Leave the configuration out."""
        return f"Reload({self.serial})"


class Reloaded(_Message, frozen=True):
    """The worker serves by it, or does not: then ``fault`` says why. ``serial`` as it was asked."""

    serial: int
    fault: str = ""


class Give(_Message, frozen=True):
    """The parent wants the worker to hand over to another one.

    Two descriptors come with it: the line to the other one, and one that stands for its process.
    """


class Gave(_Message, frozen=True):
    """The worker has handed over, and ends when it has closed what could not move.

    Attributes:
        connections: number of clients that moved.
        closed: number of clients that could not.
    """

    connections: int
    closed: int


class Refused(_Message, frozen=True):
    """The worker has not handed over and goes on; the other one is dead."""

    text: str


class Ask(_Message, frozen=True):
    """The parent wants a report."""


class Ready(_Message, frozen=True):
    """The worker accepts connections."""


class Failed(_Message, frozen=True):
    """The worker does not start, and ends: a ``ConfigError`` in its parts, or another's text."""

    text: str
    config_error: tuple[str, str, str] | None = None

    @classmethod
    def from_error(cls, error: EngineError) -> Failed:
        """Put an error into words."""
        if isinstance(error, ConfigError):
            return cls(str(error), (error.field, error.rule, error.remedy))
        return cls(str(error).strip())

    def to_error(self) -> EngineError:
        """The error again."""
        return ConfigError(*self.config_error) if self.config_error else BusError(self.text)


class Beat(_Message, frozen=True):
    """Once a second: the worker lives. ``is_ready`` is what its own ``/ready`` would say."""

    is_ready: bool


class Report(_Message, frozen=True):
    """What the worker's own ``/metrics`` would say."""

    families: list[Family]


FROM_PARENT: Final = Brief | Order | Reload | Give | Ask
FROM_WORKER: Final = Ready | Failed | Beat | Reloaded | Gave | Refused | Report
