"""What every call of the engine's functions is made of, and the library that they are in.

See ``functions.py`` for the calls themselves.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Final, Generic, Literal, TypeVar

import msgspec

from cachecast.bus.faults import GarbageError
from cachecast.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cachecast.bus.resp import Reply

__all__ = [
    "FORGET_MS",
    "MAX_BYTES",
    "MAX_KEYS",
    "MAX_REMEMBERED",
    "PROTOCOL",
    "REAP_STEP",
    "REMEMBER_MS",
    "Call",
    "Event",
    "Facts",
    "Rosters",
    "library",
    "library_name",
    "portions",
]

#: Version of keys, topics, records and functions. Nodes of different numbers refuse each other in
#: words.
PROTOCOL: Final = 1

#: Number of keys in one call that is not a publish.
MAX_KEYS: Final = 100

#: Bytes of records that one read gives, or one offer takes.
MAX_BYTES: Final = 256 * 1024

#: Number of publishes of a session that the engine remembers. So many may wait for an answer at
#: most.
MAX_REMEMBERED: Final = 4096

#: Milliseconds for which a miss is not reported again, unless there is a value or its report was
#: taken.
REMEMBER_MS: Final = 1_800_000

#: Milliseconds for which a miss is remembered that no courier acknowledges: names are made up at no
#: cost.
FORGET_MS: Final = 10_000

#: Number of entries that one reap takes back.
REAP_STEP: Final = 100

#: Kinds of rosters. m: members of a presence channel, o: occupied channels, u: users who are signed
#: in.
Rosters = Literal["m", "o", "u"]

_T = TypeVar("_T")
_Item = TypeVar("_Item")


@cache
def _source() -> tuple[str, str]:
    text = files("cachecast.bus").joinpath("library.lua").read_text(encoding="utf-8")
    version = f"cachecast_{PROTOCOL}_{sha256(text.encode()).hexdigest()[:8]}"
    return version, f"#!lua name={version}\n" + text.replace("VERSION", version)


def library() -> str:
    """The text for ``FUNCTION LOAD``."""
    return _source()[1]


def library_name() -> str:
    """Under which the library is loaded, and what its functions' names begin with."""
    return _source()[0]


def portions(items: Sequence[_Item], n: int = MAX_KEYS) -> Iterator[Sequence[_Item]]:
    """Cut into parts that fit a call."""
    for start in range(0, len(items), n):
        yield items[start : start + n]


class Call(Generic[_T]):
    """One call of the engine.

    Attributes:
        arguments: words of the command, for ``Connection.send``.
    """

    __slots__ = ("_read", "arguments")

    def __init__(
        self, arguments: tuple[bytes | str | int, ...], read: Callable[[Reply], _T]
    ) -> None:
        self.arguments = arguments
        self._read = read

    def read(self, reply: Reply) -> _T:
        """Turn the reply into the result.

        Raises:
            GarbageError: it cannot be: somebody else wrote to our keys.
        """
        try:
            return self._read(reply)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            raise GarbageError(
                "The engine gave what is no answer: does somebody else use bus.prefix too?"
            ) from None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What nodes of one cluster must agree on.

    Attributes:
        node: id of the node.
        nonce: text drawn at the node's start; tells two nodes with the same id apart.
        primaries: names of all primaries, in order.
        seals: fingerprints of the keys that the node can read, the one that it seals with first.
        apps_with_webhooks: ids of apps with webhooks; events are kept for them.
        protocol: version of the bus's protocol, see :data:`PROTOCOL`.
    """

    node: str
    nonce: str
    primaries: tuple[str, ...]
    seals: tuple[str, ...] = ()
    apps_with_webhooks: tuple[str, ...] = ()
    protocol: int = PROTOCOL

    def __post_init__(self) -> None:
        """Refuse what would read as something else in the engine.

        Raises:
            ConfigError: a node's id with a line's end, or an empty one.
        """
        if not self.node.isprintable() or not 0 < len(self.node) <= 64:
            raise ConfigError("bus.node", "must be 1 to 64 printable characters.")


class Event(msgspec.Struct, frozen=True, gc=False):
    """An event to publish.

    Attributes:
        topic: topic of the event's channel.
        payload: the event as it is sent, see :class:`~cachecast.bus.record.Record`.
        exclude: socket id of the connection that does not get it; empty for none.
        value, miss: keys of a cache channel; empty for what is not kept.
        lifetime_ms: milliseconds that the value lives; 0 for what is not kept.
        app_id: id of the app.
    """

    topic: bytes
    payload: bytes
    exclude: str = ""
    value: bytes = b""
    miss: bytes = b""
    lifetime_ms: int = 0
    app_id: str = ""
