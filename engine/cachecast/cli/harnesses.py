"""``cachecast load`` and ``cachecast bench``: programs beside the broker, started and not imported.

Each takes the place of this process: gevent patches whatever it finds, a benchmark wants a core
and an interpreter of its own, and neither has to be installed. What follows a command's name is
theirs, ``--help`` and the shell's completion included.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

__all__ = ["bench", "load"]


class _Harness(click.Command):
    """A command that becomes ``python -m MODULE`` with the same arguments."""

    def __init__(self, name: str, module: str, text: str) -> None:
        super().__init__(name, help=text, add_help_option=False)
        self._module = module

    # (`typing.override` needs Python 3.12.)
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:  # type: ignore[explicit-override]
        ctx.args = args
        return args

    def invoke(self, ctx: click.Context) -> NoReturn:  # type: ignore[explicit-override]
        _become(self._module, ctx.args)

    def shell_complete(  # type: ignore[explicit-override]
        self,
        ctx: click.Context,  # noqa: ARG002
        incomplete: str,  # noqa: ARG002
    ) -> list[CompletionItem]:
        """Have it answer the shell, whose question is in the environment."""
        # Nothing but answers may appear in a line that somebody is typing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        _become(self._module, [])


def _become(module: str, arguments: list[str]) -> NoReturn:
    # `python -m` would look for modules in the current folder first, and people have a queue.py.
    # The environment, and not -P: the processes that it starts in turn must not look there either.
    environ = os.environ | {"PYTHONSAFEPATH": "1"}
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environ)  # noqa: S606


load = _Harness(
    "load",
    "cachecast_load",
    "Load-test a Pusher-compatible deployment (cachecast[load]).",
)
bench = _Harness(
    "bench",
    "cachecast_bench",
    "Measure Cachecast beside the physical limit and its peers (cachecast[bench]).",
)
