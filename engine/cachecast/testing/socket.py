"""The server's end of a connection in memory.

What it takes and gives is decided by the test: how much room there is, and what fails.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from cachecast.server.selector import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MemorySocket"]


class MemorySocket:
    """The server's end of a connection, as much of a socket as the engine uses.

    Attributes:
        inbound: bytes from the client that the server has not read yet.
        has_ended: whether the client sends no more.
        is_closed: whether the server has closed it.
        room: number of bytes that the server may still send before its ``send`` would block.
        send_error: exception raised by the next sends, as when the network fails; else None.
    """

    #: Family of addresses, of which it has none.
    family: Final = 0

    def __init__(
        self, fd: int, on_bytes: Callable[[bytes], None], on_end: Callable[[], None]
    ) -> None:
        self._fd = fd
        self._on_bytes = on_bytes
        self._on_end = on_end
        self.inbound: bytearray = bytearray()
        self.has_ended: bool = False
        self.is_closed: bool = False
        self.room: float = inf
        self.send_error: OSError | None = None

    @property
    def ready(self) -> int:
        """What a selector would report, of READ and WRITE."""
        can_read = bool(self.inbound or self.has_ended)
        return (READ if can_read else 0) | (WRITE if self.room > 0 else 0)

    def fileno(self) -> int:
        """A number of its own."""
        return self._fd

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 - socket's own signature
        """It never blocks."""

    def send(self, data: bytes, /) -> int:
        """Hand bytes to the client, as many as there is room for."""
        if self.send_error is not None:
            raise self.send_error
        if self.has_ended and not self.inbound:
            raise BrokenPipeError
        if self.room <= 0:
            raise BlockingIOError
        taken = data if len(data) <= self.room else data[: int(self.room)]
        self.room -= len(taken)
        self._on_bytes(taken)
        return len(taken)

    def recv(self, size: int, /) -> bytes:
        """What the client sent; empty at its end."""
        if not self.inbound and not self.has_ended:
            raise BlockingIOError
        data = bytes(self.inbound[:size])
        del self.inbound[:size]
        return data

    def shutdown(self, how: int, /) -> None:
        """The server sends no more."""
        del how
        self._on_end()

    def close(self) -> None:
        """The server has closed."""
        if not self.is_closed:
            self.is_closed = True
            self._on_end()
