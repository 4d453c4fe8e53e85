"""A new process in the place of the running one: how it starts, and how it is told from then on.

    cachecast upgrade   or   kill -USR2 PID

The running process starts the new one, with its own command line and maybe of a new version, and
hands over to it (:mod:`cachecast.server.succession`). The first process of a node stays under its
number as a shell of itself (:mod:`cachecast.cli.stand_in`), so that nobody who supervises it
notices either. What it is sent comes to its successors by a pipe: systemd sends SIGTERM to all
processes of a service, and one that took both would take the second for impatience.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

import click
import structlog
import trio

from cachecast import __version__
from cachecast.children import describe_end, end_with
from cachecast.cli import stand_in
from cachecast.cli.control import ask_node, control_options, find_node
from cachecast.errors import EngineError, UpgradeError
from cachecast.handover.line import Line, LineError
from cachecast.handover.state import Failed
from cachecast.server.succession import Predecessor, give, retire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cachecast.cli.reloads import Reloader
    from cachecast.control.desk import Action, Call, ControlDesk
    from cachecast.server import Server

__all__ = [
    "Heir",
    "Inheritance",
    "Successor",
    "Upgradable",
    "Upgrader",
    "Upgrades",
    "inherit",
    "upgrade_command",
]

#: Variable that tells a new process of the running one: descriptors of the line to it, and of the
#: pipe by which signals come, and the id of the process. It is no setting, and gone once read.
VARIABLE: Final = "HANDOVER_LINE"

#: What whoever asks for an upgrade during one is told.
UNDER_WAY: Final = "An upgrade is under way already."

#: Seconds that the command waits for the node: longer than all its own limits together.
ANSWER_LIMIT_S: Final = 120.0

#: Seconds that those have to hear their answer who asked the process that is replaced.
WORDS_LIMIT_S: Final = 5.0

_PR_SET_CHILD_SUBREAPER: Final = 36

_log = structlog.get_logger("cachecast.upgrade")


# --- the new process


class Inheritance:
    """What a process has of the one before it.

    Attributes:
        predecessor: the process that it replaces.
        orders: descriptor of a pipe by which it is sent signals, a byte each.
    """

    def __init__(self, line: Line, orders: int, on_whole: Callable[[], None] | None = None) -> None:
        on_whole = on_whole or partial(end_with, None)
        self.predecessor = Predecessor(line, __version__, on_whole=on_whole)
        self.orders = orders
        self._line = line
        self._has_ended = False
        self._is_over = False

    def leave_orders(self) -> None:
        """Take no more signals: they are the next process's. Never yields."""
        self._is_over = True

    def fail(self, text: str) -> None:
        """Say why this process gives up; harmless if nobody hears it."""
        try:
            self._line.send_now(Failed(text), deadline=time.monotonic() + 1.0)
        except (LineError, ValueError, OSError):
            pass  # it has ended, or has what it wanted

    def __aiter__(self) -> Inheritance:
        """Signals by number, until this process is to end because the first one has."""
        return self

    async def __anext__(self) -> int:
        """The next one. If cancelled, nothing is lost."""
        # Not trio's FdStream: closed, it makes the pipe block, which the next process shares.
        while not self._has_ended:
            await trio.lowlevel.wait_readable(self.orders)
            if self._is_over:
                break
            try:
                # One at a time: what follows may be for the next process.
                data = os.read(self.orders, 1)
            except BlockingIOError:
                continue
            if data:
                return data[0]
            # The first process was killed, and the node ends with it, as it would have before.
            self._has_ended = True
            return signal.SIGTERM
        return await trio.sleep_forever()


@contextmanager
def inherit() -> Iterator[Inheritance | None]:
    """Find what the running process left for this one; None if this one is the first.

    What ends the block while nothing has been taken over is told to the running one.
    """
    given = os.environ.pop(VARIABLE, None)
    if given is None:
        yield None
        return
    # What systemd sends to all processes of a service comes to this one by the pipe.
    signal.pthread_sigmask(signal.SIG_BLOCK, stand_in.SIGNALS)
    line_fd, orders, parent = map(int, given.split(":"))
    # Until everything is here, this process is nothing without that one.
    end_with(parent)
    os.set_inheritable(line_fd, False)  # noqa: FBT003 - its only argument beside the descriptor
    os.set_inheritable(orders, False)  # noqa: FBT003
    inheritance = Inheritance(Line(socket.socket(fileno=line_fd)), orders)
    try:
        yield inheritance
    except BaseException as error:
        fault: BaseException = error
        while isinstance(fault, BaseExceptionGroup):
            fault = fault.exceptions[0]
        text = str(fault).strip() if isinstance(fault, EngineError) else repr(fault)
        inheritance.fail(text or type(fault).__name__)
        raise


# --- the running process


class Heir:
    """The process that has taken over.

    Attributes:
        pid: id of it.
    """

    def __init__(self, process: subprocess.Popen[bytes], orders: int | None) -> None:
        """Note it.

        Args:
            process: the process.
            orders: descriptor to send it signals by; None if an earlier process has that.
        """
        self.pid = process.pid
        self._process = process
        self._orders = orders

    def order(self, number: int) -> None:
        """Hand a signal on, unless an earlier process does. Never blocks."""
        if self._orders is not None:
            try:
                os.write(self._orders, bytes([number]))
            except OSError:
                pass  # it has ended

    def replace(self) -> NoReturn:
        """Leave the rest to it: become its stand-in, or end if there is one already."""
        if self._orders is None:
            sys.exit(0)
        os.set_inheritable(self._orders, True)  # noqa: FBT003 - its only argument beside it
        script = Path(stand_in.__file__)
        if script.exists():  # else the old release has been removed
            command = [sys.executable, "-I", "-S", str(script), str(self._orders)]
            with suppress(OSError):
                # Nothing of the environment, in which an app's secret may stand.
                os.execve(sys.executable, command, {})  # noqa: S606
        sys.exit(stand_in.stand_in(self._orders))  # as well, in forty times the memory


class Successor(Protocol):
    """What goes on where this process ends."""

    def order(self, number: int) -> None:
        """See :meth:`Heir.order`."""

    def replace(self) -> NoReturn:
        """See :meth:`Heir.replace`."""


class Sibling:
    """A process that has taken over and is somebody else's child."""

    def order(self, number: int) -> None:
        """Its parent orders it."""

    def replace(self) -> NoReturn:
        """Nobody has to stay."""
        sys.exit(0)


class Upgrades:
    """Replaces the process of a node, once; a try that fails may be followed by another one.

    Attributes:
        heir: the process that has taken over; None before that.
        more_seats: listening sockets beside those of the server: what each is for, its address, its
            descriptor.
        is_ending: whether the node has been told to end, so that it is not replaced any more.
        is_reload_due: function that says whether the node has been told to read its configuration
            again, and has not begun.
        verbs: what can be asked at the control socket besides.
    """

    def __init__(
        self,
        server: Server,
        inheritance: Inheritance | None,
    ) -> None:
        """Make it.

        Args:
            server: server of the node.
            inheritance: what the process before this one left; None if this is the first.
        """
        self.heir: Successor | None = None
        self.verbs: dict[str, Action] = {}
        self._on_heir: list[Callable[[], None]] = []
        if inheritance is not None:
            self._on_heir.append(inheritance.leave_orders)
        self.more_seats: list[tuple[str, str, int]] = []
        self.is_ending = False
        self.is_reload_due: Callable[[], bool] = lambda: False
        self._server = server
        self._orders = None if inheritance is None else inheritance.orders
        self._n_absent = 0

    def when_heir(self, action: Callable[[], None]) -> None:
        """Have something called in the moment in which another process has taken over."""
        self._on_heir.append(action)

    async def run(self, program: str | None = None) -> dict[str, int]:
        """Start a new process and hand over to it; gives what there was, in numbers.

        One at a time, which is the caller's to see to.

        Args:
            program: Python interpreter of the new process; None for that of this one.

        Raises:
            UpgradeError: it failed, and this process goes on.
        """
        broker = self._server.broker
        if self.is_ending or broker.clients.is_draining:
            raise UpgradeError("The node is ending.")
        n_clients, n_values = broker.clients.n_sessions, broker.cache.n_entries()
        try:
            process, line, orders = _start(program or sys.executable, self._orders)
            _log.info("upgrade begun", pid=process.pid)
            try:
                self._n_absent = await give(
                    self._server,
                    line,
                    self._seats(),
                    end_other=partial(_end, process),
                    is_ending=lambda: self.is_ending,
                    is_reload_due=self.is_reload_due,
                )
            except BaseException:
                if orders is not None:
                    os.close(orders)
                raise
            finally:
                line.close()
        except UpgradeError as error:
            _log.error("upgrade failed, this process goes on", error=str(error))
            raise
        self.heir = Heir(process, orders)
        for action in self._on_heir:
            action()
        return {
            "pid": process.pid,
            "connections": n_clients - self._n_absent,
            "closed": self._n_absent,
            "values": n_values,
        }

    async def hand_over(self, line: Line, end_other: Callable[[], None]) -> tuple[int, int]:
        """Hand over to a process that somebody else has started, and that listens already.

        Args:
            line: line to it.
            end_other: function that kills it and returns when it is dead.

        Returns:
            Numbers of clients that moved, and that could not.

        Raises:
            UpgradeError: it failed, and this process goes on.
        """
        n_clients = self._server.broker.clients.n_sessions
        self._n_absent = await give(
            self._server,
            line,
            [],
            end_other=end_other,
            is_ending=lambda: self.is_ending,
            is_reload_due=self.is_reload_due,
        )
        self.heir = Sibling()
        for action in self._on_heir:
            action()
        return n_clients - self._n_absent, self._n_absent

    def _seats(self) -> list[tuple[str, str, int]]:
        listeners = self._server.listeners
        return [
            (
                "admin" if listener.is_admin else "clients",
                listener.name,
                listener.sock.fileno(),
            )
            for listener in listeners
        ] + self.more_seats

    async def retire(self) -> None:
        """Close what could not move."""
        await retire(self._server, self._n_absent)


class Replaceable(Protocol):
    """How a node is replaced."""

    @property
    def heir(self) -> Successor | None:
        """What goes on where this process ends; None before that."""

    #: See :class:`Upgrades`.
    verbs: dict[str, Action]
    more_seats: list[tuple[str, str, int]]
    is_ending: bool
    is_reload_due: Callable[[], bool]

    def when_heir(self, action: Callable[[], None]) -> None:
        """See :meth:`Upgrades.when_heir`."""

    async def run(self, program: str | None = None) -> dict[str, int]:
        """See :meth:`Upgrades.run`."""


class Upgradable(Protocol):
    """A node, as far as it can be replaced."""

    @property
    def upgrades(self) -> Replaceable:
        """What replaces it."""


class Upgrader:
    """Has a node replaced whenever that is wanted: by SIGUSR2, or by the control socket.

    It takes turns with the reloader: the new process reads the configuration at its start, and what
    was changed after that would be undone by it.
    """

    def __init__(self, reloader: Reloader) -> None:
        self._reloader = reloader
        self._is_under_way = False
        self._upgrades: Replaceable | None = None
        self._desk: ControlDesk | None = None
        self._wanted = trio.Event()

    def begin(self, upgrades: Replaceable, desk: ControlDesk | None) -> None:
        """Take orders from now on. Never yields."""
        self._upgrades, self._desk = upgrades, desk
        upgrades.is_reload_due = lambda: self._reloader.is_due
        upgrades.when_heir(self._reloader.leave)
        if desk is not None:
            place = desk.place
            upgrades.more_seats.append(("control", str(place.path), place.listener.fileno()))

            async def upgrade(call: Call) -> object:
                return await self._replace(upgrades, call.read(str) or None)

            for verb, action in {"upgrade": upgrade, **upgrades.verbs}.items():
                desk.add(verb, action)
            upgrades.when_heir(desk.stop)

    def want(self) -> None:
        """Have it replaced; how that went stands in the log. Never yields."""
        if self._is_under_way:
            _log.error("no upgrade", error=UNDER_WAY)
        else:
            self._wanted.set()

    def end(self) -> None:
        """The node has been told to end: no other process takes over. Never yields."""
        if self._upgrades is not None:
            self._upgrades.is_ending = True

    def pass_on(self, number: int) -> bool:
        """Hand a signal to the process that has taken over, if one has; whether that is so."""
        heir = None if self._upgrades is None else self._upgrades.heir
        if heir is not None:
            heir.order(number)
        return heir is not None

    async def run(self) -> NoReturn:
        """Carry out what :meth:`want` asks for, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if self._upgrades is not None:
                try:
                    await self._replace(self._upgrades)
                except UpgradeError:
                    pass  # it is logged

    async def _replace(self, upgrades: Replaceable, program: str | None = None) -> dict[str, int]:
        if self._is_under_way or upgrades.heir is not None:
            raise UpgradeError(UNDER_WAY)
        self._is_under_way = True
        try:
            async with self._reloader.turn:
                return await upgrades.run(program)
        finally:
            self._is_under_way = False

    async def wait_answered(self) -> None:
        """Wait, once another process has taken over, until all who asked here are answered."""
        if self._desk is not None:
            with trio.move_on_after(WORDS_LIMIT_S):
                await self._desk.wait_answered()


def _start(program: str, inherited: int | None) -> tuple[subprocess.Popen[bytes], Line, int | None]:
    """Start the new process; gives it, the line to it, and where to write orders if that is new.

    Raises:
        UpgradeError: it cannot be started.
    """
    if sys.platform != "linux":
        raise UpgradeError("Only Linux hands a process's connections over; restart instead.")
    orders: int | None = None
    reading = inherited
    ours = None
    try:
        ours, theirs = socket.socketpair()
        with theirs:
            if reading is None:
                reading, orders = os.pipe()
                os.set_blocking(orders, False)
                os.set_blocking(reading, False)
                libc = ctypes.CDLL(None, use_errno=True)
                libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            descriptors = theirs.fileno(), reading
            process = subprocess.Popen(  # noqa: S603 - our own program
                # -P: modules are not looked for in the current folder.
                [program, "-P", "-m", "cachecast", *sys.argv[1:]],
                env={**os.environ, VARIABLE: f"{descriptors[0]}:{descriptors[1]}:{os.getpid()}"},
                pass_fds=descriptors,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
            )
    except OSError as error:
        if ours is not None:
            ours.close()
        for fd in () if orders is None or reading is None else (reading, orders):
            os.close(fd)
        raise UpgradeError(
            f"The new process cannot be started: {error.strerror}; this one goes on."
        ) from None
    if inherited is None:
        os.close(reading)
    return process, Line(ours), orders


def _end(process: subprocess.Popen[bytes]) -> None:
    """Make sure that it is dead, before this process goes on."""
    if process.poll() is None:
        process.kill()
    code = process.wait()
    _log.info("the new process has ended", pid=process.pid, end=describe_end(code))


# --- the command


@click.command(name="upgrade")
@control_options
def upgrade_command(**options: Any) -> None:  # noqa: ANN401 - they are the options'
    """Have a new process take the place of the node that runs on this machine.

    It is of the version that this command is of, and reads the configuration again. Clients stay
    connected, and cached values keep what remains of their lives. Exit code 0: it has taken over;
    1: it has not, and says why, and the running one goes on.
    """
    node = find_node(**options)
    done = ask_node(node, "upgrade", dict[str, int], sys.executable, within_s=ANSWER_LIMIT_S)
    if n_workers := done.get("workers"):
        limit_s = n_workers * ANSWER_LIMIT_S
        done = ask_node(node, "upgraded", dict[str, int], within_s=limit_s)
        click.echo(
            f"Process {done['pid']} and its {n_workers} workers have been replaced: "
            f"{done['connections']} connections."
        )
    else:
        click.echo(
            f"Process {done['pid']} has taken over: {done['connections']} connections, "
            f"{done['values']} cached values."
        )
    if done["closed"]:
        click.echo(f"{done['closed']} connections cannot move, for they use TLS; they come back.")
