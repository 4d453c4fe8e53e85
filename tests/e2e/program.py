"""A child process that is told what to do, and tells what happened, in lines of JSON.

The SDKs under test live in Node, in Chromium and in their own event loops; the tests live here.
Between them go requests ``{"id": 1, "op": "open", ...}``, answers ``{"id": 1, "result": ...}``
and, at any time, events ``{"client": "c1", "on": "state", ...}``. Nothing here sleeps: whoever
waits for an event waits for the pipe, with a deadline.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

#: Real seconds within which anything on loopback happens, also on a busy machine.
PATIENCE_S = 15.0

Event = dict[str, Any]


class Program:
    """One such child."""

    def __init__(
        self,
        command: Sequence[str | Path],
        cwd: Path,
        *,
        environ: dict[str, str] | None = None,
        start_limit_s: float = 60.0,
    ) -> None:
        self.events: dict[str, list[Event]] = defaultdict(list)
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=cwd,
            env=os.environ | (environ or {}),
            # Ctrl-C is for pytest, which then ends its children itself.
            start_new_session=True,
        )
        self._rest = b""
        self._replies: dict[int, Event] = {}
        self._n_calls = 0
        try:
            self.ready = self._wait_until(
                lambda: self.events["program"][0] if self.events["program"] else None,
                lambda: f"{command[0]} did not start",
                start_limit_s,
            )
        except BaseException:
            self.end()
            raise

    def call(self, op: str, **arguments: object) -> Any:
        """Have something done and return its result; raises what it raised."""
        self._n_calls += 1
        number = self._n_calls
        line = json.dumps({"id": number, "op": op, **arguments}) + "\n"
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()
        reply = self._wait_until(
            lambda: self._replies.pop(number, None), lambda: f"{op} {arguments} was not answered"
        )
        if "error" in reply:
            raise SdkError(reply["error"])
        return reply.get("result")

    def wait(
        self, client: str, matches: Callable[[Event], bool], *, nth: int = 1, within_s: float
    ) -> Event:
        """Return the nth event of a client that matches, as soon as there is one."""

        def find() -> Event | None:
            found = [event for event in self.events[client] if matches(event)]
            return found[nth - 1] if len(found) >= nth else None

        def explain() -> str:
            seen = "\n".join(f"  {event}" for event in self.events[client])
            return f"client {client} did not see it; it saw:\n{seen}"

        return self._wait_until(find, explain, within_s)

    def end(self) -> None:
        """Close its stdin, which is its sign to leave; end it by its pid if it does not."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _wait_until(
        self,
        find: Callable[[], Event | None],
        explain: Callable[[], str],
        within_s: float = PATIENCE_S,
    ) -> Event:
        deadline = time.monotonic() + within_s
        while (found := find()) is None:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise AssertionError(f"after {within_s:g} s: {explain()}")
            self._read(remaining_s)
        return found

    def _read(self, within_s: float) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        readable, _, _ = select.select([stdout], [], [], within_s)
        if not readable:
            return
        chunk = os.read(stdout.fileno(), 65_536)
        if not chunk:
            raise AssertionError(f"the program ended with {self._process.wait()}")
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:  # an SDK that prints
            sys.stderr.write(line.decode(errors="replace") + "\n")
            return
        if "id" in message:
            self._replies[message["id"]] = message
        else:
            self.events[message["client"]].append(message)


class SdkError(Exception):
    """What an SDK raised, as text."""
