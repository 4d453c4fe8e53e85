"""What a peer is: a target that may not be installed."""

from __future__ import annotations

import shutil

from typing_extensions import override

from benchmarks.target import Target


class Peer(Target):
    """Another server doing the same work.

    Attributes:
        install: How to get it, as a command.
        program: The executable to look for; empty if it is something else.
        configuration: What matters of it, in words; reports print it.
    """

    is_peer = True
    install = ""
    program = ""
    configuration = ""

    def notes(self) -> str:
        """Return title and configuration."""
        return f"{self.title}; {self.configuration}"

    def is_installed(self) -> bool:
        """Say whether it can be started here; cheap, starts nothing."""
        return find_program(self.program) is not None

    @override
    def why_missing(self) -> str | None:
        """Return how to install it, or None if it is there."""
        return None if self.is_installed() else f"install it with: {self.install}"


def find_program(name: str) -> str | None:
    """Return the path of an executable, also one that only an administrator's PATH has."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
