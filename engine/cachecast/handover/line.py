"""The line between a process and its successor: messages with descriptors.

It is one half of a Unix socket pair, so nobody else can be at its end. While both processes live
side by side, messages are sent and awaited by Trio. For the moment in which one stops and the other
begins nothing else may run in either: there the line blocks, for a bounded time.
"""

from __future__ import annotations

import array
import os
import select
import socket
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from cachecast.handover.state import Failed, Message

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DESCRIPTORS_PER_MESSAGE", "Line", "LineError"]

#: Number of descriptors that go with one message; the kernel takes 253.
DESCRIPTORS_PER_MESSAGE: Final = 250

#: Bytes asked for each way; the kernel cuts them to net.core.wmem_max.
BUFFER_BYTES: Final = 4 * 1024 * 1024

#: Bytes of one call of ``recvmsg`` at most.
RECEIVE_BYTES: Final = 1024 * 1024

_ENDED: Final = "the other process has ended"
_LENGTH_BYTES: Final = 4
_SPACE: Final = socket.CMSG_SPACE(DESCRIPTORS_PER_MESSAGE * array.array("i").itemsize)


class LineError(Exception):
    """The other process has gone, is too slow, speaks nonsense or has given up; the text says so.

    Attributes:
        is_said: whether the text is the other process's own.
    """

    def __init__(self, text: str, *, is_said: bool = False) -> None:
        super().__init__(text)
        self.is_said = is_said


class Line:
    """One end. Owned by whoever made it, who closes it.

    What is received by Trio and cancelled, or sent and cancelled, leaves it of no more use.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)  # noqa: FBT003 - its only argument
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        self._sock = sock
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Message).decode
        self._out = memoryview(b"")
        self._rights: Sequence[int] = ()
        self._read = bytearray()
        self._descriptors: list[int] = []

    def close(self) -> None:
        """Close it, with descriptors that came and were not asked for; harmless twice."""
        self._sock.close()
        while self._descriptors:
            os.close(self._descriptors.pop())

    # --- out

    async def send(self, message: msgspec.Struct, descriptors: Sequence[int] = ()) -> None:
        """Send a message, and copies of descriptors with it.

        Raises:
            LineError: nobody is there.
        """
        self._begin(message, descriptors)
        await trio.lowlevel.checkpoint()
        while not self._push():
            await trio.lowlevel.wait_writable(self._sock)

    def send_now(
        self, message: msgspec.Struct, descriptors: Sequence[int] = (), *, deadline: float
    ) -> None:
        """Send a message while nothing else may happen, until a time of ``time.monotonic``."""
        self._begin(message, descriptors)
        while not self._push():
            self._wait(select.POLLOUT, deadline)

    def _begin(self, message: msgspec.Struct, descriptors: Sequence[int]) -> None:
        body = self._encode(message)
        self._out = memoryview(len(body).to_bytes(_LENGTH_BYTES, "big") + body)
        self._rights = descriptors

    def _push(self) -> bool:
        """Hand over as much as is taken now; whether that is all."""
        try:
            while self._out:
                rights = []
                if self._rights:
                    packed = array.array("i", self._rights)
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)]
                self._out = self._out[self._sock.sendmsg([self._out], rights) :]
                self._rights = ()
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            self._pull()  # it may have said why before it went
            raise LineError(_ENDED) from None
        except OSError as error:  # too many descriptors on their way, say
            raise LineError(f"nothing can be handed over: {error.strerror}") from None
        return True

    # --- in

    async def receive(self) -> tuple[Any, list[int]]:
        """The next message, and its descriptors, which are the caller's to close.

        Raises:
            LineError: the other process has gone, or gives up.
        """
        await trio.lowlevel.checkpoint()
        while (message := self._pull()) is None:
            await trio.lowlevel.wait_readable(self._sock)
        return message

    def receive_now(self, *, deadline: float) -> tuple[Any, list[int]]:
        """The next message while nothing else may happen; see :meth:`send_now`."""
        while (message := self._pull()) is None:
            self._wait(select.POLLIN, deadline)
        return message

    def _pull(self) -> tuple[Any, list[int]] | None:
        """The next message, if it is all there.

        Never a byte beyond it is read, for descriptors come with the first byte of theirs.
        """
        while True:
            have = len(self._read)
            size = int.from_bytes(self._read[:_LENGTH_BYTES], "big")
            missing = (_LENGTH_BYTES if have < _LENGTH_BYTES else _LENGTH_BYTES + size) - have
            if not missing and have >= _LENGTH_BYTES:
                return self._unpack()
            try:
                data, rights, flags, _ = self._sock.recvmsg(
                    min(missing, RECEIVE_BYTES), _SPACE, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return None
            except OSError:
                raise LineError(_ENDED) from None
            for _, _, packed in rights:
                numbers = array.array("i")
                numbers.frombytes(packed[: len(packed) - len(packed) % numbers.itemsize])
                self._descriptors += numbers
            if flags & socket.MSG_CTRUNC:
                raise LineError(
                    "not all connections fit into the open files of the new process "
                    "(raise LimitNOFILE, or `ulimit -n`)"
                )
            if not data:
                raise LineError(_ENDED)
            self._read += data

    def _unpack(self) -> tuple[Any, list[int]]:
        body, self._read = self._read[_LENGTH_BYTES:], bytearray()
        try:
            message = self._decode(body)
        except msgspec.DecodeError as error:
            raise LineError(f"the other process says what cannot be read: {error}") from None
        descriptors, self._descriptors = self._descriptors, []
        if isinstance(message, Failed):
            raise LineError(message.text, is_said=True)
        return message, descriptors

    def _wait(self, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(self._sock, event)
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise LineError("the other process does not answer in time")
