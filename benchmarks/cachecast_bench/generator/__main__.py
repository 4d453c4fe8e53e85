"""The generator process.

Requests come as lines of JSON on stdin, each is answered by one line on stdout.

The argument is the endpoint as JSON. End of input ends the process; so it cannot outlive the
benchmark.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from collections import deque

from cachecast_bench.dialects import open_dialect
from cachecast_bench.generator.commands import Commands

_READ_SIZE = 1 << 20


def main() -> None:
    """Serve requests until stdin ends."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    commands = Commands(open_dialect(json.loads(sys.argv[1])))
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

    commands.loop.add(0, on_input)
    while is_open:
        commands.loop.turn()
        # Carried out here and not in on_input, which runs within a turn of the loop that a request
        # turns itself.
        while lines and is_open:
            answer = _answer(commands, lines.popleft())
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


def _answer(commands: Commands, line: bytes) -> dict[str, object]:
    """Carry out one request.

    Whatever goes wrong is the answer, since the other end decides what it means.
    """
    try:
        return {"ok": commands.execute(json.loads(line))}
    except Exception as error:  # noqa: BLE001 - reported in full to the one who asked
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}


if __name__ == "__main__":
    main()
