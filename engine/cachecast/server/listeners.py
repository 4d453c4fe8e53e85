"""Listening sockets: of a port, of a port that several processes share, of a path."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Final, Literal, TypeAlias

from cachecast.errors import ConfigError
from cachecast.server.place import open_place

__all__ = [
    "BACKLOG",
    "FD",
    "UNIX",
    "Address",
    "open_admin_listener",
    "open_listener",
    "open_shared_listeners",
    "path_of",
]

#: Where to listen: ``HOST:PORT``, ``unix:PATH``, ``fd:NUMBER``, or a socket that listens already.
Address: TypeAlias = str | socket.socket

#: What the address of a socket begins with that was passed to this process, as systemd does it.
FD: Final = "fd:"

#: What the address of a Unix socket begins with, and who may connect to one, as the mode of a file:
#: a proxy of another user is in the node's group, or the node in its.
UNIX: Final = "unix:"
UNIX_MODE: Final = 0o660

#: Number of connections that may wait for accept(). The kernel cuts it to net.core.somaxconn; a
#: storm waits there instead of being refused.
BACKLOG: Final = 65_535

#: Bytes the kernel may hold unsent for one socket. Beyond it they wait in the Outbox, where a
#: newer value can still replace an older one; without it the kernel takes megabytes of the past.
NOTSENT_LOWAT_BYTES: Final = 128 * 1024

#: Seconds after which the kernel hands over those who say nothing. Whoever comes here speaks first,
#: so the kernel wakes us when there is something to read, and not before that as well.
DEFER_ACCEPT_S: Final = 1


def open_shared_listeners(address: str, number: int) -> list[socket.socket]:
    """Open listeners of one address, among which the kernel spreads connections (SO_REUSEPORT).

    Args:
        address: address of the listeners, see :func:`open_listener`.
        number: number of listeners.

    Raises:
        ConfigError: see :func:`open_listener`; a port that other listeners share is taken too.
    """
    listeners = [open_listener(address, sharing="first")]
    try:
        port = listeners[0].getsockname()[1]
        address = f"{address.rpartition(':')[0]}:{port}"
        while len(listeners) < number:
            listeners.append(open_listener(address, sharing="further"))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def open_listener(
    address: str, *, sharing: Literal["first", "further"] | None = None
) -> socket.socket:
    """Open a listening socket.

    Args:
        address: address as ``HOST:PORT`` or ``[IPV6]:PORT``, port 0 lets the system choose;
            ``unix:PATH``, which is taken over if whoever listened there has died; or ``fd:NUMBER``,
            the descriptor of a socket that listens.
        sharing: place among the several listeners of this address, see
            :func:`open_shared_listeners`; None if it is the only one.

    Raises:
        ConfigError: the address is malformed, taken or not this machine's.
    """
    if (path := path_of(address)) is not None:
        remedy = "Give another path with --uds or server.uds."
        place = open_place(path, field="server.uds", remedy=remedy, mode=UNIX_MODE, backlog=BACKLOG)
        return place.listener
    if address.startswith(FD):
        return _open_passed(address)
    host, _, port_text = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port_text.isdigit() or int(port_text) > 65_535:
        raise ConfigError("address", f"must be HOST:PORT, is {address!r}.")
    try:
        family, kind, _, _, target = socket.getaddrinfo(
            host, int(port_text), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind)
        try:
            _set_options(sock)
            # The first is bound without it: else it would join the listeners of another node.
            if sharing == "further":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(target)
            if sharing == "first":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise ConfigError(
            "address",
            f"cannot listen on {address}: {error.strerror or error}.",
            "Is another server running there?" if error.errno == errno.EADDRINUSE else "",
        ) from None
    return sock


def _open_passed(address: str) -> socket.socket:
    """A socket that somebody else has opened, with what can still be said about it."""
    number = address.removeprefix(FD)
    try:
        sock = socket.socket(fileno=int(number))
        is_listener = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if not is_listener or sock.type != socket.SOCK_STREAM:
            sock.detach()  # whosever it is
            raise ConfigError("address", f"descriptor {number} is no listening stream socket.")
        os.set_inheritable(sock.fileno(), False)  # noqa: FBT003 - its only argument beside that
        if sock.family != socket.AF_UNIX:
            _set_options(sock)
    except (OSError, ValueError) as error:
        raise ConfigError("address", f"descriptor {number} is no socket: {error}.") from None
    return sock


def path_of(address: Address) -> Path | None:
    """The path of a Unix socket's address; None for any other."""
    is_unix = isinstance(address, str) and address.startswith(UNIX)
    return Path(address.removeprefix(UNIX)) if isinstance(address, str) and is_unix else None


def open_admin_listener(address: str, *, falls_back: bool) -> socket.socket:
    """Open the listener of an admin address.

    Args:
        address: the admin address, see :func:`open_listener`.
        falls_back: whether to take any free port where that one is taken.

    Raises:
        ConfigError: see :func:`open_listener`.
    """
    try:
        return open_listener(address)
    except ConfigError:
        if not falls_back:
            raise
        return open_listener(address.rpartition(":")[0] + ":0")


def _set_options(sock: socket.socket) -> None:
    """Options that accepted sockets inherit, so that accepting one costs no further calls."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES)
    if hasattr(socket, "TCP_DEFER_ACCEPT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_ACCEPT_S)
