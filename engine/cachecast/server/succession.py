"""A node's process is replaced by another one, and no client notices.

The one that runs *gives*, the new one *takes*, over a :class:`~cachecast.handover.line.Line`:

1. The new one says hello, with a configuration that it can serve. It gets copies of the listening
   sockets and of all cached values, while the old one serves on.
2. The old one lets requests under way end, and then the world stands still: in one step, without a
   checkpoint, it delivers what is queued and sends everything that is left: values that have come
   since, conversations, and copies of their sockets. In one step, too, the new one takes that in.
   Exporting changes nothing, and taking in says nothing to anybody.
3. The new one says ``Taken``, and that word decides. Before it all is the old process's, which goes
   on as if nothing had been, whatever happens to the new one, once it has made sure that the new
   one is dead. From that word on all is the new one's. So at each moment exactly one of the two
   speaks to a client, and there is nothing that would have to be undone.

TLS cannot move, for its state is in the old process's memory: it is closed there, with a code that
brings clients back at once. Their places are kept for a moment, so that nobody is told of it.
"""

from __future__ import annotations

import gc
import os
import socket
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from cachecast.broker.succession import (
    ABSENT,
    let_go,
    restore_app,
    restore_bus,
    restore_client,
    resume_joins,
)
from cachecast.errors import UpgradeError
from cachecast.handover.line import LineError
from cachecast.handover.state import (
    STATE_VERSION,
    Callers,
    Channels,
    Clients,
    Follow,
    Following,
    Hello,
    NodeState,
    Seats,
    Taken,
    Values,
)
from cachecast.protocol.wire import WIRES, WebSocketWire
from cachecast.server.http import BUSY
from cachecast.server.leaving import (
    CLOSINGS_PER_S,
    callers,
    export,
    leave,
    leave_handler,
    parts,
    settle_all,
    values_of,
)
from cachecast.server.websocket import WebSocket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence

    from cachecast.bus.succession import Giver
    from cachecast.channels.connection import Connection
    from cachecast.handover.line import Line
    from cachecast.handover.state import BusPlace, ClientState
    from cachecast.server.http import HttpConnection
    from cachecast.server.leaving import Moving
    from cachecast.server.listen import Server

    Send = Callable[[Any, Sequence[int]], None]

__all__ = ["Predecessor", "Taking", "export", "give", "leave", "retire", "settle_all"]

#: Seconds for the new process to start and read its configuration; and then to take all values.
HELLO_LIMIT_S: Final = 30.0
VALUES_LIMIT_S: Final = 60.0

#: Seconds that requests and webhooks under way have to end before the world stands still.
QUIET_LIMIT_S: Final = 1.0
QUIET_TICK_S: Final = 0.005

#: Seconds of delivering what is queued while nobody else is served, in one try after the other: a
#: moment in which there is little is found, if there are such moments.
SETTLE_TRIES_S: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

#: Seconds for the new process to hear all that this one hears.
FOLLOW_LIMIT_S: Final = 10.0

#: Seconds that the world stands still at most. With 5,000 clients it does for a tenth of one.
STILL_LIMIT_S: Final = 5.0

#: Number of absent ones that are given up in one step.
CLOSINGS_PER_STEP: Final = 50

_log = structlog.get_logger("cachecast.upgrade")


# --- giving


async def give(
    server: Server,
    line: Line,
    seats: Sequence[tuple[str, str, int]],
    *,
    end_other: Callable[[], None],
    is_ending: Callable[[], bool] = lambda: False,
    is_reload_due: Callable[[], bool] = lambda: False,
) -> int:
    """Hand the node over to the process at the other end. It serves on, also if this fails.

    Args:
        server: server of the node.
        line: line to the new process.
        seats: listening sockets: what each is for, its address as configured, its descriptor.
        end_other: function that kills the other process and returns when it is dead.
        is_ending: function that says whether the node has been told to end.
        is_reload_due: function that says whether it has been told to read its configuration again,
            and has not begun.

    Returns:
        Number of clients that could not move; :func:`retire` closes them.

    Raises:
        UpgradeError: the other process has failed or does not understand this one; it is dead.
    """
    giver = server.broker.bus.giver()
    try:
        said: Any = None
        with trio.move_on_after(HELLO_LIMIT_S):
            said, _ = await line.receive()
        hello = _check(said, server.broker.clock())
        _check_lives(server, is_ending)
        marks = await _give_values(server, line, seats, hello.apps, giver)
        async with _quiet(server, giver):
            if giver is not None:
                await _stop_at_mark(line, giver)
            await _wait_settled(server, is_ending, giver)
            # From here to the end there is no checkpoint.
            is_due = is_reload_due()
            return _give_now(server, line, marks, end_other, giver, is_reload_due=is_due)
    except LineError as error:
        end_other()
        _check_lives(server, is_ending)  # its end may be the other's
        raise UpgradeError(f"The new process failed, this one goes on: {error}") from None
    except BaseException:
        end_other()
        raise


def _check_lives(server: Server, is_ending: Callable[[], bool]) -> None:
    if is_ending() or server.broker.clients.is_draining:
        raise UpgradeError("This node was told to end meanwhile, so it is not replaced.")


def _check(hello: Any, now: float) -> Hello:  # noqa: ANN401 - what the other process says
    if not isinstance(hello, Hello):
        raise LineError(f"it did not say hello within {HELLO_LIMIT_S:g} s")
    if STATE_VERSION not in hello.reads:
        raise LineError(
            f"its version {hello.release} does not understand the state of this one, whose form "
            f"is {STATE_VERSION} (it reads {', '.join(map(str, hello.reads))}); restart instead"
        )
    if abs(now - hello.now) > HELLO_LIMIT_S:
        raise LineError("it has another clock, so values would not end in time")
    return hello


async def _give_values(
    server: Server,
    line: Line,
    seats: Sequence[tuple[str, str, int]],
    apps: Iterable[str],
    giver: Giver | None,
) -> dict[str, int]:
    """Send what can be sent while clients are served; app id -> number of the last value of it."""
    cache = server.broker.cache
    marks: dict[str, int] = {}
    with trio.move_on_after(VALUES_LIMIT_S):
        place = None if giver is None else giver.place()
        names = [(kind, address) for kind, address, _ in seats]
        await line.send(Seats(names, place), [fd for _, _, fd in seats])
        for app_id in apps:
            if app_id in server.broker.hubs:
                marks[app_id] = cache.serial
                if giver is not None:
                    continue  # it reads them where all nodes do
                for values in values_of(server, app_id, 0):
                    await line.send(values)
        return marks
    raise LineError(f"it did not take the values within {VALUES_LIMIT_S:g} s")


@asynccontextmanager
async def _quiet(server: Server, giver: Giver | None) -> AsyncIterator[None]:
    """Let what is under way end before the block; if that fails, everything goes on."""
    webhooks, common = server.broker.webhooks, server.common
    try:
        server.broker.follows.release()
        await webhooks.pause(QUIET_LIMIT_S)
        if server.is_tls:
            # Publishers cannot move either: who is answered now comes back on a new connection, in
            # the end on one that waits in the kernel for the new process.
            common.is_draining = True
            await trio.sleep(QUIET_LIMIT_S)
            server.hold_newcomers(is_held=True)
        with trio.move_on_after(QUIET_LIMIT_S):
            # Who waits for other nodes is answered below, when nobody asks anything more.
            while any(  # noqa: ASYNC110 - nothing announces it
                _is_due(caller) and (giver is None or caller.state is not BUSY)
                for caller in callers(server)
            ):
                await trio.sleep(QUIET_TICK_S)
        if giver is not None:
            await _end_questions(server, giver)
        yield
    except BaseException:
        if giver is not None:
            giver.go_on()
            server.poller.go_on()
        if server.is_tls:
            common.is_draining = False
            server.hold_newcomers(is_held=False)
        webhooks.go_on()
        raise


def _is_due(caller: HttpConnection) -> bool:
    """Whether a request has begun, or, on a connection that cannot move, the first one is due."""
    return caller.is_asked or not (caller.can_move or caller.app_id)


async def _end_questions(server: Server, giver: Giver) -> None:
    """Listen to no client, and let what has been asked of other nodes be answered."""
    server.poller.hold()
    await giver.wait_idle()
    with trio.move_on_after(QUIET_LIMIT_S):
        while any(c.state is BUSY for c in callers(server)):  # noqa: ASYNC110 - as above
            await trio.sleep(QUIET_TICK_S)
    await giver.wait_idle()


async def _stop_at_mark(line: Line, giver: Giver) -> None:
    """Find the instant, in the order of all that nodes publish, from which on the other hears."""
    giver.stop_at_mark()
    said: Any = None
    with trio.move_on_after(FOLLOW_LIMIT_S):
        await line.send(Follow(giver.rest()))
        said, _ = await line.receive()
    if not isinstance(said, Following):
        raise LineError(f"it did not follow within {FOLLOW_LIMIT_S:g} s")
    await giver.wait_mark()


async def _wait_settled(server: Server, is_ending: Callable[[], bool], giver: Giver | None) -> None:
    """Find a moment in which little is queued, and deliver that; gives back in that moment."""
    for seconds in SETTLE_TRIES_S:
        _check_lives(server, is_ending)
        if giver is not None and not giver.is_stopped:
            raise LineError("the link to the engine was lost meanwhile")
        if settle_all(server, seconds):
            return
        await trio.sleep(QUIET_TICK_S)
    raise LineError(
        f"what has been published could not be delivered within {sum(SETTLE_TRIES_S):g} s"
    )


def _give_now(
    server: Server,
    line: Line,
    marks: Mapping[str, int],
    end_other: Callable[[], None],
    giver: Giver | None,
    *,
    is_reload_due: bool,
) -> int:
    began = time.monotonic()
    deadline = began + STILL_LIMIT_S
    send = partial(line.send_now, deadline=deadline)
    moving, n_absent = export(server, marks, send, giver, is_reload_due=is_reload_due)
    try:
        word, _ = line.receive_now(deadline=deadline)
    except LineError as error:
        end_other()
        try:
            # It may have said the word before it died. Then clients may have heard from it.
            word, _ = line.receive_now(deadline=time.monotonic())
        except LineError:
            raise error from None
    if not isinstance(word, Taken):
        raise LineError("it says what was not asked for")
    stood_still_s = time.monotonic() - began
    _say_dropped(server, marks)
    leave(server, moving)
    if giver is not None:
        giver.let_go()
        server.poller.go_on()
    _log.info(
        "handed over",
        moved=len(moving),
        closed=n_absent,
        stood_still_ms=round(1000 * stood_still_s, 1),
    )
    return n_absent


def _say_dropped(server: Server, marks: Mapping[str, int]) -> None:
    broker = server.broker
    for app_id, hub in broker.hubs.items():
        if app_id not in marks:
            _log.warning(
                "app dropped, the new process does not serve it",
                app=app_id,
                connections=len(hub.connections),
                webhook_events=broker.webhooks.queued_events(app_id),
            )


async def retire(server: Server, n_absent: int) -> None:
    """End what could not move, after :func:`give`: clients come back to the new process."""
    await server.drain(n_absent / CLOSINGS_PER_S, code=4200)


# --- taking


class Taking:
    """What has been taken so far; :meth:`take` it message by message, and then :meth:`finish`.

    Attributes:
        absent: clients whose connections could not move.
    """

    def __init__(
        self, server: Server, open_socket: Callable[[int, int], socket.socket] | None = None
    ) -> None:
        """Make it.

        Args:
            server: server that serves nobody yet.
            open_socket: function that makes a socket of a family of addresses and a descriptor; by
                default one of the kernel's.
        """
        self.absent: list[Connection] = []
        self._open_socket = open_socket or _socket
        self._server = server
        self._names: list[str] = []
        self._clients: dict[str, list[Connection]] = {}
        self._joining: list[tuple[Connection, ClientState]] = []
        self._handlers: list[Moving] = []

    def take(self, message: Any, descriptors: Sequence[int]) -> NodeState | None:  # noqa: ANN401
        """Take a message in; the last one is given back. Never yields."""
        match message:
            case Values():
                self._server.broker.delivery.restore(message.app_id, message.values)
            case Channels():
                self._names = message.names
                self._clients[message.app_id] = []
            case Clients():
                self._take_clients(message, iter(descriptors))
            case Callers():
                for state, fd in zip(message.callers, descriptors, strict=True):
                    sock = self._open_socket(state.family, fd)
                    self._handlers.append(
                        self._server.adopt(sock, state.app_id, is_admin=state.is_admin)
                    )
            case NodeState():
                return message
            case _:
                raise LineError("the running process says what was not asked for")
        return None

    def _take_clients(self, message: Clients, descriptors: Iterator[int]) -> None:
        server, broker = self._server, self._server.broker
        clients, names = self._clients[message.app_id], self._names
        for state in message.clients:
            if state.http is not None:
                receives = state.http.receiver is not None
                sock = self._open_socket(state.family, next(descriptors)) if receives else None
                session = server.transports.restore(message.app_id, state.http, sock)
                self._handlers.append(session)
                connection = restore_client(broker, message.app_id, session, state, names)
                session.restore(connection, state.outbox)
            elif state.is_here:
                sock = self._open_socket(state.family, next(descriptors))
                wire = WIRES[state.wire]
                assert isinstance(wire, WebSocketWire)
                parser = wire.parser(server.common.config.max_message_bytes)
                websocket = WebSocket(sock, server.poller, broker.clients, parser)
                self._handlers.append(websocket)
                connection = restore_client(broker, message.app_id, websocket, state, names)
                websocket.restore(connection, state)
            else:
                connection = restore_client(broker, message.app_id, ABSENT, state, names)
                self.absent.append(connection)
            clients.append(connection)
            if state.joining:
                self._joining.append((connection, state))

    def finish(self, state: NodeState) -> None:
        """Take in what comes last. Never yields.

        Raises:
            UpgradeError: what the node has in its cluster cannot be taken over.
        """
        broker = self._server.broker
        for app in state.apps:
            restore_app(broker, app, self._clients[app.app_id])
        broker.clients.refusals.update(state.refusals)
        for app_id, number in state.slow:
            broker.backlog.advance(self._clients[app_id][number].outbox)
        if state.bus is not None:
            restore_bus(broker, state.bus)

    def begin(self) -> None:
        """This process is the node: go on with what other nodes say and are asked. Never yields."""
        broker = self._server.broker
        follower = broker.bus.follower()
        if follower is not None:
            follower.take_over()
            resume_joins(broker, self._joining)

    def let_go(self) -> None:
        """Leave it to the process that has it still: nothing has been said to anybody."""
        for handler in self._handlers:
            leave_handler(self._server, handler)
        let_go(self._server.broker)

    async def end_absence(self, after_s: float) -> None:
        """Give up, after so many seconds, those who have not come back under another name."""
        await trio.sleep(after_s)
        clients = self._server.broker.clients
        for part in parts(self.absent, CLOSINGS_PER_STEP):
            for connection in part:
                clients.close(connection, 4200, "its connection could not move to this process")
                connection.outbox.discard()
            await trio.lowlevel.checkpoint()


def _socket(family: int, fd: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM, 0, fd)
    sock.setblocking(False)  # noqa: FBT003 - its only argument
    return sock


async def _follow(server: Server, message: Follow) -> None:
    follower = server.broker.bus.follower()
    if follower is None:
        raise LineError("the running process is a node of a cluster, and this one is none")
    await follower.follow(message.topics)


class Predecessor:
    """The process that this one replaces, as seen from here. Used once, by ``serve``.

    Attributes:
        control: path and listening socket of the control socket; None where there is none.
        seats: listening sockets, by what each is for and its address; the caller's to close.
        place: place in the cluster; None of a node that is alone.
        is_reload_due: whether that process was told to read its configuration again, and left it to
            this one.
    """

    def __init__(self, line: Line, release: str, *, on_whole: Callable[[], None]) -> None:
        """Make it.

        Args:
            line: line to the process; owned from now on.
            release: version of this one, for people.
            on_whole: function called when everything is here, so that this process can do without
                that one.
        """
        self.control: tuple[str, socket.socket] | None = None
        self.seats: dict[tuple[str, str], socket.socket] = {}
        self.place: BusPlace | None = None
        self.is_reload_due = False
        self._line = line
        self._release = release
        self._on_whole = on_whole

    async def ask(self, apps: Iterable[str], now: float) -> None:
        """Say hello, and be given the listening sockets and the place in the cluster.

        Raises:
            UpgradeError: the other process has gone, or does not want this one.
        """
        try:
            await self._line.send(Hello([STATE_VERSION], self._release, now, list(apps)))
            seats, descriptors = await self._line.receive()
        except LineError as error:
            raise UpgradeError(f"Nothing was taken over: {error}") from None
        if not isinstance(seats, Seats):
            raise UpgradeError("Nothing was taken over: the running process speaks otherwise")
        self.place = seats.place
        for (kind, address), fd in zip(seats.names, descriptors, strict=True):
            sock = socket.socket(fileno=fd)
            if kind == "control":
                self.control = address, sock
            else:
                self.seats[kind, address] = sock

    async def take(self, server: Server, nursery: trio.Nursery) -> None:
        """Take everything over. When it returns, in the same step, this process is the node.

        Args:
            server: server that serves nobody yet.
            nursery: nursery of what must be done later.

        Raises:
            UpgradeError: it has not; nothing was said to anybody.
        """
        line, taking = self._line, Taking(server)
        try:
            while True:
                message, descriptors = await line.receive()
                if isinstance(message, Follow):
                    await _follow(server, message)
                    await line.send(Following())
                elif isinstance(message, Values):
                    taking.take(message, descriptors)
                else:
                    break
            # The world stands still from here on.
            gc.disable()
            deadline = time.monotonic() + STILL_LIMIT_S + HELLO_LIMIT_S
            while (state := taking.take(message, descriptors)) is None:
                message, descriptors = line.receive_now(deadline=deadline)
            taking.finish(state)
            self.is_reload_due = state.is_reload_due
            self._on_whole()
        except BaseException as error:
            taking.let_go()
            if isinstance(error, LineError):
                raise UpgradeError(f"Nothing was taken over: {error}") from None
            raise
        finally:
            # What has come will stay: the collector need not look at it.
            gc.freeze()
            gc.enable()
        try:
            line.send_now(Taken(os.getpid()), deadline=deadline)
        except LineError:
            _log.warning("the process before this one has ended; everything of it is here")
        line.close()
        taking.begin()
        if taking.absent:
            nursery.start_soon(taking.end_absence, state.absence_s)
        _log.info(
            "taken over",
            connections=server.broker.clients.n_sessions,
            cached_values=server.broker.cache.n_entries(),
            absent=len(taking.absent),
        )
