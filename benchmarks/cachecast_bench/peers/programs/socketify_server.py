"""socketify: clients subscribe to the topic of their path, records are published to topics."""

from __future__ import annotations

import sys
from typing import Any

from socketify import (
    App,
    AppListenOptions,
    CompressOptions,
    OpCode,
)

from cachecast_bench.dialects.websocket import split_records

_CONTROL = "/-/publish"


def main(port: int) -> None:
    """Serve until killed."""
    app = App()

    def on_upgrade(response: Any, request: Any, context: Any) -> None:  # noqa: ANN401
        key = request.get_header("sec-websocket-key")
        protocol = request.get_header("sec-websocket-protocol")
        extensions = request.get_header("sec-websocket-extensions")
        response.upgrade(key, protocol, extensions, context, request.get_url())

    def on_open(client: Any) -> None:  # noqa: ANN401
        path = client.get_user_data()
        if path != _CONTROL:
            client.subscribe(path.removeprefix("/"))

    def on_message(client: Any, message: Any, opcode: Any) -> None:  # noqa: ANN401
        del opcode
        if client.get_user_data() == _CONTROL:
            records, _ = split_records(bytes(message))
            for channel, event in records:
                app.publish(channel, event.decode(), OpCode.TEXT)

    app.ws(
        "/*",
        {
            "compression": CompressOptions.DISABLED,
            "max_payload_length": 1 << 20,
            "idle_timeout": 0,
            "max_backpressure": 64 << 20,
            "upgrade": on_upgrade,
            "open": on_open,
            "message": on_message,
        },
    )
    app.listen(AppListenOptions(port=port, host="127.0.0.1"), lambda _: None)
    app.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
