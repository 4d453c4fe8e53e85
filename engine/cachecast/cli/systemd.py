"""What systemd hands to a service, and what it wants to hear: sockets, states, signs of life.

The protocols are a few variables of the environment and datagrams of text (sd_listen_fds(3),
sd_notify(3), sd_watchdog_enabled(3)); without the variables nothing here does anything. A node that
was replaced (``cachecast upgrade``) is another process under the first one's number, so a successor
takes the variables for its own, and the unit needs ``NotifyAccess=all``.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

import structlog
import trio

from cachecast.errors import ConfigError
from cachecast.server.listeners import FD

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Supervisor"]

#: The first descriptor that is passed.
FIRST_FD: Final = 3

#: Name (``FileDescriptorName=``) of the socket that is the admin address.
ADMIN: Final = "admin"

#: Seconds before a state is said again that systemd had no room for: its queue holds ten messages.
RETRY_S: Final = 0.1

#: Number of states that wait; the oldest go, for the last one counts.
MAX_UNSAID: Final = 8

_log = structlog.get_logger("cachecast.systemd")


class _Watched(Protocol):
    """A node, as far as it is watched."""

    @property
    def is_stuck(self) -> bool:
        """Whether nobody of it serves, though this process runs."""


class Supervisor:
    """The systemd that runs this process, if one does.

    Attributes:
        addresses: addresses for clients of the sockets that were passed; none where none were.
        admin_address: the same of the admin address.
    """

    def __init__(self, environ: Mapping[str, str], *, is_successor: bool = False) -> None:
        """Read what it has passed.

        Args:
            environ: environment of the process.
            is_successor: whether this process has taken the place of the one that systemd started.

        Raises:
            ConfigError: what stands there cannot be.
        """
        self.addresses: list[str] = []
        self.admin_address: str | None = None
        self._path = environ.get("NOTIFY_SOCKET", "")
        self._has_failed = False
        self._unsaid: deque[str] = deque(maxlen=MAX_UNSAID)
        self._has_unsaid = trio.Event()
        watched, listens = (
            is_successor or environ.get(name, str(os.getpid())) == str(os.getpid())
            for name in ("WATCHDOG_PID", "LISTEN_PID")
        )
        usec = _number(environ, "WATCHDOG_USEC") if watched else 0
        self._ping_s = usec / 2_000_000
        if listens and ("LISTEN_PID" in environ or is_successor):
            self._take_sockets(environ)

    def _take_sockets(self, environ: Mapping[str, str]) -> None:
        names = environ.get("LISTEN_FDNAMES", "").split(":")
        for at in range(_number(environ, "LISTEN_FDS")):
            address = f"{FD}{FIRST_FD + at}"
            if at < len(names) and names[at] == ADMIN:
                self.admin_address = address
            else:
                self.addresses.append(address)

    def ready(self, port: int) -> None:
        """The node accepts connections, at a port or at none (0). Never yields."""
        self._say(f"READY=1\nSTATUS=Serving{f' at port {port}' if port else ''}")

    def stopping(self) -> None:
        """The end has begun. Never yields."""
        self._say("STOPPING=1\nSTATUS=Closing clients and delivering webhooks")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """The configuration is read again, as long as the block lasts."""
        now_usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._say(f"RELOADING=1\nMONOTONIC_USEC={now_usec}")
        try:
            yield
        finally:
            self._say("READY=1")

    async def run(self, node: _Watched) -> None:
        """Say what waits to be said, and signs of life; for ever, if there is anybody to hear it.

        Args:
            node: node that is watched: a sign is given twice in each interval of the watchdog,
                while somebody of it serves.
        """
        if self._path:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_states)
                while self._ping_s:
                    if not node.is_stuck:
                        self._send("WATCHDOG=1")
                    await trio.sleep(self._ping_s)

    async def _run_states(self) -> NoReturn:
        while True:
            await self._has_unsaid.wait()
            self._has_unsaid = trio.Event()
            await trio.sleep(RETRY_S)
            self._say_states()

    def _say(self, text: str) -> None:
        self._unsaid.append(text)
        self._say_states()

    def _say_states(self) -> None:
        while self._unsaid and self._send(self._unsaid[0]):
            self._unsaid.popleft()
        if self._unsaid:
            self._has_unsaid.set()

    def _send(self, text: str) -> bool:
        """Say it, if anybody listens; whether there is nothing to be tried again."""
        if not self._path:
            return True
        path = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)  # noqa: FBT003 - its only argument
                sock.sendto(text.encode(), path)
        except BlockingIOError:
            return False
        except OSError as error:
            if not self._has_failed:  # once, and not with every sign of life
                self._has_failed = True
                _log.warning("systemd cannot be told", error=error.strerror, path=self._path)
        return True


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name, "0")
    if not (text.isascii() and text.isdecimal()):
        raise ConfigError(name, f"must be a number, is {text[:64]!r}.", "systemd sets it.")
    return int(text)
