"""trio-websocket, used the way its manual shows: one task a client, `send_message` to each."""

from __future__ import annotations

import sys
from collections import defaultdict
from functools import partial

import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

from cachecast_bench.dialects.websocket import split_records


async def main(port: int, publish_port: int) -> None:
    """Serve until killed."""
    members: dict[str, set[WebSocketConnection]] = defaultdict(set)

    async def on_client(request: WebSocketRequest) -> None:
        client = await request.accept()
        channel = request.path.removeprefix("/")
        members[channel].add(client)
        try:
            while True:
                await client.get_message()
        except ConnectionClosed:
            return
        finally:
            members[channel].discard(client)

    async def on_control(stream: trio.SocketStream) -> None:
        pending = b""
        async for data in stream:
            records, pending = split_records(pending + data)
            for channel, message in records:
                for client in tuple(members[channel]):
                    try:
                        await client.send_message(message.decode())
                    except ConnectionClosed:
                        members[channel].discard(client)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve_websocket, on_client, "127.0.0.1", port, None))
        nursery.start_soon(partial(trio.serve_tcp, on_control, publish_port, host="127.0.0.1"))


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), int(sys.argv[2]))
