"""websockets.broadcast, in the configuration its documentation recommends for speed."""

from __future__ import annotations

# A peer runs on the loop it was written for; nothing of ours shares the process.
import asyncio  # noqa: TID251
import importlib
import sys
from collections import defaultdict
from contextlib import suppress

from websockets.asyncio.server import ServerConnection, broadcast, serve

from cachecast_bench.dialects.websocket import split_records

_BACKLOG = 4096


async def main(port: int, publish_port: int) -> None:
    """Serve until killed."""
    members: dict[str, set[ServerConnection]] = defaultdict(set)

    async def on_client(client: ServerConnection) -> None:
        assert client.request is not None
        channel = client.request.path.removeprefix("/")
        members[channel].add(client)
        try:
            await client.wait_closed()
        finally:
            members[channel].discard(client)

    async def on_control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pending = b""
        while data := await reader.read(1 << 18):
            records, pending = split_records(pending + data)
            for channel, message in records:
                broadcast(members[channel], message.decode())
            # Broadcasting never waits: without this, clients would wait for the last record.
            await asyncio.sleep(0)
        writer.close()

    clients = serve(
        on_client,
        "127.0.0.1",
        port,
        compression=None,
        ping_interval=None,
        max_queue=None,
        backlog=_BACKLOG,
    )
    async with clients:
        control = await asyncio.start_server(on_control, "127.0.0.1", publish_port, limit=1 << 20)
        await control.serve_forever()


if __name__ == "__main__":
    with suppress(ImportError):
        importlib.import_module("uvloop").install()
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
