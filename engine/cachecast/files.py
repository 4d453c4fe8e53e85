"""Files that a configuration is made of: read whole, unless they are none of that kind."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

__all__ = ["MAX_FILE_BYTES", "read_file"]

#: Size of a file at most: a hundred thousand apps.
MAX_FILE_BYTES: Final = 16 * 1024 * 1024


def read_file(path: Path | str) -> bytes:
    """All that a file holds. Blocks.

    Raises:
        OSError: it cannot be read, or is larger than :data:`MAX_FILE_BYTES`, as a device is that
            has no end.
    """
    with Path(path).open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"{os.strerror(errno.EFBIG)}, {MAX_FILE_BYTES} bytes at most")
    return data
