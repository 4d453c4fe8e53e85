"""Transcripts: what clients say and hear, line by line, against a real Broker in memory.

    A>> subscribe cache-x
    A<< {"event":"pusher_internal:subscription_succeeded","channel":"cache-x","data":"{}"}
    A<< {"event":"pusher:cache_miss","channel":"cache-x","data":"{}"}
    -- publish cache-x tick {"eur":1}
    A<< {"event":"tick","channel":"cache-x","data":"{\"eur\":1}"}
    -- wait 1800
    A<< ping

``>>`` is sent and ``<<`` must be received, byte for byte as JSON (msgpack is shown as JSON). Every
frame that arrives must be in the transcript; a difference is printed as a diff. Between two
actions the lines are compared client by client, since connections have no common order.

To say something: JSON as it is, or ``subscribe CHANNEL [USER_ID [USER_INFO]]``, ``unsubscribe
CHANNEL``, ``signin USER_DATA``, ``ping TEXT``, ``close CODE``. To hear: JSON, ``ok CHANNEL`` for a
success frame, ``miss CHANNEL``, ``ping``, ``pong TEXT``, ``close CODE REASON``, ``lost``.
``$A`` is the socket id of A, ``$name`` any value given to :meth:`Stage.play`.
"""

from __future__ import annotations

import difflib
import json
from string import Template
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import msgpack
import msgspec
import trio
from trio.testing import wait_all_tasks_blocked

from cachecast.protocol import auth, frames
from cachecast.protocol.wire import MSGPACK_WEBSOCKET

if TYPE_CHECKING:
    from cachecast.testing import MemoryClient, MemoryNetwork


class Stage:
    """Clients by name, in front of one server."""

    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network
        self.broker = network.broker
        self.app_id = self.broker.config.apps[0].id
        self.clients: dict[str, MemoryClient] = {}
        self._seen: dict[str, int] = {}
        self._was_lost: set[str] = set()

    def admit(self, name: str, client: MemoryClient) -> MemoryClient:
        """Give a client a name; its transcript begins here."""
        self.clients[name] = client
        self._seen[name] = len(client.frames)
        return client

    async def enter(self, *names: str, **options: Any) -> MemoryClient:
        """Connect clients; the transcript begins behind ``connection_established``."""
        for name in names:
            self.admit(name, await self.network.connect(**options))
        return self.clients[names[-1]]

    async def play(self, script: str, **values: object) -> None:
        """Do what the script says and compare; fails with a diff."""
        lines = [line.strip() for line in dedent(script).splitlines() if line.strip()]
        ids = {name: client.socket_id for name, client in self.clients.items()}
        lines = [Template(line).safe_substitute(ids | values) for line in lines]
        expected: list[str] = []
        actual: list[str] = []
        at = 0
        while at < len(lines):
            action = lines[at]
            if action[1:3] != "<<":
                expected.append(action)
                actual.append(action)
                await self._act(action)
                at += 1
            await wait_all_tasks_blocked()
            block: list[str] = []
            while at < len(lines) and lines[at][1:3] == "<<":
                block.append(self._spell_out(lines[at]))
                at += 1
            expected += sorted(block, key=lambda line: line[0])
            for name in sorted(self.clients):
                actual += self._heard(name)
        if expected != actual:
            raise AssertionError(
                "transcript (- expected, + actual)\n"
                + "\n".join(line for line in difflib.ndiff(expected, actual) if line[0] != "?")
            )

    async def _act(self, action: str) -> None:
        if action.startswith("--"):
            await self._direct(action[2:].split(None, 1))
            return
        assert action[1:3] == ">>", action
        self._say(self.clients[action[0]], action[3:].strip())

    async def _direct(self, words: list[str]) -> None:
        what, rest = words[0], words[1] if len(words) > 1 else ""
        if what == "publish":
            channel, event, data = rest.split(None, 2)
            exclude = None
            if data.startswith("except "):
                _, name, data = data.split(None, 2)
                exclude = self.clients[name].socket_id
            await self.broker.publish(self.app_id, channel, event, data, socket_id=exclude)
        elif what == "wait":
            await trio.sleep(float(rest))
        elif what == "drop":
            self.clients[rest].drop()
        else:
            raise AssertionError(f"unknown direction {what}")

    def _say(self, client: MemoryClient, line: str) -> None:
        if line.startswith("{"):
            client.send(json.loads(line) if client.wire is MSGPACK_WEBSOCKET else line)
            return
        what, _, rest = line.partition(" ")
        if what == "subscribe":
            channel, *more = rest.split(None, 2)
            member = dict(zip(("user_id", "user_info"), map(json.loads, more), strict=False))
            client.send(client.subscription(channel, **member))
        elif what == "unsubscribe":
            client.unsubscribe(rest)
        elif what == "signin":
            text = auth.signin_text(client.socket_id, rest)
            data = {"auth": client.sign(text), "user_data": rest}
            client.send({"event": "pusher:signin", "data": data})
        elif what == "ping":
            client.send_frame(frames.PING, rest.encode())
        elif what == "close":
            client.close(int(rest))
        else:
            client.send(line)

    def _spell_out(self, line: str) -> str:
        name, text = line[0], line[3:].strip()
        what, _, rest = text.partition(" ")
        data = {} if self.clients[name].wire is MSGPACK_WEBSOCKET else "{}"
        if what == "ok":
            text = _json({"event": "pusher_internal:subscription_succeeded", "channel": rest,
                          "data": data})  # fmt: skip
        elif what == "miss":
            text = _json({"event": "pusher:cache_miss", "channel": rest, "data": data})
        return f"{name}<< {text}"

    def _heard(self, name: str) -> list[str]:
        client = self.clients[name]
        new = client.frames[self._seen[name] :]
        self._seen[name] = len(client.frames)
        lines = [f"{name}<< {_shown(opcode, payload)}" for opcode, payload in new]
        if client.is_closed and client.close_code is None and name not in self._was_lost:
            self._was_lost.add(name)
            lines.append(f"{name}<< lost")
        return lines


def _shown(opcode: int, payload: bytes) -> str:
    if opcode == frames.TEXT:
        return payload.decode()
    if opcode == frames.BINARY:
        return _json(msgpack.unpackb(payload))
    if opcode == frames.CLOSE:
        code = frames.close_code_of(payload)
        return f"close {code} {payload[2:].decode()}".strip()
    return f"{'ping' if opcode == frames.PING else 'pong'} {payload.decode()}".strip()


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def text_of(value: object) -> str:
    """A value as the text that stands in a JSON frame's ``data``, quotes included."""
    return _json(_json(value))
