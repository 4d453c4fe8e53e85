"""A path at which a Unix socket listens: taken over from the dead, left alone if it is another's.

Two nodes that start at the same moment must not take one path for each other's leftovers. So the
look at what lies there and the taking of it happen under a lock of the folder, which is held for
microseconds and goes with the process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cachecast.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Place", "is_alive", "open_place"]

#: Tries to lock a folder, and seconds between two. Whoever holds it for longer means no good.
LOCK_TRIES: Final = 50
LOCK_PAUSE_S: Final = 0.01


class Place:
    """A Unix socket that listens.

    Attributes:
        path: path of it.
        listener: listening socket, non-blocking.
    """

    def __init__(self, path: Path, listener: socket.socket) -> None:
        """Take over a socket that listens at ``path``."""
        listener.setblocking(False)  # noqa: FBT003 - its only argument
        self.path = path
        self.listener = listener
        self._identity = _identity(path)

    def close(self) -> None:
        """Stop listening, and take the path away if it is still this socket's."""
        self.listener.close()
        if self._identity is not None and _identity(self.path) == self._identity:
            self.path.unlink(missing_ok=True)

    def leave(self) -> None:
        """Stop listening here; another process goes on with the same socket at the same path."""
        self._identity = None
        self.listener.close()


def open_place(path: Path, *, field: str, remedy: str, mode: int, backlog: int) -> Place:
    """Listen at a path, in place of what a node that has died left. Blocks, for 0.5 s at most.

    Args:
        path: path of the socket; its folder exists.
        field: field of the configuration that names it.
        remedy: what to do where it cannot be had.
        mode: who may connect, as of a file; from its first moment on.
        backlog: number of callers that may wait to be accepted.

    Raises:
        ConfigError: a node listens there, something else lies there, or it cannot be made.
    """

    def fault(why: str) -> ConfigError:
        return ConfigError(field, f"{path} cannot be used: {why}.", remedy)

    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise fault(f"its folder cannot be opened: {error.strerror}") from None
    try:
        _lock(folder, fault)
        if _is_taken(path, fault):
            raise ConfigError(field, f"another node listens at {path}.", remedy)
        return Place(path, _listen(path, mode, backlog, fault))
    finally:
        os.close(folder)


def _lock(folder: int, fault: Callable[[str], ConfigError]) -> None:
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EACCES, errno.EINTR}:
                return  # a file system without locks: two that start at once is all that is lost
            time.sleep(LOCK_PAUSE_S)
        else:
            return
    raise fault("its folder stays locked by another process")


def _is_taken(path: Path, fault: Callable[[str], ConfigError]) -> bool:
    """Whether somebody listens there; what a dead node left is taken away."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise fault(f"it cannot be looked at: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise fault("something else than a socket lies there")
    if is_alive(path):
        return True
    try:
        path.unlink()
    except OSError as error:
        raise fault(f"what a dead node left there stays: {error.strerror}") from None
    return False


def is_alive(path: Path) -> bool:
    """Whether somebody listens there."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)  # noqa: FBT003 - its only argument
        try:
            sock.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:
            return error.errno in {errno.EAGAIN, errno.EACCES}
    return True


def _listen(
    path: Path, mode: int, backlog: int, fault: Callable[[str], ConfigError]
) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        # Linux gives the path the mode of the socket, so that it never had another one.
        os.fchmod(listener.fileno(), mode)
        listener.bind(str(path))
        path.chmod(mode)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise fault(f"it cannot be made: {error.strerror or error}") from None
    return listener


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        state = path.lstat()
    except OSError:
        return None
    return state.st_dev, state.st_ino
