"""A node with workers is replaced: the parent first, in place, then its workers one after another.

The parent becomes another program (exec), so its number stays, and with it all that knows it by
that: systemd, its workers, the private engine. It leaves what it has in plain values, in memory
alone (memfd), and by their numbers the descriptors of what is open. The workers serve on meanwhile,
and notice nothing. The new parent then has each of them hand over to a process of its own version
(:meth:`cachecast.workers.crew.Crew.replace`).

There is no way back from an exec. So the new program is *tried* before: as a process of its own it
reads the configuration and this form of state, checks both as it will, and ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec
import structlog
import trio

from cachecast.cli.upgrade import UNDER_WAY
from cachecast.errors import UpgradeError
from cachecast.handover.state import STATE_VERSION, ParentState, PostState
from cachecast.workers.messages import WORDS_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.config import FileConfig
    from cachecast.control.desk import Action, Call
    from cachecast.workers.crew import Crew

__all__ = ["Estate", "NextProgram", "Rolling", "count_inherited_workers", "find_estate"]

#: Variable that tells a program of what this process had before: descriptor of the state, and
#: whether it is only tried. It is no setting, and gone once read.
VARIABLE: Final = "PARENT_STATE"
_TRIAL: Final = ":trial"

#: Seconds for the new program to read its configuration.
TRIAL_LIMIT_S: Final = 30.0

#: Characters of what a program says that cannot be begun.
MAX_FAULT: Final = 500

_log = structlog.get_logger("cachecast.upgrade")


# --- the new program


class Estate(msgspec.Struct, frozen=True):
    """What this process had before it became this program.

    Attributes:
        state: all of it.
        is_trial: whether it has nothing, and is only to see whether it could begin with it.
    """

    state: ParentState
    is_trial: bool

    def is_only_tried(self, config: FileConfig) -> bool:
        """Whether this is all: a parent with this configuration could go on, and is not to.

        Raises:
            UpgradeError: it cannot; says why.
        """
        if (self.state.engine is None) != bool(config.bus.urls):
            raise UpgradeError(
                "bus.urls was set or removed: running workers cannot move to another engine; "
                "restart instead."
            )
        return self.is_trial


@cache
def find_estate() -> Estate | None:
    """What this process had before it became this program; None if it had nothing.

    Raises:
        UpgradeError: it is of a version that this one does not understand.
    """
    given = os.environ.pop(VARIABLE, None)
    if given is None:
        return None
    with open(int(given.removesuffix(_TRIAL)), "rb") as file:  # noqa: PTH123 - a descriptor
        file.seek(0)
        packed = file.read()
    try:
        versions = msgspec.msgpack.decode(packed)[:2]
        state = msgspec.msgpack.decode(packed, type=ParentState)
    except (msgspec.DecodeError, TypeError):
        versions, state = None, None
    if state is None or versions != [STATE_VERSION, WORDS_VERSION]:
        raise UpgradeError(
            "This version does not understand the state of the running parent; restart instead."
        )
    is_trial = given.endswith(_TRIAL)
    for fd in () if is_trial else _descriptors(state):
        os.set_inheritable(fd, False)  # noqa: FBT003 - its only argument beside the descriptor
    return Estate(state, is_trial)


def count_inherited_workers() -> int:
    """Number of workers that this process had before it became this program; 0 without any."""
    estate = find_estate()
    return 0 if estate is None else len(estate.state.posts)


def _descriptors(state: ParentState) -> list[int]:
    found = [fd for _, fd in state.shared]
    for post in state.posts:
        found += post.listeners
        if post.worker is not None:
            found += [post.worker.control, post.worker.said, post.worker.seat]
        found += post.way or ()
    found += [] if state.admin is None else [state.admin]
    found += [] if state.control is None else [state.control[1]]
    found += [] if state.engine is None else [state.engine[3]]
    return found


# --- the running one


class NextProgram:
    """The program that this process is about to become.

    Attributes:
        state: what it is left; set when all that the parent did has ended.
    """

    def __init__(self, program: str) -> None:
        self.state: ParentState | None = None
        self._program = program
        self._late: list[int] = []

    def order(self, number: int) -> None:
        """Keep a signal for it. Never yields."""
        self._late.append(number)

    def replace(self) -> NoReturn:
        """Become it; or, if that is not there any more, this very program again."""
        state = self.state
        assert state is not None
        for number in self._late:  # it is blocked, so the next program takes it
            os.kill(os.getpid(), number)
        for fd in _descriptors(state):
            os.set_inheritable(fd, True)  # noqa: FBT003 - its only argument beside the descriptor
        # What systemd has passed is among the listening sockets.
        environ = {k: v for k, v in os.environ.items() if not k.startswith("LISTEN_")}
        for program in (self._program, sys.executable):
            fd = _keep(state)
            os.set_inheritable(fd, True)  # noqa: FBT003
            try:
                os.execve(  # noqa: S606 - our own program
                    program, _command(program), {**environ, VARIABLE: str(fd)}
                )
            except OSError as error:
                os.close(fd)
                fault = f"{program} cannot be started: {error.strerror}"
                state = msgspec.structs.replace(state, fault=fault)
        sys.exit(1)


class Rolling:
    """Replaces a node with workers; see ``Replaceable``.

    Attributes:
        heir: the program that this process is about to become; None before that.
        more_seats: listening sockets beside the node's own.
        is_ending: whether the node has been told to end.
        is_reload_due: function that says whether the configuration is to be read again.
        verbs: what can be asked at the control socket besides.
    """

    def __init__(self, crew: Crew, *, is_joined: bool) -> None:
        """Make it.

        Args:
            crew: the workers.
            is_joined: whether the configuration names the engine.
        """
        self.heir: NextProgram | None = None
        self.more_seats: list[tuple[str, str, int]] = []
        self.is_ending = False
        self.is_reload_due: Callable[[], bool] = lambda: False
        self.verbs: dict[str, Action] = {"upgraded": self._tell}
        self._crew = crew
        self._is_joined = is_joined
        self._on_heir: list[Callable[[], None]] = []
        self._is_rolling = False
        self._has_rolled = trio.Event()
        self._done: dict[str, int] = {}
        self._fault = "No upgrade has been begun."

    def when_heir(self, action: Callable[[], None]) -> None:
        """See ``Upgrades.when_heir``."""
        self._on_heir.append(action)

    async def run(self, program: str | None = None) -> dict[str, int]:
        """Have this process become another program, which replaces the workers then.

        Args:
            program: Python interpreter of the new program; None for that of this one.

        Returns:
            Number of workers that are going to be replaced; how that goes is told for
            ``upgraded``.

        Raises:
            UpgradeError: it cannot; nothing has changed.
        """
        program = program or sys.executable
        try:
            self._check()
            await self._try(program)
            await self._crew.wait_said()
            self._check()
        except UpgradeError as error:
            _log.error("upgrade failed, this process goes on", error=str(error))
            raise
        _log.info("upgrade begun, the parent is replaced in place")
        self.heir = NextProgram(program)
        for action in self._on_heir:
            action()
        return {"pid": os.getpid(), "workers": len(self._crew.posts)}

    def _check(self) -> None:
        if self.is_ending or self._crew.is_ending:
            raise UpgradeError("The node is ending.")
        if self._is_rolling:
            raise UpgradeError(UNDER_WAY)
        if self._crew.n_retiring:
            raise UpgradeError("Workers that have been replaced still close TLS connections.")

    async def _try(self, program: str) -> None:
        posts = [PostState([], b"", None, None, 0, [])] * len(self._crew.posts)
        engine = None if self._is_joined else (0, "", "", -1, 0)
        fd = _keep(ParentState(STATE_VERSION, WORDS_VERSION, posts, [], None, None, engine, ""))
        done: subprocess.CompletedProcess[bytes] | None = None
        try:
            with trio.move_on_after(TRIAL_LIMIT_S):
                done = await trio.run_process(
                    _command(program),
                    stdin=b"",
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                    env={**os.environ, VARIABLE: f"{fd}{_TRIAL}"},
                    pass_fds=(fd,),
                    start_new_session=True,
                    deliver_cancel=_kill,
                )
        except OSError as error:
            raise UpgradeError(f"{program} cannot be started: {error.strerror}") from None
        finally:
            os.close(fd)
        if done is None:
            raise UpgradeError(f"The new program did not begin within {TRIAL_LIMIT_S:g} s.")
        if done.returncode:
            raise UpgradeError(f"The new program cannot begin: {_fault_of(done)}")

    async def roll(self, fault: str) -> None:
        """Replace the workers one after another, as far as that goes.

        Args:
            fault: reason why the program that was wanted could not be begun; empty if this is it.
        """
        self._is_rolling, self._fault = True, fault
        n, moved, closed = len(self._crew.posts), 0, 0
        if fault:
            _log.error("upgrade failed, the running version goes on", error=fault)
        for n_replaced, post in enumerate(() if fault else self._crew.posts):
            try:
                both = await self._crew.replace(post)
            except UpgradeError as error:
                said = str(error).rstrip(".")
                self._fault = (
                    f"Worker {post.number} could not be replaced and goes on: {said}. "
                    f"{n_replaced} of {n} workers run the new version, and the parent does."
                )
                _log.error("worker not replaced, it goes on", worker=post.number, error=said)
                break
            moved, closed = moved + both[0], closed + both[1]
            _log.info("worker replaced", worker=post.number, pid=post.pid, connections=both[0])
        self._done = {"pid": os.getpid(), "workers": n, "connections": moved, "closed": closed}
        self._is_rolling = False
        self._has_rolled.set()

    async def _tell(self, call: Call) -> object:
        del call
        if self._is_rolling:
            await self._has_rolled.wait()
        if self._fault:
            raise UpgradeError(self._fault)
        return self._done


def _command(program: str) -> list[str]:
    # -P: modules are not looked for in the current folder.
    return [program, "-P", "-m", "cachecast", *sys.argv[1:]]


def _keep(state: ParentState) -> int:
    """Put the state where no disk is; gives the descriptor."""
    fd = os.memfd_create("cachecast")
    packed = memoryview(msgspec.msgpack.encode(state))
    while packed:
        packed = packed[os.write(fd, packed) :]
    return fd


async def _kill(process: trio.Process) -> None:
    process.kill()


def _fault_of(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    said = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    text = (said or lines[-1:] or [f"exit code {done.returncode}"])[-1]
    return text[:MAX_FAULT]
