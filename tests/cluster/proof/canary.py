"""Whether a value reaches a disk: every write is watched, and every file is read afterwards.

Values carry a mark that nothing else contains. strace follows engine, replica and nodes and says
for each write into which file it went; and at the end every file in their folder, and every one
that they have open, deleted ones too, is searched for the mark.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster.proof.power import children

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Watch", "find_strace"]

#: Longer than any value of the test, head and all.
_STRING_BYTES = 65_536

_CALLS = "write,writev,pwrite64,pwritev,pwritev2,sendfile,copy_file_range,splice"

#: A call that wrote to a path: sockets, pipes and the like have another kind of name.
_WRITE = re.compile(r"^\d+ +(?:<\.\.\. )?(\w+)\((\d+)<(/[^>]*)>")


def find_strace() -> str:
    """Its path, or a skip."""
    found = shutil.which("strace")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("strace is not installed")
        pytest.skip("strace is not installed")
    return found


class Watch:
    """Watches processes that are started through it.

    Attributes:
        mark: what values carry.
        folder: in which they run.
    """

    def __init__(self, mark: str, folder: Path, traces: Path) -> None:
        self._mark = mark.encode()
        self.folder = folder
        self._traces = traces
        self._strace = find_strace()

    def prefix(self, name: str) -> tuple[str, ...]:
        """What to put in front of a command to watch it."""
        return (
            self._strace, "-f", "-yy", "--seccomp-bpf", "-s", str(_STRING_BYTES), "-e",
            f"trace={_CALLS}", "-o", str(self._traces / f"{name}.trace"),
        )  # fmt: skip

    def writes(self) -> list[str]:
        """Files into which something with the mark was written."""
        found = set()
        for trace in sorted(self._traces.glob("*.trace")):
            for line in trace.read_bytes().splitlines():
                if self._mark not in line:
                    continue
                match = _WRITE.match(line.decode("utf-8", "replace"))
                if match and not match[3].startswith("/dev/"):
                    found.add(f"{trace.stem}: {match[1]} into {match[3]}")
        return sorted(found)

    def n_seen(self) -> int:
        """Calls with the mark, into whatever: that it was looked for in the right way."""
        return sum(trace.read_bytes().count(self._mark) for trace in self._traces.glob("*.trace"))

    def files(self, pids: Iterable[int]) -> list[str]:
        """Files of the folder, and open ones, that contain the mark."""
        found = set()
        for path in self.folder.rglob("*"):
            if path.is_file() and self._mark in path.read_bytes():
                found.add(str(path))
        for pid in pids:
            for path, content in _open_files(pid):
                if self._mark in content and not path.startswith(str(self._traces)):
                    found.add(path)
        return sorted(found)


def _open_files(pid: int) -> Iterator[tuple[str, bytes]]:
    """Path and content of the regular files that a process and its children have open."""
    for child in children(pid):
        yield from _open_files(child)
    for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            if stat.S_ISREG(descriptor.stat().st_mode):
                yield str(descriptor.readlink()), descriptor.read_bytes()
        except OSError:
            continue
