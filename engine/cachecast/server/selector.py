"""``select.epoll``, and the same where there is none.

``selectors`` has a key object for every socket and looks each up in Python; the Poller's dictionary
from descriptor to handler makes both unnecessary, and a question costs half.
"""

from __future__ import annotations

import select
import selectors
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["READ", "WRITE", "PortableSelector", "Selector", "open_selector"]

#: Bits of events: EPOLLIN and EPOLLOUT, also where there is no epoll.
READ: Final = 1
WRITE: Final = 4


class Selector(Protocol):
    """As much of ``select.epoll`` as is needed."""

    def register(self, fd: int, eventmask: int, /) -> None:
        """Watch a descriptor."""

    def modify(self, fd: int, eventmask: int, /) -> None:
        """Watch it for something else."""

    def unregister(self, fd: int, /) -> None:
        """Watch it no more."""

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        """Descriptors and what happened to them; other bits than READ and WRITE are failures."""

    def fileno(self) -> int:
        """Its own descriptor, readable when somebody is ready."""

    def close(self) -> None:
        """Give the descriptor back."""


class PortableSelector:
    """The same by way of ``selectors``; see :class:`Selector`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def register(self, fd: int, eventmask: int, /) -> None:
        """Watch a descriptor."""
        self._selector.register(fd, _portable(eventmask))

    def modify(self, fd: int, eventmask: int, /) -> None:
        """Watch it for something else."""
        self._selector.modify(fd, _portable(eventmask))

    def unregister(self, fd: int, /) -> None:
        """Watch it no more."""
        self._selector.unregister(fd)

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        """All who are ready; more than ``maxevents``, which the Poller gives as their number."""
        del maxevents
        return [
            (key.fd, (READ if events & selectors.EVENT_READ else 0)
             | (WRITE if events & selectors.EVENT_WRITE else 0))
            for key, events in self._selector.select(timeout)
        ]  # fmt: skip

    def fileno(self) -> int:
        """Its own descriptor: there is one wherever Trio runs."""
        fd: int = self._selector.fileno()
        return fd

    def close(self) -> None:
        """Give the descriptor back."""
        self._selector.close()


def _portable(events: int) -> int:
    reads = selectors.EVENT_READ if events & READ else 0
    return reads | (selectors.EVENT_WRITE if events & WRITE else 0)


open_selector: Callable[[], Selector] = getattr(select, "epoll", PortableSelector)
