"""docs/transports.md as it stands there: its balancers, before two nodes that are not joined."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import trio

from tests.loadtest.proxies import free_port, haproxy, nginx
from tests.sockets.node import KEY, Wire, running

GUIDE = (Path(__file__).parents[2] / "docs" / "transports.md").read_text()


def block(kind: str, *ports: int) -> str:
    """A file of the guide, with addresses that there are here: the balancer's, and the nodes'."""
    (text,) = re.findall(rf"```{kind}\n(.*?)```", GUIDE, re.DOTALL)
    names = ("10.0.0.10:80", "10.0.0.11:6001", "10.0.0.12:6001")
    for name, port in zip(names, ports, strict=True):
        text = text.replace(name, f"127.0.0.1:{port}")
    return text


def request(path: str, body: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize("balancer", ["nginx", "haproxy"])
async def test_all_requests_of_a_session_come_to_one_node(balancer, tmp_path):
    async with running() as one, running() as two:
        port = free_port()
        text = block(balancer, port, one.server.port, two.server.port)
        if balancer == "nginx":
            text += (
                f"server {{ listen 127.0.0.1:{port}; "
                "location / { proxy_pass http://cachecast; } }"
            )
        with (nginx if balancer == "nginx" else haproxy)(tmp_path, text, [port]):
            for number in range(12):
                base = f"/pusher/app/{KEY}/{number}/session{number}"
                for path, body, heard in (
                    ("xhr?protocol=7", b"", b"connection_established"),
                    ("xhr_send", json.dumps(['{"event":"pusher:ping","data":{}}']).encode(), b""),
                    ("xhr?protocol=7", b"", b"pusher:pong"),
                ):
                    wire = Wire(await trio.open_tcp_stream("127.0.0.1", port))
                    one.wires.append(wire)
                    await wire.say(request(f"{base}/{path}", body))
                    answer = await wire.answer()
                    assert answer.status in {200, 204}
                    assert heard in answer.body
        assert min(len(node.server.transports) for node in (one, two)) > 0
