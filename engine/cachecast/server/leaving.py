"""What a server's process gives to the next one, and how it forgets it: the giver's half.

See :mod:`cachecast.server.succession`, which decides when.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from cachecast.broker.succession import (
    channel_numbers,
    export_app,
    export_client,
    let_go,
    let_go_of,
    settle,
)
from cachecast.handover.line import DESCRIPTORS_PER_MESSAGE
from cachecast.handover.state import Callers, Channels, Clients, HttpState, NodeState, Values
from cachecast.server.http import STREAMING, HttpConnection
from cachecast.server.http_messages import Response, text_response
from cachecast.server.websocket import WebSocket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from cachecast.bus.succession import Giver
    from cachecast.handover.state import ClientState
    from cachecast.server.http_messages import Request
    from cachecast.server.http_session import HttpSession
    from cachecast.server.listen import Server

    #: What goes to the next process.
    Moving = WebSocket | HttpSession | HttpConnection

    Send = Callable[[Any, Sequence[int]], None]

__all__ = [
    "CLOSINGS_PER_S",
    "callers",
    "export",
    "leave",
    "leave_handler",
    "parts",
    "settle_all",
    "values_of",
]

#: Connections that cannot move and are closed a second; and the seconds, beside those that it takes
#: to close them all, for which their places are kept.
CLOSINGS_PER_S: Final = 1_000
ABSENCE_S: Final = 10.0

#: Values of one message, and their bytes.
VALUES_PER_MESSAGE: Final = 500
VALUE_BYTES_PER_MESSAGE: Final = 512 * 1024

#: Fields of a client's state that its WebSocket knows.
WEBSOCKET_TERMS: Final = ("family", "parser", "is_behind")


def settle_all(server: Server, within_s: float) -> bool:
    """Deliver what is queued, and end what is to end; whether nothing is left. Never yields."""
    while settle(server.broker, within_s):
        if not server.poller.finish_aborts():
            return True
    return False


def leave(server: Server, moving: Iterable[Moving]) -> None:
    """All that moved is another process's: forget it, and nobody hears of that. Never yields."""
    server.stop_listening(keeps_paths=True)
    server.end_greetings()
    for handler in moving:
        leave_handler(server, handler)
    let_go(server.broker)
    for caller in [one for one in server.poller.handlers() if isinstance(one, HttpConnection)]:
        caller.handle_by(_refuse)
        if caller.state is STREAMING:
            caller.abort()


def leave_handler(server: Server, handler: Moving) -> None:
    """Leave a connection to another process. Never yields."""
    if isinstance(handler, HttpConnection):
        handler.abort()
    elif (connection := handler.let_go()) is not None:
        let_go_of(server.broker, connection)


def export(
    server: Server,
    marks: Mapping[str, int],
    send: Send,
    giver: Giver | None = None,
    *,
    is_reload_due: bool = False,
) -> tuple[list[Moving], int]:
    """Send all that the new process has not got yet. Changes nothing, never yields.

    Args:
        server: server of a settled node.
        marks: id of each app that the new process serves -> number of the last value that it has.
        send: function that sends a message, with descriptors.
        giver: what hands over what the node has in its cluster; None if it is alone.
        is_reload_due: see ``NodeState``.

    Returns:
        What moves, and the number of clients that cannot.
    """
    broker = server.broker
    sockets = {handler.connection: handler for handler in server.poller.handlers()
               if isinstance(handler, WebSocket) and handler.can_move}  # fmt: skip
    sessions = server.transports.can_move()
    moving: list[Moving] = []
    states, outboxes, n_absent = [], {}, 0
    for app_id in marks:
        hub = broker.hubs.get(app_id)
        if hub is None:
            continue  # a reload has removed it meanwhile
        channels = channel_numbers(hub)
        send(Channels(app_id, list(channels)), ())
        numbers = {connection: number for number, connection in enumerate(hub.connections.values())}
        for connections in parts(numbers, DESCRIPTORS_PER_MESSAGE):
            clients: list[ClientState] = []
            descriptors: list[int] = []
            for connection in connections:
                here: dict[str, Any] = {}
                if (session := sessions.get(connection)) is not None:
                    here = session.export()
                    descriptors += session.descriptors
                    moving.append(session)
                elif (websocket := sockets.get(connection)) is not None:
                    here = dict(zip(WEBSOCKET_TERMS, websocket.export(), strict=True))
                    descriptors.append(websocket.fd)
                    moving.append(websocket)
                else:
                    n_absent += 1
                clients.append(
                    export_client(broker, connection, channels, is_here=bool(here), **here)
                )
            send(Clients(app_id, clients), descriptors)
        if giver is None:
            for values in values_of(server, app_id, marks[app_id]):
                send(values, ())
        states.append(export_app(broker, hub, numbers))
        outboxes.update({c.outbox: (app_id, number) for c, number in numbers.items()})
    idle = [caller for caller in callers(server) if caller.can_move]
    moving += idle
    for part in parts(idle, DESCRIPTORS_PER_MESSAGE):
        said = [
            HttpState(caller.app_id, caller.sock.family, caller.share is server.poller.operators)
            for caller in part
        ]
        send(Callers(said), [caller.fd for caller in part])
    absence_s = ABSENCE_S + n_absent / CLOSINGS_PER_S
    slow = [outboxes[outbox] for outbox in broker.backlog if outbox in outboxes]
    refusals = dict(broker.clients.refusals)
    bus = None if giver is None else giver.export(broker.delivery.count_subscribers())
    send(NodeState(states, refusals, slow, absence_s, is_reload_due, bus), ())
    return moving, n_absent


def callers(server: Server) -> list[HttpConnection]:
    """The HTTP connections of a server."""
    return [guest for guest in server.room.guests() if isinstance(guest, HttpConnection)]


def values_of(server: Server, app_id: str, after: int) -> Iterator[Values]:
    """Values of an app, in parts of a bounded size."""
    part, size = [], 0
    for value in server.broker.cache.export(app_id, after):
        part.append(value)
        size += len(value[1])
        if len(part) == VALUES_PER_MESSAGE or size > VALUE_BYTES_PER_MESSAGE:
            yield Values(app_id, part)
            part, size = [], 0
    if part:
        yield Values(app_id, part)


def parts(items: Iterable[Any], most: int) -> Iterator[list[Any]]:
    """Items in parts of so many."""
    rest = iter(items)
    while part := list(islice(rest, most)):
        yield part


def _refuse(_: Request) -> Response:
    """Answer who began a request before its end could be waited for, and was not heard."""
    response = text_response(503, "This process has been replaced by another one, try again")
    response.headers = ("Retry-After: 0",)
    return response
