"""The control socket as the command line has it: a node opens it, other commands find it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import click
import structlog
import trio

from cachecast.config import load_config
from cachecast.control.ask import ask
from cachecast.control.desk import ControlDesk
from cachecast.control.place import Place, default_paths, open_default_place, open_place
from cachecast.errors import ConfigError, ControlError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from cachecast.config import FileConfig

__all__ = ["ask_node", "control_options", "find_node", "open_control"]

#: Value of ``server.control`` for a node without one.
OFF: Final = "off"

_log = structlog.get_logger("cachecast.control")

T = TypeVar("T")


@contextmanager
def open_control(
    config: FileConfig, port: int, inherited: tuple[str, socket.socket] | None = None
) -> Iterator[ControlDesk | None]:
    """Listen for those who speak with this node, from a port that is its own by now.

    Gives the desk, whose ``run`` is the caller's to start; None where there is none. A node that
    nobody gave a path goes on without, and says so: its folders may be read-only. What the process
    before this one listened on is gone on with, unless another path is given.

    Raises:
        ConfigError: the path that was given cannot be used.
    """
    port = port or config.server.port  # the name of one that listens at no port
    given = config.server.control
    if inherited is not None and given in {None, inherited[0]}:
        place = Place(Path(inherited[0]), inherited[1])
        try:
            yield ControlDesk(place)
        finally:
            place.close()
        return
    if inherited is not None:
        inherited[1].close()
    if given == OFF:
        yield None
        return
    try:
        place = open_place(Path(given)) if given is not None else open_default_place(port)
    except ConfigError as error:
        if given is not None:
            raise
        _log.warning("no control socket", error=str(error))
        yield None
        return
    try:
        yield ControlDesk(place)
    finally:
        place.close()


def control_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which node is meant; see :func:`find_node`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS: Final = (
    click.option(
        "--config", "path", type=click.Path(path_type=Path), help="Configuration file of the node."
    ),
    click.option("--port", help="Port of the node.  [default: by the configuration]"),
    click.option("--control", help="Path of its control socket.  [default: by the port]"),
)


def find_node(path: Path | None, port: str | None, control: str | None) -> Path:
    """Path of the control socket of a node on this machine.

    Args:
        path: configuration file of the node; None for what CACHECAST_CONFIG names, if anything.
        port: the node's port; None for that of the configuration.
        control: path of the socket itself; None for that of the configuration.

    Raises:
        ControlError: there is no such node.
        ConfigError: the configuration that names it cannot be read.
    """
    control = control or os.environ.get("CACHECAST_CONTROL")
    if control:
        return Path(control)
    if path is None and (named := os.environ.get("CACHECAST_CONFIG")):
        path = Path(named)
    options = load_config(path, environ=os.environ, flags={"CACHECAST_PORT": port}).server
    if options.control == OFF:
        raise ControlError("server.control is off, so the node has no control socket.")
    if options.control is not None:
        return Path(options.control)
    paths = default_paths(options.port)
    # os.path, for a Path raises where another user's folder must not be looked into.
    found = next((path for path in paths if os.path.exists(path)), None)  # noqa: PTH110
    if found is None:
        places = " nor ".join(map(str, paths))
        raise ControlError(
            f"No node of port {options.port} is found: there is neither {places}. "
            "Give its --port, its --config, or the --control that it was started with."
        )
    return found


def ask_node(path: Path, verb: str, kind: type[T], body: object = None, *, within_s: float) -> T:
    """Ask a node for something; gives the answer.

    Raises:
        ControlError: there is none, or it has not done it in time; the text says why.
    """

    async def run() -> T:
        with trio.fail_after(within_s):
            return await ask(path, verb, kind, body)

    try:
        return trio.run(run)
    except trio.TooSlowError:
        raise ControlError(f"The node at {path} did not answer within {within_s:g} s.") from None
