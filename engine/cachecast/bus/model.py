"""A plain Python model of the engine: for simulations, and as the functions' witness.

It understands the calls of ``functions.py``, and no others: what a node sends to an engine can be
sent to the model. ``library.lua`` says what each function does; here it is said a second time, in
another language and with other data structures, and ``tests/bus_conformance.py`` lets Hypothesis
compare the two. It has no clock, no loop and no chance of its own; a test can stop it, restart it,
flush it and turn its clock.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from cachecast.bus.faults import DownError, LinkError, fault_of
from cachecast.bus.model_data import Refusal
from cachecast.bus.model_functions import ModelFunctions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cachecast.bus.resp import Reply

__all__ = ["Model", "ModelConnection"]


class Model:
    """One primary.

    Attributes:
        functions: data of the engine, and what is done to it.
        connections: connections that are open; ``cut`` ends one.
        libraries: names of the libraries that were loaded.
        replies_first: whether a call's reply comes before what it published to its own connection,
            as Valkey has it, and not behind that, as Redis has it.
    """

    def __init__(self, now_us: Callable[[], int], run_id: str = "1") -> None:
        """Start an empty engine.

        Args:
            now_us: microseconds of the engine's clock.
            run_id: id of the engine's process.
        """
        self.functions = ModelFunctions(now_us, self._publish, run_id)
        self.connections: list[ModelConnection] = []
        self.libraries: set[str] = set()
        self.replies_first = False

    def connect(self, on_message: Callable[[bytes, bytes], None]) -> ModelConnection:
        """Open a connection; see :class:`ModelConnection`."""
        connection = ModelConnection(self, on_message)
        self.connections.append(connection)
        return connection

    def restart(self, run_id: str) -> None:
        """End all connections and begin with nothing, as a memory-only engine does."""
        self.fail_over(self.functions.empty_copy(), run_id)
        self.libraries.clear()

    def fail_over(self, replica: ModelFunctions, run_id: str) -> None:
        """End all connections and go on with a replica's data."""
        for connection in tuple(self.connections):
            connection.cut(DownError("The engine has gone."))
        replica.run_id = run_id
        replica.publish_message = self._publish
        self.functions = replica

    def flush(self) -> None:
        """Do what FLUSHALL does: the functions stay."""
        self.functions = self.functions.empty_copy()

    def execute(self, arguments: Sequence[bytes | str | int]) -> Reply:
        """Carry out one call; an error reply is returned as an ``LinkError``. Never yields."""
        command, *rest = (_bytes(argument) for argument in arguments)
        if command == b"FCALL":
            return self._call_function(rest)
        if command == b"EXISTS":
            return sum(self.functions.strings.get(key) is not None for key in rest)
        if command == b"PEXPIRE":
            return self.functions.strings.expire(rest[0], int(rest[1]))
        if command == b"PUBLISH":
            return self._publish(rest[0], rest[1])
        if command == b"PING":
            return b"PONG"
        if command == b"TIME":
            now = self.functions.now_us()
            return [str(now // 1_000_000).encode(), str(now % 1_000_000).encode()]
        if command == b"FUNCTION":
            return self._manage_functions(rest)
        return fault_of(f"ERR unknown command '{command.decode()}'")

    def _call_function(self, rest: list[bytes]) -> Reply:
        library, _, function = rest[0].decode().rpartition("_")
        method = None
        for start in range(len(library) + 1):  # note_miss has the separator in its name
            if library[: len(library) - start] in self.libraries:
                function = rest[0].decode()[len(library) - start + 1 :]
                method = getattr(self.functions, function, None)
                break
        if method is None:
            return fault_of("ERR Function not found")
        n_keys = int(rest[1])
        try:
            return method(rest[2 : 2 + n_keys], rest[2 + n_keys :])
        except Refusal as refusal:
            return fault_of(str(refusal))

    def _manage_functions(self, rest: list[bytes]) -> Reply:
        if rest[0] == b"LIST":
            return [[b"library_name", rest[2]]] if rest[2].decode() in self.libraries else []
        name = rest[1].split(b"\n", 1)[0].partition(b"name=")[2].decode()
        if name in self.libraries:
            return fault_of(f"ERR Library '{name}' already exists")
        self.libraries.add(name)
        return name.encode()

    def _publish(self, topic: bytes, payload: bytes) -> int:
        listeners = [link for link in self.connections if topic in link.topics]
        for connection in listeners:
            connection.stream.append((None, (topic, payload)))
        return len(listeners)


class ModelConnection:
    """A connection to the model: the same calls as ``Connection``, and one ordered stream back.

    Nothing happens by itself. A call waits in ``requests`` until ``serve`` has the engine carry it
    out; its reply waits in ``stream``, behind whatever was published before, until ``hand_over``.
    So a simulation decides how long every call and every message is on its way.

    Attributes:
        topics: topics that the connection is subscribed to.
        requests: requests that are on their way to the engine.
        stream: what the engine has written and nobody has read: for a reply its callback and the
            reply, for a message None and its topic and payload.
        fault: reason why the connection ended; None while it lives.
    """

    def __init__(self, model: Model, on_message: Callable[[bytes, bytes], None]) -> None:
        self._model = model
        self._on_message = on_message
        self.topics: set[bytes] = set()
        self.requests: deque[tuple[Callable[[], Reply], Callable[[Reply], None]]] = deque()
        self.stream: deque[tuple[Callable[[Reply], None] | None, Reply]] = deque()
        self.fault: LinkError | None = None

    def send(
        self, arguments: Sequence[bytes | str | int], on_reply: Callable[[Reply], None] | None
    ) -> None:
        """Make a call; see ``Connection.send``."""
        self._put(lambda: self._model.execute(arguments), on_reply)

    def subscribe(
        self, topics: Sequence[bytes], on_reply: Callable[[Reply], None] | None = None
    ) -> None:
        """Subscribe to topics; see ``Connection.subscribe``."""
        self._put(lambda: self.topics.update(topics), on_reply)

    def unsubscribe(
        self, topics: Sequence[bytes], on_reply: Callable[[Reply], None] | None = None
    ) -> None:
        """Unsubscribe from topics; see ``Connection.unsubscribe``."""
        self._put(lambda: self.topics.difference_update(topics), on_reply)

    def serve(self, n: int | None = None) -> int:
        """Have the engine carry out requests, in order; at most ``n``. Gives how many."""
        done = 0
        while self.requests and done != n:
            carry_out, on_reply = self.requests.popleft()
            done += 1
            before = len(self.stream)
            reply = carry_out()
            at = before if self._model.replies_first else len(self.stream)
            self.stream.insert(at, (on_reply, reply))
        return done

    def hand_over(self, n: int | None = None) -> int:
        """Hand over what the engine has written, in order; at most ``n``. Gives how many."""
        done = 0
        while self.stream and done != n:
            on_reply, content = self.stream.popleft()
            done += 1
            if on_reply is None:
                self._on_message(*content)
            else:
                on_reply(content)
        return done

    def pump(self) -> None:
        """Serve and hand over until nothing is on its way."""
        while self.serve() or self.hand_over():
            pass

    def cut(self, fault: LinkError) -> None:
        """End it: requests and messages are lost, and who waits for a reply gets the reason."""
        if self.fault is not None:
            return
        self.fault = fault
        self._model.connections.remove(self)
        waiting = [on_reply for on_reply, _ in self.stream]
        waiting += [on_reply for _, on_reply in self.requests]
        self.stream.clear()
        self.requests.clear()
        for on_reply in waiting:
            if on_reply is not None:
                on_reply(fault)

    def _put(
        self, carry_out: Callable[[], Reply], on_reply: Callable[[Reply], None] | None
    ) -> None:
        if self.fault is not None:
            raise DownError(f"There is no link to the engine: {self.fault}")
        self.requests.append((carry_out, on_reply or _discard))


def _bytes(argument: bytes | str | int) -> bytes:
    return argument if isinstance(argument, bytes) else str(argument).encode()


def _discard(reply: Reply) -> None:
    del reply
