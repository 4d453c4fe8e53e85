"""A conversation over HTTP: it outlives its requests, of which one at a time receives.

To everything below it is a connection like any other: it is the Transport of its Outbox, which
takes nothing while no request receives. What the client sends comes in requests of their own, whose
messages are handled in the order in which they came, as much at a time as a WebSocket's.

A session ends like a WebSocket when the client's end is seen; and between two requests of its
client after :data:`ABSENCE_S`.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from cachecast.errors import RefusedError
from cachecast.handover.state import HttpSessionState
from cachecast.protocol.sockjs import HEARTBEAT, NOTHING, OPEN
from cachecast.protocol.wire import JSON_SOCKJS
from cachecast.server.http_messages import Later, Response, text_response

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.apps import App
    from cachecast.broker import Broker
    from cachecast.channels.connection import Connection
    from cachecast.errors import RemoteProtocolError
    from cachecast.handover.state import OutboxState
    from cachecast.server.common import Common
    from cachecast.server.receiver import Receiver

__all__ = ["ABSENCE_S", "HEARTBEAT_S", "MAX_INBOX", "HttpSession", "unknown"]

#: Seconds between two heartbeats to who receives: proxies end what is silent for a minute, and some
#: for half of one.
HEARTBEAT_S: Final = 25.0

#: Seconds for which a session waits for its client to receive again. A large answer to a poll may
#: be on its way for a while.
ABSENCE_S: Final = 10.0

#: Seconds that one session may be busy before others get their turn.
HANDLER_S: Final = 0.001

#: Bytes of messages that wait to be handled, in multiples of the largest message.
MAX_INBOX: Final = 4

#: Bytes that keeping a message costs besides its own: empty ones would wait in any number.
ITEM_BYTES: Final = 64


def unknown() -> Response:
    """What is answered where there is no such session."""
    return text_response(
        404,
        "There is no such session here. It has ended, or it is held by another node: a balancer "
        "must send all requests of a session, which its path names, to the same node",
    )


class HttpSession:
    """One session; also the Transport of its connection's Outbox.

    Attributes:
        path: path that is its name.
        share: the Poller's share of its app.
        is_sockjs: whether SockJS's own client speaks, and not pusher-js's.
        wheel_slot: place in the wheel of the server's timeouts; the wheel's own.
    """

    __slots__ = (
        "_broker",
        "_common",
        "_connection",
        "_forget",
        "_inbox",
        "_inbox_bytes",
        "_last",
        "_n_handled",
        "_n_taken",
        "_paced",
        "_receiver",
        "is_sockjs",
        "path",
        "share",
        "wheel_slot",
    )

    def __init__(
        self,
        broker: Broker,
        common: Common,
        forget: Callable[[HttpSession], None],
        path: str,
    ) -> None:
        """Make it.

        Args:
            broker: the broker that it belongs to.
            common: what the server's connections have in common.
            forget: function called when it has ended.
            path: path of its requests up to what they ask for, which is its name.
        """
        self.path = path
        self._broker = broker
        self._common = common
        self._forget: Callable[[HttpSession], None] | None = forget
        self._connection: Connection | None = None
        self._receiver: Receiver | None = None
        self._inbox: deque[bytes] | None = None
        self._inbox_bytes = 0
        self._paced: list[Callable[[], bool]] | None = None
        self._n_taken = self._n_handled = 0
        self._last = b""
        self.share = common.poller.newcomers
        self.is_sockjs = False
        self.wheel_slot = 0

    @property
    def connection(self) -> Connection | None:
        """The conversation; None before the client has said with which app."""
        return self._connection

    @property
    def is_receiving(self) -> bool:
        """Whether a request receives."""
        return self._receiver is not None

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._forget is None

    # --- handing over

    @property
    def can_move(self) -> bool:
        """Whether another process can go on with it: nothing of it is half done."""
        connection, receiver = self._connection, self._receiver
        if connection is None or connection.outbox.is_finishing or self._inbox or self._paced:
            return False
        return receiver is None or receiver.can_move

    @property
    def descriptors(self) -> list[int]:
        """That of the request that receives, if one does."""
        return [] if self._receiver is None else [self._receiver.fd]

    def export(self) -> dict[str, Any]:
        """What ``ClientState`` has of it, by name; of one that :attr:`can_move`."""
        receiver = self._receiver
        if receiver is None:
            return {"http": HttpSessionState(self.path, self.is_sockjs)}
        http = HttpSessionState(self.path, self.is_sockjs, receiver.export())
        return {"family": receiver.family, "http": http}

    def restore(self, connection: Connection, outbox: OutboxState | None) -> None:
        """Go on with a conversation that another process began. Nothing is sent."""
        self._connection = connection
        if outbox is not None:
            connection.outbox.restore(outbox)
        self._common.expire_after(ABSENCE_S if self._receiver is None else HEARTBEAT_S, self)

    def let_go(self) -> Connection | None:
        """Another process has it: close the descriptor, which ends nothing; gives what it was."""
        connection, self._connection = self._connection, None
        self.abort()
        return connection

    # --- receiving

    def open(self, app: App, protocol: str | None, preface: bytes = b"") -> None:
        """Begin the conversation; ``preface`` is sent in front of its first message."""
        self.share = self._common.poller.share_of(app.id)
        self._connection = self._broker.clients.open(app, JSON_SOCKJS, self, protocol, preface)
        self._common.expire_after(ABSENCE_S if self._receiver is None else HEARTBEAT_S, self)

    def attach(self, receiver: Receiver) -> None:
        """Write to a request from now on; what waits goes first."""
        self._receiver = receiver
        receiver.begin(self)
        if self._last:
            self._say_last()
        connection = self._connection
        if connection is not None:
            connection.session.active_at = self._broker.clock()
            self._common.expire_after(HEARTBEAT_S, self)
            self.on_writable()

    def greet(self) -> None:
        """Say that the client may say with which app it wants to speak."""
        self._say(OPEN)

    def _say(self, data: bytes) -> None:
        """Send a few bytes while there is no Outbox yet; a client that takes none has gone."""
        if self._receiver is not None:
            try:
                sent = self._receiver.send(data)
            except OSError:
                sent = 0
            if sent != len(data):
                self.abort()

    def refuse(self, error: RemoteProtocolError) -> None:
        """Say why there is no conversation, now or when the client asks again, and end."""
        self._last = JSON_SOCKJS.refusal(error)
        self._say_last()

    def _say_last(self) -> None:
        if self._receiver is not None:
            self._say(self._last)
            self._finish()

    def _finish(self) -> None:
        """All has been said."""
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.end()
        self.abort()

    # --- what the request that receives says

    def on_writable(self) -> None:
        """Flush what waits, and go on with what the client asked for meanwhile."""
        connection = self._connection
        if connection is None:
            return
        outbox = connection.outbox
        outbox.flush(self._broker.clock())
        if self._receiver is not None and outbox.waiting_bytes:
            self._receiver.watch(writes=True)
        self._go_on(connection)

    def on_complete(self) -> None:
        """The client has to ask again."""
        self._receiver = None
        if self._connection is not None and not self.is_over:
            self._common.expire_after(ABSENCE_S, self)

    def on_lost(self) -> None:
        """The client has gone."""
        self._receiver = None
        self.abort()

    # --- what the Outbox calls

    @property
    def retries_same_bytes(self) -> bool:
        """See :class:`cachecast.channels.outbox.Transport`."""
        return self._receiver is not None and self._receiver.is_tls

    def send(self, data: bytes, /) -> int:
        """Write to the request that receives."""
        if self._receiver is None:
            raise BlockingIOError
        return self._receiver.send(data)

    def wait_writable(self) -> None:
        """Go on when the client takes more, or asks again."""
        if self._receiver is not None:
            self._receiver.watch(writes=True)

    def on_drained(self) -> None:
        """Nothing waits any more."""
        connection = self._connection
        if connection is not None and connection.outbox.is_finishing:
            self._finish()
        elif self._receiver is not None:
            self._receiver.watch(writes=False)

    def on_slow(self) -> None:
        """Close a client that does not follow."""
        if self._connection is not None:
            self._broker.clients.disconnect_slow(self._connection)

    def on_broken(self) -> None:
        """The connection is broken, or a closing client has had enough time."""
        receiver = self._receiver
        if receiver is None:
            self.abort()
        else:  # in the midst of a fan-out, perhaps
            self._common.poller.abort_soon(receiver.fd, receiver)

    # --- sending

    def take(self, messages: list[bytes], done: Response) -> Response | Later:
        """Handle what the client says; answered by ``done`` when it has been: that is its pace."""
        connection = self._connection
        if connection is None or self.is_over:
            return unknown()
        if not messages:
            self._answer_ping(connection)
            return done
        largest = self._common.config.max_message_bytes
        self._n_taken += len(messages)
        self._inbox_bytes += sum(map(len, messages)) + ITEM_BYTES * len(messages)
        if max(map(len, messages)) > largest:
            self._close(connection, 1009, f"Message larger than {largest} bytes")
        elif self._inbox_bytes > MAX_INBOX * largest:
            text = f"More than {MAX_INBOX * largest} bytes of messages wait to be handled"
            self._close(connection, 4100, text)
        else:
            self._inbox = self._inbox or deque()
            self._inbox.extend(messages)
        until = self._n_taken

        def attempt() -> Response | None:
            self._handle(connection)
            return done if self._n_handled >= until else None

        return attempt() or Later(attempt, self._line)

    def _line(self, action: Callable[[], bool]) -> None:
        """Have an attempt made in turns with others, and not before the client has read."""
        connection = self._connection
        assert connection is not None

        def step() -> bool:
            if action():
                return True
            if not connection.outbox.is_pacing:
                return False
            self._paced = self._paced or []
            self._paced.append(step)
            return True

        self._broker.stepper.add(connection.session.app.id, step)

    def _go_on(self, connection: Connection) -> None:
        """Handle what waited for the client to read."""
        if self._paced and not connection.outbox.is_pacing:
            paced, self._paced = self._paced, None
            for step in paced:
                self._broker.stepper.add(connection.session.app.id, step)

    def _handle(self, connection: Connection) -> None:
        """Handle messages until there is none, time is up or the client must read first."""
        outbox, inbox = connection.outbox, self._inbox
        until = perf_counter() + HANDLER_S
        while inbox and not outbox.is_finishing and not outbox.is_pacing:
            message = inbox.popleft()
            self._inbox_bytes -= len(message) + ITEM_BYTES
            self._n_handled += 1
            self._broker.clients.receive(connection, message)
            if perf_counter() >= until:
                break
        if outbox.is_finishing or not inbox:  # nobody hears the rest
            self._inbox = None
            self._inbox_bytes = 0
            self._n_handled = self._n_taken

    def _answer_ping(self, connection: Connection) -> None:
        """Answer an empty request: pusher-js asks by it for a sign of life, SockJS gives one."""
        self._broker.clients.touch(connection)
        if not self.is_sockjs:
            connection.outbox.put(NOTHING, is_asked=True)

    def fault(self) -> None:
        """The client has sent what cannot be read; too much of that ends it, as of messages."""
        connection = self._connection
        if connection is None:
            return
        now = self._broker.clock()
        try:
            connection.session.touch(now)
            connection.session.note_fault(now)
        except RefusedError as error:
            self._close(connection, error.close_code or 4009, error.message)

    def _close(self, connection: Connection, code: int, reason: str) -> None:
        self._broker.clients.disconnect(connection, code, reason)

    # --- ending

    def on_timeout(self) -> None:
        """The server's wheel: a heartbeat is due, or the client has not come back."""
        connection = self._connection
        if self._receiver is None or connection is None:
            self.abort()
            return
        self._common.expire_after(HEARTBEAT_S, self)
        outbox = connection.outbox
        if not (outbox.waiting_bytes or outbox.is_finishing):
            outbox.put(HEARTBEAT, is_asked=True)

    def abort(self) -> None:
        """End it without a word; harmless twice."""
        forget, self._forget = self._forget, None
        if forget is None:
            return
        self._common.timeouts.cancel(self)
        forget(self)
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.owner = None
            receiver.abort()
        connection = self._connection
        if connection is not None:
            self._broker.clients.close(connection)
            connection.outbox.discard()
            self._go_on(connection)
