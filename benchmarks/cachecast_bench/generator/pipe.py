"""The child's end of the pipe: lines of JSON on standard input, each answered by one on output.

End of input ends the process; so it cannot outlive the benchmark.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast_bench.generator.loop import Loop

_READ_SIZE = 1 << 20


def serve_requests(loop: Loop, execute: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Have `execute` carry out each request until standard input ends, turning `loop` meanwhile."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    lines: deque[bytes] = deque()
    pending = b""
    is_open = True

    def on_input() -> None:
        nonlocal pending, is_open
        data = os.read(0, _READ_SIZE)
        if not data:
            is_open = False
        *complete, pending = (pending + data).split(b"\n")
        lines.extend(complete)

    loop.add(0, on_input)
    while is_open:
        loop.turn()
        # Carried out here and not in on_input, which runs within a turn of the loop that a request
        # turns itself.
        while lines and is_open:
            answer = _answer(execute, lines.popleft())
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


def _answer(execute: Callable[[dict[str, Any]], dict[str, Any]], line: bytes) -> dict[str, object]:
    """Carry out one request.

    Whatever goes wrong is the answer, since the other end decides what it means.
    """
    try:
        return {"ok": execute(json.loads(line))}
    except Exception as error:  # noqa: BLE001 - reported in full to the one who asked
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
