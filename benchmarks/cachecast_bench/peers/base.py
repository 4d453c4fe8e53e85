"""What a peer is: a target that may not be installed."""

from __future__ import annotations

import re
import shutil
import subprocess

from typing_extensions import override

from cachecast_bench.target import Target

_VERSION = re.compile(r"\d+\.\d+[\w.+-]*")


class Peer(Target):
    """Another server doing the same work.

    Attributes:
        install: How to get it, as a command.
        program: The executable to look for; empty if it is something else.
        configuration: What matters of it, in words; reports print it.
        version_options: With these the executable prints its version and ends.
    """

    is_peer = True
    install = ""
    program = ""
    configuration = ""
    version_options: tuple[str, ...] = ("--version",)

    def notes(self) -> str:
        """Return title, version and configuration."""
        return f"{self.title} {self.version()}; {self.configuration}"

    def version(self) -> str:
        """Return the version that is installed, or nothing if it does not say."""
        return ask_version([self.executable() or self.program, *self.version_options])

    def executable(self) -> str | None:
        """Return the path of its executable, if there is one."""
        return find_program(self.program)

    def is_installed(self) -> bool:
        """Say whether it can be started here; cheap, starts nothing."""
        return self.executable() is not None

    @override
    def why_missing(self) -> str | None:
        """Return how to install it, or None if it is there."""
        return None if self.is_installed() else f"install it with: {self.install}"


def ask_version(command: list[str]) -> str:
    """Return the first version number that a program prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = _VERSION.search(done.stdout + done.stderr)
    return found[0] if found else ""


def find_program(name: str) -> str | None:
    """Return the path of an executable, also one that only an administrator's PATH has."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
