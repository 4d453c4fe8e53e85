"""A client in memory: what it sends are real frames, what it gets is read from real bytes.

It behaves like a client library where a server can tell the difference: it answers pings and
closes, masks its frames and reads as fast as bytes come. Each of these can be switched off, for
that is how the clients behave that a server has to survive.
"""

from __future__ import annotations

import zlib
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

import msgpack
import msgspec
import trio

from cachecast.protocol import auth, frames
from cachecast.protocol.codec import MSGPACK
from cachecast.protocol.json_text import read_json
from cachecast.testing.socket import MemorySocket

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cachecast.apps import App
    from cachecast.protocol.wire import Wire
    from cachecast.testing.network import MemoryNetwork

__all__ = ["ClientClosedError", "MemoryClient", "Message"]

T = TypeVar("T")

_decode = msgspec.json.Decoder().decode

#: Mask of a client's frames; any four bytes do (RFC 6455 5.3), and always the same ones make
#: failures reproducible.
_MASK = b"\x37\xfa\x21\x3d"


class ClientClosedError(Exception):
    """The connection has ended and everything that came before has been received.

    Attributes:
        code: status code of the close frame, None if the connection ended without one.
        reason: text of the close frame.
    """

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"closed with {code} {reason}".rstrip())
        self.code = code
        self.reason = reason


class Message(msgspec.Struct, frozen=True):
    """One message that a client received.

    Attributes:
        event: name of the event.
        channel: name of the channel; None for messages that concern the connection.
        data: value as it was on the wire; JSON clients get most of it as text, see :meth:`json`.
        user_id: id of the member who sent a client event on a presence channel.
        text: the whole message as JSON; for a JSON client the very text of the frame.
    """

    event: str
    channel: str | None
    data: Any
    user_id: str | int | None
    text: str

    def json(self) -> Any:  # noqa: ANN401 - whatever was published
        """``data`` as a value, whichever codec it came by.

        Raises:
            msgspec.DecodeError: it is text that is not JSON.
        """
        return read_json(_decode, self.data) if isinstance(self.data, str) else self.data


class MemoryClient:
    """One client; :meth:`MemoryNetwork.connect` makes it.

    Sending never waits: the server has handled what was sent when :meth:`send` returns. What other
    tasks have to deliver arrives as soon as they run, which awaiting :meth:`receive` lets them.

    Attributes:
        app: the app whose key it connected with.
        socket_id: id given by the server; empty until then.
        status: status code of the response to the handshake; 101 unless it was refused.
        messages: messages received so far, all of them, whether :meth:`receive` has returned them
            or not.
        pings: number of WebSocket pings received.
        close_code: status code of the close frame that it received, if any.
        close_reason: text of that close frame.
        is_closed: whether the server has ended the connection.
        answers_pings: whether to send a pong for each ping, as every client library does.
        answers_close: whether to answer a close frame, as every client library does.
        patience_s: seconds of Trio's clock that :meth:`receive` waits.
        chunks: the bytes received, by call of ``send``.
        frames: the frames received, as opcode and payload.
    """

    patience_s: float = 5.0

    def __init__(self, network: MemoryNetwork, app: App, wire: Wire, fd: int) -> None:
        """Make it; nothing is sent before the network does it."""
        self.app = app
        self.wire = wire
        self.socket: MemorySocket = MemorySocket(fd, self._on_bytes, self._on_end)
        self.socket_id: str = ""
        self.status: int = 0
        self.messages: list[Message] = []
        self.pings: int = 0
        self.close_code: int | None = None
        self.close_reason: str = ""
        self.is_closed: bool = False
        self.answers_pings: bool = True
        self.answers_close: bool = True
        self.chunks: list[bytes] = []
        self.frames: list[tuple[int, bytes]] = []
        self._network = network
        self._unread: deque[tuple[int, Message]] = deque()
        self._n_received = 0
        self._buffer = b""
        self._arrival = network.event_type()

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Name the socket id."""
        return f"MemoryClient({self.socket_id or 'not connected'})"

    # --- sending

    def send(self, message: Mapping[str, Any] | str | bytes) -> None:
        """Send one message: a mapping in the client's codec, text or bytes as they are."""
        if isinstance(message, str):
            self.send_frame(frames.TEXT, message.encode("utf-8", "surrogatepass"))
        elif isinstance(message, bytes):
            self.send_frame(frames.TEXT if self.wire.codec.is_text else frames.BINARY, message)
        elif self.wire.codec is MSGPACK:
            self.send_frame(frames.BINARY, msgpack.packb(dict(message)))
        else:
            self.send_frame(frames.TEXT, msgspec.json.encode(message))

    def send_frame(self, opcode: int, payload: bytes = b"", *, is_final: bool = True) -> None:
        """Send one masked frame."""
        self.send_bytes(_client_frame(opcode, payload, is_final=is_final))

    def send_bytes(self, data: bytes) -> None:
        """Send bytes as they are, frames or not."""
        self.socket.inbound += data
        self._network.poller.touch(self.socket.fileno())
        self._network.poller.serve_ready()

    def trigger(self, channel: str, event: str, data: object) -> None:
        """Send a client event; its name must start with ``client-``."""
        self.send({"event": event, "channel": channel, "data": data})

    def sign(self, text: str) -> str:
        """``KEY:SIGNATURE`` of a text, with the app's newest secret."""
        pair = self.app.key_pairs[-1]
        return f"{pair.key}:{auth.sign(pair.secret.encode(), text.encode())}"

    def subscription(
        self, channel: str, *, user_id: str | int | None = None, user_info: object = None
    ) -> dict[str, Any]:
        """The signed ``pusher:subscribe`` message for a channel of any kind.

        Args:
            channel: name of the channel.
            user_id: id of the member, for presence channels; None leaves ``channel_data`` out.
            user_info: what other members are shown of this one.
        """
        data: dict[str, Any] = {"channel": channel}
        if user_id is not None:
            info = {} if user_info is None else {"user_info": user_info}
            data["channel_data"] = msgspec.json.encode({"user_id": user_id, **info}).decode()
        if channel.startswith(("private-", "presence-")):
            text = auth.subscription_text(self.socket_id, channel, data.get("channel_data"))
            data["auth"] = self.sign(text)
        return {"event": "pusher:subscribe", "data": data}

    async def subscribe(
        self, channel: str, *, user_id: str | int | None = None, user_info: object = None
    ) -> Message:
        """Subscribe and wait for the answer; what else arrives is left for :meth:`receive`.

        Args:
            channel: name of a channel of any kind; private and presence channels are signed with
                the app's secret.
            user_id: id of the member, see :meth:`subscription`.
            user_info: what other members are shown of this one, see :meth:`subscription`.

        Returns:
            The ``pusher_internal:subscription_succeeded`` message.

        Raises:
            AssertionError: the server refused; the text is its reason.
        """
        since = self._n_received
        self.send(self.subscription(channel, user_id=user_id, user_info=user_info))
        answers = {"pusher_internal:subscription_succeeded", "pusher:subscription_error"}
        answer = await self._take(lambda m: m.channel == channel and m.event in answers, since)
        if answer.event == "pusher:subscription_error":
            raise AssertionError(f"subscription to {channel} refused: {answer.json()}")
        return answer

    def unsubscribe(self, channel: str) -> None:
        """Unsubscribe; the protocol has no answer to it."""
        self.send({"event": "pusher:unsubscribe", "data": {"channel": channel}})

    async def sign_in(self, user_id: str, **user_data: Any) -> Message:  # noqa: ANN401 - JSON
        """Sign in and wait for ``pusher:signin_success``.

        Args:
            user_id: id of the user.
            user_data: fields beside the id: ``user_info``, ``watchlist``.
        """
        text = msgspec.json.encode({"id": user_id, **user_data}).decode()
        signature = self.sign(auth.signin_text(self.socket_id, text))
        since = self._n_received
        self.send({"event": "pusher:signin", "data": {"auth": signature, "user_data": text}})
        return await self._take(lambda message: message.event == "pusher:signin_success", since)

    # --- receiving

    async def receive(self) -> Message:
        """Wait for the next message that has not been received yet.

        If cancelled, none is lost.

        Raises:
            ClientClosedError: there is none left and the connection has ended.
            trio.TooSlowError: nothing came for ``patience_s``. Without this limit a missing
                message would make a virtual clock run for ever.
        """
        return await self._take(lambda _: True)

    def receive_nowait(self) -> Message:
        """The next message that has not been received yet, if it is here.

        Raises:
            trio.WouldBlock: it is not.
            ClientClosedError: there is none left and the connection has ended.
        """
        if self._unread:
            return self._unread.popleft()[1]
        if self.is_closed:
            raise ClientClosedError(self.close_code, self.close_reason)
        raise trio.WouldBlock

    def __aiter__(self) -> MemoryClient:
        """Iterate over messages until the connection ends."""
        return self

    async def __anext__(self) -> Message:
        """See :meth:`receive`."""
        try:
            return await self.receive()
        except ClientClosedError:
            raise StopAsyncIteration from None

    async def wait_closed(self) -> int | None:
        """Wait until the server has ended the connection; returns the close code.

        Raises:
            trio.TooSlowError: it has not within ``patience_s``.
        """
        await self._until(lambda: self.is_closed or None)
        return self.close_code

    @property
    def received(self) -> bytes:
        """Every byte received since the handshake."""
        return b"".join(self.chunks)

    def forget(self) -> None:
        """Drop everything received so far; for tests that run for days."""
        self.messages.clear()
        self.chunks.clear()
        self.frames.clear()
        self._unread.clear()

    # --- being slow, and leaving

    def stop_reading(self, n_bytes: int = 0) -> None:
        """Be a slow client: take so many bytes more, and then none."""
        self.socket.room = n_bytes

    def read(self, n_bytes: float) -> None:
        """Take so many bytes more."""
        self.socket.room = max(self.socket.room, 0) + n_bytes
        self._network.poller.touch(self.socket.fileno())
        self._network.poller.serve_ready()

    def start_reading(self) -> None:
        """Read as fast as bytes come again."""
        self.read(inf)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close in an orderly way, with a close frame."""
        self.send_frame(frames.CLOSE, code.to_bytes(2, "big") + reason.encode())

    def drop(self, error: OSError | None = None) -> None:
        """Vanish without a close frame.

        Args:
            error: exception that the server meets at its next send, as when a network fails; it has
                not noticed before. None ends the stream, which a server notices at once.
        """
        self.answers_pings = False
        if error is not None:
            self.socket.send_error = error
            return
        self.socket.has_ended = True
        self._network.poller.touch(self.socket.fileno())
        self._network.poller.serve_ready()

    # --- what the server's end calls

    def _on_bytes(self, data: bytes) -> None:
        self._buffer += data
        if not self.status:
            head, blank, rest = self._buffer.partition(b"\r\n\r\n")
            if not blank:
                return
            self.status = int(head.split(b" ", 2)[1])
            self._buffer = rest
            data = rest
        if data:
            self.chunks.append(data)
        while self.status == 101:
            size = _frame_size(self._buffer)
            if size is None or len(self._buffer) < size:
                break
            ((opcode, payload),) = frames.split_frames(self._buffer[:size])
            self._buffer = self._buffer[size:]
            self._on_frame(opcode, payload)

    def _on_frame(self, opcode: int, payload: bytes) -> None:
        if opcode & frames.RSV1:
            opcode, payload = opcode ^ frames.RSV1, _inflate(payload)
        self.frames.append((opcode, payload))
        if opcode == frames.PING:
            self.pings += 1
            if self.answers_pings:
                self._answer(frames.PONG, payload)
        elif opcode == frames.CLOSE:
            self.close_code = frames.close_code_of(payload)
            self.close_reason = payload[2:].decode()
            if self.answers_close:
                self._answer(frames.CLOSE, payload[:2])
        elif opcode in {frames.TEXT, frames.BINARY}:
            self._on_message(payload, is_text=opcode == frames.TEXT)
        self._wake()

    def _on_message(self, payload: bytes, *, is_text: bool) -> None:
        raw = msgspec.json.decode(payload) if is_text else msgpack.unpackb(payload)
        text = payload if is_text else msgspec.json.encode(raw)
        message = Message(
            raw["event"], raw.get("channel"), raw.get("data"), raw.get("user_id"), text.decode()
        )
        if message.event == "pusher:connection_established":
            self.socket_id = message.json()["socket_id"]
        self.messages.append(message)
        self._n_received += 1
        self._unread.append((self._n_received, message))

    def _answer(self, opcode: int, payload: bytes) -> None:
        # Not handled here and now: the engine is in the middle of sending to us.
        self.socket.inbound += _client_frame(opcode, payload)
        self._network.poller.touch(self.socket.fileno())

    def _on_end(self) -> None:
        self.is_closed = True
        self._wake()

    def _wake(self) -> None:
        self._arrival.set()
        self._arrival = self._network.event_type()

    async def _take(self, is_wanted: Callable[[Message], bool], since: int = 0) -> Message:
        """Wait for a message, later than the first ``since``, and take it out of the unread."""

        def find() -> Message | None:
            for at, (number, message) in enumerate(self._unread):
                if number > since and is_wanted(message):
                    del self._unread[at]
                    return message
            if self.is_closed:
                raise ClientClosedError(self.close_code, self.close_reason)
            return None

        return await self._until(find)

    async def _until(self, find: Callable[[], T | None]) -> T:
        """What a function finds, which is asked again whenever something has come."""
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(self.patience_s):
            while True:
                found = find()
                if found is not None:
                    return found
                await self._arrival.wait()
        raise self._too_slow()

    def _too_slow(self) -> trio.TooSlowError:
        unread = [message.text for _, message in self._unread]
        return trio.TooSlowError(f"nothing came within {self.patience_s:g} s; unread: {unread}")


def _client_frame(opcode: int, payload: bytes, *, is_final: bool = True) -> bytes:
    """A masked frame with its length in the shortest form (RFC 6455 5.2)."""
    plain = frames.server_frame(opcode, payload)
    head = len(plain) - len(payload)
    first = plain[0] if is_final else plain[0] & 0x7F
    mask = (_MASK * (len(payload) // 4 + 1))[: len(payload)]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(mask, "big")
    return (
        bytes((first, plain[1] | 0x80)) + plain[2:head] + _MASK
        + masked.to_bytes(len(payload), "big")
    )  # fmt: skip


def _frame_size(data: bytes) -> int | None:
    """Size of the server frame that ``data`` starts with; None if too little of it is here."""
    if len(data) < 2:
        return None
    size = data[1]
    if size < 126:
        return 2 + size
    head = 4 if size == 126 else 10
    return head + int.from_bytes(data[2:head], "big") if len(data) >= head else None


def _inflate(data: bytes) -> bytes:
    """The message in a compressed frame, however large the server has made it."""
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data + b"\x00\x00\xff\xff")
