"""The configuration of a node that runs, read again: by SIGHUP, and by ``cachecast reload``.

Everything is read that was read at the start: the file, the environment, and the options of the
command line, which beat both as they did then. It is checked whole, files of certificates included,
before anything changes; whatever is wrong with it leaves everything as it was.
"""

from __future__ import annotations

import ipaddress
import traceback
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

import click
import structlog
import trio

from cachecast.changes import Changes, compare, reloadable
from cachecast.cli.control import ask_node, control_options, find_node
from cachecast.cli.systemd import Supervisor
from cachecast.config import load_config
from cachecast.errors import ConfigError, ControlError, EngineError
from cachecast.server.tls import TlsTerms
from cachecast.workers.crew import RELOAD_LIMIT_S

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cachecast.config import FileConfig
    from cachecast.control.desk import Call, ControlDesk

__all__ = [
    "Reloadable",
    "Reloader",
    "Source",
    "check_exposure",
    "describe",
    "read_certificate",
    "reload_command",
]

#: Seconds that reading may take: a disk may stand still. The node goes on meanwhile.
READ_LIMIT_S: Final = 30.0

#: Number of changes that a line of the log names.
MAX_LOGGED: Final = 50

#: Seconds that a command waits for the answer.
ANSWER_LIMIT_S: Final = READ_LIMIT_S + RELOAD_LIMIT_S + 10.0

_log = structlog.get_logger("cachecast.reload")


@click.command(name="reload")
@control_options
def reload_command(**options: Any) -> None:  # noqa: ANN401 - they are the options'
    """Have the node that runs on this machine read its configuration again.

    It is checked whole before anything changes. Exit code 0: the node serves by it, and what
    changed is listed; 1: it is refused, and says why, and everything is as it was.
    """
    changes = ask_node(find_node(**options), "reload", Changes, within_s=ANSWER_LIMIT_S)
    click.echo(describe(changes, "changed:", "nothing has changed"))


def describe(changes: Changes, title: str, nothing: str) -> str:
    """Changes as they are read on a terminal."""
    lines = [title, *(f"  {text}" for text in changes.made)] if changes.made else [nothing]
    if changes.fixed:
        lines += ["needs a restart:", *(f"  {text}" for text in changes.fixed)]
    return "\n".join(lines)


class Source:
    """Where a node's configuration comes from, as it was said at its start.

    Attributes:
        path: path of the file; None for none.
    """

    def __init__(
        self, path: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]
    ) -> None:
        # Whoever sends the signal may stand in another folder, but the node does not move.
        self.path = None if path is None else path.absolute()
        self._environ = environ
        self._flags = flags

    def read(self, text: str | None = None) -> FileConfig:
        """Read and check it. Blocks for the file.

        Args:
            text: text that takes the file's place; None reads the file.

        Raises:
            ConfigError: it cannot work; says why.
        """
        config = load_config(self.path, text=text, environ=self._environ, flags=self._flags)
        check_exposure(config)
        return config


class Reloadable(Protocol):
    """A node that serves, in one process or in several.

    Attributes:
        config: the configuration that it serves by.
        tls: certificate that it serves with; None for plain text.
    """

    config: FileConfig
    tls: TlsTerms | None

    @property
    def is_ending(self) -> bool:
        """Whether it has begun to end."""

    def check(self, config: FileConfig) -> None:
        """Whether it could serve by another configuration. Called in a thread.

        Raises:
            ConfigError: it could not.
        """

    async def reload(self, config: FileConfig, tls: TlsTerms | None) -> None:
        """Serve by another configuration from now on.

        Args:
            config: the whole of it, checked; what cannot change at run time is as it was.
            tls: its certificate; None where there is none.

        Raises:
            EngineError: it cannot, or a part of it has not; says what.
        """


class Reloader:
    """Has a node serve by what its source says now; one at a time.

    Attributes:
        turn: lock that is held while the configuration is read and applied, so that nothing else
            changes what the node is meanwhile.
        is_due: whether a signal came for which nothing has been read yet.
    """

    def __init__(self, source: Source, supervisor: Supervisor | None = None) -> None:
        self._source = source
        self._supervisor = supervisor or Supervisor({})
        self.turn = trio.Lock()
        self.is_due = False
        # Of its own: threads that wait for a dead disk must not be those that others wait for.
        self._limiter = trio.CapacityLimiter(1)
        self._node: Reloadable | None = None
        self._is_ready = trio.Event()
        self._is_wanted = trio.Event()
        self._has_left = False

    def leave(self) -> None:
        """Change nothing any more: another process is the node. Never yields."""
        self._has_left = True

    def begin(self, node: Reloadable, desk: ControlDesk | None) -> None:
        """The node serves: it may be told from now on, and be asked at its control socket."""
        self._node = node
        self._is_ready.set()
        if desk is not None:
            desk.add("reload", self._answer_reload)
            desk.add("diff", self._answer_diff)

    def want(self) -> None:
        """Read it again soon: a signal came. Never yields.

        Of several that come while one is carried out one more is carried out.
        """
        self.is_due = True
        self._is_wanted.set()

    async def run(self) -> NoReturn:
        """Do what signals ask for, for ever."""
        await self._is_ready.wait()
        while True:
            await self._is_wanted.wait()
            self._is_wanted = trio.Event()
            try:
                if self.is_due:
                    await self.reload()
            except EngineError:
                pass  # it has been logged
            except Exception:  # noqa: BLE001 - a bug of ours must not end a node that serves
                _log.error("not reloaded", traceback=traceback.format_exc())

    async def reload(self) -> Changes:
        """Read it again and serve by it.

        Raises:
            EngineError: it was not done; says why. It has been logged.
        """
        async with self.turn:
            if self._has_left:
                raise ControlError("Another process has taken over meanwhile; ask that one.")
            self.is_due = False  # what is read from here on is what is wanted
            try:
                with self._supervisor.reloading():
                    config, tls = await self._read(None)
                    node = self._require()
                    changes = _compare(node, config, tls)
                    await node.reload(reloadable(node.config, config), tls)
            except EngineError as error:
                _log.warning("not reloaded", error=str(error).strip())
                raise
        more = len(changes.made) - MAX_LOGGED
        _log.info(
            "reloaded",
            changes=[*changes.made[:MAX_LOGGED], *([f"and {more} more"] if more > 0 else [])],
            needs_restart=changes.fixed,
        )
        return changes

    async def compare(self, text: str | None = None) -> Changes:
        """What :meth:`reload` would do, if the file had another text.

        Raises:
            EngineError: it would not be done; says why.
        """
        async with self.turn:
            config, tls = await self._read(text)
            return _compare(self._require(), config, tls)

    def _require(self) -> Reloadable:
        if self._node is None:
            raise ControlError("The node has not begun to serve.")
        if self._node.is_ending:
            raise ControlError("The node is ending, so nothing is changed any more.")
        return self._node

    async def _read(self, text: str | None) -> tuple[FileConfig, TlsTerms | None]:
        node = self._require()

        def read() -> tuple[FileConfig, TlsTerms | None]:
            config = self._source.read(text)
            served = reloadable(node.config, config)
            # What stays as it is may not go with what changes.
            served.check()
            served.server.check()
            check_exposure(served)
            node.check(served)
            return config, read_certificate(served)

        with trio.move_on_after(READ_LIMIT_S):
            return await trio.to_thread.run_sync(
                read, abandon_on_cancel=True, limiter=self._limiter
            )
        raise ConfigError(
            str(self._source.path), f"cannot be read within {READ_LIMIT_S:g} seconds."
        )

    async def _answer_reload(self, call: Call) -> Changes:
        del call
        return await self.reload()

    async def _answer_diff(self, call: Call) -> Changes:
        return await self.compare(call.read(str | None))  # type: ignore[arg-type]


def _compare(node: Reloadable, config: FileConfig, tls: TlsTerms | None) -> Changes:
    changes = compare(node.config, config)
    if node.tls is None or tls is None or node.tls.fingerprint == tls.fingerprint:
        return changes
    return Changes((*changes.made, "server.tls_cert: the certificate is another"), changes.fixed)


def read_certificate(config: FileConfig) -> TlsTerms | None:
    """Certificate and key that a configuration names; None if it names none. Blocks for the files.

    Raises:
        ConfigError: they cannot be used.
    """
    options = config.server
    if options.tls_cert and options.tls_key:
        return TlsTerms(options.tls_cert, options.tls_key)
    return None


def check_exposure(config: FileConfig) -> None:
    """Refuse to show the public demonstration credentials to anyone but this machine.

    Raises:
        ConfigError: they would be served beyond loopback.
    """
    if config.is_demo and not _is_loopback(config.server.host):
        raise ConfigError(
            "server.host",
            f"the demonstration app's secret is public, so it may not be served on "
            f"{config.server.host}.",
            "Make an app of your own with `cachecast generate app`.",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
