"""One end of what a parent and a worker talk over: messages with their length in front.

The rule of this file: the other end may be stopped, mad or dead, and costs this one a bounded
number of bytes and no waiting.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

if TYPE_CHECKING:
    import socket

__all__ = ["Pipe"]

#: Bytes of one message at most: a configuration with ten thousand apps, a report on a hundred of
#: them.
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024

#: Bytes that may wait to be sent; one message more is taken below that.
MAX_WAITING_BYTES: Final = 1024 * 1024

RECEIVE_BYTES: Final = 64 * 1024

#: Number of bytes before a message that say its length; and what stands for one that is not all
#: here yet.
_LENGTH_BYTES: Final = 4
_INCOMPLETE: Final = object()


class Pipe:
    """Made from one half of a Unix socket pair, which it owns.

    Queue: :data:`MAX_WAITING_BYTES`, and one message; when it is full a message is not taken.
    """

    def __init__(self, sock: socket.socket, incoming: Any) -> None:  # noqa: ANN401 - a union
        """Take over a socket.

        Args:
            sock: connected socket of type ``SOCK_STREAM``.
            incoming: type of the messages that may come.
        """
        sock.setblocking(False)  # noqa: FBT003 - its only argument
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(incoming).decode
        self._waiting: deque[bytes] = deque()
        self._n_waiting = 0
        self._wakeup = trio.Event()
        self._sent = trio.Event()
        self._read = bytearray()

    def send(self, message: msgspec.Struct) -> bool:
        """Queue a message; False if the other end is so far behind that it is not taken."""
        if self._n_waiting >= MAX_WAITING_BYTES:
            return False
        body = self._encode(message)
        self._waiting.append(len(body).to_bytes(_LENGTH_BYTES, "big") + body)
        self._n_waiting += len(self._waiting[-1])
        self._wakeup.set()
        return True

    async def run(self) -> None:
        """Send what is queued, until the other end has gone."""
        try:
            while True:
                await self._wakeup.wait()
                self._wakeup = trio.Event()
                while self._waiting:
                    await self._stream.send_all(self._waiting[0])
                    self._n_waiting -= len(self._waiting.popleft())
                self._sent.set()
                self._sent = trio.Event()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the receiver hears of it

    async def wait_sent(self) -> None:
        """Wait until the kernel has all that was queued; :meth:`run` must be running."""
        while self._waiting:
            await self._sent.wait()

    async def receive(self) -> Any:  # noqa: ANN401 - of the union that was given
        """The next message; None at the end, which is also what nonsense is.

        If cancelled, nothing is lost.
        """
        while (message := self._take()) is _INCOMPLETE:
            try:
                data = await self._stream.receive_some(RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            if not data:
                return None
            self._read += data
        return message

    def _take(self) -> Any:  # noqa: ANN401 - of the union that was given
        """The next message of what was read; None for nonsense."""
        if len(self._read) < _LENGTH_BYTES:
            return _INCOMPLETE
        length = int.from_bytes(self._read[:_LENGTH_BYTES], "big")
        if length > MAX_MESSAGE_BYTES:
            return None
        end = _LENGTH_BYTES + length
        if len(self._read) < end:
            return _INCOMPLETE
        body = bytes(self._read[_LENGTH_BYTES:end])
        del self._read[:end]
        try:
            return self._decode(body)
        except msgspec.DecodeError:
            return None

    def close(self) -> None:
        """Close the socket; whoever waits for a message gets the end."""
        self._stream.socket.close()
