"""The handle on a generator process that scenarios hold.

One method for each verb, all of them checkpoints.

One request is on its way at a time. Cancelling a request leaves its answer unread, so a generator
whose request was cancelled must be closed, not used again; `open_generator` does so when its block
is left.
"""

from __future__ import annotations

import json
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from cachecast_bench.process import Child, child_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cachecast_bench.dialects import Endpoint


class GeneratorError(Exception):
    """The generator could not do what it was asked to; the message is its own."""


class Generator:
    """Asks one generator process to connect, publish and report."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._pending = b""

    @property
    def child(self) -> Child:
        """The process."""
        return self._child

    async def connect(self, **options: object) -> dict[str, Any]:
        """Connect clients (`Commands.connect`); every one of them must get through.

        Raises:
            GeneratorError: Some did not, or not in time.
        """
        report = await self.ask("connect", **options)
        if (
            report["n_failed"]
            or report["seconds"] is None
            or report["n_connected"] != options["count"]
        ):
            reasons = "; ".join(report["errors"]) or "not in time"
            message = f"{report['n_connected']} of {options['count']} clients connected: {reasons}"
            raise GeneratorError(message)
        return report

    async def disconnect(self, crew: str) -> None:
        """Close the clients of `crew`."""
        await self.ask("disconnect", crew=crew)

    async def settle(self, seconds: float) -> dict[str, Any]:
        """Let sockets be served for `seconds` without publishing."""
        return await self.ask("settle", seconds=seconds)

    async def run(self, **options: object) -> dict[str, Any]:
        """Carry out a run (`Commands.run`) and return its report."""
        return await self.ask("run", **options)

    async def ask(self, verb: str, **arguments: object) -> dict[str, Any]:
        """Send one request, wait for its answer.

        Raises:
            GeneratorError: The generator failed, or its process has ended.
        """
        process = self._child.process
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send_all(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
        while (end := self._pending.find(b"\n")) < 0:
            data = await process.stdout.receive_some(1 << 20)
            if not data:
                who, words = self._child.name, self._child.last_words()
                message = f"the {who} ended while it was asked to {verb}\n{words}"
                raise GeneratorError(message)
            self._pending += data
        line, self._pending = self._pending[:end], self._pending[end + 1 :]
        answer = json.loads(line)
        if "error" in answer:
            raise GeneratorError(f"{verb}: {answer['error']}\n{answer['trace']}")
        result: dict[str, Any] = answer["ok"]
        return result


@asynccontextmanager
async def open_generator(
    endpoint: Endpoint, *, core: int, program: str = "generator"
) -> AsyncIterator[Generator]:
    """Start a generator for `endpoint`, pinned to `core`; end it when the block is left.

    `program` is the package of this project that is started.
    """
    command = [sys.executable, "-m", f"cachecast_bench.{program}", json.dumps(endpoint.to_json())]
    async with child_process(program, command, core=core, wants_pipes=True) as child:
        yield Generator(child)
