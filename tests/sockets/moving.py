"""One node's state and sockets into another one, as a line between two processes carries them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from cachecast.handover.state import Message
from cachecast.server.succession import Taking, export, leave, settle_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cachecast import Server
    from cachecast.handover.state import NodeState

_decode = msgspec.msgpack.Decoder(Message).decode


def copy(
    old: Server,
    new: Server,
    open_socket: Callable[[int, int], Any] | None = None,
    duplicate: Callable[[int], int] = os.dup,
) -> tuple[Taking, NodeState, list[Any]]:
    """Have the new one take all that the old one has, in its own bytes; gives what is to move."""
    assert settle_all(old, 10.0)
    taking = Taking(new, open_socket)
    states: list[NodeState] = []

    def send(message: Any, descriptors: Sequence[int]) -> None:
        copies = [duplicate(fd) for fd in descriptors]
        state = taking.take(_decode(msgspec.msgpack.encode(message)), copies)
        if state is not None:
            states.append(state)

    moving, _ = export(old, dict.fromkeys(old.broker.hubs, 0), send)
    (state,) = states
    return taking, state, moving


def move(old: Server, new: Server) -> Taking:
    """The same, and the old one lets go: no checkpoint is in it."""
    taking, state, moving = copy(old, new)
    taking.finish(state)
    leave(old, moving)
    return taking
