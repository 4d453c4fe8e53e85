"""docs/cluster.md as it stands there: its engine, its nodes, its balancers, its commands."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from cachecast.client import connect
from cachecast.config import load_config
from tests.cluster.engines import ENGINES, Plain, Server, binary_of
from tests.cluster.nodes import free_port, node_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from cachecast.client import Channel

GUIDE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
SECRET = "change-this-too"
PASSWORD = "change-this"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", GUIDE, re.DOTALL)


def shown(start: str) -> str:
    """A command line of the guide."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return next(line for line in lines if line.startswith(start))


class Place:
    """The guide's addresses, and what they are here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (
            self.engine, self.balancer, self.a, self.admin_a, self.b, self.admin_b,
        ) = (free_port() for _ in range(6))  # fmt: skip
        self.names = {
            "10.0.0.5:6379": f"127.0.0.1:{self.engine}",
            "10.0.0.10:80": f"127.0.0.1:{self.balancer}",
            "ws://10.0.0.10": f"ws://127.0.0.1:{self.balancer}",
            "http://10.0.0.10": f"http://127.0.0.1:{self.balancer}",
            "10.0.0.11:6001": f"127.0.0.1:{self.a}",
            "10.0.0.12:6001": f"127.0.0.1:{self.b}",
            "/etc/cachecast/engine-password": str(folder / "password"),
        }
        (folder / "password").write_text(PASSWORD)
        self.config = folder / "cachecast.toml"
        self.config.write_text(self.here(blocks("toml")[0]))

    def here(self, text: str) -> str:
        for name, address in self.names.items():
            text = text.replace(name, address)
        return text

    @contextmanager
    def node(self, port: int, admin: int) -> Iterator[subprocess.Popen[str]]:
        words = shlex.split(shown("cachecast serve"))
        assert words[:4] == ["cachecast", "serve", "--config", "cachecast.toml"]
        assert words[4:] == ["--host", "10.0.0.11", "--admin-host", "10.0.0.11"]
        with node_process(
            "--config", str(self.config), "--port", str(port), "--admin-port", str(admin)
        ) as process:  # fmt: skip
            yield process

    def command(self, start: str) -> subprocess.CompletedProcess[str]:
        words = shlex.split(self.here(shown(start)).replace("cachecast.toml", str(self.config)))
        return subprocess.run(
            [sys.executable, "-m", *words], capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture(params=ENGINES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """The engine of the guide, alive."""
    place = Place(tmp_path)
    binary = binary_of(request.param)
    options = [
        word
        for line in blocks("ini")[0].splitlines()
        if not line.startswith(("bind", "requirepass"))
        for word in _option(line)
    ]
    if request.param == "valkey":
        for line in re.findall(r"`(commandlog-[\w-]+ 0)`", GUIDE):
            options += _option(line)
    with Server(binary, "--port", str(place.engine), "--bind", "127.0.0.1", *options) as server:
        with Plain(server.path) as plain:
            plain.must("CONFIG", "SET", "requirepass", PASSWORD)
        yield place


def _option(line: str) -> list[str]:
    name, *words = shlex.split(line)
    return [f"--{name}", *words]


def haproxy(place: Place) -> tuple[list[str], Path]:
    path = place.folder / "haproxy.cfg"
    text = place.here(blocks("haproxy")[0])
    for name, port in (("a", place.admin_a), ("b", place.admin_b)):
        text = re.sub(rf"(server {name} \S+)", rf"\1 port {port}", text)
    path.write_text(text)
    return ["haproxy", "-db", "-f", str(path)], path


def nginx(place: Place) -> tuple[list[str], Path]:
    path = place.folder / "nginx.conf"
    folders = "\n".join(
        f"{kind}_temp_path {place.folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path.write_text(
        f"daemon off; pid {place.folder}/pid; error_log stderr warn;\n"
        f"events {{}}\nhttp {{ access_log off; {folders}\n{place.here(blocks('nginx')[0])}\n}}\n"
    )
    return ["nginx", "-c", str(path), "-e", "stderr"], path


@contextmanager
def balancing(command: list[str]) -> Iterator[None]:
    found = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        reason = f"Debian's {command[0]} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    process = subprocess.Popen([found, *command[1:]], stdout=subprocess.DEVNULL)
    time.sleep(0.3)
    assert process.poll() is None, "the balancer does not take the guide's configuration"
    try:
        yield
        assert process.poll() is None, "the balancer has ended"
    finally:
        process.terminate()
        process.wait(10)


async def metric(port: int, name: str) -> float:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b"".join([part async for part in stream]).decode()
    found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


async def hear_tick(channel: Channel) -> None:
    async for event in channel:
        if event.name == "tick":
            assert event.json() == {"eur": 1.08}
            return
        assert event.name == "pusher:cache_miss"  # nobody has published yet


@asynccontextmanager
async def spread(place: Place, url: str) -> AsyncIterator[list[Channel]]:
    """The channel at two clients, one on each node.

    A balancer whose first look at a node took too long looks again a second later, and sends
    everybody to the other one until then.
    """
    while True:
        async with (
            connect(url, key="app-key", secret=SECRET) as one,
            connect(url, key="app-key", secret=SECRET) as two,
        ):
            channels = [await client.subscribe("cache-prices") for client in (one, two)]
            if [
                await metric(port, "cachecast_connections")
                for port in (place.admin_a, place.admin_b)
            ] == [1, 1]:
                yield channels
                return
        await trio.sleep(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [haproxy, nginx])
async def test_two_nodes_behind_a_balancer_are_one_and_either_may_go(
    place: Place, kind: Callable[[Place], tuple[list[str], Path]]
) -> None:
    checked = place.command("cachecast bus check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    command, _ = kind(place)
    url = f"ws://127.0.0.1:{place.balancer}"
    with (
        place.node(place.a, place.admin_a),
        place.node(place.b, place.admin_b) as second,
        balancing(command),
        trio.fail_after(50),
    ):
        assert "2" in place.command("cachecast bus check").stdout
        async with spread(place, url) as channels:
            told = await trio.to_thread.run_sync(place.command, "cachecast publish")
            assert told.returncode == 0, told.stderr
            for channel in channels:
                await hear_tick(channel)
            second.kill()  # its client comes back by the balancer, to the other one
            while await metric(place.admin_a, "cachecast_connections") < 2:  # noqa: ASYNC110
                await trio.sleep(0.1)
            told = await trio.to_thread.run_sync(place.command, "cachecast publish")
            assert told.returncode == 0, told.stderr
            for channel in channels:
                await hear_tick(channel)


def test_every_file_of_the_guide_is_a_configuration(tmp_path: Path) -> None:
    for number, block in enumerate(blocks("toml")):
        password = tmp_path / "password"
        password.write_text(PASSWORD)
        path = tmp_path / f"{number}.toml"
        text = block.replace("/etc/cachecast/engine-password", str(password))
        if "[[apps]]" not in text:
            text += '[[apps]]\nid = "1"\nkey = "k"\nsecret = "s"\n'
        path.write_text(text)
        assert load_config(path, environ={}).bus.primaries()
