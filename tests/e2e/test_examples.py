"""The programs in examples/, started by the commands that README has, with real visitors."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import HERE

EXAMPLES = HERE.parents[1] / "examples"
README = (EXAMPLES / "README.md").read_text()

#: Real seconds within which an example is there, also on a busy machine; and in which it is gone.
LIMIT_S = 60.0

_names = itertools.count(1)


def commands() -> dict[str, str]:
    """README's line for each program, which starts it."""
    found = re.findall(r"^    (.*?([a-z_]+)(?:\.py|:\w+).*)$", README, re.MULTILINE)
    return {name: command for command, name in found}


class Example:
    """One of them, running.

    Attributes:
        web: its address.
        log: what it wrote, in a file.
    """

    def __init__(self, name: str, directory: Path, environ: dict[str, str] | None = None) -> None:
        host, port = "127.0.0.1", _free_port()
        self.web = f"http://{host}:{port}"
        self.log = directory / f"{name}.log"
        words = commands()[name].replace("8000", str(port)).split("  ")[0].split()
        clean = {k: v for k, v in os.environ.items() if not k.startswith("CACHECAST_")}
        told = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "WEB": f"{host}:{port}",
            "BROKER": f"{host}:0",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                words,
                cwd=EXAMPLES,
                stdout=log,
                stderr=log,
                env=clean | told | (environ or {}),
                start_new_session=True,
            )
        try:
            self.settings = self._wait_ready()
        except BaseException:
            self.kill()
            raise

    def _wait_ready(self) -> dict[str, Any]:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                settings: dict[str, Any] = self.get("/settings")
            except OSError:
                time.sleep(0.05)
            else:
                return settings
        raise AssertionError(f"not there after {LIMIT_S:g} s: {self.log.read_text()}")

    def ask(
        self, path: str, form: dict[str, str] | None = None, *, user: str | None = None
    ) -> tuple[int, str]:
        """What it answers, whatever the status."""
        data = None if form is None else urllib.parse.urlencode(form).encode()
        headers = {} if user is None else {"Cookie": f"user={user}"}
        request = urllib.request.Request(self.web + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def get(self, path: str) -> Any:
        status, body = self.ask(path)
        assert status == 200, body
        return json.loads(body)

    def publish(self, usd: str) -> None:
        assert self.ask("/prices", {"usd": usd})[0] == 204

    def wait_for(self, path: str, expected: object) -> None:
        """Until it answers with this."""
        deadline = time.monotonic() + LIMIT_S
        while (answer := self.get(path)) != expected:
            assert time.monotonic() < deadline, answer
            time.sleep(0.02)

    def end(self, number: signal.Signals) -> int:
        """End it as a user or a supervisor does; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(LIMIT_S)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def start(tmp_path):
    started = []

    def start_(name, **options):
        started.append(Example(name, tmp_path, **options))
        return started[-1]

    yield start_
    for example in started:
        example.kill()


@pytest.fixture
def visit(chromium_clients):
    """Open an example's page as somebody; gives a function that waits for what it shows."""
    opened = []

    def visit_(example, user):
        client = f"visitor-{next(_names)}"
        url = f"{example.web}/?user={user}"
        chromium_clients.call("visit", client=client, url=url)
        opened.append(client)

        def shows(selector, text):
            chromium_clients.call("wait_text", client=client, selector=selector, text=text)

        return shows

    yield visit_
    for client in opened:
        chromium_clients.call("close_page", client=client)


def assert_gone(example, code, expected=0):
    log = example.log.read_text()
    assert code == expected, log
    assert "Traceback" not in log
    assert not _is_open(int(example.web.rpartition(":")[2]))
    assert not _is_open(example.settings["port"])
    with pytest.raises(ProcessLookupError):
        os.killpg(example.process.pid, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", commands())
def test_example_shows_prices_to_its_visitors_and_ends_at_one_interrupt(name, start, visit):
    """What everyone who copies it will see first."""
    example = start(name)

    example.publish("1.08")
    ann = visit(example, "ann")
    ann("#price", "1.08")  # the cached value
    ann("#watching", "ann")
    example.publish("1.09")
    ann("#price", "1.09")
    bob = visit(example, "bob")
    bob("#price", "1.09")
    example.wait_for("/visits", {"here": ["ann", "bob"], "visits": {"ann": 1, "bob": 1}})

    question = {"socket_id": "1.1", "channel_name": "private-cache-prices"}
    assert example.ask("/pusher/auth", question)[0] == 403  # nobody
    assert example.ask("/pusher/auth", question, user="ann")[0] == 200
    assert example.ask("/pusher/auth", question | {"socket_id": "x"}, user="ann")[0] == 400

    assert_gone(example, example.end(signal.SIGINT))


@pytest.mark.slow
@pytest.mark.parametrize("name", commands())
def test_example_ends_when_its_supervisor_says_so(name, start, visit):
    """With a visitor there, who is told, and nothing is left behind."""
    example = start(name)
    visit(example, "ann")("#watching", "ann")

    assert_gone(example, example.end(signal.SIGTERM))


def test_readme_has_a_line_for_every_example():
    programs = {path.stem for path in EXAMPLES.glob("*.py")}

    assert set(commands()) == programs
