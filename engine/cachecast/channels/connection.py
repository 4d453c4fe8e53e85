"""One client of this node: its conversation, the wire it speaks and the outbox of its socket.

What the hub, its channels and the heartbeat hold. The session knows the rules and no socket, the
outbox takes bytes and knows no rules; they meet here.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from cachecast.protocol.messages import refusal_messages

if TYPE_CHECKING:
    from cachecast.channels.outbox import Outbox
    from cachecast.errors import RemoteProtocolError
    from cachecast.protocol.messages import Control
    from cachecast.protocol.session import Session
    from cachecast.protocol.wire import Wire

__all__ = ["Connection"]


class Connection:
    """A client that is connected. Slots only; there may be a hundred thousand.

    Attributes:
        session: conversation of the protocol with the client.
        wire: form that both directions have on the socket.
        outbox: the queue that everything to the client goes to.
        authorize_by: the time by which the client must have shown a signature, in the broker's
            seconds; infinity for most apps.
        must_pong: whether a ping without an answer ends the connection (not before protocol 5).
        wheel_slot: place in the heartbeat's wheel.
        opened_at: time when it began, in the broker's seconds.
    """

    __slots__ = (
        "authorize_by",
        "must_pong",
        "opened_at",
        "outbox",
        "session",
        "wheel_slot",
        "wire",
    )

    def __init__(self, session: Session, wire: Wire, outbox: Outbox) -> None:
        self.session = session
        self.wire = wire
        self.outbox = outbox
        self.authorize_by = inf
        self.must_pong = True
        self.wheel_slot = 0
        self.opened_at = 0.0

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Name the socket, not what it carries."""
        return f"Connection({self.session.app.id}, {self.session.socket_id})"

    def say(self, message: Control) -> None:
        """Answer this client."""
        self.outbox.put(self.wire.control(message), is_asked=True)

    def refuse(self, error: RemoteProtocolError) -> None:
        """Tell the client of an error that leaves the connection open."""
        for message in refusal_messages(error):
            self.say(message)

    def ping(self) -> None:
        """Ask the client for a sign of life."""
        self.outbox.put(self.wire.ping)
