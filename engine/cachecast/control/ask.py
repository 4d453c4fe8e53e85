"""The caller's side of the control socket."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import msgspec
import trio

from cachecast.control.line import PROTOCOL_VERSION, Line, Reply, Request
from cachecast.control.place import connect_fault, foreign_user
from cachecast.errors import ControlError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

__all__ = ["ask", "finish", "open_call"]

T = TypeVar("T")


@asynccontextmanager
async def open_call(path: Path, verb: str, body: object = None) -> AsyncIterator[Line]:
    """Ask a node for something, and go on talking; :func:`finish` has the answer.

    Args:
        path: path of the node's control socket.
        verb: what is asked for.
        body: what belongs to that; anything that msgspec can encode.

    Raises:
        ControlError: no node is there, or it is another user's.
    """
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    line = Line(sock)
    try:
        try:
            await sock.connect(str(path))
            user = foreign_user(sock, is_caller=False)
        except OSError as error:
            raise connect_fault(path, error) from None
        if user is not None:
            raise ControlError(f"The node at {path} is {user}'s, so nothing is said to it.")
        raw = msgspec.Raw(msgspec.msgpack.encode(body))
        fault: ControlError | None = None
        try:
            await line.send(Request(PROTOCOL_VERSION, verb, raw))
        except ControlError as error:
            fault = error
        if fault is not None:
            if isinstance(fault.__cause__, OSError):
                await finish(line, object)  # who hangs up at once has said why
            raise fault
        yield line
    finally:
        line.close()


async def finish(line: Line, kind: type[T]) -> T:
    """Wait for the answer.

    Raises:
        ControlError: it was not done; the text is the node's.
    """
    reply, _ = await line.receive(Reply)
    if reply.fault:
        raise ControlError(reply.fault)
    try:
        return msgspec.msgpack.decode(reply.body, type=kind)
    except msgspec.DecodeError as error:
        raise ControlError(f"The node's answer cannot be understood: {error}.") from None


async def ask(path: Path, verb: str, kind: type[T], body: object = None) -> T:
    """Ask a node for something; gives the answer. How long to wait is the caller's to bound.

    Args:
        path: path of the node's control socket.
        verb: what is asked for.
        kind: type of the answer.
        body: what belongs to the question; anything that msgspec can encode.

    Raises:
        ControlError: it cannot be asked, or was not done; the text says why.
    """
    async with open_call(path, verb, body) as line:
        return await finish(line, kind)
