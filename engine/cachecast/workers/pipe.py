"""One end of what a parent and a worker talk over: messages with their length in front.

The rule of this file: the other end may be stopped, mad or dead, and costs this one a bounded
number of bytes and no waiting.
"""

from __future__ import annotations

import os
import socket
from array import array
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

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

#: Room for the descriptors of one message.
_RIGHTS_BYTES: Final = socket.CMSG_SPACE(4 * array("i").itemsize)
_RECEIVE_FLAGS: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


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
        self._waiting: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._n_waiting = 0
        self._wakeup = trio.Event()
        self._sent = trio.Event()
        #: What has been read and is no whole message yet.
        self.read = bytearray()
        #: Descriptors that came with messages, the caller's to take and close.
        self.descriptors: deque[int] = deque()

    @property
    def fd(self) -> int:
        """The socket's descriptor."""
        return self._stream.socket.fileno()

    def send(self, message: msgspec.Struct, descriptors: Sequence[int] = ()) -> bool:
        """Queue a message; False if the other end is so far behind that it is not taken.

        Args:
            message: the message.
            descriptors: open files of which copies go with it.
        """
        if self._n_waiting >= MAX_WAITING_BYTES:
            return False
        body = self._encode(message)
        data = len(body).to_bytes(_LENGTH_BYTES, "big") + body
        self._waiting.append((data, tuple(map(os.dup, descriptors))))
        self._n_waiting += len(data)
        self._wakeup.set()
        return True

    async def run(self) -> None:
        """Send what is queued, until the other end has gone."""
        try:
            while True:
                await self._wakeup.wait()
                self._wakeup = trio.Event()
                while self._waiting:
                    data, descriptors = self._waiting[0]
                    n_sent = await self._send_with(data, descriptors) if descriptors else 0
                    await self._stream.send_all(data[n_sent:])
                    self._n_waiting -= len(data)
                    self._waiting.popleft()
                self._sent.set()
                self._sent = trio.Event()
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass  # the receiver hears of it

    async def _send_with(self, data: bytes, descriptors: tuple[int, ...]) -> int:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))]
        n_sent = await self._stream.socket.sendmsg([data], rights)
        for fd in descriptors:
            os.close(fd)
        self._waiting[0] = data, ()
        return n_sent

    @property
    def is_sent(self) -> bool:
        """Whether the kernel has all that was queued."""
        return not self._waiting

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
                data, rights, _, _ = await self._stream.socket.recvmsg(
                    RECEIVE_BYTES, _RIGHTS_BYTES, _RECEIVE_FLAGS
                )
            except (trio.ClosedResourceError, OSError):
                return None
            for _, _, packed in rights:
                self.descriptors += array("i", packed)
            if not data:
                return None
            self.read += data
        return message

    def _take(self) -> Any:  # noqa: ANN401 - of the union that was given
        """The next message of what was read; None for nonsense."""
        if len(self.read) < _LENGTH_BYTES:
            return _INCOMPLETE
        length = int.from_bytes(self.read[:_LENGTH_BYTES], "big")
        if length > MAX_MESSAGE_BYTES:
            return None
        end = _LENGTH_BYTES + length
        if len(self.read) < end:
            return _INCOMPLETE
        body = bytes(self.read[_LENGTH_BYTES:end])
        del self.read[:end]
        try:
            return self._decode(body)
        except msgspec.DecodeError:
            return None

    def close(self) -> None:
        """Close the socket; whoever waits for a message gets the end."""
        self._stream.socket.close()
        for _, descriptors in self._waiting:
            self.descriptors += descriptors
        while self.descriptors:
            os.close(self.descriptors.popleft())
