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
    """What README's table says starts each program."""
    found = re.findall(r"`((?:python|uvicorn|gunicorn) ([a-z_]+)[.:][^`]*)`", README)
    return {name: command for command, name in found}


#: Those whose broker is inside.
EMBEDDED = [name for name in commands() if not (EXAMPLES / f"{name}.toml").exists()]


class Example:
    """One of them, running; :meth:`wait_ready` waits until it answers.

    Attributes:
        web: its address.
        log: what it wrote, in a file.
        has_node_beside: whether its broker is another process.
    """

    def __init__(
        self, name: str, directory: Path, port: int, *, options: str = "", **environ: str
    ) -> None:
        host = "127.0.0.1"
        self.web = f"http://{host}:{port}"
        self.log = directory / f"{name}.log"
        self.has_node_beside = "VISITS" in environ
        command = f"{commands()[name]} {options}"
        words = command.replace("8000", str(port)).split()
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
                env=clean | told | environ,
                start_new_session=True,
            )
        self.settings: dict[str, Any] = {}

    def wait_ready(self) -> None:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                self.settings = self.get("/settings")
            except OSError:
                time.sleep(0.05)
            else:
                return
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
        """End it as a terminal or a supervisor does; its exit code."""
        if number is signal.SIGINT:
            os.killpg(self.process.pid, number)  # to all in the foreground
        else:
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
def begin(tmp_path, start_server):
    """Start a program, and the node beside it where it needs one."""
    started = []

    def begin_(name, **environ):
        port = _free_port()
        config = EXAMPLES / f"{name}.toml"
        if config.exists():
            beside = tmp_path / config.name
            beside.write_text(config.read_text().replace("8000", str(port)))
            node = start_server("--config", str(beside))
            environ |= {"BROKER": f"127.0.0.1:{node.port}", "VISITS": str(tmp_path / "visits")}
        started.append(Example(name, tmp_path, port, **environ))
        return started[-1]

    yield begin_
    for example in started:
        example.kill()


@pytest.fixture
def start(begin):
    """The same, and wait until it answers."""

    def start_(name, **environ):
        example = begin(name, **environ)
        example.wait_ready()
        return example

    return start_


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


#: uvicorn ends in the orderly way and then raises the signal that ended it once more.
TOLD_BY_SIGNAL = {"fastapi_prices", "starlette_prices", "django_asgi_prices"}


def assert_gone(example, code, expected=0):
    log = example.log.read_text()
    assert code == expected, log
    # gunicorn breaks off a request that is under way when Ctrl-C comes, and logs that.
    assert "Traceback" not in log or example.has_node_beside
    assert not _is_open(int(example.web.rpartition(":")[2]))
    assert _is_open(example.settings["port"]) == example.has_node_beside
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

    expected = -signal.SIGTERM if name in TOLD_BY_SIGNAL else 0
    assert_gone(example, example.end(signal.SIGTERM), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", EMBEDDED)
def test_example_that_cannot_listen_says_so_and_ends(name, begin):
    """And does not go on as a web server without a broker."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        example = begin(name, BROKER=address)
        assert example.process.wait(LIMIT_S) != 0

    log = example.log.read_text()
    assert address in log
    assert "already in use" in log.lower()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastapi_prices", "django_asgi_prices"])
def test_views_in_threads_publish_too_and_asyncios_own_loop_is_as_good(name, start):
    """Without ``--loop`` uvicorn takes uvloop, for it is installed here."""
    example = start(name, options="--loop asyncio")
    assert example.ask("/prices/sync", {"usd": "1.25"})[0] == 204
    if name == "fastapi_prices":
        example.wait_for("/highest", {"usd": 1.25})  # its own subscription
    example.publish("1.2")

    assert_gone(example, example.end(signal.SIGINT))


def test_readme_has_a_line_for_every_example():
    programs = {path.stem for path in EXAMPLES.glob("*.py")}

    assert set(commands()) == programs
