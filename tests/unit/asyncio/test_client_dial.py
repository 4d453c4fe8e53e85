"""asyncio's streams as the client's byte stream."""

from __future__ import annotations

import asyncio

import pytest
import trio

from cachecast.asyncio.client_dial import READ_BYTES, dialled
from cachecast.asyncio.guest import open_guest
from cachecast.client import Target

TARGET = Target("127.0.0.1", 0, is_tls=False, resource="/")


def run(play, dial=None):
    """Have ``play`` do something with a stream, in Trio, and with what is at its other end."""

    async def main():
        peers = asyncio.Queue()
        server = await asyncio.start_server(lambda *pair: peers.put_nowait(pair), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]

        async def open_(target):
            assert target is TARGET
            return await asyncio.open_connection("127.0.0.1", port)

        async with asyncio.timeout(60), server, open_guest("test") as guest:

            async def there():
                stream = await dialled(guest, dial or open_)(TARGET)
                peer = await guest.call_host(peers.get)
                try:
                    await play(stream, guest.call_host, *peer)
                finally:
                    await trio.aclose_forcefully(stream)
                    peer[1].transport.abort()

            await guest.run(there)

    asyncio.run(main())


def test_bytes_go_both_ways_and_the_end_is_seen():
    async def play(stream, in_asyncio, reader, writer):
        await stream.send_all(b"ping")
        await stream.wait_send_all_might_not_block()
        assert await in_asyncio(reader.readexactly, 4) == b"ping"
        writer.write(b"x" * (READ_BYTES + 1))
        assert await stream.receive_some(1) == b"x"
        got = b""
        while len(got) < READ_BYTES:
            got += await stream.receive_some()
        writer.close()
        assert await stream.receive_some() == b""
        await stream.aclose()
        await stream.aclose()

    run(play)


def test_a_connection_that_breaks_is_trios_error():
    async def play(stream, in_asyncio, reader, writer):
        writer.transport.abort()
        with pytest.raises(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
            while True:
                await stream.send_all(b"x" * READ_BYTES)

    run(play)


def test_a_cancelled_read_has_taken_nothing():
    async def play(stream, in_asyncio, reader, writer):
        with trio.move_on_after(0.01):
            await stream.receive_some()
        writer.write(b"late")
        assert await stream.receive_some() == b"late"

    run(play)


def test_sending_waits_for_a_peer_that_does_not_read_and_can_be_cancelled():
    async def play(stream, in_asyncio, reader, writer):
        with trio.move_on_after(0.05) as scope:
            while True:
                await stream.send_all(b"x" * 1_000_000)
        assert scope.cancelled_caught

    run(play)


def test_a_dial_that_fails_says_why():
    async def refuse(target):
        raise ConnectionRefusedError("nobody there")

    async def play(*_):
        raise AssertionError("connected")

    with pytest.raises(ConnectionRefusedError, match="nobody there"):
        run(play, refuse)
