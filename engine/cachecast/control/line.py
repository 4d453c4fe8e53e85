"""A conversation on a Unix socket: messages with their length in front, and open files with them.

The rule of this file: the other end may be of another release, stopped or mad, and costs a bounded
number of bytes and of files. How long it may take is the caller's to say, by a cancel scope.

A message is a head (length of the body, number of descriptors) and a body in msgpack. Descriptors
travel with the first byte of their message (SCM_RIGHTS), so they have arrived when it is whole, in
the order in which messages name them.
"""

from __future__ import annotations

import os
import socket
import struct
from array import array
from collections import deque
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import trio

from cachecast.errors import ControlError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MAX_DESCRIPTORS", "MAX_MESSAGE_BYTES", "PROTOCOL_VERSION", "Line", "Reply", "Request"]

#: Version of what is said here; who speaks another one is refused in words. The forms of the first
#: message and of its reply are the same in all versions.
PROTOCOL_VERSION: Final = 1

#: Bytes of the body of one message at most: a configuration with ten thousand apps.
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024

#: Number of descriptors of one message at most: what Linux takes, its SCM_MAX_FD.
MAX_DESCRIPTORS: Final = 253

_RECEIVE_BYTES: Final = 256 * 1024
_HEAD: Final = struct.Struct(">IB")
_DESCRIPTOR_BYTES: Final = array("i").itemsize
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(MAX_DESCRIPTORS * _DESCRIPTOR_BYTES)

#: What is received is not inherited by processes that are started meanwhile.
_RECEIVE_FLAGS: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)

T = TypeVar("T")


class Request(msgspec.Struct, frozen=True, array_like=True):
    """The first message, of the one who connects.

    Attributes:
        version: version of the protocol that it speaks.
        verb: what it asks for.
        body: what belongs to that, in msgpack.
    """

    version: int
    verb: str
    body: msgspec.Raw = msgspec.Raw(b"\xc0")


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """The last message, of the node.

    Attributes:
        fault: sentences that say why it was not done; empty if it was.
        body: what was asked for, in msgpack.
    """

    fault: str
    body: msgspec.Raw = msgspec.Raw(b"\xc0")


class Line:
    """One end of a conversation; owns its socket, and descriptors that nobody has taken yet."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._sock = sock
        self._read = bytearray()
        self._descriptors: deque[int] = deque()

    async def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send a message; the descriptors in it stay open here, too.

        If cancelled, the message may have been sent in part: nothing more can be said then.

        Args:
            message: what msgspec can encode.
            descriptors: open files that go with it, at most :data:`MAX_DESCRIPTORS`. The kernel
                keeps a user's files that nobody has received yet to the number that a process may
                have open; past it, this fails.

        Raises:
            ControlError: it is too large, or the other end has gone.
        """
        body = msgspec.msgpack.encode(message)
        if len(body) > MAX_MESSAGE_BYTES:
            raise ControlError(
                f"A message of {len(body)} bytes is too large: at most {MAX_MESSAGE_BYTES}."
            )
        data = memoryview(_HEAD.pack(len(body), len(descriptors)) + body)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))]
        try:
            sent = await self._sock.sendmsg([data], rights if descriptors else [])
            while sent < len(data):
                sent += await self._sock.send(data[sent:])
        except OSError as error:
            raise ControlError(f"The other end cannot be written to: {error}.") from error

    async def receive(self, kind: type[T]) -> tuple[T, list[int]]:
        """The next message, and its descriptors, which the caller owns from now on.

        If cancelled, nothing is lost.

        Args:
            kind: type of the message.

        Raises:
            ControlError: the other end has gone, speaks nonsense, or sent more open files than
                this process may have.
        """
        while (found := self._take()) is None:
            try:
                data, ancillary, flags, _ = await self._sock.recvmsg(
                    _RECEIVE_BYTES, _ANCILLARY_BYTES, _RECEIVE_FLAGS
                )
            except OSError as error:
                raise ControlError(f"The other end cannot be read: {error}.") from None
            for _, _, content in ancillary:
                whole = len(content) - len(content) % _DESCRIPTOR_BYTES
                self._descriptors.extend(array("i", content[:whole]))
            if flags & socket.MSG_CTRUNC:
                raise ControlError("Open files were lost: this process may have no more of them.")
            if not data:
                raise ControlError("The other end has gone.")
            self._read += data
        body, n_descriptors = found
        if n_descriptors > len(self._descriptors) or len(self._descriptors) > MAX_DESCRIPTORS:
            raise ControlError("The other end sent other open files than it said.")
        try:
            message = msgspec.msgpack.decode(body, type=kind)
        except msgspec.DecodeError as error:
            raise ControlError(f"The other end speaks nonsense: {error}.") from None
        return message, [self._descriptors.popleft() for _ in range(n_descriptors)]

    def _take(self) -> tuple[bytes, int] | None:
        """Body of the next message and its number of descriptors; None if it is not all here."""
        if len(self._read) < _HEAD.size:
            return None
        length, n_descriptors = _HEAD.unpack_from(self._read)
        if length > MAX_MESSAGE_BYTES:
            raise ControlError(
                f"A message of {length} bytes is too large: at most {MAX_MESSAGE_BYTES}."
            )
        end = _HEAD.size + length
        if len(self._read) < end:
            return None
        body = bytes(self._read[_HEAD.size : end])
        del self._read[:end]
        return body, n_descriptors

    def close(self) -> None:
        """Close the socket, and every descriptor that no message has brought yet."""
        self._sock.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())
