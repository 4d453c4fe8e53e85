"""A byte stream that asyncio opened, for the client that lives in Trio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from cachecast.client import Target

if TYPE_CHECKING:
    from cachecast import client as trio_client
    from cachecast.asyncio.guest import Guest

__all__ = ["Dial", "dialled"]

#: Bytes that are read at once, where the reader does not say.
READ_BYTES = 65_536

#: Function that opens the byte stream, TLS included. Raises OSError if that fails.
Dial = Callable[[Target], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


def dialled(guest: Guest, dial: Dial) -> trio_client.Dial:
    """What the client calls instead: dials in the host loop."""

    async def call(target: Target) -> trio.abc.Stream:
        return _Stream(guest, *await guest.call_host(dial, target))

    return call


class _Stream(trio.abc.Stream):
    """asyncio's pair as Trio's stream."""

    def __init__(
        self, guest: Guest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._guest = guest
        self._reader = reader
        self._writer = writer

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        try:
            return await self._guest.call_host(self._reader.read, max_bytes or READ_BYTES)
        except OSError as error:
            raise trio.BrokenResourceError from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:  # type: ignore[explicit-override]
        await trio.lowlevel.checkpoint_if_cancelled()
        self._writer.write(data)
        await self.wait_send_all_might_not_block()

    async def wait_send_all_might_not_block(self) -> None:  # type: ignore[explicit-override]
        try:
            await self._guest.call_host(self._writer.drain)
        except OSError as error:
            raise trio.BrokenResourceError from error

    async def aclose(self) -> None:  # type: ignore[explicit-override]
        """Let what was written leave; if cancelled, hang up."""
        self._writer.close()
        try:
            await self._guest.call_host(self._writer.wait_closed)
        except OSError:
            pass  # it is closed all the same
        except trio.Cancelled:
            self._writer.transport.abort()
            raise
