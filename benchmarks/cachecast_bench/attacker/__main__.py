"""The attacker process; its argument is the endpoint of the attacked app as JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from cachecast_bench.attacker.attacks import ATTACKS
from cachecast_bench.dialects import Endpoint
from cachecast_bench.dialects.pusher import PusherDialect
from cachecast_bench.generator.loop import Loop
from cachecast_bench.generator.pipe import serve_requests

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast_bench.attacker.attacks import Attack

_NICENESS = 10
"""A tenth of the weight of the process that measures, if they share a core."""


class _Verbs:
    """`prepare` an attack, then `strike` for a while."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.loop = Loop()
        self._dialect = PusherDialect(endpoint)
        self._attack: Attack | None = None

    def execute(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request, `{"verb": name, ...arguments}`."""
        verb = request.pop("verb")
        verbs: dict[str, Callable[..., dict[str, Any]]] = {
            "prepare": self._prepare,
            "strike": self._strike,
        }
        return verbs[verb](**request)

    def _prepare(self, *, attack: str, scale: float) -> dict[str, Any]:
        self._attack = ATTACKS[attack](self.loop, self._dialect, scale)
        self._attack.prepare()
        return {}

    def _strike(self, *, seconds: float) -> dict[str, Any]:
        attack = self._attack
        assert attack is not None
        until_ns = time.monotonic_ns() + int(seconds * 1e9)
        attack.begin()
        self.loop.run_while(lambda: True, until_ns=until_ns)
        attack.end()
        return attack.counts.to_json()


def main() -> None:
    """Serve requests until stdin ends."""
    os.nice(_NICENESS)
    verbs = _Verbs(Endpoint.from_json(json.loads(sys.argv[1])))
    serve_requests(verbs.loop, verbs.execute)


if __name__ == "__main__":
    main()
