"""Pysher in a process of its own (see program.py): its threads outlive its disconnect().

websocket-client may still wait in select() when another of its threads has read the close frame;
as daemons of this process they end with it.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib.metadata import version
from typing import Any

import pysher

_clients: dict[str, pysher.Pusher] = {}


def emit(message: dict[str, Any]) -> None:
    # One write: callbacks come from a thread for each client.
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def open_client(
    client: str,
    port: int,
    key: str,
    secret: str,
    options: dict[str, Any],
    channel: str,
    events: list[str],
) -> None:
    """Connect, and subscribe as Pysher's README does it: in the callback of the connection.

    Elsewhere Pysher has a race of its own: it sends the subscription before it knows the channel,
    and drops what its reading thread gets in between.
    """
    pusher = pysher.Pusher(
        key, secret=secret, secure=False, custom_host="127.0.0.1", port=port, **options
    )
    _clients[client] = pusher

    def tell(event: str, data: object) -> None:
        emit({"client": client, "channel": channel, "event": event, "data": data})

    def subscribe(_: str) -> None:
        joined = pusher.subscribe(channel)
        for event in events:
            joined.bind(event, partial(tell, event))

    pusher.connection.bind("pusher:connection_established", subscribe)
    pusher.connection.bind("pusher:error", partial(tell, "pusher:error"))
    run = pusher.connection.run

    def run_and_tell() -> None:
        run()
        tell("ended", None)

    pusher.connection.run = run_and_tell
    pusher.connect()


def trigger(client: str, channel: str, event: str, data: object) -> None:
    _clients[client].channel(channel).trigger(event, data)


_OPERATIONS = {"open": open_client, "trigger": trigger}


def main() -> None:
    emit({"client": "program", "on": "ready", "versions": {"Pysher": version("Pysher")}})
    for line in sys.stdin:
        request = json.loads(line)
        number, operation = request.pop("id"), _OPERATIONS[request.pop("op")]
        try:
            operation(**request)
            emit({"id": number, "result": None})
        except Exception as error:  # noqa: BLE001 - the test is told, whatever it was
            emit({"id": number, "error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
