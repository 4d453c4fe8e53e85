"""Where a control socket lies, and who may speak there.

The kernel says whose process is at the other end (SO_PEERCRED), which no path and no mode can: so
both ends look before either says a word. A node takes its own user and root; a caller speaks to a
node of its own user's or root's, and root to any.

Two nodes that start at the same moment must not take one path for each other's leftovers. So the
look at what lies there and the taking of it happen under a lock of the folder, which is held for
microseconds and goes with the process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import socket
import stat
import struct
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cachecast.errors import ConfigError, ControlError

if TYPE_CHECKING:
    import trio

__all__ = ["Place", "default_paths", "foreign_user", "open_place"]

#: Number of callers that may wait for :meth:`ControlDesk.run`.
BACKLOG: Final = 64

#: Tries to lock a folder, and seconds between two. Whoever holds it for longer means no good.
LOCK_TRIES: Final = 50
LOCK_PAUSE_S: Final = 0.01

_FIELD: Final = "server.control"
_OTHER_PATH: Final = "Give another path with --control or server.control."


def default_paths(port: int) -> list[Path]:
    """Where the control socket of a node may lie that was given no path, the first choice first.

    Args:
        port: number of the node's port for clients.
    """
    folders = [Path(tempfile.gettempdir()) / f"cachecast-{os.geteuid()}"]
    folders.insert(0, Path("/run/cachecast"))
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        folders.insert(0, Path(runtime) / "cachecast")
    return [folder / f"{port}.sock" for folder in folders]


class Place:
    """A control socket that listens.

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


def open_place(path: Path) -> Place:
    """Listen at a path, in place of what a node that has died left. Blocks, for 0.5 s at most.

    Raises:
        ConfigError: a node listens there, something else lies there, or it cannot be made.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _fault(path, f"its folder cannot be opened: {error.strerror}") from None
    try:
        _lock(folder, path)
        _clear(path)
        return Place(path, _listen(path))
    finally:
        os.close(folder)


def open_default_place(port: int) -> Place:
    """Listen at the first of :func:`default_paths` that can be had.

    Raises:
        ConfigError: none can; says why the last could not.
    """
    fault: ConfigError | None = None
    for path in default_paths(port):
        try:
            if path.parent != Path("/run/cachecast"):  # which is root's to make, or systemd's
                _make_private(path.parent)
            return open_place(path)
        except ConfigError as error:
            fault = error
            if _is_alive(path):
                break  # another path would hide one of two nodes of this port
    assert fault is not None
    raise fault


def foreign_user(sock: socket.socket | trio.socket.SocketType, *, is_caller: bool) -> str | None:
    """Name of the user at the other end of a connected socket, if that one is not to be spoken to.

    Args:
        sock: connected Unix socket.
        is_caller: whether the other end is the caller, and this one the node.
    """
    uid, mine = _peer_uid(sock), os.geteuid()
    if uid in {mine, 0} or (mine == 0 and not is_caller):
        return None
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _peer_uid(sock: socket.socket | trio.socket.SocketType) -> int:
    if hasattr(socket, "SO_PEERCRED"):
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
        return int(struct.unpack("iII", credentials)[1])
    # LOCAL_PEERCRED of macOS and BSD: a struct xucred, which begins with version and user.
    return int(struct.unpack_from("II", sock.getsockopt(0, 1, 76))[1])


def _make_private(folder: Path) -> None:
    """Make a folder that is the user's alone, or see that it is."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
    except OSError as error:
        raise _fault(folder, f"it cannot be made: {error.strerror}") from None
    is_private = state.st_uid == os.geteuid() and not state.st_mode & 0o022
    if not (stat.S_ISDIR(state.st_mode) and is_private):
        raise _fault(folder, "it is not a folder that only its owner, this user, may write to")


def _lock(folder: int, path: Path) -> None:
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EACCES, errno.EINTR}:
                return  # a file system without locks: two that start at once is all that is lost
            time.sleep(LOCK_PAUSE_S)
        else:
            return
    raise _fault(path, "its folder stays locked by another process")


def _clear(path: Path) -> None:
    """Take away what a dead node left."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _fault(path, f"it cannot be looked at: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise _fault(path, "something else than a socket lies there")
    if _is_alive(path):
        raise ConfigError(_FIELD, f"another node listens at {path}.", _OTHER_PATH)
    try:
        path.unlink()
    except OSError as error:
        raise _fault(path, f"what a dead node left there stays: {error.strerror}") from None


def _is_alive(path: Path) -> bool:
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


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        # Linux gives the path the mode of the socket, so that it never had another one.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _fault(path, f"it cannot be made: {error.strerror or error}") from None
    return listener


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        state = path.lstat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _fault(path: Path, why: str) -> ConfigError:
    return ConfigError(_FIELD, f"{path} cannot be used: {why}.", _OTHER_PATH)


def connect_fault(path: Path, error: OSError) -> ControlError:
    """Why a node cannot be reached, in words."""
    if isinstance(error, FileNotFoundError):
        return ControlError(f"No node runs at {path}: there is no such socket.")
    if isinstance(error, ConnectionRefusedError):
        return ControlError(f"No node runs at {path} any more: nobody listens there.")
    if isinstance(error, PermissionError):
        return ControlError(f"The node at {path} is another user's, who alone may speak to it.")
    return ControlError(f"The node at {path} cannot be reached: {error.strerror or error}.")
