"""A network without sockets, and an engine at its end that speaks RESP3 over the model.

The node's own code runs on it unchanged: ``Link``, ``Connection`` and all above them; only
``Dialler.connect`` gives a stream of this network instead of a socket. Every piece on its way is an
event with a time, and one task carries them out in order, so a seed decides everything: how long a
piece takes, how connections overtake each other, when they break.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any, NoReturn

import hiredis
import pytest
import trio

from cachecast.bus import model as model_module
from cachecast.bus.dial import Dialler
from cachecast.bus.faults import UnreachableError
from cachecast.bus.model import Model

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

__all__ = ["NODE", "Engine", "Network", "dialled_to"]

#: Which node a task belongs to.
NODE: ContextVar[str] = ContextVar("node")

_SETTINGS = {
    b"save": b"", b"appendonly": b"no", b"repl-diskless-sync": b"yes", b"slowlog-max-len": b"0",
    b"crash-log-enabled": b"no", b"maxmemory-policy": b"noeviction",
}  # fmt: skip

#: How often what was written at once arrives in two pieces.
SPLIT = 0.5

#: Microseconds since 1970 at the beginning of the engine's time.
START_US = 1_790_000_000_000_000


class Network:
    """Events in their order of time.

    Attributes:
        random: all chance of the simulation.
        lag_s: the longest time that a piece takes, by kind of connection.
        held: nodes whose pieces do not move.
        shut: nodes that cannot connect.
    """

    def __init__(self, chance: random.Random) -> None:
        self.random = chance
        self.lag_s = {"messages": 0.02, "commands": 0.004}
        self.held: set[str] = set()
        self.shut: set[str] = set()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._parked: deque[tuple[_Wire | None, Callable[[], None]]] = deque()
        self._sooner = trio.Event()

    def at(self, due: float, act: Callable[[], None]) -> None:
        """Have something happen at a time."""
        if not self._events or due < self._events[0][0]:
            self._sooner.set()
        heappush(self._events, (due, next(self._numbers), act))

    async def run(self) -> NoReturn:
        """Let time pass, until cancelled."""
        while True:
            due = self._events[0][0] if self._events else inf
            if due > trio.current_time():
                self._sooner = trio.Event()
                with trio.move_on_at(due):
                    await self._sooner.wait()
                continue
            heappop(self._events)[2]()
            # Tasks that were woken run between two events, or not, as Trio's shuffle has it.
            if self.random.random() < 0.5:
                await trio.lowlevel.checkpoint()


class Engine:
    """One primary: a model with a clock, connections that are bytes, and a process that may die.

    Attributes:
        model: it.
        is_running: whether it takes connections.
        is_paused: whether it stands still.
        step_us: by which its clock has been set on.
        wires: connections to it.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.step_us = 0
        self.is_running = True
        self.is_paused = False
        self.wires: list[_Wire] = []
        self.n_runs = 1
        self.model = Model(self.now_us, "a1")
        # Redis writes what a call publishes to its own connection before its reply, Valkey behind.
        self.is_valkey = network.random.random() < 0.5

    def now_us(self) -> int:
        """Its clock."""
        return START_US + int(trio.current_time() * 1e6) + self.step_us

    # --- faults

    def _run_id(self) -> str:
        self.n_runs += 1
        return f"a{self.n_runs}"

    def stop(self) -> None:
        """It dies."""
        self.is_running = False
        self.break_connections()

    def start(self) -> None:
        """It is back, empty."""
        self.model.restart(self._run_id())
        self.is_running, self.is_paused = True, False

    def fail_over(self, replica: Any) -> None:
        """Another process goes on with a copy."""
        self.break_connections()
        self.model.fail_over(replica, self._run_id())

    def break_connections(self, node: str = "", kind: str = "") -> None:
        """End connections: of a node, of a kind, or all."""
        for wire in tuple(self.wires):
            if node in {"", wire.node} and kind in {"", wire.kind}:
                wire.cut()

    def pause(self) -> None:
        """It stands still."""
        self.is_paused = True

    def go_on(self) -> None:
        """It works off what has come."""
        self.is_paused = False
        for wire in tuple(self.wires):
            wire.serve()

    # --- being asked

    def connect(self, node: str) -> _Stream:
        """A connection from a node."""
        if not self.is_running or node in self.network.shut:
            raise UnreachableError("The engine cannot be reached: connection refused.")
        wire = _Wire(self, node)
        self.wires.append(wire)
        self.model.connections.append(wire)  # type: ignore[arg-type]
        return wire.stream_of_node

    def execute(self, wire: _Wire, arguments: list[bytes]) -> bytes:
        """The bytes of a reply."""
        command = arguments[0].upper()
        if command == b"HELLO":
            return _encode({b"server": b"valkey" if self.is_valkey else b"redis",
                            b"version": b"9.1.2" if self.is_valkey else b"7.0.15", b"proto": 3,
                            b"mode": b"standalone", b"role": b"master"})  # fmt: skip
        if command == b"INFO":
            run = self.model.functions.run_id
            return _encode(
                f"role:master\r\nrun_id:{run}\r\nconnected_slaves:0\r\nrdb_saves:0\r\n".encode()
            )
        if command == b"CONFIG":
            return _encode({k: v for k, v in _SETTINGS.items() if k in arguments})
        if command in {b"SELECT", b"CLIENT", b"AUTH"}:
            return b"+OK\r\n"
        if command in {b"SUBSCRIBE", b"UNSUBSCRIBE"}:
            return wire.subscribe(command, arguments[1:])
        reply = self.model.execute(arguments)
        return _encode(reply)


class _Wire:
    """One connection, both ways; a connection of the model, which puts messages into ``stream``."""

    def __init__(self, engine: Engine, node: str) -> None:
        self.engine = engine
        self.network = engine.network
        self.node = node
        self.kind = "commands"
        self.topics: set[bytes] = set()
        self.stream: deque[tuple[None, tuple[bytes, bytes]]] = deque()
        self.stream_of_node = _Stream(self)
        self.is_cut = False
        self._reader = hiredis.Reader()
        self._waiting: deque[list[bytes]] = deque()
        self._held: deque[Callable[[], None]] = deque()
        self._due = {"up": 0.0, "down": 0.0}

    def put(self, way: str, act: Callable[[], None]) -> None:
        """Send a piece, which arrives after those before it."""
        lag_s = self.network.random.random() * self.network.lag_s[self.kind]
        due = max(self._due[way], trio.current_time() + lag_s)
        self._due[way] = due

        def arrive() -> None:
            if self.is_cut:
                return
            if self.node in self.network.held or self._held:
                self._held.append(act)
            else:
                act()

        self.network.at(due, arrive)

    def release(self) -> None:
        """What was held moves on."""
        while self._held and not self.is_cut:
            self._held.popleft()()

    def take(self, data: bytes) -> None:
        """Bytes have arrived at the engine."""
        self._reader.feed(data)
        while (arguments := self._reader.gets()) is not False:
            self._waiting.append(arguments)
        self.serve()

    def serve(self) -> None:
        """Carry out what was asked for."""
        while self._waiting and not (self.engine.is_paused or self.is_cut):
            arguments = self._waiting.popleft()
            reply = self.engine.execute(self, arguments)
            own = b"".join(_message(*self.stream.popleft()[1]) for _ in range(len(self.stream)))
            self._send(reply + own if self.engine.is_valkey else own + reply)
            for wire in tuple(self.engine.wires):
                while wire.stream:
                    wire._send(_message(*wire.stream.popleft()[1]))

    def _send(self, data: bytes) -> None:
        self.put("down", lambda: self.stream_of_node.arrive(data))

    def subscribe(self, command: bytes, topics: list[bytes]) -> bytes:
        """Confirm topic by topic."""
        self.kind = "messages"
        confirmed = b""
        for topic in topics:
            (self.topics.add if command == b"SUBSCRIBE" else self.topics.discard)(topic)
            confirmed += b">3\r\n" + _encode(command.lower()) + _encode(topic) + b":1\r\n"
        return confirmed

    def cut(self, fault: object = None) -> None:
        """End it; what is on its way is lost. The model calls it, too."""
        if not self.is_cut:
            self.is_cut = True
            self.engine.wires.remove(self)
            if self in self.engine.model.connections:
                self.engine.model.connections.remove(self)  # type: ignore[arg-type]
            self.stream_of_node.end()


class _Stream(trio.abc.Stream):
    """The node's end."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire
        self._data = bytearray()
        self._is_over = False
        self._arrived = trio.lowlevel.ParkingLot()

    def arrive(self, data: bytes) -> None:
        self._data += data
        self._arrived.unpark_all()

    def end(self) -> None:
        self._is_over = True
        self._arrived.unpark_all()

    def is_unread(self) -> bool:
        return bool(self._data) or self._is_over

    async def send_all(self, data: bytes) -> None:  # type: ignore[override]
        await trio.lowlevel.checkpoint()
        if self._is_over:
            raise trio.BrokenResourceError("ended")
        chance = self._wire.network.random
        # What is written at once may arrive in two pieces, and others' calls between them.
        cut = chance.randrange(len(data)) if chance.random() < SPLIT else 0
        for piece in (bytes(data[:cut]), bytes(data[cut:])):
            if piece:
                self._wire.put("up", partial(self._wire.take, piece))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self._data:
            if self._is_over:
                return b""
            await self._arrived.park()
        n = max_bytes or len(self._data)
        taken = bytes(self._data[:n])
        del self._data[:n]
        return taken

    async def aclose(self) -> None:
        self._wire.cut()
        await trio.lowlevel.checkpoint()


class _Refusal:
    """An error reply in the engine's own words."""

    def __init__(self, text: str) -> None:
        self.text = text


@contextmanager
def dialled_to(engines: dict[str, Engine]) -> Iterator[None]:
    """Have all nodes connect to engines of a network, by the host that their URL names."""

    async def connect(self: Dialler) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return engines[self._primary.endpoints[0].host].connect(NODE.get())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dialler, "connect", connect)
        patch.setattr(model_module, "fault_of", _Refusal)
        yield


def _message(topic: bytes, payload: bytes) -> bytes:
    return b">3\r\n" + _encode(b"message") + _encode(topic) + _encode(payload)


def _encode(reply: Any) -> bytes:
    """A reply in RESP3."""
    if reply is None or reply is False:
        return b"_\r\n"
    if isinstance(reply, _Refusal):
        return b"-%b\r\n" % reply.text.encode()
    if isinstance(reply, int | float):
        return b":%d\r\n" % reply
    if isinstance(reply, str):
        reply = reply.encode()
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if isinstance(reply, dict):
        pairs = b"".join(_encode(part) for pair in reply.items() for part in pair)
        return b"%%%d\r\n" % len(reply) + pairs
    if isinstance(reply, list | tuple):
        return b"*%d\r\n" % len(reply) + b"".join(map(_encode, reply))
    raise TypeError(f"{type(reply)} is no reply")
