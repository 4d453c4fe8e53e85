"""The model and a real engine behind one face, so that one suite can ask both.

The engine is given a library whose clock is a key, and the model the same time: so both say the
very same numbers. Only streams' ids are the server's own; they are compared by their order.
"""

from __future__ import annotations

import re
from itertools import count
from typing import TYPE_CHECKING, Any

from cachecast.bus.calls import library, library_name
from cachecast.bus.faults import LinkError, MismatchError
from cachecast.bus.functions import Functions
from cachecast.bus.model import Model
from cachecast.bus.model_data import Strings
from cachecast.bus.shards import Keys
from tests.cluster.engines import Plain

if TYPE_CHECKING:
    from cachecast.bus.calls import Call
    from tests.cluster.engines import Server

_CLOCK = re.compile(r"local function now_us\(\).*?\nend\n", re.DOTALL)
_NUMBERS = count()
START_US = 1_790_000_000_000_000


def library_with_clock() -> tuple[str, str]:
    """Name and text of the library with a key for a clock."""
    name = library_name() + "_t"
    text, n = _CLOCK.subn(
        "local function now_us()\n  if not call then prepare() end\n"
        "  return tonumber(call('GET', 'clock'))\nend\n",
        library().replace(library_name(), name),
    )
    # Lives are judged by that clock too: a test that stands still for a second frees nothing.
    life = "'PX', args[at + 2])"
    assert (n, text.count(life)) == (1, 1)
    return name, text.replace(life, "'PX', 3600000)")


class ModelSide:
    """The model, asked directly."""

    def __init__(self) -> None:
        self.now_us = START_US
        self.model = Model(lambda: self.now_us, "aa")
        self.model.libraries.add(library_name())
        self.functions = Functions(Keys(), library_name())
        self.messages: list[tuple[bytes, bytes]] = []
        self._adapt()

    def _adapt(self) -> None:
        """Take the messages; and free nothing by the turned clock, as the engine does not."""
        self.model.functions.publish_message = self._take
        self.model.functions.strings = Strings(lambda: START_US)

    def _take(self, topic: bytes, payload: bytes) -> int:
        self.messages.append((topic, payload))
        return 1

    def turn_clock(self, by_us: int) -> None:
        self.now_us += by_us

    def execute(self, call: Call[Any]) -> Any:
        return answer(call, self.model.execute(call.arguments))

    def flush(self) -> None:
        self.model.flush()
        self._adapt()

    def become_other(self) -> None:
        """Be another process, as after a failover."""
        self.model.functions.run_id += "b"

    def close(self) -> None:
        pass


class EngineSide:
    """A real engine."""

    def __init__(self, server: Server) -> None:
        self.plain = Plain(server.path)
        name, text = library_with_clock()
        self.plain.must("FUNCTION", "LOAD", "REPLACE", text)
        self.prefix = f"p{next(_NUMBERS)}:"
        self.functions = Functions(Keys(self.prefix), name)
        self.plain.listen_to(f"{self.prefix}*".encode())
        self.now_us = START_US
        self.turn_clock(0)

    @property
    def messages(self) -> list[tuple[bytes, bytes]]:
        # Valkey writes what a call publishes to its own connection behind the call's reply.
        self.plain.must("PING")
        n = len(self.prefix)
        return [(topic[n:], payload) for topic, payload in self.plain.messages]

    def turn_clock(self, by_us: int) -> None:
        self.now_us += by_us
        self.plain.must("SET", "clock", self.now_us)

    def execute(self, call: Call[Any]) -> Any:
        return answer(call, self.plain.execute(call.arguments))

    def flush(self) -> None:
        for key in self.plain.must("KEYS", f"{self.prefix}*"):
            self.plain.must("DEL", key)

    def become_other(self) -> None:
        self.plain.must("SET", f"{self.prefix}cc:run", "another")

    def close(self) -> None:
        self.flush()
        self.plain.close()


def answer(call: Call[Any], reply: Any) -> Any:
    """The result, or of an error what can be compared."""
    if isinstance(reply, MismatchError):
        return MismatchError
    if isinstance(reply, LinkError):
        return type(reply), str(reply), getattr(reply, "wait_s", None)
    return call.read(reply)
