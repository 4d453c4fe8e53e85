"""Where a control socket lies, and who may speak there.

The kernel says whose process is at the other end (SO_PEERCRED), which no path and no mode can: so
both ends look before either says a word. A node takes its own user and root; a caller speaks to a
node of its own user's or root's, and root to any.
"""

from __future__ import annotations

import os
import pwd
import socket
import stat
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cachecast.errors import ConfigError, ControlError
from cachecast.server import place
from cachecast.server.place import Place

if TYPE_CHECKING:
    import trio

__all__ = ["Place", "default_paths", "foreign_user", "open_place"]

#: Number of callers that may wait for :meth:`ControlDesk.run`.
BACKLOG: Final = 64

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


def open_place(path: Path) -> Place:
    """Listen at a path for callers of the node's user; see :func:`.server.place.open_place`.

    Raises:
        ConfigError: a node listens there, something else lies there, or it cannot be made.
    """
    return place.open_place(path, field=_FIELD, remedy=_OTHER_PATH, mode=0o600, backlog=BACKLOG)


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
            if place.is_alive(path):
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
