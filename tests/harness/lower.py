"""Stand-ins for what the two lower floors touch: a socket, and clients that speak.

Nothing here reads a clock or does I/O: a test says how much the socket takes and what time it is.
"""

from __future__ import annotations

import zlib
from math import inf
from typing import TYPE_CHECKING, Any

import msgpack
import msgspec

from cachecast.apps import App
from cachecast.channels.connection import Connection
from cachecast.channels.outbox import Backlog, Outbox
from cachecast.metrics import AppCounters
from cachecast.protocol import auth, frames
from cachecast.protocol.codec import MSGPACK
from cachecast.protocol.messages import Publication
from cachecast.protocol.session import Session
from cachecast.protocol.wire import JSON_WEBSOCKET, Encoded, Wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.protocol.frames import FrameParser

#: Of the worked examples on Pusher's "Generating authentication strings" page.
KEY = "278d425bdf160c739803"
SECRET = "7ad3773142a6692b25b8"
SOCKET_ID = "1234.1234"


def make_app(**fields: Any) -> App:
    """An app with Pusher's example credentials."""
    return App(**({"id": "3", "key": KEY, "secret": SECRET} | fields))


class FakeSocket:
    """A socket whose send buffer has ``room``; doubles as the Outbox's transport.

    Attributes:
        taken: every byte it took, in order.
        room: bytes that it still takes; none raises BlockingIOError as a real one does.
        error: raised by the next sends instead.
        events: what the outbox called, in order.
        on_event: called with each of them; may call the outbox again, as the engine's does.
    """

    def __init__(self, room: float = inf, *, retries_same_bytes: bool = False) -> None:
        self.taken = bytearray()
        self.room = room
        self.error: OSError | None = None
        self.retries_same_bytes = retries_same_bytes
        self.events: list[str] = []
        self.on_event: Callable[[str], None] = lambda _: None
        self.offered: bytes | None = None

    def send(self, data: bytes, /) -> int:
        if self.error is not None:
            raise self.error
        if self.retries_same_bytes and self.offered is not None:
            # What OpenSSL checks: "bad write retry".
            assert data[: len(self.offered)] == self.offered, "other bytes than were offered"
        if self.room <= 0 and data:
            if self.retries_same_bytes:
                self.offered = data
            raise BlockingIOError
        size = int(min(len(data), self.room))
        self.offered = None
        self.taken += data[:size]
        self.room -= size
        return size

    def _note(self, event: str) -> None:
        self.events.append(event)
        self.on_event(event)

    def wait_writable(self) -> None:
        self._note("wait_writable")

    def on_drained(self) -> None:
        self._note("on_drained")

    def on_slow(self) -> None:
        self._note("on_slow")

    def on_broken(self) -> None:
        self._note("on_broken")

    @property
    def frames(self) -> list[tuple[int, bytes]]:
        """The frames that arrived; the stream must end with a whole one."""
        return frames.split_frames(bytes(self.taken))


def make_outbox(
    socket: FakeSocket,
    *,
    backlog: Backlog | None = None,
    counters: AppCounters | None = None,
    max_bytes: int = 1_000_000,
    stall_timeout_s: float = 30.0,
) -> Outbox:
    """An outbox over a fake socket."""
    return Outbox(
        socket,
        Backlog() if backlog is None else backlog,
        counters or AppCounters(),
        max_bytes,
        stall_timeout_s,
    )


class Client:
    """One connection: its session, its outbox and the socket behind them."""

    def __init__(
        self,
        app: App | None = None,
        socket_id: str = SOCKET_ID,
        wire: Wire = JSON_WEBSOCKET,
        *,
        room: float = inf,
        now: float = 0.0,
        **outbox: Any,
    ) -> None:
        self.app = app or make_app()
        self.socket = FakeSocket(room)
        self.outbox = make_outbox(self.socket, **outbox)
        self.session = Session(self.app, socket_id, now)
        self.connection = Connection(self.session, wire, self.outbox)

    def say(
        self, event: str, data: Any = ..., *, channel: str | None = None, now: float = 0.0
    ) -> Any:
        """Hand the session one message and return the request that it makes of it."""
        return self.receive(self.encode(event, data, channel), now)

    def receive(self, payload: bytes, now: float = 0.0) -> Any:
        """The same for the bytes of a message, as the broker does it."""
        self.session.touch(now)
        return self.session.receive(self.connection.wire.read(payload), now)

    def encode(self, event: str, data: Any = ..., channel: str | None = None) -> bytes:
        message: dict[str, Any] = {"event": event}
        if channel is not None:
            message["channel"] = channel
        if data is not ...:
            message["data"] = data
        if self.connection.wire.codec is MSGPACK:
            packed: bytes = msgpack.packb(message)
            return packed
        return msgspec.json.encode(message)

    @property
    def heard(self) -> list[dict[str, Any]]:
        """Every message that this client received, decoded."""
        return [decode(opcode, payload) for opcode, payload in self.socket.frames]


def decode(opcode: int, payload: bytes) -> Any:
    """The message in a frame's payload, by whatever codec its opcode says."""
    if opcode & frames.RSV1:
        opcode ^= frames.RSV1
        payload = zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff")
    if opcode == frames.BINARY:
        return msgpack.unpackb(payload)
    return msgspec.json.decode(payload)


def message_of(frame: bytes) -> Any:
    """The message in one server frame."""
    ((opcode, payload),) = frames.split_frames(frame)
    return decode(opcode, payload)


def framed(frame: bytes) -> Encoded:
    """Something to send whose frame a test has made itself, for JSON clients."""
    return Encoded(Publication("", "", ""), JSON_WEBSOCKET, frame)


def sign(text: str, *, key: str = KEY, secret: str = SECRET) -> str:
    """``auth`` of a subscription or sign-in."""
    return f"{key}:{auth.sign(secret.encode(), text.encode())}"


def client_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    is_final: bool = True,
    mask: bytes = b"\x37\xfa\x21\x3d",
    rsv: int = 0,
    is_masked: bool = True,
    length_form: int | None = None,
) -> bytes:
    """A client frame as an independent hand would write it, or a faulty one.

    Args:
        opcode: of the frame.
        payload: before masking.
        is_final: FIN.
        mask: four bytes.
        rsv: the three reserved bits.
        is_masked: if not, the payload goes in clear.
        length_form: 7, 16 or 64 to force a form of the length; None for the shortest.
    """
    size = len(payload)
    form = length_form or (7 if size < 126 else 16 if size < 65_536 else 64)
    head = bytes([(0x80 if is_final else 0) | rsv << 4 | opcode])
    masked = 0x80 if is_masked else 0
    if form == 7:
        head += bytes([masked | size])
    elif form == 16:
        head += bytes([masked | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([masked | 127]) + size.to_bytes(8, "big")
    if not is_masked:
        return head + payload
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def read_frames(parser: FrameParser, data: bytes) -> list[tuple[int, bytes]]:
    """The messages that bytes complete; fragments that complete none are left out."""
    parser.feed(data)
    messages = iter(parser.take, None)
    return [message for message in messages if message[0] != frames.CONTINUATION]
